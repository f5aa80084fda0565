#!/usr/bin/env bash
# Installs what the build and the tests need on a Debian with rustup and a C compiler, or says what is missing.
set -euo pipefail
cd "$(dirname "$0")/.."

command -v cc >/dev/null || { echo "no C compiler: apt-get install gcc" >&2; exit 1; }
command -v cargo >/dev/null || { echo "no cargo: install rustup" >&2; exit 1; }
# Where rustup installs nothing by itself the pinned toolchain may lack the target.
if ! [ -d "$(rustc --print sysroot)/lib/rustlib/x86_64-unknown-linux-musl/lib" ]; then
  rustup target add x86_64-unknown-linux-musl
fi

missing=()
for tool in /sbin/cryptsetup:cryptsetup-bin /sbin/e2fsck:e2fsprogs /usr/bin/xz:xz-utils \
  /usr/bin/openssl:openssl /usr/bin/python3:python3 /usr/bin/swtpm:swtpm \
  /usr/bin/promtool:prometheus /usr/bin/chromium:chromium; do
  [ -x "${tool%%:*}" ] || missing+=("${tool##*:}")
done
if [ ${#missing[@]} -gt 0 ]; then
  { apt-get update -q && apt-get install -qy --no-install-recommends "${missing[@]}"; } >/dev/null \
    || { echo "missing: apt-get install ${missing[*]}" >&2; exit 1; }
fi
