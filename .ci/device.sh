#!/usr/bin/env bash
# Runs tests/block_device.rs: volumes on a loop device of an unprivileged user. Needs root.
set -euo pipefail
cd "$(dirname "$0")/.."

probe=$(mktemp)
truncate -s 1M "$probe"
trap 'rm -f "$probe"' EXIT
if ! loop=$(losetup -f --show "$probe" 2>/dev/null); then
  echo "SKIPPED device: no loop devices here (root)"
  exit 0
fi
losetup -d "$loop"
cargo test -p hfl --locked --test main block_device -- --ignored --nocapture
