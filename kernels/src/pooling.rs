//! Max pooling 3x3/2 after the stem and the global average before the classifier.

use crate::isa::Isa;
use crate::pool::Pool;
use crate::value::Value;

/// Max pooling with a 3x3 window, stride 2 and padding 1 over square maps.
#[derive(Clone, Copy, Debug)]
pub struct MaxPool {
    /// Height and width of the input.
    pub input: usize,
    /// Height and width of the output.
    pub output: usize,
}

impl MaxPool {
    /// The pooling of `input` by `input` maps.
    pub fn new(input: usize) -> Self {
        Self { input, output: input.div_ceil(2) }
    }

    /// `y` = the largest value of each window; `row` is images times channels.
    pub fn forward<T: Value>(self, (pool, isa): (&Pool, Isa), row: usize, x: &[T], y: &mut [T]) {
        assert_eq!((x.len(), y.len()), (self.input.pow(2) * row, self.output.pow(2) * row));
        pool.for_each_chunk(y, row, |o, y| {
            isa.run(
                #[inline(always)]
                || {
                    y.fill(T::narrow(f32::NEG_INFINITY));
                    for i in self.window(o) {
                        for (y, &x) in y.iter_mut().zip(&x[i * row..][..row]) {
                            *y = if x.widen() > y.widen() { x } else { *y };
                        }
                    }
                },
            );
        });
    }

    /// Hands each window's gradient to the first of its largest values, in reading order.
    pub fn backward<T: Value>(
        self,
        (pool, isa): (&Pool, Isa),
        row: usize,
        (x, y, dy): (&[T], &[T], &[T]),
        dx: &mut [T],
    ) {
        assert_eq!((x.len(), y.len()), (self.input.pow(2) * row, self.output.pow(2) * row));
        assert_eq!((dx.len(), dy.len()), (x.len(), y.len()));
        pool.for_each_chunk(dx, row, |i, dx| {
            isa.run(
                #[inline(always)]
                || {
                    for (part, dx) in dx.chunks_mut(PART).enumerate() {
                        self.gather((i, row, part * PART), (x, y, dy), dx);
                    }
                },
            );
        });
    }

    /// Some values of the gradient at input pixel `i`, from `start` of its row on.
    #[inline(always)]
    fn gather<T: Value>(
        self,
        (i, row, start): (usize, usize, usize),
        (x, y, dy): (&[T], &[T], &[T]),
        dx: &mut [T],
    ) {
        let len = dx.len();
        dx.fill(T::narrow(0.0));
        for o in self.windows_over(i) {
            let [y, dy] = [y, dy].map(|data| &data[o * row + start..][..len]);
            // As words, so that the loops become vectors: all ones where `i` is the first of the largest.
            let mut is_first = [u32::MAX; PART];
            for j in self.window(o).take_while(|&j| j <= i) {
                let x = &x[j * row + start..][..len];
                for ((is_first, x), y) in is_first.iter_mut().zip(x).zip(y) {
                    let is_largest = x.widen() == y.widen();
                    let passes = if is_largest == (j == i) { u32::MAX } else { 0 };
                    *is_first &= passes;
                }
            }
            for ((dx, dy), is_first) in dx.iter_mut().zip(dy).zip(&is_first) {
                let share = f32::from_bits(dy.widen().to_bits() & is_first);
                *dx = T::narrow(dx.widen() + share);
            }
        }
    }

    /// Input pixels of the window of output pixel `o`, in reading order.
    #[inline(always)]
    fn window(self, o: usize) -> impl Iterator<Item = usize> {
        let (p, q) = (o / self.output, o % self.output);
        let side = move |at: usize| (2 * at).saturating_sub(1)..(2 * at + 2).min(self.input);
        side(p).flat_map(move |h| side(q).map(move |w| h * self.input + w))
    }

    /// Output pixels whose window holds input pixel `i`.
    #[inline(always)]
    fn windows_over(self, i: usize) -> impl Iterator<Item = usize> {
        let (h, w) = (i / self.input, i % self.input);
        let side = move |at: usize| at / 2..(at.div_ceil(2) + 1).min(self.output);
        side(h).flat_map(move |p| side(w).map(move |q| p * self.output + q))
    }
}

/// `y[n][c]` = mean of `x[pixel][n][c]` over the pixels.
pub fn average_forward<T: Value>((pool, isa): (&Pool, Isa), x: &[T], y: &mut [f32]) {
    assert!(!y.is_empty() && x.len().is_multiple_of(y.len()));
    let (total, pixels) = (y.len(), x.len() / y.len());
    pool.for_each_chunk(y, AVERAGE_LEN, |index, y| {
        let start = index * AVERAGE_LEN;
        isa.run(
            #[inline(always)]
            || {
                y.fill(0.0);
                for pixel in 0..pixels {
                    for (y, &x) in y.iter_mut().zip(&x[pixel * total + start..]) {
                        *y += x.widen();
                    }
                }
                for y in y.iter_mut() {
                    *y /= pixels as f32;
                }
            },
        );
    });
}

/// `dx[pixel][n][c] = dy[n][c] / pixels`.
pub fn average_backward<T: Value>((pool, isa): (&Pool, Isa), dy: &[f32], dx: &mut [T]) {
    assert!(!dy.is_empty() && dx.len().is_multiple_of(dy.len()));
    let pixels = dx.len() / dy.len();
    pool.for_each_chunk(dx, dy.len(), |_, dx| {
        isa.run(
            #[inline(always)]
            || {
                for (dx, &dy) in dx.iter_mut().zip(dy) {
                    *dx = T::narrow(dy / pixels as f32);
                }
            },
        );
    });
}

const AVERAGE_LEN: usize = 1 << 12;
/// Values of a row that are worked on at a time: what is read of nine pixels stays in the first-level cache.
const PART: usize = 256;
