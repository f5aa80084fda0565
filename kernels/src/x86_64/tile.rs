//! Sums over tiles, and masks, in vectors: what convolutions do to a tile before it leaves the cache.
//!
//! No fused multiply-add here: the sums have the same bits as those of the plain loops in `norm`.

use std::arch::x86_64::*;

use super::{Avx2, Avx512};
use crate::gemm::PANEL;
use crate::norm::Normalised;
use crate::tile::{Gate, SUMS, Tile};
use crate::value::Value;

/// Rows whose cache lines are asked for ahead.
const AHEAD: usize = 16;

/// Vectors of `f32`.
pub(super) trait Vector: Copy {
    const COUNT: usize;
    fn zero() -> Self;
    fn splat(value: f32) -> Self;
    fn add(self, other: Self) -> Self;
    fn subtract(self, other: Self) -> Self;
    fn multiply(self, other: Self) -> Self;
    /// `other` where this is positive, else 0.
    fn gate(self, other: Self) -> Self;
    /// # Safety
    /// `COUNT` values are readable.
    unsafe fn load<T: Value>(source: *const T) -> Self;
    /// # Safety
    /// `COUNT` values are writable.
    unsafe fn store<T: Value>(self, target: *mut T);
}

/// Raw pointers to a tile and what lies beside it, all checked.
struct Place<T> {
    values: *mut T,
    stride: usize,
    rows: usize,
    sums: *mut f32,
    sums_stride: usize,
}

impl<T: Value> Place<T> {
    fn new(tile: &mut Tile<T>) -> Self {
        let (values, sums) = (&mut tile.values, &mut tile.sums);
        assert!(values.ncols() == PANEL && values.strides()[1] == 1 && values.strides()[0] >= 0);
        assert!(sums.dim() == (SUMS, PANEL) && sums.strides()[1] == 1 && sums.strides()[0] >= 0);
        Self {
            stride: values.strides()[0].unsigned_abs(),
            rows: values.nrows(),
            sums_stride: sums.strides()[0].unsigned_abs(),
            values: values.as_mut_ptr(),
            sums: sums.as_mut_ptr(),
        }
    }
}

/// The part of `z` that lies beside a tile.
fn beside<'a, T>(z: &'a [T], channels: usize, tile: &Tile<T>) -> &'a [T] {
    let z = &z[tile.row * channels + tile.channel..];
    assert!(tile.values.nrows() == 0 || (tile.values.nrows() - 1) * channels + PANEL <= z.len());
    z
}

macro_rules! entries {
    ($token:ty, $vector:ty, $count:literal, $features:literal) => {
        impl $token {
            /// Sums of `values - pivot` and of their squares.
            pub(crate) fn measure<T: Value>(self, pivot: &[f32], mut tile: Tile<T>) {
                let pivot: &[f32; PANEL] = pivot[tile.channel..].first_chunk().expect("a panel");
                let place = Place::new(&mut tile);
                // SAFETY: (T), (B).
                unsafe { <$vector>::measure(pivot, place) }
            }

            /// Clears what the gate stops, and sums `g` (where `first`) and `g*(z-mean)` as number
            /// `which`.
            pub(crate) fn mask<T: Value>(
                self,
                gate: Gate<T>,
                of: Normalised<T>,
                (first, which): (bool, usize),
                tile: &mut Tile<T>,
            ) {
                assert!(which < SUMS);
                let (channels, from) = (of.mean.len(), tile.channel);
                let z = beside(of.z, channels, tile);
                let gate = match gate {
                    Gate::Output(y) => Gate::Output(beside(y, channels, tile)),
                    Gate::Folded(a, b) => Gate::Folded(&a[from..][..PANEL], &b[from..][..PANEL]),
                    Gate::Open => Gate::Open,
                };
                let mean: &[f32; PANEL] = of.mean[from..].first_chunk().expect("a panel");
                let place = Place::new(tile);
                // SAFETY: (T), (B).
                unsafe { <$vector>::mask(gate, (z, channels), mean, (first, which), place) }
            }
        }

        impl Entry for $vector {
            #[target_feature(enable = $features)]
            unsafe fn measure<T: Value>(pivot: &[f32; PANEL], place: Place<T>) {
                // SAFETY: passed on.
                unsafe { measure::<$vector, T, $count>(pivot, place) }
            }

            #[target_feature(enable = $features)]
            unsafe fn mask<T: Value>(
                gate: Gate<T>,
                z: (&[T], usize),
                mean: &[f32; PANEL],
                which: (bool, usize),
                place: Place<T>,
            ) {
                // SAFETY: passed on.
                unsafe {
                    match gate {
                        Gate::Output(_) => {
                            mask::<$vector, T, $count, 0>(gate, z, mean, which, place);
                        }
                        Gate::Folded(..) => {
                            mask::<$vector, T, $count, 1>(gate, z, mean, which, place);
                        }
                        Gate::Open => mask::<$vector, T, $count, 2>(gate, z, mean, which, place),
                    }
                }
            }
        }
    };
}

