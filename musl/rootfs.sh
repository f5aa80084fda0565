#!/usr/bin/env bash
# Puts files into the root file system of a confidential guest's disk image and computes its dm-verity
# hash again, without mounting anything and without root.
#
# usage: musl/rootfs.sh IMAGE [--add FILE:PATH[:MODE]]... [--host ADDRESS=NAME]... [--certificate PEM]...
#
#   --add          a file, such as dist/hfl:/usr/bin/hfl:0755
#   --host         a line of /etc/hosts
#   --certificate  an authority, appended to /etc/ssl/certs/ca-certificates.crt
#
# The image has an ext4 root in its first partition and, if its root is measured, the hash tree in its
# second: with a superblock (kata before 2026-02, whose initramfs opens it) or without (since, opened by the
# kernel); the new tree is of the kind that was there. IMAGE is changed only once everything has succeeded.
# The last line that is printed belongs into the runtime's configuration, as it is. Needs sfdisk, debugfs and
# e2fsck (e2fsprogs), veritysetup.
set -euo pipefail
fail() { echo "rootfs.sh: $*" >&2; exit 1; }
usage() { sed -n '5,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }

[ $# -ge 1 ] || usage
image=$1
shift
[ -f "$image" ] || fail "$image: no such file"
PATH=$PATH:/sbin:/usr/sbin
for tool in sfdisk debugfs e2fsck veritysetup; do
  command -v "$tool" >/dev/null || fail "$tool is missing: apt-get install fdisk e2fsprogs cryptsetup-bin"
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Start and length of a partition in bytes; nothing if it is not there.
partition() {
  sfdisk --dump "$image" | awk -v number="$1" '
    /^sector-size:/ { sector = $2 }
    / start=/ {
      if (++count != number) next
      gsub(/,/, " ")
      for (i = 1; i <= NF; i++) {
        if ($i ~ /^start=/) start = ($i == "start=") ? $(i + 1) : substr($i, 7)
        if ($i ~ /^size=/) size = ($i == "size=") ? $(i + 1) : substr($i, 6)
      }
      if (!sector) sector = 512
      print start * sector, size * sector
    }'
}

read -r start len < <(partition 1) || fail "$image: no partition table"
read -r hash_start hash_len < <(partition 2) || true
root=$work/root
dd if="$image" of="$root" bs=1M iflag=skip_bytes,count_bytes skip="$start" count="$len" status=none
e2fsck -fn "$root" >/dev/null 2>&1 || fail "$image: the first partition holds no clean ext4"

# debugfs exits with 0 whatever happens; what it says tells.
edit() {
  local said
  said=$(debugfs -w -R "$1" "$root" 2>&1 | tail -n +2)
  case "$said" in *[Cc]ould\ not* | *[Ii]nvalid* | *[Nn]o\ free* | *not\ found*) fail "$1: $said" ;; esac
}
has() { ! debugfs -R "stat $1" "$root" 2>&1 | grep -q 'File not found'; }

put() {
  local file=$1 path=$2 mode=$3 parent part=
  case "$path" in /*) ;; *) fail "$path: not an absolute path" ;; esac
  case "$file$path" in *[[:space:]\"]*) fail "$file, $path: names with spaces are not supported" ;; esac
  parent=$(dirname "$path")
  IFS=/ read -ra parts <<<"${parent#/}"
  for name in "${parts[@]}"; do
    part=$part/$name
    has "$part" || edit "mkdir $part"
  done
  if has "$path"; then edit "rm $path"; fi
  edit "write $file $path"
  edit "set_inode_field $path mode 0100${mode#0}"
  edit "set_inode_field $path uid 0"
  edit "set_inode_field $path gid 0"
  debugfs -R "dump $path $work/back" "$root" >/dev/null 2>&1
  cmp -s "$file" "$work/back" || fail "$path: not what was written (is the file system full?)"
  echo "put      $path"
}

append() {
  local path=$1
  : >"$work/whole"
  if has "$path"; then debugfs -R "dump $path $work/whole" "$root" >/dev/null 2>&1; fi
  cat >>"$work/whole"
  put "$work/whole" "$path" 0644
}

while [ $# -gt 0 ]; do
  option=$1 value=${2:-}
  [ -n "$value" ] || usage
  shift 2
  case "$option" in
    --add)
      IFS=: read -r file path mode <<<"$value"
      [ -f "$file" ] || fail "$file: no such file"
      put "$file" "$path" "${mode:-0644}"
      ;;
    --host)
      case "$value" in *=*) ;; *) usage ;; esac
      printf '%s %s\n' "${value%%=*}" "${value#*=}" | append /etc/hosts
      ;;
    --certificate)
      grep -q 'BEGIN CERTIFICATE' "$value" || fail "$value: no certificate in PEM"
      append /etc/ssl/certs/ca-certificates.crt <"$value"
      ;;
    *) usage ;;
  esac
done
e2fsck -fn "$root" >/dev/null 2>&1 || fail "$image: the changed file system is damaged; nothing was written"

changed=$work/image
cp --sparse=always "$image" "$changed"
dd if="$root" of="$changed" bs=1M oflag=seek_bytes seek="$start" conv=notrunc status=none
if [ -n "${hash_len:-}" ]; then
  : >"$work/hash"
  # The superblock begins with its name; a hash does not.
  kind=(--no-superblock)
  magic=$(dd if="$image" bs=8 iflag=skip_bytes,count_bytes skip="$hash_start" count=8 status=none | od -An -tx1 | tr -d ' ')
  [ "$magic" = 7665726974790000 ] && kind=()
  veritysetup format "${kind[@]}" "$root" "$work/hash" >"$work/verity" || fail "veritysetup: $(cat "$work/verity")"
  [ "$(stat -c %s "$work/hash")" -le "$hash_len" ] || fail "the hash tree is larger than the second partition"
  dd if="$work/hash" of="$changed" bs=1M oflag=seek_bytes seek="$hash_start" conv=notrunc status=none
fi
mv "$changed" "$image"
if [ -z "${hash_len:-}" ]; then
  echo "no second partition: this root is not measured" >&2
elif [ ${#kind[@]} -eq 0 ]; then
  awk '/^Root hash:/ { hash = $3 }
    END { print "kernel_params = \"rootfs_verity.scheme=dm-verity rootfs_verity.hash=" hash "\"" }' "$work/verity"
else
  awk -F ':[[:space:]]*' '{ value[$1] = $2 } END {
    printf "kernel_verity_params = \"root_hash=%s,salt=%s,data_blocks=%s,data_block_size=%s,hash_block_size=%s\"\n",
      value["Root hash"], value["Salt"], value["Data blocks"], value["Data block size"], value["Hash block size"]
  }' "$work/verity"
fi
