#!/usr/bin/env python3
"""Plays the cluster for deploy/: its network policies, the guest's agent with the policy of `hfl initdata`, a Trustee's
policy; then, as root, the way of README.md from nothing to the model (tests/walk.py), which runs every container as it
is written (tests/kubelet.py).

usage: deploy.py HFL DIRECTORY   (DIRECTORY holds the rendered overlays; needs PyYAML and regopy; root, for the
       part that starts containers)
"""

import base64
import copy
import errno
import gzip
import hashlib
import ipaddress
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib

import regopy
import yaml

from kubelet import METRICS, METRICS_FLAG, PROBES, routes
from walk import Walk

OVERLAYS = ("sim", "coco", "tdx-vm", "azure", "workers-only", "trustee")
# What else is rendered: a component, a kustomization of its own, the first of two sites, and its secret service.
OTHERS = ("data-volume", "secret-service", "site-a", "owner")


# What a route leads to.
BEHIND = ("Service", "Job", "Deployment")


def main():
    program, place = os.path.abspath(sys.argv[1]), sys.argv[2]
    rendered = {name: load(f"{place}/{name}.yaml") for name in OVERLAYS + OTHERS}
    overlays = {name: rendered[name] for name in OVERLAYS}
    commands = {name: {key: args for key, args in lines(documents)} for name, documents in overlays.items()}
    for name, own in commands.items():
        for key, args in own.items():
            assert args == commands["sim"][key], f"{name} has another command line for {key}"
    check_data_volume(rendered["data-volume"], overlays["coco"])
    jobs = {name: rendered[name] for name in (*OVERLAYS, "data-volume", "site-a")}
    check_shape(jobs, rendered["secret-service"])
    check_copies(jobs)
    check_routes(rendered)
    check_network(rendered)
    for name in ("coco", "data-volume", "azure"):
        check_initdata(program, f"{place}/{name}.yaml", "sha256" if name == "azure" else "sha384")
    check_image(program, f"{place}/site-a.yaml")
    check_trustee(program, place)
    check_documents(program)
    if os.geteuid() != 0:
        print("SKIPPED deploy: command lines need root (namespaces)")
        return
    check_seccomp()
    with tempfile.TemporaryDirectory() as work:
        walk = Walk(program, work, rendered)
        try:
            walk.run()
        finally:
            walk.end()
    count = len(commands["sim"])
    print(f"{count} command lines run as they are written, at two sites; the model is on its owner's desk")


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
    for document, pod in pods(overlays["azure"]):
        name, notes = document["metadata"]["name"], pod["metadata"]["annotations"]
        # TDX of the size that the adaptor's CI has; storage of the cluster reaches no machine.
        assert notes["io.katacontainers.config.hypervisor.machine_type"] == "Standard_DC2es_v6", name
        assert all("persistentVolumeClaim" not in volume for volume in pod["spec"]["volumes"]), name
    (devices,) = {pod["spec"]["securityContext"]["seccompProfile"]["localhostProfile"] for _, pod in pods(overlays["tdx-vm"])}
    assert devices == "hfl.json", devices
    # RTMR0 and RTMR2 of a guest change with its size.
    assert len(sizes) == 1, f"guests of several sizes: {sizes}"
    workers = next(d for d in overlays["workers-only"] if d["kind"] == "Job")
    assert workers["metadata"]["name"] == "workers" and workers["spec"]["completions"] == 1
    kinds = [d["kind"] for d in overlays["workers-only"]]
    assert kinds.count("Job") == 1 and "Service" not in kinds and "Ingress" not in kinds
    print("shapes: one size of guest, every claim, map and namespace is made")


def check_copies(overlays):
    """Where the guest gets copies of files, and nothing comes back, no container writes to them."""
    guests = 0
    for name, documents in overlays.items():
        for document, pod in pods(documents):
            if not pod["spec"].get("runtimeClassName", "").startswith("kata-"):
                continue
            guests += 1
            volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
            for mount in pod["spec"]["containers"][0]["volumeMounts"]:
                own = "emptyDir" in volumes[mount["name"]]
                assert own or mount.get("readOnly"), f"{name}, {document['metadata']['name']}: {mount} is lost"
    assert guests >= 8, guests
    print("copies: what a guest writes is its own or a block device")


