//! Flat buffers in narrower number formats: bfloat16, and 8-bit integers in blocks with a scale each.
//!
//! ```text
//! bf16   u16 u16 ...                        the upper half, rounded to nearest, ties to even
//! int8   f32 scale | i8 ... (up to BLOCK)   value = scale * integer; scale = largest magnitude / 127
//! ```
//! Little-endian, and of a size that only the number of values decides. The loops are plain Rust without fused
//! multiply-add, compiled for each tier: all tiers write the same bits. What is not finite stays so: as a NaN or an
//! infinity in bf16, in the scale of its block in int8.

use crate::base::isa::Isa;
use crate::base::value::{Bf16, Value};

/// Values that share a scale. Larger ones cost fewer bytes and more accuracy: 256 are 1.6 % of scales.
pub const BLOCK: usize = 256;
/// Bytes of a block's scale.
const SCALE_LEN: usize = size_of::<f32>();
/// Largest integer: symmetric, so that a value and its negative round alike.
const INTEGER_MAX: f32 = 127.0;
/// Blocks with nothing larger than 2^-100 are zero: beneath, the factor 127 / largest could be infinite.
const LARGEST_MIN: f32 = f32::from_bits((127 - 100) << 23);
/// 1.5 * 2^23: a sum with it has no bits left for a fraction, so that the addition itself rounds to nearest even.
const ROUNDING: f32 = 12_582_912.0;

/// Bytes of so many values in bf16.
pub fn bf16_len(values: usize) -> usize {
    values * size_of::<Bf16>()
}

/// Bytes of so many values in int8.
pub fn int8_len(values: usize) -> usize {
    values + values.div_ceil(BLOCK) * SCALE_LEN
}

/// Rounds to bf16. What is no number becomes the quiet NaN.
///
/// # Panics
/// When the lengths do not fit.
pub fn encode_bf16(isa: Isa, values: &[f32], bytes: &mut [u8]) {
    assert_eq!(bytes.len(), bf16_len(values.len()));
    let (bytes, _) = bytes.as_chunks_mut::<2>();
    isa.run(
        #[inline(always)]
        move || {
            for (bytes, &value) in bytes.iter_mut().zip(values) {
                // A NaN of all ones would come round to zero.
                let value = if value.is_nan() { f32::NAN } else { value };
                *bytes = Bf16::narrow(value).0.to_le_bytes();
            }
        },
    );
}

/// Widens bf16, exactly.
///
/// # Panics
/// When the lengths do not fit.
pub fn decode_bf16(isa: Isa, bytes: &[u8], values: &mut [f32]) {
    assert_eq!(bytes.len(), bf16_len(values.len()));
    let (bytes, _) = bytes.as_chunks::<2>();
    isa.run(
        #[inline(always)]
        move || {
            for (&bytes, value) in bytes.iter().zip(values) {
                *value = Bf16(u16::from_le_bytes(bytes)).widen();
            }
        },
    );
}

/// Rounds to int8.
///
/// # Panics
/// When the lengths do not fit.
pub fn encode_int8(isa: Isa, values: &[f32], bytes: &mut [u8]) {
    assert_eq!(bytes.len(), int8_len(values.len()));
    isa.run(
        #[inline(always)]
        move || {
            let blocks = bytes.chunks_mut(SCALE_LEN + BLOCK).zip(values.chunks(BLOCK));
            for (bytes, values) in blocks {
                let (scale, integers) = bytes.split_at_mut(SCALE_LEN);
                let Scale { scale: step, inverse } = Scale::of(values);
                scale.copy_from_slice(&step.to_le_bytes());
                for (integer, &value) in integers.iter_mut().zip(values) {
                    *integer = rounded(value * inverse) as u8;
                }
            }
        },
    );
}

/// Widens int8.
///
/// # Panics
/// When the lengths do not fit.
pub fn decode_int8(isa: Isa, bytes: &[u8], values: &mut [f32]) {
    assert_eq!(bytes.len(), int8_len(values.len()));
    isa.run(
        #[inline(always)]
        move || {
            let blocks = bytes.chunks(SCALE_LEN + BLOCK).zip(values.chunks_mut(BLOCK));
            for (bytes, values) in blocks {
                let (scale, integers) = bytes.split_at(SCALE_LEN);
                let scale = f32::from_le_bytes(scale.try_into().expect("split so"));
                for (&integer, value) in integers.iter().zip(values) {
                    *value = scale * f32::from(integer as i8);
                }
            }
        },
    );
}

/// Takes off what [`encode_int8`] writes of these values: what is left is the error that feedback adds to the next
/// ones (Seide et al., "1-bit stochastic gradient descent", 2014; Karimireddy et al., "Error feedback fixes SignSGD",
/// 2019).
pub fn subtract_int8(isa: Isa, values: &mut [f32]) {
    isa.run(
        #[inline(always)]
        move || {
            for values in values.chunks_mut(BLOCK) {
                let Scale { scale, inverse } = Scale::of(values);
                for value in values {
                    *value -= scale * f32::from(rounded(*value * inverse));
                }
            }
        },
    );
}

/// What a block's integers are multiplied with, and its values to become integers.
struct Scale {
    scale: f32,
    inverse: f32,
}

