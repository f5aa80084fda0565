//! The end of a register tile: what happens to sums in registers, and where they are written to.

use std::ops::Range;

use ndarray::ArrayViewMut2;

use super::kernel::{Arithmetic, Enter, Kernel};
use super::rows::{LINE, Target};
use super::vector::Vector;
use crate::base::isa::Tier;
use crate::base::panel::{PANEL, Position, Strided};
use crate::base::tile::{SUMS, Tile};
use crate::base::value::Value;
use crate::gemm::epilogue::{Epilogue, Store};
use crate::gemm::strassen::BLOCK;
use crate::norm::folded::{Folded, Mask, Normalised};

/// Rows of a register tile: 6 x 64 columns fill 24 of 32 AVX-512 registers, 6 x 16 fill 12 of AVX2's 16; the rest
/// hold a row of the panel and a word of `a`. More rows would spill (half the speed), fewer load `b` more often.
pub(super) const ROWS: usize = 6;

/// `body` for each index below a constant of at most six. Written out, since what is indexed by a variable
/// would not stay in registers, and the compiler unrolls long bodies too late.
macro_rules! each {
    ($index:ident < $count:ident $body:block) => {
        each!(@ $index $count $body 0 1 2 3 4 5)
    };
    (@ $index:ident $count:ident $body:block $($value:literal)*) => {{
        $(if $value < $count {
            let $index: usize = $value;
            $body
        })*
    }};
}

/// Rows whose cache lines are asked for ahead where nothing is computed: 4 KiB of a panel, the latency of memory at
/// the pace of a copy.
const AHEAD: usize = 16;

/// How one tile ends, as raw pointers that were checked: (B) holds for all rows and columns of `out`.
pub(super) struct RawStore<T> {
    kind: Kind<T>,
    pub(super) out: Target<T>,
    /// Some panels.
    pub(super) columns: usize,
    /// Whether it is added to what is there.
    add: bool,
    /// Whether values are written, which lie there already where nothing changes them.
    written: bool,
    streamed: bool,
    in_blocks: bool,
    /// Rows of as many sums.
    sums: *mut f32,
    sums_stride: usize,
}

#[derive(Clone, Copy)]
enum Kind<T> {
    Keep,
    Measure(*const f32),
    Mask(Gate<T>, [Option<Of<T>>; 2]),
    /// With the identity, or null, and the least value.
    Fold(Constants, SideInput<T>, f32),
}

/// Where a gradient passes.
#[derive(Clone, Copy)]
enum Gate<T> {
    Output(SideInput<T>),
    Folded(SideInput<T>, Constants),
}

/// What was normalised, and the mean that was subtracted.
#[derive(Clone, Copy)]
struct Of<T> {
    z: SideInput<T>,
    mean: *const f32,
}

/// Factor and summand of each channel.
#[derive(Clone, Copy)]
struct Constants {
    scale: *const f32,
    shift: *const f32,
}

/// The rows next to those of a tile, as far apart as channels of the result.
#[derive(Clone, Copy)]
struct SideInput<T> {
    start: *const T,
    stride: usize,
}

impl<T: Value> SideInput<T> {
    const NOTHING: Self = Self { start: std::ptr::null(), stride: 0 };

    fn new(data: &[T], channels: usize, tile: &Tile<T>) -> Self {
        let (data, (rows, columns)) =
            (&data[tile.row * channels + tile.channel..], tile.values.dim());
        assert!(rows == 0 || (rows - 1) * channels + columns <= data.len());
        Self { start: data.as_ptr(), stride: channels }
    }

    /// # Safety
    /// The row and the columns from this one on are of the tile, and this is not nothing.
    #[inline(always)]
    unsafe fn load<V: Vector>(self, row: usize, column: usize) -> V {
        // SAFETY: (B).
        unsafe { V::load(self.start.add(row * self.stride + column)) }
    }

    #[inline(always)]
    fn prefetch<V: Vector>(self, row: usize, column: usize) {
        V::prefetch(self.start.wrapping_add(row * self.stride + column).cast());
    }
}

impl Constants {
    fn new<T>(fold: &Folded, tile: &Tile<T>) -> Self {
        let of = |values: &[f32]| values[tile.channels()].as_ptr();
        Self { scale: of(&fold.scale), shift: of(&fold.shift) }
    }

    /// `z*scale + shift` as the forward pass rounds it.
    ///
    /// # Safety
    /// The columns from this one on are of the tile.
    #[inline(always)]
    unsafe fn apply<V: Vector>(self, z: V, column: usize) -> V {
        // SAFETY: (B).
        unsafe { z.multiply(V::load(self.scale.add(column))).add(V::load(self.shift.add(column))) }
    }
}

