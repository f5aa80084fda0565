//! Elementwise passes over rows of channels: activations, and slopes. Each row is made of the same rows of others.

use std::ops::Range;

use crate::gemm::PANEL;
use crate::isa::Isa;
use crate::norm::{Folded, Identity, Slope};
use crate::pool::Pool;
use crate::tile::{is_streamed, rows_of, stream};
use crate::value::Value;

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
    pub fn make(&self, (pool, isa): (&Pool, Isa), y: &mut [T]) {
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
    fn channels(&self) -> usize {
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
                    Identity::Plain(x) => activate_add(fold, (z, &x[range]), y),
                    Identity::Projected(x, other) => {
                        activate_projected((fold, other), (z, &x[range]), y);
                    }
                }
            }
            Self::Slope(slope, [g, z]) => slope_into(slope, (&g[range.clone()], &z[range]), y),
        }
    }
}

/// `a*g + b*z + c` over `g` itself.
pub(crate) fn slope_in_place<T: Value>(
    (pool, isa): (&Pool, Isa),
    slope: &Slope,
    z: &[T],
    g: &mut [T],
) {
    let len = chunk_rows(slope.a.len()) * slope.a.len();
    assert_eq!(z.len(), g.len());
    pool.for_each_chunk(g, len, |index, g| {
        let z = &z[index * len..index * len + g.len()];
        isa.run(
            #[inline(always)]
            || slope_over(slope, z, g),
        );
    });
}

/// Values that are computed before they are written past the caches: a few rows.
const HELD: usize = 1 << 12;

/// Rows that one task of an elementwise pass works on.
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
fn activate_add<T: Value>(fold: &Folded, (z, x): (&[T], &[T]), y: &mut [T]) {
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
fn activate_projected<T: Value>(
    (fold, other): (&Folded, &Folded),
    (z, x): (&[T], &[T]),
    y: &mut [T],
) {
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
fn slope_into<T: Value>(slope: &Slope, (g, z): (&[T], &[T]), dz: &mut [T]) {
    let channels = slope.a.len();
    let (a, b, c) = (&slope.a[..channels], &slope.b[..channels], &slope.c[..channels]);
    let rows = g.chunks_exact(channels).zip(z.chunks_exact(channels));
    for ((g, z), dz) in rows.zip(dz.chunks_exact_mut(channels)) {
        for i in 0..channels {
            dz[i] = T::narrow(a[i] * g[i].widen() + b[i] * z[i].widen() + c[i]);
        }
    }
}
