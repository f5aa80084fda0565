//! Convolution: forward, gradient by input, gradient by weight, each a sum over (pixel, tap) pairs.
//!
//! ```text
//! for each output pixel o, panel j:       y[o][:, j]  = sum over taps t of o   x[i(o,t)] . w[j][t]
//! for each input pixel i, panel j of Cin: dx[i][:, j] = sum over (o, t) -> i   dy[o] . w'[j][t]
//! for each panel j, rows of Cin:          dw[j][t]    = sum over o             x[i(o,t)]' . dy[o][:, j]
//! ```
//!
//! The pairs come from tables made once per layer. A tap outside the image is not in the table, so the
//! border costs nothing (at 2x2 maps that is half of a 3x3 filter), and a stride only makes the tables
//! shorter.

use std::fmt;
use std::ops::Range;

use ndarray::{ArrayViewMut2, ArrayViewMut4, Axis};

use crate::gemm::{self, Beside, Matrix, Next, Term, multiply};
use crate::isa::Isa;
use crate::pool::Pool;
use crate::taps::{Entry, Table, hits};
use crate::tile::{
    IMAGES, Tile, for_each_tile, is_streamed, rows_of, stream, sums_len, view4, visit_tiles,
};
use crate::value::Value;
use crate::winograd::Winograd;

pub use crate::gemm::PANEL;

/// One convolution layer's shape and its table of taps.
pub struct Conv {
    /// Height and width of the input.
    pub input: [usize; 2],
    /// Height and width of the output.
    pub output: [usize; 2],
    /// Channels of the input.
    pub channels_in: usize,
    /// Channels of the output, a multiple of 64.
    pub channels_out: usize,
    /// Side of the filter.
    pub kernel: usize,
    /// For each output pixel, the taps that hit the image and where.
    forward: Table,
    /// For each input pixel, the taps that reach it and from which output pixel.
    backward: Table,
    /// Bits of the taps that hit any pixel.
    used: u64,
    /// Whether each output pixel is made of the same input pixel alone: then pixels and images are one
    /// long list of rows.
    is_pointwise: bool,
    /// The other way to compute it, where it was asked for.
    winograd: Option<Winograd>,
}

/// Why a layer cannot be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShapeError {
    /// The number of output channels is not a positive multiple of 64.
    ChannelsOut(usize),
    /// The number of input channels is zero, or (where a gradient by input is needed) no multiple of 64.
    ChannelsIn(usize),
    /// The filter's side is not 1 to 7, or the stride is 0.
    Kernel(usize),
    /// The filter is larger than the padded image.
    Image([usize; 2]),
}

impl fmt::Display for ShapeError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::ChannelsOut(c) => write!(f, "{c} output channels: need a multiple of {PANEL}"),
            Self::ChannelsIn(c) => write!(f, "{c} input channels: need 3 or a multiple of {PANEL}"),
            Self::Kernel(k) => {
                write!(f, "filter side {k}: need 1 to {KERNEL_MAX}, stride 1 or more")
            }
            Self::Image([h, w]) => write!(f, "image of {h}x{w} is smaller than the filter"),
        }
    }
}

impl std::error::Error for ShapeError {}

impl Conv {
    /// A square filter of side `kernel` with `stride` and zero padding `pad` over `input` (h, w).
    ///
    /// # Errors
    /// When the kernels cannot work on such a shape.
    pub fn new(
        input: [usize; 2],
        [channels_in, channels_out]: [usize; 2],
        kernel: usize,
        stride: usize,
        pad: usize,
    ) -> Result<Self, ShapeError> {
        if channels_out == 0 || !channels_out.is_multiple_of(PANEL) {
            return Err(ShapeError::ChannelsOut(channels_out));
        }
        if channels_in != 3 && (channels_in == 0 || !channels_in.is_multiple_of(PANEL)) {
            return Err(ShapeError::ChannelsIn(channels_in));
        }
        if !(1..=KERNEL_MAX).contains(&kernel) || stride == 0 {
            return Err(ShapeError::Kernel(kernel));
        }
        if input.iter().any(|&side| side == 0 || side + 2 * pad < kernel) {
            return Err(ShapeError::Image(input));
        }
        let output = input.map(|side| (side + 2 * pad - kernel) / stride + 1);
        let hits = hits(input, output, kernel, stride, pad);
        let forward = Table::new(output[0] * output[1], hits.iter().map(|h| (h.to, h.tap, h.from)));
        let backward = Table::new(input[0] * input[1], hits.iter().map(|h| (h.from, h.tap, h.to)));
        let is_pointwise =
            kernel == 1 && input == output && hits.iter().all(|hit| hit.from == hit.to);
        let used = hits.iter().fold(0, |used, hit| used | 1 << hit.tap);
        Ok(Self {
            input,
            output,
            channels_in,
            channels_out,
            kernel,
            forward,
            backward,
            used,
            is_pointwise,
            winograd: None,
        })
    }

