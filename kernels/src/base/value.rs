//! The two number formats that activations and weights are stored in: `f32` and bfloat16.
//!
//! Arithmetic is `f32` either way: values are widened when they are loaded and rounded when they are
//! stored, and sums never pass through a narrow format.

/// A bfloat16: the upper half of an `f32`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Bf16(pub u16);

/// A stored number.
pub trait Value: Copy + Default + Send + Sync + 'static {
    /// As `f32`, exactly.
    fn widen(self) -> f32;
    /// Rounded to the nearest, ties to even.
    fn narrow(value: f32) -> Self;
}

impl Value for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[inline(always)]
    fn narrow(value: f32) -> Self {
        value
    }
}

impl Value for Bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.0) << 16)
    }

    #[inline(always)]
    fn narrow(value: f32) -> Self {
        let bits = value.to_bits();
        // The sum cannot leave a quiet NaN, which is what arithmetic makes.
        let rounded = bits.wrapping_add(0x7FFF + (bits >> 16 & 1));
        Self((rounded >> 16) as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_to_nearest_even_and_keeps_what_is_no_number() {
        let narrow = |bits: u32| Bf16::narrow(f32::from_bits(bits)).0;
        assert_eq!(narrow(0x3F80_0000), 0x3F80);
        assert_eq!(narrow(0x3F80_8000), 0x3F80, "a tie goes to even");
        assert_eq!(narrow(0x3F81_8000), 0x3F82, "a tie goes to even");
        assert_eq!(narrow(0x3F80_8001), 0x3F81);
        assert_eq!(narrow(0xFF80_0000), 0xFF80);
        assert!(Bf16::narrow(f32::NAN).widen().is_nan());
        assert_eq!(Bf16(0xC0A0).widen(), -5.0);
    }
}
