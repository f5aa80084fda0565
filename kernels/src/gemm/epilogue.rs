//! `Epilogue`: what happens to a result while it is in registers or in the cache, so that it costs no pass over
//! memory: the sums for statistics, the mask of a ReLU, the fold of inference.
//!
//! It is done tile by tile: up to 128 images of a pixel by 64 channels. The vector tiers take its
//! sums in `f32` over six rows at a time (at the end of Strassen's product fewer) and then over those, the
//! portable tier row by row: in a fixed order either way, whether it is done where it is computed or
//! visited later.

use ndarray::ArrayViewMut2;

use crate::base::exec::Exec;
use crate::base::isa::Isa;
use crate::base::panel::{PANEL, Prefetch, Strided};
use crate::base::tile::{Extent, Target, Tile, Tiling, for_each_tile};
use crate::base::value::Value;
use crate::norm::folded::{Folded, Mask, Normalised};

/// What happens to a result.
#[derive(Clone, Copy)]
pub enum Epilogue<'a, T> {
    /// Nothing.
    Keep,
    /// Sums of values less a pivot, and of the squares of that, for [`Statistics::set`]; the pivot is near
    /// the mean (the running one serves).
    ///
    /// [`Statistics::set`]: crate::Statistics::set
    Measure(&'a [f32]),
    /// A gradient is cleared where the ReLU did; sums are taken of `g`, and of `g*(z-mean)` for one
    /// normalisation or two, for [`Statistics::backward`].
    ///
    /// [`Statistics::backward`]: crate::Statistics::backward
    Mask(Mask<'a, T>, Normalised<'a, T>, Option<Normalised<'a, T>>),
    /// Values become `value*scale + shift`, plus the identity, and at least 0 where the last is set.
    Fold(&'a Folded, Option<&'a [T]>, bool),
}

impl<'a, T: Value> Epilogue<'a, T> {
    /// What it reads of the size of the result; empty slices are none.
    fn reads(&self) -> [&'a [T]; 3] {
        match *self {
            Self::Keep | Self::Measure(_) => [&[]; 3],
            Self::Fold(_, identity, _) => [identity.unwrap_or(&[]), &[], &[]],
            Self::Mask(Mask::Folded(_), of, other) => [of.z, other.map_or(&[], |of| of.z), &[]],
            Self::Mask(Mask::Output(y), of, other) => [y, of.z, other.map_or(&[], |of| of.z)],
        }
    }

    /// What it reads next to a tile that begins at a row and a channel of so many.
    pub(crate) fn beside(&self, row: usize, channel: usize, channels: usize) -> Prefetch {
        let mut beside = Prefetch::of::<T>(channels);
        for (start, data) in beside.starts.iter_mut().zip(self.reads()) {
            *start = data.get(row * channels + channel..).map(|data| data.as_ptr().cast());
        }
        beside
    }
}

/// How the tiles of a result end.
#[derive(Clone, Copy)]
pub struct Store<'a, T> {
    pub(crate) epilogue: Epilogue<'a, T>,
    /// Channels of the result: the distance of rows of what is read beside.
    pub(crate) channels: usize,
    /// Whether what was computed is added to what is there.
    pub(crate) add: bool,
    /// Whether it is written past the caches.
    pub(crate) streamed: bool,
    /// Whether rows are taken as Strassen's product makes them: the last ones, less than a block, by halves.
    pub(crate) in_blocks: bool,
}

impl<'a, T: Value> Store<'a, T> {
    /// The end of a result of so many channels that is written into the caches, in place of what was there.
    pub(crate) fn of(epilogue: Epilogue<'a, T>, channels: usize) -> Self {
        Self { epilogue, channels, add: false, streamed: false, in_blocks: false }
    }

    /// Ends a tile that was computed elsewhere: rows of its columns.
    pub(crate) fn write<S: Value>(&self, isa: Isa, source: Strided<S>, mut tile: Tile<T>) {
        match isa {
            Isa::Portable => {
                let rows = (0..tile.values.nrows()).map(|row| &source.data[row * source.stride..]);
                self.put(rows, &mut tile.values);
                self.epilogue.plainly(tile);
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Vector(tier) => tier.write(self, source, tile),
        }
    }

    /// Ends a tile that lies where it belongs.
    pub(crate) fn write_in_place(&self, isa: Isa, tile: Tile<T>) {
        assert!(!self.add && !self.streamed, "there is nothing to write");
        match isa {
            Isa::Portable => self.epilogue.plainly(tile),
            #[cfg(target_arch = "x86_64")]
            Isa::Vector(tier) => tier.write_in_place(self, tile),
        }
    }

    /// The portable tier's end of a tile whose sums are rows of 64 values.
    pub(crate) fn plainly(&self, sums: &[f32], mut tile: Tile<T>) {
        self.put(sums.chunks(PANEL), &mut tile.values);
        self.epilogue.plainly(tile);
    }

    fn put<'s, S: Value>(
        &self,
        rows: impl Iterator<Item = &'s [S]>,
        values: &mut ArrayViewMut2<T>,
    ) {
        for (mut target, row) in values.rows_mut().into_iter().zip(rows) {
            for (target, value) in target.iter_mut().zip(row) {
                let before = if self.add { target.widen() } else { 0.0 };
                *target = T::narrow(before + value.widen());
            }
        }
    }

