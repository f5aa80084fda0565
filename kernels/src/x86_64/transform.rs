//! The transforms of Winograd's convolution in vectors.
//!
//! Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2015), F(4x4, 3x3). Each one is
//! a small matrix, applied to the columns and then to the rows of a square of slices, element by element.

use std::arch::x86_64::{__m256, __m512};

use super::vector::Vector;
use super::{Avx2, Avx512};
use crate::winograd::Transform;

/// Values of a slice that are asked for ahead.
const AHEAD: usize = 64;

/// A matrix of `OUT` rows by `IN` columns times a vector.
trait Matrix<const IN: usize, const OUT: usize> {
    /// Whether it reads activations: so many slices that the CPU does not see what comes next.
    const FROM_MEMORY: bool = false;

    fn apply<V: Vector>(x: [V; IN]) -> [V; OUT];
}

/// `B'`: of six inputs.
struct Input;
/// `G`: of three weights.
struct Weights;
/// `A'`: to four outputs.
struct Output;
/// `A`: of four gradients by the output.
struct Gradient;
/// `G'`: to three gradients by the weight.
struct Result;

impl Matrix<6, 6> for Input {
    const FROM_MEMORY: bool = true;

    #[inline(always)]
    fn apply<V: Vector>([x0, x1, x2, x3, x4, x5]: [V; 6]) -> [V; 6] {
        let (two, four, five) = (V::splat(2.0), V::splat(4.0), V::splat(5.0));
        let even = x4.subtract(four.multiply(x2));
        let odd = x3.subtract(four.multiply(x1));
        let near = x4.subtract(x2);
        let far = two.multiply(x3.subtract(x1));
        [
            four.multiply(x0).add(x4).subtract(five.multiply(x2)),
            even.add(odd),
            even.subtract(odd),
            near.add(far),
            near.subtract(far),
            four.multiply(x1).add(x5).subtract(five.multiply(x3)),
        ]
    }
}

impl Matrix<3, 6> for Weights {
    #[inline(always)]
    fn apply<V: Vector>([g0, g1, g2]: [V; 3]) -> [V; 6] {
        let sixth = V::splat(-1.0 / 6.0);
        let sum = g0.add(g2);
        let near = V::splat(1.0 / 24.0).multiply(g0).add(V::splat(1.0 / 6.0).multiply(g2));
        let far = V::splat(1.0 / 12.0).multiply(g1);
        [
            V::splat(0.25).multiply(g0),
            sixth.multiply(sum.add(g1)),
            sixth.multiply(sum.subtract(g1)),
            near.add(far),
            near.subtract(far),
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
            difference.add(V::splat(2.0).multiply(difference2)),
            sum.add(V::splat(4.0).multiply(sum2)),
            difference.add(V::splat(8.0).multiply(difference2)).add(m5),
        ]
    }
}

impl Matrix<4, 6> for Gradient {
    const FROM_MEMORY: bool = true;

    #[inline(always)]
    fn apply<V: Vector>([y0, y1, y2, y3]: [V; 4]) -> [V; 6] {
        let (even, odd) = (y0.add(y2), y1.add(y3));
        let even2 = y0.add(V::splat(4.0).multiply(y2));
        let odd2 = V::splat(2.0).multiply(y1).add(V::splat(8.0).multiply(y3));
        [y0, even.add(odd), even.subtract(odd), even2.add(odd2), even2.subtract(odd2), y3]
    }
}

impl Matrix<6, 3> for Result {
    #[inline(always)]
    fn apply<V: Vector>([u0, u1, u2, u3, u4, u5]: [V; 6]) -> [V; 3] {
        let (sixth, sum, sum2) = (V::splat(1.0 / 6.0), u1.add(u2), u3.add(u4));
        let far = V::splat(1.0 / 12.0).multiply(u3.subtract(u4));
        [
            V::splat(0.25)
                .multiply(u0)
                .subtract(sixth.multiply(sum))
                .add(V::splat(1.0 / 24.0).multiply(sum2)),
            sixth.multiply(u2.subtract(u1)).add(far),
            sixth.multiply(sum2.subtract(sum)).add(u5),
        ]
    }
}

