//! Winograd's convolutions: 36 multiplications where the direct one needs 144, and 9 where it needs 16.
//!
//! ```text
//! forward         y  = A'[ (G w G') . (B' x B) ]A      tiles of inputs to tiles of outputs
//! by input        the same over dy with the filter turned round
//! by weight       dw = G'[ sum (B' x B) . (A dy A') ]G
//! ```
//!
//! Winograd, "Arithmetic Complexity of Computations" (1980); Lavin and Gray (2015). The products `.` are sums
//! over channels (or images): matrix products, by the same kernels as the direct convolution. In
//! `[H][W][N][C]` every transform works on whole slices, element by element. A group of tiles at a time goes
//! through the three stages: with few channels, one that a thread keeps in its second-level cache
//! ([`fused`]); with more, when the weights are too many to be read for so few rows, one that all threads
//! share in the last-level cache. Only for 3x3 filters with stride 1 over maps of 2x2 or whose sides are
//! multiples of 4, on vector tiers. Everything between activations is `f32`. The rounding errors are larger
//! than the direct convolution's by about ten (maps of 2x2: about the same).

mod fused;
pub(crate) mod scheme;
mod staged;
mod tiling;

use ndarray::{Axis, s};

use crate::base::isa::Isa;
use crate::base::panel::PANEL;
use crate::base::tile::{IMAGES, view4};
use crate::gemm::epilogue::{Finish, finish_tiles};
use crate::gemm::product::Product;
use crate::parallel::Pool;

use scheme::{TAPS, Transform};
use staged::{Map, add_products, slices};
use tiling::distance;

pub(crate) use tiling::Winograd;

/// Rows of a gradient by weight that one task transforms.
const RESULTS: usize = 16;

impl Winograd {
    /// Values that a pass over `n` images needs beside its operands.
    pub(crate) fn scratch_len(&self, n: usize) -> usize {
        let rows = self.groups(n).map(|group| group.rows()).max().unwrap_or(0);
        let [c, k] = self.channels;
        let stages = distance(rows, c) + distance(rows, k);
        self.weights_len() + (self.scheme.products() * stages).max(self.alone_len())
    }

    /// `y = x * w`.
    pub(crate) fn forward<T: Product>(
        &self,
        exec: (&Pool, Isa),
        n: usize,
        (x, w): (&[T], &[f32]),
        results: (&mut [T], &mut [f32], &mut [f32]),
        finish: Finish<T>,
    ) {
        self.convolve(exec, n, (x, w, false), results, finish);
    }

    /// `dx = dy * w'`.
    pub(crate) fn backward_input<T: Product>(
        &self,
        exec: (&Pool, Isa),
        n: usize,
        (dy, w): (&[T], &[f32]),
        results: (&mut [T], &mut [f32], &mut [f32]),
        finish: Finish<T>,
    ) {
        self.convolve(exec, n, (dy, w, true), results, finish);
    }

    /// Forward, or with the weights `turned` by input.
    fn convolve<T: Product>(
        &self,
        exec: (&Pool, Isa),
        n: usize,
        (x, w, turned): (&[T], &[f32], bool),
        (y, sums, scratch): (&mut [T], &mut [f32], &mut [f32]),
        finish: Finish<T>,
    ) {
        let (weights, scratch) = scratch.split_at_mut(self.weights_len());
        self.transform_weights(exec, (w, turned), weights);
        let [height, width] = self.size();
        let [mut c, mut k] = self.channels;
        if turned {
            (c, k) = (k, c);
        }
        let map = Map { data: x, size: self.size(), n, channels: c };
        let shape = (height * width, n, k);
        if self.is_alone() {
            let results = (&mut *y, &mut *sums, scratch);
            self.convolve_alone(exec, (map, weights), k, results, finish);
            if self.images(n).is_none() {
                finish_tiles(exec, shape, y, sums, finish);
            }
            return;
        }
        let (tile, products) = (self.scheme.tile(), self.scheme.products());
        let mut target = view4(&mut *y, [height, width, n, k]);
        for group in self.groups(n) {
            let rows = group.rows();
            let (inputs, outputs) = scratch.split_at_mut(products * distance(rows, c));
            self.transform_inputs(exec, map, group, inputs);
            self.multiply(exec, rows, (c, k), (inputs, weights), outputs);
            let (h, w) = (group.row * tile, group.column * tile);
            let images = group.image..group.image + group.images;
            let y = target.slice_mut(s![h..h + tile, w..w + group.tiles * tile, images, ..]);
            self.transform_outputs(exec, group, outputs, y);
        }
        finish_tiles(exec, shape, y, sums, finish);
    }

