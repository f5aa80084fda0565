//! The entry points of AVX-512 (F, BW, DQ, VL).

use std::arch::x86_64::*;

use ndarray::ArrayViewMut2;

use super::{Lanes, Piece, Target, for_each_group};
use crate::gemm::{Matrix, Term};

/// Proof that this CPU has AVX-512 (F, BW, DQ, VL).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Avx512(());

impl Avx512 {
    /// The token, if the CPU and the operating system offer the instructions.
    pub fn detect() -> Option<Self> {
        let present = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma");
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

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
fn run<R>(body: impl FnOnce() -> R) -> R {
    body()
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
fn chain(rounds: usize) -> f32 {
    super::chain::<__m512>(rounds)
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn tiles(pieces: &[Piece], stride: usize, c: Target, accumulate: bool) {
    // SAFETY: passed on.
    unsafe { super::tiles::<__m512, 4>(pieces, stride, c, accumulate) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn tiles_transposed(a: Matrix, b: Matrix, c: Target) {
    // SAFETY: passed on.
    unsafe { super::tiles_transposed::<__m512, 4>(a, b, c) }
}

// Only the entry points above use these, so the features are there: (T) holds in every method.
impl Lanes for __m512 {
    const COUNT: usize = 16;

    #[inline(always)]
    fn zero() -> Self {
        // SAFETY: (T).
        unsafe { _mm512_setzero_ps() }
    }

    #[inline(always)]
    fn splat(value: f32) -> Self {
        // SAFETY: (T).
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn load(source: *const f32) -> Self {
        // SAFETY: (T), and the caller vouches for the memory.
        unsafe { _mm512_loadu_ps(source) }
    }

    #[inline(always)]
    unsafe fn store(self, target: *mut f32) {
        // SAFETY: (T), and the caller vouches for the memory.
        unsafe { _mm512_storeu_ps(target, self) }
    }

    #[inline(always)]
    fn multiply_add(self, factor: Self, sum: Self) -> Self {
        // SAFETY: (T).
        unsafe { _mm512_fmadd_ps(self, factor, sum) }
    }
}
