#!/usr/bin/env bash
# Renders deploy/, checks it against the schemas of Kubernetes, and runs every command line in it.
set -euo pipefail
cd "$(dirname "$0")/.."

place=target/deploy
mkdir -p "$place"
if ! kubectl kustomize --help >/dev/null 2>&1; then
  echo "SKIPPED deploy: no kubectl with kustomize here"
  exit 0
fi
if [ ! -x "$place/venv/bin/kubernetes-validate" ]; then
  if ! { python3 -m venv "$place/venv" && "$place/venv/bin/pip" install -q kubernetes-validate; } >/dev/null 2>&1; then
    echo "SKIPPED deploy: cannot install kubernetes-validate (python3-venv, pip)"
    exit 0
  fi
fi
for overlay in coco tdx-vm azure sim; do
  kubectl kustomize "deploy/overlays/$overlay" >"$place/$overlay.yaml"
  for version in 1.29 1.33; do
    "$place/venv/bin/kubernetes-validate" --strict -k "$version" "$place/$overlay.yaml" >/dev/null
  done
  echo "$overlay: as the schemas want it"
done
"$place/venv/bin/kubernetes-validate" --strict <(kubectl kustomize deploy/secret-service) >/dev/null
cargo build --locked --release --quiet
binary=$(cargo metadata --no-deps --format-version 1 | python3 -c 'import json,sys; print(json.load(sys.stdin)["target_directory"])')
if ! unshare --net --mount true 2>/dev/null; then
  echo "SKIPPED deploy: command lines need root (namespaces)"
  exit 0
fi
"$place/venv/bin/python" tests/deploy.py "$binary/x86_64-unknown-linux-musl/release/hfl" "$place"
