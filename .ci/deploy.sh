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
# Site A of README.md's two, with numbers of its own, and the secret service behind a gateway. The schemas know no Gateway:
# that it renders and where its routes lead is all that is checked.
rm -rf "$place/site"
mkdir "$place/site"
cp -r deploy "$place/site/"
sed -i 's/^WORKERS_HERE=.*/WORKERS_HERE=1/' "$place/site/deploy/base/job.env"
mkdir "$place/site/a" "$place/site/owner"
printf 'resources: [../deploy/overlays/coco]\ncomponents: [../deploy/data-volume, ../deploy/gateway]\n' >"$place/site/a/kustomization.yaml"
# The image as the README says it, with a digest of nothing.
sed -n '/```yaml/,/```/p' deploy/README.md | grep -v '```' | sed "s/^   //; s/DIGEST/$(printf '0a%.0s' {1..32})/" >>"$place/site/a/kustomization.yaml"
printf 'resources: [../deploy/secret-service]\ncomponents: [../deploy/secret-service/gateway]\n' >"$place/site/owner/kustomization.yaml"
kubectl kustomize "$place/site/a" >"$place/site-a.yaml"
kubectl kustomize "$place/site/owner" >"$place/owner.yaml"
cargo build --locked --release --quiet
binary=$(cargo metadata --no-deps --format-version 1 | python3 -c 'import json,sys; print(json.load(sys.stdin)["target_directory"])')
"$place/venv/bin/python" -B tests/deploy.py "$binary/x86_64-unknown-linux-musl/release/hfl" "$place"
