//! `Conv`: a layer's shape, and what follows from it alone: tables of taps, lengths of buffers.

use std::fmt;

use super::window::{KERNEL_MAX, Table, hits};
use super::winograd::Winograd;
use crate::base::panel::PANEL;
use crate::base::tile::{Extent, sums_len};

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
    pub(super) forward: Table,
    /// For each input pixel, the taps that reach it and from which output pixel.
    pub(super) backward: Table,
    /// Bits of the taps that hit any pixel.
    pub(super) used: u64,
    /// Whether the stride is 1 and the border keeps the size.
    pub(super) keeps_size: bool,
    /// Whether each output pixel is made of the same input pixel alone: then pixels and images are one
    /// long list of rows.
    pub(super) is_pointwise: bool,
    /// Whether algorithms with fewer multiplications may compute it, and Winograd's if that is one.
    pub(super) is_fast: bool,
    pub(super) winograd: Option<Winograd>,
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
    pub fn output_tiles(&self, n: usize) -> Extent {
        self.tiles(self.output, n, self.channels_out)
    }

    /// As [`Conv::output_tiles`] of the gradient by the input.
    pub fn input_tiles(&self, n: usize) -> Extent {
        self.tiles(self.input, n, self.channels_in)
    }

    fn tiles(&self, map: [usize; 2], n: usize, channels: usize) -> Extent {
        let (pixels, n) = self.rows(map, n);
        let images = self.winograd.and_then(|winograd| winograd.images(n)).unwrap_or(n);
        Extent::new(pixels * n / images, images, channels)
    }

    /// Pixels and images, or one pixel with all rows where that is the same.
    pub(super) fn rows(&self, [h, w]: [usize; 2], n: usize) -> (usize, usize) {
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

    /// Values of the sums over the tiles of an output or an input of up to `n` images, whichever are more.
    pub fn sums_len(&self, n: usize) -> usize {
        let chunks = self.winograd.map_or(1, |winograd| winograd.chunks(n));
        let len = |map: [usize; 2], channels: usize| {
            let (pixels, n) = self.rows(map, n);
            sums_len(Extent::new(pixels, n, channels)).max(sums_len(Extent::new(
                pixels * chunks,
                1,
                channels,
            )))
        };
        len(self.input, self.channels_in).max(len(self.output, self.channels_out))
    }

    pub(super) fn taps(&self) -> usize {
        self.kernel * self.kernel
    }
}

/// Where the weight (output channel, input channel, tap) is in panels `[Cout/64][taps][Cin][64]`.
pub fn panel_index(taps: usize, channels_in: usize, [k, c, tap]: [usize; 3]) -> usize {
    ((k / PANEL * taps + tap) * channels_in + c) * PANEL + k % PANEL
}
