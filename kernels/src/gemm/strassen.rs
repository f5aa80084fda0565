//! Strassen's product: seven products of quarters where the direct way has eight.
//!
//! ```text
//! m0 = (a0+a3)(b0+b3)   m1 = (a2+a3) b0   m2 = a0 (b1-b3)   m3 = a3 (b2-b0)
//! m4 = (a0+a1) b3       m5 = (a2-a0)(b0+b1)                 m6 = (a1-a3)(b2+b3)
//!
//! c0 = m0+m3-m4+m6      c1 = m2+m4        c2 = m1+m3        c3 = m0-m1+m2+m5
//! ```
//!
//! Strassen, "Gaussian Elimination is not Optimal" (1969), one level of it; quarters are numbered upper left,
//! upper right, lower left, lower right. An eighth of the multiplications is saved for 18 additions of quarters,
//! which only pay where they cost no pass over memory:
//!
//! * operands are summed while the kernel reads them, as in Huang, Smith, Henry and van de Geijn, "Strassen's
//!   Algorithm Reloaded" (2016): the inner loop adds two panels on loading;
//! * which rows are the upper ones is free: here six rows and the next six, so that the products of a block stay in
//!   the first-level cache until they are summed and end in registers;
//! * a second level would save another eighth, for products too short to hide that.
//!
//! # Error
//!
//! With `u = 2^-24`, `gamma(n) = n u / (1 - n u)` and the largest absolute values of both operands,
//!
//! ```text
//! |c - exact| <= 6 K gamma(K + 5) max|a| max|b|
//! ```
//!
//! for sums of length K: each entry is a sum of products of length K/2 whose operands add up to 12 max|a| max|b|
//! (the four of c0: 4 + 2 + 2 + 4), after at most K + 5 roundings of a term: K/2 of its own product, as many again
//! where another product begins with it (m0), 2 of the operands and 3 of the ends. The direct product has
//! `K gamma(K) max|a| max|b|`, entry by entry even in |a||b|: what Strassen's loses is that a small entry among
//! large ones has the error of the large ones (Higham, "Accuracy and Stability of Numerical Algorithms", 2002,
//! theorem 23.2). `tests/bounds.rs` holds it; `tests/oracle.rs` holds that in the norm the error is no larger than
//! what is allowed the direct product.
//!
//! Only in `f32`, on vector tiers, and where sums are long enough: in bfloat16 the sums of operands would have to be
//! rounded.

use ndarray::ArrayViewMut2;

use super::Products;
use super::epilogue::Store;
use crate::base::isa::Isa;
use crate::base::panel::{PANEL, Strided};
use crate::base::tile::{IMAGES, Tile};
use crate::base::value::Value;

/// Columns of a result: two panels.
pub(crate) const COLUMNS: usize = 2 * PANEL;

/// Lengths of sums that are worth it: the products of shorter ones are summed too often. Where that
/// is, `cargo bench -p kernels -- cifar avx512+fast` against `avx512` shows layer by layer.
const LENGTH_MIN: usize = 256;
/// Longer sums are cut: six rows of 4 KiB and more, upper and lower, would lie in the same sets of the first-level
/// cache, and the packed ones of a block fill half of it.
pub(crate) const LENGTH_MAX: usize = 1024;
/// Rows that are worth it: whole tiles, whose blocks are full.
const ROWS_MIN: usize = 128;

/// Quarters of an operand, as a product takes them.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Combination {
    One(usize),
    Sum(usize, usize),
    Difference(usize, usize),
}

use Combination::{Difference, One, Sum};

/// The operands of the products.
pub(crate) const PRODUCTS: [(Combination, Combination); 7] = [
    (Sum(0, 3), Sum(0, 3)),
    (Sum(2, 3), One(0)),
    (One(0), Difference(1, 3)),
    (One(3), Difference(2, 0)),
    (Sum(0, 1), One(3)),
    (Difference(2, 0), Sum(0, 1)),
    (Difference(1, 3), Sum(2, 3)),
];

