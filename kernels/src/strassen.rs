//! Strassen's product: seven products of quarters where the direct way has eight.
//!
//! ```text
//! (a11+a22)(b11+b22)  to c11, c22        (a11+a12) b22        from c11, to c12
//! (a21+a22) b11       to c21, from c22   (a21-a11)(b11+b12)   to c22
//! a11 (b12-b22)       to c12, c22        (a12-a22)(b21+b22)   to c11
//! a22 (b21-b11)       to c11, c21
//! ```
//!
//! Strassen, "Gaussian Elimination is not Optimal" (1969), one level of it. As in Huang, Smith, Henry and
//! van de Geijn, "Strassen's Algorithm Reloaded" (2016) it needs no memory: sums are taken while the kernel
//! reads, and products are added to their targets from registers. Only in `f32`, on vector tiers, and where
//! sums are long enough. The rounding errors are about those of the direct product.

use ndarray::{ArrayViewMut2, Axis};

use crate::gemm::{Beside, PANEL, Products};
use crate::isa::Isa;

/// Columns of a result: two panels.
pub(crate) const COLUMNS: usize = 2 * PANEL;

/// Lengths of sums that are worth it: shorter ones write their results too often, longer ones have rows in the
/// same sets of the first-level cache.
const LENGTHS: std::ops::RangeInclusive<usize> = 256..=1024;
/// Rows that are worth it.
const ROWS_MIN: usize = 128;
/// Rows of a panel that take part in the seven products before the next ones do: what they read stays in the
/// second-level cache.
pub(crate) const DEPTH: usize = 256;

/// What happens to a quarter of the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Store {
    Set,
    Add,
    Subtract,
}

/// Quarters of an operand by number: upper left, upper right, lower left, lower right.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Operand {
    One(usize),
    Sum(usize, usize),
    Difference(usize, usize),
}

use Operand::{Difference, One, Sum};
use Store::{Add, Set, Subtract};

/// The quarters of a result that a product goes to.
pub(crate) type Targets = [Option<(usize, Store)>; 2];

/// A product: its operands and targets.
type Product = (Operand, Operand, Targets);

const PRODUCTS: [Product; 7] = [
    (Sum(0, 3), Sum(0, 3), [Some((0, Set)), Some((3, Set))]),
    (Sum(2, 3), One(0), [Some((2, Set)), Some((3, Subtract))]),
    (One(0), Difference(1, 3), [Some((1, Set)), Some((3, Add))]),
    (One(3), Difference(2, 0), [Some((0, Add)), Some((2, Add))]),
    (Sum(0, 1), One(3), [Some((0, Subtract)), Some((1, Add))]),
    (Difference(2, 0), Sum(0, 1), [Some((3, Add)), None]),
    (Difference(1, 3), Sum(2, 3), [Some((0, Add)), None]),
];

/// Whether sums of length `k` are cut.
pub(crate) fn is_worth(k: usize) -> bool {
    LENGTHS.contains(&k) && k.is_multiple_of(32)
}

/// Whether results of so many rows are cut.
pub(crate) fn cuts(rows: usize) -> bool {
    rows >= ROWS_MIN && rows.is_multiple_of(4)
}

