//! Winograd's convolution F(4x4, 3x3): 36 multiplications where the direct one needs 144.
//!
//! ```text
//! forward         y  = A'[ (G w G') . (B' x B) ]A      tiles of 6x6 inputs to 4x4 outputs
//! by input        the same over dy with the filter turned round
//! by weight       dw = G'[ sum (B' x B) . (A dy A') ]G
//! ```
//!
//! Lavin and Gray (2015). The products `.` are sums over channels (or images): 36 matrix products, by
//! the same kernels as the direct convolution. In `[H][W][N][C]` every transform works on whole slices,
//! element by element. A group of tiles at a time goes through the three stages: with few channels, one
//! that a thread keeps in its second-level cache; with more, when the weights are too many to be read for
//! so few rows, one that all threads share in the last-level cache. Only for 3x3 filters with stride 1
//! over maps whose sides are multiples of 4, in `f32`, on vector tiers. The rounding errors are larger
//! than the direct convolution's by about ten.

use ndarray::{ArrayViewMut2, ArrayViewMut4, Axis, ShapeBuilder, s};

use crate::gemm::{self, Beside, Matrix, Next, PANEL, Term};
use crate::isa::Isa;
use crate::pool::Pool;
use crate::tile::{IMAGES, SUMS, Tile, is_streamed, rows_of, stream, view4, visit_tiles};
use crate::value::Value;

/// Side of a tile of outputs.
const TILE: usize = 4;
/// Side of a tile of inputs.
const SIDE: usize = TILE + 2;
/// Products of a tile.
const FREQUENCIES: usize = SIDE * SIDE;
/// Taps of the filter.
const TAPS: usize = 9;
/// Values of one frequency of a shared group, about: 36 of them are 4.5 MiB.
const GROUP: usize = 1 << 15;
/// Most channels of layers whose groups a thread keeps to itself, and rows of such a group.
const OWN_CHANNELS: usize = 128;
const OWN_ROWS: usize = 16;
/// Threads that have room for a group.
const OWN_PARTS: usize = 64;
/// Values between two frequencies: five cache lines, so that 36 of them lie in different sets.
const GAP: usize = 80;

/// One of the five transforms.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Transform {
    Input,
    Weights,
    Output,
    Gradient,
    Result,
}

impl Transform {
    /// Sides of the squares it reads and writes.
    pub(crate) fn sides(self) -> (usize, usize) {
        match self {
            Self::Input => (SIDE, SIDE),
            Self::Weights => (3, SIDE),
            Self::Output => (SIDE, TILE),
            Self::Gradient => (TILE, SIDE),
            Self::Result => (SIDE, 3),
        }
    }

    fn apply(self, isa: Isa, sources: &[Option<&[f32]>], targets: &mut [&mut [f32]]) {
        match isa {
            Isa::Portable => unreachable!("only vector tiers choose this convolution"),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(token) => token.transform(self, sources, targets),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(token) => token.transform(self, sources, targets),
        }
    }
}

/// A 3x3 convolution with stride 1 and padding 1 over maps of `side` times 4 by `side` times 4.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Winograd {
    /// Tiles along each side.
    tiles: [usize; 2],
    channels: [usize; 2],
}

/// Some tiles of one row of tiles, and some images.
#[derive(Clone, Copy)]
struct Group {
    row: usize,
    /// First tile and how many.
    column: usize,
    tiles: usize,
    /// First image and how many.
    image: usize,
    images: usize,
}

impl Group {
    fn rows(&self) -> usize {
        self.tiles * self.images
    }
}

/// An activation to read: `[height][width][n][channels]`.
#[derive(Clone, Copy)]
struct Map<'a> {
    data: &'a [f32],
    size: [usize; 2],
    n: usize,
    channels: usize,
}

impl<'a> Map<'a> {
    /// `len` values from an image of a pixel on, or `None` outside of the map.
    fn at(&self, [h, w]: [Option<usize>; 2], image: usize, len: usize) -> Option<&'a [f32]> {
        let (h, w) = (h.filter(|&h| h < self.size[0])?, w.filter(|&w| w < self.size[1])?);
        let pixel = h * self.size[1] + w;
        Some(&self.data[(pixel * self.n + image) * self.channels..][..len])
    }
}

