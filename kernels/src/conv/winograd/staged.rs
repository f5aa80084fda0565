//! The stages of a group of tiles: slices for the transforms, and the products between them.

use ndarray::{ArrayViewMut2, ArrayViewMut4, Axis, ShapeBuilder};

use super::scheme::{PRODUCTS_MAX, Scheme, TAPS, Transform};
use super::tiling::{Group, SLICE, Winograd, distance};
use crate::base::exec::Exec;
use crate::base::isa::Isa;
use crate::base::panel::{Matrix, PANEL, Prefetch, PrefetchNext};
use crate::base::tile::{IMAGES, view4};
use crate::gemm::product::Product;
use crate::gemm::{self, Products, Term};
use crate::parallel::DisjointBlocks;

/// Weights in panels, as they are or for the gradient by input.
#[derive(Clone, Copy)]
pub(crate) struct Filter<'a> {
    pub(crate) w: &'a [f32],
    pub(crate) transposed: bool,
}

/// An activation to read: `[height][width][n][channels]`.
#[derive(Clone, Copy)]
pub(super) struct Map<'a, T> {
    pub(super) data: &'a [T],
    pub(super) size: [usize; 2],
    pub(super) n: usize,
    pub(super) channels: usize,
}

impl<'a, T: Product> Map<'a, T> {
    /// `len` values from an image of a pixel on; zeros outside of the map.
    fn at(&self, [h, w]: [Option<usize>; 2], image: usize, len: usize) -> &'a [T] {
        let [height, width] = self.size;
        match (h.filter(|&h| h < height), w.filter(|&w| w < width)) {
            (Some(h), Some(w)) => {
                &self.data[((h * width + w) * self.n + image) * self.channels..][..len]
            }
            _ => &T::zeros()[..len],
        }
    }

    /// The inputs of a tile of outputs at (h, w), `len` values each.
    pub(super) fn inputs(
        &self,
        scheme: Scheme,
        [h, w, image]: [usize; 3],
        len: usize,
    ) -> [&'a [T]; PRODUCTS_MAX] {
        let [side, _, tile] = scheme.sides();
        let border = (side - tile) / 2;
        std::array::from_fn(|i| match i < side * side {
            true => {
                let at = [h + i / side, w + i % side].map(|at| at.checked_sub(border));
                self.at(at, image, len)
            }
            false => &[],
        })
    }
}

impl Winograd {
    /// Panels `[k/64][9][c][64]` to `[products][k/64][c][64]`; `transposed` for the gradient by input, to
    /// `[products][c/64][k][64]`.
    pub(super) fn transform_weights(
        &self,
        Exec { pool, isa }: Exec,
        Filter { w, transposed }: Filter,
        weights: &mut [f32],
    ) {
        let ([c, k], products) = (self.channels, self.scheme.products());
        let [rows, columns] = if transposed { [k, c] } else { [c, k] };
        let target = view4(weights, [products, columns / PANEL, rows, PANEL]);
        // Of few, tasks are smaller, though each turns whole blocks.
        let height = if c * k == PANEL * PANEL { PANEL / 2 } else { PANEL };
        let target = DisjointBlocks::new(target, [products, 1, height, PANEL]);
        let blocks = || [0.0; TAPS * PANEL * PANEL];
        pool.for_each_block_with(target, blocks, |blocks, [_, panel, row, _], mut target| {
            let at = |panel: usize, tap: usize, row: usize| {
                &w[((panel * TAPS + tap) * c + row) * PANEL..]
            };
            if transposed {
                for (tap, block) in blocks.chunks_exact_mut(PANEL * PANEL).enumerate() {
                    // The filter is rotated by half a turn too.
                    let source = at(row / PANEL, TAPS - 1 - tap, panel * PANEL);
                    gemm::transpose(isa, &source[..PANEL * PANEL], &[], block, false);
                }
            }
            let sources = std::array::from_fn(|tap| match (tap < TAPS, transposed) {
                (false, _) => &[],
                (true, true) => &blocks[(tap * PANEL + row % PANEL) * PANEL..],
                (true, false) => at(panel, tap, row),
            });
            Transform::Weights.apply(isa, self.scheme, &sources, &mut slices(&mut target));
        });
    }

    /// Inputs of a group to `[products][tile][image][c]`.
    pub(super) fn transform_inputs<T: Product>(
        &self,
        Exec { pool, isa }: Exec,
        x: Map<T>,
        group: Group,
        inputs: &mut [f32],
    ) {
        let (c, scheme) = (x.channels, self.scheme);
        let images = (SLICE / c).max(1);
        let target = self.stage(inputs, group, c);
        let block = [scheme.products(), 1, images, c];
        pool.for_each_block(target, block, |[_, tile, image, _], mut block| {
            let at = [group.row, group.column + tile].map(|at| at * scheme.tile());
            let at = [at[0], at[1], group.image + image];
            let sources = x.inputs(scheme, at, block.len_of(Axis(2)) * c);
            Transform::Input.apply(isa, scheme, &sources, &mut slices(&mut block));
        });
    }

