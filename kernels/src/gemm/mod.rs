//! Batch-reduce matrix products over 64-wide panels: the one inner loop of every convolution pass.
//!
//! ```text
//! multiply             c[n][64] (+)= sum over terms  a[n][k] . b[k][64]
//! multiply_transposed  c[m][64] (+)= a[n][m]' . b[n][64]
//! ```
//!
//! The vector tiers keep a tile of `c` in registers. Forward that is six rows by 64 columns, and in
//! `f32` `k` is walked in groups of at most [`DEPTH`] rows of `b`, so that the group's panel stays in
//! the second-level cache while all rows of `a` pass by; between groups `c` goes through memory. The
//! order of additions of one element is the order of terms and of `k`, whatever the tier, so AVX2 and
//! AVX-512 agree to the bit. The portable tier hands each term to matrixmultiply through ndarray.
//!
//! In bfloat16 two neighbouring values of `k` make a word: panels are `[k/2][64][2]`, and what is
//! summed over images is interleaved by pairs of them. Sums stay in registers from the first to the
//! last term, since `c` could not hold them. Tiles read the same panels; what they sum over images
//! they read along rows of channels.

pub(crate) mod epilogue;
pub(crate) mod product;
pub(crate) mod strassen;

use ndarray::linalg::general_mat_mul;
use ndarray::{ArrayViewMut2, Axis};

#[cfg(target_arch = "x86_64")]
use crate::base::isa::Amx;
use crate::base::isa::Isa;
use crate::base::panel::{Matrix, PANEL, Prefetch, PrefetchNext, STRIP};
#[cfg(target_arch = "x86_64")]
use crate::base::tile::STRIP_WORDS;
use crate::base::tile::{Tile, rows_of};
use crate::base::value::{Bf16, Value};
use epilogue::Store;

/// Rows of a panel that are worked through before `c` is written back: 128 KiB of it stay in the second-level cache
/// while all rows of `a` pass, beside what is read with the tile. Shorter groups write and read `c` more often. It is
/// part of no sum's order: bits do not depend on it.
pub(crate) const DEPTH: usize = 512;

/// Zeros that are read at a time where a map or a sum has nothing: as many values as the widest slice or row.
pub(crate) const ZEROS: usize = 2048;

/// One product of a sum: `n` rows of `a` by `k` rows of a panel.
#[derive(Clone, Copy)]
pub(crate) struct Term<'a, T> {
    /// `n` rows of `k` values, the row stride given beside.
    pub(crate) a: &'a [T],
    /// `k` rows of 64 values, contiguous.
    pub(crate) b: &'a [T],
}

/// `c[n][64] = sum a.b` over the terms. Each `a` has `c.nrows()` rows of `k` values, `stride` apart.
pub(crate) fn multiply(
    isa: Isa,
    products: Products<f32>,
    mut c: ArrayViewMut2<f32>,
    beside: Prefetch,
) {
    assert_eq!(c.ncols(), PANEL);
    match isa {
        Isa::Portable => multiply_plainly(products, &mut c),
        #[cfg(target_arch = "x86_64")]
        Isa::Vector(tier) => tier.multiply(products, c, beside),
    }
}

/// Sums of products for a tile of some panels, whose terms have the same `a`.
#[derive(Clone, Copy)]
pub struct Products<'a, T> {
    /// Of each panel: `b` begins with the first one's panel and goes on to the last one's.
    pub(crate) terms: &'a [Term<'a, T>],
    /// Values of a row of `a`, and from row to row.
    pub(crate) k: usize,
    pub(crate) stride: usize,
    /// Values from a panel's `b` to the next one's.
    pub(crate) panel_stride: usize,
}

impl<'a, T> Products<'a, T> {
    /// The terms of one panel.
    fn panel(&self, panel: usize) -> impl Iterator<Item = Term<'a, T>> {
        let panel_stride = panel * self.panel_stride;
        self.terms.iter().map(move |term| Term { b: &term.b[panel_stride..], ..*term })
    }
}

