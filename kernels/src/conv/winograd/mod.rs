//! Winograd's convolutions: 36 multiplications where the direct one needs 144, and 9 where it needs 16.
//!
//! A convolution over a small tile is a product of polynomials (or, for its gradients, the transpose of one), and
//! that is known from its values at as many points as it has coefficients: transform both operands to the values at
//! the points, multiply value by value, transform back. In two dimensions each matrix is applied from both sides
//! (Winograd, "Arithmetic Complexity of Computations", 1980; Lavin and Gray, "Fast Algorithms for Convolutional
//! Neural Networks", 2016).
//!
//! ```text
//! forward         y  = A'[ sum over c     (G w G') . (B' x B) ]A      tiles of inputs to tiles of outputs
//! by input        the same over dy with the filter transposed, and rotated by half a turn
//! by weight       dw = G'[ sum over tiles (B' x B) . (A dy A') ]G
//! ```
//!
//! **F(4x4, 3x3)**, at the points 0, 1, -1, 2, -2 and infinity: tiles of 6x6 inputs, 4x4 outputs.
//!
//! ```text
//!       4  0 -5  0  1  0           1/4    0    0
//!       0 -4 -4  1  1  0          -1/6 -1/6 -1/6           1  1  1  1  1  0
//! B' =  0  4 -4 -1  1  0     G =  -1/6  1/6 -1/6     A' =  0  1 -1  2 -2  0
//!       0 -2 -1  2  1  0          1/24 1/12  1/6           0  1  1  4  4  0
//!       0  2 -1 -2  1  0          1/24 -1/12 1/6           0  1 -1  8 -8  1
//!       0  4  0 -5  0  1             0    0    1
//! ```
//!
//! **Maps of 2x2**, whose border is known to be zero: a product of a Toeplitz matrix of 2 by 2, at the points that
//! Karatsuba takes.
//!
//! ```text
//!       1  1            0  1  0
//! B' =  0  1      G =   0 -1  1      A' =  1  1  0
//!       1  0            1 -1  0            1  0  1
//! ```
//!
//! # Error
//!
//! The points make the transforms cancel, and what cancels leaves its roundings: with `u = 2^-24`,
//! `gamma(n) = n u / (1 - n u)`, and absolute values taken of each matrix and operand,
//!
//! ```text
//! |y - exact|  <= gamma(C + 18) |A'|[ sum over c     (|G||w||G'|) . (|B'||x||B|) ]|A|       maps of 2x2: C + 6
//! |dw - exact| <= gamma(R + 18) |G'|[ sum over tiles (|B'||x||B|) . (|A||dy||A'|) ]|G|      maps of 2x2: R + 8
//! ```
//!
//! for sums over C channels, or over R tiles and images. 18 is what `x86_64::transform` rounds on the way of one term
//! besides: 4 times by `B`, 8 by `G`, 6 by `A` forward; 4 by `B`, 4 by `A`, 10 by `G` in the gradient (Higham,
//! "Accuracy and Stability of Numerical Algorithms", 2002, chapter 3; Barabasz and others, "Error Analysis and
//! Improving the Accuracy of Winograd Convolution for Deep Neural Networks", 2020). `tests/bounds.rs` holds both the
//! matrices and the bounds. In the mean errors are about ten times those of the direct convolution, for maps of 2x2
//! about the same, which `tests/oracle.rs` holds. Larger tiles, F(6x6, 3x3), would save a fifth of the products
//! more, for two more points and an error larger again.
//!
//! # How it is computed
//!
//! The products `.` are matrix products, by the same kernels as the direct convolution: for each of the 36 (or 9)
//! positions in the square, called frequencies, one over all tiles. In `[H][W][N][C]` every transform works on whole
//! slices, element by element. Transforms of all tiles at once would go through memory 36/16 times as large as the
//! activation; so a group of tiles at a time goes through the three stages:
//!
//! * [`fused`]: with few channels, a group that one thread keeps in its second-level cache;
//! * [`staged`]: with more, when the weights are too many to be read for so few rows, one that all threads share in
//!   the last-level cache.
//!
//! Only for 3x3 filters with stride 1 over maps of 2x2 or whose sides are multiples of 4, on vector tiers.
//! Everything between activations is `f32`.

mod fused;
pub(crate) mod scheme;
mod staged;
mod tiling;

use ndarray::{Axis, s};

use crate::base::exec::Exec;
use crate::base::panel::{Matrix, PANEL};
use crate::base::tile::{Extent, IMAGES, Target, view4};
use crate::gemm::epilogue::{Epilogue, run_epilogue};
use crate::gemm::product::Product;
use crate::parallel::DisjointBlocks;

use fused::Layer;
use scheme::{TAPS, Transform};
use staged::{Map, add_products, slices};
use tiling::distance;

pub(super) use staged::Filter;
pub(crate) use tiling::Winograd;

/// Rows of a gradient by weight that one task transforms: 36 slices of 16 rows of 64 values are 144 KiB, which stay
/// in the second-level cache beside the nine that it writes.
const RESULTS: usize = 16;

impl Winograd {
    /// Values that a pass over `n` images needs beside its operands.
    pub(crate) fn scratch_len(&self, n: usize) -> usize {
        let rows = self.groups(n).map(|group| group.rows()).max().unwrap_or(0);
        let [c, k] = self.channels;
        let stages = distance(rows, c) + distance(rows, k);
        self.weights_len() + (self.scheme.products() * stages).max(self.fused_len())
    }