    /// `dw = x' * dy`.
    pub(crate) fn backward_weight<T: Product>(
        &self,
        exec: (&Pool, Isa),
        n: usize,
        (x, dy): (&[T], &[T]),
        dw: &mut [f32],
        scratch: &mut [f32],
    ) {
        let ([c, k], products) = (self.channels, self.scheme.products());
        let (sums, scratch) = scratch.split_at_mut(self.weights_len());
        for (index, group) in self.groups(n).enumerate() {
            let rows = group.rows();
            let (inputs, gradients) = scratch.split_at_mut(products * distance(rows, c));
            let map = Map { data: x, size: self.size(), n, channels: c };
            self.transform_inputs(exec, map, group, inputs);
            let map = Map { data: dy, size: self.size(), n, channels: k };
            self.transform_gradients(exec, map, group, gradients);
            let target = view4(sums, [products, k / PANEL, c, PANEL]);
            let target = (target, [1, 1, c, PANEL]);
            let strips = || [0.0; IMAGES * PANEL];
            exec.0.for_each_block_with(target, strips, |strips, [frequency, panel, ..], block| {
                let x = &inputs[frequency * distance(rows, c)..][..rows * c];
                let dy = &gradients[frequency * distance(rows, k)..][..rows * k];
                let block = block.index_axis_move(Axis(0), 0).index_axis_move(Axis(0), 0);
                let dy = (&dy[panel * PANEL..], k);
                add_products(exec.1, (x, c), (dy, strips), (rows, index > 0), block);
            });
        }
        self.transform_results(exec, sums, dw);
    }

    /// `[products][k/64][c][64]` to panels `[k/64][9][c][64]`.
    fn transform_results(&self, (pool, isa): (&Pool, Isa), sums: &[f32], dw: &mut [f32]) {
        let ([c, k], products) = (self.channels, self.scheme.products());
        let dw = view4(dw, [k / PANEL, TAPS, c, PANEL]).permuted_axes([1, 0, 2, 3]);
        pool.for_each_block(dw, [TAPS, 1, RESULTS, PANEL], |[_, panel, row, _], mut block| {
            let sources = std::array::from_fn(|frequency| match frequency < products {
                true => &sums[((frequency * k / PANEL + panel) * c + row) * PANEL..],
                false => &[],
            });
            Transform::Result.apply((isa, self.scheme), &sources, &mut slices(&mut block));
        });
    }
}

#[cfg(test)]
mod tests {
    use crate::{Conv, Finish, Isa, Pool, Scratch, finish_tiles, sums_len};

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
            let measure = Finish::Measure(&pivot);
            conv.forward(exec, n, (&*x, &w), results, measure);
            finish_tiles(exec, shape, &mut y, &mut later, measure);
            let bits = |sums: &[f32]| -> Vec<u32> {
                let tiles = sums[..sums_len(shape)].chunks_exact(3 * 128);
                tiles.flat_map(|sums| &sums[..2 * 128]).map(|sum| sum.to_bits()).collect()
            };
            assert_eq!(bits(&sums), bits(&later), "{} {n}", isa.name());
            assert_eq!(shape.0 * shape.1, 64 * n);
        }
    }
}
