//! The vector kernels: register tiles over raw pointers, behind tokens that prove the instructions.
//!
//! Pattern: the bodies are generic over [`Arithmetic`], whose methods carry no target feature and are
//! always inlined; each token has entry functions that do (`#[target_feature]`), so one source gives
//! every tier and format. No closure may stand between an entry and the intrinsics: it would be
//! compiled without the features, one call an instruction. All lengths are checked before an entry is
//! called:
//!
//! * (T) the token exists only if the CPU has the features its entry functions enable;
//! * (B) all rows, columns and strides were asserted to lie inside the slices.

mod avx2;
mod avx512;
mod avx512_bf16;
mod epilogue;
mod strassen;
mod stream;
mod transform;
mod vector;

use std::marker::PhantomData;

use ndarray::ArrayViewMut2;

use crate::base::value::Value;
use crate::gemm::{Beside, Matrix, Next, PANEL, Products, STRIP, Term};

use epilogue::End;
use vector::Vector;

pub(crate) use avx2::Avx2;
pub(crate) use avx512::Avx512;
pub(crate) use avx512_bf16::Avx512Bf16;

/// Rows of a register tile: 6 x 64 columns fill 24 of 32 AVX-512 registers.
const ROWS: usize = 6;

/// Bytes of a cache line.
const LINE: usize = 64;

/// Most pieces of one sum: the 49 taps of a 7x7 filter.
const PIECES_MAX: usize = 64;

/// Vectors of `f32` sums, and the words that are multiplied into them.
trait Arithmetic {
    type Lanes: Vector;
    /// What is multiplied at a time: an `f32`, or two neighbouring bfloat16.
    type Word: Copy;
    /// Sums of a vector.
    const COUNT: usize = Self::Lanes::COUNT;

    fn splat(word: Self::Word) -> Self::Lanes;
    /// # Safety
    /// `COUNT` words are readable at `source`.
    unsafe fn load(source: *const Self::Word) -> Self::Lanes;
    /// `sum + words . factor`.
    fn multiply_add(words: Self::Lanes, factor: Self::Lanes, sum: Self::Lanes) -> Self::Lanes;
    /// Rounds sums to what results are stored as.
    ///
    /// # Safety
    /// `COUNT` values are writable at `target`.
    unsafe fn store<T: Value>(sums: Self::Lanes, target: *mut T);
    /// The same past the caches.
    ///
    /// # Safety
    /// `NV` times `COUNT` values are writable at `target`, which is on a boundary of as many bytes as they
    /// have, at most of a cache line.
    unsafe fn stream<T: Value, const NV: usize>(sums: &[Self::Lanes; NV], target: *mut T);
}

/// Products of `f32`.
struct Single<V>(PhantomData<V>);

impl<V: Vector> Arithmetic for Single<V> {
    type Lanes = V;
    type Word = f32;

    #[inline(always)]
    fn splat(word: f32) -> V {
        V::splat(word)
    }

    #[inline(always)]
    unsafe fn load(source: *const f32) -> V {
        // SAFETY: passed on.
        unsafe { V::load(source) }
    }

    #[inline(always)]
    fn multiply_add(words: V, factor: V, sum: V) -> V {
        words.multiply_add(factor, sum)
    }

    #[inline(always)]
    unsafe fn store<T: Value>(sums: V, target: *mut T) {
        // SAFETY: passed on.
        unsafe { sums.store(target) }
    }

    #[inline(always)]
    unsafe fn stream<T: Value, const NV: usize>(sums: &[V; NV], target: *mut T) {
        for j in 0..NV {
            // SAFETY: passed on.
            unsafe { sums[j].stream(target.add(j * V::COUNT)) };
        }
    }
}

/// A run of `k` consecutive rows of words of one term.
#[derive(Clone, Copy)]
struct Piece<W> {
    a: *const W,
    b: *const W,
    k: usize,
}

/// Splits the terms into groups of at most `depth_max` rows and calls `group(pieces, is_first, is_last)`, at
/// least once. `k` and `stride` count values; words have `size_of::<W>() / size_of::<T>()` of them.
///
/// The pieces' pointers stay inside the terms' slices: `k` is cut, never extended.
fn for_each_group<T, W: Copy>(
    terms: &[Term<T>],
    (rows, k, stride): (usize, usize, usize),
    depth_max: usize,
    mut group: impl FnMut(&[Piece<W>], bool, bool),
) {
    let word = size_of::<W>() / size_of::<T>();
    let mut pieces = [Piece { a: std::ptr::null(), b: std::ptr::null(), k: 0 }; PIECES_MAX];
    let (mut count, mut depth, mut is_first) = (0, 0, true);
    for term in terms {
        assert!(Matrix { data: term.a, rows, cols: k, stride }.fits() && term.b.len() >= k * PANEL);
        let mut from = 0;
        while from < k {
            if depth == depth_max || count == PIECES_MAX {
                group(&pieces[..count], is_first, false);
                (count, depth, is_first) = (0, 0, false);
            }
            let len = (k - from).min(depth_max - depth);
            let (a, b) = (term.a[from..].as_ptr(), term.b[from * PANEL..].as_ptr());
            pieces[count] = Piece { a: a.cast(), b: b.cast(), k: len / word };
            (count, depth, from) = (count + 1, depth + len, from + len);
        }
    }
    group(&pieces[..count], is_first, true);
}

