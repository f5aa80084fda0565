//! Batch normalisation with ReLU and residual add, forward and backward.
//!
//! ```text
//! forward   y  = max(0, z*scale + shift (+ identity))      scale = gamma/sqrt(var+eps), shift = beta - mean*scale
//! backward  g  = dy where y > 0                            (recomputed, never stored)
//!           s1 = sum g, s2 = sum g*(z-mean)                dbeta = s1, dgamma = s2/sqrt(var+eps)
//!           dz = scale*(g - s1/m - (z-mean)*s2/(m*(var+eps)))
//! ```
//!
//! Ioffe and Szegedy, "Batch Normalization" (2015). The sums belong to the convolutions' ends: they are taken
//! tile by tile while it is in registers ([`Epilogue`]), in `f32` over the images of a tile,
//! relative to a pivot so that a large mean costs no digits, and merged in `f64` in a fixed order ([`Sums`]).
//! What is left is one pass forward and one backward.
//!
//! [`Epilogue`]: crate::Epilogue

pub(crate) mod elementwise;
pub(crate) mod folded;
pub(crate) mod group;

use crate::base::exec::Exec;
use crate::base::panel::PANEL;
use crate::base::tile::{Extent, SUMS, sums_len};
use folded::{BatchNorm, NormGradients};

/// Mean and (biased) variance of each channel over a batch.
#[derive(Clone, Debug)]
pub struct Statistics {
    /// Mean of each channel.
    pub mean: Vec<f32>,
    /// Mean squared deviation of each channel.
    pub variance: Vec<f32>,
    /// Rows (pixels times images) behind them; 0 where they are not of this batch.
    pub rows: usize,
}

/// Sums over the tiles of an activation, and their totals.
pub struct Sums {
    tiles: Vec<f32>,
    totals: Vec<f64>,
    used: usize,
    channels: usize,
}

impl Sums {
    /// Room for the sums of `len` values (see [`sums_len`]) and for `channels` totals.
    pub fn new(len: usize, channels: usize) -> Self {
        Self { tiles: vec![0.0; len], totals: vec![0.0; SUMS * channels], used: 0, channels: 0 }
    }

    /// The sums of the tiles of an activation `[pixels][n][channels]`, to be written.
    pub fn tiles(&mut self, shape: Extent) -> &mut [f32] {
        (self.used, self.channels) = (sums_len(shape), shape.channels);
        &mut self.tiles[..self.used]
    }

    /// Adds up the tiles.
    pub fn add_up(&mut self, Exec { pool, isa }: Exec) {
        let (channels, tiles) = (self.channels, &self.tiles[..self.used]);
        let totals = &mut self.totals[..SUMS * channels];
        pool.for_each_chunk(totals, SUMS * PANEL, |panel, totals| {
            isa.run(
                #[inline(always)]
                || {
                    for (which, total) in totals.chunks_exact_mut(PANEL).enumerate() {
                        total.fill(0.0);
                        let from = which * channels + panel * PANEL;
                        for tile in tiles.chunks_exact(SUMS * channels) {
                            add(total, &tile[from..]);
                        }
                    }
                },
            );
        });
    }

    /// Gradients by gamma and beta where what was normalised lies there with mean 0 and deviation 1; `which` as in
    /// [`Statistics::backward`].
    pub fn by_affine(&self, which: usize, gamma: &mut [f32], beta: &mut [f32]) {
        for (c, (gamma, beta)) in gamma.iter_mut().zip(beta).enumerate() {
            (*gamma, *beta) = (self.total(which, c) as f32, self.total(0, c) as f32);
        }
    }

    /// A sum of channel `c` over all tiles.
    fn total(&self, which: usize, c: usize) -> f64 {
        self.totals[(c / PANEL * SUMS + which) * PANEL + c % PANEL]
    }
}

impl Statistics {
    /// Room for `channels` channels.
    pub fn new(channels: usize) -> Self {
        Self { mean: vec![0.0; channels], variance: vec![0.0; channels], rows: 0 }
    }

    /// Takes mean and variance from the sums of [`Epilogue::Measure`] over `rows` rows.
    ///
    /// [`Epilogue::Measure`]: crate::Epilogue::Measure
    pub fn set(&mut self, sums: &Sums, rows: usize, pivot: &[f32]) {
        self.rows = rows;
        for (c, &pivot) in pivot.iter().enumerate() {
            let shift = sums.total(0, c) / rows as f64;
            self.mean[c] = (f64::from(pivot) + shift) as f32;
            self.variance[c] = (sums.total(1, c) / rows as f64 - shift * shift).max(0.0) as f32;
        }
    }

    /// Takes statistics that are given, such as the running ones, and no function of this batch.
    pub fn fix(&mut self, mean: &[f32], variance: &[f32]) {
        self.rows = 0;
        self.mean.copy_from_slice(mean);
        self.variance.copy_from_slice(variance);
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

    /// Gradients by gamma and beta and the slope of the normalisation, from the sums of [`Epilogue::Mask`];
    /// `which` of its normalisations (1 or 2) is this.
    ///
    /// [`Epilogue::Mask`]: crate::Epilogue::Mask
    pub fn backward(
        &self,
        norm: BatchNorm,
        sums: &Sums,
        which: usize,
        gamma: &[f32],
        gradients: NormGradients,
    ) {
        // What does not depend on the batch passes no gradient on.
        let count = if self.rows == 0 { f64::INFINITY } else { self.rows as f64 };
        for c in 0..self.mean.len() {
            let (s1, s2) = (sums.total(0, c), sums.total(which, c));
            let inverse = 1.0 / (f64::from(self.variance[c]) + f64::from(norm.epsilon)).sqrt();
            let scale = f64::from(gamma[c]) * inverse;
            let b = -scale * inverse * inverse * s2 / count;
            gradients.gamma[c] = (s2 * inverse) as f32;
            gradients.beta[c] = s1 as f32;
            let slope = &mut *gradients.slope;
            slope.a[c] = scale as f32;
            slope.b[c] = b as f32;
            slope.c[c] = (-scale * s1 / count - b * f64::from(self.mean[c])) as f32;
        }
    }
}

#[inline(always)]
fn add(total: &mut [f64], values: &[f32]) {
    for (total, &value) in total.iter_mut().zip(values) {
        *total += f64::from(value);
    }
}
