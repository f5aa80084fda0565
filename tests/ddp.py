#!/usr/bin/env python3
"""Images a second of PyTorch's DistributedDataParallel over gloo, not encrypted: ResNet-50 for CIFAR-10's images with
torchvision's stem, processes of one thread on this machine.

usage: ddp.py [--processes 2] [--batch 128] [--steps 8]

One JSON object. Images are random, and there is no other traffic than DDP's. Needs torch and torchvision; tests/
federation.py runs it in turns with a job of as many workers.
"""
import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time

# As tests/pytorch.py tells PyTorch's malloc to keep its memory.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "68719476736"}
WARM_UP = 2


def rank(a):
    """One process: the median time of a step, by the first."""
    import torch
    import torchvision

    torch.manual_seed(0)
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=a.rank, world_size=a.processes)
    model = torchvision.models.resnet50(num_classes=10).to(memory_format=torch.channels_last)
    model = torch.nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
    images = torch.randn(a.batch, 3, 32, 32).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (a.batch,))
    rates = {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4}
    optimiser = torch.optim.SGD(model.parameters(), fused=True, **rates)
    loss_of = torch.nn.CrossEntropyLoss()
    times = []
    for _ in range(a.steps + WARM_UP):
        start = time.perf_counter()
        optimiser.zero_grad(set_to_none=False)
        loss_of(model(images), labels).backward()
        optimiser.step()
        times.append(time.perf_counter() - start)
    if a.rank == 0:
        median = statistics.median(times[WARM_UP:])
        print(json.dumps({"median_s": median, "images_per_s": a.processes * a.batch / median}))
    torch.distributed.destroy_process_group()


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.rank is not None:
        return rank(a)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    shared = ["--processes", str(a.processes), "--batch", str(a.batch), "--steps", str(a.steps)]
    command = [sys.executable, __file__, *shared, "--rank"]
    environment = {**os.environ, **KEEP_MEMORY, **place}
    children = [subprocess.Popen([*command, str(n)], env=environment) for n in range(a.processes)]
    if any([child.wait() for child in children]):
        sys.exit("a process failed")


if __name__ == "__main__":
    main()
