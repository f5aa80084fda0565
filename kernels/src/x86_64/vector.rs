//! Vectors of `f32` of both widths under one name.

use std::arch::x86_64::*;

use crate::base::value::Value;

/// A vector of `f32`. Only entry points with its features use one: (T) holds in every method.
pub(super) trait Vector: Copy {
    /// Values of a vector.
    const COUNT: usize;
    fn zero() -> Self;
    fn splat(value: f32) -> Self;
    fn add(self, other: Self) -> Self;
    fn subtract(self, other: Self) -> Self;
    /// The larger one; `other` where one is no number.
    fn max(self, other: Self) -> Self;
    fn multiply(self, other: Self) -> Self;
    /// `self * factor + sum`, rounded once.
    fn multiply_add(self, factor: Self, sum: Self) -> Self;
    /// `other` where this is positive, else 0.
    fn gate(self, other: Self) -> Self;
    /// # Safety
    /// `COUNT` values are readable.
    unsafe fn load<T: Value>(source: *const T) -> Self;
    /// # Safety
    /// `COUNT` values are writable.
    unsafe fn store<T: Value>(self, target: *mut T);
    /// Stores past the caches.
    ///
    /// # Safety
    /// `COUNT` values are writable, on a boundary of as many bytes as they have.
    unsafe fn stream<T: Value>(self, target: *mut T);
    /// Transposes `COUNT` rows of as many columns, rows of both `stride` apart; past the caches if `streamed` is set.
    ///
    /// # Safety
    /// They are readable and writable; what is written past the caches is on a boundary as for [`Vector::stream`].
    unsafe fn transpose(source: *const f32, target: *mut f32, strides: [usize; 2], streamed: bool);
    /// Asks for the cache line of `source`, which may be anywhere, to the second-level cache.
    fn prefetch(source: *const u8);
    /// The same to the first-level cache.
    fn prefetch_near(source: *const u8);
}

/// `$name(arguments) -> result` by one intrinsic.
macro_rules! by {
    ($intrinsic:ident: $name:ident($($argument:ident: $type:ty),*)) => {
        #[inline(always)]
        fn $name($($argument: $type),*) -> Self {
            // SAFETY: (T).
            unsafe { $intrinsic($($argument),*) }
        }
    };
    ($intrinsic:ident: $name:ident(self $(, $argument:ident)*)) => {
        #[inline(always)]
        fn $name(self $(, $argument: Self)*) -> Self {
            // SAFETY: (T).
            unsafe { $intrinsic(self $(, $argument)*) }
        }
    };
}

/// Loads and stores of both formats: a format of 2 bytes is bfloat16.
macro_rules! memory {
    ($load:ident, $store:ident, $stream:ident, $widen:ident, $narrow:ident) => {
        #[inline(always)]
        unsafe fn stream<T: Value>(self, target: *mut T) {
            // SAFETY: (T), and the caller vouches for the memory.
            unsafe {
                if size_of::<T>() == size_of::<f32>() {
                    $stream(target.cast(), self);
                } else {
                    $narrow(self, target.cast());
                }
            }
        }

        #[inline(always)]
        unsafe fn load<T: Value>(source: *const T) -> Self {
            // SAFETY: (T), and the caller vouches for the memory.
            unsafe {
                if size_of::<T>() == size_of::<f32>() {
                    $load(source.cast())
                } else {
                    $widen(source.cast())
                }
            }
        }

        #[inline(always)]
        unsafe fn store<T: Value>(self, target: *mut T) {
            // SAFETY: (T), and the caller vouches for the memory.
            unsafe {
                if size_of::<T>() == size_of::<f32>() {
                    $store(target.cast(), self);
                } else {
                    $narrow(self, target.cast());
                }
            }
        }

        #[inline(always)]
        fn prefetch(source: *const u8) {
            // SAFETY: a hint; it reads nothing.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(source.cast()) }
        }

        #[inline(always)]
        fn prefetch_near(source: *const u8) {
            // SAFETY: a hint; it reads nothing.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(source.cast()) }
        }
    };
}

/// Transposition of a square of vectors that are loaded and stored row by row.
macro_rules! transpose {
    ($in_registers:ident) => {
        #[inline(always)]
        unsafe fn transpose(
            source: *const f32,
            target: *mut f32,
            [stride, target_stride]: [usize; 2],
            streamed: bool,
        ) {
            // SAFETY: (T), and the caller vouches for the memory.
            unsafe {
                let rows = std::array::from_fn(|i| Self::load(source.add(i * stride)));
                let columns = $in_registers(rows);
                for (i, column) in columns.into_iter().enumerate() {
                    let target = target.add(i * target_stride);
                    if streamed { column.stream(target) } else { column.store(target) }
                }
            }
        }
    };
}

impl Vector for __m512 {
    const COUNT: usize = 16;
    by!(_mm512_setzero_ps: zero());
    by!(_mm512_set1_ps: splat(value: f32));
    by!(_mm512_add_ps: add(self, other));
    by!(_mm512_sub_ps: subtract(self, other));
    by!(_mm512_max_ps: max(self, other));
    by!(_mm512_mul_ps: multiply(self, other));
    by!(_mm512_fmadd_ps: multiply_add(self, factor, sum));
    by!(gate_512: gate(self, other));
    transpose!(transpose_512);
    memory!(_mm512_loadu_ps, _mm512_storeu_ps, _mm512_stream_ps, widen_512, narrow_512);
}

