#!/usr/bin/env bash
# README's commands where the pinned toolchain is there, its musl target is not, and rustup installs nothing by
# itself: in a copy of the toolchain, so that this machine's stays as it is.
set -euo pipefail
cd "$(dirname "$0")/.."

sysroot=$(rustc --print sysroot)
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
mkdir -p "$home/toolchains"
cp -aL "$sysroot" "$home/toolchains/$(sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml)-x86_64-unknown-linux-gnu"
cp "${RUSTUP_HOME:-$HOME/.rustup}/settings.toml" "$home/"
export RUSTUP_HOME=$home RUSTUP_AUTO_INSTALL=0 CARGO_TARGET_DIR=$home/target

first=$(grep -m 1 -o '^[^#]*cargo run --release -- demo' README.md)
builds() {
  echo | rustc --target x86_64-unknown-linux-musl --crate-type lib --emit metadata -o "$home/probe" - 2>/dev/null
}
without() {
  rustup target remove x86_64-unknown-linux-musl >/dev/null 2>&1 || true
  if builds; then
    echo "the target is still there: nothing is proved" >&2
    exit 1
  fi
}

without
# What README has before it builds, then a build; the demo itself runs elsewhere.
bash -c "${first%%cargo run*} true" 2>/dev/null
builds
cargo check -q --locked -p kernels
without
.ci/setup.sh 2>/dev/null
builds
echo "README's commands add the target to a toolchain without it"