    /// Computes by Winograd's F(4x4, 3x3) in `f32` on vector tiers, if the shape allows it: three to four
    /// times fewer multiplications for about ten times the rounding error.
    #[must_use]
    pub fn with_winograd(mut self) -> Self {
        if self.kernel == 3 && self.input == self.output {
            self.winograd = Winograd::new(self.input, [self.channels_in, self.channels_out]);
        }
        self
    }

    /// Whether [`Conv::with_winograd`] had an effect.
    pub fn is_winograd(&self) -> bool {
        self.winograd.is_some()
    }

    /// What computes passes over `f32`, if not the direct way.
    fn fast(&self, isa: Isa) -> Option<&Winograd> {
        self.winograd.as_ref().filter(|_| isa != Isa::Portable)
    }

    /// Number of weights.
    pub fn weights(&self) -> usize {
        self.taps() * self.channels_in * self.channels_out
    }

    /// Values of an input of `n` images.
    pub fn input_len(&self, n: usize) -> usize {
        self.input[0] * self.input[1] * n * self.channels_in
    }

    /// Values of an output of `n` images.
    pub fn output_len(&self, n: usize) -> usize {
        self.output[0] * self.output[1] * n * self.channels_out
    }

    /// Pixels, images and channels of an output as it is cut into tiles.
    pub fn output_tiles(&self, n: usize) -> (usize, usize, usize) {
        let (pixels, n) = self.rows(self.output, n);
        (pixels, n, self.channels_out)
    }

    /// As [`Conv::output_tiles`] of the gradient by the input.
    pub fn input_tiles(&self, n: usize) -> (usize, usize, usize) {
        let (pixels, n) = self.rows(self.input, n);
        (pixels, n, self.channels_in)
    }

    /// Pixels and images, or one pixel with all rows where that is the same.
    fn rows(&self, [h, w]: [usize; 2], n: usize) -> (usize, usize) {
        if self.is_pointwise { (1, h * w * n) } else { (h * w, n) }
    }

    /// Multiplications with values inside the image, for one pass over `n` images.
    pub fn multiplications(&self, n: usize) -> usize {
        self.forward.entries.len() * n * self.channels_in * self.channels_out
    }

    /// Where the weight (output channel, input channel, filter row, filter column) is in the panels.
    pub fn weight_index(&self, k: usize, c: usize, r: usize, s: usize) -> usize {
        panel_index(self.taps(), self.channels_in, [k, c, r * self.kernel + s])
    }

    /// `y = x * w`; all of `y` is written. `finish` is called for each tile of `y` once it is complete;
    /// `beside` is what it reads of the size of `y`, up to three slices. `sums` has [`Conv::sums_len`] values
    /// for it, `scratch` has [`Conv::scratch_len`].
    pub fn forward<T: Value>(
        &self,
        (pool, isa): (&Pool, Isa),
        n: usize,
        (x, w): (&[T], &[T]),
        (y, sums, scratch): (&mut [T], &mut [f32], &mut [f32]),
        (beside, finish): (&[&[T]], impl Fn(Tile<T>) + Sync),
    ) {
        assert_eq!((x.len(), w.len()), (self.input_len(n), self.weights()));
        if let Some(winograd) = self.fast(isa)
            && let (Some(x), Some(w)) = (T::single(x), T::single(w))
            && let Some(target) = T::single_mut(y)
        {
            winograd.forward((pool, isa), n, (x, w), target, scratch);
            return visit_tiles(pool, self.output_tiles(n), y, sums, finish);
        }
        let pass = Pass { table: &self.forward, taps: self.taps(), k: self.channels_in };
        let shape = self.output_tiles(n);
        pass.run((pool, isa), (x, w), shape, (y, sums), false, (beside, finish));
    }

