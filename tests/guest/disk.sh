#!/usr/bin/env bash
# A disk as kata's image builder makes it for a confidential guest: a measured root, then its hash tree.
#
# usage: tests/guest/disk.sh KIND TREE MIB DISK     (KIND: superblock, before 2026-02, or no-superblock, since)
#
# Prints the hash of the root.
set -euo pipefail
kind=$1 tree=$2 mib=$3 disk=$4
PATH=$PATH:/sbin:/usr/sbin
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
option=()
[ "$kind" = superblock ] || option=(--no-superblock)
truncate -s "${mib}M" "$work/root"
mke2fs -q -t ext4 -b 4096 -d "$tree" "$work/root"
veritysetup format "${option[@]}" "$work/root" "$work/hash" | awk '/^Root hash:/ { print $3 }'
rm -f "$disk"
truncate -s "$((mib + 10))M" "$disk"
printf 'label: gpt\nstart=2048, size=%s\nstart=%s, size=14336\n' $((mib * 2048)) $(((mib + 1) * 2048)) | sfdisk -q "$disk"
dd if="$work/root" of="$disk" bs=1M seek=1 conv=notrunc status=none
dd if="$work/hash" of="$disk" bs=1M seek=$((mib + 1)) conv=notrunc status=none
