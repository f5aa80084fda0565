#!/usr/bin/env bash
# A short run of every fuzz target over its seeds. usage: .ci/fuzz.sh SECONDS_PER_TARGET
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=$1

if ! cargo +nightly --version >/dev/null 2>&1; then
  echo "SKIPPED fuzz: no nightly compiler (rustup toolchain install nightly)"
  exit 0
fi
# From the root: this repository's default target is not the host, where the tool has to run.
cargo +nightly fuzz --version >/dev/null 2>&1 || (cd / && cargo +nightly install cargo-fuzz)
for target in fuzz/targets/*.rs; do
  name=$(basename "$target" .rs)
  corpus=$(mktemp -d)
  log=$corpus.log
  # The binary is for the host: sanitizers need its C library.
  if ! cargo +nightly fuzz run --target x86_64-unknown-linux-gnu "$name" "$corpus" \
    "fuzz/seeds/$name" -- -max_total_time="$seconds" -rss_limit_mb=8192 -timeout=60 \
    -print_final_stats=1 >"$log" 2>&1; then
    tail -n 60 "$log" >&2
    echo "fuzz target $name: FAILED" >&2
    exit 1
  fi
  grep "stat::number_of_executed_units" "$log"
  rm -rf "$corpus" "$log"
  echo "fuzz target $name: ran for $seconds s"
done
