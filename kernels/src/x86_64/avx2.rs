//! The entry points of AVX2 and FMA.

use std::arch::x86_64::*;

use ndarray::ArrayViewMut2;

use super::{Ahead, Arithmetic, Columns, Piece, Target, for_each_group};
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
        2 * Single::COUNT * unsafe { chain(rounds) }
    }

    pub(crate) fn multiply(
        self,
        terms: &[Term<f32>],
        (k, stride): (usize, usize),
        mut c: ArrayViewMut2<f32>,
        accumulate: bool,
        beside: Beside<f32>,
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
    super::chain::<Single>(rounds, 0.5)
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
    unsafe { super::tiles::<Single, 2>(pieces, stride, c, accumulate, beside) }
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
    unsafe { super::tiles_transposed::<Single, 6, 2>(a, b, next, c, accumulate) }
}

/// `f32` in, `f32` out. Only the entry points above use it, so the features are there: (T) holds in
/// every method.
struct Single;

impl Arithmetic for Single {
    type Lanes = __m256;
    type Word = f32;
    type Out = f32;
    const COUNT: usize = 8;

    #[inline(always)]
    fn zero() -> __m256 {
        // SAFETY: (T).
        unsafe { _mm256_setzero_ps() }
    }

    #[inline(always)]
    fn splat(word: f32) -> __m256 {
        // SAFETY: (T).
        unsafe { _mm256_set1_ps(word) }
    }

    #[inline(always)]
    unsafe fn load(source: *const f32) -> __m256 {
        // SAFETY: (T), and the caller vouches for the memory.
        unsafe { _mm256_loadu_ps(source) }
    }

    #[inline(always)]
    unsafe fn load_sums(source: *const f32) -> __m256 {
        // SAFETY: (T), and the caller vouches for the memory.
        unsafe { _mm256_loadu_ps(source) }
    }

    #[inline(always)]
    unsafe fn store_sums(sums: __m256, target: *mut f32) {
        // SAFETY: (T), and the caller vouches for the memory.
        unsafe { _mm256_storeu_ps(target, sums) }
    }

    #[inline(always)]
    fn multiply_add(words: __m256, factor: __m256, sum: __m256) -> __m256 {
        // SAFETY: (T).
        unsafe { _mm256_fmadd_ps(words, factor, sum) }
    }

    #[inline(always)]
    fn prefetch(source: *const u8) {
        // SAFETY: a hint; it reads nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(source.cast()) }
    }
}