/// Values of the products of a result of [`COLUMNS`] by so many rows.
pub(crate) const fn products_len(rows: usize) -> usize {
    PRODUCTS.len() * rows.div_ceil(2) * PANEL
}

/// Rows of a block of a tile: two register tiles. Its seven products, 7 x 6 x 64 values, are 10.5 KiB of a
/// first-level cache.
pub(crate) const BLOCK: usize = 12;
/// Room for the products of the blocks of a tile.
pub(crate) const ACCUMULATORS: usize = IMAGES.div_ceil(BLOCK) * products_len(BLOCK);

/// Whether sums of length `k` are cut.
pub(crate) fn is_worth(k: usize) -> bool {
    k >= LENGTH_MIN && k.is_multiple_of(if k < LENGTH_MAX { 32 } else { LENGTH_MAX })
}

/// Whether tiles of so many rows are cut.
pub(crate) fn cuts(rows: usize) -> bool {
    rows >= ROWS_MIN && rows.is_multiple_of(4)
}

/// As [`crate::gemm::multiply_to`] for two panels of products, which have at least one term.
pub(crate) fn multiply_to<T: Value>(
    isa: Isa,
    products: Products<f32>,
    accumulators: &mut [f32; ACCUMULATORS],
    store: &Store<T>,
    tile: Tile<T>,
) {
    // A part of a tile may be shorter than what is worth it, not less than whole quarters.
    assert!(tile.values.nrows().is_multiple_of(4) && is_worth(products.k));
    match isa {
        Isa::Portable => unreachable!("only vector tiers choose this product"),
        #[cfg(target_arch = "x86_64")]
        Isa::Vector(tier) => tier.multiply_quarters(products, accumulators, store, tile),
    }
}

/// Rows of both operands of a transposed product: its right operands, seven halves of 64 columns, are 224 KiB, which
/// stay in the second-level cache while all columns of the left one pass.
pub(crate) const STEP: usize = 256;
/// Values of the right operands of its products.
pub(crate) const RIGHT: usize = PRODUCTS.len() * STEP / 2 * PANEL;

/// The right operands of the products of [`STEP`] rows of 128 columns: for each, half as many rows of 64.
pub(crate) fn sum_right(isa: Isa, b: Strided<f32>, sums: &mut [f32; RIGHT]) {
    let Strided { data, stride } = b;
    let at = |quarter: usize| &data[quarter / 2 * (STEP / 2) * stride + quarter % 2 * PANEL..];
    for ((_, operand), sums) in PRODUCTS.iter().zip(sums.chunks_exact_mut(STEP / 2 * PANEL)) {
        isa.run(
            #[inline(always)]
            || match *operand {
                One(one) => combine(at(one), at(one), stride, sums, |x, _| x),
                Sum(one, other) => combine(at(one), at(other), stride, sums, |x, y| x + y),
                Difference(one, other) => combine(at(one), at(other), stride, sums, |x, y| x - y),
            },
        );
    }
}

/// Rows of 64 values of two sources, `stride` apart, as one.
#[inline(always)]
fn combine(
    first: &[f32],
    second: &[f32],
    stride: usize,
    sums: &mut [f32],
    of: impl Fn(f32, f32) -> f32,
) {
    let rows = first.chunks(stride).zip(second.chunks(stride));
    for (sums, (first, second)) in sums.chunks_exact_mut(PANEL).zip(rows) {
        let (first, second) = (&first[..sums.len()], &second[..sums.len()]);
        for (sum, (&x, &y)) in sums.iter_mut().zip(first.iter().zip(second)) {
            *sum = of(x, y);
        }
    }
}

/// The quarters of an operand, their rows so many values apart, and which of them are taken.
pub(crate) struct Quarters<'a> {
    pub(crate) starts: [&'a [f32]; 4],
    pub(crate) stride: usize,
    pub(crate) taken: Combination,
}