/// As [`crate::gemm::multiply`] for two panels of products, which have at least one term.
pub(crate) fn multiply(
    isa: Isa,
    Products { terms, k, stride, apart }: Products<f32>,
    c: ArrayViewMut2<f32>,
    beside: Beside,
) {
    let (rows, half) = (c.nrows() / 2, k / 2);
    assert!(c.ncols() == COLUMNS && cuts(c.nrows()) && is_worth(k));
    let (upper, lower) = c.split_at(Axis(0), rows);
    let [upper, lower] = [upper, lower].map(|half| half.split_at(Axis(1), PANEL));
    let mut c = [upper.0, upper.1, lower.0, lower.1];
    let steps = || (0..half).step_by(DEPTH);
    let last = (terms.len() - 1, steps().next_back());
    for (index, term) in terms.iter().enumerate() {
        let below = &term.a[rows * stride..];
        let a = [term.a, &term.a[half..], below, &below[half..]];
        let lower = half * PANEL;
        let b = [0, apart, lower, apart + lower].map(|from| &term.b[from..]);
        for from in steps() {
            let a = (a.map(|a| &a[from..]), stride);
            let b = (b.map(|b| &b[from * PANEL..]), DEPTH.min(half - from));
            let accumulate = index > 0 || from > 0;
            for (number, product) in PRODUCTS.into_iter().enumerate() {
                let (left, right, targets) = product;
                // What lies beside a quarter is asked for during one of the last products.
                let beside = match number.checked_sub(3) {
                    Some(quarter) if last == (index, Some(from)) => {
                        beside.right(quarter % 2 * PANEL).below(quarter / 2 * rows)
                    }
                    _ => Beside::NOTHING,
                };
                let targets = added(targets, accumulate);
                let operands = ((a, left), (b, right));
                match isa {
                    Isa::Portable => unreachable!("only vector tiers choose this product"),
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx2(token) => {
                        token.multiply_quarters(operands, (&mut c, targets), beside)
                    }
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx512(token) => {
                        token.multiply_quarters(operands, (&mut c, targets), beside)
                    }
                }
            }
        }
    }
}

/// Rows of both operands of a transposed product.
pub(crate) const STEP: usize = 256;
/// Values of the right operands of its products.
pub(crate) const RIGHT: usize = PRODUCTS.len() * STEP / 2 * PANEL;

/// The right operands of the products of [`STEP`] rows of 128 columns: for each, half as many rows of 64.
pub(crate) fn sum_right(isa: Isa, (b, stride): (&[f32], usize), sums: &mut [f32; RIGHT]) {
    let at = |quarter: usize| &b[quarter / 2 * (STEP / 2) * stride + quarter % 2 * PANEL..];
    for ((_, operand, _), sums) in PRODUCTS.iter().zip(sums.chunks_exact_mut(STEP / 2 * PANEL)) {
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

/// `c[m][128] = a' . b`, or `+=` where `accumulate` is set, for [`STEP`] rows of `a` and what [`sum_right`]
/// made of `b`; both with the distance of rows. `next` is where the next operands begin, to be fetched
/// meanwhile; `c` is two panels.
pub(crate) fn multiply_transposed(
    isa: Isa,
    (a, right): (&[f32], &[f32; RIGHT]),
    [stride, b_stride]: [usize; 2],
    (next_a, next_b): (&[f32], &[f32]),
    c: [ArrayViewMut2<f32>; 2],
    accumulate: bool,
) {
    let half = c[0].nrows() / 2;
    let [left, right_half] = c.map(|c| c.split_at(Axis(0), half));
    let mut c = [left.0, right_half.0, left.1, right_half.1];
    // Transposed: the upper right quarter is the first half of the columns of the last rows.
    let below = STEP / 2 * stride;
    let quarters = [0, below, half, below + half];
    let a = quarters.map(|from| &a[from..]);
    // What comes next is asked for quarter by quarter.
    let ahead = |start: &[f32], from: usize| start.get(from..).unwrap_or(&[]).as_ptr();
    for (number, (product, b)) in
        PRODUCTS.iter().zip(right.chunks_exact(STEP / 2 * PANEL)).enumerate()
    {
        let (left, _, targets) = *product;
        let next = match number {
            0..4 => Some((ahead(next_a, quarters[number]), stride, half)),
            4..6 => Some((ahead(next_b, (number - 4) * (STEP / 2) * b_stride), b_stride, COLUMNS)),
            _ => None,
        };
        let (operand, place) = (((a, stride), left), (&mut c, added(targets, accumulate)));
        match isa {
            Isa::Portable => unreachable!("only vector tiers choose this product"),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(token) => token.multiply_quarters_transposed(operand, b, place, next),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(token) => token.multiply_quarters_transposed(operand, b, place, next),
        }
    }
}

/// The same targets, added to from the first product on where `accumulate` is set.
fn added(targets: Targets, accumulate: bool) -> Targets {
    targets.map(|target| {
        target.map(|(quarter, store)| match store {
            Set if accumulate => (quarter, Add),
            _ => (quarter, store),
        })
    })
}
