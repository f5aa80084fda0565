#!/usr/bin/env python3
"""What a job costs beside its arithmetic: ps0 and workers as processes, against one process, PyTorch or another link.

usage: federation.py HFL [--rounds 3] [--limit 3600] [--cifar DIR] [--epochs 10] [CASE...]

cases (all but curves, unless some are named; what is compared runs in turns, and medians are printed):
  fp32, bf16  images a second of ps0 + 2 workers of 1 thread, against `hfl bench` on 2 threads and, in fp32 and where
              Python has torch and torchvision, against DDP over gloo, not encrypted: 2 processes of 1 thread
  exchange    seconds of a step of 2 workers that are no arithmetic: 94 MB from and to each
  memory      peak memory of ps0 with 2, 16 and 64 workers of small batches (resnet18), in models
  shaped      images a second and bytes an image over 100 Mbit/s and 40 ms with --local-steps 50 and int8,
              against loopback, and against the bytes of a job without either (root, ip and tc)
  hidden      share of the time of push and pull in which a worker computes, at 1 Gbit/s that both workers share, for
              each wire and stem (root, ip and tc): 1 less what it sees of them over what they take on the wire one
              after the other; `hidden_at_once` over what they take where the wire carries both at once
  curves      accuracy after each epoch of CIFAR-10 in --cifar DIR (binary files) by resnet18: K = 1, 10, 50 local
              steps, each wire, equal split and Dirichlet 0.3; a row each, and one with what all come to

Each line is one JSON object. Measures only: nothing is asserted. The machine should do nothing else. A job that takes
longer than --limit seconds ends the measurement.
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
import threading

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
    """What is known of a job that ran: its steps and rounds by ps0, where workers' time went, ps0's peak memory.

    `places` is where each worker's data is; without, all have the same random images."""

    def __init__(self, a, link, workers, options, images=1024, places=None):
        directory = pathlib.Path(tempfile.mkdtemp(prefix="hfl-federation-"))
        self.steps, self.traffic, self.accuracy, self.peak = [], [], [], 0
        try:
            places = places or [data(directory, images)] * workers
            self.run(a, link, places, options, directory)
        finally:
            shutil.rmtree(directory)

    def run(self, a, link, places, options, directory):
        port, processes = free_port(), []
        for role in ["ps0", *(f"worker{n}" for n in range(len(places)))]:
            prefix, host = link.place(role)
            words = [a.hfl, "--role", role, "--attestation", "sim", "--ps-hosts", f"{host}:{port}"]
            words += ["--workers", str(len(places)), "--threads", "1", "--json"]
            words += ["--model-dir", str(directory / ("model" if role == "ps0" else role))]
            words += ["--min-batch", "1", "--checkpoint-every", "100000", *options]
            words += [] if "--evaluate-every" in options else ["--evaluate-every", "0"]
            words += [] if role == "ps0" else ["--data", str(places[int(role.removeprefix("worker"))])]
            out = subprocess.PIPE if role == "ps0" else subprocess.DEVNULL
            errors = open(directory / f"{role}.log", "w")
            processes.append(subprocess.Popen([*prefix, *words], stdout=out, stderr=errors, text=True))
            errors.close()
        # Who loses one of the others waits for it: nothing else would end such a job.
        clock = threading.Timer(a.limit, lambda: [process.kill() for process in processes])
        clock.start()
        try:
            self.listen(processes[0])
            ends = [process.wait() for process in processes]
        finally:
            clock.cancel()
        if any(ends):
            for log in sorted(directory.glob("*.log")):
                sys.stderr.write(f"{log.stem}: {log.read_text()[-600:]}\n")
            sys.exit(f"a role failed, or took longer than {a.limit} s: {ends}")
        history = json.loads((directory / "model" / "history.json").read_text())
        self.shares = history["workers"]

    def listen(self, server):
        for line in server.stdout:
            event = json.loads(line)
            if event["event"] == "step":
                self.steps.append(event)
                self.peak = max(self.peak, peak(server.pid))
            elif event["event"] == "round":
                self.traffic.append(event["bytes_received"] + event["bytes_sent"])
            elif event["event"] == "evaluated":
                self.accuracy.append(event["right"] / event["images"])

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
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024 / 1e6


def single(hfl, precision):
    bench = [hfl, "bench", "--batch", "128", "--threads", "2", "--steps", "6", "--precision", precision, "--json"]
    return json.loads(call(bench))["images_per_s"]


def against_one_process(a, precision):
    options = ["--batch-size", "128", "--steps", "8", "--precision", precision, "--wire", precision]
    has_peer = precision == "fp32" and has_torch()
    rates = []
    for _ in range(a.rounds):
        peer = ddp(a) if has_peer else 0
        rates.append((Job(a, Link(), 2, options).rate(), single(a.hfl, precision), peer))
    job, alone, peer = (statistics.median(column) for column in zip(*rates))
    result = {"images_per_s": job, "one_process": alone, "ratio": job / alone}
    return {**result, "ddp": peer or None, "to_ddp": job / peer if peer else None}


def exchange(a):
    options = ["--batch-size", "2", "--steps", "12"]
    jobs = [Job(a, Link(), 2, options, images=64) for _ in range(a.rounds)]
    return {"seconds": statistics.median(job.seconds() - job.mean("forward", "backward") for job in jobs)}