impl<T: Value> RawStore<T> {
    pub(super) fn new(store: &Store<T>, mut tile: Tile<T>) -> Self {
        let Store { epilogue, channels, add, streamed, in_blocks } = *store;
        let beside = |data: &[T]| SideInput::new(data, channels, &tile);
        let of =
            |of: Normalised<T>| Of { z: beside(of.z), mean: of.mean[tile.channels()].as_ptr() };
        let kind = match epilogue {
            Epilogue::Keep => Kind::Keep,
            Epilogue::Measure(pivot) => Kind::Measure(pivot[tile.channels()].as_ptr()),
            Epilogue::Mask(mask, first, other) => {
                let gate = match mask {
                    Mask::Output(y) => Gate::Output(beside(y)),
                    Mask::Folded(fold) => {
                        Gate::Folded(beside(first.z), Constants::new(fold, &tile))
                    }
                };
                Kind::Mask(gate, [Some(of(first)), other.map(of)])
            }
            Epilogue::Fold(fold, identity, relu) => {
                let identity = identity.map_or(SideInput::NOTHING, beside);
                let floor = if relu { 0.0 } else { f32::NEG_INFINITY };
                Kind::Fold(Constants::new(fold, &tile), identity, floor)
            }
        };
        let columns = tile.values.ncols();
        assert!(columns.is_multiple_of(PANEL));
        let (out, sums) = (Target::rows(&mut tile.values), &mut tile.sums);
        let needs_none = matches!(kind, Kind::Keep | Kind::Fold(..));
        assert!(needs_none || sums.dim() == (SUMS, columns));
        assert!(sums.is_empty() || (sums.strides()[1] == 1 && sums.strides()[0] >= 0));
        let line = [out.start.addr(), out.stride * size_of::<T>()];
        assert!(!streamed || line.iter().all(|at| at.is_multiple_of(64)));
        let sums_stride = sums.strides()[0].unsigned_abs();
        let sums = sums.as_mut_ptr();
        let written = true;
        Self { kind, out, columns, add, written, streamed, in_blocks, sums, sums_stride }
    }

    pub(super) fn rows(&self) -> usize {
        self.out.rows
    }

    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    /// Of sums that are kept as they are.
    pub(super) fn keep(c: &mut ArrayViewMut2<T>) -> Self {
        Self {
            kind: Kind::Keep,
            out: Target::new(c),
            columns: PANEL,
            add: false,
            written: true,
            streamed: false,
            in_blocks: false,
            sums: std::ptr::null_mut(),
            sums_stride: 0,
        }
    }

    /// Finishes and writes `MR` rows by `NV` vectors.
    ///
    /// # Safety
    /// They are of the tile, and rows come in their order, the first ones at row 0; (T) for `A`.
    #[inline(always)]
    pub(super) unsafe fn put<A: Arithmetic, const MR: usize, const NV: usize>(
        &self,
        Position { row, column }: Position,
        mut sums: [[A::Lanes; NV]; MR],
    ) {
        // SAFETY: rows and columns of the tile and of what lies beside it.
        unsafe {
            let out = self.out.start.add(row * self.out.stride + column);
            if self.add {
                each!(i < MR {
                    each!(j < NV {
                        let before = out.add(i * self.out.stride + j * A::COUNT).cast_const();
                        sums[i][j] = sums[i][j].add(A::Lanes::load(before));
                    });
                });
            }
            match self.kind {
                Kind::Keep => {}
                Kind::Measure(pivot) => each!(j < NV {
                    let at = column + j * A::COUNT;
                    let pivot = A::Lanes::load(pivot.add(at));
                    let mut totals = [A::Lanes::zero(); 2];
                    each!(i < MR {
                        let deviation = sums[i][j].subtract(pivot);
                        totals[0] = totals[0].add(deviation);
                        totals[1] = deviation.multiply_add(deviation, totals[1]);
                    });
                    self.add_up(row, at, 0, totals[0]);
                    self.add_up(row, at, 1, totals[1]);
                }),
                Kind::Mask(gate, of) => {
                    match gate {
                        Gate::Output(y) => each!(j < NV {
                            each!(i < MR {
                                let y: A::Lanes = y.load(row + i, column + j * A::COUNT);
                                sums[i][j] = y.gate(sums[i][j]);
                            });
                        }),
                        Gate::Folded(z, fold) => each!(j < NV {
                            let at = column + j * A::COUNT;
                            each!(i < MR {
                                let y: A::Lanes = fold.apply(z.load(row + i, at), at);
                                sums[i][j] = y.gate(sums[i][j]);
                            });
                        }),
                    }
                    self.sum_up::<A, MR, NV>(Position { row, column }, of, &sums);
                }
                Kind::Fold(fold, identity, floor) => each!(j < NV {
                    let at = column + j * A::COUNT;
                    let floor = A::Lanes::splat(floor);
                    each!(i < MR {
                        let mut value = fold.apply(sums[i][j], at);
                        if !identity.start.is_null() {
                            value = value.add(identity.load(row + i, at));
                        }
                        sums[i][j] = value.max(floor);
                    });
                }),
            }
            if !self.written {
                return;
            }
            each!(i < MR {
                let out = out.add(i * self.out.stride);
                if self.streamed {
                    A::stream(&sums[i], out);
                } else {
                    each!(j < NV { A::store(sums[i][j], out.add(j * A::COUNT)); });
                }
            });
        }
    }

