//! Products `a' . b` summed over images: the gradient by weight.
//!
//! Tiles sum along the rows of `a'`, so rows of images have to become rows of channels first: they are interleaved by
//! pairs of images and those words transposed, once a tile of `a`, which all columns of the panel share. `b` is
//! interleaved as it is for AVX512-BF16. An odd last image stands beside a zero, and the last pairs are fewer than a
//! full tile's: tiles have their shape.

use ndarray::ArrayViewMut2;

use super::Work;
use super::unit::{BLOCK, SIDE, Shape, Unit};
use crate::base::isa::Amx;
use crate::base::panel::{Matrix, PANEL, STRIP, Strided};
use crate::base::tile::{IMAGES, STRIP_WORDS};
use crate::base::value::Bf16;
use crate::x86_64::kernel::{Arithmetic, Enter, Kernel};
use crate::x86_64::vector::Vector;

/// Words of a transposed row: all pairs of a tile of an activation.
const PAIRS: usize = IMAGES / 2;

impl Amx {
    /// A strip `[pairs][32]` as 32 rows of words, one a channel; what follows its pairs is transposed with them, and
    /// read by nobody.
    pub(crate) fn transpose_strip(self, strip: &[u32; STRIP_WORDS], rows: &mut [u32]) {
        assert!(rows.len() >= STRIP * PAIRS);
        self.enter(TransposeStrip { strip, rows });
    }

    /// See [`crate::gemm::multiply_transposed_bf16`]; `a` is transposed: a row of words for each row of `c`.
    pub(crate) fn multiply_transposed(
        self,
        a: Matrix<u32>,
        b: &[u32],
        mut c: ArrayViewMut2<f32>,
        accumulate: bool,
    ) {
        assert!(a.fits() && a.rows == c.nrows() && a.cols > 0 && c.ncols() == PANEL);
        assert_eq!(b.len() / PANEL, a.cols, "pairs of both");
        let a =
            Matrix { data: values(a.data), rows: a.rows, cols: 2 * a.cols, stride: 2 * a.stride };
        let c = c.as_slice_mut().expect("rows of a panel are contiguous");
        self.work(MultiplyTransposed { a, b: values(b), c, accumulate });
    }

    /// What [`Amx::transpose_strip`] wrote, strip after strip: a row of so many pairs for each channel.
    pub(crate) fn transposed(rows: &[u32], channels: usize, pairs: usize) -> Matrix<'_, u32> {
        Matrix { data: &rows[..channels * PAIRS], rows: channels, cols: pairs, stride: PAIRS }
    }
}

/// Words as the two values that each is.
fn values(words: &[u32]) -> &[Bf16] {
    // SAFETY: the same bytes; a `Bf16` is a `u16` of any bits, and needs less alignment.
    unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), 2 * words.len()) }
}

/// A strip of words transposed, as `f32` that no arithmetic touches.
struct TransposeStrip<'a> {
    strip: &'a [u32; STRIP_WORDS],
    rows: &'a mut [u32],
}

impl Kernel<f32> for TransposeStrip<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<A: Arithmetic<Word = f32>, const COLUMNS: usize, const ROWS: usize>(self) {
        let (strip, rows) = (self.strip.as_ptr(), self.rows.as_mut_ptr());
        for pair in (0..PAIRS).step_by(A::COUNT) {
            for column in (0..STRIP).step_by(A::COUNT) {
                // SAFETY: (B): blocks of a strip, and of as many rows; (T) from the caller.
                unsafe {
                    let source = strip.add(pair * STRIP + column).cast();
                    let target = rows.add(column * PAIRS + pair).cast();
                    A::Lanes::transpose(source, target, [STRIP, PAIRS], false);
                }
            }
        }
    }
}

/// `c (+)= a . b` for transposed rows `a` and the two strips of a panel `b`.
struct MultiplyTransposed<'a> {
    a: Matrix<'a, Bf16>,
    b: &'a [Bf16],
    c: &'a mut [f32],
    accumulate: bool,
}

impl Work for MultiplyTransposed<'_> {
    type Output = ();

    fn run<U: Unit>(mut self, unit: &mut U) {
        let pairs = self.a.cols / 2;
        let whole = pairs / SIDE * SIDE;
        if whole > 0 {
            self.add(unit, [0, whole], SIDE);
            self.accumulate = true;
        }
        if whole < pairs {
            self.add(unit, [whole, pairs], pairs - whole);
        }
    }
}

impl MultiplyTransposed<'_> {
    /// The products of some pairs, so many at a time.
    #[inline(always)]
    fn add<U: Unit>(&mut self, unit: &mut U, [from, to]: [usize; 2], step: usize) {
        let Matrix { data, rows, stride, .. } = self.a;
        let strip_len = self.b.len() / (PANEL / STRIP);
        for row in (0..rows).step_by(BLOCK) {
            let shape = Shape::new(BLOCK.min(rows - row), step);
            if shape != unit.shape() {
                unit.configure(shape);
            }
            for (half, strip) in self.b.chunks_exact(strip_len).enumerate() {
                let c = &mut self.c[row * PANEL + half * STRIP..];
                unit.begin(self.accumulate.then_some((&*c, PANEL)));
                for pair in (from..to).step_by(step) {
                    let left = Strided { data: &data[row * stride + 2 * pair..], stride };
                    let right = Strided { data: &strip[2 * pair * STRIP..], stride: 2 * STRIP };
                    unit.add_products(left, right);
                }
                unit.end(c, PANEL);
            }
        }
    }
}

const _: () = assert!(STRIP == BLOCK, "a strip is two tiles wide");
