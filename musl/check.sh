#!/usr/bin/env bash
# Builds the committed tree in two directories and fails if the binaries differ.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for copy in one another/place; do
  mkdir -p "$work/$copy"
  git -C "$root" archive HEAD | tar -x -C "$work/$copy"
  (cd "$work/$copy" && musl/build.sh "$work/$copy/dist")
done
cmp "$work/one/dist/hfl" "$work/another/place/dist/hfl"
echo "equal bytes from two directories"
