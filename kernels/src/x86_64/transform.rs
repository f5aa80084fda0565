//! The transforms of Winograd's convolutions in vectors.
//!
//! Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2015), F(4x4, 3x3), and the products
//! of maps of 2x2 pixels. Each one is a small matrix, applied to the columns and then to the rows of a square
//! of slices, element by element.

use super::kernel::{Arithmetic, Enter, Kernel};
use super::vector::Vector;
use crate::base::isa::Tier;
use crate::base::value::Value;
use crate::conv::winograd::scheme::{PRODUCTS_MAX, Scheme, Transform};

/// Values of a slice that are asked for ahead: four cache lines of each of 36 slices, more than the latency of memory
/// at the pace of a transform. The CPU's own prefetcher follows fewer streams than that.
const AHEAD: usize = 64;

/// A matrix of `OUT` rows by `IN` columns times a vector.
trait Matrix<const IN: usize, const OUT: usize> {
    /// Whether it reads activations: so many slices that the CPU does not see what comes next.
    const FROM_MEMORY: bool = false;
    /// One or two parts of the rows of a square that are computed one after the other, so that what is
    /// between the two steps stays in registers.
    const PARTS: usize = 1;

    fn apply<V: Vector>(x: [V; IN]) -> [V; OUT];
}

/// `B'`: of inputs.
struct Input;
/// `G`: of three weights.
struct Weights;
/// `A'`: to outputs.
struct Output;
/// `A`: of gradients by the output.
struct Gradient;
/// `G'`: to three gradients by the weight.
struct Result;

/// `value * factor + sum`, rounded once.
#[inline(always)]
fn fma<V: Vector>(factor: f32, value: V, sum: V) -> V {
    value.multiply_add(V::splat(factor), sum)
}

/// `value * factor`.
#[inline(always)]
fn times<V: Vector>(factor: f32, value: V) -> V {
    value.multiply(V::splat(factor))
}

impl Matrix<6, 6> for Input {
    const FROM_MEMORY: bool = true;
    const PARTS: usize = 2;

    #[inline(always)]
    fn apply<V: Vector>([x0, x1, x2, x3, x4, x5]: [V; 6]) -> [V; 6] {
        let (even, odd) = (fma(-4.0, x2, x4), fma(-4.0, x1, x3));
        let (near, far) = (x4.subtract(x2), x3.subtract(x1));
        [
            fma(4.0, x0, fma(-5.0, x2, x4)),
            even.add(odd),
            even.subtract(odd),
            fma(2.0, far, near),
            fma(-2.0, far, near),
            fma(4.0, x1, fma(-5.0, x3, x5)),
        ]
    }
}

impl Matrix<3, 6> for Weights {
    #[inline(always)]
    fn apply<V: Vector>([g0, g1, g2]: [V; 3]) -> [V; 6] {
        let sum = g0.add(g2);
        let near = fma(1.0 / 24.0, g0, times(1.0 / 6.0, g2));
        [
            times(0.25, g0),
            times(-1.0 / 6.0, sum.add(g1)),
            times(-1.0 / 6.0, sum.subtract(g1)),
            fma(1.0 / 12.0, g1, near),
            fma(-1.0 / 12.0, g1, near),
            g2,
        ]
    }
}

impl Matrix<6, 4> for Output {
    #[inline(always)]
    fn apply<V: Vector>([m0, m1, m2, m3, m4, m5]: [V; 6]) -> [V; 4] {
        let (sum, difference) = (m1.add(m2), m1.subtract(m2));
        let (sum2, difference2) = (m3.add(m4), m3.subtract(m4));
        [
            m0.add(sum).add(sum2),
            fma(2.0, difference2, difference),
            fma(4.0, sum2, sum),
            fma(8.0, difference2, difference).add(m5),
        ]
    }
}

impl Matrix<4, 6> for Gradient {
    const FROM_MEMORY: bool = true;

    #[inline(always)]
    fn apply<V: Vector>([y0, y1, y2, y3]: [V; 4]) -> [V; 6] {
        let (even, odd) = (y0.add(y2), y1.add(y3));
        let even2 = fma(4.0, y2, y0);
        let odd2 = fma(4.0, y3, y1);
        [y0, even.add(odd), even.subtract(odd), fma(2.0, odd2, even2), fma(-2.0, odd2, even2), y3]
    }
}

impl Matrix<6, 3> for Result {
    #[inline(always)]
    fn apply<V: Vector>([u0, u1, u2, u3, u4, u5]: [V; 6]) -> [V; 3] {
        let (sum, sum2) = (u1.add(u2), u3.add(u4));
        let far = times(1.0 / 12.0, u3.subtract(u4));
        [
            fma(0.25, u0, fma(1.0 / 24.0, sum2, times(-1.0 / 6.0, sum))),
            fma(1.0 / 6.0, u2.subtract(u1), far),
            fma(1.0 / 6.0, sum2.subtract(sum), u5),
        ]
    }
}

impl Matrix<2, 3> for Input {
    const FROM_MEMORY: bool = true;

    #[inline(always)]
    fn apply<V: Vector>([x0, x1]: [V; 2]) -> [V; 3] {
        [x0.add(x1), x1, x0]
    }
}

impl Matrix<3, 3> for Weights {
    #[inline(always)]
    fn apply<V: Vector>([g0, g1, g2]: [V; 3]) -> [V; 3] {
        [g1, g2.subtract(g1), g0.subtract(g1)]
    }
}

