//! One mutable buffer as pieces that do not overlap, which tasks borrow by number.

use std::marker::PhantomData;

use ndarray::{ArrayViewMut4, ShapeBuilder};

/// A slice as equal chunks that tasks borrow by number.
pub(crate) struct DisjointChunks<'a, T> {
    start: *mut T,
    total: usize,
    len: usize,
    data: PhantomData<&'a mut [T]>,
}

// SAFETY: a `DisjointChunks` only hands out disjoint `&mut [T]`, which may cross threads when `T: Send`.
unsafe impl<T: Send> Sync for DisjointChunks<'_, T> {}

impl<'a, T> DisjointChunks<'a, T> {
    /// Chunks of `len` values; the last may be shorter.
    pub(crate) fn new(data: &'a mut [T], len: usize) -> Self {
        assert!(len > 0, "chunks of nothing");
        Self { start: data.as_mut_ptr(), total: data.len(), len, data: PhantomData }
    }

    pub(super) fn count(&self) -> usize {
        self.total.div_ceil(self.len)
    }

    /// How many have all their values.
    pub(super) fn whole(&self) -> usize {
        self.total / self.len
    }

    /// # Safety
    /// Each index at most once while the pieces live.
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn piece(&self, index: usize) -> &mut [T] {
        assert!(index < self.count());
        let first = index * self.len;
        let len = self.len.min(self.total - first);
        // SAFETY: `first + len <= total`, and pieces of different indexes do not overlap.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(first), len) }
    }
}

/// A view as a grid of blocks that tasks borrow by origin.
pub(crate) struct DisjointBlocks<'a, T> {
    start: *mut T,
    shape: [usize; 4],
    strides: [usize; 4],
    block: [usize; 4],
    data: PhantomData<&'a mut [T]>,
}

// SAFETY: a `DisjointBlocks` only hands out disjoint mutable views, which may cross threads when `T: Send`.
unsafe impl<T: Send> Sync for DisjointBlocks<'_, T> {}

impl<'a, T> DisjointBlocks<'a, T> {
    /// Blocks of shape `block`, smaller at the far edges.
    pub(crate) fn new(mut data: ArrayViewMut4<'a, T>, block: [usize; 4]) -> Self {
        assert!(block.iter().all(|&len| len > 0), "blocks of nothing");
        let strides = [0, 1, 2, 3]
            .map(|axis| usize::try_from(data.strides()[axis]).expect("strides are not negative"));
        Self {
            start: data.as_mut_ptr(),
            shape: data.dim().into(),
            strides,
            block,
            data: PhantomData,
        }
    }

    pub(super) fn grid(&self, axis: usize) -> usize {
        self.shape[axis].div_ceil(self.block[axis])
    }

    pub(super) fn count(&self) -> usize {
        (0..4).map(|axis| self.grid(axis)).product()
    }

    pub(super) fn origin(&self, index: usize) -> [usize; 4] {
        let mut rest = index;
        let mut origin = [0; 4];
        for axis in (0..4).rev() {
            origin[axis] = rest % self.grid(axis) * self.block[axis];
            rest /= self.grid(axis);
        }
        origin
    }

    /// # Safety
    /// Each origin at most once while the pieces live, and only origins of this grid.
    pub(super) unsafe fn piece(&self, origin: [usize; 4]) -> ArrayViewMut4<'_, T> {
        let mut offset = 0;
        let mut shape = [0; 4];
        for axis in 0..4 {
            assert!(origin[axis] < self.shape[axis]);
            offset += origin[axis] * self.strides[axis];
            shape[axis] = self.block[axis].min(self.shape[axis] - origin[axis]);
        }
        // SAFETY: the block lies inside the view it was cut from (origin + shape <= its shape, same
        // strides), and blocks of different origins do not overlap.
        unsafe {
            ArrayViewMut4::from_shape_ptr(shape.strides(self.strides), self.start.add(offset))
        }
    }
}
