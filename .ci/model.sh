#!/usr/bin/env bash
# Searches the model of the session (protocol/model/session.pml) with spin: what has to hold, and what has to fail where
# the report data of a quote leaves something out.
set -euo pipefail
cd "$(dirname "$0")/.."

model=$PWD/protocol/model/session.pml
install() { apt-get update -q && apt-get install -qy --no-install-recommends "$@"; }
if ! command -v spin >/dev/null && ! install spin >/dev/null 2>&1; then
  echo "SKIPPED model: cannot install spin (apt-get as root)"
  exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Searches all states; prints the assertion that fails, or nothing.
search() {
  (cd "$work" && rm -f ./* && spin -a "$@" "$model" >/dev/null && cc -O2 -DSAFETY -DCOLLAPSE -o pan pan.c)
  (cd "$work" && timeout 600 ./pan -m200000 -w22 >out) || { echo "the search did not end: $*" >&2; exit 1; }
  if grep -qE "max search depth too small|out of memory" "$work/out"; then
    echo "the search is not complete: $*" >&2
    exit 1
  fi
  grep -q "errors: " "$work/out"
  sed -n 's/^pan:1: assertion violated //p' "$work/out"
}
holds() {
  found=$(search "$@")
  [ -z "$found" ] || { echo "fails with $*: $found" >&2; exit 1; }
  echo "holds: $*"
}
# Fails, and with the property that is named: a part of its assertion.
fails() {
  property=$1
  shift
  found=$(search "$@")
  [[ $found == *"$property"* ]] || { echo "does not fail as it should: $*: $found" >&2; exit 1; }
  echo "fails as it should: $*"
}
secrecy='s[i].end!=254'
roster='policy[i]'

# Keys of nobody, of worker0, worker1, ps0; of the owner and of ps0 beside an owner's service.
for leak in 0 1 2 4; do holds "-DLEAK=$leak"; done
for leak in 4 8; do holds -DOWNER "-DLEAK=$leak"; done
# Those of worker0 and of ps0, both ends of a connection: the quotes still know theirs by its exporter.
holds -DLEAK=5
fails "$secrecy" -DLEAK=5 -DNO_EXPORTER
# Who reads the roster has nothing but quotes.
for part in ROLES JOB POLICY; do fails "$roster" -DLEAK=0 "-DNO_$part"; done
