//! Batch normalisation with ReLU and residual add, forward and backward, a pass over memory each.
//!
//! ```text
//! forward   y  = max(0, z*scale + shift (+ identity))      scale = gamma/sqrt(var+eps), shift = beta - mean*scale
//! backward  g  = dy where y > 0                            (recomputed, never stored)
//!           s1 = sum g, s2 = sum g*(z-mean)                dbeta = s1, dgamma = s2/sqrt(var+eps)
//!           dz = scale*(g - s1/m - (z-mean)*s2/(m*(var+eps)))
//! ```
//!
//! Ioffe and Szegedy, "Batch Normalization" (2015). Sums are taken in `f32` over a fixed number of
//! rows, relative to a pivot so that a large mean costs no digits, and merged in `f64` in a fixed order.

use crate::isa::Isa;
use crate::pool::Pool;

/// The constants of a normalisation.
#[derive(Clone, Copy, Debug)]
pub struct BatchNorm {
    /// Added to the variance.
    pub epsilon: f32,
    /// Share of the new batch in the running statistics.
    pub momentum: f32,
}

/// Mean and (biased) variance of each channel over a batch, and what the backward pass needs.
#[derive(Clone, Debug)]
pub struct Statistics {
    /// Mean of each channel.
    pub mean: Vec<f32>,
    /// Mean squared deviation of each channel.
    pub variance: Vec<f32>,
    /// Rows (pixels times images) behind them.
    pub rows: usize,
    partial: Vec<f32>,
}

/// A normalisation as one multiplication and one addition a channel.
#[derive(Clone, Debug)]
pub struct Folded {
    /// Factor of each channel.
    pub scale: Vec<f32>,
    /// Summand of each channel.
    pub shift: Vec<f32>,
}

/// What is added before the ReLU.
#[derive(Clone, Copy)]
pub enum Identity<'a> {
    /// Nothing.
    None,
    /// The block's input.
    Plain(&'a [f32]),
    /// The normalised output of the projection.
    Projected(&'a [f32], &'a Folded),
}

/// The gradient by a normalisation's output as `a*g + b*z + c` a channel: the gradient by its input.
#[derive(Clone, Debug)]
pub struct Slope {
    a: Vec<f32>,
    b: Vec<f32>,
    c: Vec<f32>,
}

impl Statistics {
    /// Room for `channels` channels.
    pub fn new(channels: usize) -> Self {
        Self {
            mean: vec![0.0; channels],
            variance: vec![0.0; channels],
            rows: 0,
            partial: Vec::new(),
        }
    }

    /// Room for the sums of up to `rows` rows, so that no later call allocates.
    pub fn reserve(&mut self, rows: usize) {
        let channels = self.mean.len();
        self.partial.reserve(rows.div_ceil(SUM_ROWS) * 2 * channels);
    }

    /// Mean and variance of `z`, rows of as many values as there are channels. `pivot` is near the
    /// mean (the running one serves).
    pub fn measure(&mut self, (pool, isa): (&Pool, Isa), z: &[f32], pivot: &[f32]) {
        let channels = self.mean.len();
        assert_eq!((z.len() % channels, pivot.len()), (0, channels));
        self.rows = z.len() / channels;
        let len = SUM_ROWS * channels;
        self.partial.resize(z.len().div_ceil(len) * 2 * channels, 0.0);
        pool.for_each_chunk(&mut self.partial, 2 * channels, |index, sums| {
            let z = &z[index * len..z.len().min((index + 1) * len)];
            let (first, second) = sums.split_at_mut(channels);
            isa.run(
                #[inline(always)]
                || sum_deviations(z, pivot, first, second),
            );
        });
        let count = self.rows as f64;
        for (c, &pivot) in pivot.iter().enumerate() {
            let [first, second] = merge(&self.partial, channels, c);
            let shift = first / count;
            self.mean[c] = (f64::from(pivot) + shift) as f32;
            self.variance[c] = (second / count - shift * shift).max(0.0) as f32;
        }
    }

    /// Moves running statistics towards this batch; the variance there is the unbiased one.
    pub fn update_running(&self, norm: BatchNorm, mean: &mut [f32], variance: &mut [f32]) {
        let unbiased = self.rows as f32 / (self.rows.max(2) - 1) as f32;
        let keep = 1.0 - norm.momentum;
        for c in 0..self.mean.len() {
            mean[c] = keep * mean[c] + norm.momentum * self.mean[c];
            variance[c] = keep * variance[c] + norm.momentum * self.variance[c] * unbiased;
        }
    }

