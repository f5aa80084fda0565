//! The vector kernels: register tiles over raw pointers, behind tokens that prove the instructions.
//!
//! Pattern: the bodies are generic over [`Lanes`], whose methods carry no target feature and are
//! always inlined; each token has entry functions that do (`#[target_feature]`), so one source gives
//! both tiers. No closure may stand between an entry and the intrinsics: it would be compiled without
//! the features, one call an instruction. All lengths are checked before an entry is called:
//!
//! * (T) the token exists only if the CPU has the features its entry functions enable;
//! * (B) all rows, columns and strides were asserted to lie inside the slices.

mod avx2;
mod avx512;

use ndarray::ArrayViewMut2;

use crate::gemm::{DEPTH, Matrix, PANEL, Term};

pub(crate) use avx2::Avx2;
pub(crate) use avx512::Avx512;

/// Rows of a register tile: 6 x 64 columns fill 24 of 32 AVX-512 registers.
const ROWS: usize = 6;

/// Most pieces of one sum: the 49 taps of a 7x7 filter.
const PIECES_MAX: usize = 64;

/// A vector of `f32`.
trait Lanes: Copy {
    const COUNT: usize;
    fn zero() -> Self;
    fn splat(value: f32) -> Self;
    /// # Safety
    /// `COUNT` values are readable at `source`.
    unsafe fn load(source: *const f32) -> Self;
    /// # Safety
    /// `COUNT` values are writable at `target`.
    unsafe fn store(self, target: *mut f32);
    /// `self * factor + sum`, rounded once.
    fn multiply_add(self, factor: Self, sum: Self) -> Self;
}

/// A run of `k` consecutive rows of one term.
#[derive(Clone, Copy)]
struct Piece {
    a: *const f32,
    b: *const f32,
    k: usize,
}

/// Splits the terms into groups of at most [`DEPTH`] rows and calls `group(pieces, accumulate)`.
///
/// The pieces' pointers stay inside the terms' slices: `k` is cut, never extended.
fn for_each_group(
    terms: &[Term],
    (rows, k, stride): (usize, usize, usize),
    mut accumulate: bool,
    mut group: impl FnMut(&[Piece], bool),
) {
    let mut pieces = [Piece { a: std::ptr::null(), b: std::ptr::null(), k: 0 }; PIECES_MAX];
    let (mut count, mut depth) = (0, 0);
    for term in terms {
        assert!(Matrix { data: term.a, rows, cols: k, stride }.fits() && term.b.len() >= k * PANEL);
        let mut from = 0;
        while from < k {
            let len = (k - from).min(DEPTH - depth);
            pieces[count] =
                Piece { a: term.a[from..].as_ptr(), b: term.b[from * PANEL..].as_ptr(), k: len };
            (count, depth, from) = (count + 1, depth + len, from + len);
            if depth == DEPTH || count == PIECES_MAX {
                group(&pieces[..count], accumulate);
                (count, depth, accumulate) = (0, 0, true);
            }
        }
    }
    if count > 0 || !accumulate {
        group(&pieces[..count], accumulate);
    }
}

/// Where a block of `c` starts and how far its rows are apart.
#[derive(Clone, Copy)]
struct Target {
    start: *mut f32,
    rows: usize,
    stride: usize,
}

impl Target {
    fn new(c: &mut ArrayViewMut2<f32>) -> Self {
        assert!(c.ncols() == PANEL && c.strides()[1] == 1 && c.strides()[0] >= 0);
        Self { start: c.as_mut_ptr(), rows: c.nrows(), stride: c.strides()[0].unsigned_abs() }
    }
}

/// `rounds` of multiply-add on as many registers as a tile has, and nothing else: the CPU's peak.
#[inline(always)]
fn chain<V: Lanes>(rounds: usize) -> f32 {
    const CHAINS: usize = 12;
    let mut sum = [V::zero(); CHAINS];
    let (factor, other) = (V::splat(std::hint::black_box(0.5)), V::splat(1.0));
    for _ in 0..rounds {
        for sum in &mut sum {
            *sum = sum.multiply_add(factor, other);
        }
    }
    let mut values = [0.0; 16];
    let mut total = 0.0;
    for sum in sum {
        // SAFETY: no vector has more than 16 values.
        unsafe { sum.store(values.as_mut_ptr()) };
        total += values[0];
    }
    std::hint::black_box(total);
    (rounds * CHAINS * V::COUNT * 2) as f32
}