/// The functions that carry the features.
trait Entry {
    /// # Safety
    /// (T), and the place is one of rows of 64 values.
    unsafe fn measure<T: Value>(pivot: &[f32; PANEL], place: Place<T>);
    /// # Safety
    /// As above, and all rows beside it are readable.
    unsafe fn mask<T: Value>(
        gate: Gate<T>,
        z: (&[T], usize),
        mean: &[f32; PANEL],
        which: (bool, usize),
        place: Place<T>,
    );
}

entries!(Avx512, __m512, 4, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma");
entries!(Avx2, __m256, 2, "avx2,fma");

/// # Safety
/// The place has rows of 64 values and sums; the features of `V` are there.
#[inline(always)]
unsafe fn measure<V: Vector, T: Value, const NV: usize>(pivot: &[f32; PANEL], place: Place<T>) {
    for column in (0..PANEL).step_by(NV * V::COUNT) {
        // SAFETY: rows and columns of the tile.
        unsafe {
            let at = |j: usize| column + j * V::COUNT;
            let mut pivots = [V::zero(); NV];
            for j in 0..NV {
                pivots[j] = V::load(pivot.as_ptr().add(at(j)));
            }
            let mut sums = [[V::zero(); NV]; 2];
            for row in 0..place.rows {
                for j in 0..NV {
                    let z = V::load(place.values.add(row * place.stride + at(j)).cast_const());
                    let deviation = z.subtract(pivots[j]);
                    sums[0][j] = sums[0][j].add(deviation);
                    sums[1][j] = sums[1][j].add(deviation.multiply(deviation));
                }
            }
            for (which, sums) in sums.into_iter().enumerate() {
                for j in 0..NV {
                    sums[j].store(place.sums.add(which * place.sums_stride + at(j)));
                }
            }
        }
    }
}

/// # Safety
/// As [`measure`], and the slices beside the tile have its rows, `channels` apart. `GATE` is the gate's
/// kind.
#[inline(always)]
unsafe fn mask<V: Vector, T: Value, const NV: usize, const GATE: usize>(
    gate: Gate<T>,
    (z, channels): (&[T], usize),
    mean: &[f32; PANEL],
    (first, which): (bool, usize),
    place: Place<T>,
) {
    let (y, scale, shift) = match gate {
        Gate::Output(y) => (y, &mean[..], &mean[..]),
        Gate::Folded(scale, shift) => (z, scale, shift),
        Gate::Open => (z, &mean[..], &mean[..]),
    };
    for column in (0..PANEL).step_by(NV * V::COUNT) {
        // SAFETY: rows and columns of the tile and of what lies beside it; a prefetch reads nothing.
        unsafe {
            let at = |j: usize| column + j * V::COUNT;
            let mut constants = [[V::zero(); NV]; 3];
            for (constants, source) in constants.iter_mut().zip([&mean[..], scale, shift]) {
                for j in 0..NV {
                    constants[j] = V::load(source.as_ptr().add(at(j)));
                }
            }
            let [means, scales, shifts] = constants;
            let mut sums = [[V::zero(); NV]; 2];
            for row in 0..place.rows {
                for j in 0..NV {
                    let beside = row * channels + at(j);
                    let ahead = beside + AHEAD * channels;
                    _mm_prefetch::<_MM_HINT_T0>(z.as_ptr().wrapping_add(ahead).cast());
                    let z = V::load(z.as_ptr().add(beside));
                    let target = place.values.add(row * place.stride + at(j));
                    let mut g = V::load(target.cast_const());
                    if GATE == 0 {
                        _mm_prefetch::<_MM_HINT_T0>(y.as_ptr().wrapping_add(ahead).cast());
                        g = V::load(y.as_ptr().add(beside)).gate(g);
                    } else if GATE == 1 {
                        g = z.multiply(scales[j]).add(shifts[j]).gate(g);
                    }
                    if GATE < 2 {
                        g.store(target);
                    }
                    sums[0][j] = sums[0][j].add(g);
                    sums[1][j] = sums[1][j].add(g.multiply(z.subtract(means[j])));
                }
            }
            for j in 0..NV {
                if first {
                    sums[0][j].store(place.sums.add(at(j)));
                }
                sums[1][j].store(place.sums.add(which * place.sums_stride + at(j)));
            }
        }
    }
}

// Only the entries use these, so the features are there: (T) holds in every method.
impl Vector for __m512 {
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
    fn add(self, other: Self) -> Self {
        // SAFETY: (T).
        unsafe { _mm512_add_ps(self, other) }
    }

    #[inline(always)]
    fn subtract(self, other: Self) -> Self {
        // SAFETY: (T).
        unsafe { _mm512_sub_ps(self, other) }
    }

    #[inline(always)]
    fn multiply(self, other: Self) -> Self {
        // SAFETY: (T).
        unsafe { _mm512_mul_ps(self, other) }
    }

    #[inline(always)]
    fn gate(self, other: Self) -> Self {
        // SAFETY: (T).
        unsafe {
            let open = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(self, _mm512_setzero_ps());
            _mm512_maskz_mov_ps(open, other)
        }
    }

    #[inline(always)]
    unsafe fn load<T: Value>(source: *const T) -> Self {
        // SAFETY: (T), and the caller vouches for the memory; a format of 2 bytes is bfloat16.
        unsafe {
            if size_of::<T>() == size_of::<f32>() {
                return _mm512_loadu_ps(source.cast());
            }
            let halves = _mm512_cvtepu16_epi32(_mm256_loadu_si256(source.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(halves))
        }
    }

    #[inline(always)]
    unsafe fn store<T: Value>(self, target: *mut T) {
        // SAFETY: as above.
        unsafe {
            if size_of::<T>() == size_of::<f32>() {
                return _mm512_storeu_ps(target.cast(), self);
            }
            // Rounded as `Bf16::narrow` does.
            let bits = _mm512_castps_si512(self);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let bias = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF));
            let rounded = _mm512_srli_epi32::<16>(_mm512_add_epi32(bits, bias));
            _mm256_storeu_si256(target.cast(), _mm512_cvtepi32_epi16(rounded));
        }
    }
}

