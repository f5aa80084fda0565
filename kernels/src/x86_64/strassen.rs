//! The products of Strassen's algorithm: sums of operands taken on loading, products of a block summed where they
//! end.

use std::mem::MaybeUninit;

use super::epilogue::{ROWS, RawStore};
use super::kernel::{Arithmetic, Enter, Kernel, Single};
use super::rows::{LINE, Rows};
use super::vector::Vector;
use crate::base::isa::Tier;
use crate::base::panel::{Matrix, PANEL, Position, Prefetch};
use crate::base::tile::Tile;
use crate::base::value::Value;
use crate::gemm::Products;
use crate::gemm::epilogue::Store;
use crate::gemm::strassen::{
    ACCUMULATORS, BLOCK, COLUMNS, Combination, LENGTH_MAX, Next, PRODUCTS, Quarters, STEP,
    products_len,
};

/// Values of a cache line.
const VALUES: usize = LINE / size_of::<f32>();
/// Bytes after which addresses fall into the same set of a first-level cache: 64 sets of 64 bytes on every x86-64
/// that has AVX2.
const SETS: usize = 4096;
/// Values of a product of a block.
const PRODUCT: usize = ROWS * PANEL;
const _: () = assert!(BLOCK == 2 * ROWS);

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
    #[inline(always)]
    fn new(quarters: [*const f32; 4], operand: Combination) -> Self {
        let (first, second, kind) = match operand {
            Combination::One(one) => (one, one, ONE),
            Combination::Sum(one, other) => (one, other, SUM),
            Combination::Difference(one, other) => (one, other, DIFFERENCE),
        };
        Self { first: quarters[first], second: quarters[second], kind }
    }

    #[inline(always)]
    fn add(self, count: usize) -> Self {
        let (first, second) = (self.first.wrapping_add(count), self.second.wrapping_add(count));
        Self { first, second, ..self }
    }
}

/// One of the seven products of a block, and what becomes of it after the last part.
struct Step {
    product: usize,
    /// Products that are added to it: one before, one after, and one that is subtracted.
    begin: Option<usize>,
    plus: Option<usize>,
    minus: Option<usize>,
    /// The quarter of the result that this completes.
    completes: Option<usize>,
    /// The quarter of `a` whose next rows are asked for.
    asks_a: Option<usize>,
    /// The quarter of the result beside whose next rows something is asked for.
    asks_beside: Option<usize>,
}

impl Step {
    const fn new(product: usize, asks_a: Option<usize>, asks_beside: Option<usize>) -> Self {
        let (begin, plus, minus, completes) = (None, None, None, None);
        Self { product, begin, plus, minus, completes, asks_a, asks_beside }
    }
}

/// In an order in which the products that others need come before them, and upper quarters end before lower ones.
const STEPS: [Step; PRODUCTS.len()] = [
    Step::new(3, Some(3), Some(1)),
    Step::new(4, Some(1), Some(0)),
    Step { plus: Some(4), completes: Some(1), ..Step::new(2, Some(0), None) },
    Step::new(0, None, Some(2)),
    Step {
        begin: Some(0),
        plus: Some(3),
        minus: Some(4),
        completes: Some(0),
        ..Step::new(6, None, Some(3))
    },
    Step { plus: Some(3), completes: Some(2), ..Step::new(1, Some(2), None) },
    Step {
        begin: Some(0),
        plus: Some(2),
        minus: Some(1),
        completes: Some(3),
        ..Step::new(5, None, None)
    },
];

/// The first products are part of two quarters each, the others of one.
const SHARED: usize = 5;

/// Rows of `a` of a part of a term times two panels.
#[derive(Clone, Copy)]
struct Term<'a, T> {
    a: *const f32,
    /// Values from row to row of `a`.
    stride: usize,
    rows: usize,
    b: *const f32,
    /// Values from a panel to the other.
    panel_stride: usize,
    /// Values of half a row.
    half: usize,
    /// The products of each block, and values from block to block.
    products: *mut f32,
    block: usize,
    /// Whether products are added to those of the parts before.
    accumulate: bool,
    /// The end, after the last part.
    end: Option<&'a RawStore<T>>,
    beside: Prefetch,
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
    /// Rows of 64 values, and whether they are added to.
    sums: *mut f32,
    accumulate: bool,
    /// Rows that will be read next.
    next: Rows,
    /// Cache lines of a row of these.
    next_lines: usize,
}