    /// Sums of the masked gradient `dy`, which give the gradients by gamma and beta and the slope of
    /// the normalisation. `mask` says where the ReLU after it let values through.
    pub fn backward(
        &mut self,
        (pool, isa): (&Pool, Isa),
        norm: BatchNorm,
        (dy, z, mask): (&[f32], &[f32], Option<&Folded>),
        gamma: &[f32],
        (dgamma, dbeta, slope): (&mut [f32], &mut [f32], &mut Slope),
    ) {
        let channels = self.mean.len();
        assert_eq!(dy.len(), z.len());
        let len = SUM_ROWS * channels;
        self.partial.resize(z.len().div_ceil(len) * 2 * channels, 0.0);
        let mean = &self.mean;
        pool.for_each_chunk(&mut self.partial, 2 * channels, |index, sums| {
            let range = index * len..z.len().min((index + 1) * len);
            let (first, second) = sums.split_at_mut(channels);
            isa.run(
                #[inline(always)]
                || {
                    sum_gradients(
                        (&dy[range.clone()], &z[range.clone()], mask),
                        mean,
                        first,
                        second,
                    )
                },
            );
        });
        let count = self.rows as f64;
        for c in 0..channels {
            let [s1, s2] = merge(&self.partial, channels, c);
            let inverse = 1.0 / (f64::from(self.variance[c]) + f64::from(norm.epsilon)).sqrt();
            let scale = f64::from(gamma[c]) * inverse;
            let b = -scale * inverse * inverse * s2 / count;
            dgamma[c] = (s2 * inverse) as f32;
            dbeta[c] = s1 as f32;
            slope.a[c] = scale as f32;
            slope.b[c] = b as f32;
            slope.c[c] = (-scale * s1 / count - b * f64::from(self.mean[c])) as f32;
        }
    }
}

impl Folded {
    /// Room for `channels` channels.
    pub fn new(channels: usize) -> Self {
        Self { scale: vec![0.0; channels], shift: vec![0.0; channels] }
    }

    /// Folds mean, variance, gamma and beta.
    pub fn set(
        &mut self,
        norm: BatchNorm,
        (mean, variance): (&[f32], &[f32]),
        (gamma, beta): (&[f32], &[f32]),
    ) {
        for c in 0..self.scale.len() {
            self.scale[c] = gamma[c] / (variance[c] + norm.epsilon).sqrt();
            self.shift[c] = beta[c] - mean[c] * self.scale[c];
        }
    }

    /// `y = max(0, z*scale + shift + identity)`.
    pub fn activate(
        &self,
        (pool, isa): (&Pool, Isa),
        z: &[f32],
        identity: Identity,
        y: &mut [f32],
    ) {
        let channels = self.scale.len();
        assert_eq!(z.len(), y.len());
        let len = chunk_rows(channels) * channels;
        pool.for_each_chunk(y, len, |index, y| {
            let range = index * len..index * len + y.len();
            let z = &z[range.clone()];
            isa.run(
                #[inline(always)]
                || match identity {
                    Identity::None => activate(self, z, y),
                    Identity::Plain(x) => activate_add(self, (z, &x[range.clone()]), y),
                    Identity::Projected(x, fold) => {
                        activate_projected((self, fold), (z, &x[range.clone()]), y);
                    }
                },
            );
        });
    }
}

impl Slope {
    /// Room for `channels` channels.
    pub fn new(channels: usize) -> Self {
        Self { a: vec![0.0; channels], b: vec![0.0; channels], c: vec![0.0; channels] }
    }

    /// `dz = a*g + b*z + c` over `dy` itself, `g` being `dy` where `mask` lets it through.
    pub fn apply_in_place(
        &self,
        (pool, isa): (&Pool, Isa),
        z: &[f32],
        mask: Option<&Folded>,
        dy: &mut [f32],
    ) {
        let len = chunk_rows(self.a.len()) * self.a.len();
        assert_eq!(z.len(), dy.len());
        pool.for_each_chunk(dy, len, |index, dy| {
            let z = &z[index * len..index * len + dy.len()];
            isa.run(
                #[inline(always)]
                || slope_in_place(self, z, mask, dy),
            );
        });
    }

    /// `dz = a*dy + b*z + c` into another buffer.
    pub fn apply(&self, (pool, isa): (&Pool, Isa), (dy, z): (&[f32], &[f32]), dz: &mut [f32]) {
        let len = chunk_rows(self.a.len()) * self.a.len();
        assert_eq!((dy.len(), z.len()), (dz.len(), dz.len()));
        pool.for_each_chunk(dz, len, |index, dz| {
            let range = index * len..index * len + dz.len();
            isa.run(
                #[inline(always)]
                || {
                    dz.copy_from_slice(&dy[range.clone()]);
                    slope_in_place(self, &z[range.clone()], None, dz);
                },
            );
        });
    }
}

/// Clears `dy` where the block's output `y` was cut off by the ReLU.
pub fn mask_by_output((pool, isa): (&Pool, Isa), y: &[f32], dy: &mut [f32]) {
    const LEN: usize = 1 << 15;
    assert_eq!(y.len(), dy.len());
    pool.for_each_chunk(dy, LEN, |index, dy| {
        let y = &y[index * LEN..index * LEN + dy.len()];
        isa.run(
            #[inline(always)]
            || {
                for (dy, &y) in dy.iter_mut().zip(y) {
                    *dy = if y > 0.0 { *dy } else { 0.0 };
                }
            },
        );
    });
}

