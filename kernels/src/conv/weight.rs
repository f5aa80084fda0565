//! The gradient by weight: tasks sum ranges of pixels and images, and some parts are added up at the end.

use std::ops::Range;

use ndarray::{ArrayViewMut2, ArrayViewMut4, Axis};

use super::shape::Conv;
use super::window::Entry;
use crate::base::exec::Exec;
use crate::base::isa::Isa;
use crate::base::panel::{Matrix, PANEL, PrefetchNext, Strided};
use crate::base::tile::{IMAGES, view4};
use crate::gemm;
use crate::gemm::product::Product;
use crate::gemm::strassen::{self, Transposed};
use crate::parallel::DisjointBlocks;

/// Rows of a gradient by weight (of 64 columns, over all taps) in one task: 128 KiB, which stay in the second-level
/// cache over all steps of the sum.
const TASK_ROWS: usize = 512;
/// The fewest, for many threads: below it the strips of `dy` are packed for too few products.
const TASK_ROWS_MIN: usize = 32;
/// Panels of a task on tiles, at most: what is transposed once is then read four times, and their sums (four times 128
/// KiB of fewer rows) still fit the second-level cache.
const WIDE: usize = 4;
/// Tasks of a gradient by weight that are enough. A number of its own and no function of the threads, so that the
/// bits are not one either; 32 threads have one each.
const TASKS: usize = 32;
/// Values of all parts of a gradient by weight: 1 MiB, which are added up from the cache. Layers with more weights
/// have tasks enough without parts.
const PARTS_MAX: usize = 1 << 18;

impl Conv {
    /// Tap by tap and image by image.
    pub(super) fn sum_parts<X: Product, T: Product>(
        &self,
        exec: Exec,
        x: &[X],
        dy: &[T],
        dw: &mut [f32],
        scratch: &mut [f32],
        strips: impl Fn(Matrix<T>, &mut [X::Word]) + Sync,
    ) {
        let n = x.len() / self.input_len(1);
        assert_eq!((x.len(), dy.len()), (self.input_len(n), self.output_len(n)));
        let operands = Operands { x, dy, n };
        if X::WORD > 1 && exec.isa.has_tiles() {
            let cut = self.wide(n);
            let state = Packed::<_, WIDE>::default;
            self.split(exec, cut, dw, scratch, state, |packed, task, block| {
                self.sum_weights(exec.isa, operands, task, &strips, packed, block);
            });
            return;
        }
        let (cut, state) = (self.single(n), Packed::<_, 1>::default);
        self.split(exec, cut, dw, scratch, state, |packed, task, block| {
            self.sum_weights(exec.isa, operands, task, &strips, packed, block);
        });
    }

    /// Two panels at a time by Strassen's product, as [`Conv::pairs`] are cut.
    pub(super) fn sum_pairs(
        &self,
        exec: Exec,
        cut: Cut,
        x: &[f32],
        dy: &[f32],
        dw: &mut [f32],
        scratch: &mut [f32],
    ) {
        let (isa, channels, k, half) = (exec.isa, self.channels_in, self.channels_out, cut.rows[1]);
        let state = || ([0.0; strassen::RIGHT], [0.0; strassen::products_len(TASK_ROWS)]);
        self.split(exec, cut, dw, scratch, state, |(right, sums), task, block| {
            let Task { steps, panel, channel } = task;
            let sums = &mut sums[..strassen::products_len(2 * block.dim().2)];
            let mut quarters = quarters(block);
            let begun = steps.start;
            let from = |step: usize| {
                let row = step * strassen::STEP;
                let x = x.get(row * channels + channel..).unwrap_or(&[]);
                (x, dy.get(row * k + panel * PANEL..).unwrap_or(&[]))
            };
            for step in steps.clone() {
                let ((x, dy), (next_x, next_dy)) = (from(step), from(step + 1));
                strassen::sum_right(isa, Strided { data: dy, stride: k }, right);
                let operands = Transposed {
                    a: Strided { data: x, stride: channels },
                    half,
                    right,
                    next_a: next_x,
                    next_b: Strided { data: next_dy, stride: k },
                };
                strassen::multiply_transposed(isa, operands, sums, step > begun);
            }
            strassen::join(isa, sums, quarters.each_mut().map(|quarter| quarter.view_mut()));
            if steps.end == cut.steps {
                let (x, dy) = from(cut.steps);
                let rows = dy.len().div_ceil(k);
                let (x, dy) =
                    (Strided { data: x, stride: channels }, Strided { data: dy, stride: k });
                add_rows(isa, rows, x, dy, half, right, quarters);
            }
        });
    }

