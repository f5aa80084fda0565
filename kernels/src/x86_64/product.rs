//! Sums of products `a . b` over panels, in register tiles that end where they are computed.

use ndarray::ArrayViewMut2;

use super::epilogue::{ROWS, RawStore};
use super::kernel::{Arithmetic, Enter, Kernel};
use super::rows::LINE;
use super::vector::Vector;
use crate::base::isa::{Avx512Bf16, Tier};
use crate::base::panel::{Matrix, PANEL, Position, Prefetch};
use crate::base::tile::Tile;
use crate::base::value::{Bf16, Value};
use crate::gemm::epilogue::Store;
use crate::gemm::{DEPTH, Products};

/// Most pieces of one sum: the 49 taps of a 7x7 filter.
const PIECES_MAX: usize = 64;

impl Tier {
    /// See [`crate::gemm::multiply`].
    pub(crate) fn multiply(
        self,
        products: Products<f32>,
        mut c: ArrayViewMut2<f32>,
        beside: Prefetch,
    ) {
        let end = RawStore::keep(&mut c);
        // One group: the sums of several would need a place.
        assert!(products.terms.len() <= PIECES_MAX);
        let (rows, stride) = (end.out.rows, products.stride);
        for_each_group(products, rows, usize::MAX, |pieces, _, _| {
            let group = Group { end: Some(&end), beside, ..Group::NONE };
            self.enter(Tiles { pieces, shape: [rows, PANEL, stride], group });
        });
    }

    /// See [`crate::gemm::multiply_to`].
    pub(crate) fn multiply_to<T: Value>(
        self,
        products: Products<f32>,
        accumulators: &mut [f32],
        store: &Store<T>,
        tile: Tile<T>,
    ) {
        let Products { terms, k, stride, panel_stride } = products;
        let beside = store.beside(&tile);
        let end = RawStore::new(store, tile);
        let (partial, rows) = (accumulators.as_mut_ptr(), end.out.rows);
        assert!(accumulators.len() >= rows * PANEL);
        assert!(end.columns == PANEL || terms.len() * k <= DEPTH);
        products.assert_panels(end.columns / PANEL);
        for_each_group(products, rows, DEPTH, |pieces, is_first, is_last| {
            let before = if is_first { std::ptr::null() } else { partial.cast_const() };
            let end_or_none = is_last.then_some(&end);
            let beside = if is_last { beside } else { Prefetch::NOTHING };
            let group = Group { before, partial, end: end_or_none, beside, panel_stride };
            self.enter(Tiles { pieces, shape: [rows, end.columns, stride], group });
        });
    }
}

impl Avx512Bf16 {
    /// See [`crate::gemm::multiply_bf16`].
    pub(crate) fn multiply_to(
        self,
        products: Products<Bf16>,
        store: &Store<Bf16>,
        tile: Tile<Bf16>,
    ) {
        const WORD: usize = size_of::<u32>() / size_of::<Bf16>();
        let Products { terms, stride, panel_stride, .. } = products;
        let beside = store.beside(&tile);
        let end = RawStore::new(store, tile);
        let (rows, words) = (end.out.rows, [stride, panel_stride].map(|values| values / WORD));
        // One group: sums stay in registers from the first to the last term.
        assert!(terms.len() <= PIECES_MAX);
        products.assert_panels(end.columns / PANEL);
        for_each_group(products, rows, usize::MAX, |pieces, _, _| {
            let group = Group { end: Some(&end), beside, panel_stride: words[1], ..Group::NONE };
            self.enter(Tiles { pieces, shape: [rows, end.columns, words[0]], group });
        });
    }
}

/// A group of pieces over all rows and columns of a tile; `shape` is rows, columns and the words from row to row
/// of `a`. What [`for_each_group`] makes of terms that fit, and an end that does.
struct Tiles<'a, W, T> {
    pieces: &'a [Piece<W>],
    shape: [usize; 3],
    group: Group<'a, T>,
}

impl<W: Copy, T: Value> Kernel<W> for Tiles<'_, W, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<A: Arithmetic<Word = W>, const COLUMNS: usize, const ROWS: usize>(self) {
        // SAFETY: (T) from the caller, (B).
        unsafe { tiles::<A, T, COLUMNS>(self.pieces, self.shape, self.group) }
    }
}

/// A run of `k` consecutive rows of words of one term.
#[derive(Clone, Copy)]
struct Piece<W> {
    a: *const W,
    b: *const W,
    k: usize,
}

/// Splits the terms, whose `a` has so many rows, into groups of at most `depth_max` rows of `b` and calls
/// `group(pieces, is_first, is_last)`, at least once. `k` and `stride` count values; words have
/// `size_of::<W>() / size_of::<T>()` of them.
///
/// The pieces' pointers stay inside the terms' slices: `k` is cut, never extended.
fn for_each_group<T, W: Copy>(
    products: Products<T>,
    rows: usize,
    depth_max: usize,
    mut group: impl FnMut(&[Piece<W>], bool, bool),
) {
    let Products { terms, k, stride, .. } = products;
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

/// Where the sums of a group of pieces begin and go to.
#[derive(Clone, Copy)]
struct Group<'a, T> {
    /// Sums of the groups before, rows of 64; null before the first.
    before: *const f32,
    /// Where sums are kept for the next group.
    partial: *mut f32,
    /// The end, after the last group.
    end: Option<&'a RawStore<T>>,
    beside: Prefetch,
    /// Words from the pieces' `b` of a panel to that of the next one.
    panel_stride: usize,
}

impl<T> Group<'_, T> {
    /// One that begins with zeros and leads nowhere yet.
    const NONE: Self = Self {
        before: std::ptr::null(),
        partial: std::ptr::null_mut(),
        end: None,
        beside: Prefetch::NOTHING,
        panel_stride: 0,
    };
}

impl<T> Products<'_, T> {
    /// Every panel's rows lie inside the terms' slices.
    pub(in crate::x86_64) fn assert_panels(&self, panels: usize) {
        let len = (panels.max(1) - 1) * self.panel_stride + self.k * PANEL;
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
    at @ Position { row, column }: Position,
    stride: usize,
    group: Group<T>,
) {
    // Columns of a panel lie side by side, panels one after the other.
    let from = column / PANEL * group.panel_stride + column % PANEL;
    let mut ahead = Lines::new(group.beside.right(column), at);
    let pace = ahead.pace(pieces);
    if let Some(end) = group.end {
        end.prefetch_out::<A::Lanes, MR, NV>(at);
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
            return end.put::<A, MR, NV>(at, sum);
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
            let at = Position { row, column };
            // SAFETY: the caller's promise; the arms take no more rows than are left.
            unsafe {
                match rows - row {
                    1 => tile::<A, T, 1, NV>(pieces, at, stride, group),
                    2 => tile::<A, T, 2, NV>(pieces, at, stride, group),
                    3 => tile::<A, T, 3, NV>(pieces, at, stride, group),
                    4 => tile::<A, T, 4, NV>(pieces, at, stride, group),
                    5 => tile::<A, T, 5, NV>(pieces, at, stride, group),
                    _ => tile::<A, T, ROWS, NV>(pieces, at, stride, group),
                }
            }
        }
    }
}

/// Cache lines beside the next rows (before the first ones, beside those too) that are asked for one by one:
/// only so many can be on their way, and what is multiplied must get past them.
struct Lines {
    beside: Prefetch,
    /// Bytes from the start to the row, and to the line in it.
    row: usize,
    line: usize,
    left: usize,
}

impl Lines {
    #[inline(always)]
    fn new(beside: Prefetch, Position { row, column }: Position) -> Self {
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