    /// Sums of a masked gradient, and of it times the deviations of one or two normalisations.
    ///
    /// # Safety
    /// As [`RawStore::put`].
    #[inline(always)]
    unsafe fn sum_up<A: Arithmetic, const MR: usize, const NV: usize>(
        &self,
        Position { row, column }: Position,
        [first, other]: [Option<Of<T>>; 2],
        sums: &[[A::Lanes; NV]; MR],
    ) {
        let Some(first) = first else { return };
        // SAFETY: passed on.
        unsafe {
            each!(j < NV {
                let at = column + j * A::COUNT;
                let mean = A::Lanes::load(first.mean.add(at));
                let mut totals = [A::Lanes::zero(); 2];
                each!(i < MR {
                    let z: A::Lanes = first.z.load(row + i, at);
                    totals[0] = totals[0].add(sums[i][j]);
                    totals[1] = sums[i][j].multiply_add(z.subtract(mean), totals[1]);
                });
                self.add_up(row, at, 0, totals[0]);
                self.add_up(row, at, 1, totals[1]);
            });
            let Some(other) = other else { return };
            each!(j < NV {
                let at = column + j * A::COUNT;
                let mean = A::Lanes::load(other.mean.add(at));
                let mut total = A::Lanes::zero();
                each!(i < MR {
                    let z: A::Lanes = other.z.load(row + i, at);
                    total = sums[i][j].multiply_add(z.subtract(mean), total);
                });
                self.add_up(row, at, 2, total);
            });
        }
    }

    /// Adds to one of the sums, which begins with the first rows.
    ///
    /// # Safety
    /// As [`RawStore::put`].
    #[inline(always)]
    unsafe fn add_up<V: Vector>(&self, row: usize, column: usize, which: usize, total: V) {
        // SAFETY: as many rows of sums, of which this is a column.
        unsafe {
            let place = self.sums.add(which * self.sums_stride + column);
            let before = if row == 0 { V::zero() } else { V::load(place.cast_const()) };
            before.add(total).store(place);
        }
    }

    /// Asks for where some rows will be written, if that is not past the caches.
    #[inline(always)]
    pub(super) fn prefetch_out<V: Vector, const MR: usize, const NV: usize>(
        &self,
        Position { row, column }: Position,
    ) {
        if self.streamed {
            return;
        }
        for i in 0..MR {
            let out =
                self.out.start.wrapping_add((row + i) * self.out.stride + column).cast::<u8>();
            for line in (0..NV * V::COUNT * size_of::<T>()).step_by(LINE) {
                V::prefetch_near(out.wrapping_add(line));
            }
        }
    }

    /// Asks for what is read next to a row.
    #[inline(always)]
    fn prefetch<V: Vector>(&self, row: usize, column: usize) {
        let ask = |beside: SideInput<T>| beside.prefetch::<V>(row, column);
        match self.kind {
            Kind::Mask(gate, of) => {
                if let Gate::Output(y) = gate {
                    ask(y);
                }
                of.into_iter().flatten().for_each(|of| ask(of.z));
            }
            Kind::Fold(_, identity, _) if !identity.start.is_null() => ask(identity),
            _ => {}
        }
    }
}

/// Rows of values, so far apart.
struct RawRows<S> {
    start: *const S,
    stride: usize,
}

impl<S> Clone for RawRows<S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S> Copy for RawRows<S> {}

