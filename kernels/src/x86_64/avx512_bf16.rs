//! The entry points of AVX512-BF16: products of pairs, summed in `f32`.

use std::arch::x86_64::*;
use std::marker::PhantomData;

use ndarray::ArrayViewMut2;

use super::vector::widen_512;
use super::{Ahead, Arithmetic, Avx512, Columns, Piece, Target, for_each_group};
use crate::gemm::{Beside, Matrix, Next, PANEL, Term};
use crate::value::{Bf16, Product};

/// Proof that this CPU has AVX512-BF16 besides AVX-512.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Avx512Bf16(());

impl Avx512Bf16 {
    /// The token, if the CPU has the instructions.
    pub(crate) fn detect(_: Avx512) -> Option<Self> {
        is_x86_feature_detected!("avx512bf16").then_some(Self(()))
    }

    /// Operations of `rounds` of multiply-add on registers alone.
    pub(crate) fn chain(self, rounds: usize) -> usize {
        // SAFETY: (T).
        2 * Bf16::WORD * Pairs::<f32>::COUNT * unsafe { chain(rounds) }
    }

    pub(crate) fn multiply(
        self,
        terms: &[Term<Bf16>],
        (k, stride): (usize, usize),
        mut c: ArrayViewMut2<Bf16>,
        accumulate: bool,
        beside: Beside<Bf16>,
    ) {
        let target = Target::new(&mut c);
        let (shape, beside) = ((target.rows, k, stride), beside.into());
        // One group: the sums of several could not be kept in `c`.
        assert!(terms.len() <= super::PIECES_MAX);
        for_each_group(terms, shape, usize::MAX, accumulate, |pieces, accumulate| {
            // SAFETY: (T), (B).
            unsafe { tiles(pieces, stride / Bf16::WORD, target, accumulate, beside) }
        });
    }

    /// See [`crate::gemm::interleave`], which has checked the lengths; `width` is a multiple of 32.
    pub(crate) fn interleave(self, a: Matrix<Bf16>, width: usize, target: &mut [u32]) {
        assert!(a.fits() && a.cols.is_multiple_of(width) && width.is_multiple_of(WORDS));
        assert_eq!(target.len(), a.rows.div_ceil(2) * a.cols);
        // SAFETY: (T), (B).
        unsafe { interleave(a, width, target) }
    }

    /// Rows of 64 columns, two by two, as rows of 64 words.
    pub(crate) fn pair_rows(self, rows: &[f32], words: &mut [Bf16]) {
        assert!(rows.len() == words.len() && rows.len().is_multiple_of(2 * PANEL));
        // SAFETY: (T), (B).
        unsafe { pair_rows(rows, words) }
    }

