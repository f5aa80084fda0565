//! Groups of tiles that one thread takes through all stages in its second-level cache, and finishes.

use ndarray::{ArrayViewMut2, ArrayViewMut4, Axis};

use super::scheme::{PRODUCTS_MAX, Transform};
use super::staged::Map;
use super::tiling::{Winograd, distance};
use crate::base::exec::Exec;
use crate::base::isa::Isa;
use crate::base::panel::{PANEL, Prefetch, Strided};
use crate::base::tile::{IMAGES, SUMS, Target, Tile, is_streamed, rows_of, view4};
use crate::gemm::epilogue::{Epilogue, Store};
use crate::gemm::product::Product;
use crate::gemm::{self, Products, Term};
use crate::parallel::{DisjointBlocks, DisjointChunks};

/// Most channels of layers whose groups a thread keeps to itself, and rows of such a group: 37 slots of 16 x 128
/// values are 300 KiB, which leaves room in a second-level cache of 1 MiB for the panels that pass by. With 256
/// channels the weights of all frequencies (9 MiB) would be read for each 16 rows: `cargo bench -p kernels -- cifar
/// avx512+fast 64 1 3x3` shows which way is faster for a layer.
const CHANNELS: usize = 128;
const ROWS: usize = 16;
/// Threads that have room for a group: more share the work of the others' tasks, so that scratch memory is bounded.
const PARTS: usize = 64;
/// Tasks of a thread that are enough for the threads to end at the same time: the last one to end is an eighth of
/// a share behind at most.
const TASKS: usize = 8;
/// Values of a tile of outputs.
const HELD: usize = 16 * ROWS * CHANNELS;

/// What becomes of a pixel of a task: `[images][k]` as they were computed, or what is there.
type Put<'a, T> = dyn FnMut([usize; 2], Option<&[T]>, ArrayViewMut2<T>) + 'a;

impl Winograd {
    /// Whether a thread keeps a group to itself.
    pub(super) fn is_fused(&self) -> bool {
        self.channels.iter().all(|&channels| channels <= CHANNELS)
    }

    /// Values of the parts of all threads.
    pub(super) fn fused_len(&self) -> usize {
        if self.is_fused() { PARTS * self.part_len() } else { 0 }
    }

    fn part_len(&self) -> usize {
        let [c, k] = self.channels;
        (self.scheme.products() + 1) * distance(ROWS, c.max(k))
    }

    /// Images of a tile that is finished as soon as it is computed, if `n` are cut into such.
    pub(crate) fn images(&self, n: usize) -> Option<usize> {
        let images = n.min(ROWS);
        (self.is_fused() && n.is_multiple_of(images)).then_some(images)
    }

    /// The most tiles of a pixel for up to `n` images.
    pub(crate) fn chunks(&self, n: usize) -> usize {
        n.div_ceil(if self.is_fused() { ROWS } else { IMAGES })
    }