/// As [`multiply`] for a tile of an activation in any format, which ends so; `held` has room for the sums of a
/// panel. Of more than one panel, the sums are at most [`DEPTH`] long.
pub(crate) fn multiply_to<T: Value>(
    isa: Isa,
    products: Products<f32>,
    accumulators: &mut [f32],
    store: &Store<T>,
    mut tile: Tile<T>,
) {
    match isa {
        Isa::Portable => {
            let accumulators = &mut accumulators[..tile.values.nrows() * PANEL];
            for (panel, tile) in tile.panels().enumerate() {
                let terms: Vec<_> = products.panel(panel).collect();
                let products = Products { terms: &terms, ..products };
                multiply_plainly(products, &mut rows_of(accumulators, PANEL));
                store.plainly(accumulators, tile);
            }
        }
        #[cfg(target_arch = "x86_64")]
        Isa::Vector(tier) => tier.multiply_to(products, accumulators, store, tile),
    }
}

fn multiply_plainly(products: Products<f32>, c: &mut ArrayViewMut2<f32>) {
    let Products { terms, k, stride, .. } = products;
    if terms.is_empty() {
        c.fill(0.0);
    }
    for (index, term) in terms.iter().enumerate() {
        let a = Matrix { data: term.a, rows: c.nrows(), cols: k, stride };
        let b = Matrix { data: term.b, rows: k, cols: PANEL, stride: PANEL };
        general_mat_mul(1.0, &a.view(), &b.view(), if index > 0 { 1.0 } else { 0.0 }, c);
    }
}

/// As [`multiply_to`] in bfloat16; `k` is even, and sums may have any length.
pub(crate) fn multiply_bf16(
    isa: Isa,
    products: Products<Bf16>,
    accumulators: &mut [f32],
    store: &Store<Bf16>,
    mut tile: Tile<Bf16>,
) {
    let Products { k, stride, .. } = products;
    assert_eq!((k % 2, stride % 2), (0, 0));
    #[cfg(target_arch = "x86_64")]
    if let Some(tiles) = isa.tiles() {
        return tiles.multiply_to(products, store, tile);
    }
    #[cfg(target_arch = "x86_64")]
    if let Some(token) = isa.bf16() {
        return token.multiply_to(products, store, tile);
    }
    let accumulators = &mut accumulators[..tile.values.nrows() * PANEL];
    for (panel, tile) in tile.panels().enumerate() {
        isa.run(
            #[inline(always)]
            || {
                for (row, sum) in accumulators.chunks_exact_mut(PANEL).enumerate() {
                    sum.fill(0.0);
                    for term in products.panel(panel) {
                        let a = &term.a[row * stride..][..k];
                        let pairs = a.chunks_exact(2).zip(term.b.chunks_exact(2 * PANEL));
                        pairs.for_each(|(a, b)| add_pair([a[0], a[1]], b, sum));
                    }
                }
            },
        );
        store.plainly(accumulators, tile);
    }
}

/// `sum[j] += a . b[j]` for words `b`.
#[inline(always)]
fn add_pair(a: [Bf16; 2], b: &[Bf16], sum: &mut [f32]) {
    let [first, second] = a.map(Value::widen);
    for (sum, b) in sum.iter_mut().zip(b.chunks_exact(2)) {
        *sum += first * b[0].widen() + second * b[1].widen();
    }
}

/// `c[m][64] = a' . b`, or `+=` where `accumulate` is set, for `a` of n rows by m columns and `b` of n
/// rows by 64 columns, as two strips of `[n][32]`.
pub(crate) fn multiply_transposed(
    isa: Isa,
    a: Matrix<f32>,
    b: &[f32],
    next: PrefetchNext<f32, impl Copy>,
    mut c: ArrayViewMut2<f32>,
    accumulate: bool,
) {
    assert_eq!((a.cols, c.ncols()), (c.nrows(), PANEL));
    match isa {
        Isa::Portable => {
            let beta = if accumulate { 1.0 } else { 0.0 };
            for (mut c, b) in c.axis_chunks_iter_mut(Axis(1), STRIP).zip(b.chunks(a.rows * STRIP)) {
                let b = Matrix { data: b, rows: a.rows, cols: STRIP, stride: STRIP };
                general_mat_mul(1.0, &a.view().t(), &b.view(), beta, &mut c);
            }
        }
        #[cfg(target_arch = "x86_64")]
        Isa::Vector(tier) => tier.multiply_transposed(a, b, next, c, accumulate),
    }
}

