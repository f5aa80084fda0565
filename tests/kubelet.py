"""The kubelet of tests/deploy.py: runs every container as it is written, with its volumes, its user, its read-only root
and its names, in namespaces of this machine.

In a pod of a runtime class `kata-*` the files of claims, ConfigMaps and Secrets are what the guest gets under TDX
(shared_fs=none, kata 4.1, `ShareFile`): copies, new for each container. Whatever is written there is lost, so that
it must be as it came when the container is gone; `emptyDir` is the guest's own and lives as long as the pod.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time

# Where roles serve numbers and health.
METRICS = 9464
METRICS_FLAG = f"--metrics=0.0.0.0:{METRICS}"
PROBES = ("livenessProbe", "readinessProbe")
INDEX_PATH = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
# The runtime's default profile, but for what overlays/tdx-vm opens.
CONFINE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "confine.py")
PROFILE = os.path.abspath("deploy/overlays/tdx-vm/seccomp.json")
# Who fsGroup and runAsUser say.
USER = 65532


class Cluster:
    """What was applied to one cluster, what its nodes keep, and its network, which leads nowhere."""

    def __init__(self, program, work, name, documents, hosts):
        self.program, self.work, self.network = program, f"{work}/{name}", f"hfl-{name}"
        self.documents, self.hosts = documents, hosts
        self.running, self.pending, self.devices, self.pods, self.addresses = [], [], {}, 0, 0
        # Of a run that was killed.
        subprocess.run(["ip", "netns", "del", self.network], check=False, stderr=subprocess.DEVNULL)
        subprocess.run(["ip", "netns", "add", self.network], check=True)
        subprocess.run(["ip", "-n", self.network, "link", "set", "lo", "up"], check=True)
        # All before the first container: no kubelet shows a file half written.
        for config in (d for d in documents if d["kind"] == "ConfigMap"):
            folder = self.directory("config", config["metadata"]["name"])
            for file, text in config["data"].items():
                write(folder, file, text)

    def of(self, kind, name):
        return next(d for d in self.documents if (d["kind"], d["metadata"]["name"]) == (kind, name))

    def directory(self, *words):
        path = "/".join([self.work, *words]).rstrip("/")
        if not os.path.isdir(path):
            os.makedirs(path)
            # What fsGroup does for a pod's volumes.
            os.chown(path, USER, USER)
        return path

    def disk(self, claim, size, content=None):
        """The storage behind a block claim: zeros, or what somebody put there."""
        path = f"{self.directory('claim')}/{claim}.disk"
        with open(path, "wb") as file:
            file.truncate(size)
        if content:
            subprocess.run(["dd", f"if={content}", f"of={path}", "conv=notrunc", "status=none"], check=True)
        loop = subprocess.run(["losetup", "-f", "--show", path], capture_output=True, text=True, check=True)
        self.devices[claim] = loop.stdout.strip()
        return self.devices[claim]

    def grow(self, claim, size):
        os.truncate(f"{self.work}/claim/{claim}.disk", size)
        subprocess.run(["losetup", "-c", self.devices[claim]], check=True)

    def device(self, claim):
        """Owned by the pod's user: device_ownership_from_security_context of containerd."""
        assert self.of("PersistentVolumeClaim", claim)["spec"]["volumeMode"] == "Block"
        os.chown(self.devices[claim], USER, USER)
        return self.devices[claim]

    def source(self, volume, path):
        if "persistentVolumeClaim" in volume:
            return self.directory("claim", volume["persistentVolumeClaim"]["claimName"], path)
        secret = volume.get("secret")
        words = ("secret", secret["secretName"]) if secret else ("config", volume["configMap"]["name"])
        path = "/".join([self.work, *words])
        assert os.path.isdir(path), f"nothing makes {path}"
        return path

    def probe(self):
        """Asks as the kubelet does; each has to have been in order once."""
        for asked in list(self.pending):
            address, path = asked
            request = ["ip", "netns", "exec", self.network, "curl", "-sf", "-m", "5", f"http://{address}{path}"]
            if subprocess.run(request, stdout=subprocess.DEVNULL, check=False).returncode == 0:
                self.pending.remove(asked)

    def command(self, args, name, mounts=(), context=None, stdout=None):
        """The program as process 1 of a root of its own, as an ordinary user, without capabilities."""
        root = f"{self.work}/root-{name}"
        os.makedirs(f"{root}/etc")
        shutil.copy(self.program, f"{root}/hfl")
        write(f"{root}/etc", "hosts", f"127.0.0.1 localhost {self.hosts}\n")
        script = ["set -e", f"mount --bind {root} {root}"]
        for source, target, read_only in mounts:
            if read_only is None:
                os.makedirs(os.path.dirname(root + target), exist_ok=True)
                open(root + target, "a", encoding="utf-8").close()
            else:
                os.makedirs(root + target, exist_ok=True)
            script.append(f"mount --bind {source} {root}{target}")
            if read_only:
                script.append(f"mount -o remount,bind,ro {root}{target}")
        if context is None:
            os.makedirs(f"{root}/tmp")
            script.append(f'exec chroot {root} /hfl "$@"')
        else:
            assert context["runAsNonRoot"] and context["seccompProfile"]["type"] == "RuntimeDefault"
            user = context["runAsUser"]
            script.append(f"mount -o remount,bind,ro {root}")
            script.append(f'exec {sys.executable} -B {CONFINE} {PROFILE} {root} {user} /hfl "$@"')
        words = ["ip", "netns", "exec", self.network, "unshare", "--mount", "--pid", "--fork", "--kill-child"]
        process = subprocess.Popen(words + ["sh", "-c", "\n".join(script), "hfl"] + args, stdout=stdout)
        self.running.append(process)
        return process

    def script(self, text, *args):
        """A program of the test's own in this network."""
        process = subprocess.Popen(["ip", "netns", "exec", self.network, sys.executable, "-c", text, *args])
        self.running.append(process)
        return process

    def end(self):
        for process in self.running:
            if process.poll() is None:
                # The user that it became cleared what --kill-child asked for.
                os.kill(inside(process) or process.pid, signal.SIGKILL)
                process.wait()
        for device in self.devices.values():
            subprocess.run(["losetup", "-d", device], check=True)
            os.chown(device, 0, 0)
        subprocess.run(["ip", "netns", "del", self.network], check=True)


