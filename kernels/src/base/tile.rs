//! Tiles of an activation, one task each: up to 128 images of one pixel by 64 channels, with room for
//! sums over them.
//!
//! Tiles are the tasks of a pass, and what [`Epilogue`](crate::Epilogue) works on.

use std::ops::Range;

use ndarray::{ArrayViewMut2, ArrayViewMut4, Axis};

use crate::base::isa::Isa;
use crate::base::panel::{PANEL, STRIP};
use crate::base::value::Value;
use crate::parallel::{DisjointBlocks, DisjointChunks, Pool};

/// Images of a tile: short enough that sums over them in `f32` lose few digits, and no function of the
/// threads, so that neither are the sums.
pub(crate) const IMAGES: usize = 128;

/// Words of the pairs of images of a tile, a strip wide.
pub(crate) const STRIP_WORDS: usize = IMAGES / 2 * STRIP;

/// Sums of a channel that a tile has room for.
pub(crate) const SUMS: usize = 3;

/// A tile and where it is.
pub struct Tile<'a, T> {
    /// Row of its first image: pixel times images of the batch, plus image.
    pub(crate) row: usize,
    /// Its first channel.
    pub(crate) channel: usize,
    /// Images by 64 channels, or some times as many.
    pub(crate) values: ArrayViewMut2<'a, T>,
    /// Three sums by as many channels, to be written.
    pub(crate) sums: ArrayViewMut2<'a, f32>,
}

/// The size of an activation `[pixels][n][channels]` that is cut into tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Height times width; or more, of fewer images each, where those are computed by themselves.
    pub pixels: usize,
    /// Images.
    pub n: usize,
    /// Channels.
    pub channels: usize,
}

impl Extent {
    /// All three.
    pub fn new(pixels: usize, n: usize, channels: usize) -> Self {
        Self { pixels, n, channels }
    }

    /// Rows of as many values as there are channels.
    pub fn rows(self) -> usize {
        self.pixels * self.n
    }
}

/// Values of the sums of all tiles of an activation.
pub fn sums_len(Extent { pixels, n, channels }: Extent) -> usize {
    pixels * n.div_ceil(IMAGES) * SUMS * channels
}

impl<'a, T> Tile<'a, T> {
    fn at(
        [_, pixel, image, channel]: [usize; 4],
        n: usize,
        values: ArrayViewMut4<'a, T>,
        sums: ArrayViewMut4<'a, f32>,
    ) -> Self {
        let (values, sums) = (flat(values), flat(sums));
        Self { row: pixel * n + image, channel, values, sums }
    }

    /// Its channels.
    pub(crate) fn channels(&self) -> Range<usize> {
        self.channel..self.channel + self.values.ncols()
    }

    /// Its parts of 64 channels.
    pub(crate) fn panels(&mut self) -> impl Iterator<Item = Tile<'_, T>> {
        let values = self.values.axis_chunks_iter_mut(Axis(1), PANEL);
        let sums = self.sums.axis_chunks_iter_mut(Axis(1), PANEL);
        let (row, first) = (self.row, self.channel);
        values.zip(sums).enumerate().map(move |(panel, (values, sums))| {
            let channel = first + panel * PANEL;
            Tile { row, channel, values, sums }
        })
    }
}

/// An activation that is written, and the sums over its tiles.
pub struct Target<'a, T> {
    /// The activation.
    pub values: &'a mut [T],
    /// As many as [`sums_len`] says.
    pub sums: &'a mut [f32],
}

/// How an activation is cut into tiles.
#[derive(Clone, Copy)]
pub(crate) struct Tiling {
    pub(crate) shape: Extent,
    /// Panels that a tile is wide.
    pub(crate) panels: usize,
}

/// Calls `task(state, (pixel, image), tile)` for each tile of an activation `[pixels][n][channels]`, with a
/// state that each thread makes once; tiles are some panels wide, and those of a pixel cost as much each.
pub(crate) fn for_each_tile<T: Send, S>(
    pool: &Pool,
    tiling: Tiling,
    target: Target<T>,
    cost: impl Fn(usize) -> usize,
    state: impl Fn() -> S + Sync,
    task: impl Fn(&mut S, (usize, usize), Tile<T>) + Sync,
) {
    let n = tiling.shape.n;
    let (values, sums) = tiling.cut(target);
    pool.for_each_block2(
        values,
        sums,
        |[_, pixel, ..]| cost(pixel),
        state,
        |state, at, values, sums| {
            task(state, (at[1], at[2]), Tile::at(at, n, values, sums));
        },
    );
}

/// Calls `task(state, tile)` for parts of the tiles of an activation `[pixels][n][channels]`: some panels wide, so
/// many images at most, and without sums.
pub(crate) fn for_each_part<T: Send, S>(
    pool: &Pool,
    tiling: Tiling,
    images: usize,
    values: &mut [T],
    state: impl Fn() -> S + Sync,
    task: impl Fn(&mut S, Tile<T>) + Sync,
) {
    let Tiling { shape: Extent { pixels, n, channels }, panels } = tiling;
    // Where all tiles are whole, so is what parts of each make.
    let whole = if n.is_multiple_of(IMAGES) { IMAGES } else { n };
    let values = view4(values, [1, pixels * n / whole, whole, channels]);
    let values = DisjointBlocks::new(values, [1, 1, images, panels * PANEL]);
    pool.for_each_block_with(values, state, |state, at, values| {
        let sums = view4(&mut [], [1, 1, 0, values.len_of(Axis(3))]);
        task(state, Tile::at(at, whole, values, sums));
    });
}

