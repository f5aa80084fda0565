#!/usr/bin/env bash
# Sets up and runs every test. Needs a Debian with rustup and a C compiler; installs what else the tests
# compare with (as root), or says what is missing.
set -euo pipefail
cd "$(dirname "$0")/.."

command -v cc >/dev/null || { echo "no C compiler: apt-get install gcc" >&2; exit 1; }
command -v cargo >/dev/null || { echo "no cargo: install rustup" >&2; exit 1; }

missing=()
for tool in /sbin/cryptsetup:cryptsetup-bin /sbin/e2fsck:e2fsprogs /usr/bin/xz:xz-utils /usr/bin/openssl:openssl /usr/bin/python3:python3 /usr/bin/swtpm:swtpm; do
  [ -x "${tool%%:*}" ] || missing+=("${tool##*:}")
done
if [ ${#missing[@]} -gt 0 ]; then
  { apt-get update -q && apt-get install -qy --no-install-recommends "${missing[@]}"; } >/dev/null \
    || { echo "missing: apt-get install ${missing[*]}" >&2; exit 1; }
fi

cargo fmt --all --check
cargo clippy --workspace --all-targets --locked -- -D warnings
RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --quiet
cargo test --workspace --locked
.ci/guest.sh
.ci/network.sh
.ci/image.sh
.ci/deploy.sh
musl/check.sh
.ci/fuzz.sh "${FUZZ_SECONDS:-10}"