class Pod:
    """A pod of a workload, and the container that runs in it."""

    def __init__(self, cluster, workload, index=0):
        self.cluster, self.index = cluster, index
        self.spec = workload["spec"]["template"]["spec"]
        cluster.pods += 1
        self.name = f"{workload['metadata']['name']}{index}-{cluster.pods}"
        self.is_guest = self.spec.get("runtimeClassName", "").startswith("kata-")
        self.containers, self.copies, self.asked = 0, [], []

    def start(self):
        """The first container, or what the kubelet starts in this pod when one has failed."""
        if self.containers:
            assert self.spec["restartPolicy"] == "OnFailure", self.spec["restartPolicy"]
        self.containers += 1
        (container,) = self.spec["containers"]
        env = {}
        for source in container.get("envFrom", []):
            env.update(self.cluster.of("ConfigMap", source["configMapRef"]["name"])["data"])
        for variable in container.get("env", []):
            assert variable["valueFrom"]["fieldRef"]["fieldPath"] == INDEX_PATH
            env[variable["name"]] = str(self.index)
        expand = lambda text: re.sub(r"\$\((\w+)\)", lambda match: env[match[1]], text)
        volumes = {volume["name"]: volume for volume in self.spec["volumes"]}
        mounts = []
        for mount in container["volumeMounts"]:
            source = self.volume(volumes[mount["name"]], expand(mount.get("subPathExpr", "")))
            mounts.append((source, mount["mountPath"], mount.get("readOnly", False)))
        for block in container.get("volumeDevices", []):
            claim = volumes[block["name"]]["persistentVolumeClaim"]["claimName"]
            mounts.append((self.cluster.device(claim), block["devicePath"], None))
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
        # All pods of a cluster share one network here: each has an address of its own in it.
        self.cluster.addresses += 1
        address = f"127.0.1.{self.cluster.addresses}:{METRICS}"
        args = [expand(word).replace(f"0.0.0.0:{METRICS}", address) for word in container["args"]]
        if METRICS_FLAG in container["args"]:
            self.asked = [(address, container[probe]["httpGet"]["path"]) for probe in PROBES]
            self.cluster.pending += self.asked
        name = f"{self.name}-{self.containers}"
        self.process = self.cluster.command(args, name, mounts, self.spec["securityContext"])
        return self

    def volume(self, volume, path):
        if "emptyDir" in volume:
            return self.cluster.directory("pods", self.name, volume["name"])
        source = self.cluster.source(volume, path)
        if not self.is_guest:
            return source
        copy = self.cluster.directory("pods", self.name, f"copies-{self.containers}", volume["name"])
        subprocess.run(["cp", "-a", f"{source}/.", copy], check=True)
        self.copies.append((source, copy))
        return copy

    def is_ready(self):
        return not any(asked in self.cluster.pending for asked in self.asked)

    def is_over(self):
        return self.process.poll() is not None

    def kill(self):
        """The end of a container, without a word to it; of the pod, if none is started in it again."""
        os.kill(inside(self.process), signal.SIGKILL)
        self.process.wait()
        self.cluster.running.remove(self.process)
        self.cluster.pending = [asked for asked in self.cluster.pending if asked not in self.asked]
        self.nothing_is_lost()

    def terminate(self):
        """What the kubelet sends to process 1 of the pod; unshare itself does not pass it on."""
        os.kill(inside(self.process), signal.SIGTERM)
        assert self.process.wait(timeout=60) == 0, f"{self.name} did not end in good order"

    def nothing_is_lost(self):
        for source, copy in self.copies:
            subprocess.run(["diff", "-r", source, copy], check=True)


