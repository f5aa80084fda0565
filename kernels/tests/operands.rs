//! What the operations of the tests work on: values that a seed determines, and room.

use kernels::{Scratch, Value};

/// Values in -1..1 that a seed determines.
pub(crate) fn values(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

/// Values as they are stored, and what they are then.
pub(crate) fn stored<T: Value>(len: usize, seed: u64) -> (Vec<T>, Vec<f32>) {
    let stored: Vec<T> = values(len, seed).into_iter().map(T::narrow).collect();
    let plain = widened(&stored);
    (stored, plain)
}

pub(crate) fn widened<T: Value>(values: &[T]) -> Vec<f32> {
    values.iter().map(|value| value.widen()).collect()
}

pub(crate) fn with<'a, T>(panels: &'a mut [T], parts: &'a mut [f32]) -> Scratch<'a, T> {
    Scratch { panels, parts }
}