impl Tier {
    /// See [`crate::gemm::strassen::multiply_to`].
    pub(crate) fn multiply_quarters<T: Value>(
        self,
        products: Products<f32>,
        accumulators: &mut [f32; ACCUMULATORS],
        store: &Store<T>,
        tile: Tile<T>,
    ) {
        let beside = store.beside(&tile);
        let end = RawStore::new(store, tile);
        let Products { terms, k, stride, panel_stride } = products;
        let (rows, length) = (end.out.rows, k.min(LENGTH_MAX));
        assert!(
            rows.is_multiple_of(4) && rows.div_ceil(BLOCK) * products_len(BLOCK) <= ACCUMULATORS
        );
        assert!(end.columns == COLUMNS && length.is_multiple_of(2 * VALUES));
        assert!(!terms.is_empty() && k.is_multiple_of(length));
        products.assert_panels(2);
        let (parts, all) = (k / length, terms.len() * k / length);
        // Products of one part are not needed after their block.
        let block = if all > 1 { products_len(BLOCK) } else { 0 };
        for part in 0..all {
            let (term, from) = (&terms[part / parts], part % parts * length);
            assert!(Matrix { data: term.a, rows, cols: k, stride }.fits());
            let is_last = part + 1 == all;
            let term = Term {
                a: term.a[from..].as_ptr(),
                stride,
                rows,
                b: term.b[from * PANEL..].as_ptr(),
                panel_stride,
                half: length / 2,
                products: accumulators.as_mut_ptr(),
                block,
                accumulate: part > 0,
                end: is_last.then_some(&end),
                beside: if is_last { beside } else { Prefetch::NOTHING },
            };
            self.enter(term);
        }
    }

    /// One of the seven products over half a step of rows; see [`crate::strassen`].
    pub(crate) fn multiply_quarters_transposed(
        self,
        a: Quarters,
        b: &[f32],
        sums: &mut [f32],
        accumulate: bool,
        next: Option<Next>,
    ) {
        let (columns, rows) = (sums.len() / PANEL, STEP / 2);
        assert!(columns.is_multiple_of(2) && b.len() >= rows * PANEL);
        let Quarters { starts, stride, taken } = a;
        assert!(starts.iter().all(|data| Matrix { data, rows, cols: columns, stride }.fits()));
        let next = next.unwrap_or(Next { start: b.as_ptr(), stride: 0, len: 0 });
        let (start, bytes) = (next.start.cast(), next.stride * size_of::<f32>());
        let product = Transposed {
            a: Pair::new(starts.map(|start| start.as_ptr()), taken),
            stride,
            columns,
            b: b.as_ptr(),
            rows,
            sums: sums.as_mut_ptr(),
            accumulate,
            next: Rows { start, stride: bytes, at_once: 1 },
            next_lines: next.len / VALUES,
        };
        self.enter(product);
    }
}

impl<T: Value> Kernel<f32> for Term<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<A: Arithmetic<Word = f32>, const COLUMNS: usize, const ROWS: usize>(self) {
        // SAFETY: (T) from the caller, (B).
        unsafe { blocks::<A::Lanes, T, COLUMNS>(self) }
    }
}

impl Kernel<f32> for Transposed {
    type Output = ();

    #[inline(always)]
    unsafe fn run<A: Arithmetic<Word = f32>, const COLUMNS: usize, const ROWS: usize>(self) {
        // SAFETY: (T) from the caller, (B).
        unsafe {
            match self.a.kind {
                ONE => tiles_transposed::<A::Lanes, COLUMNS, ONE>(self),
                SUM => tiles_transposed::<A::Lanes, COLUMNS, SUM>(self),
                _ => tiles_transposed::<A::Lanes, COLUMNS, DIFFERENCE>(self),
            }
        }
    }
}

/// Two times six rows at a time.
///
/// # Safety
/// `rows` rows of `a` of two halves are readable, `b` has two panels of as many rows, products have room for
/// all blocks, and the end has as many rows and two panels; `rows` is a multiple of 4, a half one of 16 and no
/// longer than the longest; the features of `V` are there.
#[inline(always)]
unsafe fn blocks<V: Vector, T: Value, const NV: usize>(term: Term<T>) {
    for (number, row) in (0..term.rows).step_by(2 * ROWS).enumerate() {
        let products = term.products.wrapping_add(number * term.block);
        let part = Term { products, ..term };
        // SAFETY: the caller's promise; the arms take no more rows than are left.
        unsafe {
            match (term.rows - row) / 2 {
                2 => block::<V, T, 2, NV>(&part, row),
                4 => block::<V, T, 4, NV>(&part, row),
                _ => block::<V, T, ROWS, NV>(&part, row),
            }
        }
    }
}

/// What a register tile multiplies: rows of `k` values of `a`, so many values apart, by rows of `b`, 64 values apart.
#[derive(Clone, Copy)]
struct Operands {
    a: Pair,
    stride: usize,
    b: Pair,
    k: usize,
}

