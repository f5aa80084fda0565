#!/usr/bin/env bash
# Lines of --json by their schema, event files by TensorBoard: what others read, read by their programs.
set -euo pipefail
cd "$(dirname "$0")/.."

place=target/report
mkdir -p "$place"
if ! "$place/venv/bin/python" -c "import jsonschema, tensorboard" 2>/dev/null; then
  if ! { python3 -m venv "$place/venv" && "$place/venv/bin/pip" install -q jsonschema tensorboard; } >/dev/null 2>&1; then
    echo "SKIPPED report: cannot install jsonschema and tensorboard (python3-venv, pip)"
    exit 0
  fi
fi
cargo build --locked --release --quiet
binary=$(cargo metadata --no-deps --format-version 1 | python3 -c 'import json,sys; print(json.load(sys.stdin)["target_directory"])')
"$place/venv/bin/python" tests/report.py "$binary/x86_64-unknown-linux-musl/release/hfl"
