//! Sums over tiles, and masks, in vectors: what convolutions do to a tile before it leaves the cache.
//!
//! No fused multiply-add here: the sums have the same bits as those of the plain loops in `norm`.

use std::arch::x86_64::{__m256, __m512, _mm_sfence};

use ndarray::ArrayViewMut2;

use super::vector::Vector;
use super::{Avx2, Avx512, Target};
use crate::gemm::PANEL;
use crate::norm::Normalised;
use crate::tile::{Gate, SUMS, Tile};
use crate::value::Value;

/// Rows whose cache lines are asked for ahead.
const AHEAD: usize = 16;

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

        impl $token {
            /// Copies rows past the caches.
            pub(crate) fn stream<T: Value>(self, source: &[T], mut target: ArrayViewMut2<T>) {
                let (to, columns) = (Target::rows(&mut target), target.ncols());
                let vector = size_of::<$vector>();
                let [row, width] = [to.stride, columns].map(|values| values * size_of::<T>());
                assert!(source.len() == to.rows * columns && width.is_multiple_of(vector));
                assert!(to.start.addr().is_multiple_of(vector) && row.is_multiple_of(vector));
                // SAFETY: (T), (B).
                unsafe {
                    <$vector>::stream_rows::<T>(source.as_ptr().cast(), to, width);
                    // Other threads see it once they see what this one does next.
                    _mm_sfence();
                }
            }
        }

        impl Entry for $vector {
            #[target_feature(enable = $features)]
            unsafe fn stream_rows<T: Value>(
                mut source: *const u8,
                target: Target<T>,
                width: usize,
            ) {
                const SIZE: usize = size_of::<$vector>();
                for row in 0..target.rows {
                    // SAFETY: a row of each.
                    unsafe {
                        let to = target.start.add(row * target.stride).cast::<u8>();
                        for at in (0..width).step_by(SIZE) {
                            let values: $vector = source.add(at).cast::<$vector>().read_unaligned();
                            values.stream(to.add(at));
                        }
                        source = source.add(width);
                    }
                }
            }

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
    /// (T), and the rows of `width` bytes are readable and writable, whole vectors, those of `target` on
    /// their boundaries.
    unsafe fn stream_rows<T: Value>(source: *const u8, target: Target<T>, width: usize);
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
        // SAFETY: rows and columns of the tile and of what lies beside it.
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
                    V::prefetch(z.as_ptr().wrapping_add(ahead).cast());
                    let z = V::load(z.as_ptr().add(beside));
                    let target = place.values.add(row * place.stride + at(j));
                    let mut g = V::load(target.cast_const());
                    if GATE == 0 {
                        V::prefetch(y.as_ptr().wrapping_add(ahead).cast());
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
