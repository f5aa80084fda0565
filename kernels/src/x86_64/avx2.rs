//! The entry points of AVX2 and FMA.

use std::arch::x86_64::__m256;

use ndarray::ArrayViewMut2;

use super::{Ahead, Arithmetic, Columns, Piece, Single, Target, for_each_group};
use crate::gemm::{Beside, DEPTH, Matrix, Next, PANEL, Term};

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

    pub(crate) fn multiply(
        self,
        terms: &[Term<f32>],
        (k, stride): (usize, usize),
        mut c: ArrayViewMut2<f32>,
        accumulate: bool,
        beside: Beside<impl Copy>,
    ) {
        let target = Target::new(&mut c);
        let (shape, beside) = ((target.rows, k, stride), beside.into());
        for_each_group(terms, shape, DEPTH, accumulate, |pieces, accumulate| {
            // SAFETY: (T), (B).
            unsafe { tiles(pieces, stride, target, accumulate, beside) }
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
unsafe fn tiles(
    pieces: &[Piece<f32>],
    stride: usize,
    c: Target<f32>,
    accumulate: bool,
    beside: Columns,
) {
    // SAFETY: passed on.
    unsafe { super::tiles::<Single<__m256>, 2>(pieces, stride, c, accumulate, beside) }
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