    /// Calls `run(state, task, block)` for all parts of `dw`.
    fn split<S>(
        &self,
        Exec { pool, isa }: Exec,
        cut: Cut,
        dw: &mut [f32],
        scratch: &mut [f32],
        state: impl Fn() -> S + Sync,
        run: impl Fn(&mut S, Task, ArrayViewMut4<f32>) + Sync,
    ) {
        assert_eq!(dw.len(), self.weights());
        let (splits, all) = (self.splits(cut), self.channels_out / PANEL);
        let parts = if splits == 1 { &mut *dw } else { &mut scratch[..splits * self.weights()] };
        let parts = view4(parts, [splits * all, cut.rows[0], cut.rows[1], PANEL]);
        let [outer, inner] = cut.block_for(splits * all, pool.threads());
        let parts = DisjointBlocks::new(parts, [cut.panels, outer, inner, PANEL]);
        pool.for_each_block_with(parts, state, |state, [part, outer, inner, _], block| {
            let (split, panel) = (part / all, part % all);
            let steps = split * cut.steps / splits..(split + 1) * cut.steps / splits;
            run(state, Task { steps, panel, channel: outer * cut.rows[1] + inner }, block);
        });
        if splits > 1 {
            add_up(Exec::new(pool, isa), &scratch[..splits * dw.len()], dw);
        }
    }

    /// Values of all parts, where there are several.
    pub(super) fn parts_len(&self, n: usize) -> usize {
        let cuts = [Some(self.single(n)), Some(self.wide(n)), self.pairs(n)];
        let splits = cuts.into_iter().flatten().map(|cut| self.splits(cut)).max().unwrap_or(1);
        if splits == 1 { 0 } else { splits * self.weights() }
    }

    /// One panel at a time, of all taps; as many rows as stay in the second-level cache.
    fn single(&self, n: usize) -> Cut {
        let rows = (TASK_ROWS / self.taps()).next_multiple_of(PANEL).min(self.channels_in);
        Cut {
            steps: self.steps(n),
            panels: 1,
            rows: [self.taps(), self.channels_in],
            block: [self.taps(), rows],
        }
    }

    /// As many panels at a time as share what is transposed for tiles, which takes as long as the products of one;
    /// of as many rows in all.
    fn wide(&self, n: usize) -> Cut {
        let cut = self.single(n);
        let mut panels = WIDE;
        while !(self.channels_out / PANEL).is_multiple_of(panels) {
            panels /= 2;
        }
        let rows = (cut.block[1] / panels).next_multiple_of(PANEL).min(self.channels_in);
        Cut { panels, block: [self.taps(), rows], ..cut }
    }

    /// Two panels at a time by Strassen's product, where it can be taken on vector tiers: as upper and lower rows
    /// those half a block apart, whatever a task has of them.
    pub(super) fn pairs(&self, n: usize) -> Option<Cut> {
        let channels = [self.channels_in, self.channels_out];
        let fits = channels.iter().all(|channels| channels.is_multiple_of(strassen::COLUMNS));
        let steps = self.output[0] * self.output[1] * n / strassen::STEP;
        if !(self.is_fast && self.is_pointwise && fits && steps > 0) {
            return None;
        }
        // It ends at 64: there are whole pairs of panels.
        let mut half = TASK_ROWS / 2;
        while !self.channels_in.is_multiple_of(2 * half) {
            half /= 2;
        }
        Some(Cut { steps, panels: 2, rows: [self.channels_in / half, half], block: [2, half] })
    }