impl Tier {
    /// See [`Store::write`].
    pub(crate) fn write<S: Value, T: Value>(
        self,
        store: &Store<T>,
        Strided { data, stride }: Strided<S>,
        tile: Tile<T>,
    ) {
        let end = RawStore::new(store, tile);
        let (rows, columns) = (end.out.rows, end.columns);
        assert!(rows == 0 || (rows - 1) * stride + columns <= data.len());
        let (source, part) = (RawRows { start: data.as_ptr(), stride }, [0..rows, 0..columns]);
        self.enter(Write { end: &end, source, part });
    }

    /// Ends a part of a tile: rows of 64 sums, to be written from a row and a panel's first column on. Parts of the
    /// same columns come in the order of their rows.
    pub(super) fn write_part<T: Value>(
        self,
        end: &RawStore<T>,
        Position { row, column }: Position,
        sums: &[f32],
    ) {
        let rows = row..row + sums.len() / PANEL;
        assert!(sums.len().is_multiple_of(PANEL) && rows.end <= end.out.rows);
        assert!(column.is_multiple_of(PANEL) && column < end.columns);
        let part = [rows, column..column + PANEL];
        let source = RawRows { start: sums.as_ptr(), stride: PANEL };
        self.enter(Write { end, source, part });
    }

    /// See [`Store::write_in_place`].
    pub(crate) fn write_in_place<T: Value>(self, store: &Store<T>, tile: Tile<T>) {
        let mut end = RawStore::new(store, tile);
        end.written = !matches!(end.kind, Kind::Keep | Kind::Measure(_));
        // Every row is read before it is written.
        let source = RawRows { start: end.out.start.cast_const(), stride: end.out.stride };
        let part = [0..end.out.rows, 0..end.columns];
        self.enter(Write { end: &end, source, part });
    }
}

/// Rows and columns of a tile that were computed elsewhere; the source begins with the first of them.
struct Write<'a, S, T> {
    end: &'a RawStore<T>,
    source: RawRows<S>,
    part: [Range<usize>; 2],
}

impl<S: Value, T: Value> Kernel<f32> for Write<'_, S, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<A: Arithmetic<Word = f32>, const COLUMNS: usize, const ROWS: usize>(self) {
        // SAFETY: (T) from the caller, (B).
        unsafe { write::<A, S, T, COLUMNS>(self.end, self.source, self.part) }
    }
}

/// # Safety
/// The part is of the tile, and the source has its rows; (T) for `A`.
#[inline(always)]
unsafe fn write<A: Arithmetic, S: Value, T: Value, const NV: usize>(
    end: &RawStore<T>,
    source: RawRows<S>,
    [part, columns]: [Range<usize>; 2],
) {
    let (mut next, rows) = (part.start, part.end);
    while next < rows {
        let row = next;
        let is_rest = end.in_blocks && row.is_multiple_of(BLOCK) && rows - row < BLOCK;
        let count = if is_rest { (rows - row).div_ceil(2) } else { ROWS.min(rows - row) };
        next += count;
        for row in row..row + ROWS {
            for column in columns.clone().step_by(LINE / size_of::<T>()) {
                end.prefetch::<A::Lanes>(row + AHEAD, column);
            }
        }
        for column in columns.clone().step_by(NV * A::COUNT) {
            let at = Position { row, column };
            let first = (row - part.start) * source.stride + column - columns.start;
            // SAFETY: passed on; the arms take no more rows than are left.
            unsafe {
                let source = RawRows { start: source.start.add(first), ..source };
                match count {
                    1 => write_rows::<A, S, T, 1, NV>(end, source, at),
                    2 => write_rows::<A, S, T, 2, NV>(end, source, at),
                    3 => write_rows::<A, S, T, 3, NV>(end, source, at),
                    4 => write_rows::<A, S, T, 4, NV>(end, source, at),
                    5 => write_rows::<A, S, T, 5, NV>(end, source, at),
                    _ => write_rows::<A, S, T, ROWS, NV>(end, source, at),
                }
            }
        }
    }
}

/// # Safety
/// As [`write`], of which these are `MR` rows and `NV` vectors; the source begins with them.
#[inline(always)]
unsafe fn write_rows<A: Arithmetic, S: Value, T: Value, const MR: usize, const NV: usize>(
    end: &RawStore<T>,
    source: RawRows<S>,
    at: Position,
) {
    let mut values = [[A::Lanes::zero(); NV]; MR];
    // SAFETY: passed on.
    unsafe {
        each!(i < MR {
            each!(j < NV {
                values[i][j] = A::Lanes::load(source.start.add(i * source.stride + j * A::COUNT));
            });
        });
        end.put::<A, MR, NV>(at, values);
    }
}
