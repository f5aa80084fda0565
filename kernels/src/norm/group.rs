//! Group normalisation: mean and variance of each image over its pixels and the channels of a group.
//!
//! ```text
//! forward   x  = (z - mean)/sqrt(var+eps)      in place of z; gamma and beta are a fold a channel then
//! backward  A  = sum gamma*g, B = sum gamma*g*x    over pixels and channels of the group, m values
//!           dz = (gamma*g - A/m - x*B/m)/sqrt(var+eps)
//! ```
//!
//! Wu and He, "Group Normalization" (2018). No image depends on the others of its batch, so that workers whose data
//! differ compute the same function. Once `z` is normalised, all that follows (activations, masks, the sums for gamma
//! and beta) is what it is for statistics of the batch. An activation `[pixels][n][channels]` is rows of `n*channels`
//! columns; sums are taken a column, in `f64`, pixel by pixel.

use std::ops::Range;

use super::folded::{BatchNorm, Folded, Slope};
use crate::base::exec::Exec;
use crate::base::tile::Extent;
use crate::base::value::Value;
use crate::parallel::DisjointChunks;

/// Groups of a layer: as many as in the paper and its successors.
pub const GROUPS: usize = 32;

/// Columns of a task: 2 KiB of a row in `f32`, whose sums fill a quarter of a first-level cache.
const COLUMNS: usize = 1 << 9;

/// What group normalisation works with: room for one layer at a time.
pub struct GroupNorm {
    sums: [Vec<f64>; 2],
    fold: Folded,
    slope: Slope,
}

impl GroupNorm {
    /// Room for layers of up to so many channels times images.
    pub fn new(columns: usize) -> Self {
        let sums = [(); 2].map(|()| vec![0.0; columns]);
        Self { sums, fold: Folded::new(columns), slope: Slope::new(columns) }
    }

    /// Bytes of that room.
    pub fn memory_len(columns: usize) -> usize {
        columns * (2 * size_of::<f64>() + 5 * size_of::<f32>())
    }

    /// Normalises `z` in place; `inverse` becomes one over the deviation of each image's groups.
    pub fn normalise<T: Value>(
        &mut self,
        exec: Exec,
        norm: BatchNorm,
        shape: Extent,
        z: &mut [T],
        inverse: &mut [f32],
    ) {
        self.measure(exec, norm, shape, z);
        for (inverse, group) in inverse.iter_mut().zip(groups(shape)) {
            *inverse = self.fold.scale[group.start];
        }
        self.fold.apply_in_place(exec, z, None, false);
    }

    /// Normalises `z` in place with gamma and beta, adds the identity, and clears what is negative where asked: all
    /// that inference does.
    pub fn infer<T: Value>(
        &mut self,
        exec: Exec,
        norm: BatchNorm,
        shape: Extent,
        [gamma, beta]: [&[f32]; 2],
        z: &mut [T],
        Ending { identity, relu }: Ending<T>,
    ) {
        self.measure(exec, norm, shape, z);
        let Folded { scale, shift } = &mut self.fold;
        let images =
            scale.chunks_exact_mut(shape.channels).zip(shift.chunks_exact_mut(shape.channels));
        for (scale, shift) in images {
            for c in 0..shape.channels {
                scale[c] *= gamma[c];
                shift[c] = shift[c] * gamma[c] + beta[c];
            }
        }
        self.fold.apply_in_place(exec, z, identity, relu);
    }

    /// The slope of a normalisation whose output is `x`, from the masked gradient `g` behind it: of each column.
    pub fn backward<T: Value>(
        &mut self,
        exec: Exec,
        shape: Extent,
        gamma: &[f32],
        inverse: &[f32],
        [g, x]: [&[T]; 2],
    ) -> &Slope {
        self.add_up(exec, shape, [g, x]);
        let Self { sums: [first, second], slope: Slope { a, b, c }, .. } = self;
        for values in [&mut *a, b, c] {
            values.resize(first.len(), 0.0);
        }
        let count = count(shape);
        for (&inverse, group) in inverse.iter().zip(groups(shape)) {
            let inverse = f64::from(inverse);
            let gamma = |column: usize| f64::from(gamma[column % shape.channels]);
            let sum = |sums: &[f64]| group.clone().map(|at| gamma(at) * sums[at]).sum::<f64>();
            let (along, across) = (-inverse * sum(second) / count, -inverse * sum(first) / count);
            for column in group.clone() {
                a[column] = (inverse * gamma(column)) as f32;
                b[column] = along as f32;
                c[column] = across as f32;
            }
        }
        &self.slope
    }

    /// What normalises each column, without gamma and beta.
    fn measure<T: Value>(&mut self, exec: Exec, norm: BatchNorm, shape: Extent, z: &[T]) {
        self.add_up(exec, shape, [z, z]);
        let Self { sums: [first, second], fold: Folded { scale, shift }, .. } = self;
        scale.resize(first.len(), 0.0);
        shift.resize(first.len(), 0.0);
        let count = count(shape);
        for group in groups(shape) {
            let mean = first[group.clone()].iter().sum::<f64>() / count;
            let square = second[group.clone()].iter().sum::<f64>() / count;
            let variance = (square - mean * mean).max(0.0);
            let inverse = 1.0 / (variance + f64::from(norm.epsilon)).sqrt();
            scale[group.clone()].fill(inverse as f32);
            shift[group].fill((-mean * inverse) as f32);
        }
    }

    /// Sums over each column of `a`, and of `a*b`.
    fn add_up<T: Value>(&mut self, Exec { pool, isa }: Exec, shape: Extent, [a, b]: [&[T]; 2]) {
        let columns = shape.n * shape.channels;
        assert_eq!([a.len(), b.len()], [shape.pixels * columns; 2], "an activation");
        assert!(shape.channels.is_multiple_of(GROUPS), "whole groups");
        let [first, second] = &mut self.sums;
        first.resize(columns, 0.0);
        second.resize(columns, 0.0);
        let add = |index: usize, first: &mut [f64], second: &mut [f64]| {
            let range = index * COLUMNS..index * COLUMNS + first.len();
            isa.run(
                #[inline(always)]
                || {
                    first.fill(0.0);
                    second.fill(0.0);
                    for (a, b) in a.chunks_exact(columns).zip(b.chunks_exact(columns)) {
                        add_row(first, second, &a[range.clone()], &b[range.clone()]);
                    }
                },
            );
        };
        let [first, second] = [first, second].map(|sums| DisjointChunks::new(sums, COLUMNS));
        pool.for_each_chunk2(first, second, add);
    }
}

/// What is done to a normalised value in inference.
pub struct Ending<'a, T> {
    /// What is added.
    pub identity: Option<&'a [T]>,
    /// Whether it is at least 0.
    pub relu: bool,
}

/// Values of a group.
fn count(shape: Extent) -> f64 {
    (shape.pixels * shape.channels / GROUPS) as f64
}

/// The columns of each image's groups.
fn groups(Extent { n, channels, .. }: Extent) -> impl Iterator<Item = Range<usize>> {
    let width = channels / GROUPS;
    (0..n * GROUPS).map(move |group| group * width..(group + 1) * width)
}

#[inline(always)]
fn add_row<T: Value>(first: &mut [f64], second: &mut [f64], a: &[T], b: &[T]) {
    for (((first, second), a), b) in first.iter_mut().zip(second).zip(a).zip(b) {
        let a = f64::from(a.widen());
        *first += a;
        *second += a * f64::from(b.widen());
    }
}