    /// Steps of the sum over pixels and images.
    fn steps(&self, n: usize) -> usize {
        let (pixels, n) = self.rows(self.output, n);
        pixels * n.div_ceil(IMAGES)
    }

    /// One task of the gradient by weight.
    fn sum_weights<X: Product, T: Product, const N: usize>(
        &self,
        isa: Isa,
        Operands { x, dy, n }: Operands<X, T>,
        Task { steps, panel, channel }: Task,
        strips: &impl Fn(Matrix<T>, &mut [X::Word]),
        packed: &mut Packed<X::Word, N>,
        mut block: ArrayViewMut4<f32>,
    ) {
        let (k, channels) = (self.channels_out, self.channels_in);
        let (pixels, n) = self.rows(self.output, n);
        let chunks = n.div_ceil(IMAGES);
        let place = |step: usize| [step / chunks, step % chunks * IMAGES];
        let gradient = |[pixel, image]: [usize; 2], panel: usize| {
            &dy[(pixel * n + image) * k + panel * PANEL..]
        };
        let input = |entry: &Entry, image: usize, c: usize| {
            &x[(entry.pixel as usize * n + image) * channels + c..]
        };
        let Packed { dy: packed, columns } = packed;
        let mut begun = 0_u64;
        for step in steps {
            let here @ [pixel, image] = place(step);
            let rows = IMAGES.min(n - image);
            for (dy, packed) in (panel..).zip(packed.iter_mut()).take(block.dim().0) {
                let dy = Matrix { data: gradient(here, dy), rows, cols: PANEL, stride: k };
                strips(dy, packed);
            }
            let next_place @ [pixel_after, after] = place((step + 1).min(pixels * chunks - 1));
            let entries = self.forward.of(pixel);
            let ahead = self.forward.of(pixel_after).first();
            for (index, entry) in entries.iter().enumerate() {
                let tap = entry.tap as usize;
                let mut tiles = block.index_axis_mut(Axis(1), tap);
                for (chunk, mut tiles) in tiles.axis_chunks_iter_mut(Axis(1), X::CHUNK).enumerate()
                {
                    let c = channel + chunk * X::CHUNK;
                    let data = input(entry, image, c);
                    let x = Matrix { data, rows, cols: tiles.dim().1, stride: channels };
                    let next = PrefetchNext {
                        a: match entries.get(index + 1) {
                            Some(entry) => input(entry, image, c),
                            None => ahead.map_or(data, |entry| input(entry, after, c)),
                        },
                        a_stride: channels,
                        b: gradient(next_place, panel),
                        b_stride: k,
                        rows_at_once: X::WORD,
                    };
                    let x = X::columns(isa, x, columns);
                    let goes_on = begun >> tap & 1 == 1;
                    for (tile, packed) in tiles.outer_iter_mut().zip(&*packed) {
                        X::multiply_transposed(isa, x, packed, next, tile, goes_on);
                    }
                }
                begun |= 1 << tap;
            }
        }
        for (tap, mut tiles) in block.axis_iter_mut(Axis(1)).enumerate() {
            if begun >> tap & 1 == 0 {
                tiles.fill(0.0);
            }
        }
    }

    /// Into how many ranges the steps of a sum are cut: enough for many threads, few enough that adding up the
    /// parts costs little. No function of the threads.
    fn splits(&self, cut: Cut) -> usize {
        let tasks = cut.tasks(self.channels_out / PANEL, cut.block);
        let room = PARTS_MAX / self.weights();
        (TASKS / tasks).min(room).min(cut.steps).max(1)
    }
}

/// What a gradient by weight is made of.
#[derive(Clone, Copy)]
struct Operands<'a, X, T> {
    x: &'a [X],
    dy: &'a [T],
    /// Images.
    n: usize,
}

/// A part of a gradient by weight: some panels from one on, by rows from an input channel on.
struct Task {
    /// Of the sum over pixels and images.
    steps: Range<usize>,
    panel: usize,
    channel: usize,
}

