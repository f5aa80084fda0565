//! Weights transposed in registers, for the gradient by input.

use super::kernel::{Arithmetic, Enter, Kernel};
use super::vector::Vector;
use crate::base::isa::Tier;
use crate::base::panel::PANEL;

impl Tier {
    /// See [`crate::gemm::transpose`].
    pub(crate) fn transpose(
        self,
        source: &[f32],
        next: &[f32],
        target: &mut [f32],
        streamed: bool,
    ) {
        assert_eq!((source.len(), target.len()), (PANEL * PANEL, PANEL * PANEL));
        assert!(!streamed || target.as_ptr().addr().is_multiple_of(64));
        let (source, next, target) = (source.as_ptr(), next.as_ptr(), target.as_mut_ptr());
        self.enter(Transpose { source, next, target, streamed });
    }
}

/// 64 rows of 64 columns; what is written past the caches begins at a cache line.
struct Transpose {
    source: *const f32,
    next: *const f32,
    target: *mut f32,
    streamed: bool,
}

impl Kernel<f32> for Transpose {
    type Output = ();

    #[inline(always)]
    unsafe fn run<A: Arithmetic<Word = f32>, const COLUMNS: usize, const ROWS: usize>(self) {
        let count = A::COUNT;
        for row in (0..PANEL).step_by(count) {
            for column in (0..PANEL).step_by(count) {
                // As many cache lines of what comes next as this block has: block by block all of it.
                for line in (0..count * count).step_by(16) {
                    let at = row * PANEL + column * count + line;
                    A::Lanes::prefetch(self.next.wrapping_add(at).cast());
                }
                // SAFETY: (B): as many rows and columns inside both; (T) from the caller.
                unsafe {
                    let source = self.source.add(row * PANEL + column);
                    let target = self.target.add(column * PANEL + row);
                    A::Lanes::transpose(source, target, [PANEL, PANEL], self.streamed);
                }
            }
        }
    }
}
