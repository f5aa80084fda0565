//! The two number formats that activations and weights are stored in: `f32` and bfloat16.
//!
//! Arithmetic is `f32` either way: values are widened when they are loaded and rounded when they are
//! stored, and sums never pass through a narrow format.

use ndarray::ArrayViewMut2;

use crate::base::isa::Isa;
use crate::base::tile::Tile;
use crate::conv::winograd::SLICE;
use crate::gemm::epilogue::Ending;
use crate::gemm::{self, Matrix, Next, Products};
use crate::parallel::Pool;

/// A bfloat16: the upper half of an `f32`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Bf16(pub u16);

/// A stored number.
pub trait Value: Product {
    /// As `f32`, exactly.
    fn widen(self) -> f32;
    /// Rounded to the nearest, ties to even.
    fn narrow(value: f32) -> Self;
}

/// What the matrix kernels do with a format; not to be implemented elsewhere.
pub trait Product: Copy + Default + Send + Sync + 'static {
    /// What a multiplication takes at a time: one `f32`, or two neighbouring bfloat16.
    type Word: Copy + Default + Send + Sync;
    /// Values of a word.
    const WORD: usize = size_of::<Self::Word>() / size_of::<Self>();
    /// Rows of a gradient by weight that one call of the kernel computes.
    const CHUNK: usize;

    /// The same values, where the format is `f32`.
    #[doc(hidden)]
    fn single(values: &[Self]) -> Option<&[f32]>;

    /// As many zeros as are read at a time outside of a map.
    #[doc(hidden)]
    fn zeros() -> &'static [Self];

    /// See [`gemm::multiply_to`].
    #[doc(hidden)]
    fn multiply(
        isa: Isa,
        products: Products<Self>,
        held: &mut [f32],
        end: (&Ending<Self>, Tile<Self>),
    );

    /// See [`gemm::multiply_transposed`].
    #[doc(hidden)]
    fn multiply_transposed(
        isa: Isa,
        a: Matrix<Self::Word>,
        b: &[Self::Word],
        next: Next<Self, impl Copy>,
        c: ArrayViewMut2<f32>,
        accumulate: bool,
    );

    /// `a` as the transposed product reads it: words down the columns.
    #[doc(hidden)]
    fn columns<'a>(
        isa: Isa,
        a: Matrix<'a, Self>,
        packed: &'a mut [Self::Word],
    ) -> Matrix<'a, Self::Word>;

    /// Rows of 64 columns as two strips of words down the columns.
    #[doc(hidden)]
    fn strips(isa: Isa, b: Matrix<Self>, packed: &mut [Self::Word]);

    /// Transposes a 64x64 tile of weights (and asks for what comes next) into a panel, past the caches if that is
    /// asked for.
    #[doc(hidden)]
    fn turn(isa: Isa, source: (&[f32], &[f32]), panel: &mut [Self], streamed: bool);

    /// Weights `[..][Cin][64]` as the kernels read them, in `scratch` where that is another format.
    #[doc(hidden)]
    fn panels<'a>(exec: (&Pool, Isa), weights: &'a [f32], scratch: &'a mut [Self]) -> &'a [Self];
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

impl Product for f32 {
    type Word = f32;
    const CHUNK: usize = 512;

    fn single(values: &[f32]) -> Option<&[f32]> {
        Some(values)
    }

    fn zeros() -> &'static [f32] {
        &[0.0; SLICE]
    }

    fn multiply(
        isa: Isa,
        products: Products<f32>,
        held: &mut [f32],
        end: (&Ending<f32>, Tile<f32>),
    ) {
        gemm::multiply_to(isa, products, held, end);
    }

    fn multiply_transposed(
        isa: Isa,
        a: Matrix<f32>,
        b: &[f32],
        next: Next<f32, impl Copy>,
        c: ArrayViewMut2<f32>,
        accumulate: bool,
    ) {
        gemm::multiply_transposed(isa, a, b, next, c, accumulate);
    }

    fn columns<'a>(_: Isa, a: Matrix<'a, f32>, _: &'a mut [f32]) -> Matrix<'a, f32> {
        a
    }

    fn strips(_: Isa, b: Matrix<f32>, packed: &mut [f32]) {
        gemm::strips(b, packed, |value| value);
    }

    fn turn(isa: Isa, source: (&[f32], &[f32]), panel: &mut [f32], streamed: bool) {
        gemm::turn(isa, source, panel, streamed);
    }

    fn panels<'a>(_: (&Pool, Isa), weights: &'a [f32], _: &'a mut [f32]) -> &'a [f32] {
        weights
    }
}

impl Product for Bf16 {
    type Word = u32;
    const CHUNK: usize = 128;

    fn single(_: &[Bf16]) -> Option<&[f32]> {
        None
    }

    fn zeros() -> &'static [Bf16] {
        &[Bf16(0); SLICE]
    }

    fn multiply(
        isa: Isa,
        products: Products<Bf16>,
        held: &mut [f32],
        end: (&Ending<Bf16>, Tile<Bf16>),
    ) {
        gemm::multiply_bf16(isa, products, held, end);
    }

    fn multiply_transposed(
        isa: Isa,
        a: Matrix<u32>,
        b: &[u32],
        next: Next<Bf16, impl Copy>,
        c: ArrayViewMut2<f32>,
        accumulate: bool,
    ) {
        gemm::multiply_transposed_bf16(isa, a, b, next, c, accumulate);
    }

    fn columns<'a>(isa: Isa, a: Matrix<'a, Bf16>, packed: &'a mut [u32]) -> Matrix<'a, u32> {
        let rows = a.rows.div_ceil(2);
        let packed = &mut packed[..rows * a.cols];
        gemm::interleave(isa, a, a.cols, packed);
        Matrix { data: packed, rows, cols: a.cols, stride: a.cols }
    }

    fn strips(isa: Isa, b: Matrix<Bf16>, packed: &mut [u32]) {
        gemm::interleave(isa, b, gemm::STRIP, &mut packed[..b.rows.div_ceil(2) * b.cols]);
    }

    fn turn(isa: Isa, source: (&[f32], &[f32]), panel: &mut [Bf16], _: bool) {
        let mut turned = [0.0; gemm::PANEL * gemm::PANEL];
        gemm::turn(isa, source, &mut turned, false);
        gemm::pair_rows(isa, &turned, panel);
    }

    fn panels<'a>(
        (pool, isa): (&Pool, Isa),
        weights: &'a [f32],
        scratch: &'a mut [Bf16],
    ) -> &'a [Bf16] {
        const LEN: usize = 128 * gemm::PANEL;
        let panels = &mut scratch[..weights.len()];
        pool.for_each_chunk(panels, LEN, |index, panels| {
            gemm::pair_rows(isa, &weights[index * LEN..][..panels.len()], panels);
        });
        panels
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