    /// As [`Conv::forward`] for the first layer, whose input and weights are `f32` in every precision.
    pub fn forward_images<T: Value>(
        &self,
        (pool, isa): (&Pool, Isa),
        n: usize,
        (x, w): (&[f32], &[f32]),
        (y, sums): (&mut [T], &mut [f32]),
        finish: impl Fn(Tile<T>) + Sync,
    ) {
        assert_eq!((x.len(), w.len()), (self.input_len(n), self.weights()));
        let pass = Pass { table: &self.forward, taps: self.taps(), k: self.channels_in };
        let shape = self.output_tiles(n);
        let held = || [0.0_f32; IMAGES * PANEL];
        for_each_tile(pool, shape, (y, sums), held, |sum, (pixel, image), mut tile| {
            let sum = &mut sum[..tile.values.len()];
            pass.sum((x, w), (pixel, shape.1, image, tile.channel), |terms, k| {
                let rows = (tile.values.nrows(), PANEL);
                let c = ArrayViewMut2::from_shape(rows, &mut *sum).expect("whole rows");
                multiply(isa, terms, k, c, false, Beside::NOTHING);
            });
            for (mut row, sum) in tile.values.rows_mut().into_iter().zip(sum.chunks_exact(PANEL)) {
                let row = row.as_slice_mut().expect("rows are contiguous");
                isa.run(
                    #[inline(always)]
                    || row.iter_mut().zip(sum).for_each(|(y, &sum)| *y = T::narrow(sum)),
                );
            }
            finish(tile);
        });
    }

    /// `dx = dy * w'`, or `dx +=` where `accumulate` is set. `transposed` holds the weights as
    /// [`Conv::transpose`] wrote them; `finish` and `beside` are as in [`Conv::forward`].
    ///
    /// # Panics
    /// If the input channels are no multiple of 64 (the first layer needs no such gradient).
    pub fn backward_input<T: Value>(
        &self,
        (pool, isa): (&Pool, Isa),
        n: usize,
        (dy, transposed): (&[T], &[T]),
        (dx, sums, scratch): (&mut [T], &mut [f32], &mut [f32]),
        accumulate: bool,
        (beside, finish): (&[&[T]], impl Fn(Tile<T>) + Sync),
    ) {
        assert!(self.channels_in.is_multiple_of(PANEL), "no gradient by input for this layer");
        assert_eq!((dy.len(), transposed.len()), (self.output_len(n), self.weights()));
        if let Some(winograd) = self.fast(isa).filter(|_| !accumulate)
            && let (Some(dy), Some(w)) = (T::single(dy), T::single(transposed))
            && let Some(target) = T::single_mut(dx)
        {
            winograd.backward_input((pool, isa), n, (dy, w), target, scratch);
            return visit_tiles(pool, self.input_tiles(n), dx, sums, finish);
        }
        let pass = Pass { table: &self.backward, taps: self.taps(), k: self.channels_out };
        let shape = self.input_tiles(n);
        let operands = (dy, transposed);
        pass.run((pool, isa), operands, shape, (dx, sums), accumulate, (beside, finish));
    }

    /// Rewrites weights `[Cout/64][taps][Cin][64]` as panels `[Cin/64][taps][Cout][64]` of `T`; those of
    /// taps that hit no pixel are left out.
    pub fn transpose<T: Value>(&self, (pool, isa): (&Pool, Isa), w: &[f32], transposed: &mut [T]) {
        let taps = self.taps();
        assert_eq!(w.len(), self.weights());
        let turned = [self.channels_in / PANEL, taps, self.channels_out, PANEL];
        let target = view4(transposed, turned);
        pool.for_each_block(target, [1, 1, PANEL, PANEL], |[ci, tap, co, _], mut block| {
            if self.used >> tap & 1 == 1 {
                let at = ((co / PANEL * taps + tap) * self.channels_in + ci * PANEL) * PANEL;
                let panel = block.as_slice_mut().expect("64 whole rows are contiguous");
                T::turn(isa, &w[at..][..PANEL * PANEL], panel);
            }
        });
    }