/// Where the quarters of a block of two times `MR` rows begin.
struct Block<'a, T, const MR: usize> {
    term: &'a Term<'a, T>,
    row: usize,
    a: [*const f32; 4],
    b: [*const f32; 4],
}

impl<'a, T, const MR: usize> Block<'a, T, MR> {
    #[inline(always)]
    fn new(term: &'a Term<T>, row: usize) -> Self {
        let Term { stride, half, panel_stride, .. } = *term;
        let a = [0, half, MR * stride, MR * stride + half];
        let b = [0, panel_stride, half * PANEL, panel_stride + half * PANEL];
        let a = a.map(|from| term.a.wrapping_add(row * stride + from));
        Self { term, row, a, b: b.map(|from| term.b.wrapping_add(from)) }
    }

    /// The first row and column of a quarter of the result.
    #[inline(always)]
    fn place(&self, quarter: usize) -> Position {
        Position { row: self.row + quarter / 2 * MR, column: quarter % 2 * PANEL }
    }

    #[inline(always)]
    fn asked(&self, step: &Step) -> Asked {
        let stride = self.term.stride;
        let a = step.asks_a.map(|quarter| self.a[quarter].wrapping_add(2 * MR * stride));
        let beside = step.asks_beside.map_or(Prefetch::NOTHING, |quarter| {
            let Position { row, column } = self.place(quarter);
            self.term.beside.right(column).below(row)
        });
        Asked { a, stride, beside }
    }
}

/// Rows that are asked for during a product.
#[derive(Clone, Copy)]
struct Asked {
    a: Option<*const f32>,
    stride: usize,
    beside: Prefetch,
}

impl Asked {
    const NOTHING: Self = Self { a: None, stride: 0, beside: Prefetch::NOTHING };
}

/// The seven products of `MR` rows and the next `MR`, and what they are summed to.
///
/// # Safety
/// As [`blocks`], with as many rows from `row` on.
#[inline(always)]
unsafe fn block<V: Vector, T: Value, const MR: usize, const NV: usize>(term: &Term<T>, row: usize) {
    let Term { stride, half, .. } = *term;
    let block = Block::<T, MR>::new(term, row);
    let is_crowded = stride.is_multiple_of(SETS / size_of::<f32>());
    let mut packed = MaybeUninit::<[f32; ROWS * LENGTH_MAX / 2]>::uninit();
    let packed = packed.as_mut_ptr().cast::<f32>();
    for step in &STEPS {
        let (left, right) = PRODUCTS[step.product];
        let (mut left, right) = (Pair::new(block.a, left), Pair::new(block.b, right));
        let mut stride = stride;
        let mut asked = block.asked(step);
        // SAFETY: the caller's promise; what is packed was written.
        unsafe {
            if is_crowded && left.kind == DIFFERENCE {
                pack::<V, MR>(left, stride, half, packed);
                (left, stride) = (Pair { first: packed, second: packed, kind: ONE }, half);
            }
            for column in (0..PANEL).step_by(NV * V::COUNT) {
                let operands = Operands { a: left, stride, b: right.add(column), k: half };
                take::<V, T, MR, NV>(&block, step, column, operands, asked);
                asked = Asked::NOTHING;
            }
        }
    }
}

/// Some columns of a product.
///
/// # Safety
/// As [`block`], with `NV` vectors from the column on; the operands are those of the step.
#[inline(always)]
unsafe fn take<V: Vector, T: Value, const MR: usize, const NV: usize>(
    block: &Block<T, MR>,
    step: &Step,
    column: usize,
    operands: Operands,
    asked: Asked,
) {
    let Term { products, end, accumulate, .. } = *block.term;
    let product = |number: usize| products.wrapping_add(number * PRODUCT + column);
    let place = |quarter: usize| {
        let at = block.place(quarter);
        Position { column: at.column + column, ..at }
    };
    if let (Some(end), Some(quarter)) = (end, step.asks_beside) {
        end.prefetch_out::<V, MR, NV>(place(quarter));
    }
    let mut sums = [[V::zero(); NV]; MR];
    // SAFETY: the caller's promise.
    unsafe {
        if let (Some(begin), Some(_)) = (step.begin, end) {
            update(&mut sums, product(begin), V::add);
        }
        if accumulate {
            update(&mut sums, product(step.product), V::add);
        }
        sums = match (operands.a.kind, operands.b.kind) {
            (SUM, SUM) => multiply::<V, MR, NV, SUM, SUM>(operands, asked, sums),
            (SUM, ONE) => multiply::<V, MR, NV, SUM, ONE>(operands, asked, sums),
            (DIFFERENCE, SUM) => multiply::<V, MR, NV, DIFFERENCE, SUM>(operands, asked, sums),
            (ONE, DIFFERENCE) => multiply::<V, MR, NV, ONE, DIFFERENCE>(operands, asked, sums),
            (ONE, SUM) => multiply::<V, MR, NV, ONE, SUM>(operands, asked, sums),
            _ => unreachable!("none of the seven products"),
        };
        if step.product < SHARED || end.is_none() {
            store(&sums, product(step.product));
        }
        let (Some(end), Some(quarter)) = (end, step.completes) else { return };
        if let Some(minus) = step.minus {
            update(&mut sums, product(minus), V::subtract);
        }
        if let Some(plus) = step.plus {
            update(&mut sums, product(plus), V::add);
        }
        end.put::<Single<V>, MR, NV>(place(quarter), sums);
    }
}

