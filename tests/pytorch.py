#!/usr/bin/env python3
"""Steps of hfl and of PyTorch, alternating: medians, their ratio, and peak memory of each process.

usage: pytorch.py HFL [--stem imagenet|cifar] [--precision fp32|bf16] [--conv auto|direct] [--batch 128]
                      [--image-size 32] [--threads 2] [--rounds 3] [--steps 5] [--inference]

PyTorch runs as it is fastest on a CPU: channels_last, fused SGD, autocast for bf16, and a malloc that is
told to keep its memory. Needs torch and torchvision; measures only, nothing is asserted.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys

KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "68719476736",
    "MALLOC_TOP_PAD_": "268435456",
}
WARM_UP = 3


def run(command, **more):
    """The JSON object that a command prints, and its peak memory in MB."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, **more)
    text = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        sys.exit(f"{command[0]} failed")
    return json.loads(text), usage.ru_maxrss / 1024


def torch_steps(a):
    """What the child process measures: the median time of a step."""
    import time

    import torch
    import torchvision

    torch.manual_seed(0)
    torch.set_num_threads(a.threads)
    model = torchvision.models.resnet50(num_classes=10)
    if a.stem == "cifar":
        model.conv1 = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        model.maxpool = torch.nn.Identity()
    model = model.to(memory_format=torch.channels_last).train(not a.inference)
    images = torch.randn(a.batch, 3, a.image_size, a.image_size).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (a.batch,))
    rates = {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4}
    optimiser = torch.optim.SGD(model.parameters(), fused=True, **rates)
    loss_of = torch.nn.CrossEntropyLoss()

    def forward():
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=a.precision == "bf16"):
            return model(images)

    def step():
        if a.inference:
            with torch.inference_mode():
                return forward()
        optimiser.zero_grad(set_to_none=False)
        loss_of(forward().float(), labels).backward()
        optimiser.step()

    times = []
    for _ in range(a.steps + WARM_UP):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    print(json.dumps({"median_s": statistics.median(times[WARM_UP:])}))


def main():
    p = argparse.ArgumentParser()
    p.add_argument("hfl", nargs="?")
    p.add_argument("--stem", default="imagenet", choices=["imagenet", "cifar"])
    p.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    p.add_argument("--conv", default="auto", choices=["auto", "direct"])
    p.add_argument("--batch", type=int, default=128)
    p.add_argument("--image-size", type=int, default=32)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--steps", type=int, default=5)
    p.add_argument("--inference", action="store_true")
    a = p.parse_args()
    if a.hfl is None:
        return torch_steps(a)
    shared = ["--stem", a.stem, "--precision", a.precision, "--batch", str(a.batch)]
    shared += ["--image-size", str(a.image_size), "--threads", str(a.threads), "--steps", str(a.steps)]
    shared += ["--inference"] if a.inference else []
    ours, theirs = [], []
    for _ in range(a.rounds):
        ours.append(run([a.hfl, "bench", *shared, "--conv", a.conv, "--json"]))
        child = [sys.executable, __file__, *shared]
        theirs.append(run(child, env={**os.environ, **KEEP_MEMORY}))
    mine, peer = (statistics.median(r["median_s"] for r, _ in runs) for runs in (ours, theirs))
    pairs = [t["median_s"] / o["median_s"] for (o, _), (t, _) in zip(ours, theirs)]
    memory = [statistics.median(m for _, m in runs) for runs in (ours, theirs)]
    what = "inference" if a.inference else "step"
    print(
        f"{what}, {a.stem} stem, {a.precision} ({a.conv}), {a.image_size} pixels, batch {a.batch}, "
        f"{a.threads} threads: hfl {mine:.3f} s, PyTorch {peer:.3f} s, ratio {statistics.median(pairs):.2f} "
        f"({min(pairs):.2f} to {max(pairs):.2f}); peak memory {memory[0]:.0f} and {memory[1]:.0f} MB"
    )


if __name__ == "__main__":
    main()