/// As [`for_each_tile`], with a part of `room` besides for each task, of so many values.
pub(crate) fn for_each_tile_in<T: Send, U: Send, S>(
    pool: &Pool,
    tiling: Tiling,
    target: Target<T>,
    scratch: DisjointChunks<U>,
    cost: impl Fn(usize) -> usize,
    state: impl Fn() -> S + Sync,
    task: impl Fn(&mut S, (usize, usize), Tile<T>, &mut [U]) + Sync,
) {
    let n = tiling.shape.n;
    let (values, sums) = tiling.cut(target);
    let cost = |[_, pixel, ..]: [usize; 4]| cost(pixel);
    pool.for_each_block2_in(
        values,
        sums,
        scratch,
        cost,
        state,
        |state, at, values, sums, scratch| {
            task(state, (at[1], at[2]), Tile::at(at, n, values, sums), scratch);
        },
    );
}

/// Calls `task(state, tile, rows)` for each tile of all channels of an activation `[n][channels]`, with as many
/// rows of another array, of `k` values.
pub(crate) fn for_each_tile_of_rows<T: Send, S>(
    pool: &Pool,
    channels: usize,
    k: usize,
    Target { values, sums }: Target<T>,
    other: &mut [T],
    state: impl Fn() -> S + Sync,
    task: impl Fn(&mut S, Tile<T>, &mut [T]) + Sync,
) {
    let n = values.len() / channels;
    assert_eq!((values.len(), other.len()), (n * channels, n * k), "rows of both");
    let sums = &mut sums[..sums_len(Extent::new(1, n, channels))];
    let values = DisjointChunks::new(values, IMAGES * channels);
    let sums = DisjointChunks::new(sums, SUMS * channels);
    let other = DisjointChunks::new(other, IMAGES * k);
    pool.for_each_chunk3_with(values, sums, other, state, |state, index, values, sums, rows| {
        let (values, sums) = (rows_of(values, channels), rows_of(sums, channels));
        task(state, Tile { row: index * IMAGES, channel: 0, values, sums }, rows);
    });
}

impl Tiling {
    /// The values of an activation and the sums over its tiles, cut into the same grid.
    fn cut<T>(
        self,
        Target { values, sums }: Target<'_, T>,
    ) -> (DisjointBlocks<'_, T>, DisjointBlocks<'_, f32>) {
        let Self { shape: Extent { pixels, n, channels }, panels } = self;
        let sums = &mut sums[..sums_len(self.shape)];
        let values = view4(values, [1, pixels, n, channels]);
        let sums = view4(sums, [1, pixels, n.div_ceil(IMAGES) * SUMS, channels]);
        let width = panels * PANEL;
        (
            DisjointBlocks::new(values, [1, 1, IMAGES, width]),
            DisjointBlocks::new(sums, [1, 1, SUMS, width]),
        )
    }
}

/// Bytes of an activation that is written past the caches: it would not stay there until it is read, and what is
/// written through them is read first. Half of a last-level cache of 32 MiB; what `cargo bench -p kernels` gives for
/// `activate` at both sides of it is the measure.
const STREAMED: usize = 16 << 20;

/// Whether an activation is so large, and begins at a cache line, as those in arenas do.
pub(crate) fn is_streamed<T>(values: &[T]) -> bool {
    size_of_val(values) >= STREAMED && values.as_ptr().addr().is_multiple_of(64)
}

/// A slice as rows of so many values.
pub(crate) fn rows_of<T>(values: &mut [T], columns: usize) -> ArrayViewMut2<'_, T> {
    let rows = values.len() / columns;
    assert_eq!(values.len(), rows * columns, "a part of a row");
    ArrayViewMut2::from_shape((rows, columns), values).expect("whole rows")
}

/// Copies rows past the caches, where the tier can: what is written once and read much later
/// would only be fetched first and push out what is needed.
pub(crate) fn stream<T: Value>(isa: Isa, rows: &[T], mut target: ArrayViewMut2<T>) {
    match isa {
        Isa::Portable => {
            let rows = rows.chunks_exact(target.ncols());
            for (mut target, row) in target.rows_mut().into_iter().zip(rows) {
                target.as_slice_mut().expect("rows are contiguous").copy_from_slice(row);
            }
        }
        #[cfg(target_arch = "x86_64")]
        Isa::Vector(tier) => tier.stream(rows, target),
    }
}

fn flat<T>(view: ArrayViewMut4<T>) -> ArrayViewMut2<T> {
    view.index_axis_move(Axis(0), 0).index_axis_move(Axis(0), 0)
}

/// A buffer as an array of four dimensions.
pub(crate) fn view4<T>(data: &mut [T], shape: [usize; 4]) -> ArrayViewMut4<'_, T> {
    ArrayViewMut4::from_shape(shape, data).expect("a buffer of the layer's size")
}