# An ingress or a gateway that passes TLS on unopened: it listens in another network, reads the name in the first
# message of each connection, and leads it to a port in its own.
GATEWAY = textwrap.dedent("""
    import ctypes, json, os, socket, sys, threading
    outside, port, routes = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
    def enter(network):
        if ctypes.CDLL(None).setns(network, 0) != 0:
            sys.exit("setns")
    own = os.open("/proc/self/ns/net", os.O_RDONLY)
    enter(os.open(f"/run/netns/{outside}", os.O_RDONLY))
    listener = socket.create_server(("127.0.0.1", port))
    enter(own)

    def whole(end, length):
        data = b""
        while len(data) < length:
            more = end.recv(length - len(data))
            if not more:
                raise EOFError
            data += more
        return data

    def name(hello):
        at = 4 + 2 + 32
        at += 1 + hello[at]
        at += 2 + int.from_bytes(hello[at:at + 2], "big")
        at += 1 + hello[at]
        end = at + 2 + int.from_bytes(hello[at:at + 2], "big")
        at += 2
        while at < end:
            kind, length = (int.from_bytes(hello[at + i:at + i + 2], "big") for i in (0, 2))
            if kind == 0:
                return hello[at + 4 + 5:at + 4 + length].decode()
            at += 4 + length

    def copy(source, target):
        try:
            while data := source.recv(1 << 16):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            source.close(), target.close()

    def lead(end):
        try:
            head = whole(end, 5)
            record = whole(end, int.from_bytes(head[3:], "big"))
            target = socket.create_connection(("127.0.0.1", routes[name(record)]))
        except (EOFError, OSError, KeyError, IndexError):
            return end.close()
        target.sendall(head + record)
        for source, other in ((end, target), (target, end)):
            threading.Thread(target=copy, args=(source, other), daemon=True).start()

    while True:
        threading.Thread(target=lead, args=(listener.accept()[0],), daemon=True).start()
""")

