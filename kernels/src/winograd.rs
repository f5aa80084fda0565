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

use ndarray::{ArrayViewMut4, Axis, ShapeBuilder, s};

use crate::gemm::{self, Beside, Matrix, Next, PANEL, Term};
use crate::isa::Isa;
use crate::pool::Pool;
use crate::tile::{IMAGES, view4};

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

    /// `y = x * w`.
    pub(crate) fn forward(
        &self,
        exec: (&Pool, Isa),
        n: usize,
        (x, w): (&[f32], &[f32]),
        y: &mut [f32],
        scratch: &mut [f32],
    ) {
        self.convolve(exec, n, self.channels, (x, w, false), y, scratch);
    }

    /// `dx = dy * w'` for transposed panels.
    pub(crate) fn backward_input(
        &self,
        exec: (&Pool, Isa),
        n: usize,
        (dy, w): (&[f32], &[f32]),
        dx: &mut [f32],
        scratch: &mut [f32],
    ) {
        let [c, k] = self.channels;
        self.convolve(exec, n, [k, c], (dy, w, true), dx, scratch);
    }

    fn convolve(
        &self,
        exec: (&Pool, Isa),
        n: usize,
        [c, k]: [usize; 2],
        (x, w, turned): (&[f32], &[f32], bool),
        y: &mut [f32],
        scratch: &mut [f32],
    ) {
        let (weights, scratch) = scratch.split_at_mut(FREQUENCIES * c * k);
        transform_weights(exec, c, (w, turned), weights);
        let [height, width] = self.size();
        let mut y = view4(y, [height, width, n, k]);
        let map = Map { data: x, size: self.size(), n, channels: c };
        if self.is_own() {
            return self.convolve_alone(exec, (map, weights), y, scratch);
        }
        for group in self.groups(n) {
            let (inputs, products) = scratch.split_at_mut(FREQUENCIES * distance(group.rows(), c));
            transform_inputs(exec, map, group, inputs);
            multiply(exec, group.rows(), (c, k), (inputs, weights), products);
            let (h, w) = (group.row * TILE, group.column * TILE);
            let images = group.image..group.image + group.images;
            let y = y.slice_mut(s![h..h + TILE, w..w + group.tiles * TILE, images, ..]);
            transform_outputs(exec, group, products, y);
        }
    }

    /// All stages of a group by one thread.
    fn convolve_alone(
        &self,
        (pool, isa): (&Pool, Isa),
        (x, weights): (Map, &[f32]),
        y: ArrayViewMut4<f32>,
        scratch: &mut [f32],
    ) {
        let (c, k) = (x.channels, y.len_of(Axis(3)));
        let images = x.n.min(OWN_ROWS);
        let tiles = (OWN_ROWS / images).min(self.tiles[1]);
        let (block, len) = ([TILE, TILE * tiles, images, k], stages_len(OWN_ROWS, [c, k]));
        pool.for_each_block_in((y, block), (scratch, len), |[h, w, image, _], mut y, scratch| {
            let (tiles, images) = (y.len_of(Axis(1)) / TILE, y.len_of(Axis(2)));
            let rows = tiles * images;
            let (inputs, products) = scratch.split_at_mut(FREQUENCIES * distance(rows, c));
            let mut target = stage(inputs, [FREQUENCIES, tiles, images, c]);
            for (tile, target) in target.axis_chunks_iter_mut(Axis(1), 1).enumerate() {
                transform_input(isa, x, [h, w + tile * TILE, image], target);
            }
            let mut target = stage(products, [FREQUENCIES, 1, rows, k]);
            for (frequency, mut target) in target.axis_chunks_iter_mut(Axis(0), 1).enumerate() {
                let panels = target.axis_chunks_iter_mut(Axis(3), PANEL);
                for (panel, target) in panels.enumerate() {
                    let at = [frequency, 0, panel * PANEL];
                    multiply_block(isa, (rows, c, k), (inputs, weights), at, target);
                }
            }
            for (tile, y) in y.axis_chunks_iter_mut(Axis(1), TILE).enumerate() {
                transform_output(isa, rows, products, tile * images, y);
            }
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
        multiply_block(isa, (rows, c, k), operands, [frequency, row, channel], block);
    });
}

/// Some rows of one frequency times one panel.
fn multiply_block(
    isa: Isa,
    (rows, c, k): (usize, usize, usize),
    (inputs, weights): (&[f32], &[f32]),
    [frequency, row, channel]: [usize; 3],
    block: ArrayViewMut4<f32>,
) {
    let panel = frequency * k / PANEL + channel / PANEL;
    let term = Term {
        a: &inputs[frequency * distance(rows, c)..][row * c..rows * c],
        b: &weights[panel * c * PANEL..][..c * PANEL],
    };
    let block = block.index_axis_move(Axis(0), 0).index_axis_move(Axis(0), 0);
    gemm::multiply(isa, &[term], (c, c), block, false, Beside::NOTHING);
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
    mut block: ndarray::ArrayViewMut2<f32>,
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
