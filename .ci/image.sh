#!/usr/bin/env bash
# Checks the container image with tools that others use, and the script for guest images on a small one.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PATH:/sbin:/usr/sbin

need=()
for tool in skopeo:skopeo umoci:umoci sfdisk:fdisk mke2fs:e2fsprogs veritysetup:cryptsetup-bin; do
  command -v "${tool%%:*}" >/dev/null || need+=("${tool##*:}")
done
install() { apt-get update -q && apt-get install -qy --no-install-recommends "$@"; }
if [ ${#need[@]} -gt 0 ] && ! install "${need[@]}" >/dev/null 2>&1; then
  echo "SKIPPED image: cannot install ${need[*]} (apt-get as root)"
  exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cargo build --locked --release --quiet
target=$(cargo metadata --no-deps --format-version 1 | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
binary=$target/x86_64-unknown-linux-musl/release/hfl

musl/image.sh "$work/one" "$binary"
musl/image.sh "$work/two" "$binary" >/dev/null
cmp "$work/one/hfl-oci.tar" "$work/two/hfl-oci.tar"
skopeo inspect "oci:$work/one/hfl-oci:latest" >"$work/inspected"
grep -q '"Os": "linux"' "$work/inspected"
# What docker and podman load.
skopeo copy -q "oci-archive:$work/one/hfl-oci.tar:latest" "docker-archive:$work/docker.tar:hfl:latest"
skopeo copy -q "docker-archive:$work/one/hfl-oci.tar" "oci:$work/back:latest"
umoci unpack --rootless --image "$work/back:latest" "$work/bundle" >/dev/null 2>&1
[ "$(cd "$work/bundle/rootfs" && find . -type f)" = ./hfl ]
cmp "$work/bundle/rootfs/hfl" "$binary"
# Encrypted for one recipient, and back.
openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=guest -days 2 -keyout "$work/key.pem" -out "$work/cert.pem" 2>/dev/null
openssl rsa -in "$work/key.pem" -pubout -out "$work/public.pem" 2>/dev/null
skopeo copy -q --encryption-key "jwe:$work/public.pem" "oci:$work/one/hfl-oci:latest" "oci:$work/sealed:latest"
! skopeo copy -q "oci:$work/sealed:latest" "docker-archive:$work/refused.tar" 2>/dev/null
skopeo copy -q --decryption-key "$work/key.pem" "oci:$work/sealed:latest" "oci:$work/opened:latest"
umoci unpack --rootless --image "$work/opened:latest" "$work/opened-bundle" >/dev/null 2>&1
cmp "$work/opened-bundle/rootfs/hfl" "$binary"
echo "image: taken by skopeo and umoci, encrypted and decrypted, equal bytes twice"

# A guest's disk: a measured root, then its hash tree.
mkdir -p "$work/tree/etc/ssl/certs" "$work/tree/usr/bin"
echo "127.0.0.1 localhost" >"$work/tree/etc/hosts"
truncate -s 60M "$work/root"
mke2fs -q -t ext4 -d "$work/tree" "$work/root"
veritysetup format "$work/root" "$work/hash" | awk '/^Root hash:/ { print $3 }' >"$work/before"
truncate -s 70M "$work/disk"
printf 'label: gpt\nstart=2048, size=122880\nstart=124928, size=14336\n' | sfdisk -q "$work/disk"
dd if="$work/root" of="$work/disk" bs=1M seek=1 conv=notrunc status=none
dd if="$work/hash" of="$work/disk" bs=1M seek=61 conv=notrunc status=none
cp "$work/disk" "$work/disk.before"
! musl/rootfs.sh "$work/disk" --add "$work/nothing:/usr/bin/nothing" 2>/dev/null
head -c 80M /dev/urandom >"$work/large"
! musl/rootfs.sh "$work/disk" --add "$work/large:/usr/bin/large" 2>/dev/null >&2
cmp "$work/disk" "$work/disk.before"
musl/rootfs.sh "$work/disk" --add "$binary:/usr/bin/hfl:0755" --host 10.0.0.5=pccs.example \
  --certificate "$work/cert.pem" | tee "$work/said"
hash=$(sed -n 's/.*rootfs_verity.hash=//p' "$work/said")
[ "$hash" != "$(cat "$work/before")" ]
dd if="$work/disk" of="$work/root" bs=1M skip=1 count=60 status=none
dd if="$work/disk" of="$work/hash" bs=1M skip=61 count=7 status=none
veritysetup verify "$work/root" "$work/hash" "$hash"
! veritysetup verify "$work/root" "$work/hash" "$(cat "$work/before")" 2>/dev/null
debugfs -R "dump /usr/bin/hfl $work/found" "$work/root" 2>/dev/null
cmp "$work/found" "$binary"
debugfs -R 'cat /etc/hosts' "$work/root" 2>/dev/null | grep -q '10.0.0.5 pccs.example'
debugfs -R 'stat /usr/bin/hfl' "$work/root" 2>/dev/null | grep -q 'Mode:  0755'
echo "guest image: changed and measured again without root"