def check_routes(rendered):
    """Each name leads to one port, whether an Ingress or a TLSRoute says so, and the other site uses these names."""
    names = routes(rendered["site-a"] + rendered["owner"])
    assert names == {"ps0.hfl.example": 60002, "secrets.hfl.example": 50051}, names
    for kind in ("Ingress", "TLSRoute"):
        assert routes([d for d in rendered["site-a"] + rendered["owner"] if d["kind"] in (kind, *BEHIND)]) == names, kind
    (settings,) = (d["data"] for d in rendered["workers-only"] if d["metadata"]["name"] == "hfl-job")
    for setting in ("PS0", "SECRET_SERVICE"):
        assert settings[setting].removesuffix(":30443") in names, settings
    print(f"routes: {', '.join(names)}")


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
    """Every connection that roles, guest and agent need, and those that nobody needs, in every overlay."""
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
    for name in ("sim", "coco", "tdx-vm", "azure", "site-a", "trustee", "workers-only"):
        documents = overlays[name] + (overlays["secret-service"] if name != "sim" else [])
        for expected, cases in ((True, need), (False, never)):
            for source, target, port, protocol in cases:
                if name == "workers-only" and ps0 in (source, target):
                    continue
                is_broker = name == "trustee" and (target, port) == (inside, 8080)
                leaves = one_way(documents, source, target, port, protocol, "Egress")
                enters = one_way(documents, target, source, port, protocol, "Ingress")
                ends = [end.address or f"{end.namespace}/{end.labels.get('hfl/role')}" for end in (source, target)]
                assert (leaves and enters) == (expected or is_broker), f"{name}: {ends} {port}/{protocol}: expected {expected}"
    assert not one_way(overlays["trustee"], worker, outside, 8080, "TCP", "Egress")
    print(f"network: {len(need)} connections pass, {len(never)} do not")


IMAGE = "registry.example/hfl@sha256:" + "0a" * 32


def check_initdata(program, manifests, algorithm):
    """The document of `hfl initdata` as kata, the agent and an auditor read it."""
    with open(manifests, encoding="utf-8") as file:
        rendered = file.read()
    with tempfile.TemporaryDirectory() as work:
        command = [program, "initdata", "--algorithm", algorithm, "--out", f"{work}/initdata.toml", "--patch", f"{work}/patch.yaml"]
        refused = subprocess.run(command, input=rendered, text=True, capture_output=True, check=False)
        assert refused.returncode == 1 and "no digest" in refused.stderr, refused.stderr
        assert not os.path.exists(f"{work}/initdata.toml")
        pinned = re.sub(r"image: hfl$", f"image: {IMAGE}", rendered, flags=re.M)
        said = subprocess.run(command, input=pinned, text=True, capture_output=True, check=True).stdout
        register, value = re.search(r"^(mr_config_id|pcr 8) ([0-9a-f]+)$", said, re.M).groups()
        independent = subprocess.run([f"{algorithm}sum", f"{work}/initdata.toml"], capture_output=True, text=True, check=True)
        expected = independent.stdout.split()[0]
        if register == "pcr 8":
            # As a TPM extends a register that was never written to.
            expected = hashlib.sha256(bytes(32) + bytes.fromhex(expected)).hexdigest()
        assert (register, value) == ("pcr 8" if algorithm == "sha256" else "mr_config_id", expected)
        with open(f"{work}/initdata.toml", "rb") as file:
            document = file.read()
        with open(f"{work}/patch.yaml", encoding="utf-8") as file:
            (patch,) = yaml.safe_load(file)
    annotation = patch["value"]
    # As the runtime takes it apart.
    assert gzip.decompress(base64.b64decode(annotation, validate=True)) == document
    parsed = tomllib.loads(document.decode())
    assert (parsed["version"], parsed["algorithm"]) == ("0.1.0", algorithm)
    check_agent(parsed["data"]["policy.rego"], yaml.safe_load_all(pinned))
    print(f"initdata: digest as {algorithm}sum has it, annotation opened, agent's policy played")


