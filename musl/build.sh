#!/usr/bin/env bash
# The one release build: a static-pie musl binary, the same bytes from any directory.
#
# usage: musl/build.sh [OUT_DIR]     (default: dist)
#
# Needs rustup and a C compiler; rust-toolchain.toml makes rustup install compiler and target.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
out=${1:-$root/dist}
target=x86_64-unknown-linux-musl
cd "$root"

# Paths of this machine would be in panic messages and make builds differ.
sysroot=$(rustc --print sysroot)
flags=(
  "--remap-path-prefix=$root=/hfl"
  "--remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo"
  "--remap-path-prefix=$sysroot=/rust"
)
CARGO_ENCODED_RUSTFLAGS=$(IFS=$'\x1f'; printf '%s' "${flags[*]}")
# No clock is before the commit that this is built from.
HFL_BUILT=$(git log -1 --format=%ct 2>/dev/null || echo 0)
export CARGO_ENCODED_RUSTFLAGS HFL_BUILT SOURCE_DATE_EPOCH=0
export CFLAGS_x86_64_unknown_linux_musl="-U_FORTIFY_SOURCE -fno-stack-protector -ffile-prefix-map=$root=/hfl -ffile-prefix-map=${CARGO_HOME:-$HOME/.cargo}=/cargo"
cargo build --release --locked --target "$target" --target-dir "$root/target/reproducible" --bin hfl

mkdir -p "$out"
cp "$root/target/reproducible/$target/release/hfl" "$out/hfl"
printf '%s bytes\n' "$(stat -c %s "$out/hfl")"
(cd "$out" && sha256sum hfl)
