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

mod pass;
mod transpose;
mod weight;
pub(crate) mod window;
pub(crate) mod winograd;

use std::fmt;

use crate::base::isa::Isa;
use crate::base::tile::sums_len;
use crate::base::value::Value;
use crate::conv::window::{KERNEL_MAX, Table, hits};
use crate::conv::winograd::Winograd;
use crate::gemm;
use crate::gemm::epilogue::Finish;
use crate::norm::elementwise::Rows;
use crate::parallel::Pool;

use pass::{Pass, Weights};
use transpose::Turned;

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
    /// Whether the stride is 1 and the border keeps the size.
    keeps_size: bool,
    /// Whether each output pixel is made of the same input pixel alone: then pixels and images are one
    /// long list of rows.
    is_pointwise: bool,
    /// Whether algorithms with fewer multiplications may compute it, and Winograd's if that is one.
    is_fast: bool,
    winograd: Option<Winograd>,
}

/// Memory that a pass works with, whatever it holds.
pub struct Scratch<'a, T> {
    /// [`Conv::weights`] values: the weights as the pass reads them, where it does not as they are.
    pub panels: &'a mut [T],
    /// [`Conv::scratch_len`] values.
    pub parts: &'a mut [f32],
}

/// What a pass reads. A pointwise convolution makes rows just before it multiplies them, where it can.
pub enum Source<'a, T> {
    /// An activation, or a gradient by one.
    There(&'a [T]),
    /// One that is to be made before it is read, and stays there.
    Made(&'a mut [T], Rows<'a, T>),
}

impl<'a, T> From<&'a [T]> for Source<'a, T> {
    fn from(values: &'a [T]) -> Self {
        Self::There(values)
    }
}

impl<'a, T: Value> Source<'a, T> {
    fn len(&self) -> usize {
        match self {
            Self::There(values) => values.len(),
            Self::Made(values, _) => values.len(),
        }
    }

