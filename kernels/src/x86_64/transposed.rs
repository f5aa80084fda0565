//! Products `a' . b` with the first operand read down its columns: the gradient by weight.

use ndarray::ArrayViewMut2;

use super::kernel::{Arithmetic, Enter, Kernel};
use super::rows::{Ahead, LINE, Rows, Target};
use super::vector::Vector;
use crate::base::isa::{Avx512Bf16, Tier};
use crate::base::panel::{Matrix, PANEL, PrefetchNext, STRIP};
use crate::base::value::Bf16;

impl Tier {
    /// See [`crate::gemm::multiply_transposed`].
    pub(crate) fn multiply_transposed(
        self,
        a: Matrix<f32>,
        b: &[f32],
        next: PrefetchNext<f32, impl Copy>,
        c: ArrayViewMut2<f32>,
        accumulate: bool,
    ) {
        self.enter(TilesTransposed::new(a, b, next.into(), c, accumulate));
    }
}

impl Avx512Bf16 {
    /// See [`crate::gemm::multiply_transposed_bf16`].
    pub(crate) fn multiply_transposed(
        self,
        a: Matrix<u32>,
        b: &[u32],
        next: PrefetchNext<Bf16, impl Copy>,
        c: ArrayViewMut2<f32>,
        accumulate: bool,
    ) {
        self.enter(TilesTransposed::new(a, b, next.into(), c, accumulate));
    }
}

/// `c (+)= a' . b` over all of `c`.
struct TilesTransposed<'a, W> {
    a: Matrix<'a, W>,
    b: &'a [W],
    next: Ahead,
    c: Target<f32>,
    accumulate: bool,
}

impl<'a, W> TilesTransposed<'a, W> {
    fn new(
        a: Matrix<'a, W>,
        b: &'a [W],
        next: Ahead,
        mut c: ArrayViewMut2<f32>,
        accumulate: bool,
    ) -> Self {
        assert!(a.fits() && a.cols == c.nrows() && b.len() >= a.rows * PANEL);
        Self { a, b, next, c: Target::new(&mut c), accumulate }
    }
}

impl<W: Copy> Kernel<W> for TilesTransposed<'_, W> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<A: Arithmetic<Word = W>, const COLUMNS: usize, const ROWS: usize>(self) {
        let Self { a, b, next, c, accumulate } = self;
        // SAFETY: (T) from the caller, (B).
        unsafe { tiles_transposed::<A, ROWS, 2>(a, b, next, c, accumulate) }
    }
}

/// What a register tile of a transposed product reads.
struct Operands<W> {
    a: *const W,
    /// Words from row to row of `a`.
    stride: usize,
    /// A strip.
    b: *const W,
    rows: usize,
    /// What comes next, of `a` and of `b`.
    next: [Rows; 2],
}

/// `c[MR][NV vectors] (+)= a' . b` for one register tile over rows of `a` and `b`.
///
/// # Safety
/// As many rows of `MR` words of `a` and of `NV` vectors of `b` are readable, `MR` rows of `c` writable.
#[inline(always)]
unsafe fn tile_transposed<A: Arithmetic, const MR: usize, const NV: usize>(
    Operands { mut a, stride, mut b, rows, next: [mut next_a, mut next_b] }: Operands<A::Word>,
    c: Target<f32>,
    accumulate: bool,
) {
    let mut sum = [[A::Lanes::zero(); NV]; MR];
    // SAFETY: every access below stays in the rows and columns that the caller vouches for.
    unsafe {
        if accumulate {
            for i in 0..MR {
                for j in 0..NV {
                    sum[i][j] =
                        A::Lanes::load(c.start.add(i * c.stride + j * A::COUNT).cast_const());
                }
            }
        }
        for _ in 0..rows {
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
            a = a.wrapping_add(stride);
            b = b.wrapping_add(STRIP);
        }
        for i in 0..MR {
            for j in 0..NV {
                sum[i][j].store(c.start.add(i * c.stride + j * A::COUNT));
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
                let left = c.rows - row;
                let c = Target { start: c.start.add(row * c.stride + column), rows: left, ..c };
                // Tile by tile another cache line of each row, strip by strip another row.
                let next_a = next.a.from(column / STRIP, row * next.a_size);
                let next_b = next.b.from(count / next.b_lines, count % next.b_lines * LINE);
                let operands = Operands {
                    a: a.data.as_ptr().add(row),
                    stride: a.stride,
                    b: b.as_ptr().add(strip * a.rows + column - strip),
                    rows: a.rows,
                    next: [next_a, next_b],
                };
                rows_transposed::<A, MR, NV>(operands, c, accumulate);
            }
            count += 1;
        }
    }
}

/// One register tile of `min(c.rows, MR)` rows.
///
/// # Safety
/// As [`tile_transposed`].
#[inline(always)]
unsafe fn rows_transposed<A: Arithmetic, const MR: usize, const NV: usize>(
    operands: Operands<A::Word>,
    c: Target<f32>,
    accumulate: bool,
) {
    macro_rules! arms {
        ($($rows:literal)*) => {
            match c.rows {
                $($rows if $rows < MR => {
                    tile_transposed::<A, $rows, NV>(operands, c, accumulate)
                })*
                _ => tile_transposed::<A, MR, NV>(operands, c, accumulate),
            }
        };
    }
    // SAFETY: passed on.
    unsafe { arms!(1 2 3 4 5 6 7 8 9 10 11) }
}
