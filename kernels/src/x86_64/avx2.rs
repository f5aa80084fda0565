//! The entry points of AVX2 and FMA.

use std::arch::x86_64::*;

use ndarray::ArrayViewMut2;

use super::{Lanes, Piece, Target, for_each_group};
use crate::gemm::{Matrix, Term};

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
    pub(crate) fn chain(self, rounds: usize) -> f32 {
        // SAFETY: (T).
        unsafe { chain(rounds) }
    }

    pub(crate) fn multiply(
        self,
        terms: &[Term],
        k_and_stride: (usize, usize),
        mut c: ArrayViewMut2<f32>,
        accumulate: bool,
    ) {
        let (target, (k, stride)) = (Target::new(&mut c), k_and_stride);
        for_each_group(terms, (target.rows, k, stride), accumulate, |pieces, accumulate| {
            // SAFETY: (T), (B).
            unsafe { tiles(pieces, stride, target, accumulate) }
        });
    }

    pub(crate) fn multiply_transposed(self, a: Matrix, b: Matrix, mut c: ArrayViewMut2<f32>) {
        assert!(a.fits() && b.fits());
        if a.rows > 0 {
            // SAFETY: (T), (B).
            unsafe { tiles_transposed(a, b, Target::new(&mut c)) }
        }
    }
}

#[target_feature(enable = "avx2,fma")]
fn run<R>(body: impl FnOnce() -> R) -> R {
    body()
}

#[target_feature(enable = "avx2,fma")]
fn chain(rounds: usize) -> f32 {
    super::chain::<__m256>(rounds)
}

#[target_feature(enable = "avx2,fma")]
unsafe fn tiles(pieces: &[Piece], stride: usize, c: Target, accumulate: bool) {
    // SAFETY: passed on.
    unsafe { super::tiles::<__m256, 2>(pieces, stride, c, accumulate) }
}

#[target_feature(enable = "avx2,fma")]
unsafe fn tiles_transposed(a: Matrix, b: Matrix, c: Target) {
    // SAFETY: passed on.
    unsafe { super::tiles_transposed::<__m256, 2>(a, b, c) }
}

// Only the entry points above use these, so the features are there: (T) holds in every method.
impl Lanes for __m256 {
    const COUNT: usize = 8;

    #[inline(always)]
    fn zero() -> Self {
        // SAFETY: (T).
        unsafe { _mm256_setzero_ps() }
    }

    #[inline(always)]
    fn splat(value: f32) -> Self {
        // SAFETY: (T).
        unsafe { _mm256_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn load(source: *const f32) -> Self {
        // SAFETY: (T), and the caller vouches for the memory.
        unsafe { _mm256_loadu_ps(source) }
    }

    #[inline(always)]
    unsafe fn store(self, target: *mut f32) {
        // SAFETY: (T), and the caller vouches for the memory.
        unsafe { _mm256_storeu_ps(target, self) }
    }

    #[inline(always)]
    fn multiply_add(self, factor: Self, sum: Self) -> Self {
        // SAFETY: (T).
        unsafe { _mm256_fmadd_ps(self, factor, sum) }
    }
}
