#!/usr/bin/env python3
"""Plays the cluster for deploy/: its network policies, the guest's agent with the policy of `hfl initdata`,
and for overlays/sim the kubelet, which runs every container as it is written, with its volumes, its user, its
read-only root and its names, in namespaces of this machine, until a trusted node has the model. ps0 is overlays/coco's:
its claim is a block device, a loop device here, on which it is killed and started anew, and the device grows.

usage: deploy.py HFL DIRECTORY   (DIRECTORY holds the rendered overlays; needs PyYAML and regopy; root, for the
       part that starts containers)
"""

import base64
import copy
import gzip
import ipaddress
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import tomllib

import regopy
import yaml

NETWORK = "hfl-deploy"
PASSPHRASE = "of the test"
# Where roles serve numbers and health.
METRICS = 9464
METRICS_FLAG = f"--metrics=0.0.0.0:{METRICS}"
PROBES = ("livenessProbe", "readinessProbe")
MINUTES_MAX = 10


def main():
    program, place = os.path.abspath(sys.argv[1]), sys.argv[2]
    names = ("sim", "coco", "tdx-vm", "azure", "workers-only", "trustee")
    overlays = {name: load(f"{place}/{name}.yaml") for name in names}
    commands = {name: {key: args for key, args in lines(documents)} for name, documents in overlays.items()}
    for name, own in commands.items():
        for key, args in own.items():
            assert args == commands["sim"][key], f"{name} has another command line for {key}"
    data_volume = load(f"{place}/data-volume.yaml")
    check_data_volume(data_volume, overlays["coco"])
    check_shape(overlays | {"data-volume": data_volume}, load(f"{place}/secret-service.yaml"))
    check_network(overlays)
    for name in ("coco", "data-volume"):
        check_initdata(program, f"{place}/{name}.yaml")
    check_trustee(program, place)
    if os.geteuid() != 0:
        print("SKIPPED deploy: command lines need root (namespaces)")
        return
    with tempfile.TemporaryDirectory() as work:
        documents = with_block_claim(overlays["sim"], overlays["coco"])
        cluster = Cluster(program, work, documents, load(f"{place}/secret-service.yaml"))
        try:
            cluster.run()
        finally:
            cluster.end()
    count = len(commands["sim"])
    print(f"{count} command lines run as they are written; a trusted node has the model")


def with_block_claim(documents, coco):
    """The simulated cluster, with ps0, its claim and where its volume is as for Confidential Containers."""
    named = lambda d: (d["kind"], d["metadata"]["name"])
    theirs = {named(d): d for d in coco}
    swapped = [("Job", "ps0"), ("PersistentVolumeClaim", "hfl-model")]
    documents = [copy.deepcopy(theirs[named(d)] if named(d) in swapped else d) for d in documents]
    (settings,) = (d["data"] for d in documents if named(d) == ("ConfigMap", "hfl-job"))
    settings["VOLUME"] = theirs[("ConfigMap", "hfl-job")]["data"]["VOLUME"]
    # For workers it is still a directory: what they keep of it lies in the pod.
    return documents


def load(path):
    with open(path, encoding="utf-8") as file:
        return [document for document in yaml.safe_load_all(file) if document]


def lines(documents):
    for document in documents:
        if document["kind"] in ("Job", "Deployment"):
            for container in document["spec"]["template"]["spec"]["containers"]:
                yield (document["metadata"]["name"], container["name"]), container["args"]


def pods(documents):
    for document in documents:
        if document["kind"] in ("Job", "Deployment"):
            yield document, document["spec"]["template"]


