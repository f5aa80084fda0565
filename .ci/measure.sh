#!/usr/bin/env bash
# MRTD of this Debian's firmware (package ovmf, which has TDX's metadata) against what other programs made of it: see
# FIRMWARE in tests/measure.rs.
set -euo pipefail
cd "$(dirname "$0")/.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fetch() { apt-get update -q && cd "$work" && apt-get download -q ovmf; }
if ! (fetch >/dev/null 2>&1 && dpkg-deb -x "$work"/ovmf_*.deb "$work/tree" 2>/dev/null); then
  echo "SKIPPED measure: cannot download the package ovmf (apt-get)"
  exit 0
fi
firmware=$work/tree/usr/share/ovmf/OVMF.fd
hash=$(sha256sum "$firmware" | cut -d ' ' -f 1)
if ! grep -q "$hash" tests/measure.rs; then
  echo "SKIPPED measure: MRTD of $(basename "$work"/ovmf_*.deb) ($hash) is not known from another program"
  exit 0
fi
export HFL_FIRMWARE=$firmware HFL_VARIABLES=$work/tree/usr/share/OVMF/OVMF_VARS_4M.fd
cargo test -p hfl --locked --test main measure::mr_td_of -- --ignored --nocapture