    /// `y = x * w`, or `dx = dy * w'` with the weights transposed. `scratch` has [`Self::scratch_len`] values.
    pub(crate) fn convolve<T: Product>(
        &self,
        exec: Exec,
        x: &[T],
        filter: Filter,
        Target { values: y, sums }: Target<T>,
        scratch: &mut [f32],
        epilogue: Epilogue<T>,
    ) {
        let (weights, scratch) = scratch.split_at_mut(self.weights_len());
        self.transform_weights(exec, filter, weights);
        let [height, width] = self.size();
        let [mut c, mut k] = self.channels;
        if filter.transposed {
            (c, k) = (k, c);
        }
        let n = x.len() / (height * width * c);
        let map = Map { data: x, size: self.size(), n, channels: c };
        let shape = Extent::new(height * width, n, k);
        if self.is_fused() {
            let target = Target { values: &mut *y, sums: &mut *sums };
            self.convolve_fused(exec, Layer { x: map, weights, k }, target, scratch, epilogue);
            if self.images(n).is_none() {
                run_epilogue(exec, shape, y, sums, epilogue);
            }
            return;
        }
        let (tile, products) = (self.scheme.tile(), self.scheme.products());
        let mut target = view4(&mut *y, [height, width, n, k]);
        for group in self.groups(n) {
            let rows = group.rows();
            let (inputs, outputs) = scratch.split_at_mut(products * distance(rows, c));
            self.transform_inputs(exec, map, group, inputs);
            self.multiply(exec, rows, [c, k], inputs, weights, outputs);
            let (h, w) = (group.row * tile, group.column * tile);
            let images = group.image..group.image + group.images;
            let y = target.slice_mut(s![h..h + tile, w..w + group.tiles * tile, images, ..]);
            self.transform_outputs(exec, group, outputs, y);
        }
        run_epilogue(exec, shape, y, sums, epilogue);
    }

    /// `dw = x' * dy`.
    pub(crate) fn backward_weight<T: Product>(
        &self,
        exec: Exec,
        n: usize,
        x: &[T],
        dy: &[T],
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
            let target = DisjointBlocks::new(target, [1, 1, c, PANEL]);
            let strips = || [0.0; IMAGES * PANEL];
            exec.pool.for_each_block_with(
                target,
                strips,
                |strips, [frequency, panel, ..], block| {
                    let x = &inputs[frequency * distance(rows, c)..][..rows * c];
                    let dy = &gradients[frequency * distance(rows, k)..][..rows * k];
                    let block = block.index_axis_move(Axis(0), 0).index_axis_move(Axis(0), 0);
                    let x = Matrix { data: x, rows, cols: c, stride: c };
                    let dy = Matrix { data: &dy[panel * PANEL..], rows, cols: PANEL, stride: k };
                    add_products(exec.isa, x, dy, strips, index > 0, block);
                },
            );
        }
        self.transform_results(exec, sums, dw);
    }

    /// `[products][k/64][c][64]` to panels `[k/64][9][c][64]`.
    fn transform_results(&self, Exec { pool, isa }: Exec, sums: &[f32], dw: &mut [f32]) {
        let ([c, k], products) = (self.channels, self.scheme.products());
        let dw = view4(dw, [k / PANEL, TAPS, c, PANEL]).permuted_axes([1, 0, 2, 3]);
        pool.for_each_block(dw, [TAPS, 1, RESULTS, PANEL], |[_, panel, row, _], mut block| {
            let sources = std::array::from_fn(|frequency| match frequency < products {
                true => &sums[((frequency * k / PANEL + panel) * c + row) * PANEL..],
                false => &[],
            });
            Transform::Result.apply(isa, self.scheme, &sources, &mut slices(&mut block));
        });
    }
}

#[cfg(test)]
mod tests {
    use crate::{Conv, Epilogue, Exec, Isa, Pool, Results, Scratch, run_epilogue, sums_len};

    /// With batches that are cut into small tiles, and one that is not.
    #[test]
    fn tiles_that_are_finished_at_once_have_the_sums_of_a_second_pass() {
        let (pool, pivot) = (Pool::new(2), [0.25; 128]);
        let conv = Conv::new([8, 8], [64, 128], 3, 1, 1).expect("shape").with_fast_algorithms();
        let w: Vec<f32> = (0..conv.weights()).map(|i| (i % 13) as f32 - 6.0).collect();
        for (isa, n) in
            Isa::available().into_iter().flat_map(|isa| [(isa, 32), (isa, 33), (isa, 5)])
        {
            let exec = Exec::new(&pool, isa);
            let x: Vec<f32> = (0..conv.input_len(n)).map(|i| (i % 17) as f32 - 8.0).collect();
            let [mut y, mut scratch] =
                [conv.output_len(n), conv.scratch_len(n)].map(|len| vec![0.0; len]);
            let shape = conv.output_tiles(n);
            let [mut sums, mut later] = [0, 1].map(|_| vec![f32::NAN; conv.sums_len(n)]);
            let scratch = Scratch { panels: &mut [], parts: &mut scratch };
            let results = Results { values: &mut y, sums: &mut sums, scratch };
            let measure = Epilogue::Measure(&pivot);
            conv.forward(exec, &*x, &w, results, measure);
            run_epilogue(exec, shape, &mut y, &mut later, measure);
            let bits = |sums: &[f32]| -> Vec<u32> {
                let tiles = sums[..sums_len(shape)].chunks_exact(3 * 128);
                tiles.flat_map(|sums| &sums[..2 * 128]).map(|sum| sum.to_bits()).collect()
            };
            assert_eq!(bits(&sums), bits(&later), "{} {n}", isa.name());
            assert_eq!(shape.rows(), 64 * n);
        }
    }
}