def memory(a):
    options = ["--model", "resnet18", "--batch-size", "2", "--steps", "3"]
    model = MODEL_MB["resnet18"]
    result = {}
    for workers in (2, 16, 64):
        used = Job(a, Link(), workers, options, images=8).peak
        result[str(workers)] = {"MB": used, "models": used / model, "goal_MB": 3 * model + 4 * 2**20 / 1e6 * workers}
    return result


def shaped(a):
    options = ["--batch-size", "128", "--steps", "200", "--local-steps", "50", "--wire", "int8"]
    rates = []
    for _ in range(a.rounds):
        with Link(100, 40) as link:
            slow = Job(a, link, 2, options)
        rates.append((slow.rate(), Job(a, Link(), 2, options).rate()))
    today = Job(a, Link(), 2, ["--batch-size", "128", "--steps", "4"]).bytes_per_image()
    far, near = (statistics.median(column) for column in zip(*rates))
    return {
        "images_per_s": far,
        "loopback": near,
        "ratio": far / near,
        "bytes_per_image": slow.bytes_per_image(),
        "of_today": slow.bytes_per_image() / today,
    }


def hidden(a):
    cases = [(wire, "imagenet", 128) for wire in ("fp32", "bf16", "int8")] + [("fp32", "cifar", 32)]
    results = {case: [] for case in cases}
    for _ in range(a.rounds):
        for wire, stem, batch in cases:
            options = ["--batch-size", str(batch), "--steps", "8", "--stem", stem, "--wire", wire]
            with Link(1000, 1) as link:
                job = Job(a, link, 2, options)
            moved = (job.traffic[-1] - job.traffic[0]) / (len(job.traffic) - 1)
            # What both workers push and pull over the link that they share, a direction after the other.
            on_the_wire, seen = moved * 8 / 1e9, job.mean("push", "waiting", "pull")
            results[wire, stem, batch].append((on_the_wire, seen, job.mean("forward", "backward")))
    rows = []
    for (wire, stem, batch), measured in results.items():
        on_the_wire, seen, computing = (statistics.median(column) for column in zip(*measured))
        row = {"wire": wire, "stem": stem, "batch": batch, "on_the_wire_s": on_the_wire, "seen_s": seen}
        hidden, at_once = (max(0, 1 - seen / wire_s) for wire_s in (on_the_wire, on_the_wire / 2))
        rows.append({**row, "computing_s": computing, "hidden": hidden, "hidden_at_once": at_once})
    return {"jobs": rows}


def has_torch():
    command = [sys.executable, "-c", "import torch, torchvision"]
    return subprocess.run(command, capture_output=True).returncode == 0


def ddp(a):
    """Images a second of PyTorch's DDP: the same network, batch and step, two processes of one thread."""
    script = str(pathlib.Path(__file__).with_name("ddp.py"))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=a.limit)
    if done.returncode:
        sys.exit(f"ddp.py: {done.stderr[-600:]}")
    return json.loads(done.stdout)["images_per_s"]


def curves(a):
    """Prints a row for each job; what the last accuracies are against K = 1 in fp32 on the same split."""
    if not a.cifar:
        sys.exit("curves: --cifar DIR, with CIFAR-10's binary files")
    last = {}
    with tempfile.TemporaryDirectory(prefix="hfl-curves-") as directory:
        for split, alpha in (("equal", "inf"), ("dirichlet", "0.3")):
            out = pathlib.Path(directory) / split
            script = str(pathlib.Path(__file__).with_name("dirichlet.py"))
            call([sys.executable, script, a.cifar, str(out), "--workers", "2", "--alpha", alpha])
            places = [out / f"worker{worker}" for worker in range(2)]
            for local_steps in (1, 10, 50):
                for wire in ("fp32", "bf16", "int8"):
                    options = ["--model", "resnet18", "--batch-size", "64", "--epochs", str(a.epochs)]
                    options += ["--local-steps", str(local_steps), "--wire", wire, "--evaluate-every", "1"]
                    accuracy = Job(a, Link(), 2, options, places=places).accuracy
                    last[split, local_steps, wire] = accuracy[-1]
                    row = {"split": split, "local_steps": local_steps, "wire": wire, "accuracy": accuracy}
                    print(json.dumps({"case": "curve", **row}), flush=True)
    points = [
        {"split": split, "local_steps": steps, "wire": wire, "points": 100 * (value - last[split, 1, "fp32"])}
        for (split, steps, wire), value in last.items()
    ]
    return {"epochs": a.epochs, "against_one_step_of_fp32": points}


CASES = {
    "fp32": lambda a: against_one_process(a, "fp32"),
    "bf16": lambda a: against_one_process(a, "bf16"),
    "exchange": exchange,
    "memory": memory,
    "shaped": shaped,
    "hidden": hidden,
    "curves": curves,
}


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("hfl")
    parser.add_argument("cases", nargs="*", metavar="CASE")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=float, default=3600)
    parser.add_argument("--cifar")
    parser.add_argument("--epochs", type=int, default=10)
    a = parser.parse_intermixed_args()
    unknown = [case for case in a.cases if case not in CASES]
    if unknown or a.rounds < 1:
        sys.exit(f"no such case: {', '.join(unknown)}; there are {', '.join(CASES)}")
    for case in a.cases or [case for case in CASES if case != "curves"]:
        print(json.dumps({"case": case, **CASES[case](a)}), flush=True)


if __name__ == "__main__":
    main()
