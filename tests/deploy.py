#!/usr/bin/env python3
"""Plays the kubelet for deploy/overlays/sim: runs every container as it is written, with its volumes, its
user, its read-only root and its names, in namespaces of this machine, until a trusted node has the model.

usage: deploy.py HFL DIRECTORY   (DIRECTORY holds the rendered overlays; needs root and PyYAML)
"""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import yaml

NETWORK = "hfl-deploy"
PASSPHRASE = "of the test"
MINUTES_MAX = 10


def main():
    program, place = os.path.abspath(sys.argv[1]), sys.argv[2]
    overlays = {name: load(f"{place}/{name}.yaml") for name in ("sim", "coco", "tdx-vm", "azure")}
    commands = {name: {key: args for key, args in lines(documents)} for name, documents in overlays.items()}
    for name, own in commands.items():
        for key, args in own.items():
            assert args == commands["sim"][key], f"{name} has another command line for {key}"
    with tempfile.TemporaryDirectory() as work:
        cluster = Cluster(program, work, overlays["sim"])
        try:
            cluster.run()
        finally:
            cluster.end()
    count = len(commands["sim"])
    print(f"{count} command lines run as they are written; a trusted node has the model")


def load(path):
    with open(path, encoding="utf-8") as file:
        return [document for document in yaml.safe_load_all(file) if document]


def lines(documents):
    for document in documents:
        if document["kind"] in ("Job", "Deployment"):
            for container in document["spec"]["template"]["spec"]["containers"]:
                yield (document["metadata"]["name"], container["name"]), container["args"]


class Cluster:
    def __init__(self, program, work, documents):
        self.program, self.work, self.documents = program, work, documents
        self.running = []
        # Of a run that was killed.
        subprocess.run(["ip", "netns", "del", NETWORK], check=False, stderr=subprocess.DEVNULL)
        subprocess.run(["ip", "netns", "add", NETWORK], check=True)
        subprocess.run(["ip", "-n", NETWORK, "link", "set", "lo", "up"], check=True)

    def of(self, kind, name):
        return next(d for d in self.documents if (d["kind"], d["metadata"]["name"]) == (kind, name))

    def run(self):
        secrets = self.directory("secret", "hfl-secrets")
        self.write(secrets, "secrets.json", '{"hfl-tdx-coco-app": "%s"}' % PASSPHRASE)
        # All before the first container: no kubelet shows a file half written.
        for config in (d for d in self.documents if d["kind"] == "ConfigMap"):
            folder = self.directory("config", config["metadata"]["name"])
            for file, text in config["data"].items():
                self.write(folder, file, text)
        images = random.Random(1)
        for worker in range(int(self.of("ConfigMap", "hfl-job")["data"]["WORKERS"])):
            folder = self.directory("claim", f"hfl-data/worker{worker}")
            with open(f"{folder}/data_batch_1.bin", "wb") as file:
                for record in range(20):
                    file.write(bytes([record % 10]) + images.randbytes(3072))
        service = self.start(self.of("Deployment", "secrets"), 0)
        jobs = [self.start(self.of("Job", "ps0"), 0)]
        workers = self.of("Job", "workers")
        jobs += [self.start(workers, index) for index in range(workers["spec"]["completions"])]
        # The trusted node, as README.md says it.
        node = self.command(["model", "pull", "--attestation", "sim", "--from", "ps0:60002", "--out", "/tmp/model.luks"], "node", [])
        jobs.append(node)
        end = time.monotonic() + 60 * MINUTES_MAX
        while any(job.poll() is None for job in jobs):
            failed = [job.args for job in self.running if job.poll() not in (None, 0)]
            assert not failed and time.monotonic() < end, failed or "takes too long"
            time.sleep(0.2)
        # What the kubelet sends to process 1 of the pod; unshare itself does not pass it on.
        with open(f"/proc/{service.pid}/task/{service.pid}/children", encoding="ascii") as children:
            os.kill(int(children.read().split()[0]), signal.SIGTERM)
        assert service.wait(timeout=30) == 0, "the secret service did not end in good order"
        key = f"{self.work}/key"
        self.write(self.work, "key", PASSPHRASE)
        volume = f"{self.work}/root-node/tmp/model.luks"
        exported = f"{self.work}/exported"
        export = [self.program, "luks", "export", volume, "--key-file", key, "--files", exported]
        subprocess.run(export, check=True)
        assert os.path.getsize(f"{exported}/model/model.ckpt-data") > 1 << 26

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
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
        name = f"{workload['metadata']['name']}{index}"
        return self.command([expand(word) for word in container["args"]], name, mounts, spec["securityContext"])

    def source(self, volume, path):
        if "persistentVolumeClaim" in volume:
            return self.directory("claim", f"{volume['persistentVolumeClaim']['claimName']}/{path}")
        secret = volume.get("secret")
        path = f"secret/{secret['secretName']}" if secret else f"config/{volume['configMap']['name']}"
        assert os.path.isdir(f"{self.work}/{path}"), f"nothing makes {path}"
        return f"{self.work}/{path}"

    def command(self, args, name, mounts, context=None):
        """The program as process 1 of a root of its own, as an ordinary user, without capabilities."""
        root = f"{self.work}/root-{name}"
        os.makedirs(f"{root}/etc", exist_ok=True)
        shutil.copy(self.program, f"{root}/hfl")
        self.write(f"{root}/etc", "hosts", "127.0.0.1 localhost ps0 secrets\n")
        script = ["set -e", f"mount --bind {root} {root}"]
        for source, target, read_only in mounts:
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
        process = subprocess.Popen(words + ["sh", "-c", "\n".join(script), "hfl"] + args)
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
                # --kill-child takes the container with it.
                process.kill()
                process.wait()
        subprocess.run(["ip", "netns", "del", NETWORK], check=True)


main()