impl Winograd {
    /// For maps of `size` and channels in and out; `None` where it does not fit.
    pub(crate) fn new(size: [usize; 2], channels: [usize; 2]) -> Option<Self> {
        let fits = size.iter().all(|&side| side.is_multiple_of(TILE))
            && channels.iter().all(|&channels| channels.is_multiple_of(PANEL));
        fits.then_some(Self { tiles: size.map(|side| side / TILE), channels })
    }

    /// Values that a pass over `n` images needs beside its operands.
    pub(crate) fn scratch_len(&self, n: usize) -> usize {
        let rows = self.groups(n).map(|group| group.rows()).max().unwrap_or(0);
        let [c, k] = self.channels;
        let parts = if self.is_own() { OWN_PARTS * stages_len(OWN_ROWS, [c, k]) } else { 0 };
        FREQUENCIES * c * k + stages_len(rows, [c, k]).max(parts)
    }

    /// Whether a thread keeps a group to itself.
    fn is_own(&self) -> bool {
        self.channels.iter().all(|&channels| channels <= OWN_CHANNELS)
    }

    fn size(&self) -> [usize; 2] {
        self.tiles.map(|tiles| tiles * TILE)
    }

    fn groups(&self, n: usize) -> impl Iterator<Item = Group> {
        let [rows, columns] = self.tiles;
        let widest = self.channels[0].max(self.channels[1]);
        (0..n).step_by(IMAGES).flat_map(move |image| {
            let images = IMAGES.min(n - image);
            let tiles = (GROUP / widest / images).clamp(1, columns);
            (0..rows).flat_map(move |row| {
                (0..columns).step_by(tiles).map(move |column| {
                    let tiles = tiles.min(columns - column);
                    Group { row, column, tiles, image, images }
                })
            })
        })
    }

    /// Images of a tile that is finished as soon as it is computed, if `n` are cut into such.
    pub(crate) fn images(&self, n: usize) -> Option<usize> {
        let images = n.min(OWN_ROWS);
        (self.is_own() && n.is_multiple_of(images)).then_some(images)
    }

    /// The most tiles of a pixel for up to `n` images.
    pub(crate) fn chunks(&self, n: usize) -> usize {
        n.div_ceil(if self.is_own() { OWN_ROWS } else { IMAGES })
    }

    /// `y = x * w`.
    pub(crate) fn forward<T: Value>(
        &self,
        exec: (&Pool, Isa),
        n: usize,
        (x, w): (&[f32], &[f32]),
        results: (&mut [T], &mut [f32], &mut [f32]),
        after: (&[&[T]], impl Fn(Tile<T>) + Sync),
    ) {
        self.convolve(exec, n, self.channels, (x, w, false), results, after);
    }

    /// `dx = dy * w'` for transposed panels.
    pub(crate) fn backward_input<T: Value>(
        &self,
        exec: (&Pool, Isa),
        n: usize,
        (dy, w): (&[f32], &[f32]),
        results: (&mut [T], &mut [f32], &mut [f32]),
        after: (&[&[T]], impl Fn(Tile<T>) + Sync),
    ) {
        let [c, k] = self.channels;
        self.convolve(exec, n, [k, c], (dy, w, true), results, after);
    }

    fn convolve<T: Value>(
        &self,
        exec: (&Pool, Isa),
        n: usize,
        [c, k]: [usize; 2],
        (x, w, turned): (&[f32], &[f32], bool),
        (y, sums, scratch): (&mut [T], &mut [f32], &mut [f32]),
        (beside, finish): (&[&[T]], impl Fn(Tile<T>) + Sync),
    ) {
        let (weights, scratch) = scratch.split_at_mut(FREQUENCIES * c * k);
        transform_weights(exec, c, (w, turned), weights);
        let [height, width] = self.size();
        let map = Map { data: x, size: self.size(), n, channels: c };
        let shape = (height * width, n, k);
        if self.is_own() {
            let results = (&mut *y, &mut *sums, scratch);
            self.convolve_alone(exec, (map, weights), k, results, (beside, &finish));
            if self.images(n).is_none() {
                visit_tiles(exec.0, shape, y, sums, finish);
            }
            return;
        }
        let target = T::single_mut(y).expect("only `f32` is computed this way");
        let mut target = view4(target, [height, width, n, k]);
        for group in self.groups(n) {
            let (inputs, products) = scratch.split_at_mut(FREQUENCIES * distance(group.rows(), c));
            transform_inputs(exec, map, group, inputs);
            multiply(exec, group.rows(), (c, k), (inputs, weights), products);
            let (h, w) = (group.row * TILE, group.column * TILE);
            let images = group.image..group.image + group.images;
            let y = target.slice_mut(s![h..h + TILE, w..w + group.tiles * TILE, images, ..]);
            transform_outputs(exec, group, products, y);
        }
        visit_tiles(exec.0, shape, y, sums, finish);
    }