impl Scale {
    #[inline(always)]
    fn of(values: &[f32]) -> Self {
        // As integers, magnitudes of floating-point numbers have the same order, with what is no number above all:
        // the maximum of that is one instruction a vector.
        let mut largest = 0;
        for value in values {
            largest = value.abs().to_bits().max(largest);
        }
        let largest = f32::from_bits(largest);
        if largest < LARGEST_MIN {
            return Self { scale: 0.0, inverse: 0.0 };
        }
        Self { scale: largest / INTEGER_MAX, inverse: INTEGER_MAX / largest }
    }
}

/// To the nearest integer, ties to even; of magnitudes up to 127, anything else gives anything.
#[inline(always)]
fn rounded(value: f32) -> i8 {
    (value + ROUNDING).to_bits().wrapping_sub(ROUNDING.to_bits()) as i8
}

/// Any bytes as values of each format.
#[doc(hidden)]
pub fn fuzz(data: &[u8]) {
    let tiers = Isa::available();
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<u32>>();
    let whole = data.len() / 2;
    let decoded = |isa| {
        let mut values = vec![0.0; whole];
        decode_bf16(isa, &data[..2 * whole], &mut values);
        values
    };
    let values = decoded(Isa::Portable);
    tiers.iter().for_each(|&isa| assert_eq!(bits(&decoded(isa)), bits(&values)));
    let mut again = vec![0; 2 * whole];
    encode_bf16(Isa::Portable, &values, &mut again);
    for ((value, again), bytes) in values.iter().zip(again.chunks(2)).zip(data.chunks(2)) {
        assert!(value.is_nan() || again == bytes, "what is bf16 stays what it is");
    }
    // The number of values that take all of these bytes, as far as there is one.
    let rest = (data.len() % (SCALE_LEN + BLOCK)).saturating_sub(SCALE_LEN);
    let count = data.len() / (SCALE_LEN + BLOCK) * BLOCK + rest;
    if int8_len(count) != data.len() {
        return;
    }
    let decoded = |isa| {
        let mut values = vec![0.0; count];
        decode_int8(isa, data, &mut values);
        values
    };
    let values = decoded(Isa::Portable);
    for isa in tiers {
        assert_eq!(bits(&decoded(isa)), bits(&values));
        let mut bytes = vec![0; data.len()];
        encode_int8(isa, &values, &mut bytes);
        let mut portable = vec![0; data.len()];
        encode_int8(Isa::Portable, &values, &mut portable);
        assert_eq!(bytes, portable);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of all magnitudes, with rows of equal ones, and a short last block.
    fn values() -> Vec<f32> {
        let mut state = 1_u32;
        (0..5 * BLOCK + 77)
            .map(|index| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let unit = f64::from(state) / f64::from(u32::MAX) - 0.5;
                let magnitude = [1e-30, 1.0, 1e-3, 0.0, 1e20, 7.0][index / BLOCK];
                (unit * magnitude) as f32
            })
            .collect()
    }

    #[test]
    fn bf16_is_the_nearest_on_every_tier() {
        let values = values();
        for isa in Isa::available() {
            let mut bytes = vec![0; bf16_len(values.len())];
            encode_bf16(isa, &values, &mut bytes);
            let mut back = vec![0.0; values.len()];
            decode_bf16(isa, &bytes, &mut back);
            for (value, back) in values.iter().zip(&back) {
                assert_eq!(*back, Bf16::narrow(*value).widen(), "{}", isa.name());
            }
        }
    }

    /// The definition, a value at a time.
    #[test]
    fn int8_is_the_definition_on_every_tier_and_its_error_is_half_a_step() {
        let values = values();
        for isa in Isa::available() {
            let mut bytes = vec![0; int8_len(values.len())];
            encode_int8(isa, &values, &mut bytes);
            let (mut back, mut left) = (vec![0.0; values.len()], values.clone());
            decode_int8(isa, &bytes, &mut back);
            subtract_int8(isa, &mut left);
            for (index, &value) in values.iter().enumerate() {
                let block = &values[index / BLOCK * BLOCK..];
                let block = &block[..BLOCK.min(block.len())];
                let largest = block.iter().fold(0.0_f32, |largest, v| largest.max(v.abs()));
                let (scale, inverse) = match largest < LARGEST_MIN {
                    true => (0.0, 0.0),
                    false => (largest / 127.0, 127.0 / largest),
                };
                let expected = scale * (value * inverse).round_ties_even();
                assert_eq!(back[index], expected, "{value} at {index}, {}", isa.name());
                assert_eq!(left[index], value - expected);
                assert!((value - expected).abs() <= 0.5001 * scale.max(2.0 * LARGEST_MIN));
            }
        }
    }

    #[test]
    fn what_is_not_finite_stays_so() {
        for bad in [f32::NAN, f32::from_bits(u32::MAX), f32::INFINITY, f32::NEG_INFINITY] {
            for isa in Isa::available() {
                let mut values = vec![1.0; 2 * BLOCK];
                values[BLOCK + 3] = bad;
                let mut bytes = vec![0; bf16_len(values.len())];
                encode_bf16(isa, &values, &mut bytes);
                let mut back = vec![0.0; values.len()];
                decode_bf16(isa, &bytes, &mut back);
                assert!(!back[BLOCK + 3].is_finite(), "{bad} in bf16");
                let mut bytes = vec![0; int8_len(values.len())];
                encode_int8(isa, &values, &mut bytes);
                decode_int8(isa, &bytes, &mut back);
                assert!(back[..BLOCK].iter().all(|&value| value == 1.0));
                assert!(back[BLOCK..].iter().any(|value| !value.is_finite()), "{bad} in int8");
            }
        }
    }
}
