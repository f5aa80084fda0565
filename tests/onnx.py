#!/usr/bin/env python3
"""Records what ONNX Runtime computes of the models that hfl exports.

usage: onnx.py            (in the repository; needs onnxruntime, numpy)

Writes tests/data/onnx.json, which tests/export.rs compares with.
"""
import hashlib
import json
import os
import pathlib
import subprocess
import tempfile

import numpy as np
import onnxruntime

MODELS = ("resnet18", "resnet50", "resnet18-group")
ROOT = pathlib.Path(__file__).resolve().parent.parent


def record(directory, model):
    path = directory / f"{model}.onnx"
    images = np.fromfile(directory / "images.bin", dtype=np.uint8).reshape(-1, 3073)[:, 1:]
    pixels = images.reshape(-1, 3, 32, 32).astype(np.float32) / 255
    session = onnxruntime.InferenceSession(str(path))
    (logits,) = session.run(["logits"], {"pixels": pixels})
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"sha256": digest, "logits": [float(value) for value in logits.flatten()]}


def main():
    with tempfile.TemporaryDirectory() as directory:
        test = ["cargo", "test", "--test", "main", "export_for_onnx_runtime", "--", "--ignored"]
        subprocess.run(test, cwd=ROOT, env={**os.environ, "ONNX_DIR": directory}, check=True)
        result = {model: record(pathlib.Path(directory), model) for model in MODELS}
    result["onnxruntime"] = onnxruntime.__version__
    (ROOT / "tests" / "data" / "onnx.json").write_text(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