    /// Group by group, all stages of one by one thread, which finishes its tiles where it can.
    fn convolve_alone<T: Value>(
        &self,
        (pool, isa): (&Pool, Isa),
        (x, weights): (Map, &[f32]),
        k: usize,
        (y, sums, scratch): (&mut [T], &mut [f32], &mut [f32]),
        (beside, finish): (&[&[T]], impl Fn(Tile<T>) + Sync),
    ) {
        let ([height, width], n, streamed) = (self.size(), x.n, is_streamed(y));
        let images = n.min(OWN_ROWS);
        let side = TILE * (OWN_ROWS / images).min(self.tiles[1]);
        let y = (view4(y, [height, width, n, k]), [TILE, side, images, k]);
        let scratch = (scratch, stages_len(OWN_ROWS, [x.channels, k]));
        let row = |[h, w, image, _]: [usize; 4]| (h * width + w) * n + image;
        let group = |at, y: ArrayViewMut4<T>, scratch: &mut [f32], put: &mut Put<T>| {
            let [h, w, image, _] = at;
            let ahead = |[p, q]: [usize; 2], channel: usize| {
                let mut ahead = Beside { stride: k, ..Beside::NOTHING };
                let from = row([h + p, w + q, image, 0]) * k + channel;
                for (start, data) in ahead.starts.iter_mut().zip(beside) {
                    *start = T::single(&data[from..]).unwrap_or(&[]);
                }
                ahead
            };
            convolve_group((isa, streamed), (x, weights), [h, w, image], y, scratch, (&ahead, put));
        };
        if self.images(n).is_none() {
            return pool.for_each_block_in(y, scratch, |at, y, scratch| {
                group(at, y, scratch, &mut |_, _| {});
            });
        }
        let sums = &mut sums[..height * width * (n / images) * SUMS * k];
        let sums = view4(sums, [height, width, n / images * SUMS, k]);
        let sums = (sums, [TILE, side, SUMS, k]);
        pool.for_each_block2_in(y, sums, scratch, |at, y, mut sums, scratch| {
            group(at, y, scratch, &mut |[p, q], values| {
                let [h, w, image, _] = at;
                let sums = sums.slice_mut(s![p, q, .., ..]);
                let row = row([h + p, w + q, image, 0]);
                Tile { row, channel: 0, values, sums }.for_each_panel(&finish);
            });
        });
    }

    /// `dw = x' * dy`.
    pub(crate) fn backward_weight(
        &self,
        (pool, isa): (&Pool, Isa),
        n: usize,
        (x, dy): (&[f32], &[f32]),
        dw: &mut [f32],
        scratch: &mut [f32],
    ) {
        let [c, k] = self.channels;
        let exec = (pool, isa);
        let (sums, scratch) = scratch.split_at_mut(FREQUENCIES * c * k);
        for (index, group) in self.groups(n).enumerate() {
            let rows = group.rows();
            let (inputs, gradients) = scratch.split_at_mut(FREQUENCIES * distance(rows, c));
            let map = Map { data: x, size: self.size(), n, channels: c };
            transform_inputs(exec, map, group, inputs);
            let map = Map { data: dy, size: self.size(), n, channels: k };
            transform_gradients(exec, map, group, gradients);
            let target = view4(sums, [FREQUENCIES, k / PANEL, c, PANEL]);
            let target = (target, [1, 1, c, PANEL]);
            let strips = || [0.0; IMAGES * PANEL];
            pool.for_each_block_with(target, strips, |strips, [frequency, panel, ..], block| {
                let x = &inputs[frequency * distance(rows, c)..][..rows * c];
                let dy = &gradients[frequency * distance(rows, k)..][..rows * k];
                let block = block.index_axis_move(Axis(0), 0).index_axis_move(Axis(0), 0);
                let dy = (&dy[panel * PANEL..], k);
                add_products(isa, (x, c), (dy, strips), (rows, index > 0), block);
            });
        }
        let len = c * PANEL;
        pool.for_each_chunk(dw, TAPS * len, |panel, dw| {
            let sources: [_; FREQUENCIES] = std::array::from_fn(|frequency| {
                Some(&sums[(frequency * k / PANEL + panel) * len..][..len])
            });
            let mut targets = split::<TAPS>(dw);
            Transform::Result.apply(isa, &sources, &mut targets);
        });
    }
}

