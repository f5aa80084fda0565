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
if ! "$place/venv/bin/python" -c "import kubernetes_validate, regopy" 2>/dev/null; then
  if ! { python3 -m venv "$place/venv" && "$place/venv/bin/pip" install -q kubernetes-validate regopy; } >/dev/null 2>&1; then
    echo "SKIPPED deploy: cannot install kubernetes-validate and regopy (python3-venv, pip)"
    exit 0
  fi
fi
for overlay in coco tdx-vm azure workers-only trustee sim; do
  kubectl kustomize "deploy/overlays/$overlay" >"$place/$overlay.yaml"
  for version in 1.29 1.33; do
    "$place/venv/bin/kubernetes-validate" --strict -k "$version" "$place/$overlay.yaml" >/dev/null
  done
  echo "$overlay: as the schemas want it"
done
mkdir -p "$place/component"
printf 'resources: [../../../deploy/overlays/coco]\ncomponents: [../../../deploy/data-volume]\n' >"$place/component/kustomization.yaml"
kubectl kustomize "$place/component" >"$place/data-volume.yaml"
"$place/venv/bin/kubernetes-validate" --strict "$place/data-volume.yaml" >/dev/null
kubectl kustomize deploy/secret-service >"$place/secret-service.yaml"
"$place/venv/bin/kubernetes-validate" --strict "$place/secret-service.yaml" >/dev/null
# The schemas know no Gateway: that it renders is all that is checked.
mkdir -p "$place/gateway"
printf 'resources: [../../../deploy/base]\ncomponents: [../../../deploy/gateway]\n' >"$place/gateway/kustomization.yaml"
[ "$(kubectl kustomize "$place/gateway" | grep -c 'kind: TLSRoute')" = 1 ]
cargo build --locked --release --quiet
binary=$(cargo metadata --no-deps --format-version 1 | python3 -c 'import json,sys; print(json.load(sys.stdin)["target_directory"])')
"$place/venv/bin/python" tests/deploy.py "$binary/x86_64-unknown-linux-musl/release/hfl" "$place"
