//! What matrix products are cut into: panels, strips, matrices inside slices, and hints of what is read next.

use ndarray::{ArrayView2, ShapeBuilder};

/// Columns of a panel: channels of one block of weights. Six rows of it fill 24 of AVX-512's 32 registers.
pub const PANEL: usize = 64;

/// Columns of a strip: half a panel, so that 128 rows of it fill half of a first-level cache of 32 KiB.
pub(crate) const STRIP: usize = 32;

/// A matrix inside a slice: `rows` rows of `cols` values, `stride` apart.
#[derive(Clone, Copy)]
pub struct Matrix<'a, T> {
    pub(crate) data: &'a [T],
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) stride: usize,
}

/// Rows inside a slice, so many values apart; how many and how long they are is known to who reads them.
#[derive(Clone, Copy)]
pub(crate) struct Strided<'a, T> {
    pub(crate) data: &'a [T],
    pub(crate) stride: usize,
}

/// A value of a tile, or the first of several.
#[derive(Clone, Copy)]
pub(crate) struct Position {
    pub(crate) row: usize,
    pub(crate) column: usize,
}

impl<T> Matrix<'_, T> {
    /// Whether every row lies inside the slice.
    pub(crate) fn fits(&self) -> bool {
        self.rows == 0 || (self.rows - 1) * self.stride + self.cols <= self.data.len()
    }

    pub(crate) fn view(&self) -> ArrayView2<'_, T> {
        ArrayView2::from_shape((self.rows, self.cols).strides((self.stride, 1)), self.data)
            .expect("a matrix fits its slice")
    }
}

/// What will be read next to the rows of a result, to be prefetched meanwhile. Only hints, never read from.
#[derive(Clone, Copy)]
pub(crate) struct Prefetch {
    /// Starts of matrices.
    pub(crate) starts: [Option<*const u8>; 4],
    /// Bytes from row to row, and of 64 columns.
    pub(crate) stride: usize,
    pub(crate) width: usize,
}

impl Prefetch {
    /// Nothing.
    pub(crate) const NOTHING: Self = Self { starts: [None; 4], stride: 0, width: 0 };

    /// Nothing yet, of rows of so many values of a format.
    pub(crate) fn of<T>(columns: usize) -> Self {
        let size = size_of::<T>();
        Self { starts: [None; 4], stride: columns * size, width: PANEL * size }
    }

    /// From another column on.
    pub(crate) fn right(self, column: usize) -> Self {
        let bytes = column / PANEL * self.width;
        Self { starts: self.starts.map(|start| start.map(|at| at.wrapping_add(bytes))), ..self }
    }

    /// From another row on.
    pub(crate) fn below(self, row: usize) -> Self {
        let starts = self.starts.map(|start| start.map(|at| at.wrapping_add(row * self.stride)));
        Self { starts, ..self }
    }
}

/// The operands of the next transposed product, to be prefetched during this one. Only hints.
#[derive(Clone, Copy, Default)]
pub struct PrefetchNext<'a, A, B> {
    /// Start of the next `a`.
    pub(crate) a: &'a [A],
    /// Distance of its rows.
    pub(crate) a_stride: usize,
    /// Start of the matrix that the next `b` is copied from.
    pub(crate) b: &'a [B],
    /// Distance of its rows.
    pub(crate) b_stride: usize,
    /// Rows of both that one word covers.
    pub(crate) rows_at_once: usize,
}
