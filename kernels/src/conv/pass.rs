//! A pass that writes pixels: forward, or gradient by input.

use std::ops::Range;

use super::operand::Operand;
use super::transpose::Transposed;
use super::window::{Entry, KERNEL_MAX, Table};
use crate::base::exec::Exec;
use crate::base::isa::Isa;
use crate::base::panel::{PANEL, Strided};
use crate::base::tile::{
    Extent, IMAGES, Target, Tile, Tiling, for_each_part, for_each_tile, for_each_tile_in,
    for_each_tile_of_rows, is_streamed,
};
use crate::gemm::epilogue::{Epilogue, Store, run_epilogue_in_blocks};
use crate::gemm::product::Product;
use crate::gemm::{self, Products, Term, strassen};
use crate::norm::elementwise::Rows;
use crate::parallel::DisjointChunks;

/// How each pixel of the target is made of pixels of the source.
pub(super) struct Pass<'a> {
    pub(super) table: &'a Table,
    pub(super) taps: usize,
    /// Channels of the source.
    pub(super) k: usize,
    /// Whether Strassen's product may be taken.
    pub(super) is_fast: bool,
    /// Whether each row of the target is made of one row of the source.
    pub(super) is_pointwise: bool,
}

/// The weights that a pass reads.
pub(super) enum Weights<'a, T> {
    /// As panels `[channels/64][taps][k][64]`.
    Panels(&'a [T]),
    /// To be transposed, by the tasks where each alone reads its own; with room for as many.
    Transposed(Transposed<'a>, &'a mut [T]),
}

/// What a pass reads, as it lies in memory.
#[derive(Clone, Copy)]
struct Operands<'a, T> {
    source: &'a [T],
    /// Panels of weights, from the `first` on.
    panels: &'a [T],
    first: usize,
}

/// Where in an activation of `n` images a product is.
#[derive(Clone, Copy)]
struct Place {
    pixel: usize,
    image: usize,
    n: usize,
}

/// How tiles are computed, and what becomes of them.
struct Work<'a, T> {
    isa: Isa,
    store: Store<'a, T>,
    /// Whether a tile is a pair of panels for Strassen's product.
    is_pair: bool,
}

/// The activation that a pass writes.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    /// Its pixels, and the rows of each that tasks compute.
    pub(super) rows: (usize, usize),
    /// As it is cut into tiles that are finished.
    pub(super) tiles: Extent,
}

/// Tasks that are enough for Strassen's product to make half as many of them: for fewer, threads would wait longer
/// than an eighth of the work saves. No function of the threads: the bits must not be one.
const TASKS: usize = 8;
/// Length of a sum that costs as much as to write its tile: 32 multiply-adds of 16 values take as long as their
/// cache line from memory, about. Only the shares that threads begin with depend on it.
const SHORT: usize = 32;
/// Bytes of weights that a task of several panels reads for each six rows: they stay in the second-level cache.
/// `cargo bench -p kernels -- cifar avx512 64 1 1x1` shows it.
const WEIGHTS: usize = 256 << 10;

