//! The entry points of AVX2 and FMA.

use std::arch::x86_64::__m256;

use ndarray::ArrayViewMut2;

use super::epilogue::End;
use super::{Ahead, Arithmetic, Group, PIECES_MAX, Piece, Single, Target, for_each_group};
use crate::base::tile::Tile;
use crate::base::value::Value;
use crate::gemm::epilogue::Ending;
use crate::gemm::{Beside, DEPTH, Matrix, Next, PANEL, Products, Term};

/// Proof that this CPU has AVX2 and FMA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Avx2(());

impl Avx2 {
    /// The token, if the CPU and the operating system offer the instructions.
    pub fn detect() -> Option<Self> {
        let present = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        present.then_some(Self(()))
    }

    #[inline]
    pub(crate) fn run<R>(self, body: impl FnOnce() -> R) -> R {
        // SAFETY: (T).
        unsafe { run(body) }
    }

    /// Operations of `rounds` of multiply-add on registers alone.
    pub(crate) fn chain(self, rounds: usize) -> usize {
        // SAFETY: (T).
        2 * Single::<__m256>::COUNT * unsafe { chain(rounds) }
    }

    /// See [`crate::gemm::multiply`].
    pub(crate) fn multiply(
        self,
        terms: &[Term<f32>],
        (k, stride): (usize, usize),
        mut c: ArrayViewMut2<f32>,
        beside: Beside,
    ) {
        let end = End::keep(&mut c);
        // One group: the sums of several would need a place.
        assert!(terms.len() <= PIECES_MAX);
        let rows = end.out.rows;
        for_each_group(terms, (rows, k, stride), usize::MAX, |pieces, _, _| {
            let group = Group { end: Some(&end), beside, ..Group::NONE };
            // SAFETY: (T), (B).
            unsafe { tiles(pieces, [rows, PANEL, stride], group) }
        });
    }

    /// See [`crate::gemm::multiply_to`].
    pub(crate) fn multiply_to<T: Value>(
        self,
        products: Products<f32>,
        held: &mut [f32],
        (ending, tile): (&Ending<T>, Tile<T>),
    ) {
        let Products { terms, k, stride, apart } = products;
        let beside = ending.beside(&tile);
        let end = End::new(ending, tile);
        let (partial, rows) = (held.as_mut_ptr(), end.out.rows);
        assert!(held.len() >= rows * PANEL);
        assert!(end.columns == PANEL || terms.len() * k <= DEPTH);
        products.assert_panels(end.columns / PANEL);
        for_each_group(terms, (rows, k, stride), DEPTH, |pieces, is_first, is_last| {
            let before = if is_first { std::ptr::null() } else { partial.cast_const() };
            let end_or_none = is_last.then_some(&end);
            let beside = if is_last { beside } else { Beside::NOTHING };
            let group = Group { before, partial, end: end_or_none, beside, apart };
            // SAFETY: (T), (B).
            unsafe { tiles(pieces, [rows, end.columns, stride], group) }
        });
    }

    pub(crate) fn multiply_transposed(
        self,
        a: Matrix<f32>,
        b: &[f32],
        next: Next<f32, impl Copy>,
        mut c: ArrayViewMut2<f32>,
        accumulate: bool,
    ) {
        assert!(a.fits() && b.len() >= a.rows * PANEL);
        // SAFETY: (T), (B).
        unsafe { tiles_transposed(a, b, next.into(), Target::new(&mut c), accumulate) }
    }
}

#[target_feature(enable = "avx2,fma")]
fn run<R>(body: impl FnOnce() -> R) -> R {
    body()
}

#[target_feature(enable = "avx2,fma")]
fn chain(rounds: usize) -> usize {
    super::chain::<Single<__m256>>(rounds, 0.5)
}

#[target_feature(enable = "avx2,fma")]
unsafe fn tiles<T: Value>(pieces: &[Piece<f32>], shape: [usize; 3], group: Group<T>) {
    // SAFETY: passed on.
    unsafe { super::tiles::<Single<__m256>, T, 2>(pieces, shape, group) }
}

#[target_feature(enable = "avx2,fma")]
unsafe fn tiles_transposed(
    a: Matrix<f32>,
    b: &[f32],
    next: Ahead,
    c: Target<f32>,
    accumulate: bool,
) {
    // SAFETY: passed on.
    unsafe { super::tiles_transposed::<Single<__m256>, 6, 2>(a, b, next, c, accumulate) }
}
