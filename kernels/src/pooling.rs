//! Max pooling 3x3/2 after the stem and the global average before the classifier.

use ndarray::Axis;

use crate::base::exec::Exec;
use crate::base::tile::view4;
use crate::base::value::Value;

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
    pub fn forward<T: Value>(self, Exec { pool, isa }: Exec, row: usize, x: &[T], y: &mut [T]) {
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
        Exec { pool, isa }: Exec,
        row: usize,
        x: &[T],
        y: &[T],
        dy: &[T],
        dx: &mut [T],
    ) {
        assert_eq!((x.len(), y.len()), (self.input.pow(2) * row, self.output.pow(2) * row));
        assert_eq!((dx.len(), dy.len()), (x.len(), y.len()));
        let dx = view4(dx, [1, 1, self.input.pow(2), row]);
        let block = [1, 1, self.input.pow(2), PART];
        pool.for_each_block(dx, block, |[.., start], dx| {
            let mut dx = dx.index_axis_move(Axis(0), 0).index_axis_move(Axis(0), 0);
            dx.fill(T::narrow(0.0));
            for o in 0..self.output.pow(2) {
                let part = o * row + start..o * row + start + dx.ncols();
                let (y, dy) = (&y[part.clone()], &dy[part]);
                // As words, so that the loops become vectors: all ones where none was as large yet.
                let mut open = [u32::MAX; PART];
                for i in self.window(o) {
                    let x = &x[i * row + start..][..y.len()];
                    let dx = dx.row_mut(i).into_slice().expect("rows are contiguous");
                    isa.run(
                        #[inline(always)]
                        || hand_out(x, y, dy, &mut open, dx),
                    );
                }
            }
        });
    }

    /// Input pixels of the window of output pixel `o`, in reading order.
    #[inline(always)]
    fn window(self, o: usize) -> impl Iterator<Item = usize> {
        let (p, q) = (o / self.output, o % self.output);
        let side = move |at: usize| (2 * at).saturating_sub(1)..(2 * at + 2).min(self.input);
        side(p).flat_map(move |h| side(q).map(move |w| h * self.input + w))
    }
}

/// Adds `dy` to `dx` where `x` is the first that is as large as `y`, and closes these.
#[inline(always)]
fn hand_out<T: Value>(x: &[T], y: &[T], dy: &[T], open: &mut [u32; PART], dx: &mut [T]) {
    let len = dx.len().min(PART);
    let (x, y, dy, dx) = (&x[..len], &y[..len], &dy[..len], &mut dx[..len]);
    for at in 0..len {
        let is_largest = if x[at].widen() == y[at].widen() { u32::MAX } else { 0 };
        let share = f32::from_bits(dy[at].widen().to_bits() & is_largest & open[at]);
        open[at] &= !is_largest;
        dx[at] = T::narrow(dx[at].widen() + share);
    }
}

/// `y[n][c]` = mean of `x[pixel][n][c]` over the pixels.
pub fn average_forward<T: Value>(Exec { pool, isa }: Exec, x: &[T], y: &mut [f32]) {
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
pub fn average_backward<T: Value>(Exec { pool, isa }: Exec, dy: &[f32], dx: &mut [T]) {
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

/// Values of a task of the average: its sums, 16 KiB, stay in the first-level cache over all pixels.
const AVERAGE_LEN: usize = 1 << 12;
/// Values of a row that a task works on: those of nine pixels stay in the second-level cache.
const PART: usize = 512;
