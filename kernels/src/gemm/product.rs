//! `Product`: what the matrix kernels do with a number format.

use ndarray::ArrayViewMut2;

use super::epilogue::Store;
use super::{Products, ZEROS};
use crate::base::exec::Exec;
use crate::base::isa::Isa;
use crate::base::panel::{Matrix, PANEL, PrefetchNext, STRIP};
use crate::base::tile::Tile;
use crate::base::value::{Bf16, Value};

/// What the matrix kernels do with a format; not to be implemented elsewhere.
pub trait Product: Value {
    /// What a multiplication takes at a time: one `f32`, or two neighbouring bfloat16.
    type Word: Copy + Default + Send + Sync;
    /// Values of a word.
    const WORD: usize = size_of::<Self::Word>() / size_of::<Self>();
    /// Rows of a gradient by weight that one call of the kernel computes: all of a task where they are read as they
    /// lie, as many as a scratch in the first-level cache has where they are interleaved.
    const CHUNK: usize;

    /// The same values, where the format is `f32`.
    #[doc(hidden)]
    fn single(values: &[Self]) -> Option<&[f32]>;

    /// As many zeros as are read at a time outside of a map.
    #[doc(hidden)]
    fn zeros() -> &'static [Self];

    /// See [`super::multiply_to`].
    #[doc(hidden)]
    fn multiply(
        isa: Isa,
        products: Products<Self>,
        accumulators: &mut [f32],
        store: &Store<Self>,
        tile: Tile<Self>,
    );

    /// See [`super::multiply_transposed`].
    #[doc(hidden)]
    fn multiply_transposed(
        isa: Isa,
        a: Matrix<Self::Word>,
        b: &[Self::Word],
        next: PrefetchNext<Self, impl Copy>,
        c: ArrayViewMut2<f32>,
        accumulate: bool,
    );

    /// `a` as the transposed product reads it: words down the columns, or on tiles along rows of columns.
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
    fn transpose(isa: Isa, source: &[f32], next: &[f32], panel: &mut [Self], streamed: bool);

    /// Weights `[..][Cin][64]` as the kernels read them, in `scratch` where that is another format.
    #[doc(hidden)]
    fn panels<'a>(exec: Exec, weights: &'a [f32], scratch: &'a mut [Self]) -> &'a [Self];
}

impl Product for f32 {
    type Word = f32;
    const CHUNK: usize = 512;

    fn single(values: &[f32]) -> Option<&[f32]> {
        Some(values)
    }

    fn zeros() -> &'static [f32] {
        &[0.0; ZEROS]
    }

    fn multiply(
        isa: Isa,
        products: Products<f32>,
        accumulators: &mut [f32],
        store: &Store<f32>,
        tile: Tile<f32>,
    ) {
        super::multiply_to(isa, products, accumulators, store, tile);
    }

    fn multiply_transposed(
        isa: Isa,
        a: Matrix<f32>,
        b: &[f32],
        next: PrefetchNext<f32, impl Copy>,
        c: ArrayViewMut2<f32>,
        accumulate: bool,
    ) {
        super::multiply_transposed(isa, a, b, next, c, accumulate);
    }

    fn columns<'a>(_: Isa, a: Matrix<'a, f32>, _: &'a mut [f32]) -> Matrix<'a, f32> {
        a
    }

    fn strips(_: Isa, b: Matrix<f32>, packed: &mut [f32]) {
        super::strips(b, packed, |value| value);
    }

    fn transpose(isa: Isa, source: &[f32], next: &[f32], panel: &mut [f32], streamed: bool) {
        super::transpose(isa, source, next, panel, streamed);
    }

    fn panels<'a>(_: Exec, weights: &'a [f32], _: &'a mut [f32]) -> &'a [f32] {
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
        &[Bf16(0); ZEROS]
    }

    fn multiply(
        isa: Isa,
        products: Products<Bf16>,
        accumulators: &mut [f32],
        store: &Store<Bf16>,
        tile: Tile<Bf16>,
    ) {
        super::multiply_bf16(isa, products, accumulators, store, tile);
    }

    fn multiply_transposed(
        isa: Isa,
        a: Matrix<u32>,
        b: &[u32],
        next: PrefetchNext<Bf16, impl Copy>,
        c: ArrayViewMut2<f32>,
        accumulate: bool,
    ) {
        super::multiply_transposed_bf16(isa, a, b, next, c, accumulate);
    }

    fn columns<'a>(isa: Isa, a: Matrix<'a, Bf16>, packed: &'a mut [u32]) -> Matrix<'a, u32> {
        #[cfg(target_arch = "x86_64")]
        if let Some(tiles) = isa.tiles() {
            return super::transpose_for_tiles(isa, tiles, a, packed);
        }
        let rows = a.rows.div_ceil(2);
        let packed = &mut packed[..rows * a.cols];
        super::interleave(isa, a, a.cols, packed);
        Matrix { data: packed, rows, cols: a.cols, stride: a.cols }
    }

    fn strips(isa: Isa, b: Matrix<Bf16>, packed: &mut [u32]) {
        super::interleave(isa, b, STRIP, &mut packed[..b.rows.div_ceil(2) * b.cols]);
    }

    fn transpose(isa: Isa, source: &[f32], next: &[f32], panel: &mut [Bf16], _: bool) {
        let mut transposed = [0.0; PANEL * PANEL];
        super::transpose(isa, source, next, &mut transposed, false);
        super::pair_rows(isa, &transposed, panel);
    }

    fn panels<'a>(
        Exec { pool, isa }: Exec,
        weights: &'a [f32],
        scratch: &'a mut [Bf16],
    ) -> &'a [Bf16] {
        // 48 KiB of both formats: some microseconds a task.
        const LEN: usize = 128 * PANEL;
        let panels = &mut scratch[..weights.len()];
        pool.for_each_chunk(panels, LEN, |index, panels| {
            super::pair_rows(isa, &weights[index * LEN..][..panels.len()], panels);
        });
        panels
    }
}
