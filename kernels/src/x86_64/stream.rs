//! Rows that are written past the caches.

use ndarray::ArrayViewMut2;

use super::kernel::{Arithmetic, Enter, Kernel};
use super::rows::{LINE, Target};
use super::vector::Vector;
use crate::base::isa::Tier;
use crate::base::value::Value;

impl Tier {
    /// Copies rows past the caches.
    pub(crate) fn stream<T: Value>(self, source: &[T], mut target: ArrayViewMut2<T>) {
        let (target, columns) = (Target::rows(&mut target), target.ncols());
        let [row, width] = [target.stride, columns].map(|values| values * size_of::<T>());
        assert!(source.len() == target.rows * columns && width.is_multiple_of(LINE));
        assert!(target.start.addr().is_multiple_of(LINE) && row.is_multiple_of(LINE));
        self.enter(Stream { source: source.as_ptr().cast(), target, width });
    }
}

/// Rows of `width` bytes: whole cache lines, and at the boundaries of such in `target`.
struct Stream<T> {
    source: *const u8,
    target: Target<T>,
    width: usize,
}

impl<T: Value> Kernel<f32> for Stream<T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<A: Arithmetic<Word = f32>, const COLUMNS: usize, const ROWS: usize>(self) {
        let Self { mut source, target, width } = self;
        let vector = A::COUNT * size_of::<f32>();
        for row in 0..target.rows {
            // SAFETY: (B): a row of each; (T) from the caller.
            unsafe {
                let to = target.start.add(row * target.stride).cast::<u8>();
                for at in (0..width).step_by(vector) {
                    let values = A::Lanes::load::<f32>(source.add(at).cast());
                    values.stream(to.add(at).cast::<f32>());
                }
                source = source.add(width);
            }
        }
    }
}