/// What is done to the values of a pixel of a group, `[images][k]`.
type Put<'a, T> = dyn FnMut([usize; 2], ArrayViewMut2<T>) + 'a;
/// What lies beside a pixel of a group, from a channel on.
type Ahead<'a> = dyn Fn([usize; 2], usize) -> Beside<'a, f32> + 'a;

/// The group at (h, w, image) by all stages; each pixel is handed to `put` before it is written to `y`, and
/// what lies beside it is asked for before.
fn convolve_group<T: Value>(
    (isa, streamed): (Isa, bool),
    (x, weights): (Map, &[f32]),
    [h, w, image]: [usize; 3],
    mut y: ArrayViewMut4<T>,
    scratch: &mut [f32],
    (beside, put): (&Ahead, &mut Put<T>),
) {
    let (_, width, images, k) = y.dim();
    let (c, tiles) = (x.channels, width / TILE);
    let rows = tiles * images;
    let (inputs, products) = scratch.split_at_mut(FREQUENCIES * distance(rows, c));
    let mut target = stage(inputs, [FREQUENCIES, tiles, images, c]);
    for (tile, target) in target.axis_chunks_iter_mut(Axis(1), 1).enumerate() {
        transform_input(isa, x, [h, w + tile * TILE, image], target);
    }
    let mut target = stage(products, [FREQUENCIES, 1, rows, k]);
    for (frequency, mut target) in target.axis_chunks_iter_mut(Axis(0), 1).enumerate() {
        for (panel, target) in target.axis_chunks_iter_mut(Axis(3), PANEL).enumerate() {
            let at = [frequency, 0, panel * PANEL];
            let ahead = match [frequency / TILE, frequency % TILE] {
                pixel if pixel[0] < TILE && tiles == 1 => beside(pixel, panel * PANEL),
                _ => Beside::NOTHING,
            };
            multiply_block(isa, (rows, c, k), (inputs, weights), at, target, ahead);
        }
    }
    // The inputs are not needed any more.
    let held = &mut inputs[..TILE * TILE * images * k];
    for tile in 0..tiles {
        transform_output(isa, rows, products, tile * images, view4(held, [TILE, TILE, images, k]));
        let held = T::of_single_mut(held).expect("only `f32` is computed this way");
        for (pixel, held) in held.chunks_exact_mut(images * k).enumerate() {
            let at = [pixel / TILE, tile * TILE + pixel % TILE];
            put(at, rows_of(held, k));
            let y = y.slice_mut(s![at[0], at[1], .., ..]);
            if streamed {
                stream(isa, held, y);
            } else {
                y.into_slice().expect("whole images are contiguous").copy_from_slice(held);
            }
        }
    }
}

/// Panels `[k/64][9][c][64]` to `[36][k/64][c][64]`; `turned` round for the gradient by input.
fn transform_weights(
    (pool, isa): (&Pool, Isa),
    c: usize,
    (w, turned): (&[f32], bool),
    weights: &mut [f32],
) {
    let panels = w.len() / (TAPS * c * PANEL);
    let target = view4(weights, [FREQUENCIES, panels, c, PANEL]);
    pool.for_each_block(target, [FREQUENCIES, 1, ROWS, PANEL], |[_, panel, row, _], mut block| {
        let len = block.len_of(Axis(2)) * PANEL;
        let sources: [_; TAPS] = std::array::from_fn(|tap| {
            let tap = if turned { TAPS - 1 - tap } else { tap };
            Some(&w[((panel * TAPS + tap) * c + row) * PANEL..][..len])
        });
        Transform::Weights.apply(isa, &sources, &mut slices::<FREQUENCIES>(&mut block));
    });
}

/// Rows of weights that one task transforms.
const ROWS: usize = 64;

/// Values of one slice that one task transforms, about: 36 of them stay in the second-level cache.
const SLICE: usize = 2048;

/// Inputs of a group to `[36][tile][image][c]`.
fn transform_inputs((pool, isa): (&Pool, Isa), x: Map, group: Group, inputs: &mut [f32]) {
    let c = x.channels;
    let images = (SLICE / c).max(1);
    let target = stage(inputs, [FREQUENCIES, group.tiles, group.images, c]);
    pool.for_each_block(target, [FREQUENCIES, 1, images, c], |[_, tile, image, _], block| {
        let at = [group.row * TILE, (group.column + tile) * TILE, group.image + image];
        transform_input(isa, x, at, block);
    });
}