    /// `dw = x' * dy`; all of `dw` is written. `scratch` has [`Conv::scratch_len`] values.
    pub fn backward_weight<T: Value>(
        &self,
        exec: (&Pool, Isa),
        n: usize,
        operands: (&[T], &[T]),
        results: (&mut [f32], &mut [f32]),
    ) {
        let ((x, dy), (dw, scratch)) = (operands, results);
        if let Some(winograd) = self.fast(exec.1)
            && let (Some(x), Some(dy)) = (T::single(x), T::single(dy))
        {
            return winograd.backward_weight(exec, n, (x, dy), dw, scratch);
        }
        let results = (dw, scratch);
        self.sum_parts(exec, n, (x, dy), results, |dy, strips| T::strips(exec.1, dy, strips));
    }

    /// As [`Conv::backward_weight`] for the first layer, whose input is `f32` in every precision.
    pub fn backward_weight_images<T: Value>(
        &self,
        exec: (&Pool, Isa),
        n: usize,
        operands: (&[f32], &[T]),
        results: (&mut [f32], &mut [f32]),
    ) {
        self.sum_parts(exec, n, operands, results, |dy, strips| {
            exec.1.run(
                #[inline(always)]
                || gemm::strips(dy, strips, T::widen),
            );
        });
    }

    fn sum_parts<X: Value, T: Value>(
        &self,
        (pool, isa): (&Pool, Isa),
        n: usize,
        (x, dy): (&[X], &[T]),
        (dw, scratch): (&mut [f32], &mut [f32]),
        strips: impl Fn(Matrix<T>, &mut [X::Word]) + Sync,
    ) {
        assert_eq!((x.len(), dy.len()), (self.input_len(n), self.output_len(n)));
        assert_eq!(dw.len(), self.weights());
        let (taps, splits, panels) = (self.taps(), self.splits(n), self.channels_out / PANEL);
        let steps = self.steps(n);
        let parts = if splits == 1 { &mut *dw } else { &mut scratch[..splits * self.weights()] };
        let parts = view4(parts, [splits * panels, taps, self.channels_in, PANEL]);
        let rows = self.weight_rows();
        let parts = (parts, [1, taps, rows, PANEL]);
        pool.for_each_block_with(parts, Packed::default, |packed, [part, _, c, _], block| {
            let (split, panel) = (part / panels, part % panels);
            let range = split * steps / splits..(split + 1) * steps / splits;
            self.sum_weights(isa, n, (x, dy), (range, panel, c), (&strips, packed), block);
        });
        if splits > 1 {
            add_up((pool, isa), &scratch[..splits * dw.len()], dw);
        }
    }

    /// Values of the sums over the tiles of an output or an input of `n` images, whichever are more.
    pub fn sums_len(&self, n: usize) -> usize {
        sums_len(self.output_tiles(n)).max(sums_len(self.input_tiles(n)))
    }

    /// Values that passes over `n` images need beside their operands.
    pub fn scratch_len(&self, n: usize) -> usize {
        let splits = self.splits(n);
        let parts = if splits == 1 { 0 } else { splits * self.weights() };
        self.winograd.map_or(parts, |winograd| parts.max(winograd.scratch_len(n)))
    }

    /// Steps of the sum over pixels and images.
    fn steps(&self, n: usize) -> usize {
        let (pixels, n) = self.rows(self.output, n);
        pixels * n.div_ceil(IMAGES)
    }

