//! The products of Strassen's algorithm: sums of operands taken on loading, results added to two targets.

use std::arch::x86_64::{__m256, __m512};
use std::mem::MaybeUninit;

use ndarray::ArrayViewMut2;

use super::vector::Vector;
use super::{Avx2, Avx512, LINE, ROWS, Rows, Target};
use crate::gemm::{Beside, Matrix, PANEL};
use crate::strassen::{DEPTH, Operand, STEP, Store, Targets};

/// Values of a cache line.
const VALUES: usize = LINE / size_of::<f32>();
/// Bytes after which addresses fall into the same set of a first-level cache.
const SETS: usize = 4096;

/// The quarters of an operand with a measure of them, and which of them are taken.
type Quarters<'a> = (([&'a [f32]; 4], usize), Operand);

/// What is read for the next product: where it begins, the distance of its rows, and values of a row.
pub(crate) type Next = Option<(*const f32, usize, usize)>;

/// How two sources become one.
const ONE: u8 = 0;
const SUM: u8 = 1;
const DIFFERENCE: u8 = 2;

/// One or two sources.
#[derive(Clone, Copy)]
struct Pair {
    first: *const f32,
    second: *const f32,
    kind: u8,
}

impl Pair {
    fn new(quarters: [&[f32]; 4], operand: Operand) -> Self {
        let (first, second, kind) = match operand {
            Operand::One(one) => (one, one, ONE),
            Operand::Sum(one, other) => (one, other, SUM),
            Operand::Difference(one, other) => (one, other, DIFFERENCE),
        };
        Self { first: quarters[first].as_ptr(), second: quarters[second].as_ptr(), kind }
    }

    #[inline(always)]
    fn add(self, count: usize) -> Self {
        let (first, second) = (self.first.wrapping_add(count), self.second.wrapping_add(count));
        Self { first, second, ..self }
    }
}

/// Where a product goes.
type Places = [Option<(Target<f32>, Store)>; 2];

/// Quarters of `rows` rows as targets.
fn places(c: &mut [ArrayViewMut2<f32>; 4], targets: Targets, rows: usize) -> Places {
    targets.map(|target| {
        let (quarter, store) = target?;
        assert_eq!(c[quarter].nrows(), rows);
        Some((Target::new(&mut c[quarter]), store))
    })
}

/// A product of quarters: rows of `a`, `k` values of each, times a panel.
#[derive(Clone, Copy)]
struct Product {
    a: Pair,
    /// Values from row to row of `a`.
    stride: usize,
    rows: usize,
    b: Pair,
    k: usize,
    places: Places,
    beside: Beside,
}

/// A product of quarters over rows of both: `columns` columns of `a` times a panel.
#[derive(Clone, Copy)]
struct Transposed {
    a: Pair,
    /// Values from row to row of `a`.
    stride: usize,
    columns: usize,
    b: *const f32,
    rows: usize,
    places: Places,
    /// Rows that will be read next, and cache lines of a row.
    next: (Rows, usize),
}

macro_rules! entries {
    ($token:ty, $vector:ty, $count:literal, $features:literal) => {
        impl $token {
            /// One of the seven products over `k` values of a sum; see [`crate::strassen`].
            pub(crate) fn multiply_quarters(
                self,
                (((a, stride), left), ((b, k), right)): (Quarters, Quarters),
                (c, targets): (&mut [ArrayViewMut2<f32>; 4], Targets),
                beside: Beside,
            ) {
                let rows = c[0].nrows();
                assert!(rows.is_multiple_of(2) && k.is_multiple_of(VALUES) && k <= DEPTH);
                assert!(a.iter().all(|data| Matrix { data, rows, cols: k, stride }.fits()));
                assert!(b.iter().all(|b| b.len() >= k * PANEL));
                let (a, b, places) =
                    (Pair::new(a, left), Pair::new(b, right), places(c, targets, rows));
                let product = Product { a, stride, rows, b, k, places, beside };
                // SAFETY: (T), (B).
                unsafe { <$vector>::run(product) }
            }

            /// One of the seven products over half a step of rows; see [`crate::strassen`].
            pub(crate) fn multiply_quarters_transposed(
                self,
                ((a, stride), left): Quarters,
                b: &[f32],
                (c, targets): (&mut [ArrayViewMut2<f32>; 4], Targets),
                next: Next,
            ) {
                let (columns, rows) = (c[0].nrows(), STEP / 2);
                assert!(columns.is_multiple_of(2) && b.len() >= rows * PANEL);
                assert!(a.iter().all(|data| Matrix { data, rows, cols: columns, stride }.fits()));
                let (start, next_stride, values) = next.unwrap_or((b.as_ptr(), 0, 0));
                let next = Rows {
                    start: start.cast(),
                    stride: next_stride * size_of::<f32>(),
                    at_once: 1,
                };
                let product = Transposed {
                    a: Pair::new(a, left),
                    stride,
                    columns,
                    b: b.as_ptr(),
                    rows,
                    places: places(c, targets, columns),
                    next: (next, values / VALUES),
                };
                // SAFETY: (T), (B).
                unsafe { <$vector>::run_transposed(product) }
            }
        }

        impl Entry for $vector {
            #[target_feature(enable = $features)]
            unsafe fn run(product: Product) {
                // SAFETY: passed on.
                unsafe { run::<$vector, $count>(product) }
            }

            #[target_feature(enable = $features)]
            unsafe fn run_transposed(product: Transposed) {
                // SAFETY: passed on.
                unsafe {
                    match product.a.kind {
                        ONE => tiles_transposed::<$vector, $count, ONE>(product),
                        SUM => tiles_transposed::<$vector, $count, SUM>(product),
                        _ => tiles_transposed::<$vector, $count, DIFFERENCE>(product),
                    }
                }
            }
        }
    };
}