/// `c[MR][NV vectors] (+)= sum a . b` for one register tile.
///
/// # Safety
/// `MR` rows of each piece's `a` (`stride` apart, `k` values) and `k` rows of its `b` (64 apart) are
/// readable, and `MR` rows of `c` are writable, all from the given pointers on.
#[inline(always)]
unsafe fn tile<V: Lanes, const MR: usize, const NV: usize>(
    pieces: &[Piece],
    (row, column, stride): (usize, usize, usize),
    c: *mut f32,
    c_stride: usize,
    accumulate: bool,
) {
    let mut sum = [[V::zero(); NV]; MR];
    // SAFETY: every access below stays in the rows and columns that the caller vouches for.
    unsafe {
        if accumulate {
            for i in 0..MR {
                for j in 0..NV {
                    sum[i][j] = V::load(c.add(i * c_stride + j * V::COUNT));
                }
            }
        }
        for piece in pieces {
            let mut a = piece.a.add(row * stride);
            let mut b = piece.b.add(column);
            for _ in 0..piece.k {
                let mut panel = [V::zero(); NV];
                for j in 0..NV {
                    panel[j] = V::load(b.add(j * V::COUNT));
                }
                for i in 0..MR {
                    let value = V::splat(*a.add(i * stride));
                    for j in 0..NV {
                        sum[i][j] = value.multiply_add(panel[j], sum[i][j]);
                    }
                }
                a = a.add(1);
                b = b.add(PANEL);
            }
        }
        for i in 0..MR {
            for j in 0..NV {
                sum[i][j].store(c.add(i * c_stride + j * V::COUNT));
            }
        }
    }
}

/// `c[MR][NV vectors] += a' . b` for one register tile over `n` rows of `a` and `b`.
///
/// # Safety
/// `n` rows of `MR` values of `a` and of `NV` vectors of `b` are readable, `MR` rows of `c` writable.
#[inline(always)]
unsafe fn tile_transposed<V: Lanes, const MR: usize, const NV: usize>(
    (mut a, a_stride): (*const f32, usize),
    (mut b, b_stride): (*const f32, usize),
    n: usize,
    c: *mut f32,
    c_stride: usize,
) {
    let mut sum = [[V::zero(); NV]; MR];
    // SAFETY: every access below stays in the rows and columns that the caller vouches for.
    unsafe {
        for i in 0..MR {
            for j in 0..NV {
                sum[i][j] = V::load(c.add(i * c_stride + j * V::COUNT));
            }
        }
        for _ in 0..n {
            let mut panel = [V::zero(); NV];
            for j in 0..NV {
                panel[j] = V::load(b.add(j * V::COUNT));
            }
            for i in 0..MR {
                let value = V::splat(*a.add(i));
                for j in 0..NV {
                    sum[i][j] = value.multiply_add(panel[j], sum[i][j]);
                }
            }
            a = a.wrapping_add(a_stride);
            b = b.wrapping_add(b_stride);
        }
        for i in 0..MR {
            for j in 0..NV {
                sum[i][j].store(c.add(i * c_stride + j * V::COUNT));
            }
        }
    }
}

/// A group of pieces over all rows and columns of `c`, in tiles of at most six rows by `NV` vectors.
///
/// # Safety
/// `c.rows` rows of every piece's `a` are readable (`stride` apart), all `k` rows of its `b`, and
/// `c.rows` rows of 64 values of `c` are writable.
#[inline(always)]
unsafe fn tiles<V: Lanes, const NV: usize>(
    pieces: &[Piece],
    stride: usize,
    c: Target,
    accumulate: bool,
) {
    for column in (0..PANEL).step_by(NV * V::COUNT) {
        for row in (0..c.rows).step_by(ROWS) {
            let at = (row, column, stride);
            // SAFETY: the caller's promise; the arms take no more rows than are left.
            unsafe {
                let target = c.start.add(row * c.stride + column);
                match c.rows - row {
                    1 => tile::<V, 1, NV>(pieces, at, target, c.stride, accumulate),
                    2 => tile::<V, 2, NV>(pieces, at, target, c.stride, accumulate),
                    3 => tile::<V, 3, NV>(pieces, at, target, c.stride, accumulate),
                    4 => tile::<V, 4, NV>(pieces, at, target, c.stride, accumulate),
                    5 => tile::<V, 5, NV>(pieces, at, target, c.stride, accumulate),
                    _ => tile::<V, ROWS, NV>(pieces, at, target, c.stride, accumulate),
                }
            }
        }
    }
}

/// `c += a' . b` in tiles.
///
/// # Safety
/// `a` has `c.rows` columns, `b` has 64, both have `a.rows` rows inside their slices, and `c.rows` rows
/// of 64 values of `c` are writable.
#[inline(always)]
unsafe fn tiles_transposed<V: Lanes, const NV: usize>(a: Matrix, b: Matrix, c: Target) {
    for column in (0..PANEL).step_by(NV * V::COUNT) {
        for row in (0..c.rows).step_by(ROWS) {
            // SAFETY: the caller's promise; the arms take no more rows of `c` than are left.
            unsafe {
                let left = (a.data.as_ptr().add(row), a.stride);
                let right = (b.data.as_ptr().add(column), b.stride);
                let target = c.start.add(row * c.stride + column);
                match c.rows - row {
                    1 => tile_transposed::<V, 1, NV>(left, right, a.rows, target, c.stride),
                    2 => tile_transposed::<V, 2, NV>(left, right, a.rows, target, c.stride),
                    3 => tile_transposed::<V, 3, NV>(left, right, a.rows, target, c.stride),
                    4 => tile_transposed::<V, 4, NV>(left, right, a.rows, target, c.stride),
                    5 => tile_transposed::<V, 5, NV>(left, right, a.rows, target, c.stride),
                    _ => tile_transposed::<V, ROWS, NV>(left, right, a.rows, target, c.stride),
                }
            }
        }
    }
}
