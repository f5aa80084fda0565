//! Batch-reduce matrix products over 64-wide panels: the one inner loop of every convolution pass.
//!
//! ```text
//! multiply             c[n][64] (+)= sum over terms  a[n][k] . b[k][64]
//! multiply_transposed  c[m][64]  +=  a[n][m]' . b[n][64]
//! ```
//!
//! The vector tiers keep six rows by 64 columns of `c` in registers and walk `k` in groups of at most
//! [`DEPTH`] rows of `b`, so that the group's panel (128 KiB) stays in the second-level cache while
//! all rows of `a` pass by; between groups `c` goes through memory. The order of additions of one
//! element is the order of terms and of `k`, whatever the tier, so AVX2 and AVX-512 agree to the bit.
//! The portable tier hands each term to matrixmultiply through ndarray.

use ndarray::linalg::general_mat_mul;
use ndarray::{ArrayView2, ArrayViewMut2, ShapeBuilder};

use crate::isa::Isa;

/// Columns of a panel: channels of one block of weights.
pub const PANEL: usize = 64;

/// Rows of a panel that are worked through before `c` is written back.
pub(crate) const DEPTH: usize = 512;

/// One product of a sum: `n` rows of `a` by `k` rows of a panel.
#[derive(Clone, Copy)]
pub(crate) struct Term<'a> {
    /// `n` rows of `k` values, the row stride given beside.
    pub(crate) a: &'a [f32],
    /// `k` rows of 64 values, contiguous.
    pub(crate) b: &'a [f32],
}

/// A matrix inside a slice: `rows` rows of `cols` values, `stride` apart.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) stride: usize,
}

impl Matrix<'_> {
    fn view(&self) -> ArrayView2<'_, f32> {
        ArrayView2::from_shape((self.rows, self.cols).strides((self.stride, 1)), self.data)
            .expect("a matrix fits its slice")
    }

    /// Whether every row lies inside the slice.
    pub(crate) fn fits(&self) -> bool {
        self.rows == 0 || (self.rows - 1) * self.stride + self.cols <= self.data.len()
    }
}

/// `c[n][64] = sum a.b` over the terms, or `+=` where `accumulate` is set.
///
/// Each `a` has `c.nrows()` rows of `k` values, `stride` apart.
pub(crate) fn multiply(
    isa: Isa,
    terms: &[Term],
    (k, stride): (usize, usize),
    mut c: ArrayViewMut2<f32>,
    accumulate: bool,
) {
    assert_eq!(c.ncols(), PANEL);
    match isa {
        Isa::Portable => {
            let mut beta = if accumulate { 1.0 } else { 0.0 };
            if terms.is_empty() && !accumulate {
                c.fill(0.0);
            }
            for term in terms {
                let a = Matrix { data: term.a, rows: c.nrows(), cols: k, stride };
                let b = Matrix { data: term.b, rows: k, cols: PANEL, stride: PANEL };
                general_mat_mul(1.0, &a.view(), &b.view(), beta, &mut c);
                beta = 1.0;
            }
        }
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(token) => token.multiply(terms, (k, stride), c, accumulate),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(token) => token.multiply(terms, (k, stride), c, accumulate),
    }
}

/// `c[m][64] += a' . b` for `a` of n rows by m columns and `b` of n rows by 64 columns.
pub(crate) fn multiply_transposed(isa: Isa, a: Matrix, b: Matrix, mut c: ArrayViewMut2<f32>) {
    assert_eq!((a.rows, a.cols, b.cols, c.ncols()), (b.rows, c.nrows(), PANEL, PANEL));
    match isa {
        Isa::Portable => general_mat_mul(1.0, &a.view().t(), &b.view(), 1.0, &mut c),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(token) => token.multiply_transposed(a, b, c),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(token) => token.multiply_transposed(a, b, c),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array2;

    fn values(len: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        (0..len)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect()
    }

    /// Relative error bound of a sum of `k` products: a few times sqrt(k) roundings.
    fn check(got: &Array2<f32>, want: &Array2<f64>, k: usize, what: &str) {
        let norm = want.iter().map(|x| x * x).sum::<f64>().sqrt().max(1e-30);
        let error =
            got.iter().zip(want).map(|(&g, w)| (f64::from(g) - w).powi(2)).sum::<f64>().sqrt();
        let bound = 1e-6 * (k.max(1) as f64).sqrt();
        assert!(error / norm < bound, "{what}: {} > {bound}", error / norm);
    }

    #[test]
    fn products_match_f64_on_every_tier_and_ragged_shapes() {
        for isa in Isa::available() {
            for n in [1, 2, 5, 6, 7, 13, 64, 128] {
                for (k, pad, count) in [(1, 0, 1), (3, 2, 49), (64, 0, 9), (65, 16, 2), (600, 0, 2)]
                {
                    let stride = k + pad;
                    let a = values(n * stride * count, 1);
                    let b = values(k * PANEL * count, 2);
                    let terms: Vec<Term> = (0..count)
                        .map(|t| Term { a: &a[t * n * stride..], b: &b[t * k * PANEL..] })
                        .collect();
                    for accumulate in [false, true] {
                        let start = if accumulate { 0.5 } else { f32::NAN };
                        let mut c = Array2::from_elem((n, PANEL), start);
                        multiply(isa, &terms, (k, stride), c.view_mut(), accumulate);
                        let want = Array2::from_shape_fn((n, PANEL), |(row, col)| {
                            let mut sum = if accumulate { 0.5_f64 } else { 0.0 };
                            for term in &terms {
                                for i in 0..k {
                                    sum += f64::from(term.a[row * stride + i])
                                        * f64::from(term.b[i * PANEL + col]);
                                }
                            }
                            sum
                        });
                        check(&c, &want, k * count, &format!("{} n{n} k{k}x{count}", isa.name()));
                    }
                }
            }
        }
    }

    #[test]
    fn transposed_products_match_f64_on_every_tier_and_ragged_shapes() {
        for isa in Isa::available() {
            for n in [1, 3, 16, 128] {
                for m in [1, 3, 6, 32, 35] {
                    let (a, b) = (values(n * (m + 5), 3), values(n * PANEL, 4));
                    let a = Matrix { data: &a, rows: n, cols: m, stride: m + 5 };
                    let b = Matrix { data: &b, rows: n, cols: PANEL, stride: PANEL };
                    let mut c = Array2::from_elem((m, PANEL), 0.25);
                    multiply_transposed(isa, a, b, c.view_mut());
                    let want = Array2::from_shape_fn((m, PANEL), |(row, col)| {
                        let mut sum = 0.25;
                        for i in 0..n {
                            sum += f64::from(a.data[i * a.stride + row])
                                * f64::from(b.data[i * PANEL + col]);
                        }
                        sum
                    });
                    check(&c, &want, n, &format!("{} n{n} m{m}", isa.name()));
                }
            }
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn the_vector_tiers_agree_to_the_bit() {
        let vector: Vec<Isa> = Isa::available().into_iter().skip(1).collect();
        let (n, k, count) = (13, 300, 5);
        let (a, b) = (values(n * k * count, 5), values(k * PANEL * count, 6));
        let terms: Vec<Term> =
            (0..count).map(|t| Term { a: &a[t * n * k..], b: &b[t * k * PANEL..] }).collect();
        let results: Vec<Array2<f32>> = vector
            .iter()
            .map(|&isa| {
                let mut c = Array2::zeros((n, PANEL));
                multiply(isa, &terms, (k, k), c.view_mut(), false);
                c
            })
            .collect();
        assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
    }
}
