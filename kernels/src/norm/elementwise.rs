//! Elementwise passes over rows of channels: activations, and slopes. Each row is made of the same rows of others.

use std::ops::Range;

use super::folded::{Folded, Identity, Slope};
use crate::base::exec::Exec;
use crate::base::isa::Isa;
use crate::base::panel::PANEL;
use crate::base::tile::{is_streamed, rows_of, stream};
use crate::base::value::Value;

/// What rows are made of.
#[derive(Clone, Copy)]
pub enum Rows<'a, T> {
    /// `max(0, z*scale + shift + identity)`.
    Activation(&'a Folded, &'a [T], Identity<'a, T>),
    /// `a*g + b*z + c` of `g` and `z`.
    Slope(&'a Slope, [&'a [T]; 2]),
}

impl<T: Value> Rows<'_, T> {
    /// Makes all rows of `y`, past the caches where it is large.
    ///
    /// # Panics
    /// If what they are made of has not as many.
    pub fn make(&self, Exec { pool, isa }: Exec, y: &mut [T]) {
        self.assert_len(y.len());
        let channels = self.channels();
        let len = chunk_rows(channels) * channels;
        let streamed = is_streamed(y) && channels <= HELD && channels.is_multiple_of(PANEL);
        pool.for_each_chunk(y, len, |index, y| {
            let start = index * len;
            if !streamed {
                return self.make_some(isa, start, y);
            }
            let mut held = [T::default(); HELD];
            let part = HELD / channels * channels;
            for (index, y) in y.chunks_mut(part).enumerate() {
                let held = &mut held[..y.len()];
                self.make_some(isa, start + index * part, held);
                stream(isa, held, rows_of(y, PANEL));
            }
        });
    }

    /// Makes whole rows, from the one on that begins at value `start`.
    pub(crate) fn make_some(&self, isa: Isa, start: usize, y: &mut [T]) {
        let range = start..start + y.len();
        isa.run(
            #[inline(always)]
            || self.write(range, y),
        );
    }

    /// That they are made of as many values.
    pub(crate) fn assert_len(&self, len: usize) {
        let lens = match *self {
            Self::Activation(_, z, Identity::None) => [z.len(); 2],
            Self::Activation(_, z, Identity::Plain(x) | Identity::Projected(x, _)) => {
                [z.len(), x.len()]
            }
            Self::Slope(_, [g, z]) => [g.len(), z.len()],
        };
        assert_eq!(lens, [len; 2], "rows are made of as many");
    }

    /// Values of a row.
    pub(crate) fn channels(&self) -> usize {
        match self {
            Self::Activation(fold, ..) => fold.scale.len(),
            Self::Slope(slope, _) => slope.a.len(),
        }
    }

    #[inline(always)]
    fn write(&self, range: Range<usize>, y: &mut [T]) {
        match *self {
            Self::Activation(fold, z, identity) => {
                let z = &z[range.clone()];
                match identity {
                    Identity::None => activate(fold, z, y),
                    Identity::Plain(x) => activate_add(fold, z, &x[range], y),
                    Identity::Projected(x, other) => {
                        activate_projected(fold, other, z, &x[range], y);
                    }
                }
            }
            Self::Slope(slope, [g, z]) => slope_into(slope, &g[range.clone()], &z[range], y),
        }
    }
}

impl Slope {
    /// `dz = a*g + b*z + c` over `g` itself.
    pub fn apply_in_place<T: Value>(&self, Exec { pool, isa }: Exec, z: &[T], g: &mut [T]) {
        let len = chunk_rows(self.a.len()) * self.a.len();
        assert_eq!(z.len(), g.len());
        pool.for_each_chunk(g, len, |index, g| {
            let z = &z[index * len..index * len + g.len()];
            isa.run(
                #[inline(always)]
                || slope_over(self, z, g),
            );
        });
    }
}

impl Folded {
    /// `z*scale + shift`, plus the identity, and at least 0 where asked, over `z` itself.
    pub(crate) fn apply_in_place<T: Value>(
        &self,
        Exec { pool, isa }: Exec,
        z: &mut [T],
        identity: Option<&[T]>,
        relu: bool,
    ) {
        let len = chunk_rows(self.scale.len()) * self.scale.len();
        let floor = if relu { 0.0 } else { f32::NEG_INFINITY };
        pool.for_each_chunk(z, len, |index, z| {
            let identity = identity.map(|all| &all[index * len..index * len + z.len()]);
            isa.run(
                #[inline(always)]
                || match identity {
                    None => fold_over(self, floor, z),
                    Some(identity) => fold_over_and_add(self, floor, identity, z),
                },
            );
        });
    }
}

