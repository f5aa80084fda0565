#!/usr/bin/env python3
"""Images a second of a worker that decodes JPEGs as it needs them, against the same pictures as bytes in memory.

usage: decoding.py HFL [--model resnet50] [--image-size 224] [--batch 16] [--pictures 128] [--size 500x375]
                       [--threads 2] [--steps 8] [--rounds 3]

One job each of ps0 and a worker, in turns: from a folder of JPEGs with --data-memory 0, and from an .npz file of the
same pixels, which is read into memory. Both learn from random parts of whole pictures. Needs Pillow and NumPy;
measures only, nothing is asserted. The machine should do nothing else.
"""
import argparse
import json
import pathlib
import socket
import statistics
import subprocess
import sys
import tempfile

import numpy
from PIL import Image

CLASSES = 4


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def pictures(directory, count, width, height):
    """A folder of JPEGs, and an archive of what they decode to. Their sizes are those of photographs: some noise."""
    draw = numpy.random.default_rng(1)
    rows, columns = numpy.mgrid[0:height, 0:width]
    pixels, labels = [], []
    for number in range(count):
        label = number % CLASSES
        waves = [numpy.sin(rows / draw.uniform(5, 60) + columns / draw.uniform(5, 60)) for _ in range(3)]
        image = numpy.stack(waves, -1) * 90 + 128 + draw.normal(0, 6, (height, width, 3))
        path = directory / "jpeg" / "train" / str(label) / f"{number:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.clip(0, 255).astype(numpy.uint8)).save(path, quality=90)
        pixels.append(numpy.asarray(Image.open(path)))
        labels.append(label)
    arrays = {"train_images": numpy.stack(pixels), "train_labels": numpy.array(labels, numpy.uint8)}
    numpy.savez(directory / "pictures.npz", **arrays)
    (directory / "classes.txt").write_text("".join(f"{label}\n" for label in range(CLASSES)))


def rate(a, directory, data, more):
    """Images a second of a step at the median; the first has the start in it."""
    place = pathlib.Path(tempfile.mkdtemp(dir=directory))
    shared = ["--attestation", "sim", "--ps-hosts", f"localhost:{free_port()}", "--workers", "1"]
    shared += ["--threads", str(a.threads), "--model-dir", str(place / "model")]
    job = ["--model", a.model, "--image-size", str(a.image_size), "--batch-size", str(a.batch)]
    job += ["--steps", str(a.steps + 1), "--evaluate-every", "0", "--classes", str(directory / "classes.txt")]
    server = subprocess.Popen([a.hfl, "--role", "ps0", *shared, *job, "--json"], stdout=subprocess.PIPE, text=True)
    words = ["--role", "worker0", *shared, "--min-batch", "1", "--data", str(data), *more]
    worker = subprocess.Popen([a.hfl, *words], stdout=subprocess.DEVNULL)
    events = [json.loads(line) for line in server.stdout]
    if server.wait() or worker.wait():
        sys.exit("a role failed")
    steps = [event for event in events if event["event"] == "step"]
    return statistics.median(step["images"] / step["seconds"] for step in steps[1:])


def main():
    p = argparse.ArgumentParser()
    p.add_argument("hfl")
    p.add_argument("--model", default="resnet50")
    p.add_argument("--image-size", type=int, default=224)
    p.add_argument("--batch", type=int, default=16)
    p.add_argument("--pictures", type=int, default=128)
    p.add_argument("--size", default="500x375")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--steps", type=int, default=8)
    p.add_argument("--rounds", type=int, default=3)
    a = p.parse_args()
    with tempfile.TemporaryDirectory(prefix="hfl-decoding-") as name:
        directory = pathlib.Path(name)
        pictures(directory, a.pictures, *map(int, a.size.split("x")))
        decoded, binary = [], []
        for _ in range(a.rounds):
            decoded.append(rate(a, directory, directory / "jpeg", ["--data-memory", "0"]))
            binary.append(rate(a, directory, directory / "pictures.npz", []))
    ratios = [one / other for one, other in zip(decoded, binary)]
    print(
        f"{a.model}, {a.image_size} pixels, batch {a.batch}, {a.threads} threads: JPEGs of {a.size} "
        f"{statistics.median(decoded):.1f} images/s, bytes {statistics.median(binary):.1f}, "
        f"ratio {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
    )


if __name__ == "__main__":
    main()