/// Inputs of a tile of outputs at (h, w) and of some images to `[36][1][images][c]`.
fn transform_input(isa: Isa, x: Map, [h, w, image]: [usize; 3], mut block: ArrayViewMut4<f32>) {
    let len = block.len_of(Axis(2)) * x.channels;
    let sources: [_; FREQUENCIES] = std::array::from_fn(|i| {
        x.at([(h + i / SIDE).checked_sub(1), (w + i % SIDE).checked_sub(1)], image, len)
    });
    Transform::Input.apply(isa, &sources, &mut slices::<FREQUENCIES>(&mut block));
}

/// Gradients by the outputs of a group to `[36][tile][image][k]`.
fn transform_gradients((pool, isa): (&Pool, Isa), dy: Map, group: Group, gradients: &mut [f32]) {
    let k = dy.channels;
    let images = (SLICE / k).max(1);
    let target = stage(gradients, [FREQUENCIES, group.tiles, group.images, k]);
    pool.for_each_block(target, [FREQUENCIES, 1, images, k], |[_, tile, image, _], mut block| {
        let len = block.len_of(Axis(2)) * k;
        let sources: [_; TILE * TILE] = std::array::from_fn(|i| {
            let h = group.row * TILE + i / TILE;
            let w = (group.column + tile) * TILE + i % TILE;
            dy.at([Some(h), Some(w)], group.image + image, len)
        });
        Transform::Gradient.apply(isa, &sources, &mut slices::<FREQUENCIES>(&mut block));
    });
}

/// For each frequency, rows of `c` values times panels: rows of `k` values.
fn multiply(
    (pool, isa): (&Pool, Isa),
    rows: usize,
    (c, k): (usize, usize),
    operands: (&[f32], &[f32]),
    products: &mut [f32],
) {
    let target = stage(products, [FREQUENCIES, 1, rows, k]);
    pool.for_each_block(target, [1, 1, IMAGES, PANEL], |[frequency, _, row, channel], block| {
        let at = [frequency, row, channel];
        multiply_block(isa, (rows, c, k), operands, at, block, Beside::NOTHING);
    });
}

/// Some rows of one frequency times one panel.
fn multiply_block(
    isa: Isa,
    (rows, c, k): (usize, usize, usize),
    (inputs, weights): (&[f32], &[f32]),
    [frequency, row, channel]: [usize; 3],
    block: ArrayViewMut4<f32>,
    beside: Beside<f32>,
) {
    let panel = frequency * k / PANEL + channel / PANEL;
    let term = Term {
        a: &inputs[frequency * distance(rows, c)..][row * c..rows * c],
        b: &weights[panel * c * PANEL..][..c * PANEL],
    };
    let block = block.index_axis_move(Axis(0), 0).index_axis_move(Axis(0), 0);
    gemm::multiply(isa, &[term], (c, c), block, false, beside);
}

/// `[36][tile][image][k]` to the outputs of a group.
fn transform_outputs(
    (pool, isa): (&Pool, Isa),
    group: Group,
    products: &[f32],
    y: ArrayViewMut4<f32>,
) {
    let k = y.len_of(Axis(3));
    let images = (SLICE / k).max(1);
    pool.for_each_block(y, [TILE, TILE, images, k], |[_, w, image, _], block| {
        let row = w / TILE * group.images + image;
        transform_output(isa, group.rows(), products, row, block);
    });
}

/// `[36][images][k]` from a row on to the outputs of a tile.
fn transform_output(
    isa: Isa,
    rows: usize,
    products: &[f32],
    row: usize,
    mut block: ArrayViewMut4<f32>,
) {
    let (images, k) = (block.len_of(Axis(2)), block.len_of(Axis(3)));
    let sources: [_; FREQUENCIES] = std::array::from_fn(|frequency| {
        Some(&products[frequency * distance(rows, k) + row * k..][..images * k])
    });
    let mut pixels = block.exact_chunks_mut((1, 1, images, k)).into_iter();
    let mut targets: [_; TILE * TILE] = std::array::from_fn(|_| {
        let slice = pixels.next().and_then(ArrayViewMut4::into_slice);
        slice.expect("whole images are contiguous")
    });
    Transform::Output.apply(isa, &sources, &mut targets);
}

