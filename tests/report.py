#!/usr/bin/env python3
"""What `hfl` writes for other programs, read by these: lines of --json by the schema of `hfl help events`, event
files by TensorBoard.

usage: report.py HFL   (needs jsonschema and tensorboard)
"""

import json
import os
import random
import socket
import subprocess
import sys
import tempfile

import jsonschema
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

STEPS = 6
SECONDS_MAX = 300


def main():
    program = os.path.abspath(sys.argv[1])
    schema = json.loads(subprocess.run([program, "help", "events"], check=True, capture_output=True).stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    with tempfile.TemporaryDirectory() as work:
        lines = job(program, work)
        validator = jsonschema.Draft202012Validator(schema)
        for line in lines:
            validator.validate(json.loads(line))
        for wrong in ({"v": 1, "event": "finished"}, {"v": 2, "time": 1.0, "event": "finished"}, {}):
            assert not validator.is_valid(wrong), wrong
        print(f"{len(lines)} lines of --json are as the schema has them")
        tensorboard(program, work)


def job(program, work):
    """Runs a job of one worker; everything that both roles say."""
    images = random.Random(1)
    with open(f"{work}/data_batch_1.bin", "wb") as file:
        for record in range(16):
            file.write(bytes([record % 10]) + images.randbytes(3072))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    common = [program, "--attestation", "sim", "--workers", "1", "--ps-hosts", f"localhost:{port}", "--json"]
    common += ["--steps", str(STEPS), "--batch-size", "4", "--min-batch", "1", "--lr", "0.01"]
    common += ["--model-dir", f"{work}/model"]
    roles = [
        subprocess.Popen([*common, "--role", role, "--data", work], stdout=subprocess.PIPE, text=True)
        for role in ("ps0", "worker0")
    ]
    lines = []
    for role in roles:
        said, _ = role.communicate(timeout=SECONDS_MAX)
        assert role.returncode == 0, said
        lines += said.splitlines()
    return lines


def tensorboard(program, work):
    """The curve of the history, as TensorBoard has it."""
    report = [program, "report", "--model-dir", f"{work}/model", "--out", f"{work}/report.html"]
    subprocess.run([*report, "--tensorboard", f"{work}/events"], check=True, stdout=subprocess.DEVNULL)
    (name,) = os.listdir(f"{work}/events")
    found = {}
    for event in EventFileLoader(f"{work}/events/{name}").Load():
        for value in event.summary.value:
            found[value.tag, event.step] = value.tensor.float_val[0]
    with open(f"{work}/model/history.json", encoding="utf-8") as file:
        points = json.load(file)["curve"]["points"]
    assert len(points) == STEPS
    for point in points:
        for tag, expected in (("loss", point["loss"]), ("learning_rate", point["rate"])):
            value = found[tag, point["step"]]
            assert abs(value - expected) <= 1e-6 * abs(expected), (tag, point, value)
    assert len(found) == 3 * STEPS, found
    print(f"TensorBoard reads {len(found)} values of {STEPS} steps")


if __name__ == "__main__":
    main()