# System calls by number, with arguments, and what they end with under the profile; 0: anything but a refusal.
CALLS = {
    "socket AF_VSOCK": (0, 41, 40, 1, 0),
    "socket AF_INET": (0, 41, 2, 1, 0),
    "socket AF_ALG": (errno.EPERM, 41, 38, 5, 0),
    "clone CLONE_NEWUSER": (errno.EPERM, 56, 0x10000011, 0, 0, 0, 0),
    "clone3": (errno.ENOSYS, 435, 0, 0),
    "unshare CLONE_NEWNET": (errno.EPERM, 272, 0x40000000),
    "mount": (errno.EPERM, 165, 0, 0, 0, 0, 0),
    "setns": (errno.EPERM, 308, 0, 0),
    "bpf": (errno.EPERM, 321, 0, 0, 0),
    "keyctl": (errno.EPERM, 250, 0, 0, 0),
    "ptrace": (errno.EPERM, 101, 0, 0, 0, 0),
}
PROBE = """
import ctypes, json, sys
libc = ctypes.CDLL(None, use_errno=True)
for name, (_, *call) in json.loads(sys.argv[1]).items():
    ctypes.set_errno(0)
    libc.syscall(*(ctypes.c_long(word) for word in call))
    print(name, ctypes.get_errno(), sep=": ")
"""


def check_seccomp():
    """overlays/tdx-vm's profile, as root: what it forbids is forbidden by it alone."""
    profile = "deploy/overlays/tdx-vm/seccomp.json"
    command = ["/usr/bin/python3", "-c", PROBE, json.dumps(CALLS)]
    said = subprocess.run(
        [sys.executable, "-B", "tests/confine.py", profile, "/", "0", *command], capture_output=True, text=True, check=True)
    found = dict(line.split(": ") for line in said.stdout.splitlines())
    for name, (expected, *_) in CALLS.items():
        code = int(found[name])
        assert code == expected or expected == 0 and code not in (errno.EPERM, errno.ENOSYS), (name, code)
    print(f"seccomp: {len(CALLS)} calls end as they should under {profile}")


def check_image(program, manifests):
    """The image that README.md puts into a kustomization is that of every pod of the job, and of the agent's policy."""
    named = {container["image"] for _, pod in pods(load(manifests)) for container in pod["spec"]["containers"]}
    assert named == {IMAGE}, named
    with tempfile.TemporaryDirectory() as work:
        out = f"{work}/initdata.toml"
        subprocess.run([program, "initdata", "--manifests", manifests, "--out", out], check=True, stdout=subprocess.DEVNULL)
        with open(out, "rb") as file:
            assert f'image := "{IMAGE}"' in tomllib.load(file)["data"]["policy.rego"]
    print("image: by its digest in every pod")


def check_documents(program):
    """Each command of hfl in the documents has the options that it is given; each file and check that they name is there."""
    helps, commands = {}, 0
    for name in ("README.md", "policy.md"):
        with open(f"deploy/{name}", encoding="utf-8") as file:
            text = file.read()
        fenced = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.S)).replace("\\\n", " ")
        spans = re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.S))
        for line in fenced.splitlines() + [" ".join(span.split()) for span in spans]:
            for part in re.split(r"[|>]|&&| #", line):
                words = part.split()
                if words[:1] != ["hfl"]:
                    continue
                options = [word.split("=")[0] for word in words[1:] if word.startswith("--")]
                names = tuple(itertools.takewhile(lambda word: re.fullmatch("[a-z]+", word), words[1:]))
                if "--role" in options:
                    names = ("--role", "ps0")
                if names not in helps:
                    asked = subprocess.run([program, *names, "--help"], capture_output=True, text=True, check=True)
                    helps[names] = asked.stdout
                known = re.findall(r"--[a-z0-9-]+", helps[names])
                assert set(options) <= set(known), f"deploy/{name}: {part}"
                commands += 1
        for path in re.findall(r"`((?:\.ci|musl|tests|protocol|deploy|overlays|base|secret-service)/[\w./-]*)`", text):
            assert os.path.exists(path) or os.path.exists(f"deploy/{path}"), f"deploy/{name} names {path}"
        for check in re.findall(r"`(check_\w+)`", text):
            assert check in globals(), f"deploy/{name} names {check}"
    print(f"documents: {commands} command lines of hfl have the options that it knows")


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


main()