/// The functions that carry the features.
trait Entry {
    /// # Safety
    /// (T), and as [`run`].
    unsafe fn run(product: Product);
    /// # Safety
    /// (T), and as [`tiles_transposed`].
    unsafe fn run_transposed(product: Transposed);
}

entries!(Avx512, __m512, 4, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma");
entries!(Avx2, __m256, 2, "avx2,fma");

/// # Safety
/// `rows` rows of `k` values of the sources of `a` are readable, `k` rows of 64 values of those of `b`, and
/// the places have `rows` rows of 64 values; `rows` is even, `k` a multiple of 16 and no larger than the
/// depth; the features of `V` are there.
#[inline(always)]
unsafe fn run<V: Vector, const NV: usize>(product: Product) {
    let Product { a, b, stride, .. } = product;
    let apart = a.second.addr().wrapping_sub(a.first.addr());
    let is_crowded = stride.is_multiple_of(SETS / size_of::<f32>()) && apart.is_multiple_of(SETS);
    // SAFETY: passed on.
    unsafe {
        match (a.kind, b.kind) {
            (SUM | DIFFERENCE, _) if is_crowded => packed::<V, NV>(product),
            (SUM, SUM) => tiles::<V, NV, SUM, SUM>(product),
            (SUM, ONE) => tiles::<V, NV, SUM, ONE>(product),
            (DIFFERENCE, SUM) => tiles::<V, NV, DIFFERENCE, SUM>(product),
            (ONE, DIFFERENCE) => tiles::<V, NV, ONE, DIFFERENCE>(product),
            _ => unreachable!("none of the seven products"),
        }
    }
}

/// Takes the sums of `a` for a few rows at a time beforehand: rows of both sources would not stay in a set
/// of the first-level cache together.
///
/// # Safety
/// As [`run`].
#[inline(always)]
unsafe fn packed<V: Vector, const NV: usize>(product: Product) {
    let Product { a, stride, k, .. } = product;
    let mut sums = MaybeUninit::<[f32; ROWS * DEPTH]>::uninit();
    let sums = sums.as_mut_ptr().cast::<f32>();
    for row in (0..product.rows).step_by(ROWS) {
        let rows = ROWS.min(product.rows - row);
        // SAFETY: the caller's promise; no more rows are taken than are left, and what `tiles` reads of
        // the sums was written.
        unsafe {
            for i in 0..rows {
                let a = a.add((row + i) * stride);
                for at in (0..k).step_by(V::COUNT) {
                    let (a, ahead) = (a.add(at), a.add(ROWS * stride + at));
                    V::prefetch(ahead.first.cast());
                    V::prefetch(ahead.second.cast());
                    let (x, y) = (V::load(a.first), V::load(a.second));
                    let sum = if a.kind == SUM { x.add(y) } else { x.subtract(y) };
                    sum.store(sums.add(i * k + at));
                }
            }
            let places = product.places.map(|place| {
                let (target, store) = place?;
                let start = target.start.add(row * target.stride);
                Some((Target { start, rows, ..target }, store))
            });
            let a = Pair { first: sums, second: sums, kind: ONE };
            let beside = product.beside.below(row);
            let part = Product { a, stride: k, rows, places, beside, ..product };
            match product.b.kind {
                ONE => tiles::<V, NV, ONE, ONE>(part),
                SUM => tiles::<V, NV, ONE, SUM>(part),
                _ => unreachable!("none of the seven products"),
            }
        }
    }
}

/// # Safety
/// As [`run`], with `A` and `B` the kinds of the operands.
#[inline(always)]
unsafe fn tiles<V: Vector, const NV: usize, const A: u8, const B: u8>(product: Product) {
    for column in (0..PANEL).step_by(NV * V::COUNT) {
        for row in (0..product.rows).step_by(ROWS) {
            // SAFETY: the caller's promise; the arms take no more rows than are left.
            unsafe {
                match product.rows - row {
                    2 => tile::<V, 2, NV, A, B>(&product, row, column),
                    4 => tile::<V, 4, NV, A, B>(&product, row, column),
                    _ => tile::<V, ROWS, NV, A, B>(&product, row, column),
                }
            }
        }
    }
}

/// One register tile.
///
/// # Safety
/// As [`tiles`], with `MR` rows from `row` on and `NV` vectors from `column` on.
#[inline(always)]
unsafe fn tile<V: Vector, const MR: usize, const NV: usize, const A: u8, const B: u8>(
    product: &Product,
    row: usize,
    column: usize,
) {
    let stride = product.stride;
    let (mut a, mut b) = (product.a.add(row * stride), product.b.add(column));
    let mut sums = [[V::zero(); NV]; MR];
    for step in 0..product.k / VALUES {
        // A cache line of each row, and that of the row which comes next in its place.
        for i in 0..MR {
            let ahead = a.add((i + ROWS) * stride);
            V::prefetch(ahead.first.cast());
            if A != ONE {
                V::prefetch(ahead.second.cast());
            }
        }
        if step < MR && column == 0 {
            product.beside.prefetch::<V>(row + step);
        }
        for _ in 0..VALUES {
            // SAFETY: inside the rows that the caller vouches for.
            unsafe {
                let mut panel = [V::zero(); NV];
                for j in 0..NV {
                    let b = b.add(j * V::COUNT);
                    panel[j] = combine::<V, B>(V::load(b.first), V::load(b.second));
                }
                for i in 0..MR {
                    let a = a.add(i * stride);
                    let value = combine::<V, A>(V::splat(*a.first), V::splat(*a.second));
                    for j in 0..NV {
                        sums[i][j] = panel[j].multiply_add(value, sums[i][j]);
                    }
                }
            }
            (a, b) = (a.add(1), b.add(PANEL));
        }
    }
    // SAFETY: passed on.
    unsafe { put(&sums, product.places, row, column) }
}

/// # Safety
/// `rows` rows of `columns` values of the sources of `a` are readable, as many rows of 64 values of `b`, and
/// the places have `columns` rows of 64 values; `columns` is even; the features of `V` are there. `A` is the
/// kind of `a`.
#[inline(always)]
unsafe fn tiles_transposed<V: Vector, const NV: usize, const A: u8>(product: Transposed) {
    let (ahead, lines) = product.next;
    for column in (0..PANEL).step_by(NV * V::COUNT) {
        for row in (0..product.columns).step_by(ROWS) {
            // Tile by tile another cache line of each row.
            let line = row / ROWS;
            let stride = if line < lines && column == 0 { ahead.stride } else { 0 };
            let next = Rows { stride, ..ahead.from(0, line.min(lines) * LINE) };
            // SAFETY: the caller's promise; the arms take no more rows than are left.
            unsafe {
                match product.columns - row {
                    2 => tile_transposed::<V, 2, NV, A>(&product, row, column, next),
                    4 => tile_transposed::<V, 4, NV, A>(&product, row, column, next),
                    _ => tile_transposed::<V, ROWS, NV, A>(&product, row, column, next),
                }
            }
        }
    }
}

/// One register tile.
///
/// # Safety
/// As [`tiles_transposed`], with `MR` rows from `row` on and `NV` vectors from `column` on.
#[inline(always)]
unsafe fn tile_transposed<V: Vector, const MR: usize, const NV: usize, const A: u8>(
    product: &Transposed,
    row: usize,
    column: usize,
    mut next: Rows,
) {
    let (mut a, mut b) = (product.a.add(row), product.b.wrapping_add(column));
    let mut sums = [[V::zero(); NV]; MR];
    for _ in 0..product.rows {
        V::prefetch(next.start);
        next = next.next();
        // SAFETY: inside the rows that the caller vouches for.
        unsafe {
            let mut panel = [V::zero(); NV];
            for j in 0..NV {
                panel[j] = V::load(b.add(j * V::COUNT));
            }
            for i in 0..MR {
                let a = a.add(i);
                let value = combine::<V, A>(V::splat(*a.first), V::splat(*a.second));
                for j in 0..NV {
                    sums[i][j] = panel[j].multiply_add(value, sums[i][j]);
                }
            }
        }
        (a, b) = (a.add(product.stride), b.wrapping_add(PANEL));
    }
    // SAFETY: passed on.
    unsafe { put(&sums, product.places, row, column) }
}

/// Two sources as one of a kind.
#[inline(always)]
fn combine<V: Vector, const KIND: u8>(first: V, second: V) -> V {
    match KIND {
        ONE => first,
        SUM => first.add(second),
        _ => first.subtract(second),
    }
}

/// Sets, adds to or subtracts from a register tile of each place.
///
/// # Safety
/// The places have `MR` rows from `row` on and `NV` vectors from `column` on.
#[inline(always)]
unsafe fn put<V: Vector, const MR: usize, const NV: usize>(
    sums: &[[V; NV]; MR],
    places: Places,
    row: usize,
    column: usize,
) {
    for (target, store) in places.iter().flatten() {
        for i in 0..MR {
            for j in 0..NV {
                // SAFETY: the caller vouches for the place.
                unsafe {
                    let place = target.start.add((row + i) * target.stride + column + j * V::COUNT);
                    let value = match store {
                        Store::Set => sums[i][j],
                        Store::Add => V::load(place.cast_const()).add(sums[i][j]),
                        Store::Subtract => V::load(place.cast_const()).subtract(sums[i][j]),
                    };
                    value.store(place);
                }
            }
        }
    }
}
