//! The entry of AVX512-BF16: products of pairs, summed in `f32`; and rows made into pairs.

use std::arch::x86_64::*;

use super::kernel::{Arithmetic, Enter, Kernel};
use crate::base::isa::Avx512Bf16;
use crate::base::panel::{Matrix, PANEL};
use crate::base::value::{Bf16, Value};

impl Enter<u32> for Avx512Bf16 {
    #[inline]
    fn enter<K: Kernel<u32>>(self, kernel: K) -> K::Output {
        // SAFETY: (T).
        unsafe { enter(kernel) }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
fn enter<K: Kernel<u32>>(kernel: K) -> K::Output {
    // SAFETY: the features are enabled here.
    unsafe { kernel.run::<Pairs, 4, 12>() }
}

impl Avx512Bf16 {
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

/// Products of pairs of bfloat16. Only the entry points above use it: (T) holds in every method.
struct Pairs;

impl Arithmetic for Pairs {
    type Lanes = __m512;
    type Word = u32;

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
    fn multiply_add(words: __m512, factor: __m512, sum: __m512) -> __m512 {
        // SAFETY: (T); vectors of 64 bytes, read as pairs of bfloat16.
        unsafe {
            let words = std::mem::transmute::<__m512, __m512bh>(words);
            let factor = std::mem::transmute::<__m512, __m512bh>(factor);
            _mm512_dpbf16_ps(sum, words, factor)
        }
    }

    #[inline(always)]
    unsafe fn store<T: Value>(sums: __m512, target: *mut T) {
        // SAFETY: (T), and the caller vouches for the memory; the two vector types have 32 bytes.
        unsafe {
            if size_of::<T>() == size_of::<f32>() {
                _mm512_storeu_ps(target.cast(), sums);
            } else {
                let rounded = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(sums));
                _mm256_storeu_si256(target.cast(), rounded);
            }
        }
    }

    #[inline(always)]
    unsafe fn stream<T: Value, const NV: usize>(sums: &[__m512; NV], target: *mut T) {
        const { assert!(size_of::<T>() == size_of::<Bf16>() && NV.is_multiple_of(2)) };
        for j in (0..NV).step_by(2) {
            // SAFETY: (T), and the caller vouches for the memory; both vector types have 64 bytes.
            unsafe {
                let rounded = _mm512_cvtne2ps_pbh(sums[j + 1], sums[j]);
                let rounded = std::mem::transmute::<__m512bh, __m512i>(rounded);
                _mm512_stream_si512(target.add(j * Self::COUNT).cast(), rounded);
            }
        }
    }
}