/// `block (+)= x' . dy` over `rows` rows.
fn add_products(
    isa: Isa,
    (x, c): (&[f32], usize),
    ((dy, k), strips): ((&[f32], usize), &mut [f32]),
    (rows, accumulate): (usize, bool),
    mut block: ArrayViewMut2<f32>,
) {
    for first in (0..rows).step_by(IMAGES) {
        let count = IMAGES.min(rows - first);
        let after = (first + IMAGES).min(rows - 1);
        let dy_rows = Matrix { data: &dy[first * k..], rows: count, cols: PANEL, stride: k };
        gemm::strips(dy_rows, strips, |value| value);
        let x_rows = Matrix { data: &x[first * c..], rows: count, cols: c, stride: c };
        let next = Next {
            a: &x[after * c..],
            a_stride: c,
            b: &dy[after * k..],
            b_stride: k,
            rows_at_once: 1,
        };
        let accumulate = accumulate || first > 0;
        gemm::multiply_transposed(isa, x_rows, strips, next, block.view_mut(), accumulate);
    }
}

/// Values from one frequency to the next in a stage.
fn distance(rows: usize, channels: usize) -> usize {
    rows * channels + GAP
}

/// Values of the two stages of a group.
fn stages_len(rows: usize, channels: [usize; 2]) -> usize {
    FREQUENCIES * channels.map(|channels| distance(rows, channels)).iter().sum::<usize>()
}

/// A stage `[36][tiles][images][channels]`.
fn stage(data: &mut [f32], shape: [usize; 4]) -> ArrayViewMut4<'_, f32> {
    let [_, tiles, images, channels] = shape;
    let strides = [distance(tiles * images, channels), images * channels, channels, 1];
    ArrayViewMut4::from_shape(shape.strides(strides), data).expect("room for a group")
}

/// The outermost slices of a block.
fn slices<'a, const N: usize>(block: &'a mut ArrayViewMut4<f32>) -> [&'a mut [f32]; N] {
    let mut outer = block.outer_iter_mut();
    std::array::from_fn(|_| {
        let slice = outer.next().and_then(ndarray::ArrayViewMut3::into_slice);
        slice.expect("whole rows are contiguous")
    })
}

/// `N` equal parts of a slice.
fn split<const N: usize>(data: &mut [f32]) -> [&mut [f32]; N] {
    let mut parts = data.chunks_exact_mut(data.len() / N);
    std::array::from_fn(|_| parts.next().expect("as many parts"))
}

#[cfg(test)]
mod tests {
    use crate::{Conv, Isa, Pool, Scratch, Tile, measure_tile, sums_len, visit_tiles};

    /// With batches that are cut into small tiles, and one that is not.
    #[test]
    fn tiles_that_are_finished_at_once_have_the_sums_of_a_second_pass() {
        let (pool, pivot) = (Pool::new(2), [0.25; 128]);
        let conv = Conv::new([8, 8], [64, 128], 3, 1, 1).expect("shape").with_fast_algorithms();
        let w: Vec<f32> = (0..conv.weights()).map(|i| (i % 13) as f32 - 6.0).collect();
        for (isa, n) in
            Isa::available().into_iter().flat_map(|isa| [(isa, 32), (isa, 33), (isa, 5)])
        {
            let exec = (&pool, isa);
            let x: Vec<f32> = (0..conv.input_len(n)).map(|i| (i % 17) as f32 - 8.0).collect();
            let [mut y, mut scratch] =
                [conv.output_len(n), conv.scratch_len(n)].map(|len| vec![0.0; len]);
            let shape = conv.output_tiles(n);
            let [mut sums, mut later] = [0, 1].map(|_| vec![f32::NAN; conv.sums_len(n)]);
            let scratch = Scratch { panels: &mut [], parts: &mut scratch };
            let results = (&mut *y, &mut *sums, scratch);
            let measure = |tile: Tile<f32>| measure_tile(isa, &pivot, tile);
            conv.forward(exec, n, (&x, &w), results, (&[], measure));
            visit_tiles(&pool, shape, &mut y, &mut later, measure);
            let bits = |sums: &[f32]| -> Vec<u32> {
                let tiles = sums[..sums_len(shape)].chunks_exact(3 * 128);
                tiles.flat_map(|sums| &sums[..2 * 128]).map(|sum| sum.to_bits()).collect()
            };
            assert_eq!(bits(&sums), bits(&later), "{} {n}", isa.name());
            assert_eq!(shape.0 * shape.1, 64 * n);
        }
    }
}