/// As [`multiply_transposed`] over words of two bfloat16 each.
pub(crate) fn multiply_transposed_bf16(
    isa: Isa,
    a: Matrix<u32>,
    b: &[u32],
    next: PrefetchNext<Bf16, impl Copy>,
    mut c: ArrayViewMut2<f32>,
    accumulate: bool,
) {
    #[cfg(target_arch = "x86_64")]
    if let Some(tiles) = isa.tiles() {
        return tiles.multiply_transposed(a, &b[..a.cols * PANEL], c, accumulate);
    }
    assert_eq!((a.cols, c.ncols()), (c.nrows(), PANEL));
    #[cfg(target_arch = "x86_64")]
    if let Some(token) = isa.bf16() {
        return token.multiply_transposed(a, b, next, c, accumulate);
    }
    if !accumulate {
        c.fill(0.0);
    }
    isa.run(
        #[inline(always)]
        || {
            for (m, mut c) in c.rows_mut().into_iter().enumerate() {
                let c = c.as_slice_mut().expect("rows are contiguous");
                for (c, strip) in c.chunks_exact_mut(STRIP).zip(b.chunks(a.rows * STRIP)) {
                    for (n, b) in strip.chunks_exact(STRIP).enumerate() {
                        let [first, second] = halves(a.data[n * a.stride + m]);
                        for (c, &b) in c.iter_mut().zip(b) {
                            let [even, odd] = halves(b);
                            *c += first * even + second * odd;
                        }
                    }
                }
            }
        },
    );
}

/// The two values of a word.
#[inline(always)]
fn halves(word: u32) -> [f32; 2] {
    [Bf16(word as u16).widen(), Bf16((word >> 16) as u16).widen()]
}

/// Pairs of rows as words, in strips of `width` columns; zeros under an odd last row.
pub(crate) fn interleave(isa: Isa, a: Matrix<Bf16>, width: usize, target: &mut [u32]) {
    let pairs = a.rows.div_ceil(2);
    assert!(a.fits() && a.cols.is_multiple_of(width) && target.len() == pairs * a.cols);
    #[cfg(target_arch = "x86_64")]
    if let Some(token) = isa.bf16()
        && width.is_multiple_of(STRIP)
    {
        return token.interleave(a, width, target);
    }
    let value = |row: usize, column: usize| match row < a.rows {
        true => u32::from(a.data[row * a.stride + column].0),
        false => 0,
    };
    for (strip, target) in target.chunks_exact_mut(pairs * width).enumerate() {
        for (pair, words) in target.chunks_exact_mut(width).enumerate() {
            for (column, word) in (strip * width..).zip(words) {
                *word = value(2 * pair, column) | value(2 * pair + 1, column) << 16;
            }
        }
    }
}

/// Rows of images as rows of channels, of words of two images each: left operands of tiles.
#[cfg(target_arch = "x86_64")]
pub(crate) fn transpose_for_tiles<'a>(
    isa: Isa,
    tiles: Amx,
    a: Matrix<Bf16>,
    packed: &'a mut [u32],
) -> Matrix<'a, u32> {
    let mut strip = [0; STRIP_WORDS];
    let pairs = a.rows.div_ceil(2);
    for (column, rows) in (0..a.cols).step_by(STRIP).zip(packed.chunks_exact_mut(STRIP_WORDS)) {
        let a = Matrix { data: &a.data[column..], cols: STRIP, ..a };
        interleave(isa, a, STRIP, &mut strip[..pairs * STRIP]);
        tiles.transpose_strip(&strip, rows);
    }
    Amx::transposed(packed, a.cols, pairs)
}

/// Rows of 64 columns, two by two, as rows of 64 words.
pub(crate) fn pair_rows(isa: Isa, rows: &[f32], words: &mut [Bf16]) {
    assert!(rows.len() == words.len() && rows.len().is_multiple_of(2 * PANEL));
    #[cfg(target_arch = "x86_64")]
    if let Some(token) = isa.bf16() {
        return token.pair_rows(rows, words);
    }
    for (rows, words) in rows.chunks_exact(2 * PANEL).zip(words.chunks_exact_mut(2 * PANEL)) {
        let (even, odd) = rows.split_at(PANEL);
        for ((word, &even), &odd) in words.chunks_exact_mut(2).zip(even).zip(odd) {
            word.copy_from_slice(&[Bf16::narrow(even), Bf16::narrow(odd)]);
        }
    }
}

