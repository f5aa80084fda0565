#!/usr/bin/env bash
# Boots a kernel of Debian under qemu and runs the tests of tests/guest.rs in it.
set -euo pipefail
cd "$(dirname "$0")/.."

place=target/guest
need=()
command -v qemu-system-x86_64 >/dev/null || need+=(qemu-system-x86)
dpkg -s busybox-static >/dev/null 2>&1 || need+=(busybox-static)
[ -x /sbin/cryptsetup ] || need+=(cryptsetup-bin)
[ -x /sbin/dmsetup ] || need+=(dmsetup)
[ -x /sbin/mke2fs ] || need+=(e2fsprogs)
[ -x /sbin/sfdisk ] || need+=(fdisk)
install() { apt-get update -q && apt-get install -qy --no-install-recommends "$@"; }
if [ ${#need[@]} -gt 0 ] && ! install "${need[@]}" >/dev/null 2>&1; then
  echo "SKIPPED guest: cannot install ${need[*]} (apt-get as root)"
  exit 0
fi
if [ ! -d "$place/lib/modules" ]; then
  mkdir -p "$place"
  kernel() { apt-cache depends linux-image-cloud-amd64 2>/dev/null | awk '/Depends: linux-image-/ { print $2; exit }'; }
  [ -n "$(kernel)" ] || apt-get update -q >/dev/null 2>&1 || true
  package=$(kernel)
  if ! (cd "$place" && apt-get download -q "$package" >/dev/null 2>&1); then
    echo "SKIPPED guest: cannot download a kernel (${package:-linux-image-cloud-amd64})"
    exit 0
  fi
  dpkg-deb -x "$place"/linux-image-*.deb "$place"
fi
# Disks of kata's guests, measured again by musl/rootfs.sh, in the parts that the guest sees; and what it printed.
disk=$(mktemp)
tree=$(mktemp -d)
trap 'rm -rf "$disk" "$tree"' EXIT
mkdir "$tree/etc"
for kind in superblock no-superblock; do
  mkdir -p "$place/verity/$kind"
  tests/guest/disk.sh "$kind" "$tree" 8 "$disk" >/dev/null
  musl/rootfs.sh "$disk" --host 10.0.0.5=pccs.example | tail -1 >"$place/verity/$kind/line"
  dd if="$disk" of="$place/verity/$kind/root" bs=1M skip=1 count=8 status=none
  dd if="$disk" of="$place/verity/$kind/hash" bs=1M skip=9 count=7 status=none
done
# qemu 7.2 computes the flags twice where a `seto` to memory touches a page for the first time, and then sees
# an overflow that never was. Kernels that spill such checks to the stack run without them here; every test
# outside the guest has them.
checks=()
for crate in kernels matrixmultiply; do
  checks+=(--config "profile.dev.package.$crate.overflow-checks=false")
done
HFL_GUEST_KERNEL=$PWD/$place cargo test "${checks[@]}" -p hfl --locked --test main guest -- --ignored --nocapture --test-threads 2
