#!/usr/bin/env bash
# Searches the model of the session (protocol/model/session.pml) with spin: what has to hold, and what has to fail where
# the report data of a quote leaves something out. Its head says what each run shows.
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
freshness='s[i].late'
reached='s[3].waits'

# With all that there is: any one key lost, any one participant turned, and the keys of both ends of a connection.
holds
holds -DOWNER
holds -DBOTH
# An answer to the first question is none to the second.
holds -DQUESTIONS=2
# None of that is because nothing happens.
fails "$reached" -DREACH
# Only the exporter tells the connection that a quote was made for from the ones that an owner of both keys ends; while
# only one is lost keys and nonces do it together, and neither alone.
fails "$secrecy" -DBOTH -DNO_EXPORTER
holds -DNO_EXPORTER
holds -DOWNER -DNO_EXPORTER
fails "$secrecy" -DNO_EXPORTER -DNO_KEYS -DNO_ROSTER
fails "$secrecy" -DNO_EXPORTER -DNO_NONCES -DQUESTIONS=0 -DONLY_SECRECY
# Who opens is told by the exporter alone.
holds -DNO_KEYS -DNO_NONCES -DNO_ROSTER -DQUESTIONS=0 -DONLY_SECRECY
# An answer is of the time after its question by the nonces, and by the question's own.
fails "$freshness" -DNO_NONCES
fails "$freshness" -DNO_ANEW
# Who reads the roster has nothing but quotes.
fails said_key -DNO_KEYS
fails said_role -DNO_ROLES
fails said_job -DNO_JOB
fails said_policy -DNO_POLICY
# What roles in order say already.
holds -DNO_DIRECTION
holds -DNO_DIRECTION -DBOTH
holds -DNO_DIRECTION -DNO_EXPORTER