/// Where a block of `c` starts and how far its rows are apart.
struct Target<T> {
    start: *mut T,
    rows: usize,
    stride: usize,
}

impl<T> Clone for Target<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Target<T> {}

impl<T> Target<T> {
    /// Of 64 columns.
    fn new(c: &mut ArrayViewMut2<T>) -> Self {
        assert_eq!(c.ncols(), PANEL);
        Self::rows(c)
    }

    /// Of any columns.
    fn rows(c: &mut ArrayViewMut2<T>) -> Self {
        assert!(c.strides()[1] == 1 && c.strides()[0] >= 0);
        Self { start: c.as_mut_ptr(), rows: c.nrows(), stride: c.strides()[0].unsigned_abs() }
    }
}

/// `rounds` of multiply-add on as many registers as a tile has, and nothing else: the CPU's peak.
///
/// Returns how many vectors were multiplied.
#[inline(always)]
fn chain<A: Arithmetic>(rounds: usize, word: A::Word) -> usize {
    const CHAINS: usize = 12;
    let mut sum = [A::Lanes::zero(); CHAINS];
    let (factor, other) = (A::splat(std::hint::black_box(word)), A::splat(word));
    for _ in 0..rounds {
        for sum in &mut sum {
            *sum = A::multiply_add(other, factor, *sum);
        }
    }
    std::hint::black_box(&sum);
    rounds * CHAINS
}

/// Where the sums of a group of pieces begin and go to.
#[derive(Clone, Copy)]
struct Group<'a, T> {
    /// Sums of the groups before, rows of 64; null before the first.
    before: *const f32,
    /// Where sums are kept for the next group.
    partial: *mut f32,
    /// The end, after the last group.
    end: Option<&'a End<T>>,
    beside: Beside,
    /// Words from the pieces' `b` of a panel to that of the next one.
    apart: usize,
}

impl<T> Group<'_, T> {
    /// One that begins with zeros and leads nowhere yet.
    const NONE: Self = Self {
        before: std::ptr::null(),
        partial: std::ptr::null_mut(),
        end: None,
        beside: Beside::NOTHING,
        apart: 0,
    };
}

impl<T> Products<'_, T> {
    /// Every panel's rows lie inside the terms' slices.
    fn assert_panels(&self, panels: usize) {
        let len = (panels.max(1) - 1) * self.apart + self.k * PANEL;
        assert!(self.terms.iter().all(|term| len <= term.b.len()));
    }
}

/// `sum a . b` for one register tile, and its end.
///
/// # Safety
/// `MR` rows of each piece's `a` (`stride` apart, `k` words) and `k` rows of its `b` (64 apart) are
/// readable, all from the given pointers on; the rows and columns are of the group's tile.
#[inline(always)]
unsafe fn tile<A: Arithmetic, T: Value, const MR: usize, const NV: usize>(
    pieces: &[Piece<A::Word>],
    (row, column, stride): (usize, usize, usize),
    group: Group<T>,
) {
    // Columns of a panel lie side by side, panels one after the other.
    let from = column / PANEL * group.apart + column % PANEL;
    let mut ahead = Lines::new(group.beside.right(column), (row, column));
    let pace = ahead.pace(pieces);
    if let Some(end) = group.end {
        end.prefetch_out::<A::Lanes, MR, NV>((row, column));
    }
    let mut sum = [[A::Lanes::zero(); NV]; MR];
    // SAFETY: every access below stays in the rows and columns that the caller vouches for.
    unsafe {
        if !group.before.is_null() {
            let before = group.before.add(row * PANEL + column);
            for i in 0..MR {
                for j in 0..NV {
                    sum[i][j] = A::Lanes::load(before.add(i * PANEL + j * A::COUNT));
                }
            }
        }
        for piece in pieces {
            let mut a = piece.a.add(row * stride);
            let mut b = piece.b.add(from);
            let mut left = piece.k;
            while left > 0 {
                // A cache line of each row, and that of the row which comes next in its place.
                let words = left.min(LINE / size_of::<A::Word>());
                for i in 0..MR {
                    A::Lanes::prefetch(a.wrapping_add((i + ROWS) * stride).cast());
                }
                for step in 0..words {
                    if step < pace {
                        ahead.ask::<A::Lanes>();
                    }
                    let mut panel = [A::Lanes::zero(); NV];
                    for j in 0..NV {
                        panel[j] = A::load(b.add(j * A::COUNT));
                    }
                    for i in 0..MR {
                        let word = A::splat(a.add(i * stride).read_unaligned());
                        for j in 0..NV {
                            sum[i][j] = A::multiply_add(panel[j], word, sum[i][j]);
                        }
                    }
                    a = a.add(1);
                    b = b.add(PANEL);
                }
                left -= words;
            }
        }
        if let Some(end) = group.end {
            return end.put::<A, MR, NV>((row, column), sum);
        }
        let partial = group.partial.add(row * PANEL + column);
        for i in 0..MR {
            for j in 0..NV {
                sum[i][j].store(partial.add(i * PANEL + j * A::COUNT));
            }
        }
    }
}

