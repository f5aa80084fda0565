//! Memory: how much of it a key derivation may take, and keeping secrets out of swap.

use crate::linux::sys;

/// Most memory of Argon2, in KiB, whatever a machine has.
pub(crate) const LIMIT_KIB_MAX: u64 = 1 << 20;

/// Most memory that a key derivation may ask for here, in KiB: half of what is free, at most 1 GiB.
pub(crate) fn limit_kib() -> u64 {
    available_kib().map_or(LIMIT_KIB_MAX, |kib| kib / 2).min(LIMIT_KIB_MAX)
}

/// Asks the system not to swap these bytes out; it may decline.
pub(crate) fn keep_from_swap(bytes: &[u8]) {
    let _declined = !sys::lock_memory(bytes);
}

/// Memory that the system could give now, in KiB, by its own estimate.
fn available_kib() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().trim_end_matches("kB").trim().parse().ok()
}