    pub(crate) fn multiply_transposed(
        self,
        a: Matrix<u32>,
        b: &[u32],
        next: Next<Bf16, impl Copy>,
        mut c: ArrayViewMut2<f32>,
        accumulate: bool,
    ) {
        assert!(a.fits() && b.len() >= a.rows * PANEL);
        // SAFETY: (T), (B).
        unsafe { tiles_transposed(a, b, next.into(), Target::new(&mut c), accumulate) }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
fn chain(rounds: usize) -> usize {
    super::chain::<Pairs<f32>>(rounds, 0x3F00_3F00)
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
unsafe fn tiles(
    pieces: &[Piece<u32>],
    stride: usize,
    c: Target<Bf16>,
    accumulate: bool,
    beside: Columns,
) {
    // SAFETY: passed on.
    unsafe { super::tiles::<Pairs<Bf16>, 4>(pieces, stride, c, accumulate, beside) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
unsafe fn tiles_transposed(
    a: Matrix<u32>,
    b: &[u32],
    next: Ahead,
    c: Target<f32>,
    accumulate: bool,
) {
    // SAFETY: passed on.
    unsafe { super::tiles_transposed::<Pairs<f32>, 12, 2>(a, b, next, c, accumulate) }
}

/// Columns that are interleaved at a time.
const WORDS: usize = 32;

/// # Safety
/// All rows of `a` are readable, and `target` has room for their pairs, in strips of `width` columns,
/// which is a multiple of 32 and divides the columns of `a`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
unsafe fn interleave(a: Matrix<Bf16>, width: usize, target: &mut [u32]) {
    let pairs = a.rows.div_ceil(2);
    // Words 0 to 15 take the lower halves of both rows in turn, words 16 to 31 the upper ones.
    let order: [[u16; WORDS]; 2] = std::array::from_fn(|half| {
        std::array::from_fn(|i| (16 * half + i / 2 + i % 2 * WORDS) as u16)
    });
    // SAFETY: whole vectors of arrays; then rows and strips as the caller vouches for.
    unsafe {
        let order = order.map(|order| _mm512_loadu_si512(order.as_ptr().cast()));
        for pair in 0..pairs {
            let first = a.data.as_ptr().add(2 * pair * a.stride);
            let second = first.wrapping_add(a.stride);
            for column in (0..a.cols).step_by(WORDS) {
                let even = _mm512_loadu_si512(first.add(column).cast());
                let odd = if 2 * pair + 1 < a.rows {
                    _mm512_loadu_si512(second.add(column).cast())
                } else {
                    _mm512_setzero_si512()
                };
                let strip = column / width * pairs * width;
                let words = target.as_mut_ptr().add(strip + pair * width + column % width);
                let low = _mm512_permutex2var_epi16(even, order[0], odd);
                let high = _mm512_permutex2var_epi16(even, order[1], odd);
                _mm512_storeu_si512(words.cast(), low);
                _mm512_storeu_si512(words.add(WORDS / 2).cast(), high);
            }
        }
    }
}

/// # Safety
/// Both have as many whole pairs of rows of 64 columns.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
unsafe fn pair_rows(rows: &[f32], words: &mut [Bf16]) {
    for at in (0..rows.len()).step_by(2 * PANEL) {
        for column in (0..PANEL).step_by(16) {
            // SAFETY: sixteen columns of a pair of rows; the two vector types have 32 bytes.
            unsafe {
                let even = rows.as_ptr().add(at + column);
                let [even, odd] = [even, even.add(PANEL)].map(|row| {
                    let rounded = _mm512_cvtneps_pbh(_mm512_loadu_ps(row));
                    _mm512_cvtepu16_epi32(std::mem::transmute::<__m256bh, __m256i>(rounded))
                });
                let pairs = _mm512_or_si512(even, _mm512_slli_epi32::<16>(odd));
                _mm512_storeu_si512(words.as_mut_ptr().add(at + 2 * column).cast(), pairs);
            }
        }
    }
}

/// How sixteen sums are kept in memory.
trait Stored: Copy {
    /// # Safety
    /// Sixteen values are readable at `source`.
    unsafe fn load(source: *const Self) -> __m512;
    /// # Safety
    /// Sixteen values are writable at `target`.
    unsafe fn store(sums: __m512, target: *mut Self);
}

impl Stored for f32 {
    #[inline(always)]
    unsafe fn load(source: *const f32) -> __m512 {
        // SAFETY: (T), and the caller vouches for the memory.
        unsafe { _mm512_loadu_ps(source) }
    }

    #[inline(always)]
    unsafe fn store(sums: __m512, target: *mut f32) {
        // SAFETY: (T), and the caller vouches for the memory.
        unsafe { _mm512_storeu_ps(target, sums) }
    }
}

impl Stored for Bf16 {
    #[inline(always)]
    unsafe fn load(source: *const Bf16) -> __m512 {
        // SAFETY: passed on.
        unsafe { widen_512(source.cast()) }
    }

    #[inline(always)]
    unsafe fn store(sums: __m512, target: *mut Bf16) {
        // SAFETY: (T), and the caller vouches for the memory; the two vector types have 32 bytes.
        unsafe {
            let rounded = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(sums));
            _mm256_storeu_si256(target.cast(), rounded);
        }
    }
}

/// Pairs of bfloat16 in, `S` out. Only the entry points above use it: (T) holds in every method.
struct Pairs<S>(PhantomData<S>);

impl<S: Stored> Arithmetic for Pairs<S> {
    type Lanes = __m512;
    type Word = u32;
    type Out = S;
    const COUNT: usize = 16;

    #[inline(always)]
    fn zero() -> __m512 {
        // SAFETY: (T).
        unsafe { _mm512_setzero_ps() }
    }

    #[inline(always)]
    fn splat(word: u32) -> __m512 {
        // SAFETY: (T).
        unsafe { _mm512_castsi512_ps(_mm512_set1_epi32(word.cast_signed())) }
    }

    #[inline(always)]
    unsafe fn load(source: *const u32) -> __m512 {
        // SAFETY: (T), and the caller vouches for the memory.
        unsafe { _mm512_loadu_ps(source.cast()) }
    }

    #[inline(always)]
    unsafe fn load_sums(source: *const S) -> __m512 {
        // SAFETY: passed on.
        unsafe { S::load(source) }
    }

    #[inline(always)]
    unsafe fn store_sums(sums: __m512, target: *mut S) {
        // SAFETY: passed on.
        unsafe { S::store(sums, target) }
    }

    #[inline(always)]
    fn multiply_add(words: __m512, factor: __m512, sum: __m512) -> __m512 {
        // SAFETY: (T); vectors of 64 bytes, read as pairs of bfloat16.
        unsafe {
            let words = std::mem::transmute::<__m512, __m512bh>(words);
            let factor = std::mem::transmute::<__m512, __m512bh>(factor);
            _mm512_dpbf16_ps(sum, words, factor)
        }
    }

    #[inline(always)]
    fn prefetch(source: *const u8) {
        // SAFETY: a hint; it reads nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(source.cast()) }
    }
}