/// Adds rows of 64 values to a register tile, or subtracts them.
///
/// # Safety
/// `MR` rows of `NV` vectors are readable.
#[inline(always)]
unsafe fn update<V: Vector, const MR: usize, const NV: usize>(
    sums: &mut [[V; NV]; MR],
    rows: *const f32,
    of: impl Fn(V, V) -> V,
) {
    for i in 0..MR {
        for j in 0..NV {
            // SAFETY: the caller's promise.
            sums[i][j] = of(sums[i][j], unsafe { V::load(rows.add(i * PANEL + j * V::COUNT)) });
        }
    }
}

/// Stores a register tile as rows of 64 values.
///
/// # Safety
/// `MR` rows of `NV` vectors are writable.
#[inline(always)]
unsafe fn store<V: Vector, const MR: usize, const NV: usize>(sums: &[[V; NV]; MR], rows: *mut f32) {
    for i in 0..MR {
        for j in 0..NV {
            // SAFETY: the caller's promise.
            unsafe { sums[i][j].store(rows.add(i * PANEL + j * V::COUNT)) };
        }
    }
}

/// Takes differences of `a` beforehand: rows of both sources would not stay in a set of the first-level
/// cache together.
///
/// # Safety
/// `MR` rows of `half` values of both sources are readable, as many values writable at `target`.
#[inline(always)]
unsafe fn pack<V: Vector, const MR: usize>(a: Pair, stride: usize, half: usize, target: *mut f32) {
    for i in 0..MR {
        let a = a.add(i * stride);
        for at in (0..half).step_by(V::COUNT) {
            // SAFETY: inside the rows that the caller vouches for.
            unsafe {
                let a = a.add(at);
                V::load(a.first).subtract(V::load(a.second)).store(target.add(i * half + at));
            }
        }
    }
}

/// One register tile.
///
/// # Safety
/// `MR` rows of `a` of so many values are readable, and as many rows of `NV` vectors of `b`, 64 values apart.
#[inline(always)]
unsafe fn multiply<V: Vector, const MR: usize, const NV: usize, const A: u8, const B: u8>(
    Operands { mut a, stride, mut b, k }: Operands,
    asked: Asked,
    mut sums: [[V; NV]; MR],
) -> [[V; NV]; MR] {
    let steps = k / VALUES;
    let rows = MR.div_ceil(steps);
    for step in 0..steps {
        if let Some(next) = asked.a {
            // A cache line of each row.
            for i in 0..MR {
                V::prefetch(next.wrapping_add(i * asked.stride + step * VALUES).cast());
            }
        }
        for row in (step * rows..(step + 1) * rows).take_while(|&row| row < MR) {
            asked.beside.prefetch::<V>(row);
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
    sums
}

/// # Safety
/// `rows` rows of `columns` values of the sources of `a` are readable, as many rows of 64 values of `b`, and
/// the sums have `columns` rows of 64 values; `columns` is even; the features of `V` are there. `A` is the
/// kind of `a`.
#[inline(always)]
unsafe fn tiles_transposed<V: Vector, const NV: usize, const A: u8>(product: Transposed) {
    let (ahead, lines) = (product.next, product.next_lines);
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
    let place = product.sums.wrapping_add(row * PANEL + column);
    let mut sums = [[V::zero(); NV]; MR];
    // SAFETY: inside the rows that the caller vouches for.
    unsafe {
        if product.accumulate {
            update(&mut sums, place, |_, before| before);
        }
        for _ in 0..product.rows {
            V::prefetch(next.start);
            next = next.next();
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
            (a, b) = (a.add(product.stride), b.wrapping_add(PANEL));
        }
        store(&sums, place);
    }
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