    /// One task of the gradient by weight: a range of steps, one panel, rows from `c` on.
    fn sum_weights<X: Value, T: Value>(
        &self,
        isa: Isa,
        n: usize,
        (x, dy): (&[X], &[T]),
        (steps, panel, c): (Range<usize>, usize, usize),
        (strips, packed): (impl Fn(Matrix<T>, &mut [X::Word]), &mut Packed<X::Word>),
        block: ArrayViewMut4<f32>,
    ) {
        let (k, channels) = (self.channels_out, self.channels_in);
        let (pixels, n) = self.rows(self.output, n);
        let chunks = n.div_ceil(IMAGES);
        let place = |step: usize| (step / chunks, step % chunks * IMAGES);
        let gradient = |pixel: usize, image: usize| &dy[(pixel * n + image) * k + panel * PANEL..];
        let input = |entry: &Entry, image: usize, c: usize| {
            &x[(entry.pixel as usize * n + image) * channels + c..]
        };
        let mut block = block.index_axis_move(Axis(0), 0);
        let Packed { dy: packed, columns } = packed;
        let mut begun = 0_u64;
        for step in steps {
            let (pixel, image) = place(step);
            let rows = IMAGES.min(n - image);
            let dy = Matrix { data: gradient(pixel, image), rows, cols: PANEL, stride: k };
            strips(dy, packed);
            let (pixel_after, after) = place((step + 1).min(pixels * chunks - 1));
            let entries = self.forward.of(pixel);
            let ahead = self.forward.of(pixel_after).first();
            for (index, entry) in entries.iter().enumerate() {
                let tap = entry.tap as usize;
                let mut tile = block.index_axis_mut(Axis(0), tap);
                for (chunk, tile) in tile.axis_chunks_iter_mut(Axis(0), X::CHUNK).enumerate() {
                    let c = c + chunk * X::CHUNK;
                    let data = input(entry, image, c);
                    let x = Matrix { data, rows, cols: tile.nrows(), stride: channels };
                    let next = Next {
                        a: match entries.get(index + 1) {
                            Some(entry) => input(entry, image, c),
                            None => ahead.map_or(data, |entry| input(entry, after, c)),
                        },
                        a_stride: channels,
                        b: gradient(pixel_after, after),
                        b_stride: k,
                        rows_at_once: X::WORD,
                    };
                    let x = X::columns(isa, x, columns);
                    X::multiply_transposed(isa, x, packed, next, tile, begun >> tap & 1 == 1);
                }
                begun |= 1 << tap;
            }
        }
        for (tap, mut tile) in block.outer_iter_mut().enumerate() {
            if begun >> tap & 1 == 0 {
                tile.fill(0.0);
            }
        }
    }

    fn taps(&self) -> usize {
        self.kernel * self.kernel
    }

    /// Rows of `dw` that one task computes: as many as stay in the second-level cache with all taps.
    fn weight_rows(&self) -> usize {
        (TASK_ROWS / self.taps()).next_multiple_of(PANEL).min(self.channels_in)
    }

    /// Into how many ranges of steps the sum over them is cut: enough for many threads, few enough that
    /// adding up the parts costs little. No function of the threads.
    fn splits(&self, n: usize) -> usize {
        let tasks = self.channels_out / PANEL * self.channels_in.div_ceil(self.weight_rows());
        let room = PARTS_MAX / self.weights();
        (TASKS / tasks).min(room).min(self.steps(n)).max(1)
    }
}

/// Rows of a gradient by weight (of 64 columns, over all taps) in one task: 128 KiB.
const TASK_ROWS: usize = 512;
/// Tasks of a gradient by weight that are enough.
const TASKS: usize = 32;
/// Values of all parts of a gradient by weight: 1 MiB.
const PARTS_MAX: usize = 1 << 18;

/// `dw` = the sum of the parts, in their order.
fn add_up((pool, isa): (&Pool, Isa), parts: &[f32], dw: &mut [f32]) {
    const LEN: usize = 1 << 12;
    let len = dw.len();
    pool.for_each_chunk(dw, LEN, |index, dw| {
        isa.run(
            #[inline(always)]
            || {
                for (number, part) in parts.chunks_exact(len).enumerate() {
                    let part = &part[index * LEN..][..dw.len()];
                    if number == 0 {
                        dw.copy_from_slice(part);
                        continue;
                    }
                    for (sum, &value) in dw.iter_mut().zip(part) {
                        *sum += value;
                    }
                }
            },
        );
    });
}

