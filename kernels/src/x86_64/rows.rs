//! Rows as raw pointers that were checked: where results go, and what will be read soon.

use ndarray::ArrayViewMut2;

use super::vector::Vector;
use crate::base::panel::{PANEL, Prefetch, PrefetchNext};

/// Bytes of a cache line.
pub(super) const LINE: usize = 64;

/// Where a block of `c` starts and how far its rows are apart.
pub(super) struct Target<T> {
    pub(super) start: *mut T,
    pub(super) rows: usize,
    pub(super) stride: usize,
}

impl<T> Clone for Target<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Target<T> {}

impl<T> Target<T> {
    /// Of 64 columns.
    pub(super) fn new(c: &mut ArrayViewMut2<T>) -> Self {
        assert_eq!(c.ncols(), PANEL);
        Self::rows(c)
    }

    /// Of any columns.
    pub(super) fn rows(c: &mut ArrayViewMut2<T>) -> Self {
        assert!(c.strides()[1] == 1 && c.strides()[0] >= 0);
        Self { start: c.as_mut_ptr(), rows: c.nrows(), stride: c.strides()[0].unsigned_abs() }
    }
}

impl Prefetch {
    /// Asks for a row.
    #[inline(always)]
    pub(super) fn prefetch<V: Vector>(&self, row: usize) {
        for start in self.starts.iter().flatten() {
            for line in (0..self.width).step_by(LINE) {
                V::prefetch(start.wrapping_add(row * self.stride + line));
            }
        }
    }
}

/// Rows of bytes that will be read soon, as many of them as a word covers at a time.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    pub(super) start: *const u8,
    /// Bytes from row to row.
    pub(super) stride: usize,
    pub(super) at_once: usize,
}

impl Rows {
    fn new<T>(data: &[T], stride: usize, at_once: usize) -> Self {
        Self { start: data.as_ptr().cast(), stride: stride * size_of::<T>(), at_once }
    }

    /// From another of the rows at once on, and `bytes` further right.
    pub(super) fn from(self, row: usize, bytes: usize) -> Self {
        let offset = row % self.at_once * self.stride + bytes;
        Self { start: self.start.wrapping_add(offset), ..self }
    }

    pub(super) fn next(self) -> Self {
        Self { start: self.start.wrapping_add(self.stride * self.at_once), ..self }
    }
}

/// What the next product will read.
#[derive(Clone, Copy)]
pub(super) struct Ahead {
    pub(super) a: Rows,
    /// Bytes of a value of `a`.
    pub(super) a_size: usize,
    pub(super) b: Rows,
    /// Cache lines of a row of `b`.
    pub(super) b_lines: usize,
}

impl<A, B> From<PrefetchNext<'_, A, B>> for Ahead {
    fn from(next: PrefetchNext<'_, A, B>) -> Self {
        let at_once = next.rows_at_once.max(1);
        Self {
            a: Rows::new(next.a, next.a_stride, at_once),
            a_size: size_of::<A>(),
            b: Rows::new(next.b, next.b_stride, at_once),
            b_lines: PANEL * size_of::<B>() / LINE,
        }
    }
}
