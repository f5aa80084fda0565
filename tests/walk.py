"""deploy/README.md from nothing to the model, as tests/deploy.py plays it: two sites, one job, and its owner's desk.

Site A renders overlays/coco with the components data-volume and gateway: ps0 on a block device, a worker whose data is
an encrypted volume. Site B renders overlays/workers-only, and knows nothing of A but names at A's gateway. The secret
service is deploy/secret-service alone, without a TD, by its owner's key. Simulated are the evidence, and so the policy.
"""

import copy
import json
import os
import random
import re
import shutil
import subprocess
import time

from kubelet import Cluster, HUB, Pod, magic, open_gateway, wait, write

PASSPHRASE = "of the test"
SIMULATED = {"ATTESTATION": "sim", "EPOCHS": "1"}
MIB = 1 << 20


def named(documents, kind, name):
    return next(d for d in documents if (d["kind"], d["metadata"]["name"]) == (kind, name))


class Walk:
    """What the owner has on his desk, and the sites that he knows."""

    def __init__(self, program, work, rendered):
        self.program, self.work, self.rendered, self.clusters = program, work, rendered, []
        os.makedirs(f"{work}/desk")
        self.key = self.identity()
        write(f"{work}/desk", "key", PASSPHRASE)

    def hfl(self, *args):
        return subprocess.run([self.program, *args], capture_output=True, text=True, check=True).stdout

    def identity(self):
        return re.search("[0-9a-f]{64}", self.hfl("identity", "create", "--out", f"{self.work}/desk/owner.key"))[0]

    def run(self):
        site_a, site_b = self.sites()
        secrets = Pod(site_a, site_a.of("Deployment", "secrets")).start()
        gateway = open_gateway(site_a, site_b)
        ps0, made = self.keep_the_model(site_a)
        near = self.restart_a_worker(site_a)
        far = Pod(site_b, site_b.of("Job", "workers")).start()
        self.wait(lambda: near.is_over() and far.is_over() and all(not site.pending for site in (site_a, site_b)))
        for pod in (near, far):
            pod.nothing_is_lost()
        # Once more, with the model in it.
        ps0.kill()
        ps0 = Pod(site_a, site_a.of("Job", "ps0")).start()
        assert self.uuid(site_a.devices["hfl-model"]) == made, "another volume on the device"
        self.fetch(site_b)
        self.wait(ps0.is_over)
        ps0.nothing_is_lost()
        secrets.terminate()
        self.from_a_hub(site_a)
        self.simulated_secrets(site_a)
        assert gateway.poll() is None

    def end(self):
        for cluster in self.clusters:
            cluster.end()

    def wait(self, is_over):
        wait(self.clusters, is_over)

    def sites(self):
        """Both clusters, with the numbers that README.md says, and simulated evidence."""
        policy = json.loads(named(self.rendered["sim"], "ConfigMap", "hfl-policy")["data"]["policy.json"])
        # The owner's machine, which fetches the model without evidence.
        policy = json.dumps(policy | {"node_keys": [self.key]})
        write(f"{self.work}/desk", "policy.json", policy)
        inner = copy.deepcopy(self.rendered["site-a"] + self.rendered["owner"])
        outer = copy.deepcopy(self.rendered["workers-only"])
        for documents in (inner, outer):
            job = named(documents, "ConfigMap", "hfl-job")["data"]
            assert job["WORKERS"] == "2" and job["WORKERS_HERE"] == "1", job
            job.update(SIMULATED, SECRET_SERVICE=f"{job['SECRET_SERVICE']}#{self.key}")
            named(documents, "ConfigMap", "hfl-policy")["data"]["policy.json"] = policy
        settings = named(inner, "ConfigMap", "secrets-settings")["data"]
        assert settings == {"ATTESTATION": "none"}, settings
        named(inner, "ConfigMap", "secrets-policy")["data"]["policy.json"] = policy
        site_a = self.cluster("a", inner, "ps0 secrets.hfl-secrets")
        site_b = self.cluster("b", outer, "ps0.hfl.example secrets.hfl.example")
        # kubectl -n hfl-secrets create secret generic hfl-secrets --from-file=secrets.json --from-file=owner.key
        folder = site_a.directory("secret", "hfl-secrets")
        write(folder, "secrets.json", json.dumps({"hfl-tdx-coco-app": PASSPHRASE}))
        subprocess.run(["install", "-m", "0440", "-g", "65532", f"{self.work}/desk/owner.key", folder], check=True)
        site_a.disk("hfl-model", 1 << 30)
        images = self.images("pictures", 1)
        volume = f"{self.work}/desk/data.luks"
        self.hfl("luks", "create", volume, "--files", images, "--integrity", "--key-file", f"{self.work}/desk/key")
        # The claim is larger than what was brought onto it.
        site_a.disk("hfl-data", os.path.getsize(volume) + 5 * MIB, volume)
        # Site B's is a directory of files, which its guest gets copies of.
        shutil.copy(f"{self.images('files', 2)}/data_batch_1.bin", site_b.directory("claim", "hfl-data", "worker0"))
        return site_a, site_b

    def cluster(self, name, documents, hosts):
        cluster = Cluster(self.program, self.work, name, documents, hosts)
        self.clusters.append(cluster)
        return cluster

    def images(self, name, seed):
        folder, source = f"{self.work}/desk/{name}", random.Random(seed)
        os.makedirs(folder)
        with open(f"{folder}/data_batch_1.bin", "wb") as file:
            for record in range(20):
                file.write(bytes([record % 10]) + source.randbytes(3072))
        return folder

    def keep_the_model(self, site):
        """ps0's container dies, then its pod, and its storage is larger for the next one: the volume is the same."""
        job, device = site.of("Job", "ps0"), site.devices["hfl-model"]
        ps0 = Pod(site, job).start()
        self.wait(lambda: magic(device) == b"LUKS\xba\xbe")
        made = self.uuid(device)
        ps0.kill()
        ps0.start()
        self.wait(ps0.is_ready)
        ps0.kill()
        site.grow("hfl-model", 3 << 29)
        ps0 = Pod(site, job).start()
        self.wait(ps0.is_ready)
        assert self.uuid(device) == made, "another volume on the device"
        return ps0, made

    def restart_a_worker(self, site):
        """What a worker keeps stays for the next container of its pod, and for no other pod."""
        job = site.of("Job", "workers")
        worker = Pod(site, job).start()
        kept = lambda pod: f"{site.work}/pods/{pod.name}/model/worker0.luks"
        self.wait(lambda: worker.is_ready() and magic(kept(worker)) == b"LUKS\xba\xbe")
        made = self.uuid(kept(worker))
        worker.kill()
        worker.start()
        self.wait(worker.is_ready)
        assert self.uuid(kept(worker)) == made, "another volume in the pod"
        worker.kill()
        worker = Pod(site, job).start()
        self.wait(lambda: worker.is_ready() and magic(kept(worker)) == b"LUKS\xba\xbe")
        assert self.uuid(kept(worker)) != made, "a pod's own is left to the next"
        return worker

    def uuid(self, volume):
        return self.hfl("luks", "dump", volume).splitlines()[0]

    def fetch(self, site):
        """The model at the owner's desk, which is outside of A: README's commands."""
        desk = f"{self.work}/desk"
        write(desk, "c.json", "{}")
        args = ["model", "pull", "--attestation", "none", "--identity", "/desk/owner.key"]
        args += ["--from", "ps0.hfl.example:30443", "--out", "/tmp/model.luks", "--policy", "/desk/policy.json", "--collateral", "/desk/c.json"]
        pulled = site.command(args, "desk", [(desk, "/desk", True)])
        self.wait(lambda: pulled.poll() is not None)
        volume, exported = f"{site.work}/root-desk/tmp/model.luks", f"{desk}/exported"
        self.hfl("luks", "export", volume, "--key-file", f"{desk}/key", "--files", exported)
        assert os.path.getsize(f"{exported}/model/model.ckpt-data") > 1 << 26

    def asks(self, site, name, service, seconds):
        """The passphrase that a simulated guest gets, or nothing."""
        args = ["secret", "get", "--attestation", "sim", "--secret-service", service, "--secret-wait", str(seconds)]
        asked = site.command(args, name, stdout=subprocess.PIPE)
        said, _ = asked.communicate(timeout=60)
        site.running.remove(asked)
        assert (asked.returncode, said) in ((0, PASSPHRASE.encode()), (1, b"")), (asked.returncode, said)
        return asked.returncode == 0

    def from_a_hub(self, site):
        """A passphrase from the pod's data hub, as overlays/trustee has it: ps0 goes on with its volume."""
        site.script(HUB, PASSPHRASE)
        assert self.asks(site, "resource", "cdh:default/hfl/model", 20)
        assert not self.asks(site, "nobody", "cdh:default/hfl/other", 1)
        named(site.documents, "ConfigMap", "hfl-job")["data"]["SECRET_SERVICE"] = "cdh:default/hfl/model"
        ps0 = Pod(site, site.of("Job", "ps0")).start()
        # A finished job that waits to be fetched again: the volume is open.
        end = time.monotonic() + 120
        while not ps0.is_ready():
            assert not ps0.is_over() and time.monotonic() < end, "no volume with the hub's passphrase"
            site.probe()
            time.sleep(0.2)

    def simulated_secrets(self, site):
        """The secret service of overlays/sim; and whoever pins another key than its owner's gets nothing."""
        named(site.documents, "ConfigMap", "secrets-settings")["data"]["ATTESTATION"] = "sim"
        policy = named(self.rendered["sim"], "ConfigMap", "secrets-policy")["data"]["policy.json"]
        write(f"{site.work}/config/secrets-policy", "policy.json", policy)
        secrets = Pod(site, named(self.rendered["sim"], "Deployment", "secrets")).start()
        for name, key, expected in (("pinned", self.key, True), ("other", "00" * 32, False)):
            assert self.asks(site, name, f"secrets.hfl-secrets:50051#{key}", 20) == expected, name
        secrets.terminate()