/// Values that are computed before they are written past the caches: a few rows, 16 KiB of a first-level cache.
/// Written one by one they would fill more write-combining buffers than a core has.
const HELD: usize = 1 << 12;

/// Rows that one task of an elementwise pass works on: 32 KiB of each operand, some microseconds, so that taking a
/// task (about 0.1) costs little and threads end at the same time.
fn chunk_rows(channels: usize) -> usize {
    ((1 << 13) / channels).max(1)
}

#[inline(always)]
fn activate<T: Value>(fold: &Folded, z: &[T], y: &mut [T]) {
    let channels = fold.scale.len();
    let (scale, shift) = (&fold.scale[..channels], &fold.shift[..channels]);
    for (z, y) in z.chunks_exact(channels).zip(y.chunks_exact_mut(channels)) {
        for c in 0..channels {
            y[c] = T::narrow((z[c].widen() * scale[c] + shift[c]).max(0.0));
        }
    }
}

#[inline(always)]
fn activate_add<T: Value>(fold: &Folded, z: &[T], x: &[T], y: &mut [T]) {
    let channels = fold.scale.len();
    let (scale, shift) = (&fold.scale[..channels], &fold.shift[..channels]);
    let rows = z.chunks_exact(channels).zip(x.chunks_exact(channels));
    for ((z, x), y) in rows.zip(y.chunks_exact_mut(channels)) {
        for c in 0..channels {
            let value = z[c].widen() * scale[c] + shift[c] + x[c].widen();
            y[c] = T::narrow(value.max(0.0));
        }
    }
}

#[inline(always)]
fn activate_projected<T: Value>(fold: &Folded, other: &Folded, z: &[T], x: &[T], y: &mut [T]) {
    let channels = fold.scale.len();
    let (scale, shift) = (&fold.scale[..channels], &fold.shift[..channels]);
    let (scale2, shift2) = (&other.scale[..channels], &other.shift[..channels]);
    let rows = z.chunks_exact(channels).zip(x.chunks_exact(channels));
    for ((z, x), y) in rows.zip(y.chunks_exact_mut(channels)) {
        for c in 0..channels {
            let identity = x[c].widen() * scale2[c] + shift2[c];
            let value = z[c].widen() * scale[c] + shift[c] + identity;
            y[c] = T::narrow(value.max(0.0));
        }
    }
}

#[inline(always)]
fn fold_over<T: Value>(fold: &Folded, floor: f32, z: &mut [T]) {
    let channels = fold.scale.len();
    let (scale, shift) = (&fold.scale[..channels], &fold.shift[..channels]);
    for z in z.chunks_exact_mut(channels) {
        for c in 0..channels {
            z[c] = T::narrow((z[c].widen() * scale[c] + shift[c]).max(floor));
        }
    }
}

#[inline(always)]
fn fold_over_and_add<T: Value>(fold: &Folded, floor: f32, identity: &[T], z: &mut [T]) {
    let channels = fold.scale.len();
    let (scale, shift) = (&fold.scale[..channels], &fold.shift[..channels]);
    for (z, x) in z.chunks_exact_mut(channels).zip(identity.chunks_exact(channels)) {
        for c in 0..channels {
            z[c] = T::narrow((z[c].widen() * scale[c] + shift[c] + x[c].widen()).max(floor));
        }
    }
}

#[inline(always)]
fn slope_over<T: Value>(slope: &Slope, z: &[T], g: &mut [T]) {
    let channels = slope.a.len();
    let (a, b, c) = (&slope.a[..channels], &slope.b[..channels], &slope.c[..channels]);
    for (z, g) in z.chunks_exact(channels).zip(g.chunks_exact_mut(channels)) {
        for i in 0..channels {
            g[i] = T::narrow(a[i] * g[i].widen() + b[i] * z[i].widen() + c[i]);
        }
    }
}

