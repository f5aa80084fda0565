#!/usr/bin/env bash
# The unsafe code that an interpreter can run under miri, and the thread pool's protocol in loom's model of memory.
set -euo pipefail
cd "$(dirname "$0")/.."

# For the host: the checkers have no musl.
host=x86_64-unknown-linux-gnu
model=parallel::team::model
RUSTFLAGS="--cfg loom" CARGO_PROFILE_DEV_OPT_LEVEL=1 \
  cargo test -p kernels --lib --locked --target $host --target-dir target/loom "$model"

if ! cargo +nightly miri --version >/dev/null 2>&1; then
  rustup component add --toolchain nightly miri rust-src >/dev/null 2>&1 || true
fi
if ! cargo +nightly miri --version >/dev/null 2>&1; then
  echo "SKIPPED miri: no nightly compiler with it (rustup toolchain install nightly --component miri rust-src)"
  exit 0
fi
# It reads the machine's clock and memory map; both are asked for by what it tests.
MIRIFLAGS="-Zmiri-disable-isolation" \
  cargo +nightly miri test -p kernels --lib --locked --target $host --target-dir target/miri -- parallel base::arena