    /// Group by group, all stages of one by one thread, which finishes its tiles where it can.
    pub(super) fn convolve_fused<T: Product>(
        &self,
        Exec { pool, isa }: Exec,
        layer: Layer<T>,
        Target { values: y, sums }: Target<T>,
        scratch: &mut [f32],
        epilogue: Epilogue<T>,
    ) {
        let Layer { x, weights, k } = layer;
        let ([height, width], n, tile) = (self.size(), x.n, self.scheme.tile());
        let epilogue = if self.images(n).is_some() { epilogue } else { Epilogue::Keep };
        let store = Store { streamed: is_streamed(y), ..Store::of(epilogue, k) };
        let work = Work { isa, winograd: *self, x, weights, k, store };
        let images = n.min(ROWS);
        // As many tiles side by side as leave tasks for all threads: they share inputs.
        let [rows, columns] = self.tiles;
        let tasks = TASKS * pool.threads();
        let run = columns.min(rows * columns * n.div_ceil(images) / tasks).max(1);
        // Rows outermost, where each thread has some: then its tasks are of the pixels that it also has in the
        // passes before and after. Else images, whose tiles share inputs.
        let axes = if rows >= pool.threads() { [0, 2, 1, 3] } else { [2, 0, 1, 3] };
        let of = |sizes: [usize; 4]| axes.map(|axis| sizes[axis]);
        // From that order to images, rows, columns, channels.
        let order = if axes[0] == 0 { [1, 0, 2, 3] } else { [0, 1, 2, 3] };
        let y = view4(y, [height, width, n, k]).permuted_axes(axes);
        let y = DisjointBlocks::new(y, of([tile, tile * run, images, k]));
        let scratch = DisjointChunks::new(scratch, self.part_len());
        let held = || [T::default(); HELD];
        if self.images(n).is_none() {
            return pool.for_each_block_in(y, scratch, held, |held, at, y, part| {
                let (at, y) = (order.map(|axis| at[axis]), y.permuted_axes(order));
                work.run(at, y, part, held, &mut |_, source, values| {
                    let sums = ArrayViewMut2::from_shape((0, k), &mut []).expect("nothing");
                    work.put(source, Tile { row: 0, channel: 0, values, sums });
                });
            });
        }
        let sums = &mut sums[..height * width * (n / images) * SUMS * k];
        let sums = view4(sums, [height, width, n / images * SUMS, k]).permuted_axes(axes);
        let sums = DisjointBlocks::new(sums, of([tile, tile * run, SUMS, k]));
        pool.for_each_block2_in(
            y,
            sums,
            scratch,
            |_| 1,
            held,
            |held, at, y, sums, part| {
                let (at, y) = (order.map(|axis| at[axis]), y.permuted_axes(order));
                let mut sums = sums.permuted_axes(order);
                work.run(at, y, part, held, &mut |[p, q], source, values| {
                    let row = work.row([at[0], at[1] + p, at[2] + q]);
                    let sums = sums.index_axis_mut(Axis(1), p).index_axis_move(Axis(1), q);
                    work.put(source, Tile { row, channel: 0, values, sums });
                });
            },
        );
    }
}

/// What a layer is computed from.
pub(super) struct Layer<'a, T> {
    /// The activation that it reads.
    pub(super) x: Map<'a, T>,
    /// Its weights, transformed.
    pub(super) weights: &'a [f32],
    /// Channels that it writes.
    pub(super) k: usize,
}

/// What all groups share.
struct Work<'a, T> {
    isa: Isa,
    winograd: Winograd,
    x: Map<'a, T>,
    weights: &'a [f32],
    k: usize,
    store: Store<'a, T>,
}