/// Transposes 64 rows of 64 columns; past the caches, where the tier can and the target begins at a cache line,
/// if `streamed` is set. What comes next after `source` is asked for; it may be empty.
pub(crate) fn transpose(
    isa: Isa,
    source: &[f32],
    next: &[f32],
    target: &mut [f32],
    streamed: bool,
) {
    assert_eq!((source.len(), target.len()), (PANEL * PANEL, PANEL * PANEL));
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Vector(tier) => {
            let streamed = streamed && target.as_ptr().addr().is_multiple_of(64);
            tier.transpose(source, next, target, streamed);
        }
        Isa::Portable => {
            // Sixteen columns at a time, so that reads stay in a few cache lines.
            for first in (0..PANEL).step_by(16) {
                for (k, row) in target.chunks_exact_mut(PANEL).enumerate() {
                    for (c, value) in (first..first + 16).zip(&mut row[first..]) {
                        *value = source[c * PANEL + k];
                    }
                }
            }
        }
    }
}

/// Rows of 64 columns as two strips, each value passed through `convert`.
#[inline(always)]
pub(crate) fn strips<T: Copy>(b: Matrix<T>, packed: &mut [f32], convert: impl Fn(T) -> f32) {
    let (left, right) = packed[..b.rows * PANEL].split_at_mut(b.rows * STRIP);
    let strips = left.chunks_exact_mut(STRIP).zip(right.chunks_exact_mut(STRIP));
    for ((left, right), source) in strips.zip(b.data.chunks(b.stride)) {
        let (first, second) = source[..PANEL].split_at(STRIP);
        left.iter_mut().zip(first).for_each(|(target, &value)| *target = convert(value));
        right.iter_mut().zip(second).for_each(|(target, &value)| *target = convert(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::arena::Arena;
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
    fn tiles_are_turned_the_same_past_the_caches_and_aside_of_a_cache_line() {
        const LEN: usize = PANEL * PANEL;
        let source = values(LEN, 7);
        for isa in Isa::available() {
            for (aside, streamed) in [(0, true), (0, false), (1, true)] {
                let mut arena = Arena::<f32>::new(LEN + 1).expect("memory");
                let target = &mut arena.as_mut_slice()[aside..aside + LEN];
                transpose(isa, &source, &[], target, streamed);
                let is_turned = |at: usize| target[at] == source[at % PANEL * PANEL + at / PANEL];
                assert!((0..LEN).all(is_turned), "{} {aside} {streamed}", isa.name());
            }
        }
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
                    let terms: Vec<Term<f32>> = (0..count)
                        .map(|t| Term { a: &a[t * n * stride..], b: &b[t * k * PANEL..] })
                        .collect();
                    let mut c = Array2::from_elem((n, PANEL), f32::NAN);
                    let products = Products { terms: &terms, k, stride, panel_stride: 0 };
                    multiply(isa, products, c.view_mut(), Prefetch::NOTHING);
                    let want = Array2::from_shape_fn((n, PANEL), |(row, col)| {
                        let mut sum = 0.0_f64;
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

    #[test]
    fn transposed_products_match_f64_on_every_tier_and_ragged_shapes() {
        for isa in Isa::available() {
            for n in [1, 3, 16, 128] {
                for m in [1, 3, 6, 32, 35] {
                    let (a, b) = (values(n * (m + 5), 3), values(n * PANEL, 4));
                    let a = Matrix { data: &a, rows: n, cols: m, stride: m + 5 };
                    let mut c = Array2::from_elem((m, PANEL), 0.25);
                    multiply_transposed(
                        isa,
                        a,
                        &b,
                        PrefetchNext::<f32, f32>::default(),
                        c.view_mut(),
                        true,
                    );
                    let want = Array2::from_shape_fn((m, PANEL), |(row, col)| {
                        let mut sum = 0.25;
                        for i in 0..n {
                            sum += f64::from(a.data[i * a.stride + row])
                                * f64::from(b[(col / STRIP * n + i) * STRIP + col % STRIP]);
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
        let terms: Vec<Term<f32>> =
            (0..count).map(|t| Term { a: &a[t * n * k..], b: &b[t * k * PANEL..] }).collect();
        let results: Vec<Array2<f32>> = vector
            .iter()
            .map(|&isa| {
                let mut c = Array2::zeros((n, PANEL));
                let products = Products { terms: &terms, k, stride: k, panel_stride: 0 };
                multiply(isa, products, c.view_mut(), Prefetch::NOTHING);
                c
            })
            .collect();
        assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
    }
}