impl Matrix<3, 2> for Output {
    #[inline(always)]
    fn apply<V: Vector>([m0, m1, m2]: [V; 3]) -> [V; 2] {
        [m0.add(m1), m0.add(m2)]
    }
}

impl Matrix<2, 3> for Gradient {
    const FROM_MEMORY: bool = true;

    #[inline(always)]
    fn apply<V: Vector>([y0, y1]: [V; 2]) -> [V; 3] {
        [y0.add(y1), y0, y1]
    }
}

impl Matrix<3, 3> for Result {
    #[inline(always)]
    fn apply<V: Vector>([u0, u1, u2]: [V; 3]) -> [V; 3] {
        [u2, u0.subtract(u1).subtract(u2), u1]
    }
}

/// The squares of slices, as pointers.
struct Squares<S, D> {
    sources: [*const S; PRODUCTS_MAX],
    targets: [*mut D; PRODUCTS_MAX],
    len: usize,
}

/// # Safety
/// `IN * IN` sources are of `len` readable values, `OUT * OUT` targets of as many writable ones; `len` is a
/// multiple of the vector's; the features of `V` are there.
#[inline(always)]
unsafe fn square<V, M, S, D, const IN: usize, const OUT: usize>(squares: &Squares<S, D>)
where
    V: Vector,
    M: Matrix<IN, OUT>,
    S: Value,
    D: Value,
{
    for at in (0..squares.len).step_by(V::COUNT) {
        // SAFETY: passed on.
        unsafe {
            rows::<V, M, S, D, IN, OUT, 0>(squares, at);
            if M::PARTS == 2 {
                rows::<V, M, S, D, IN, OUT, 1>(squares, at);
            }
        }
    }
}

/// Some rows of one vector of a square. Of what a part does not need nothing is computed: the compiler sees
/// it, since the loops are of constant lengths.
///
/// # Safety
/// As [`square`].
#[inline(always)]
unsafe fn rows<V, M, S, D, const IN: usize, const OUT: usize, const PART: usize>(
    squares: &Squares<S, D>,
    at: usize,
) where
    V: Vector,
    M: Matrix<IN, OUT>,
    S: Value,
    D: Value,
{
    let count = OUT / M::PARTS;
    let mut half = [[V::zero(); OUT]; IN];
    for column in 0..IN {
        let mut x = [V::zero(); IN];
        for row in 0..IN {
            let source = squares.sources[row * IN + column];
            if M::FROM_MEMORY && PART == 0 {
                V::prefetch(source.wrapping_add(at + AHEAD).cast());
            }
            // SAFETY: inside a source.
            x[row] = unsafe { V::load(source.add(at)) };
        }
        half[column] = M::apply(x);
    }
    for row in PART * count..(PART + 1) * count {
        let mut x = [V::zero(); IN];
        for column in 0..IN {
            x[column] = half[column][row];
        }
        let y = M::apply(x);
        for column in 0..OUT {
            // SAFETY: inside a target.
            unsafe { y[column].store(squares.targets[row * OUT + column].add(at)) };
        }
    }
}

impl Tier {
    /// Applies a transform to a square of slices of equal lengths, multiples of 16.
    pub(crate) fn transform<S: Value, D: Value>(
        self,
        scheme: Scheme,
        transform: Transform,
        sources: &[&[S]; PRODUCTS_MAX],
        targets: &mut [&mut [D]; PRODUCTS_MAX],
    ) {
        let [from, to] = transform.sides(scheme).map(|side| side * side);
        let len = targets[0].len();
        assert!(len.is_multiple_of(16) && targets[..to].iter().all(|t| t.len() == len));
        assert!(sources[..from].iter().all(|s| s.len() >= len));
        let targets = targets.each_mut().map(|target| target.as_mut_ptr());
        let squares = Squares { sources: sources.map(<[S]>::as_ptr), targets, len };
        self.enter(Square { scheme, transform, squares: &squares });
    }
}

/// A transform of squares whose slices have the values that it reads and writes.
struct Square<'a, S, D> {
    scheme: Scheme,
    transform: Transform,
    squares: &'a Squares<S, D>,
}

impl<S: Value, D: Value> Kernel<f32> for Square<'_, S, D> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<A: Arithmetic<Word = f32>, const COLUMNS: usize, const ROWS: usize>(self) {
        macro_rules! by {
            ($matrix:ident, $from:literal, $to:literal) => {
                square::<A::Lanes, $matrix, S, D, $from, $to>(self.squares)
            };
        }
        // SAFETY: (T) from the caller, (B).
        unsafe {
            match (self.scheme, self.transform) {
                (Scheme::Four, Transform::Input) => by!(Input, 6, 6),
                (Scheme::Four, Transform::Weights) => by!(Weights, 3, 6),
                (Scheme::Four, Transform::Output) => by!(Output, 6, 4),
                (Scheme::Four, Transform::Gradient) => by!(Gradient, 4, 6),
                (Scheme::Four, Transform::Result) => by!(Result, 6, 3),
                (Scheme::Two, Transform::Input) => by!(Input, 2, 3),
                (Scheme::Two, Transform::Weights) => by!(Weights, 3, 3),
                (Scheme::Two, Transform::Output) => by!(Output, 3, 2),
                (Scheme::Two, Transform::Gradient) => by!(Gradient, 2, 3),
                (Scheme::Two, Transform::Result) => by!(Result, 3, 3),
            }
        }
    }
}
