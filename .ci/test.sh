#!/usr/bin/env bash
# Sets up and runs every test. Needs a Debian with rustup and a C compiler; says what else it lacks.
set -euo pipefail
cd "$(dirname "$0")/.."

command -v cc >/dev/null || { echo "no C compiler: apt-get install gcc" >&2; exit 1; }
command -v cargo >/dev/null || { echo "no cargo: install rustup" >&2; exit 1; }

cargo fmt --all --check
cargo clippy --workspace --all-targets --locked -- -D warnings
RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --quiet
cargo test --workspace --locked
musl/check.sh
.ci/fuzz.sh "${FUZZ_SECONDS:-10}"