impl<T: Product> Work<'_, T> {
    /// Row of an image of a pixel.
    fn row(&self, [image, h, w]: [usize; 3]) -> usize {
        (h * self.x.size[1] + w) * self.x.n + image
    }

    /// Ends a pixel.
    fn put(&self, source: Option<&[T]>, tile: Tile<T>) {
        match source {
            Some(values) => {
                let rows = Strided { data: values, stride: self.k };
                self.store.write(self.isa, rows, tile)
            }
            None => self.store.write_in_place(self.isa, tile),
        }
    }

    /// Tiles side by side from (image, h, w) on, as many at a time as make up the rows of a group; each pixel
    /// of `y`, `[images][height][width][k]`, is handed to `put` when it is computed.
    fn run(
        &self,
        [image, h, w, _]: [usize; 4],
        mut y: ArrayViewMut4<T>,
        part: &mut [f32],
        held: &mut [T; HELD],
        put: &mut Put<T>,
    ) {
        let (images, side) = (y.len_of(Axis(0)), self.winograd.scheme.tile());
        let width = (ROWS / images).max(1) * side;
        let end = y.len_of(Axis(2));
        for (group, mut y) in y.axis_chunks_iter_mut(Axis(2), width).enumerate() {
            let tiles = y.len_of(Axis(2)) / side;
            let at = [h, w + group * width, image];
            let is_last = (group + 1) * width >= end;
            self.multiply(at, tiles, images, is_last, part);
            for (tile, y) in y.axis_chunks_iter_mut(Axis(2), side).enumerate() {
                let slots = part.chunks(self.distance(tiles * images));
                let from = tile * images * self.k;
                let column = group * width + tile * side;
                self.write(slots.map(|slot| slot.get(from..).unwrap_or(&[])), column, y, held, put);
            }
        }
    }

    /// Values from one frequency to the next. The products of one lie where the inputs of the one before did.
    fn distance(&self, rows: usize) -> usize {
        distance(rows, self.x.channels.max(self.k))
    }

    /// Inputs of some tiles, and their products.
    fn multiply(
        &self,
        at: [usize; 3],
        tiles: usize,
        images: usize,
        is_last: bool,
        part: &mut [f32],
    ) {
        let (scheme, c, k) = (self.winograd.scheme, self.x.channels, self.k);
        let (side, rows, len) = (scheme.tile(), tiles * images, images * c);
        let distance = self.distance(rows);
        for tile in 0..tiles {
            let [h, w, image] = at;
            let sources = self.x.inputs(scheme, [h, w + tile * side, image], len);
            let slots = part.chunks_mut(distance).skip(1).take(scheme.products());
            let mut slots = slots.map(|slot| &mut slot[tile * len..][..len]);
            let mut targets = std::array::from_fn(|_| slots.next().unwrap_or_default());
            Transform::Input.apply(self.isa, scheme, &sources, &mut targets);
        }
        let next = [at[0], at[1] + side, at[2]];
        let next = self.x.inputs(scheme, next, if is_last || tiles > 1 { 0 } else { len });
        for frequency in 0..scheme.products() {
            let (done, inputs) = part.split_at_mut((frequency + 1) * distance);
            let mut products = rows_of(&mut done[frequency * distance..][..rows * k], k);
            let pixel = [frequency / side, frequency % side];
            let row = self.row([at[2], at[0] + pixel[0], at[1] + pixel[1]]);
            for (panel, products) in products.axis_chunks_iter_mut(Axis(1), PANEL).enumerate() {
                let from = (frequency * k / PANEL + panel) * c * PANEL;
                let b = &self.weights[from..][..c * PANEL];
                let mut beside = match pixel[0] < side && tiles == 1 {
                    true => self.store.epilogue.beside(row, panel * PANEL, k),
                    false => Prefetch::of::<T>(k),
                };
                // What the next tile shares with this one is there.
                if c == k && frequency % 6 >= 2 {
                    let next = next[frequency].get(panel * PANEL..);
                    beside.starts[3] = next.map(|data| data.as_ptr().cast());
                }
                let term = Term { a: &inputs[..rows * c], b };
                let terms = Products { terms: &[term], k: c, stride: c, panel_stride: 0 };
                gemm::multiply(self.isa, terms, products, beside);
            }
        }
    }

    /// The products of one tile to its outputs.
    fn write<'s>(
        &self,
        mut slots: impl Iterator<Item = &'s [f32]>,
        column: usize,
        mut y: ArrayViewMut4<T>,
        held: &mut [T; HELD],
        put: &mut Put<T>,
    ) {
        let (k, scheme) = (self.k, self.winograd.scheme);
        let (isa, side) = (self.isa, scheme.tile());
        let sources = std::array::from_fn(|_| slots.next().unwrap_or_default());
        let mut pixels = pixels(&mut y);
        let len = pixels[0].len();
        let at = |pixel: usize| [pixel / side, column + pixel % side];
        if !self.store.streamed {
            Transform::Output.apply(isa, scheme, &sources, &mut pixels);
            for (pixel, values) in pixels.into_iter().take(side * side).enumerate() {
                put(at(pixel), None, rows_of(values, k));
            }
            return;
        }
        let mut parts = held.chunks_exact_mut(len);
        let mut targets = std::array::from_fn(|_| parts.next().unwrap_or_default());
        Transform::Output.apply(isa, scheme, &sources, &mut targets);
        for (pixel, (held, y)) in targets.into_iter().zip(pixels).take(side * side).enumerate() {
            put(at(pixel), Some(held), rows_of(y, k));
        }
    }
}

/// The pixels of `[images][height][width][k]`; empty slices after them.
fn pixels<'a, T>(y: &'a mut ArrayViewMut4<T>) -> [&'a mut [T]; PRODUCTS_MAX] {
    let (images, _, _, k) = y.dim();
    let pixels = y.exact_chunks_mut((images, 1, 1, k)).into_iter();
    let mut pixels = pixels.filter_map(ArrayViewMut4::into_slice);
    std::array::from_fn(|_| pixels.next().unwrap_or_default())
}