/// Rows that are summed in `f32` before sums go on in `f64`: short chains of additions lose few digits,
/// and since it is no function of the threads, neither are the sums.
const SUM_ROWS: usize = 64;

/// Rows that one task of an elementwise pass works on.
fn chunk_rows(channels: usize) -> usize {
    ((1 << 15) / channels).max(64)
}

/// First and second sum of channel `c` over all chunks.
fn merge(partial: &[f32], channels: usize, c: usize) -> [f64; 2] {
    partial.chunks_exact(2 * channels).fold([0.0; 2], |[first, second], sums| {
        [first + f64::from(sums[c]), second + f64::from(sums[channels + c])]
    })
}

#[inline(always)]
fn sum_deviations(z: &[f32], pivot: &[f32], first: &mut [f32], second: &mut [f32]) {
    let channels = pivot.len();
    let (first, second) = (&mut first[..channels], &mut second[..channels]);
    first.fill(0.0);
    second.fill(0.0);
    for row in z.chunks_exact(channels) {
        for c in 0..channels {
            let deviation = row[c] - pivot[c];
            first[c] += deviation;
            second[c] += deviation * deviation;
        }
    }
}

#[inline(always)]
fn sum_gradients(
    (dy, z, mask): (&[f32], &[f32], Option<&Folded>),
    mean: &[f32],
    first: &mut [f32],
    second: &mut [f32],
) {
    let channels = mean.len();
    let (first, second) = (&mut first[..channels], &mut second[..channels]);
    first.fill(0.0);
    second.fill(0.0);
    let rows = dy.chunks_exact(channels).zip(z.chunks_exact(channels));
    match mask {
        None => {
            for (dy, z) in rows {
                for c in 0..channels {
                    first[c] += dy[c];
                    second[c] += dy[c] * (z[c] - mean[c]);
                }
            }
        }
        Some(fold) => {
            let (scale, shift) = (&fold.scale[..channels], &fold.shift[..channels]);
            for (dy, z) in rows {
                for c in 0..channels {
                    let g = if z[c] * scale[c] + shift[c] > 0.0 { dy[c] } else { 0.0 };
                    first[c] += g;
                    second[c] += g * (z[c] - mean[c]);
                }
            }
        }
    }
}

#[inline(always)]
fn activate(fold: &Folded, z: &[f32], y: &mut [f32]) {
    let channels = fold.scale.len();
    let (scale, shift) = (&fold.scale[..channels], &fold.shift[..channels]);
    for (z, y) in z.chunks_exact(channels).zip(y.chunks_exact_mut(channels)) {
        for c in 0..channels {
            y[c] = (z[c] * scale[c] + shift[c]).max(0.0);
        }
    }
}

#[inline(always)]
fn activate_add(fold: &Folded, (z, x): (&[f32], &[f32]), y: &mut [f32]) {
    let channels = fold.scale.len();
    let (scale, shift) = (&fold.scale[..channels], &fold.shift[..channels]);
    let rows = z.chunks_exact(channels).zip(x.chunks_exact(channels));
    for ((z, x), y) in rows.zip(y.chunks_exact_mut(channels)) {
        for c in 0..channels {
            y[c] = (z[c] * scale[c] + shift[c] + x[c]).max(0.0);
        }
    }
}

#[inline(always)]
fn activate_projected((fold, other): (&Folded, &Folded), (z, x): (&[f32], &[f32]), y: &mut [f32]) {
    let channels = fold.scale.len();
    let (scale, shift) = (&fold.scale[..channels], &fold.shift[..channels]);
    let (scale2, shift2) = (&other.scale[..channels], &other.shift[..channels]);
    let rows = z.chunks_exact(channels).zip(x.chunks_exact(channels));
    for ((z, x), y) in rows.zip(y.chunks_exact_mut(channels)) {
        for c in 0..channels {
            let identity = x[c] * scale2[c] + shift2[c];
            y[c] = (z[c] * scale[c] + shift[c] + identity).max(0.0);
        }
    }
}

#[inline(always)]
fn slope_in_place(slope: &Slope, z: &[f32], mask: Option<&Folded>, dy: &mut [f32]) {
    let channels = slope.a.len();
    let (a, b, c) = (&slope.a[..channels], &slope.b[..channels], &slope.c[..channels]);
    let rows = z.chunks_exact(channels).zip(dy.chunks_exact_mut(channels));
    match mask {
        None => {
            for (z, dy) in rows {
                for i in 0..channels {
                    dy[i] = a[i] * dy[i] + b[i] * z[i] + c[i];
                }
            }
        }
        Some(fold) => {
            let (scale, shift) = (&fold.scale[..channels], &fold.shift[..channels]);
            for (z, dy) in rows {
                for i in 0..channels {
                    let g = if z[i] * scale[i] + shift[i] > 0.0 { dy[i] } else { 0.0 };
                    dy[i] = a[i] * g + b[i] * z[i] + c[i];
                }
            }
        }
    }
}
