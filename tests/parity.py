#!/usr/bin/env python3
"""Records what PyTorch computes from the weights and batches that hfl's tests use.

usage: parity.py [CASE...]  (in the repository; needs torch, torchvision, safetensors, numpy)

Writes tests/data/parity-CASE.json, of all cases unless some are named, which tests/parity.rs compares with.
"""
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import torch
import torchvision
from safetensors.torch import load_file

ROOT = pathlib.Path(__file__).resolve().parent.parent
MEAN = torch.tensor([0.4914, 0.4822, 0.4465]).view(1, 3, 1, 1)
DEVIATION = torch.tensor([0.2470, 0.2435, 0.2616]).view(1, 3, 1, 1)
# Network, stem, normalisation, images of a step, steps, and vectors of signs.
CASES = {
    "imagenet": ("resnet50", "imagenet", "batch", 16, 20, 16),
    "cifar": ("resnet50", "cifar", "batch", 2, 20, 16),
    "resnet18": ("resnet18", "imagenet", "batch", 16, 2, 4),
    "resnet34": ("resnet34", "imagenet", "batch", 16, 2, 4),
    "resnet101": ("resnet101", "imagenet", "batch", 16, 2, 4),
    "resnet152": ("resnet152", "imagenet", "batch", 16, 2, 4),
    "frozen": ("resnet50", "imagenet", "frozen", 4, 2, 4),
    "group": ("resnet50", "imagenet", "group", 4, 2, 4),
    "group18": ("resnet18", "cifar", "group", 2, 2, 4),
}


def network(arch, stem, norm):
    options = {"norm_layer": lambda channels: torch.nn.GroupNorm(32, channels)} if norm == "group" else {}
    model = getattr(torchvision.models, arch)(num_classes=10, **options)
    if stem == "cifar":
        model.conv1 = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        model.maxpool = torch.nn.Identity()
    # Running statistics normalise then, and stand still; gradients are computed all the same.
    return model.eval() if norm == "frozen" else model.train()


def batches(path, batch, steps):
    records = np.fromfile(path, dtype=np.uint8).reshape(-1, 3073)
    for step in range(steps):
        part = records[step * batch:(step + 1) * batch]
        images = torch.from_numpy(part[:, 1:].reshape(-1, 3, 32, 32).astype(np.float32))
        yield (images / 255 - MEAN) / DEVIATION, torch.from_numpy(part[:, 0].astype(np.int64))


def signs(vector, count):
    with np.errstate(over="ignore"):
        z = (np.uint64(vector << 32) | np.arange(count, dtype=np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        bit = (z ^ (z >> np.uint64(31))) & np.uint64(1)
    return bit.astype(np.float64) * 2 - 1


def describe(gradient, vectors):
    flat = gradient.detach().double().flatten().numpy()
    return {
        "norm": float(f"{np.linalg.norm(flat):.9g}"),
        "signs": [float(f"{signs(v, flat.size) @ flat:.9g}") for v in range(vectors)],
    }


def record(name, directory):
    arch, stem, norm, batch, steps, vectors = CASES[name]
    model = network(arch, stem, norm)
    weights = load_file(directory / name / "model.ckpt-data")
    model.load_state_dict({k: v for k, v in weights.items() if not k.startswith("momentum.")})
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": decayed, "weight_decay": 5e-4}, {"params": plain, "weight_decay": 0.0}]
    optimiser = torch.optim.SGD(groups, lr=0.0001, momentum=0.9)
    losses, gradients = [], None
    for images, labels in batches(directory / name / "data_batch_1.bin", batch, steps):
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        if gradients is None:
            gradients = {tensor: describe(p.grad, vectors) for tensor, p in model.named_parameters()}
        optimiser.step()
        losses.append(loss.item())
    result = {"torch": torch.__version__, "losses": losses, "gradients": gradients}
    path = ROOT / "tests" / "data" / f"parity-{name}.json"
    path.write_text(json.dumps(result) + "\n")
    print(name, " ".join(f"{loss:.4f}" for loss in losses))


def main():
    with tempfile.TemporaryDirectory() as directory:
        test = ["cargo", "test", "--test", "main", "export_inputs", "--", "--ignored"]
        subprocess.run(test, cwd=ROOT, env={**os.environ, "PARITY_DIR": directory}, check=True)
        for name in sys.argv[1:] or CASES:
            record(name, pathlib.Path(directory))


if __name__ == "__main__":
    main()