    /// What is read next to a tile: by the epilogue, and where it is added to.
    pub(crate) fn beside(&self, tile: &Tile<T>) -> Prefetch {
        let mut beside = self.epilogue.beside(tile.row, tile.channel, self.channels);
        if self.add && tile.values.strides()[0].unsigned_abs() == self.channels {
            beside.starts[3] = Some(tile.values.as_ptr().cast());
        }
        beside
    }
}

/// Finishes the tiles of an activation `[pixels][n][channels]` that is already there.
pub fn run_epilogue<T: Value>(
    exec: Exec,
    shape: Extent,
    values: &mut [T],
    sums: &mut [f32],
    epilogue: Epilogue<T>,
) {
    run_epilogue_in_blocks(exec, shape, Target { values, sums }, epilogue, false);
}

/// As [`run_epilogue`], of tiles that Strassen's product made where `in_blocks` is set.
pub(crate) fn run_epilogue_in_blocks<T: Value>(
    Exec { pool, isa }: Exec,
    shape: Extent,
    target: Target<T>,
    epilogue: Epilogue<T>,
    in_blocks: bool,
) {
    if matches!(epilogue, Epilogue::Keep) {
        return;
    }
    let store = Store { in_blocks, ..Store::of(epilogue, shape.channels) };
    for_each_tile(
        pool,
        Tiling { shape, panels: 1 },
        target,
        |_| 1,
        || (),
        |(), _, tile| {
            store.write_in_place(isa, tile);
        },
    );
}

// The portable tier.

impl<T: Value> Epilogue<'_, T> {
    fn plainly(&self, tile: Tile<T>) {
        match *self {
            Self::Keep => {}
            Self::Measure(pivot) => measure(pivot, tile),
            Self::Mask(mask, of, other) => mask_and_sum(mask, [Some(of), other], tile),
            Self::Fold(fold, identity, relu) => fold_tile(fold, identity, relu, tile),
        }
    }
}

fn measure<T: Value>(pivot: &[f32], tile: Tile<T>) {
    let Tile { channel, values, mut sums, .. } = tile;
    for (c, z) in values.columns().into_iter().enumerate() {
        let (mut first, mut second) = (0.0, 0.0);
        for z in z {
            let deviation = z.widen() - pivot[channel + c];
            first += deviation;
            second += deviation * deviation;
        }
        (sums[[0, c]], sums[[1, c]]) = (first, second);
    }
}

fn mask_and_sum<T: Value>(mask: Mask<T>, of: [Option<Normalised<T>>; 2], tile: Tile<T>) {
    let Tile { row, channel, mut values, mut sums } = tile;
    let [Some(first), _] = of else { return };
    let channels = first.mean.len();
    for (c, column) in values.columns_mut().into_iter().enumerate() {
        let channel = channel + c;
        let mut totals = [0.0; 3];
        for (index, g) in column.into_iter().enumerate() {
            let at = (row + index) * channels + channel;
            let passes = match mask {
                Mask::Output(y) => y[at].widen() > 0.0,
                Mask::Folded(Folded { scale, shift }) => {
                    first.z[at].widen() * scale[channel] + shift[channel] > 0.0
                }
            };
            let kept = if passes { g.widen() } else { 0.0 };
            *g = T::narrow(kept);
            totals[0] += kept;
            for (total, of) in totals[1..].iter_mut().zip(of) {
                *total += of.map_or(0.0, |of| kept * (of.z[at].widen() - of.mean[channel]));
            }
        }
        for (sum, total) in sums.column_mut(c).iter_mut().zip(totals) {
            *sum = total;
        }
    }
}

fn fold_tile<T: Value>(fold: &Folded, identity: Option<&[T]>, relu: bool, tile: Tile<T>) {
    let Tile { row, channel, mut values, .. } = tile;
    let floor = if relu { 0.0 } else { f32::NEG_INFINITY };
    let channels = fold.scale.len();
    for ((index, c), value) in values.indexed_iter_mut() {
        let (at, c) = ((row + index) * channels + channel + c, channel + c);
        let added = identity.map_or(0.0, |identity| identity[at].widen());
        let folded = value.widen() * fold.scale[c] + fold.shift[c] + added;
        *value = T::narrow(folded.max(floor));
    }
}