/// How a gradient by weight is cut into tasks.
#[derive(Clone, Copy)]
pub(super) struct Cut {
    /// Steps of the sum.
    steps: usize,
    /// Panels of a task.
    panels: usize,
    /// The rows of a panel, as two axes.
    rows: [usize; 2],
    /// Rows of a task.
    block: [usize; 2],
}

impl Cut {
    /// Tasks of so many panels, if they have such rows.
    fn tasks(&self, panels: usize, block: [usize; 2]) -> usize {
        panels / self.panels * self.rows[0].div_ceil(block[0]) * self.rows[1].div_ceil(block[1])
    }

    /// Rows of a task: fewer where there would be less than one for each thread. No sum depends on it.
    fn block_for(&self, panels: usize, threads: usize) -> [usize; 2] {
        let [outer, mut inner] = self.block;
        while inner > TASK_ROWS_MIN && self.tasks(panels, [outer, inner]) < threads {
            inner = (inner / 2).next_multiple_of(TASK_ROWS_MIN);
        }
        [outer, inner]
    }
}

/// The quarters of two panels of upper and lower rows.
fn quarters(block: ArrayViewMut4<f32>) -> [ArrayViewMut2<f32>; 4] {
    let (left, right) = block.split_at(Axis(0), 1);
    let [left, right] = [left, right].map(|panel| panel.index_axis_move(Axis(0), 0));
    let [left, right] = [left, right].map(|panel| panel.split_at(Axis(0), 1));
    [left.0, right.0, left.1, right.1].map(|quarter| quarter.index_axis_move(Axis(0), 0))
}

/// Adds the last rows, fewer than a step, to the quarters the direct way.
fn add_rows(
    isa: Isa,
    rows: usize,
    x: Strided<f32>,
    dy: Strided<f32>,
    half: usize,
    strips: &mut [f32],
    quarters: [ArrayViewMut2<f32>; 4],
) {
    for (number, mut quarter) in quarters.into_iter().enumerate() {
        let (lower, panel) = (number / 2, number % 2);
        for from in (0..rows).step_by(IMAGES) {
            let rows = IMAGES.min(rows - from);
            let dy = Matrix {
                data: &dy.data[from * dy.stride + panel * PANEL..],
                rows,
                cols: PANEL,
                stride: dy.stride,
            };
            gemm::strips(dy, strips, |value| value);
            let data = &x.data[from * x.stride + lower * half..];
            let x = Matrix { data, rows, cols: quarter.nrows(), stride: x.stride };
            let next = PrefetchNext::<f32, f32>::default();
            gemm::multiply_transposed(isa, x, strips, next, quarter.view_mut(), true);
        }
    }
}

/// `dw` = the sum of the parts, in their order.
fn add_up(Exec { pool, isa }: Exec, parts: &[f32], dw: &mut [f32]) {
    // 16 KiB: the sum stays in the first-level cache while all parts pass.
    const LEN: usize = 1 << 12;
    let len = dw.len();
    pool.for_each_chunk(dw, LEN, |index, dw| {
        isa.run(
            #[inline(always)]
            || {
                for (number, part) in parts.chunks_exact(len).enumerate() {
                    let part = &part[index * LEN..][..dw.len()];
                    if number == 0 {
                        dw.copy_from_slice(part);
                        continue;
                    }
                    for (sum, &value) in dw.iter_mut().zip(part) {
                        *sum += value;
                    }
                }
            },
        );
    });
}

/// Columns that are packed at a time where they have to be: as many as a format's chunk has.
const COLUMNS: usize = 128;

/// Operands of a gradient by weight as its kernel reads them: by cache lines.
#[repr(align(64))]
struct Packed<W, const N: usize> {
    /// Of each panel.
    dy: [[W; IMAGES * PANEL]; N],
    columns: [W; IMAGES / 2 * COLUMNS],
}

impl<W: Copy + Default, const N: usize> Default for Packed<W, N> {
    fn default() -> Self {
        let (dy, columns) =
            ([[W::default(); IMAGES * PANEL]; N], [W::default(); IMAGES / 2 * COLUMNS]);
        Self { dy, columns }
    }
}
