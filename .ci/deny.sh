#!/usr/bin/env bash
# Licences, sources and duplicate versions of all dependencies, by cargo-deny. Its database of advisories is not asked:
# what this script does must not depend on a network beyond the registry.
set -euo pipefail
cd "$(dirname "$0")/.."
# From the root: this repository's default target is not the host, where the tool has to run. Unoptimised, since it
# builds longer than it runs.
cargo deny --version >/dev/null 2>&1 || (cd / && cargo install --quiet --locked --debug cargo-deny)
cargo deny --locked check bans licenses sources