# The guest's REST service after api-server-rest of guest-components at 8246e5e, with the features "all".
HUB = textwrap.dedent("""
    import http.server, sys
    class Hub(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            status, body = 500, b"rpc status: KBS Client error: resource not found"
            if not self.path.startswith("/cdh/resource/"):
                status, body = 404, b"URL NOT FOUND"
            elif self.path == "/cdh/resource/default/hfl/model":
                status, body = 200, sys.argv[1].encode()
            self.send_response(status)
            self.send_header("content-type", "application/octet-stream")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
    http.server.HTTPServer(("127.0.0.1", 8006), Hub).serve_forever()
""")


def routes(documents):
    """Name to port, as the Ingresses and TLSRoutes of a cluster have it, through their Services to the containers."""
    found = {}
    for document in documents:
        space = document["metadata"].get("namespace")
        if document["kind"] == "Ingress":
            assert document["metadata"]["annotations"]["nginx.ingress.kubernetes.io/ssl-passthrough"] == "true"
            for rule in document["spec"]["rules"]:
                service = rule["http"]["paths"][0]["backend"]["service"]
                found.setdefault(rule["host"], []).append(port(documents, space, service["name"], service["port"]))
        if document["kind"] == "TLSRoute":
            (rule,) = document["spec"]["rules"]
            (backend,) = rule["backendRefs"]
            for host in document["spec"]["hostnames"]:
                target = port(documents, space, backend["name"], {"number": backend["port"]})
                found.setdefault(host, []).append(target)
    for host, ports in found.items():
        assert len(set(ports)) == 1, f"{host} leads to {ports}"
    return {host: ports[0] for host, ports in found.items()}


def port(documents, space, name, wanted):
    documents = [d for d in documents if d["metadata"].get("namespace") == space]
    (service,) = [d for d in documents if (d["kind"], d["metadata"]["name"]) == ("Service", name)]
    (entry,) = [p for p in service["spec"]["ports"] if wanted in ({"name": p["name"]}, {"number": p["port"]})]
    for document in documents:
        pod = document["spec"]["template"] if document["kind"] in ("Job", "Deployment") else None
        if pod and all(pod["metadata"]["labels"].get(k) == v for k, v in service["spec"]["selector"].items()):
            (container,) = pod["spec"]["containers"]
            return next(p["containerPort"] for p in container["ports"] if p["name"] == entry["targetPort"])
    raise AssertionError(f"nobody is behind {name}")


def open_gateway(cluster, outside):
    """What a site shows to the others, at the port of its listeners."""
    gateways = [d["spec"] for d in cluster.documents if d["kind"] == "Gateway"]
    (listener,) = {json.dumps(listener): listener for gateway in gateways for listener in gateway["listeners"]}.values()
    assert listener["tls"]["mode"] == "Passthrough"
    table = routes(cluster.documents)
    assert all(host.endswith(listener["hostname"].removeprefix("*")) for host in table)
    return cluster.script(GATEWAY, outside.network, str(listener["port"]), json.dumps(table))


def wait(clusters, is_over, minutes=10):
    end = time.monotonic() + 60 * minutes
    while not is_over():
        running = [process for cluster in clusters for process in cluster.running]
        failed = [process.args for process in running if process.poll() not in (None, 0)]
        assert not failed and time.monotonic() < end, failed or "takes too long"
        for cluster in clusters:
            cluster.probe()
        time.sleep(0.2)


def write(folder, name, text):
    with open(f"{folder}/{name}", "w", encoding="utf-8") as file:
        file.write(text)


def inside(process):
    """Process 1 of a container, as this machine numbers it; none before it starts."""
    with open(f"/proc/{process.pid}/task/{process.pid}/children", encoding="ascii") as children:
        return next(map(int, children.read().split()), None)


def magic(path):
    try:
        with open(path, "rb") as file:
            return file.read(6)
    except FileNotFoundError:
        return b""