    /// Gradients by the outputs of a group to `[products][tile][image][k]`.
    pub(super) fn transform_gradients<T: Product>(
        &self,
        Exec { pool, isa }: Exec,
        dy: Map<T>,
        group: Group,
        gradients: &mut [f32],
    ) {
        let (k, scheme) = (dy.channels, self.scheme);
        let images = (SLICE / k).max(1);
        let target = self.stage(gradients, group, k);
        let block = [scheme.products(), 1, images, k];
        pool.for_each_block(target, block, |[_, tile, image, _], mut block| {
            let (len, side) = (block.len_of(Axis(2)) * k, scheme.tile());
            let [h, w] = [group.row, group.column + tile].map(|at| at * side);
            let sources = std::array::from_fn(|i| match i < side * side {
                true => dy.at([Some(h + i / side), Some(w + i % side)], group.image + image, len),
                false => &[],
            });
            Transform::Gradient.apply(isa, scheme, &sources, &mut slices(&mut block));
        });
    }

    /// For each frequency, rows of `c` values times panels: rows of `k` values.
    pub(super) fn multiply(
        &self,
        Exec { pool, isa }: Exec,
        rows: usize,
        [c, k]: [usize; 2],
        inputs: &[f32],
        weights: &[f32],
        outputs: &mut [f32],
    ) {
        let shape = [self.scheme.products(), 1, rows, k];
        let strides = [distance(rows, k), rows * k, k, 1];
        let target = ArrayViewMut4::from_shape(shape.strides(strides), outputs);
        let target = target.expect("room for a group");
        pool.for_each_block(
            target,
            [1, 1, IMAGES, PANEL],
            |[frequency, _, row, channel], block| {
                let panel = frequency * k / PANEL + channel / PANEL;
                let term = Term {
                    a: &inputs[frequency * distance(rows, c)..][row * c..rows * c],
                    b: &weights[panel * c * PANEL..][..c * PANEL],
                };
                let block = block.index_axis_move(Axis(0), 0).index_axis_move(Axis(0), 0);
                let products = Products { terms: &[term], k: c, stride: c, panel_stride: 0 };
                gemm::multiply(isa, products, block, Prefetch::NOTHING);
            },
        );
    }

    /// `[products][tile][image][k]` to the outputs of a group.
    pub(super) fn transform_outputs<T: Product>(
        &self,
        Exec { pool, isa }: Exec,
        group: Group,
        outputs: &[f32],
        y: ArrayViewMut4<T>,
    ) {
        let (k, scheme, rows) = (y.len_of(Axis(3)), self.scheme, group.rows());
        let (images, tile) = ((SLICE / k).max(1), scheme.tile());
        pool.for_each_block(y, [tile, tile, images, k], |[_, w, image, _], mut block| {
            let row = w / tile * group.images + image;
            let sources = std::array::from_fn(|frequency| match frequency < scheme.products() {
                true => &outputs[frequency * distance(rows, k) + row * k..],
                false => &[],
            });
            let (images, k) = (block.len_of(Axis(2)), block.len_of(Axis(3)));
            let pixels = block.exact_chunks_mut((1, 1, images, k)).into_iter();
            let mut pixels = pixels.filter_map(ArrayViewMut4::into_slice);
            let mut targets = std::array::from_fn(|_| pixels.next().unwrap_or_default());
            Transform::Output.apply(isa, scheme, &sources, &mut targets);
        });
    }

    /// A stage `[products][tiles][images][channels]`.
    fn stage<'a>(
        &self,
        data: &'a mut [f32],
        group: Group,
        channels: usize,
    ) -> ArrayViewMut4<'a, f32> {
        let shape = [self.scheme.products(), group.tiles, group.images, channels];
        let strides = [distance(group.rows(), channels), group.images * channels, channels, 1];
        ArrayViewMut4::from_shape(shape.strides(strides), data).expect("room for a group")
    }
}

/// `block (+)= x' . dy` over their rows.
pub(super) fn add_products(
    isa: Isa,
    x: Matrix<f32>,
    dy: Matrix<f32>,
    strips: &mut [f32],
    accumulate: bool,
    mut block: ArrayViewMut2<f32>,
) {
    for first in (0..x.rows).step_by(IMAGES) {
        let rows = IMAGES.min(x.rows - first);
        let after = (first + IMAGES).min(x.rows - 1);
        let dy_rows = Matrix { data: &dy.data[first * dy.stride..], rows, ..dy };
        gemm::strips(dy_rows, strips, |value| value);
        let x_rows = Matrix { data: &x.data[first * x.stride..], rows, ..x };
        let next = PrefetchNext {
            a: &x.data[after * x.stride..],
            a_stride: x.stride,
            b: &dy.data[after * dy.stride..],
            b_stride: dy.stride,
            rows_at_once: 1,
        };
        let accumulate = accumulate || first > 0;
        gemm::multiply_transposed(isa, x_rows, strips, next, block.view_mut(), accumulate);
    }
}

/// The outermost slices of a block; empty ones after them.
pub(super) fn slices<'a>(block: &'a mut ArrayViewMut4<f32>) -> [&'a mut [f32]; PRODUCTS_MAX] {
    let mut outer = block.outer_iter_mut();
    std::array::from_fn(|_| {
        outer.next().and_then(ndarray::ArrayViewMut3::into_slice).unwrap_or_default()
    })
}
