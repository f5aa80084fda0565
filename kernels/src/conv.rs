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

use ndarray::{ArrayViewMut2, ArrayViewMut4, Axis};

use crate::gemm::{Matrix, Term, multiply, multiply_transposed};
use crate::isa::Isa;
use crate::pool::Pool;

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
        Ok(Self { input, output, channels_in, channels_out, kernel, forward, backward })
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

    /// Multiplications with values inside the image, for one pass over `n` images.
    pub fn multiplications(&self, n: usize) -> usize {
        self.forward.entries.len() * n * self.channels_in * self.channels_out
    }

    /// Where the weight (output channel, input channel, filter row, filter column) is in the panels.
    pub fn weight_index(&self, k: usize, c: usize, r: usize, s: usize) -> usize {
        panel_index(self.taps(), self.channels_in, [k, c, r * self.kernel + s])
    }

    /// `y = x * w`; all of `y` is written.
    pub fn forward(
        &self,
        (pool, isa): (&Pool, Isa),
        n: usize,
        x: &[f32],
        w: &[f32],
        y: &mut [f32],
    ) {
        assert_eq!((x.len(), w.len()), (self.input_len(n), self.weights()));
        let k = self.channels_in;
        let pass = Pass { table: &self.forward, taps: self.taps(), n, k };
        pass.run((pool, isa), x, w, view4(y, [1, pass.pixels(), n, self.channels_out]), false);
    }

    /// `dx = dy * w'`, or `dx +=` where `accumulate` is set. `transposed` holds the weights as
    /// [`Conv::transpose`] wrote them.
    ///
    /// # Panics
    /// If the input channels are no multiple of 64 (the first layer needs no such gradient).
    pub fn backward_input(
        &self,
        (pool, isa): (&Pool, Isa),
        n: usize,
        dy: &[f32],
        transposed: &[f32],
        (dx, accumulate): (&mut [f32], bool),
    ) {
        assert!(self.channels_in.is_multiple_of(PANEL), "no gradient by input for this layer");
        assert_eq!((dy.len(), transposed.len()), (self.output_len(n), self.weights()));
        let pass = Pass { table: &self.backward, taps: self.taps(), n, k: self.channels_out };
        let dx = view4(dx, [1, pass.pixels(), n, self.channels_in]);
        pass.run((pool, isa), dy, transposed, dx, accumulate);
    }

    /// Rewrites weights `[Cout/64][taps][Cin][64]` as `[Cin/64][taps][Cout][64]`.
    pub fn transpose(&self, (pool, isa): (&Pool, Isa), w: &[f32], transposed: &mut [f32]) {
        let taps = self.taps();
        assert_eq!(w.len(), self.weights());
        let turned = [self.channels_in / PANEL, taps, self.channels_out, PANEL];
        let target = view4(transposed, turned);
        pool.for_each_block(target, [1, 1, PANEL, PANEL], |[ci, tap, co, _], mut block| {
            let at = ((co / PANEL * taps + tap) * self.channels_in + ci * PANEL) * PANEL;
            let source = &w[at..][..PANEL * PANEL];
            let target = block.as_slice_mut().expect("64 whole rows are contiguous");
            isa.run(
                #[inline(always)]
                || turn(source, target),
            );
        });
    }

    /// `dw = x' * dy`; all of `dw` is written.
    pub fn backward_weight(
        &self,
        (pool, isa): (&Pool, Isa),
        n: usize,
        (x, dy): (&[f32], &[f32]),
        dw: &mut [f32],
    ) {
        assert_eq!((x.len(), dy.len()), (self.input_len(n), self.output_len(n)));
        let taps = self.taps();
        let rows = self.weight_rows();
        let dw = view4(dw, [self.channels_out / PANEL, taps, self.channels_in, PANEL]);
        pool.for_each_block(dw, [1, taps, rows, PANEL], |[panel, _, c, _], mut block| {
            block.fill(0.0);
            let mut block = block.index_axis_move(Axis(0), 0);
            let mut packed = [0.0_f32; IMAGES * PANEL];
            let rows = block.len_of(Axis(1));
            for pixel in 0..self.forward.pixels() {
                for first in (0..n).step_by(IMAGES) {
                    let images = IMAGES.min(n - first);
                    let at = (pixel * n + first) * self.channels_out + panel * PANEL;
                    let dy = pack(&dy[at..], images, self.channels_out, &mut packed);
                    for &Entry { tap, pixel } in self.forward.of(pixel) {
                        let at = (pixel as usize * n + first) * self.channels_in + c;
                        let x = Matrix {
                            data: &x[at..],
                            rows: images,
                            cols: rows,
                            stride: self.channels_in,
                        };
                        let tile = block.index_axis_mut(Axis(0), tap as usize);
                        multiply_transposed(isa, x, dy, tile);
                    }
                }
            }
        });
    }

    fn taps(&self) -> usize {
        self.kernel * self.kernel
    }

    /// Rows of `dw` that one task computes: enough to pay for packing `dy`, few enough for all threads.
    fn weight_rows(&self) -> usize {
        let rows = if self.taps() > 1 || self.channels_in <= PANEL { 32 } else { 128 };
        rows.min(self.channels_in)
    }
}

