#!/usr/bin/env bash
# Signs an image for guests that take signed ones only: an OCI image layout with a signature in cosign's format, which
# image-rs of guest-components and skopeo verify. cosign itself is not needed.
#
# usage: musl/sign.sh NAME@sha256:DIGEST KEY OUT_DIR
#
#   NAME    as guests pull it, such as registry.example/hfl, without a tag
#   KEY     private key on P-256 in PEM: openssl ecparam -name prime256v1 -genkey -noout -out KEY
#
# The last line that is printed puts the signature beside the image. Needs openssl and sha256sum.
set -euo pipefail
fail() { echo "sign.sh: $*" >&2; exit 1; }
usage() { sed -n '5,8s/^# \{0,1\}//p' "$0" >&2; exit 2; }

[ $# -eq 3 ] || usage
reference=$1 key=$2 layout=$3
name=${reference%@sha256:*} digest=${reference##*@sha256:}
[[ $reference == *@sha256:* && $digest =~ ^[0-9a-f]{64}$ ]] || usage
[[ $name =~ ^[a-z0-9.-]+(:[0-9]+)?(/[a-z0-9._-]+)+$ ]] || fail "$name: not the name of an image without a tag"
openssl ec -in "$key" -noout -text 2>/dev/null | grep -q prime256v1 || fail "$key: no private key on P-256"
[ ! -e "$layout" ] || fail "$layout: is there already"
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

# What is signed, byte for byte.
printf '%s' '{"critical":{"identity":{"docker-reference":"'"$name"'"},"image":{"docker-manifest-digest":"sha256:'"$digest"'"},' \
  '"type":"cosign container image signature"},"optional":null}' >"$work/payload"
signature=$(openssl dgst -sha256 -sign "$key" "$work/payload" | openssl base64 -A)
read -r payload payload_len < <(keep "$work/payload")

oci=application/vnd.oci.image
printf '%s' '{"architecture":"","os":"","config":{},"rootfs":{"type":"layers","diff_ids":["sha256:'"$payload"'"]}}' >"$work/config"
read -r config config_len < <(keep "$work/config")
printf '%s' '{"schemaVersion":2,"mediaType":"'$oci'.manifest.v1+json",' \
  '"config":{"mediaType":"'$oci'.config.v1+json","digest":"sha256:'"$config"'","size":'"$config_len"'},' \
  '"layers":[{"mediaType":"application/vnd.dev.cosign.simplesigning.v1+json","digest":"sha256:'"$payload"'","size":'"$payload_len"',' \
  '"annotations":{"dev.cosignproject.cosign/signature":"'"$signature"'"}}]}' >"$work/manifest"
read -r manifest manifest_len < <(keep "$work/manifest")
printf '%s' '{"imageLayoutVersion":"1.0.0"}' >"$layout/oci-layout"
printf '%s' '{"schemaVersion":2,"manifests":[{"mediaType":"'$oci'.manifest.v1+json","digest":"sha256:'"$manifest"'","size":'"$manifest_len"',' \
  '"annotations":{"org.opencontainers.image.ref.name":"latest"}}]}' >"$layout/index.json"
echo "skopeo copy --preserve-digests oci:$layout:latest docker://$name:sha256-$digest.sig"
