#!/usr/bin/env python3
"""What a job costs beside its arithmetic: ps0 and workers as processes, against one process or another link.

usage: federation.py HFL [--rounds 3] [CASE...]

cases (all, unless some are named; what is compared runs in turns, and medians are printed):
  fp32, bf16  images a second of ps0 + 2 workers of 1 thread, against `hfl bench` on 2 threads
  exchange    seconds of a step of 2 workers that are no arithmetic: 94 MB from and to each
  memory      peak memory of ps0 with 2, 16 and 64 workers of small batches (resnet18), in models
  shaped      images a second and bytes an image over 100 Mbit/s and 40 ms with --local-steps 50 and int8,
              against loopback, and against the bytes of today's job (root, ip and tc)
  hidden      share of the time of push and pull at 1 Gbit/s in which a worker computes (root, ip and tc)

Each line is one JSON object. Measures only: nothing is asserted. The machine should do nothing else.
"""
import argparse
import json
import pathlib
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile

RECORD = 3073
HOSTS = ["hfl-bench-ps", "hfl-bench-workers"]
MODEL_MB = {"resnet50": 94.1, "resnet18": 44.8}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Link:
    """Two network namespaces whose link has a rate and a delay; loopback without."""

    def __init__(self, rate=None, delay=None):
        self.rate, self.delay = rate, delay

    def __enter__(self):
        self.__exit__()
        try:
            self.make()
        except SystemExit:
            self.__exit__()
            raise
        return self

    def make(self):
        if not self.rate:
            return
        for host in HOSTS:
            ip(f"netns add {host}")
        ip(f"link add eth0 netns {HOSTS[0]} type veth peer name eth0 netns {HOSTS[1]}")
        for number, host in enumerate(HOSTS):
            ip(f"-n {host} addr add 10.78.0.{number + 1}/24 dev eth0")
            ip(f"-n {host} link set eth0 up")
            ip(f"-n {host} link set lo up")
            # Half of the round trip each way. The kernel needs sch_netem.
            shape = f"netem delay {self.delay / 2}ms rate {self.rate}mbit limit 100000"
            call(["ip", "netns", "exec", host, "tc", "qdisc", "add", "dev", "eth0", "root", *shape.split()])

    def __exit__(self, *_):
        if self.rate:
            for host in HOSTS:
                # What is not there needs no removal.
                subprocess.run(["ip", "netns", "del", host], capture_output=True)

    def place(self, role):
        """What a role's command begins with, and where ps0 is."""
        if not self.rate:
            return [], "localhost"
        return ["ip", "netns", "exec", HOSTS[role != "ps0"]], "10.78.0.1"


