#!/usr/bin/env bash
# The passport of a job of three roles, by the official verifiers of its forms.
set -euo pipefail
cd "$(dirname "$0")/.."

place=target/passport
mkdir -p "$place"
packages=(model-signing==1.1.1 pyopenssl in-toto-attestation 'cyclonedx-python-lib[json-validation]')
if ! "$place/venv/bin/python" -c "import model_signing, OpenSSL, in_toto_attestation, cyclonedx, jsonschema" 2>/dev/null; then
  if ! { python3 -m venv "$place/venv" && "$place/venv/bin/pip" install -q "${packages[@]}"; } >/dev/null 2>&1; then
    echo "SKIPPED passport: cannot install model-signing and in-toto-attestation (python3-venv, pip)"
    exit 0
  fi
fi
binary=${1:-}
if [ -z "$binary" ]; then
  cargo build --locked --release --quiet
  target=$(cargo metadata --no-deps --format-version 1 | python3 -c 'import json,sys; print(json.load(sys.stdin)["target_directory"])')
  binary=$target/x86_64-unknown-linux-musl/release/hfl
fi
job=$(mktemp -d)
trap 'rm -rf "$job"' EXIT
mkdir "$job/data"
python3 - "$job/data" <<'PYTHON'
import random, sys
random.seed(3)
for name, count in (("data_batch_1.bin", 64), ("test_batch.bin", 30)):
    with open(f"{sys.argv[1]}/{name}", "wb") as file:
        file.write(b"".join(bytes([number % 10]) + random.randbytes(3072) for number in range(count)))
PYTHON
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
roles() {
  local pids=() options=(--attestation sim --ps-hosts "localhost:$port" --steps 3 --batch-size 4 --threads 1 --data "$job/data")
  "$binary" --role ps0 "${options[@]}" --model resnet18 --model-dir "$job/model" --bom >/dev/null & pids+=($!)
  for worker in 0 1; do
    "$binary" --role "worker$worker" "${options[@]}" --shard "$worker/2" --min-batch 1 \
      --model-dir "$job/worker$worker" >/dev/null & pids+=($!)
  done
  for pid in "${pids[@]}"; do wait "$pid"; done
}
roles
"$binary" passport verify "$job/model" --attestation sim --receipts "$job"/worker0/receipts-* --receipts "$job"/worker1/receipts-*
if command -v cosign >/dev/null; then
  cosign verify-blob-attestation --key "$job/model/passport.pub" --insecure-ignore-tlog=true --new-bundle-format \
    --bundle "$job/model/training.sigstore.json" --type slsaprovenance1 "$job/model/model.ckpt-data"
else
  echo "SKIPPED cosign: not installed"
fi
"$place/venv/bin/python" tests/passport.py "$job/model" "$place/venv/bin/model_signing"
