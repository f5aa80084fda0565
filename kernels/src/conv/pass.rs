//! A pass that writes pixels: forward, or gradient by input.

use ndarray::{ArrayViewMut2, Axis};

use crate::gemm::{Beside, PANEL, Term};
use crate::isa::Isa;
use crate::pool::Pool;
use crate::strassen;
use crate::taps::{Entry, KERNEL_MAX, Table};
use crate::tile::{IMAGES, Tile, for_each_tile, is_streamed, rows_of, stream, visit_tiles};
use crate::value::Value;

/// How each pixel of the target is made of pixels of the source.
pub(super) struct Pass<'a> {
    pub(super) table: &'a Table,
    pub(super) taps: usize,
    /// Channels of the source.
    pub(super) k: usize,
    /// Whether Strassen's product may be taken.
    pub(super) is_fast: bool,
}

/// Tasks that are enough for Strassen's product to make half as many of them.
const TASKS: usize = 16;

impl Pass<'_> {
    /// Computes `y` and finishes its tiles: as soon as each is computed, if it is computed in the same.
    pub(super) fn finish<T: Value>(
        &self,
        exec: (&Pool, Isa),
        operands: (&[T], &[T]),
        ((pixels, n), tiles): ((usize, usize), (usize, usize, usize)),
        (y, sums): (&mut [T], &mut [f32]),
        accumulate: bool,
        (beside, finish): (&[&[T]], impl Fn(Tile<T>) + Sync),
    ) {
        let shape = (pixels, n, tiles.2);
        if shape == tiles {
            return self.run(exec, operands, shape, (y, sums), accumulate, (beside, finish));
        }
        self.run(exec, operands, shape, (y, sums), accumulate, (&[], |_| {}));
        visit_tiles(exec.0, tiles, y, sums, finish);
    }

    /// Computes the tiles of `y`, an activation of such a shape, and finishes each.
    fn run<T: Value>(
        &self,
        (pool, isa): (&Pool, Isa),
        operands: (&[T], &[T]),
        shape: (usize, usize, usize),
        (y, sums): (&mut [T], &mut [f32]),
        accumulate: bool,
        (beside, finish): (&[&[T]], impl Fn(Tile<T>) + Sync),
    ) {
        let (_, n, channels) = shape;
        let panels = if self.takes_pairs::<T>(isa, shape) { 2 } else { 1 };
        let streamed = is_streamed(y);
        let held = || [T::default(); 2 * IMAGES * PANEL];
        let tiles = (shape, panels);
        for_each_tile(pool, tiles, (y, sums), held, |held, (pixel, image), mut tile| {
            let Tile { row, channel, .. } = tile;
            let multiply = |c: ArrayViewMut2<T>| {
                let beside = std::array::from_fn(|panel| {
                    let mut ahead = Beside { stride: channels, ..Beside::NOTHING };
                    for (start, data) in ahead.starts.iter_mut().zip(beside) {
                        *start =
                            data.get(row * channels + channel + panel * PANEL..).unwrap_or(&[]);
                    }
                    ahead
                });
                self.multiply(isa, operands, (pixel, n, image, channel), (c, accumulate), beside);
            };
            if !streamed {
                multiply(tile.values.view_mut());
                return tile.for_each_panel(&finish);
            }
            let Tile { values: place, sums, .. } = tile;
            let held = &mut held[..place.len()];
            if accumulate {
                // In the widest vectors, so that many lines are on their way at once.
                isa.run(
                    #[inline(always)]
                    || {
                        let rows = held.chunks_exact_mut(place.ncols()).zip(place.rows());
                        for (held, row) in rows {
                            held.copy_from_slice(row.to_slice().expect("rows are contiguous"));
                        }
                    },
                );
            }
            let columns = place.ncols();
            multiply(rows_of(held, columns));
            let values = rows_of(held, columns);
            Tile { row, channel, values, sums }.for_each_panel(&finish);
            stream(isa, held, place);
        });
    }

    /// Whether tasks compute two panels, so that Strassen's product can be taken.
    fn takes_pairs<T: Value>(
        &self,
        isa: Isa,
        (pixels, n, channels): (usize, usize, usize),
    ) -> bool {
        let tasks = pixels * n.div_ceil(IMAGES) * channels / strassen::COLUMNS;
        self.is_fast
            && T::has_pairs(isa)
            && strassen::is_worth(self.k)
            && channels.is_multiple_of(strassen::COLUMNS)
            && tasks >= TASKS
    }

    /// One tile, of one or two panels.
    fn multiply<T: Value>(
        &self,
        isa: Isa,
        operands: (&[T], &[T]),
        (pixel, n, image, channel): (usize, usize, usize, usize),
        (mut c, accumulate): (ArrayViewMut2<T>, bool),
        beside: [Beside<T>; 2],
    ) {
        let at = |panel: usize| (pixel, n, image, channel + panel * PANEL);
        let is_pair = c.ncols() == strassen::COLUMNS && strassen::cuts(c.nrows());
        if is_pair && !self.table.of(pixel).is_empty() {
            return self.sum(operands, at(0), |left, k| {
                self.sum(operands, at(1), |right, _| {
                    T::multiply_pair(isa, [left, right], k, c, accumulate, beside);
                });
            });
        }
        for (panel, c) in c.axis_chunks_iter_mut(Axis(1), PANEL).enumerate() {
            self.sum(operands, at(panel), |terms, k| {
                T::multiply(isa, terms, k, c, accumulate, beside[panel]);
            });
        }
    }

    /// Hands the terms of a tile to `product`, with `k` and the distance of rows.
    pub(super) fn sum<T: Value>(
        &self,
        (source, panels): (&[T], &[T]),
        (pixel, n, image, channel): (usize, usize, usize, usize),
        product: impl FnOnce(&[Term<T>], (usize, usize)),
    ) {
        let Self { table, taps, k, .. } = *self;
        let panel = channel / PANEL * taps;
        let mut terms = [Term { a: &[][..], b: &[][..] }; KERNEL_MAX * KERNEL_MAX];
        let entries = table.of(pixel);
        for (term, &Entry { tap, pixel }) in terms.iter_mut().zip(entries) {
            let (pixel, tap) = (pixel as usize, tap as usize);
            *term = Term {
                a: &source[(pixel * n + image) * k..(pixel + 1) * n * k],
                b: &panels[(panel + tap) * k * PANEL..][..k * PANEL],
            };
        }
        product(&terms[..entries.len()], (k, k));
    }
}
