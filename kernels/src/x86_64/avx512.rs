//! The entry points of AVX-512 (F, BW, DQ, VL).

use std::arch::x86_64::*;

use ndarray::ArrayViewMut2;

use super::epilogue::End;
use super::vector::Vector;
use super::{Ahead, Arithmetic, Group, PIECES_MAX, Piece, Single, Target, for_each_group};
use crate::base::tile::Tile;
use crate::base::value::Value;
use crate::gemm::epilogue::Ending;
use crate::gemm::{Beside, DEPTH, Matrix, Next, PANEL, Products, Term};

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
    pub(crate) fn chain(self, rounds: usize) -> usize {
        // SAFETY: (T).
        2 * Single::<__m512>::COUNT * unsafe { chain(rounds) }
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

    /// See [`crate::gemm::turn`].
    pub(crate) fn turn(self, source: &[f32], next: &[f32], target: &mut [f32], streamed: bool) {
        assert_eq!((source.len(), target.len()), (PANEL * PANEL, PANEL * PANEL));
        assert!(!streamed || target.as_ptr().addr().is_multiple_of(64));
        // SAFETY: (T), (B).
        unsafe {
            if streamed {
                turn::<true>(source, next.as_ptr(), target);
            } else {
                turn::<false>(source, next.as_ptr(), target);
            }
        }
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

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
fn run<R>(body: impl FnOnce() -> R) -> R {
    body()
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
fn chain(rounds: usize) -> usize {
    super::chain::<Single<__m512>>(rounds, 0.5)
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn tiles<T: Value>(pieces: &[Piece<f32>], shape: [usize; 3], group: Group<T>) {
    // SAFETY: passed on.
    unsafe { super::tiles::<Single<__m512>, T, 4>(pieces, shape, group) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn tiles_transposed(
    a: Matrix<f32>,
    b: &[f32],
    next: Ahead,
    c: Target<f32>,
    accumulate: bool,
) {
    // SAFETY: passed on.
    unsafe { super::tiles_transposed::<Single<__m512>, 12, 2>(a, b, next, c, accumulate) }
}

/// # Safety
/// Both are 64 rows of 64 columns; what is written past the caches begins at a cache line.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn turn<const STREAMED: bool>(source: &[f32], next: *const f32, target: &mut [f32]) {
    for row in (0..PANEL).step_by(16) {
        for column in (0..PANEL).step_by(16) {
            for line in 0..16 {
                __m512::prefetch(next.wrapping_add(row * PANEL + (column + line) * 16).cast());
            }
            // SAFETY: sixteen rows of sixteen columns inside both.
            unsafe {
                let source = source.as_ptr().add(row * PANEL + column);
                let target = target.as_mut_ptr().add(column * PANEL + row);
                turn_block::<STREAMED>(source, target);
            }
        }
    }
}

/// Transposes 16 rows of 16 columns, both 64 apart.
///
/// # Safety
/// The rows are readable at `source` and writable at `target`, at cache lines where it is past the caches.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn turn_block<const STREAMED: bool>(source: *const f32, target: *mut f32) {
    let mut a = [_mm512_setzero_ps(); 16];
    let mut b = a;
    // SAFETY: the caller vouches for the memory.
    unsafe {
        for (i, a) in a.iter_mut().enumerate() {
            *a = _mm512_loadu_ps(source.add(i * PANEL));
        }
        // Pairs of rows, then fours: within each quarter of a vector.
        for i in (0..16).step_by(2) {
            b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
            b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
        }
        for i in (0..16).step_by(4) {
            for half in 0..2 {
                let [low, high] = [b[i + half], b[i + half + 2]].map(|b| _mm512_castps_pd(b));
                a[i + 2 * half] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
                a[i + 2 * half + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
            }
        }
        // Quarters of rows 4 apart, then of rows 8 apart.
        for i in 0..4 {
            b[i] = _mm512_shuffle_f32x4::<0x88>(a[i], a[i + 4]);
            b[i + 4] = _mm512_shuffle_f32x4::<0xDD>(a[i], a[i + 4]);
            b[i + 8] = _mm512_shuffle_f32x4::<0x88>(a[i + 8], a[i + 12]);
            b[i + 12] = _mm512_shuffle_f32x4::<0xDD>(a[i + 8], a[i + 12]);
        }
        for i in 0..4 {
            a[i] = _mm512_shuffle_f32x4::<0x88>(b[i], b[i + 8]);
            a[i + 8] = _mm512_shuffle_f32x4::<0xDD>(b[i], b[i + 8]);
            a[i + 4] = _mm512_shuffle_f32x4::<0x88>(b[i + 4], b[i + 12]);
            a[i + 12] = _mm512_shuffle_f32x4::<0xDD>(b[i + 4], b[i + 12]);
        }
        for (i, a) in a.into_iter().enumerate() {
            if STREAMED {
                _mm512_stream_ps(target.add(i * PANEL), a);
            } else {
                _mm512_storeu_ps(target.add(i * PANEL), a);
            }
        }
    }
}