def check_shape(overlays, secret_service):
    """What every overlay promises beyond the schemas."""
    sizes = set()
    for documents in (*overlays.values(), secret_service):
        namespaces = {d["metadata"]["name"] for d in documents if d["kind"] == "Namespace"}
        claims = {d["metadata"]["name"] for d in documents if d["kind"] == "PersistentVolumeClaim"}
        maps = {d["metadata"]["name"] for d in documents if d["kind"] == "ConfigMap"}
        for document in documents:
            if document["kind"] != "Namespace":
                assert document["metadata"]["namespace"] in namespaces, document["metadata"]
        for document, pod in pods(documents):
            name = document["metadata"]["name"]
            for annotation in pod["metadata"].get("annotations", {}):
                assert not annotation.endswith(("default_vcpus", "default_memory")), f"{name}: {annotation}"
            for container in pod["spec"]["containers"]:
                sizes.add(json.dumps(container["resources"]["limits"] | {"squat.ai/tdx-guest": None}))
            modes = {d["metadata"]["name"]: d["spec"].get("volumeMode") for d in documents if d["kind"] == "PersistentVolumeClaim"}
            uses = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
            for container in pod["spec"]["containers"]:
                blocks = [device["name"] for device in container.get("volumeDevices", [])]
                for used in blocks + [mount["name"] for mount in container["volumeMounts"]]:
                    claim = uses[used].get("persistentVolumeClaim", {}).get("claimName")
                    assert (modes.get(claim) == "Block") == (used in blocks), f"{name}: {used}"
            for volume in pod["spec"]["volumes"]:
                claim = volume.get("persistentVolumeClaim", {}).get("claimName")
                assert claim is None or claim in claims, f"{name} mounts {claim}, which nothing makes"
                config = volume.get("configMap", {}).get("name")
                assert config is None or config in maps, f"{name} mounts {config}, which nothing makes"
    for documents in overlays.values():
        serving = ("ps", "worker")
        roles = [(d, pod) for d, pod in pods(documents) if pod["metadata"]["labels"].get("hfl/role") in serving]
        for document, pod in roles:
            container = pod["spec"]["containers"][0]
            name, notes = document["metadata"]["name"], pod["metadata"]["annotations"]
            assert METRICS_FLAG in container["args"], name
            ports = {port["name"]: port["containerPort"] for port in container["ports"]}
            assert ports["metrics"] == METRICS and notes["prometheus.io/port"] == str(METRICS), name
            probes = [container[probe]["httpGet"] for probe in PROBES]
            assert probes == [{"path": p, "port": "metrics"} for p in ("/healthz", "/readyz")], name
    # RTMR0 and RTMR2 of a guest change with its size.
    assert len(sizes) == 1, f"guests of several sizes: {sizes}"
    workers = next(d for d in overlays["workers-only"] if d["kind"] == "Job")
    assert workers["metadata"]["name"] == "workers" and workers["spec"]["completions"] == 1
    kinds = [d["kind"] for d in overlays["workers-only"]]
    assert kinds.count("Job") == 1 and "Service" not in kinds and "Ingress" not in kinds
    print("shapes: one size of guest, every claim, map and namespace is made")


def check_data_volume(documents, coco):
    """The component changes where the workers' data is, and nothing else."""
    own, plain = dict(lines(documents)), dict(lines(coco))
    workers = ("workers", "hfl")
    at = plain[workers].index("--data=/data")
    plain[workers][at : at + 1] = ["--data-volume=/dev/hfl-data", "--shard=$(INDEX)/$(WORKERS_HERE)"]
    assert own == plain, own
    (claim,) = (d["spec"] for d in documents if d["metadata"]["name"] == "hfl-data")
    assert claim["volumeMode"] == "Block" and claim["accessModes"] == ["ReadOnlyMany"]


