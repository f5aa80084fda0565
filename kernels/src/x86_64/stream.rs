//! Rows that are written past the caches.

use std::arch::x86_64::{__m256, __m512};

use ndarray::ArrayViewMut2;

use super::vector::Vector;
use super::{Avx2, Avx512, Target};
use crate::base::value::Value;

macro_rules! entries {
    ($token:ty, $vector:ty, $features:literal) => {
        impl $token {
            /// Copies rows past the caches.
            pub(crate) fn stream<T: Value>(self, source: &[T], mut target: ArrayViewMut2<T>) {
                let (to, columns) = (Target::rows(&mut target), target.ncols());
                let vector = size_of::<$vector>();
                let [row, width] = [to.stride, columns].map(|values| values * size_of::<T>());
                assert!(source.len() == to.rows * columns && width.is_multiple_of(vector));
                assert!(to.start.addr().is_multiple_of(vector) && row.is_multiple_of(vector));
                // SAFETY: (T), (B).
                unsafe { <$vector>::stream_rows::<T>(source.as_ptr().cast(), to, width) }
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
                            values.stream(to.add(at).cast::<f32>());
                        }
                        source = source.add(width);
                    }
                }
            }
        }
    };
}

/// The function that carries the features.
trait Entry {
    /// # Safety
    /// (T), and the rows of `width` bytes are readable and writable, whole vectors, those of `target` on
    /// their boundaries.
    unsafe fn stream_rows<T: Value>(source: *const u8, target: Target<T>, width: usize);
}

entries!(Avx512, __m512, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma");
entries!(Avx2, __m256, "avx2,fma");