/// What is read for the next product.
pub(crate) struct Next {
    pub(crate) start: *const f32,
    /// Values from row to row.
    pub(crate) stride: usize,
    /// Values of a row.
    pub(crate) len: usize,
}

/// [`STEP`] rows of `a`, to be transposed, and what [`sum_right`] made of as many of `b`.
pub(crate) struct Transposed<'a> {
    pub(crate) a: Strided<'a, f32>,
    /// How far the lower rows of `a` transposed are behind the upper ones.
    pub(crate) half: usize,
    pub(crate) right: &'a [f32; RIGHT],
    /// Where the next operands begin, to be fetched meanwhile.
    pub(crate) next_a: &'a [f32],
    pub(crate) next_b: Strided<'a, f32>,
}

/// The products of two operands, set or added to `sums`.
pub(crate) fn multiply_transposed(
    isa: Isa,
    Transposed { a, half, right, next_a, next_b }: Transposed,
    sums: &mut [f32],
    accumulate: bool,
) {
    let len = sums.len() / PRODUCTS.len();
    // Transposed: the upper right quarter is the first half of the columns of the last rows.
    let below = STEP / 2 * a.stride;
    let quarters = [0, below, half, below + half];
    let starts = quarters.map(|from| &a.data[from..]);
    // What comes next is asked for quarter by quarter.
    let ahead = |start: &[f32], from: usize| start.get(from..).unwrap_or(&[]).as_ptr();
    let right = right.chunks_exact(STEP / 2 * PANEL);
    let products = PRODUCTS.iter().zip(right).zip(sums.chunks_exact_mut(len));
    for (number, ((&(taken, _), b), sums)) in products.enumerate() {
        let next = match number {
            0..4 => Some(Next {
                start: ahead(next_a, quarters[number]),
                stride: a.stride,
                len: len / PANEL,
            }),
            4..6 => Some(Next {
                start: ahead(next_b.data, (number - 4) * (STEP / 2) * next_b.stride),
                stride: next_b.stride,
                len: COLUMNS,
            }),
            _ => None,
        };
        let operand = Quarters { starts, stride: a.stride, taken };
        match isa {
            Isa::Portable => unreachable!("only vector tiers choose this product"),
            #[cfg(target_arch = "x86_64")]
            Isa::Vector(tier) => {
                tier.multiply_quarters_transposed(operand, b, sums, accumulate, next)
            }
        }
    }
}

/// The result of the products that [`multiply_transposed`] summed, in quarters.
pub(crate) fn join(isa: Isa, sums: &[f32], mut quarters: [ArrayViewMut2<f32>; 4]) {
    let rows = quarters[0].nrows();
    let m: [&[f32]; 7] = std::array::from_fn(|product| &sums[product * rows * PANEL..]);
    isa.run(
        #[inline(always)]
        || {
            for (number, quarter) in quarters.iter_mut().enumerate() {
                for (row, target) in quarter.rows_mut().into_iter().enumerate() {
                    let m = m.map(|m| &m[row * PANEL..][..PANEL]);
                    let target = target.into_slice().expect("rows of a panel are contiguous");
                    let target = &mut target[..PANEL];
                    match number {
                        0 => fill(target, |at| m[0][at] + m[6][at] + m[3][at] - m[4][at]),
                        1 => fill(target, |at| m[2][at] + m[4][at]),
                        2 => fill(target, |at| m[1][at] + m[3][at]),
                        _ => fill(target, |at| m[0][at] + m[5][at] - m[1][at] + m[2][at]),
                    }
                }
            }
        },
    );
}

#[inline(always)]
fn fill(target: &mut [f32], of: impl Fn(usize) -> f32) {
    for (at, target) in target.iter_mut().enumerate() {
        *target = of(at);
    }
}