def selects(selector, labels):
    if any(labels.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        return False
    for expression in selector.get("matchExpressions", []):
        assert expression["operator"] == "In", expression
        if labels.get(expression["key"]) not in expression["values"]:
            return False
    return True


class Pod:
    """An end of a connection: a pod with labels in a namespace, or an address outside."""

    def __init__(self, role=None, namespace="hfl", address=None):
        self.labels = {"hfl/role": role, "app.kubernetes.io/name": "hfl"} if role else {}
        self.namespace = None if address else namespace
        self.address = ipaddress.ip_address(address) if address else None


def matches(peer, end, namespace):
    if "ipBlock" in peer:
        inside = lambda block: end.address in ipaddress.ip_network(block)
        excepted = any(inside(block) for block in peer["ipBlock"].get("except", []))
        return end.address is not None and inside(peer["ipBlock"]["cidr"]) and not excepted
    if end.address is not None:
        return False
    if "namespaceSelector" in peer:
        if not selects(peer["namespaceSelector"], {"kubernetes.io/metadata.name": end.namespace}):
            return False
    elif end.namespace != namespace:
        return False
    return selects(peer.get("podSelector", {}), end.labels)


def one_way(documents, pod, other, port, protocol, direction):
    """Kubernetes' rule: no policy that selects the pod, or one of its rules that lets the peer through."""
    rules, peers = ("egress", "to") if direction == "Egress" else ("ingress", "from")
    policies = [
        d
        for d in documents
        if d["kind"] == "NetworkPolicy"
        and d["metadata"]["namespace"] == pod.namespace
        and direction in d["spec"]["policyTypes"]
        and selects(d["spec"]["podSelector"], pod.labels)
    ]
    if pod.address is not None or not policies:
        return True
    for rule in (rule for policy in policies for rule in policy["spec"].get(rules, [])):
        ports = rule.get("ports")
        fits = ports is None or any((p["port"], p.get("protocol", "TCP")) == (port, protocol) for p in ports)
        who = rule.get(peers)
        if fits and (who is None or any(matches(peer, other, pod.namespace) for peer in who)):
            return True
    return False


def check_network(overlays):
    """Every connection that roles, guest and agent need, and those that nobody needs."""
    ps0, worker = Pod("ps"), Pod("worker")
    secrets = Pod("secret", "hfl-secrets")
    inside, outside = Pod(address="10.1.2.3"), Pod(address="203.0.113.5")
    stranger, scraper = Pod("stranger", "elsewhere"), Pod("scraper", "monitoring")
    need = [
        (worker, ps0, 60002, "TCP"),
        (stranger, ps0, 60002, "TCP"),
        (outside, ps0, 60002, "TCP"),
    ]
    for pod in (ps0, worker):
        need += [(pod, inside, 53, protocol) for protocol in ("UDP", "TCP")]
        # Images, Intel's service and the remote verifiers; a PCCS; another cluster; a secret service.
        need += [(pod, outside, 443, "TCP"), (pod, inside, 8081, "TCP"), (pod, outside, 30443, "TCP")]
        need += [(pod, inside, 50051, "TCP"), (pod, secrets, 50051, "TCP")]
        need += [(scraper, pod, METRICS, "TCP")]
    need += [(secrets, outside, 443, "TCP"), (secrets, inside, 8081, "TCP")]
    never = [
        (stranger, worker, 61002, "TCP"),
        (ps0, worker, 60002, "TCP"),
        (worker, outside, 25, "TCP"),
        (worker, outside, 80, "TCP"),
        (worker, outside, 8081, "TCP"),
        (worker, outside, 50051, "TCP"),
        (worker, inside, 8080, "TCP"),
        (worker, worker, 61002, "TCP"),
        (stranger, secrets, 22, "TCP"),
        (stranger, worker, METRICS, "TCP"),
        (outside, ps0, METRICS, "TCP"),
        (worker, ps0, METRICS, "TCP"),
        (scraper, worker, 61002, "TCP"),
    ]
    documents = overlays["sim"]
    for expected, cases in ((True, need), (False, never)):
        for source, target, port, protocol in cases:
            leaves = one_way(documents, source, target, port, protocol, "Egress")
            enters = one_way(documents, target, source, port, protocol, "Ingress")
            ends = [end.address or f"{end.namespace}/{end.labels.get('hfl/role')}" for end in (source, target)]
            assert (leaves and enters) == expected, f"{ends} {port}/{protocol}: expected {expected}"
    assert one_way(overlays["trustee"], worker, inside, 8080, "TCP", "Egress")
    assert not one_way(overlays["trustee"], worker, outside, 8080, "TCP", "Egress")
    for name in ("coco", "tdx-vm", "azure"):
        rules = [d["spec"] for d in overlays[name] if d["kind"] == "NetworkPolicy"]
        own = [d["spec"] for d in documents if d["kind"] == "NetworkPolicy" and d["metadata"]["namespace"] == "hfl"]
        assert rules == own, f"{name} has other network policies"
    print(f"network: {len(need)} connections pass, {len(never)} do not")


IMAGE = "registry.example/hfl@sha256:" + "0a" * 32


def check_initdata(program, manifests):
    """The document of `hfl initdata` as kata, the agent and an auditor read it."""
    with open(manifests, encoding="utf-8") as file:
        rendered = file.read()
    with tempfile.TemporaryDirectory() as work:
        command = [program, "initdata", "--out", f"{work}/initdata.toml", "--patch", f"{work}/patch.yaml"]
        refused = subprocess.run(command, input=rendered, text=True, capture_output=True, check=False)
        assert refused.returncode == 1 and "no digest" in refused.stderr, refused.stderr
        assert not os.path.exists(f"{work}/initdata.toml")
        pinned = re.sub(r"image: hfl$", f"image: {IMAGE}", rendered, flags=re.M)
        said = subprocess.run(command, input=pinned, text=True, capture_output=True, check=True).stdout
        value = re.search(r"^mr_config_id ([0-9a-f]{96})$", said, re.M)[1]
        independent = subprocess.run(["sha384sum", f"{work}/initdata.toml"], capture_output=True, text=True, check=True)
        assert independent.stdout.split()[0] == value
        with open(f"{work}/initdata.toml", "rb") as file:
            document = file.read()
        with open(f"{work}/patch.yaml", encoding="utf-8") as file:
            (patch,) = yaml.safe_load(file)
    annotation = patch["value"]
    # As the runtime takes it apart.
    assert gzip.decompress(base64.b64decode(annotation, validate=True)) == document
    parsed = tomllib.loads(document.decode())
    assert (parsed["version"], parsed["algorithm"]) == ("0.1.0", "sha384")
    check_agent(parsed["data"]["policy.rego"], yaml.safe_load_all(pinned))
    print("initdata: digest as sha384sum has it, annotation opened, agent's policy played")


def check_trustee(program, place):
    """What overlays/trustee says to the guest's agent and data hub, and to the Trustee."""
    overlay = "deploy/overlays/trustee"
    with open(f"{place}/trustee.yaml", encoding="utf-8") as file:
        pinned = re.sub(r"image: hfl$", f"image: {IMAGE}", file.read(), flags=re.M)
    for _, pod in pods(document for document in yaml.safe_load_all(pinned) if document):
        parameters = pod["metadata"]["annotations"]["io.katacontainers.config.hypervisor.kernel_params"]
        assert parameters == "agent.guest_components_rest_api=all", parameters
    with tempfile.TemporaryDirectory() as work:
        settings = ["--aa", f"{overlay}/aa.toml", "--cdh", f"{overlay}/cdh.toml"]
        command = [program, "initdata", "--out", f"{work}/initdata.toml", *settings]
        said = subprocess.run(command, input=pinned, text=True, capture_output=True, check=True).stdout
        with open(f"{work}/initdata.toml", "rb") as file:
            data = tomllib.load(file)["data"]
    value = re.search(r"^mr_config_id ([0-9a-f]{96})$", said, re.M)[1]
    agent, hub = (tomllib.loads(data[name]) for name in ("aa.toml", "cdh.toml"))
    assert agent["token_configs"]["kbs"] == {"url": hub["kbc"]["url"], "cert": hub["kbc"]["kbs_cert"]}
    signed = json.loads(hub["image"]["image_security_policy"])
    assert signed["default"] == [{"type": "reject"}]
    assert list(signed["transports"]["docker"]) == [IMAGE.split("@")[0]]

    with open(f"{overlay}/resources.rego", encoding="utf-8") as file:
        policy = file.read()
    assert not released(policy, claims("0" * 95 + "1"), "default/hfl/model")
    policy = policy.replace("0" * 96, value)
    for expected, given, resource in (
        (True, claims(value), "default/hfl/model"),
        (True, claims(value), "default/hfl/signer"),
        (False, claims(value), "default/other/model"),
        (False, claims(value), "hfl/default/model"),
        (False, claims(value, "contraindicated"), "default/hfl/model"),
        (False, claims("0" * 96), "default/hfl/model"),
        (False, {}, "default/hfl/model"),
    ):
        assert released(policy, given, resource) == expected, (given, resource)
    print("trustee: initdata of agent and hub, who may sign, and who gets a resource")


def claims(config, status="affirming"):
    """The part of an attestation token that resources.rego reads."""
    evidence = {"tdx": {"quote": {"body": {"mr_config_id": config}}}}
    return {"submods": {"cpu0": {"ear.status": status, "ear.veraison.annotated-evidence": evidence}}}


def released(policy, given, resource):
    return true(policy, "policy.allow", given, {"plugin": "resource", "resource-path": resource.split("/"), "query": {}})


def true(policy, rule, given, data=None):
    interpreter = regopy.Interpreter()
    interpreter.add_module("policy", policy)
    if data:
        interpreter.add_data(data)
    interpreter.set_input(given)
    return str(interpreter.query(f"data.{rule}")) == '{"expressions":[true]}'


def check_agent(policy, documents):
    allowed = lambda request, given: true(policy, f"agent_policy.{request}", given)
    root = f"/run/kata-containers/{'a' * 64}/rootfs"
    documents = [document for document in documents if document]
    env = next(d["data"] for d in documents if d["metadata"]["name"] == "hfl-job" and d["kind"] == "ConfigMap")
    env = env | {"INDEX": "1"}
    expand = lambda text: re.sub(r"\$\((\w+)\)", lambda match: env[match[1]], text)
    for _, pod in pods(documents):
        (container,) = pod["spec"]["containers"]
        right = {
            "devices": [
                {"container_path": device["devicePath"], "type": "scsi", "vm_path": "", "id": "0:0", "options": []}
                for device in container.get("volumeDevices", [])
            ],
            "OCI": {
                "Root": {"Path": root},
                "Hooks": None,
                "Mounts": [{"destination": d} for d in ("/proc", "/dev/pts", "/etc/hosts")]
                + [{"destination": mount["mountPath"]} for mount in container["volumeMounts"]],
                "Process": {
                    "Args": ["/hfl", *map(expand, container["args"])],
                    "Env": ["PATH=/bin", "HOSTNAME=ps0", "INDEX=1"],
                },
            },
            "shared_mounts": [],
            "storages": [
                {"driver": "image_guest_pull", "source": IMAGE, "mount_point": root, "driver_options": []},
                {
                    "driver": "local",
                    "source": "local",
                    "mount_point": "/run/kata-containers/sandbox/ephemeral/model",
                    "driver_options": [],
                },
            ],
        }
        assert allowed("CreateContainerRequest", right), container["args"]
        wrong = {
            "another image": lambda r: r["storages"][0].update(source=IMAGE.replace("0a", "0b")),
            "another tag": lambda r: r["storages"][0].update(source="registry.example/hfl:1"),
            "no image": lambda r: r["storages"].pop(0),
            "two images": lambda r: r["storages"].append(copy.deepcopy(r["storages"][0])),
            "image elsewhere": lambda r: r["storages"][0].update(mount_point="/run/kata-containers/x"),
            "another program": lambda r: r["OCI"]["Process"]["Args"].__setitem__(0, "/bin/sh"),
            "an argument more": lambda r: r["OCI"]["Process"]["Args"].append("--attestation=sim"),
            "an argument less": lambda r: r["OCI"]["Process"]["Args"].pop(),
            "another policy": lambda r: r["OCI"]["Process"].update(
                Args=[a.replace("/policy/policy.json", "/data/p.json") for a in r["OCI"]["Process"]["Args"]]
            ),
            "pause of another image": lambda r: r["OCI"]["Process"].update(Args=["/pause"]),
            "a mount over the program": lambda r: r["OCI"]["Mounts"].append({"destination": "/hfl"}),
            "a mount over all": lambda r: r["OCI"]["Mounts"].append({"destination": "/"}),
            "a root elsewhere": lambda r: r["OCI"]["Root"].update(Path="/run/kata-containers/shared/containers/x"),
            "a storage over the root": lambda r: r["storages"][1].update(mount_point=root),
            "a storage over the guest": lambda r: r["storages"][1].update(mount_point="/usr/bin"),
            "a way out": lambda r: r["storages"][1].update(mount_point="/run/kata-containers/sandbox/../x"),
            "a device more": lambda r: r["devices"].append({"container_path": "/dev/tdx_guest", "type": "blk"}),
            "a hook": lambda r: r["OCI"].update(Hooks={"Prestart": [{"Path": "/x"}]}),
            "tracing": lambda r: r["OCI"]["Process"]["Env"].append("RUST_LOG=trace"),
        }
        for what, change in wrong.items():
            request = copy.deepcopy(right)
            change(request)
            assert not allowed("CreateContainerRequest", request), what
    copied = lambda path, kind="Regular": {"path": path, "file_type": kind}
    shared = "/run/kata-containers/shared/containers/abc-0123-resolv.conf"
    neighbor = lambda address: {"neighbors": {"ARPNeighbors": [{"device": "eth0", "toIPAddress": {"address": address}}]}}
    interface = lambda name, address: {"interface": {"name": name, "IPAddresses": [{"address": address}]}}
    route = lambda device, dest: {"routes": {"Routes": [{"device": device, "dest": dest}]}}
    sandbox = {"guest_hook_path": "", "kernel_modules": [], "sandbox_pidns": False, "storages": []}
    for expected, request, given in (
        (True, "CreateSandboxRequest", sandbox),
        (False, "CreateSandboxRequest", sandbox | {"guest_hook_path": "/x"}),
        (False, "CreateSandboxRequest", sandbox | {"kernel_modules": ["x"]}),
        (True, "StartContainerRequest", {}),
        (True, "ReadStreamRequest", {}),
        (True, "SignalProcessRequest", {}),
        (False, "ExecProcessRequest", {"process": {"Args": ["/hfl"]}}),
        (False, "WriteStreamRequest", {}),
        (False, "SetPolicyRequest", {}),
        (False, "SetGuestDateTimeRequest", {}),
        (False, "UpdateContainerRequest", {}),
        (True, "CopyFileRequest", copied(shared)),
        (False, "CopyFileRequest", copied(shared, "Device")),
        (False, "CopyFileRequest", copied("/etc/resolv.conf")),
        (False, "CopyFileRequest", copied(f"{root}/hfl")),
        (False, "CopyFileRequest", copied("/run/kata-containers/shared/containers/../../x")),
        (True, "UpdateInterfaceRequest", interface("eth0", "10.0.0.2")),
        (False, "UpdateInterfaceRequest", interface("lo", "10.0.0.2")),
        (False, "UpdateInterfaceRequest", interface("eth0", "127.0.0.1")),
        (True, "UpdateRoutesRequest", route("eth0", "")),
        (False, "UpdateRoutesRequest", route("eth0", "127.0.0.1/32")),
        (True, "AddARPNeighborsRequest", neighbor("10.0.0.1")),
        (False, "AddARPNeighborsRequest", neighbor("127.0.0.1")),
    ):
        assert allowed(request, given) == expected, (request, given)


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


class Cluster:
    def __init__(self, program, work, documents, alone):
        self.program, self.work, self.documents, self.alone = program, work, documents, alone
        self.running, self.probes, self.devices = [], [], {}
        # Of a run that was killed.
        subprocess.run(["ip", "netns", "del", NETWORK], check=False, stderr=subprocess.DEVNULL)
        subprocess.run(["ip", "netns", "add", NETWORK], check=True)
        subprocess.run(["ip", "-n", NETWORK, "link", "set", "lo", "up"], check=True)

    def of(self, kind, name):
        return next(d for d in self.documents if (d["kind"], d["metadata"]["name"]) == (kind, name))

    def run(self):
        secrets = self.directory("secret", "hfl-secrets")
        self.write(secrets, "secrets.json", '{"hfl-tdx-coco-app": "%s"}' % PASSPHRASE)
        created = subprocess.run(
            [self.program, "identity", "create", "--out", f"{secrets}/owner.key"], capture_output=True, text=True, check=True)
        self.key = re.search("[0-9a-f]{64}", created.stdout)[0]
        os.chown(f"{secrets}/owner.key", 65532, 65532)
        # All before the first container: no kubelet shows a file half written.
        for config in (d for d in self.documents if d["kind"] == "ConfigMap"):
            folder = self.directory("config", config["metadata"]["name"])
            for file, text in config["data"].items():
                self.write(folder, file, text)
        images = random.Random(1)
        for worker in range(int(self.of("ConfigMap", "hfl-job")["data"]["WORKERS_HERE"])):
            folder = self.directory("claim", f"hfl-data/worker{worker}")
            with open(f"{folder}/data_batch_1.bin", "wb") as file:
                for record in range(20):
                    file.write(bytes([record % 10]) + images.randbytes(3072))
        service = self.start(self.of("Deployment", "secrets"), 0)
        ps0 = self.start(self.of("Job", "ps0"), 0)
        device = self.devices["hfl-model"]
        self.wait(lambda: magic(device) == b"LUKS\xba\xbe")
        made = self.uuid(device)
        # A pod that died, and its storage larger for the next.
        self.kill(ps0)
        os.truncate(f"{self.work}/claim/hfl-model.disk", 3 << 29)
        subprocess.run(["losetup", "-c", device], check=True)
        ps0 = self.start(self.of("Job", "ps0"), 0)
        workers = self.of("Job", "workers")
        jobs = [self.start(workers, index) for index in range(workers["spec"]["completions"])]
        self.wait(lambda: all(job.poll() is not None for job in jobs) and not self.probes)
        # And once more, with the model in it.
        self.kill(ps0)
        ps0 = self.start(self.of("Job", "ps0"), 0)
        assert self.uuid(device) == made, "another volume on the device"
        # The trusted node, as README.md says it.
        node = self.command(["model", "pull", "--attestation", "sim", "--from", "ps0:60002", "--out", "/tmp/model.luks"], "node", [])
        self.wait(lambda: node.poll() is not None and ps0.poll() is not None)
        self.terminate(service, "the secret service")
        key = f"{self.work}/key"
        self.write(self.work, "key", PASSPHRASE)
        volume = f"{self.work}/root-node/tmp/model.luks"
        exported = f"{self.work}/exported"
        export = [self.program, "luks", "export", volume, "--key-file", key, "--files", exported]
        subprocess.run(export, check=True)
        assert os.path.getsize(f"{exported}/model/model.ckpt-data") > 1 << 26
        self.resources()
        self.owned()

    def owned(self):
        """deploy/secret-service alone, without a TD: whoever pins its owner's key gets the secret."""
        (settings,) = [d["data"] for d in self.alone if d["metadata"]["name"] == "secrets-settings"]
        assert settings == {"ATTESTATION": "none"}, settings
        self.of("ConfigMap", "secrets-settings")["data"] = settings
        (deployment,) = [d for d in self.alone if d["kind"] == "Deployment"]
        service = self.start(deployment, 0)
        for code, key in ((0, self.key), (1, "00" * 32)):
            pinned = f"secrets.hfl-secrets:50051#{key}"
            args = ["secret", "get", "--attestation", "sim", "--secret-service", pinned, "--secret-wait", "20"]
            asked = self.command(args, f"pinned{code}", [], stdout=subprocess.PIPE)
            said, _ = asked.communicate(timeout=60)
            assert (asked.returncode, said) == (code, b"" if code else PASSPHRASE.encode()), (asked.returncode, said)
        self.terminate(service, "the secret service without a TD")

    @staticmethod
    def terminate(process, what):
        """What the kubelet sends to process 1 of the pod; unshare itself does not pass it on."""
        os.kill(inside(process), signal.SIGTERM)
        assert process.wait(timeout=60) == 0, f"{what} did not end in good order"

    def resources(self):
        """A passphrase from the pod's data hub, as overlays/trustee has it: ps0 goes on with its volume."""
        hub = subprocess.Popen(["ip", "netns", "exec", NETWORK, sys.executable, "-c", HUB, PASSPHRASE])
        self.running.append(hub)
        args = ["secret", "get", "--attestation", "sim", "--secret-wait", "20", "--out", "/tmp/secret"]
        given = self.command([*args, "--secret-service", "cdh:default/hfl/model"], "resource", [])
        assert given.wait(timeout=60) == 0
        with open(f"{self.work}/root-resource/tmp/secret", encoding="utf-8") as file:
            assert file.read() == PASSPHRASE
        other = self.command(
            ["secret", "get", "--attestation", "sim", "--secret-wait", "1", "--secret-service", "cdh:default/hfl/other"],
            "nobody", [], stdout=subprocess.DEVNULL)
        assert other.wait(timeout=60) == 1
        settings = self.of("ConfigMap", "hfl-job")["data"]
        settings["SECRET_SERVICE"] = "cdh:default/hfl/model"
        server = self.start(self.of("Job", "ps0"), 0)
        # A finished job that waits to be fetched again: the volume is open.
        address = self.probes[0][0]
        end = time.monotonic() + 120
        while self.probes:
            assert server.poll() is None and time.monotonic() < end, f"{address}: no volume with the hub's passphrase"
            self.probe()
            time.sleep(0.2)

    def wait(self, is_over):
        end = time.monotonic() + 60 * MINUTES_MAX
        while not is_over():
            failed = [job.args for job in self.running if job.poll() not in (None, 0)]
            assert not failed and time.monotonic() < end, failed or "takes too long"
            self.probe()
            time.sleep(0.2)

    def kill(self, process):
        """The end of a pod, without a word to it."""
        os.kill(inside(process), signal.SIGKILL)
        process.wait()
        self.running.remove(process)

    def uuid(self, device):
        dump = subprocess.run([self.program, "luks", "dump", device], capture_output=True, text=True, check=True)
        return dump.stdout.splitlines()[0]

    def start(self, workload, index):
        spec = workload["spec"]["template"]["spec"]
        (container,) = spec["containers"]
        env = {}
        for source in container.get("envFrom", []):
            env.update(self.of("ConfigMap", source["configMapRef"]["name"])["data"])
        for variable in container.get("env", []):
            path = variable["valueFrom"]["fieldRef"]["fieldPath"]
            assert path == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
            env[variable["name"]] = str(index)
        expand = lambda text: re.sub(r"\$\((\w+)\)", lambda match: env[match[1]], text)
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        mounts = []
        for mount in container["volumeMounts"]:
            source = self.source(volumes[mount["name"]], expand(mount.get("subPathExpr", "")))
            mounts.append((source, mount["mountPath"], mount.get("readOnly", False)))
        for block in container.get("volumeDevices", []):
            claim = volumes[block["name"]]["persistentVolumeClaim"]["claimName"]
            assert self.of("PersistentVolumeClaim", claim)["spec"]["volumeMode"] == "Block"
            mounts.append((self.device(claim, spec["securityContext"]["runAsUser"]), block["devicePath"], None))
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
        name = f"{workload['metadata']['name']}{index}"
        # All share one network here: each has an address of its own in it.
        address = f"127.0.1.{len(self.running) + 1}:{METRICS}"
        args = [expand(word).replace(f"0.0.0.0:{METRICS}", address) for word in container["args"]]
        self.probes += [(address, container[probe]["httpGet"]["path"]) for probe in PROBES if METRICS_FLAG in container["args"]]
        return self.command(args, name, mounts, spec["securityContext"])

    def probe(self):
        """Asks as the kubelet does; each has to have been in order once."""
        for address, path in list(self.probes):
            request = ["ip", "netns", "exec", NETWORK, "curl", "-sf", "-m", "5", f"http://{address}{path}"]
            if subprocess.run(request, stdout=subprocess.DEVNULL, check=False).returncode == 0:
                self.probes.remove((address, path))

    def device(self, claim, user):
        """A raw device of the claim, owned by the pod's user (device_ownership_from_security_context)."""
        if claim not in self.devices:
            disk = f"{self.directory('claim', '')}/{claim}.disk"
            with open(disk, "wb") as file:
                file.truncate(1 << 30)
            loop = subprocess.run(["losetup", "-f", "--show", disk], capture_output=True, text=True, check=True)
            self.devices[claim] = loop.stdout.strip()
        os.chown(self.devices[claim], user, user)
        return self.devices[claim]

    def source(self, volume, path):
        if "emptyDir" in volume:
            return self.directory("empty", volume["name"])
        if "persistentVolumeClaim" in volume:
            return self.directory("claim", f"{volume['persistentVolumeClaim']['claimName']}/{path}")
        secret = volume.get("secret")
        path = f"secret/{secret['secretName']}" if secret else f"config/{volume['configMap']['name']}"
        assert os.path.isdir(f"{self.work}/{path}"), f"nothing makes {path}"
        return f"{self.work}/{path}"

    def command(self, args, name, mounts, context=None, stdout=None):
        """The program as process 1 of a root of its own, as an ordinary user, without capabilities."""
        root = f"{self.work}/root-{name}"
        os.makedirs(f"{root}/etc", exist_ok=True)
        if not os.path.exists(f"{root}/hfl"):
            shutil.copy(self.program, f"{root}/hfl")
        self.write(f"{root}/etc", "hosts", "127.0.0.1 localhost ps0 secrets secrets.hfl-secrets\n")
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
            os.makedirs(f"{root}/tmp", exist_ok=True)
            user = 0
        else:
            assert context["runAsNonRoot"]
            user = context["runAsUser"]
            script.append(f"mount -o remount,bind,ro {root}")
        script.append(f'exec chroot --userspec={user}:{user} --groups= {root} /hfl "$@"')
        words = ["ip", "netns", "exec", NETWORK, "unshare", "--mount", "--pid", "--fork", "--kill-child"]
        process = subprocess.Popen(words + ["sh", "-c", "\n".join(script), "hfl"] + args, stdout=stdout)
        self.running.append(process)
        return process

    def directory(self, kind, name):
        path = f"{self.work}/{kind}/{name}".rstrip("/")
        if not os.path.isdir(path):
            os.makedirs(path)
            # What fsGroup does for a pod's volumes.
            os.chown(path, 65532, 65532)
        return path

    @staticmethod
    def write(folder, name, text):
        with open(f"{folder}/{name}", "w", encoding="utf-8") as file:
            file.write(text)

    def end(self):
        for process in self.running:
            if process.poll() is None:
                # The user that it became cleared what --kill-child asked for.
                os.kill(inside(process) or process.pid, signal.SIGKILL)
                process.wait()
        for device in self.devices.values():
            subprocess.run(["losetup", "-d", device], check=True)
            os.chown(device, 0, 0)
        subprocess.run(["ip", "netns", "del", NETWORK], check=True)


def inside(process):
    """Process 1 of a container, as this machine numbers it; none before it starts."""
    with open(f"/proc/{process.pid}/task/{process.pid}/children", encoding="ascii") as children:
        return next(map(int, children.read().split()), None)


def magic(device):
    with open(device, "rb") as file:
        return file.read(6)


main()