#[inline(always)]
fn slope_into<T: Value>(slope: &Slope, g: &[T], z: &[T], dz: &mut [T]) {
    let channels = slope.a.len();
    let (a, b, c) = (&slope.a[..channels], &slope.b[..channels], &slope.c[..channels]);
    let rows = g.chunks_exact(channels).zip(z.chunks_exact(channels));
    for ((g, z), dz) in rows.zip(dz.chunks_exact_mut(channels)) {
        for i in 0..channels {
            dz[i] = T::narrow(a[i] * g[i].widen() + b[i] * z[i].widen() + c[i]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Pool;
    use crate::{BatchNorm, Bf16, Conv, Epilogue, Operand, Product, Results, Scratch};

    fn values<T: Value>(len: usize, seed: usize) -> Vec<T> {
        let value = |i: usize| ((i + seed) * 7919 % 1009) as f32 / 256.0 - 2.0;
        (0..len).map(|i| T::narrow(value(i))).collect()
    }

    fn fold(channels: usize, seed: usize) -> Folded {
        let mut fold = Folded::new(channels);
        let [mean, variance, gamma, beta] = [0, 1, 2, 3].map(|i| values::<f32>(channels, seed + i));
        let variance: Vec<f32> = variance.iter().map(|v| v * v).collect();
        let norm = BatchNorm { epsilon: 1e-5, momentum: 0.1 };
        fold.set(norm, &mean, &variance, &gamma, &beta);
        fold
    }

    fn slope(channels: usize) -> Slope {
        let [a, b, c] = [5, 6, 7].map(|seed| values(channels, seed));
        Slope { a, b, c }
    }

    /// In tasks that compute all channels of a row, or none of them; with one or two panels at a time; with a short
    /// last tile, and weights that tasks turn.
    #[test]
    fn a_convolution_of_rows_that_it_makes_has_the_bits_of_one_of_rows_that_are_there() {
        let shapes = [
            (8, [256, 64], 1, 32),
            (4, [64, 256], 1, 33),
            (4, [256, 128], 1, 64),
            (2, [512, 256], 1, 5),
            (4, [128, 256], 1, 128),
            (4, [64, 64], 3, 16),
        ];
        for (side, channels, kernel, n) in shapes {
            let conv = Conv::new([side; 2], channels, kernel, 1, kernel / 2).expect("shape");
            let conv = conv.with_fast_algorithms();
            compare::<f32>(&conv, n);
            compare::<Bf16>(&conv, n);
        }
    }

    fn compare<T: Product>(conv: &Conv, n: usize) {
        let pool = Pool::new(2);
        let [channels, k] = [conv.channels_in, conv.channels_out];
        let [x_len, y_len] = [conv.input_len(n), conv.output_len(n)];
        let w: Vec<f32> = values(conv.weights(), 1);
        let (folds, slope) = ([fold(channels, 2), fold(channels, 9)], slope(k));
        let [x, z] = [3, 4].map(|seed| values::<T>(x_len, seed));
        let [g, y] = [5, 6].map(|seed| values::<T>(y_len, seed));
        let pivot = vec![0.25; channels.max(k)];
        let activations = [Identity::None, Identity::Plain(&x), Identity::Projected(&x, &folds[1])]
            .map(|identity| Rows::Activation(&folds[0], &z, identity));
        for isa in Isa::available() {
            let exec = Exec::new(&pool, isa);
            let run = |is_forward: bool, source: Operand<T>| {
                let [mut panels, mut result] =
                    [conv.weights(), if is_forward { y_len } else { x_len }]
                        .map(|len| values(len, 0));
                let mut parts = vec![f32::NAN; conv.scratch_len(n)];
                let mut sums = vec![0.0; conv.sums_len(n)];
                let scratch = Scratch { panels: &mut panels, parts: &mut parts };
                let results = Results { values: &mut result, sums: &mut sums, scratch };
                if is_forward {
                    conv.forward(exec, source, &w, results, Epilogue::Measure(&pivot[..k]));
                } else {
                    let epilogue = Epilogue::Measure(&pivot[..channels]);
                    conv.backward_input(exec, source, &w, results, false, epilogue);
                }
                let bits = |value: &f32| value.to_bits();
                let result = result.iter().map(|value: &T| value.widen().to_bits());
                (result.collect::<Vec<_>>(), sums.iter().map(bits).collect::<Vec<_>>())
            };
            let rows = activations.iter().map(|rows| (true, *rows, x_len));
            for (is_forward, rows, len) in
                rows.chain([(false, Rows::Slope(&slope, [&g, &y]), y_len)])
            {
                let [mut before, mut made] = [0, 1].map(|seed| values::<T>(len, seed));
                rows.make(exec, &mut before);
                let want = run(is_forward, Operand::Stored(&before));
                assert!(
                    want == run(is_forward, Operand::Recompute(&mut made, rows)),
                    "{}",
                    isa.name()
                );
                let same = |(a, b): (&T, &T)| a.widen().to_bits() == b.widen().to_bits();
                assert!(before.iter().zip(&made).all(same), "{}", isa.name());
            }
        }
    }
}
