#!/usr/bin/env bash
# A container image with nothing but the binary: an OCI image layout, and the same as one archive that
# `podman load`, `docker load` and `skopeo` take. Equal binaries make equal images.
#
# usage: musl/image.sh [OUT_DIR] [BINARY]     (default: dist, and the release build)
#
# Needs tar, gzip and sha256sum. Roots of public certificate authorities are not in it: peers prove
# themselves by attestation.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
out=${1:-$root/dist}
binary=${2:-}
if [ -z "$binary" ]; then
  "$root/musl/build.sh" "$out" >/dev/null
  binary=$out/hfl
fi
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$root/Cargo.toml" | head -1)
layout=$out/hfl-oci
rm -rf "$layout"
mkdir -p "$layout/blobs/sha256"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Moves a file to its place by content; prints digest and length, once it is there.
keep() {
  local sum len
  sum=$(sha256sum "$1" | cut -d' ' -f1)
  len=$(stat -c %s "$1")
  mv "$1" "$layout/blobs/sha256/$sum"
  printf '%s %s\n' "$sum" "$len"
}

archive() { tar --format=ustar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner "$@"; }

install -m 0755 -D "$binary" "$work/root/hfl"
archive -C "$work/root" -cf "$work/layer.tar" hfl
diff=$(sha256sum "$work/layer.tar" | cut -d' ' -f1)
gzip -n -9 "$work/layer.tar"
read -r layer layer_len < <(keep "$work/layer.tar.gz")

# 65532 is nobody in particular, without a name in the image.
printf '%s' '{"created":"1970-01-01T00:00:00Z","architecture":"amd64","os":"linux",' \
  '"config":{"User":"65532:65532","Entrypoint":["/hfl"],"WorkingDir":"/",' \
  '"Labels":{"org.opencontainers.image.title":"hfl","org.opencontainers.image.version":"'"$version"'"}},' \
  '"rootfs":{"type":"layers","diff_ids":["sha256:'"$diff"'"]},' \
  '"history":[{"created":"1970-01-01T00:00:00Z","created_by":"musl/image.sh"}]}' >"$work/config.json"
read -r config config_len < <(keep "$work/config.json")

oci=application/vnd.oci.image
printf '%s' '{"schemaVersion":2,"mediaType":"'$oci'.manifest.v1+json",' \
  '"config":{"mediaType":"'$oci'.config.v1+json","digest":"sha256:'"$config"'","size":'"$config_len"'},' \
  '"layers":[{"mediaType":"'$oci'.layer.v1.tar+gzip","digest":"sha256:'"$layer"'","size":'"$layer_len"'}]}' \
  >"$work/manifest.json"
read -r manifest manifest_len < <(keep "$work/manifest.json")

printf '%s' '{"imageLayoutVersion":"1.0.0"}' >"$layout/oci-layout"
printf '%s' '{"schemaVersion":2,"mediaType":"'$oci'.index.v1+json","manifests":[{"mediaType":"'$oci'.manifest.v1+json",' \
  '"digest":"sha256:'"$manifest"'","size":'"$manifest_len"',"platform":{"architecture":"amd64","os":"linux"},' \
  '"annotations":{"org.opencontainers.image.ref.name":"latest","io.containerd.image.name":"docker.io/library/hfl:latest"}}]}' \
  >"$layout/index.json"
# What older versions of `docker load` look for in the archive.
printf '%s' '[{"Config":"blobs/sha256/'"$config"'","RepoTags":["hfl:latest"],"Layers":["blobs/sha256/'"$layer"'"]}]' \
  >"$layout/manifest.json"
archive -C "$layout" -cf "$out/hfl-oci.tar" oci-layout index.json manifest.json blobs

printf 'binary   %s bytes\nlayer    %s bytes\narchive  %s bytes\nimage    sha256:%s\n' \
  "$(stat -c %s "$binary")" "$layer_len" "$(stat -c %s "$out/hfl-oci.tar")" "$manifest"