impl Vector for __m256 {
    const COUNT: usize = 8;
    by!(_mm256_setzero_ps: zero());
    by!(_mm256_set1_ps: splat(value: f32));
    by!(_mm256_add_ps: add(self, other));
    by!(_mm256_sub_ps: subtract(self, other));
    by!(_mm256_max_ps: max(self, other));
    by!(_mm256_mul_ps: multiply(self, other));
    by!(_mm256_fmadd_ps: multiply_add(self, factor, sum));
    by!(gate_256: gate(self, other));
    transpose!(transpose_256);
    memory!(_mm256_loadu_ps, _mm256_storeu_ps, _mm256_stream_ps, widen_256, narrow_256);
}

/// # Safety
/// (T).
#[inline(always)]
unsafe fn gate_512(open: __m512, value: __m512) -> __m512 {
    // SAFETY: (T).
    unsafe {
        let open = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(open, _mm512_setzero_ps());
        _mm512_maskz_mov_ps(open, value)
    }
}

/// # Safety
/// (T).
#[inline(always)]
unsafe fn gate_256(open: __m256, value: __m256) -> __m256 {
    // SAFETY: (T).
    unsafe { _mm256_and_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(open, _mm256_setzero_ps()), value) }
}

/// Sixteen bfloat16 as `f32`.
///
/// # Safety
/// (T), and they are readable.
#[inline(always)]
unsafe fn widen_512(source: *const u16) -> __m512 {
    // SAFETY: (T), and the caller vouches for the memory.
    unsafe {
        let halves = _mm512_cvtepu16_epi32(_mm256_loadu_si256(source.cast()));
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(halves))
    }
}

/// Eight bfloat16 as `f32`.
///
/// # Safety
/// (T), and they are readable.
#[inline(always)]
unsafe fn widen_256(source: *const u16) -> __m256 {
    // SAFETY: (T), and the caller vouches for the memory.
    unsafe {
        let halves = _mm256_cvtepu16_epi32(_mm_loadu_si128(source.cast()));
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(halves))
    }
}

/// Rounds sixteen values as `Bf16::narrow` does.
///
/// # Safety
/// (T), and they are writable.
#[inline(always)]
unsafe fn narrow_512(values: __m512, target: *mut u16) {
    // SAFETY: (T), and the caller vouches for the memory.
    unsafe {
        let bits = _mm512_castps_si512(values);
        let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
        let bias = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF));
        let rounded = _mm512_srli_epi32::<16>(_mm512_add_epi32(bits, bias));
        _mm256_storeu_si256(target.cast(), _mm512_cvtepi32_epi16(rounded));
    }
}

/// Rounds eight values as `Bf16::narrow` does.
///
/// # Safety
/// (T), and they are writable.
#[inline(always)]
unsafe fn narrow_256(values: __m256, target: *mut u16) {
    // SAFETY: (T), and the caller vouches for the memory.
    unsafe {
        let bits = _mm256_castps_si256(values);
        let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
        let bias = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF));
        let rounded = _mm256_srli_epi32::<16>(_mm256_add_epi32(bits, bias));
        let halves = (_mm256_castsi256_si128(rounded), _mm256_extracti128_si256::<1>(rounded));
        _mm_storeu_si128(target.cast(), _mm_packus_epi32(halves.0, halves.1));
    }
}

/// Sixteen rows to sixteen columns.
///
/// # Safety
/// (T).
#[inline(always)]
unsafe fn transpose_512(mut a: [__m512; 16]) -> [__m512; 16] {
    // SAFETY: (T).
    unsafe {
        let mut b = [_mm512_setzero_ps(); 16];
        // Pairs of rows, then fours: within each quarter of a vector.
        for i in (0..16).step_by(2) {
            b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
            b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
        }
        for i in (0..16).step_by(4) {
            for half in 0..2 {
                let low = _mm512_castps_pd(b[i + half]);
                let high = _mm512_castps_pd(b[i + half + 2]);
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
        a
    }
}

/// Eight rows to eight columns.
///
/// # Safety
/// (T).
#[inline(always)]
unsafe fn transpose_256(a: [__m256; 8]) -> [__m256; 8] {
    // SAFETY: (T).
    unsafe {
        let mut b = [_mm256_setzero_ps(); 8];
        let mut c = b;
        // Pairs of rows, then fours: within each half of a vector.
        for i in (0..8).step_by(2) {
            b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
            b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
        }
        for i in (0..8).step_by(4) {
            for half in 0..2 {
                let (low, high) = (b[i + half], b[i + half + 2]);
                c[i + 2 * half] = _mm256_shuffle_ps::<0x44>(low, high);
                c[i + 2 * half + 1] = _mm256_shuffle_ps::<0xEE>(low, high);
            }
        }
        // Halves of rows 4 apart.
        for i in 0..4 {
            b[i] = _mm256_permute2f128_ps::<0x20>(c[i], c[i + 4]);
            b[i + 4] = _mm256_permute2f128_ps::<0x31>(c[i], c[i + 4]);
        }
        b
    }
}