impl Pass<'_> {
    /// Computes `y`, or adds to it, and finishes its tiles: as soon as each is computed, if it is computed in
    /// the same.
    pub(super) fn write<T: Product>(
        &self,
        exec: Exec,
        mut source: Operand<T>,
        weights: Weights<T>,
        Layout { rows: (pixels, n), tiles }: Layout,
        target: Target<T>,
        store: Store<T>,
    ) {
        let (shape, streamed) = (Extent { pixels, n, ..tiles }, is_streamed(target.values));
        let part = self.part::<T>(exec, shape);
        let weights = match weights {
            Weights::Transposed(transposed, scratch)
                if part.is_some() || !self.reads_once(pixels, n) =>
            {
                transposed.all(exec, scratch);
                Weights::Panels(scratch)
            }
            weights => weights,
        };
        let store = Store { streamed, ..store };
        if let (Operand::Recompute(source, rows), Weights::Panels(all)) = (&mut source, &weights)
            && pixels == 1
            && self.is_pointwise
            && self.task_panels::<T>(exec.isa, shape).1 == tiles.channels / PANEL
        {
            return self.run_made(exec, source, *rows, all, target, store);
        }
        let source = source.make(exec);
        if shape == tiles && part.is_none() {
            return self.run(exec, source, weights, shape, target, store);
        }
        let (epilogue, Target { values, sums }) = (store.epilogue, target);
        let store = Store { epilogue: Epilogue::Keep, ..store };
        match (part, weights) {
            (Some(images), Weights::Panels(panels)) => {
                let operands = Operands { source, panels, first: 0 };
                self.run_parts(exec, operands, shape, images, values, store);
            }
            (_, weights) => {
                let target = Target { values: &mut *values, sums: &mut *sums };
                self.run(exec, source, weights, shape, target, store);
            }
        }
        let is_part = shape == tiles && part.is_some();
        let in_blocks = is_part && self.takes_pairs::<T>(exec.isa, shape);
        run_epilogue_in_blocks(exec, tiles, Target { values, sums }, epilogue, in_blocks);
    }

    /// Computes the tiles of `y`, an activation of such a shape.
    fn run<T: Product>(
        &self,
        Exec { pool, isa }: Exec,
        source: &[T],
        weights: Weights<T>,
        shape: Extent,
        target: Target<T>,
        store: Store<T>,
    ) {
        let (is_pair, panels) = self.task_panels::<T>(isa, shape);
        let accumulators = || [0.0; strassen::ACCUMULATORS];
        let (tiling, n) = (Tiling { shape, panels }, shape.n);
        let work = Work { isa, store, is_pair };
        let cost = |pixel| self.cost(pixel);
        match weights {
            Weights::Panels(panels) => for_each_tile(
                pool,
                tiling,
                target,
                cost,
                accumulators,
                |accumulators, (pixel, image), tile| {
                    let operands = Operands { source, panels, first: 0 };
                    self.multiply(&work, operands, Place { pixel, image, n }, accumulators, tile);
                },
            ),
            Weights::Transposed(transposed, scratch) => for_each_tile_in(
                pool,
                tiling,
                target,
                DisjointChunks::new(scratch, panels * self.taps * self.k * PANEL),
                cost,
                accumulators,
                |accumulators, (pixel, image), tile, panels| {
                    let first = tile.channel / PANEL;
                    self.transpose(isa, transposed, pixel, tile.channels(), panels);
                    let operands = Operands { source, panels, first };
                    self.multiply(&work, operands, Place { pixel, image, n }, accumulators, tile);
                },
            ),
        }
    }

    /// Computes parts of so many images of the tiles of `y`.
    fn run_parts<T: Product>(
        &self,
        Exec { pool, isa }: Exec,
        operands: Operands<T>,
        shape: Extent,
        images: usize,
        y: &mut [T],
        store: Store<T>,
    ) {
        let ((is_pair, panels), n) = (self.task_panels::<T>(isa, shape), shape.n);
        let accumulators = || [0.0; strassen::ACCUMULATORS];
        let work = Work { isa, store, is_pair };
        let tiling = Tiling { shape, panels };
        for_each_part(pool, tiling, images, y, accumulators, |accumulators, tile| {
            let place = Place { pixel: tile.row / n, image: tile.row % n, n };
            self.multiply(&work, operands, place, accumulators, tile);
        });
    }

    /// Images of a part of a tile, where tiles are fewer than threads: whole blocks of Strassen's product. What is
    /// computed does not depend on it; nor do sums over that, unless it was rounded.
    fn part<T: Product>(&self, Exec { pool, isa }: Exec, shape: Extent) -> Option<usize> {
        let Extent { pixels, n, channels } = shape;
        let (is_pair, panels) = self.task_panels::<T>(isa, shape);
        let tasks = pixels * n.div_ceil(IMAGES) * channels / (panels * PANEL);
        let images = n.min(IMAGES).div_ceil((pool.threads() / tasks).max(1));
        let images = images.next_multiple_of(strassen::BLOCK);
        let fits = T::WORD == 1 && (!is_pair || n.is_multiple_of(IMAGES));
        (fits && images < n.min(IMAGES)).then_some(images)
    }

    /// Computes all channels of some rows at a time, of rows that are made just before.
    fn run_made<T: Product>(
        &self,
        Exec { pool, isa }: Exec,
        source: &mut [T],
        made: Rows<T>,
        panels: &[T],
        target: Target<T>,
        store: Store<T>,
    ) {
        let channels = store.channels;
        made.assert_len(source.len());
        assert_eq!(made.channels(), self.k);
        let (is_pair, _) =
            self.task_panels::<T>(isa, Extent::new(1, target.values.len() / channels, channels));
        let accumulators = || [0.0; strassen::ACCUMULATORS];
        let (work, k) = (Work { isa, store, is_pair }, self.k);
        for_each_tile_of_rows(
            pool,
            channels,
            k,
            target,
            source,
            accumulators,
            |accumulators, tile, rows| {
                made.make_some(isa, tile.row * k, rows);
                let place = Place { pixel: 0, image: 0, n: tile.values.nrows() };
                let operands = Operands { source: rows, panels, first: 0 };
                self.multiply(&work, operands, place, accumulators, tile);
            },
        );
    }

    /// What a tile of a pixel costs, about: to write it is as much as a short sum.
    fn cost(&self, pixel: usize) -> usize {
        1 + self.table.of(pixel).len() * self.k / SHORT
    }

    /// Whether a task's panels are a pair for Strassen's product, and how many they are.
    fn task_panels<T: Product>(&self, isa: Isa, shape: Extent) -> (bool, usize) {
        let is_pair = self.takes_pairs::<T>(isa, shape);
        (is_pair, if is_pair { 2 } else { self.panels::<T>(shape.channels) })
    }

    /// Computes one tile.
    fn multiply<T: Product>(
        &self,
        &Work { isa, ref store, is_pair }: &Work<T>,
        operands: Operands<T>,
        place: Place,
        accumulators: &mut [f32; strassen::ACCUMULATORS],
        mut tile: Tile<T>,
    ) {
        if self.table.of(place.pixel).is_empty() {
            // No tap reaches it: a row of zeros, again and again.
            return store.write(isa, Strided { data: f32::zeros(), stride: 0 }, tile);
        }
        let multiply = |accumulators: &mut [f32], tile: Tile<T>| {
            self.sum(operands, place, tile.channel, |products| {
                T::multiply(isa, products, accumulators, store, tile);
            });
        };
        if !is_pair {
            return multiply(accumulators, tile);
        }
        let whole = IMAGES.min(place.n - place.image / IMAGES * IMAGES);
        if strassen::cuts(whole)
            && let (Some(source), Some(panels)) =
                (T::single(operands.source), T::single(operands.panels))
        {
            let operands = Operands { source, panels, first: operands.first };
            return self.sum(operands, place, tile.channel, |products| {
                strassen::multiply_to(isa, products, accumulators, store, tile);
            });
        }
        tile.panels().for_each(|tile| multiply(accumulators, tile));
    }

    /// Transposes the panels of some channels that a pixel is made with.
    fn transpose<T: Product>(
        &self,
        isa: Isa,
        transposed: Transposed,
        pixel: usize,
        channels: Range<usize>,
        scratch: &mut [T],
    ) {
        let len = self.k * PANEL;
        for (panel, scratch) in
            scratch.chunks_exact_mut(self.taps * len).take(channels.len() / PANEL).enumerate()
        {
            for entry in self.table.of(pixel) {
                let tap = entry.tap as usize;
                transposed.panel(
                    isa,
                    [channels.start / PANEL + panel, tap],
                    &mut scratch[tap * len..][..len],
                );
            }
        }
    }

    /// Whether over `n` images each weight is read by one task alone.
    fn reads_once(&self, pixels: usize, n: usize) -> bool {
        let mut entries = (0..pixels).flat_map(|pixel| self.table.of(pixel));
        let mut read = 0_u64;
        n <= IMAGES
            && entries.all(|entry| {
                let before = read;
                read |= 1 << entry.tap;
                read != before
            })
    }

    /// Whether tasks compute two panels, so that Strassen's product can be taken.
    fn takes_pairs<T: Product>(&self, isa: Isa, Extent { pixels, n, channels }: Extent) -> bool {
        let tasks = pixels * n.div_ceil(IMAGES) * channels / strassen::COLUMNS;
        self.is_fast
            && isa != Isa::Portable
            && T::WORD == 1
            && strassen::is_worth(self.k)
            && channels.is_multiple_of(strassen::COLUMNS)
            && tasks >= TASKS
    }

    /// Panels that a task computes where sums are short: their weights stay in the second-level cache, and what
    /// is read and written beside is one piece of memory.
    fn panels<T>(&self, channels: usize) -> usize {
        let depth = self.taps * self.k;
        let panels = WEIGHTS / (depth * PANEL * size_of::<T>());
        if depth > gemm::DEPTH { 1 } else { panels.clamp(1, channels / PANEL) }
    }

    /// Hands what makes up a tile to `product`.
    fn sum<T: Product>(
        &self,
        Operands { source, panels, first }: Operands<T>,
        Place { pixel, image, n }: Place,
        channel: usize,
        product: impl FnOnce(Products<T>),
    ) {
        let Self { table, taps, k, .. } = *self;
        let panel = (channel / PANEL - first) * taps;
        let mut terms = [Term { a: &[][..], b: &[][..] }; KERNEL_MAX * KERNEL_MAX];
        let entries = table.of(pixel);
        for (term, &Entry { tap, pixel }) in terms.iter_mut().zip(entries) {
            let (pixel, tap) = (pixel as usize, tap as usize);
            *term = Term {
                a: &source[(pixel * n + image) * k..(pixel + 1) * n * k],
                b: &panels[(panel + tap) * k * PANEL..],
            };
        }
        let terms = &terms[..entries.len()];
        product(Products { terms, k, stride: k, panel_stride: taps * k * PANEL });
    }

    /// As [`Pass::write`] of operands that are `f32` in every format.
    pub(super) fn write_images<T: Product>(
        &self,
        Exec { pool, isa }: Exec,
        source: &[f32],
        panels: &[f32],
        shape: Extent,
        target: Target<T>,
        epilogue: Epilogue<T>,
    ) {
        let streamed = is_streamed(target.values);
        let store = Store { streamed, ..Store::of(epilogue, shape.channels) };
        let accumulators = || [0.0; IMAGES * PANEL];
        let operands = Operands { source, panels, first: 0 };
        let cost = |pixel| self.cost(pixel);
        for_each_tile(
            pool,
            Tiling { shape, panels: 1 },
            target,
            cost,
            accumulators,
            |accumulators, (pixel, image), tile| {
                self.sum(operands, Place { pixel, image, n: shape.n }, tile.channel, |products| {
                    gemm::multiply_to(isa, products, accumulators, &store, tile);
                });
            },
        );
    }
}
