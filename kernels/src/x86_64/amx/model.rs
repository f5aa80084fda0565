//! The plain model of AMX-TILE and AMX-BF16: what the instructions do, to the bit, in loops.
//!
//! `TDPBF16PS` (Intel, "Software Developer's Manual", volume 2) keeps two sums for each element of the result, of
//! the even and of the odd values of a row, adds products to them one after the other, each rounded once as a fused
//! multiply-add to the nearest even, then adds the one to the other and both to what was there. Denormals are zero
//! on the way in and on the way out, whatever MXCSR says, and nothing is signalled.
//!
//! Which payload a NaN has where several meet is not modelled.

use super::unit::{SIDE, Shape, Unit, VALUES};
use crate::base::isa::Tier;
use crate::base::value::{Bf16, Value};
use crate::parallel::FlushDenormals;

/// Eight tiles as arrays. What lies outside of a tile's shape is zero, as in the CPU.
pub(super) struct Model {
    /// Of its multiply-add: the hardware's rounds once, the portable tier's would be a call each.
    vectors: Tier,
    shape: Shape,
    sums: [[[[f32; SIDE]; SIDE]; 2]; 2],
    left: [[[f32; VALUES]; SIDE]; 2],
    /// Even values of 16 columns, then odd ones.
    right: [[[[f32; SIDE]; 2]; SIDE]; 2],
    /// Rounding of denormals by the CPU: a multiply-add that is flushed afterwards would differ where a result is
    /// rounded up to the least normal number.
    _flush: FlushDenormals,
}

impl Model {
    pub(super) fn new(vectors: Tier) -> Self {
        Self {
            vectors,
            shape: Shape::new(2 * SIDE, SIDE),
            sums: [[[[0.0; SIDE]; SIDE]; 2]; 2],
            left: [[[0.0; VALUES]; SIDE]; 2],
            right: [[[[0.0; SIDE]; 2]; SIDE]; 2],
            _flush: FlushDenormals::enter(),
        }
    }

    #[cfg(test)]
    pub(super) fn sum_mut(&mut self, [i, j]: [usize; 2], [row, column]: [usize; 2]) -> &mut f32 {
        &mut self.sums[i][j][row][column]
    }
}

impl Unit for Model {
    fn configure(&mut self, shape: Shape) {
        self.shape = shape;
        self.sums = [[[[0.0; SIDE]; SIDE]; 2]; 2];
        self.left = [[[0.0; VALUES]; SIDE]; 2];
        self.right = [[[[0.0; SIDE]; 2]; SIDE]; 2];
    }

    fn shape(&self) -> Shape {
        self.shape
    }

    fn zero<const I: usize, const J: usize>(&mut self) {
        self.sums[I][J] = [[0.0; SIDE]; SIDE];
    }

    fn load<const I: usize, const J: usize>(&mut self, sums: &[f32], stride: usize) {
        let rows = self.shape.rows[I];
        Shape::assert_inside(rows, SIDE, stride, sums.len());
        for (row, target) in self.sums[I][J][..rows].iter_mut().enumerate() {
            target.copy_from_slice(&sums[row * stride..][..SIDE]);
        }
    }

    fn load_left<const I: usize>(&mut self, rows: &[Bf16], stride: usize) {
        let (count, width) = (self.shape.rows[I], 2 * self.shape.pairs);
        Shape::assert_inside(count, width, stride, rows.len());
        for (row, target) in self.left[I][..count].iter_mut().enumerate() {
            for (target, value) in target.iter_mut().zip(&rows[row * stride..][..width]) {
                *target = value.widen();
            }
        }
    }

    fn load_right<const J: usize>(&mut self, pairs: &[Bf16], stride: usize) {
        let count = self.shape.pairs;
        Shape::assert_inside(count, VALUES, stride, pairs.len());
        for (pair, target) in self.right[J][..count].iter_mut().enumerate() {
            for (column, value) in pairs[pair * stride..][..VALUES].iter().enumerate() {
                target[column % 2][column / 2] = value.widen();
            }
        }
    }

    fn multiply<const I: usize, const J: usize>(&mut self) {
        let (rows, pairs) = (self.shape.rows[I], self.shape.pairs);
        let (left, right, sums) = (&self.left[I], &self.right[J], &mut self.sums[I][J]);
        self.vectors.run(
            #[inline(always)]
            || {
                for (left, sums) in left[..rows].iter().zip(&mut *sums) {
                    let [mut even, mut odd] = [[0.0_f32; SIDE]; 2];
                    for (values, right) in left.chunks_exact(2).zip(&right[..pairs]) {
                        for column in 0..SIDE {
                            even[column] = values[0].mul_add(right[0][column], even[column]);
                            odd[column] = values[1].mul_add(right[1][column], odd[column]);
                        }
                    }
                    for column in 0..SIDE {
                        sums[column] += even[column] + odd[column];
                    }
                }
            },
        );
    }

    fn store<const I: usize, const J: usize>(&self, sums: &mut [f32], stride: usize) {
        let rows = self.shape.rows[I];
        Shape::assert_inside(rows, SIDE, stride, sums.len());
        for (row, source) in self.sums[I][J][..rows].iter().enumerate() {
            sums[row * stride..][..SIDE].copy_from_slice(source);
        }
    }
}