/// A group of pieces over all rows and columns of a tile, in register tiles of at most six rows by `NV`
/// vectors: some rows of all panels, then the next ones, so that what lies beside is read in its order.
///
/// # Safety
/// `rows` rows of every piece's `a` are readable (`stride` apart), all `k` rows of its `b` of each panel, and
/// the group's tile has as many rows and columns.
#[inline(always)]
unsafe fn tiles<A: Arithmetic, T: Value, const NV: usize>(
    pieces: &[Piece<A::Word>],
    [rows, columns, stride]: [usize; 3],
    group: Group<T>,
) {
    for row in (0..rows).step_by(ROWS) {
        for column in (0..columns).step_by(NV * A::COUNT) {
            let at = (row, column, stride);
            // SAFETY: the caller's promise; the arms take no more rows than are left.
            unsafe {
                match rows - row {
                    1 => tile::<A, T, 1, NV>(pieces, at, group),
                    2 => tile::<A, T, 2, NV>(pieces, at, group),
                    3 => tile::<A, T, 3, NV>(pieces, at, group),
                    4 => tile::<A, T, 4, NV>(pieces, at, group),
                    5 => tile::<A, T, 5, NV>(pieces, at, group),
                    _ => tile::<A, T, ROWS, NV>(pieces, at, group),
                }
            }
        }
    }
}

/// Cache lines beside the next rows (before the first ones, beside those too) that are asked for one by one:
/// only so many can be on their way, and what is multiplied must get past them.
struct Lines {
    beside: Beside,
    /// Bytes from the start to the row, and to the line in it.
    row: usize,
    line: usize,
    left: usize,
}

impl Lines {
    #[inline(always)]
    fn new(beside: Beside, (row, column): (usize, usize)) -> Self {
        let rows = if row == 0 { 2 * ROWS } else { ROWS };
        let left = if column % PANEL == 0 { rows * (beside.width / LINE) } else { 0 };
        let row = (row + 2 * ROWS - rows) * beside.stride;
        Self { beside, row, line: 0, left }
    }

    /// How many to ask for in a cache line of words.
    #[inline(always)]
    fn pace<W>(&self, pieces: &[Piece<W>]) -> usize {
        let words: usize = pieces.iter().map(|piece| piece.k).sum();
        (self.left * (LINE / size_of::<W>())).div_ceil(words)
    }

    #[inline(always)]
    fn ask<V: Vector>(&mut self) {
        if self.left == 0 {
            return;
        }
        for start in self.beside.starts.iter().flatten() {
            V::prefetch(start.wrapping_add(self.row + self.line));
        }
        self.left -= 1;
        self.line += LINE;
        if self.line == self.beside.width {
            (self.line, self.row) = (0, self.row + self.beside.stride);
        }
    }
}

impl Beside {
    /// Asks for a row.
    #[inline(always)]
    fn prefetch<V: Vector>(&self, row: usize) {
        for start in self.starts.iter().flatten() {
            for line in (0..self.width).step_by(LINE) {
                V::prefetch(start.wrapping_add(row * self.stride + line));
            }
        }
    }
}

/// Rows of bytes that will be read soon, as many of them as a word covers at a time.
#[derive(Clone, Copy)]
struct Rows {
    start: *const u8,
    /// Bytes from row to row.
    stride: usize,
    at_once: usize,
}

impl Rows {
    fn new<T>(data: &[T], stride: usize, at_once: usize) -> Self {
        Self { start: data.as_ptr().cast(), stride: stride * size_of::<T>(), at_once }
    }

    /// From another of the rows at once on, and `bytes` further right.
    fn from(self, row: usize, bytes: usize) -> Self {
        let offset = row % self.at_once * self.stride + bytes;
        Self { start: self.start.wrapping_add(offset), ..self }
    }

    fn next(self) -> Self {
        Self { start: self.start.wrapping_add(self.stride * self.at_once), ..self }
    }
}