impl Vector for __m256 {
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
    fn add(self, other: Self) -> Self {
        // SAFETY: (T).
        unsafe { _mm256_add_ps(self, other) }
    }

    #[inline(always)]
    fn subtract(self, other: Self) -> Self {
        // SAFETY: (T).
        unsafe { _mm256_sub_ps(self, other) }
    }

    #[inline(always)]
    fn multiply(self, other: Self) -> Self {
        // SAFETY: (T).
        unsafe { _mm256_mul_ps(self, other) }
    }

    #[inline(always)]
    fn gate(self, other: Self) -> Self {
        // SAFETY: (T).
        unsafe {
            let open = _mm256_cmp_ps::<_CMP_GT_OQ>(self, _mm256_setzero_ps());
            _mm256_and_ps(open, other)
        }
    }

    #[inline(always)]
    unsafe fn load<T: Value>(source: *const T) -> Self {
        // SAFETY: (T), and the caller vouches for the memory; a format of 2 bytes is bfloat16.
        unsafe {
            if size_of::<T>() == size_of::<f32>() {
                return _mm256_loadu_ps(source.cast());
            }
            let halves = _mm256_cvtepu16_epi32(_mm_loadu_si128(source.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(halves))
        }
    }

    #[inline(always)]
    unsafe fn store<T: Value>(self, target: *mut T) {
        // SAFETY: as above.
        unsafe {
            if size_of::<T>() == size_of::<f32>() {
                return _mm256_storeu_ps(target.cast(), self);
            }
            // Rounded as `Bf16::narrow` does.
            let bits = _mm256_castps_si256(self);
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            let bias = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF));
            let rounded = _mm256_srli_epi32::<16>(_mm256_add_epi32(bits, bias));
            let (low, high) =
                (_mm256_castsi256_si128(rounded), _mm256_extracti128_si256::<1>(rounded));
            _mm_storeu_si128(target.cast(), _mm_packus_epi32(low, high));
        }
    }
}