    /// Makes it now.
    fn make(self, exec: (&Pool, Isa)) -> &'a [T] {
        match self {
            Self::There(values) => values,
            Self::Made(values, rows) => {
                rows.make(exec, values);
                values
            }
        }
    }
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
            keeps_size: stride == 1 && kernel == 2 * pad + 1,
            is_pointwise,
            is_fast: false,
            winograd: None,
        })
    }

    /// Computes with fewer multiplications on vector tiers, where the shape allows it: by Winograd's F(4x4, 3x3),
    /// three to four times fewer for about ten times the rounding error of `f32`, or over maps of 2x2 not
    /// quite half as many; else, in `f32`, by Strassen's product, an eighth fewer. In between all is `f32`,
    /// whatever activations are stored as.
    #[must_use]
    pub fn with_fast_algorithms(mut self) -> Self {
        if self.kernel == 3 && self.keeps_size {
            self.winograd = Winograd::new(self.input, [self.channels_in, self.channels_out]);
        }
        self.is_fast = true;
        self
    }

    /// Whether [`Conv::with_fast_algorithms`] chose Winograd's.
    pub fn is_winograd(&self) -> bool {
        self.winograd.is_some()
    }

    /// What computes passes by Winograd's algorithm, where it was chosen and pays.
    fn winograd<T: Value>(&self, isa: Isa) -> Option<&Winograd> {
        let pays = |winograd: &&Winograd| isa != Isa::Portable && winograd.pays(T::WORD);
        self.winograd.as_ref().filter(pays)
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

    /// Pixels, images and channels of an output as it is cut into tiles: fewer images are more pixels.
    pub fn output_tiles(&self, n: usize) -> (usize, usize, usize) {
        self.tiles(self.output, n, self.channels_out)
    }

    /// As [`Conv::output_tiles`] of the gradient by the input.
    pub fn input_tiles(&self, n: usize) -> (usize, usize, usize) {
        self.tiles(self.input, n, self.channels_in)
    }

    fn tiles(&self, map: [usize; 2], n: usize, channels: usize) -> (usize, usize, usize) {
        let (pixels, n) = self.rows(map, n);
        let images = self.winograd.and_then(|winograd| winograd.images(n)).unwrap_or(n);
        (pixels * n / images, images, channels)
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

    /// `y = x * w`; all of `y` is written, as it is finished. `sums` has [`Conv::sums_len`] values for that.
    pub fn forward<'a, T: Value>(
        &self,
        exec: (&Pool, Isa),
        n: usize,
        (x, w): (impl Into<Source<'a, T>>, &[f32]),
        (y, sums, scratch): (&mut [T], &mut [f32], Scratch<T>),
        finish: Finish<T>,
    ) {
        let x = x.into();
        assert_eq!((x.len(), w.len()), (self.input_len(n), self.weights()));
        if let Some(winograd) = self.winograd::<T>(exec.1) {
            return winograd.forward(exec, n, (x.make(exec), w), (y, sums, scratch.parts), finish);
        }
        let shapes = (self.rows(self.output, n), self.output_tiles(n));
        let weights = Weights::Panels(T::panels(exec, w, scratch.panels));
        self.pass_forward().finish(exec, (x, weights), shapes, (y, sums), (false, finish));
    }

    /// As [`Conv::forward`] for the first layer, whose input and weights are `f32` in every precision.
    pub fn forward_images<T: Value>(
        &self,
        exec: (&Pool, Isa),
        n: usize,
        (x, w): (&[f32], &[f32]),
        results: (&mut [T], &mut [f32]),
        finish: Finish<T>,
    ) {
        assert_eq!((x.len(), w.len()), (self.input_len(n), self.weights()));
        self.pass_forward().finish_images(exec, (x, w), self.output_tiles(n), results, finish);
    }

    /// `dx = dy * w'`, or `dx +=` where `add` is set, as it is finished.
    ///
    /// # Panics
    /// If the input channels are no multiple of 64 (the first layer needs no such gradient).
    pub fn backward_input<'a, T: Value>(
        &self,
        exec: (&Pool, Isa),
        n: usize,
        (dy, w): (impl Into<Source<'a, T>>, &[f32]),
        (dx, sums, scratch): (&mut [T], &mut [f32], Scratch<T>),
        (add, finish): (bool, Finish<T>),
    ) {
        assert!(self.channels_in.is_multiple_of(PANEL), "no gradient by input for this layer");
        let dy = dy.into();
        assert_eq!((dy.len(), w.len()), (self.output_len(n), self.weights()));
        if let Some(winograd) = self.winograd::<T>(exec.1).filter(|_| !add) {
            let results = (dx, sums, scratch.parts);
            return winograd.backward_input(exec, n, (dy.make(exec), w), results, finish);
        }
        let (taps, is_fast, is_pointwise) = (self.taps(), self.is_fast, self.is_pointwise);
        let table = &self.backward;
        let pass = Pass { table, taps, k: self.channels_out, is_fast, is_pointwise };
        let shapes = (self.rows(self.input, n), self.input_tiles(n));
        let channels = [self.channels_in, self.channels_out];
        let turned = Turned { weights: w, taps, channels, used: self.used };
        let weights = Weights::Turned(turned, &mut scratch.panels[..self.weights()]);
        pass.finish(exec, (dy, weights), shapes, (dx, sums), (add, finish));
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
        assert_eq!((x.len(), dy.len()), (self.input_len(n), self.output_len(n)));
        if let Some(winograd) = self.winograd::<T>(exec.1) {
            return winograd.backward_weight(exec, n, (x, dy), dw, scratch);
        }
        if exec.1 != Isa::Portable
            && let Some(cut) = self.pairs(n)
            && let (Some(x), Some(dy)) = (T::single(x), T::single(dy))
        {
            return self.sum_pairs(exec, cut, (x, dy), (dw, scratch));
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

    /// Values of the sums over the tiles of an output or an input of up to `n` images, whichever are more.
    pub fn sums_len(&self, n: usize) -> usize {
        let chunks = self.winograd.map_or(1, |winograd| winograd.chunks(n));
        let len = |map: [usize; 2], channels: usize| {
            let (pixels, n) = self.rows(map, n);
            sums_len((pixels, n, channels)).max(sums_len((pixels * chunks, 1, channels)))
        };
        len(self.input, self.channels_in).max(len(self.output, self.channels_out))
    }

    /// Values that passes over `n` images need beside their operands.
    pub fn scratch_len(&self, n: usize) -> usize {
        let parts = self.parts_len(n);
        self.winograd.map_or(parts, |winograd| parts.max(winograd.scratch_len(n)))
    }

    fn pass_forward(&self) -> Pass<'_> {
        let (taps, is_fast, is_pointwise) = (self.taps(), self.is_fast, self.is_pointwise);
        Pass { table: &self.forward, taps, k: self.channels_in, is_fast, is_pointwise }
    }

    fn taps(&self) -> usize {
        self.kernel * self.kernel
    }
}

/// Where the weight (output channel, input channel, tap) is in panels `[Cout/64][taps][Cin][64]`.
pub fn panel_index(taps: usize, channels_in: usize, [k, c, tap]: [usize; 3]) -> usize {
    ((k / PANEL * taps + tap) * channels_in + c) * PANEL + k % PANEL
}
