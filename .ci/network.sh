#!/usr/bin/env bash
# Runs tests/network.rs: a job between network namespaces, through a proxy. Needs root.
set -euo pipefail
cd "$(dirname "$0")/.."

need=()
command -v ip >/dev/null || need+=(iproute2)
command -v haproxy >/dev/null || need+=(haproxy)
install() { apt-get update -q && apt-get install -qy --no-install-recommends "$@"; }
if [ ${#need[@]} -gt 0 ] && ! install "${need[@]}" >/dev/null 2>&1; then
  echo "SKIPPED network: cannot install ${need[*]} (apt-get as root)"
  exit 0
fi
if ! unshare --net true 2>/dev/null; then
  echo "SKIPPED network: no network namespaces here (root)"
  exit 0
fi
cargo test -p hfl --locked --test main network -- --ignored --nocapture