/// The squares of slices, as pointers: null for a slice of zeros.
struct Squares<'a> {
    sources: &'a [*const f32],
    targets: &'a [*mut f32],
    len: usize,
}

/// # Safety
/// `IN * IN` sources are null or of `len` readable values, `OUT * OUT` targets of as many writable ones;
/// `len` is a multiple of the vector's; the features of `V` are there.
#[inline(always)]
unsafe fn square<V: Vector, M: Matrix<IN, OUT>, const IN: usize, const OUT: usize>(
    squares: &Squares,
) {
    let Squares { sources, targets, len } = *squares;
    for at in (0..len).step_by(V::COUNT) {
        let mut half = [[V::zero(); OUT]; IN];
        for column in 0..IN {
            let mut x = [V::zero(); IN];
            for row in 0..IN {
                let source = sources[row * IN + column];
                if !source.is_null() {
                    if M::FROM_MEMORY {
                        V::prefetch(source.wrapping_add(at + AHEAD).cast());
                    }
                    // SAFETY: inside a source.
                    x[row] = unsafe { V::load(source.add(at)) };
                }
            }
            half[column] = M::apply(x);
        }
        for row in 0..OUT {
            let mut x = [V::zero(); IN];
            for column in 0..IN {
                x[column] = half[column][row];
            }
            let y = M::apply(x);
            for column in 0..OUT {
                // SAFETY: inside a target.
                unsafe { y[column].store(targets[row * OUT + column].add(at)) };
            }
        }
    }
}

macro_rules! entries {
    ($token:ty, $vector:ty, $features:literal) => {
        impl $token {
            /// Applies a transform to a square of slices (`None`: zeros) of equal lengths, multiples of
            /// 16.
            pub(crate) fn transform(
                self,
                transform: Transform,
                sources: &[Option<&[f32]>],
                targets: &mut [&mut [f32]],
            ) {
                let (from, to) = transform.sides();
                assert_eq!((sources.len(), targets.len()), (from * from, to * to));
                let len = targets[0].len();
                assert!(len.is_multiple_of(16) && targets.iter().all(|t| t.len() == len));
                assert!(sources.iter().flatten().all(|s| s.len() == len));
                let mut from = [std::ptr::null(); 36];
                let mut to = [std::ptr::null_mut(); 36];
                for (pointer, source) in from.iter_mut().zip(sources) {
                    *pointer = source.map_or(std::ptr::null(), <[f32]>::as_ptr);
                }
                for (pointer, target) in to.iter_mut().zip(targets) {
                    *pointer = target.as_mut_ptr();
                }
                // SAFETY: (T), (B).
                unsafe {
                    <$vector>::run(transform, &Squares { sources: &from, targets: &to, len });
                }
            }
        }

        impl Entry for $vector {
            #[target_feature(enable = $features)]
            unsafe fn run(transform: Transform, squares: &Squares) {
                // SAFETY: passed on.
                unsafe {
                    match transform {
                        Transform::Input => square::<$vector, Input, 6, 6>(squares),
                        Transform::Weights => square::<$vector, Weights, 3, 6>(squares),
                        Transform::Output => square::<$vector, Output, 6, 4>(squares),
                        Transform::Gradient => square::<$vector, Gradient, 4, 6>(squares),
                        Transform::Result => square::<$vector, Result, 6, 3>(squares),
                    }
                }
            }
        }
    };
}

/// The function that carries the features.
trait Entry {
    /// # Safety
    /// (T), and as [`square`].
    unsafe fn run(transform: Transform, squares: &Squares);
}

entries!(Avx512, __m512, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma");
entries!(Avx2, __m256, "avx2,fma");
