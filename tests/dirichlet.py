#!/usr/bin/env python3
"""Splits CIFAR-10's training images among workers as the literature does, labels unevenly: for each class, shares drawn
from a Dirichlet distribution (Hsu, Qi and Brown, "Measuring the effects of non-identical data distribution", 2019).

usage: dirichlet.py CIFAR OUT [--workers 2] [--alpha 0.3] [--seed 1]

Writes OUT/workerN/data_batch_1.bin, with the test images beside it, and prints how many of each class a worker has.
`--alpha inf` splits evenly. Equal seeds give equal splits: only Python's own generator is used.
"""
import argparse
import math
import pathlib
import random
import shutil
import sys

RECORD = 1 + 3 * 32 * 32


def records(directory):
    """All training records, file after file."""
    files = sorted(directory.glob("data_batch_*.bin"))
    if not files:
        sys.exit(f"{directory}: no data_batch_*.bin")
    data = b"".join(file.read_bytes() for file in files)
    if len(data) % RECORD:
        sys.exit(f"{directory}: a record is cut short")
    return [data[at : at + RECORD] for at in range(0, len(data), RECORD)]


def shares(alpha, workers, draw):
    """One draw of a symmetric Dirichlet distribution."""
    if math.isinf(alpha):
        return [1 / workers] * workers
    parts = [draw.gammavariate(alpha, 1) for _ in range(workers)]
    return [part / sum(parts) for part in parts]


def split(all_records, workers, alpha, seed):
    """The records of each worker; every record goes to one of them."""
    draw = random.Random(seed)
    sets = [[] for _ in range(workers)]
    for label in range(10):
        of_class = [record for record in all_records if record[0] == label]
        draw.shuffle(of_class)
        ends, end = [], 0.0
        for share in shares(alpha, workers, draw):
            end += share
            ends.append(round(end * len(of_class)))
        ends[-1] = len(of_class)
        for worker, (start, end) in enumerate(zip([0, *ends], ends)):
            sets[worker] += of_class[start:end]
    for records_of_worker in sets:
        draw.shuffle(records_of_worker)
    return sets


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("cifar", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--alpha", type=float, default=0.3)
    parser.add_argument("--seed", type=int, default=1)
    a = parser.parse_args()
    if a.workers < 1 or not a.alpha > 0:
        sys.exit("--workers counts from 1, and --alpha is more than 0")
    for worker, own in enumerate(split(records(a.cifar), a.workers, a.alpha, a.seed)):
        place = a.out / f"worker{worker}"
        place.mkdir(parents=True, exist_ok=True)
        (place / "data_batch_1.bin").write_bytes(b"".join(own))
        test = a.cifar / "test_batch.bin"
        if test.exists():
            shutil.copyfile(test, place / "test_batch.bin")
        counts = [sum(record[0] == label for record in own) for label in range(10)]
        print(f"{place}: {len(own)} images, of each class {counts}")


if __name__ == "__main__":
    main()