def call(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def ip(words):
    call(["ip", *words.split()])


def data(directory, images):
    """Random images: what is in them changes no time."""
    place = directory / "data"
    place.mkdir()
    draw = random.Random(1)
    records = (bytes([draw.randrange(10)]) + draw.randbytes(RECORD - 1) for _ in range(images))
    (place / "data_batch_1.bin").write_bytes(b"".join(records))
    return place


class Job:
    """What is known of a job that ran: its steps and rounds by ps0, where workers' time went, ps0's peak memory."""

    def __init__(self, hfl, link, workers, options, images=1024):
        directory = pathlib.Path(tempfile.mkdtemp(prefix="hfl-federation-"))
        try:
            self.run(hfl, link, workers, options, data(directory, images), directory)
        finally:
            shutil.rmtree(directory)

    def run(self, hfl, link, workers, options, images, directory):
        port, processes = free_port(), []
        for role in ["ps0", *(f"worker{n}" for n in range(workers))]:
            prefix, host = link.place(role)
            words = [hfl, "--role", role, "--attestation", "sim", "--ps-hosts", f"{host}:{port}"]
            words += ["--workers", str(workers), "--threads", "1", "--data", str(images), "--json"]
            words += ["--model-dir", str(directory / ("model" if role == "ps0" else role))]
            words += ["--min-batch", "1", "--evaluate-every", "0", "--checkpoint-every", "100000", *options]
            out = subprocess.PIPE if role == "ps0" else subprocess.DEVNULL
            processes.append(subprocess.Popen([*prefix, *words], stdout=out, stderr=subprocess.DEVNULL, text=True))
        self.steps, self.traffic, self.peak = [], [], 0
        for line in processes[0].stdout:
            event = json.loads(line)
            if event["event"] == "step":
                self.steps.append(event)
                self.peak = max(self.peak, peak(processes[0].pid))
            elif event["event"] == "round":
                self.traffic.append(event["bytes_received"] + event["bytes_sent"])
        ends = [process.wait() for process in processes]
        if any(ends):
            sys.exit(f"a role failed: {ends}")
        history = json.loads((directory / "model" / "history.json").read_text())
        self.shares = history["workers"]

    def rate(self):
        """Images a second; the first step has the start in it."""
        return statistics.median(step["images"] / step["seconds"] for step in self.steps[1:])

    def seconds(self):
        return statistics.median(step["seconds"] for step in self.steps[1:])

    def bytes_per_image(self):
        images = sum(step["images"] for step in self.steps[1:])
        return (self.traffic[-1] - self.traffic[0]) / images

    def mean(self, *phases):
        """Seconds a step of the phases, over all workers."""
        return statistics.mean(sum(s[p] for p in phases) / s["steps"] for s in self.shares)


def peak(pid):
    """MB that a process had at most."""
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


def single(hfl, precision):
    bench = [hfl, "bench", "--batch", "128", "--threads", "2", "--steps", "6", "--precision", precision, "--json"]
    return json.loads(call(bench))["images_per_s"]


def against_one_process(a, precision):
    options = ["--batch-size", "128", "--steps", "8", "--precision", precision, "--wire", precision]
    rates = [(Job(a.hfl, Link(), 2, options).rate(), single(a.hfl, precision)) for _ in range(a.rounds)]
    job, alone = (statistics.median(column) for column in zip(*rates))
    return {"images_per_s": job, "one_process": alone, "ratio": job / alone}


def exchange(a):
    options = ["--batch-size", "2", "--steps", "12"]
    jobs = [Job(a.hfl, Link(), 2, options, images=64) for _ in range(a.rounds)]
    return {"seconds": statistics.median(job.seconds() - job.mean("forward", "backward") for job in jobs)}


def memory(a):
    options = ["--model", "resnet18", "--batch-size", "2", "--steps", "3"]
    model = MODEL_MB["resnet18"]
    result = {}
    for workers in (2, 16, 64):
        used = Job(a.hfl, Link(), workers, options, images=8).peak
        result[str(workers)] = {"MB": used, "models": used / model, "goal_MB": 3 * model + 4 * workers}
    return result


def shaped(a):
    options = ["--batch-size", "128", "--steps", "200", "--local-steps", "50", "--wire", "int8"]
    rates = []
    for _ in range(a.rounds):
        with Link(100, 40) as link:
            slow = Job(a.hfl, link, 2, options)
        rates.append((slow.rate(), Job(a.hfl, Link(), 2, options).rate()))
    today = Job(a.hfl, Link(), 2, ["--batch-size", "128", "--steps", "4"]).bytes_per_image()
    far, near = (statistics.median(column) for column in zip(*rates))
    return {
        "images_per_s": far,
        "loopback": near,
        "ratio": far / near,
        "bytes_per_image": slow.bytes_per_image(),
        "of_today": slow.bytes_per_image() / today,
    }


def hidden(a):
    results = []
    for _ in range(a.rounds):
        with Link(1000, 1) as link:
            job = Job(a.hfl, link, 2, ["--batch-size", "128", "--steps", "8"])
        moved = (job.traffic[-1] - job.traffic[0]) / (len(job.traffic) - 1)
        # Both directions at once, for both workers over the one link.
        wire = moved / 2 * 8 / 1e9
        seen = job.mean("push", "waiting", "pull")
        results.append((2 * wire, seen))
    wire, seen = (statistics.median(column) for column in zip(*results))
    return {"on_the_wire_s": wire, "seen_s": seen, "hidden": max(0, 1 - seen / wire)}


CASES = {
    "fp32": lambda a: against_one_process(a, "fp32"),
    "bf16": lambda a: against_one_process(a, "bf16"),
    "exchange": exchange,
    "memory": memory,
    "shaped": shaped,
    "hidden": hidden,
}


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("hfl")
    parser.add_argument("cases", nargs="*", metavar="CASE")
    parser.add_argument("--rounds", type=int, default=3)
    a = parser.parse_intermixed_args()
    unknown = [case for case in a.cases if case not in CASES]
    if unknown or a.rounds < 1:
        sys.exit(f"no such case: {', '.join(unknown)}; there are {', '.join(CASES)}")
    for case in a.cases or CASES:
        print(json.dumps({"case": case, **CASES[case](a)}), flush=True)


if __name__ == "__main__":
    main()
