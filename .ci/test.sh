#!/usr/bin/env bash
# Sets up and runs every test. Needs a Debian with rustup and a C compiler; installs what else the tests
# compare with (as root), or says what is missing.
set -euo pipefail
cd "$(dirname "$0")/.."

.ci/setup.sh

cargo fmt --all --check
cargo clippy --workspace --all-targets --locked -- -D warnings
RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --quiet
# The simulated jobs run by themselves: their seeds are to take less than two minutes.
cargo test --workspace --locked -- --skip train::
start=$SECONDS
cargo test -p hfl --locked --test main train:: -- --nocapture
echo "simulated jobs: $((SECONDS - start)) s"
# Which tiles these tests ran on: the CPU's, or only their model.
cargo test -p kernels --locked --test main tiles -- --nocapture 2>/dev/null | grep '^AMX' | sort -u
.ci/deny.sh
.ci/threads.sh
.ci/toolchain.sh
.ci/network.sh
.ci/device.sh
.ci/image.sh
.ci/deploy.sh
.ci/report.sh
.ci/passport.sh
.ci/model.sh
.ci/measure.sh
# The guest's emulator leaves cores idle; builds and fuzzers take them meanwhile.
log=$(mktemp)
.ci/guest.sh >"$log" 2>&1 &
guest=$!
trap 'kill "$guest" 2>/dev/null || true; rm -f "$log"' EXIT
musl/check.sh
.ci/fuzz.sh "${FUZZ_SECONDS:-5}"
wait "$guest" || { cat "$log"; exit 1; }
cat "$log"