/// What the next product will read.
#[derive(Clone, Copy)]
struct Ahead {
    a: Rows,
    /// Bytes of a value of `a`.
    a_size: usize,
    b: Rows,
    /// Cache lines of a row of `b`.
    b_lines: usize,
}

impl<A, B> From<Next<'_, A, B>> for Ahead {
    fn from(next: Next<'_, A, B>) -> Self {
        let at_once = next.rows_at_once.max(1);
        Self {
            a: Rows::new(next.a, next.a_stride, at_once),
            a_size: size_of::<A>(),
            b: Rows::new(next.b, next.b_stride, at_once),
            b_lines: PANEL * size_of::<B>() / LINE,
        }
    }
}

/// Of a transposed product: `a` and its stride, a strip of `b`, and how many rows; and what comes next.
type Operands<W> = ((*const W, usize), *const W, usize, [Rows; 2]);

/// `c[MR][NV vectors] (+)= a' . b` for one register tile over `n` rows of `a` and `b`.
///
/// # Safety
/// `n` rows of `MR` words of `a` and of `NV` vectors of `b` are readable, `MR` rows of `c` writable.
#[inline(always)]
unsafe fn tile_transposed<A: Arithmetic, const MR: usize, const NV: usize>(
    ((mut a, a_stride), mut b, n, [mut next_a, mut next_b]): Operands<A::Word>,
    (c, c_stride): (*mut f32, usize),
    accumulate: bool,
) {
    let mut sum = [[A::Lanes::zero(); NV]; MR];
    // SAFETY: every access below stays in the rows and columns that the caller vouches for.
    unsafe {
        if accumulate {
            for i in 0..MR {
                for j in 0..NV {
                    sum[i][j] = A::Lanes::load(c.add(i * c_stride + j * A::COUNT).cast_const());
                }
            }
        }
        for _ in 0..n {
            A::Lanes::prefetch(next_a.start);
            A::Lanes::prefetch(next_b.start);
            (next_a, next_b) = (next_a.next(), next_b.next());
            let mut panel = [A::Lanes::zero(); NV];
            for j in 0..NV {
                panel[j] = A::load(b.add(j * A::COUNT));
            }
            for i in 0..MR {
                let word = A::splat(*a.add(i));
                for j in 0..NV {
                    sum[i][j] = A::multiply_add(panel[j], word, sum[i][j]);
                }
            }
            a = a.wrapping_add(a_stride);
            b = b.wrapping_add(STRIP);
        }
        for i in 0..MR {
            for j in 0..NV {
                sum[i][j].store(c.add(i * c_stride + j * A::COUNT));
            }
        }
    }
}

/// `c (+)= a' . b` in tiles of at most `MR` rows by `NV` vectors.
///
/// # Safety
/// `a` has `c.rows` columns, both have `a.rows` rows inside their slices, `b` as strips of 64 columns
/// in all, and `c.rows` rows of 64 values of `c` are writable.
#[inline(always)]
unsafe fn tiles_transposed<A: Arithmetic, const MR: usize, const NV: usize>(
    a: Matrix<A::Word>,
    b: &[A::Word],
    next: Ahead,
    c: Target<f32>,
    accumulate: bool,
) {
    let mut count = 0;
    for column in (0..PANEL).step_by(NV * A::COUNT) {
        let strip = column / STRIP * STRIP;
        for row in (0..c.rows).step_by(MR) {
            // SAFETY: the caller's promise; no more rows of `c` are taken than are left.
            unsafe {
                let left = (a.data.as_ptr().add(row), a.stride);
                let right = b.as_ptr().add(strip * a.rows + column - strip);
                let target = (c.start.add(row * c.stride + column), c.stride);
                // Tile by tile another cache line of each row, strip by strip another row.
                let next_a = next.a.from(column / STRIP, row * next.a_size);
                let next_b = next.b.from(count / next.b_lines, count % next.b_lines * LINE);
                let operands = (left, right, a.rows, [next_a, next_b]);
                rows_transposed::<A, MR, NV>(c.rows - row, operands, target, accumulate);
            }
            count += 1;
        }
    }
}

/// One register tile of `min(left, MR)` rows.
///
/// # Safety
/// As [`tile_transposed`].
#[inline(always)]
unsafe fn rows_transposed<A: Arithmetic, const MR: usize, const NV: usize>(
    left: usize,
    operands: Operands<A::Word>,
    target: (*mut f32, usize),
    accumulate: bool,
) {
    macro_rules! arms {
        ($($rows:literal)*) => {
            match left {
                $($rows if $rows < MR => {
                    tile_transposed::<A, $rows, NV>(operands, target, accumulate)
                })*
                _ => tile_transposed::<A, MR, NV>(operands, target, accumulate),
            }
        };
    }
    // SAFETY: passed on.
    unsafe { arms!(1 2 3 4 5 6 7 8 9 10 11) }
}