/// Where the weight (output channel, input channel, tap) is in panels `[Cout/64][taps][Cin][64]`.
pub fn panel_index(taps: usize, channels_in: usize, [k, c, tap]: [usize; 3]) -> usize {
    ((k / PANEL * taps + tap) * channels_in + c) * PANEL + k % PANEL
}

/// Largest side of a filter.
const KERNEL_MAX: usize = 7;

/// Columns that are packed at a time where they have to be: as many as a format's chunk has.
const COLUMNS: usize = 128;

/// Operands of a gradient by weight as its kernel reads them.
struct Packed<W> {
    dy: [W; IMAGES * PANEL],
    columns: [W; IMAGES / 2 * COLUMNS],
}

impl<W: Copy + Default> Default for Packed<W> {
    fn default() -> Self {
        Self { dy: [W::default(); IMAGES * PANEL], columns: [W::default(); IMAGES / 2 * COLUMNS] }
    }
}

/// One pass that writes pixels: forward, or gradient by input.
struct Pass<'a> {
    table: &'a Table,
    taps: usize,
    /// Channels of the source.
    k: usize,
}

impl Pass<'_> {
    /// Computes the tiles of `y`, an activation of such a shape, and finishes each.
    fn run<T: Value>(
        &self,
        (pool, isa): (&Pool, Isa),
        operands: (&[T], &[T]),
        shape: (usize, usize, usize),
        (y, sums): (&mut [T], &mut [f32]),
        accumulate: bool,
        (beside, finish): (&[&[T]], impl Fn(Tile<T>) + Sync),
    ) {
        let (_, n, channels) = shape;
        let streamed = is_streamed(y);
        let held = || [T::default(); IMAGES * PANEL];
        for_each_tile(pool, shape, (y, sums), held, |held, (pixel, image), mut tile| {
            let at = tile.row * channels + tile.channel;
            let mut ahead = Beside { stride: channels, ..Beside::NOTHING };
            for (start, data) in ahead.starts.iter_mut().zip(beside) {
                *start = &data[at..];
            }
            let multiply = |c: ArrayViewMut2<T>| {
                self.sum(operands, (pixel, n, image, tile.channel), |terms, k| {
                    T::multiply(isa, terms, k, c, accumulate, ahead);
                });
            };
            if !streamed {
                multiply(tile.values.view_mut());
                return finish(tile);
            }
            let Tile { row, channel, values: place, sums } = tile;
            let held = &mut held[..place.len()];
            if accumulate {
                // In the widest vectors, so that many lines are on their way at once.
                isa.run(
                    #[inline(always)]
                    || {
                        for (row, held) in
                            place.rows().into_iter().zip(held.chunks_exact_mut(PANEL))
                        {
                            held.copy_from_slice(row.to_slice().expect("rows are contiguous"));
                        }
                    },
                );
            }
            let mut values = rows_of(held);
            multiply(values.view_mut());
            finish(Tile { row, channel, values, sums });
            stream(isa, held, place);
        });
    }

    /// Hands the terms of a tile to `product`, with `k` and the distance of rows.
    fn sum<T: Value>(
        &self,
        (source, panels): (&[T], &[T]),
        (pixel, n, image, channel): (usize, usize, usize, usize),
        product: impl FnOnce(&[Term<T>], (usize, usize)),
    ) {
        let Self { table, taps, k } = *self;
        let panel = channel / PANEL * taps;
        let mut terms = [Term { a: &[][..], b: &[][..] }; KERNEL_MAX * KERNEL_MAX];
        let entries = table.of(pixel);
        for (term, &Entry { tap, pixel }) in terms.iter_mut().zip(entries) {
            let (pixel, tap) = (pixel as usize, tap as usize);
            *term = Term {
                a: &source[(pixel * n + image) * k..(pixel + 1) * n * k],
                b: &panels[(panel + tap) * k * PANEL..][..k * PANEL],
            };
        }
        product(&terms[..entries.len()], (k, k));
    }
}