/// Where the weight (output channel, input channel, tap) is in panels `[Cout/64][taps][Cin][64]`.
pub fn panel_index(taps: usize, channels_in: usize, [k, c, tap]: [usize; 3]) -> usize {
    ((k / PANEL * taps + tap) * channels_in + c) * PANEL + k % PANEL
}

/// Largest side of a filter.
const KERNEL_MAX: usize = 7;

/// Images whose gradients are packed at a time: 32 KiB, the first-level cache.
const IMAGES: usize = 128;

/// Copies `images` rows of 64 columns next to one another, unless they lie close already.
fn pack<'a>(
    dy: &'a [f32],
    images: usize,
    stride: usize,
    packed: &'a mut [f32; IMAGES * PANEL],
) -> Matrix<'a> {
    if stride <= 2 * PANEL {
        return Matrix { data: dy, rows: images, cols: PANEL, stride };
    }
    for (target, source) in packed.chunks_exact_mut(PANEL).zip(dy.chunks(stride)).take(images) {
        target.copy_from_slice(&source[..PANEL]);
    }
    Matrix { data: packed, rows: images, cols: PANEL, stride: PANEL }
}

/// Transposes a 64x64 tile, sixteen columns at a time so that reads stay in a few cache lines.
#[inline(always)]
fn turn(source: &[f32], target: &mut [f32]) {
    const WIDTH: usize = 16;
    for first in (0..PANEL).step_by(WIDTH) {
        for (k, row) in target.chunks_exact_mut(PANEL).enumerate() {
            let row = &mut row[first..first + WIDTH];
            for (c, value) in row.iter_mut().enumerate() {
                *value = source[(first + c) * PANEL + k];
            }
        }
    }
}

/// One pass that writes pixels: forward, or gradient by input.
struct Pass<'a> {
    table: &'a Table,
    taps: usize,
    n: usize,
    /// Channels of the source.
    k: usize,
}

impl Pass<'_> {
    fn pixels(&self) -> usize {
        self.table.pixels()
    }

    fn run(
        &self,
        (pool, isa): (&Pool, Isa),
        source: &[f32],
        panels: &[f32],
        target: ArrayViewMut4<f32>,
        accumulate: bool,
    ) {
        let Self { table, taps, n, k } = *self;
        pool.for_each_block(target, [1, 1, n, PANEL], |[_, pixel, _, column], block| {
            let panel = column / PANEL * taps;
            let mut terms = [Term { a: &[], b: &[] }; KERNEL_MAX * KERNEL_MAX];
            let entries = table.of(pixel);
            for (term, &Entry { tap, pixel }) in terms.iter_mut().zip(entries) {
                let (pixel, tap) = (pixel as usize, tap as usize);
                *term = Term {
                    a: &source[pixel * n * k..][..n * k],
                    b: &panels[(panel + tap) * k * PANEL..][..k * PANEL],
                };
            }
            let rows: ArrayViewMut2<f32> =
                block.index_axis_move(Axis(0), 0).index_axis_move(Axis(0), 0);
            multiply(isa, &terms[..entries.len()], (k, k), rows, accumulate);
        });
    }
}

/// A tap and the pixel on its other side.
#[derive(Clone, Copy)]
struct Entry {
    pixel: u32,
    tap: u32,
}

/// For each pixel of one side, its entries.
struct Table {
    starts: Vec<usize>,
    entries: Vec<Entry>,
}

impl Table {
    fn new(pixels: usize, hits: impl Iterator<Item = (u32, u32, u32)>) -> Self {
        let mut hits: Vec<_> = hits.collect();
        hits.sort_unstable();
        let starts = (0..=pixels)
            .map(|pixel| hits.partition_point(|&(at, _, _)| (at as usize) < pixel))
            .collect();
        let entries = hits.iter().map(|&(_, tap, pixel)| Entry { pixel, tap }).collect();
        Self { starts, entries }
    }

    fn pixels(&self) -> usize {
        self.starts.len() - 1
    }

    fn of(&self, pixel: usize) -> &[Entry] {
        &self.entries[self.starts[pixel]..self.starts[pixel + 1]]
    }
}

/// Input pixel `from` reaches output pixel `to` through `tap`.
struct Hit {
    from: u32,
    to: u32,
    tap: u32,
}

fn hits(
    input: [usize; 2],
    output: [usize; 2],
    kernel: usize,
    stride: usize,
    pad: usize,
) -> Vec<Hit> {
    let along = |axis: usize, q: usize, s: usize| {
        (q * stride + s).checked_sub(pad).filter(|&at| at < input[axis])
    };
    let mut hits = Vec::new();
    for p in 0..output[0] {
        for q in 0..output[1] {
            for r in 0..kernel {
                for s in 0..kernel {
                    let (Some(h), Some(w)) = (along(0, p, r), along(1, q, s)) else { continue };
                    let index = |at: usize| u32::try_from(at).expect("images are small");
                    hits.push(Hit {
                        from: index(h * input[1] + w),
                        to: index(p * output[1] + q),
                        tap: index(r * kernel + s),
                    });
                }
            }
        }
    }
    hits
}

fn view4(data: &mut [f32], shape: [usize; 4]) -> ArrayViewMut4<'_, f32> {
    ArrayViewMut4::from_shape(shape, data).expect("a buffer of the layer's size")
}
