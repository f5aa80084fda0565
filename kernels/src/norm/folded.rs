//! The data of normalisation: what convolutions' epilogues and elementwise passes read of it.

/// The constants of a normalisation.
#[derive(Clone, Copy, Debug)]
pub struct BatchNorm {
    /// Added to the variance.
    pub epsilon: f32,
    /// Share of the new batch in the running statistics.
    pub momentum: f32,
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
pub enum Identity<'a, T> {
    /// Nothing.
    None,
    /// The block's input.
    Plain(&'a [T]),
    /// The projection, yet to be normalised.
    Projected(&'a [T], &'a Folded),
}

/// The gradient by a normalisation's output as `a*g + b*z + c` a channel: the gradient by its input.
#[derive(Clone, Debug)]
pub struct Slope {
    pub(crate) a: Vec<f32>,
    pub(crate) b: Vec<f32>,
    pub(crate) c: Vec<f32>,
}

/// What the backward pass of a normalisation gives.
pub struct NormGradients<'a> {
    /// The gradient by each channel's gamma.
    pub gamma: &'a mut [f32],
    /// By each channel's beta.
    pub beta: &'a mut [f32],
    /// What makes the gradient by its input of that by its output.
    pub slope: &'a mut Slope,
}

/// What a normalisation's backward sums need of its forward pass.
#[derive(Clone, Copy)]
pub struct Normalised<'a, T> {
    /// What was normalised.
    pub z: &'a [T],
    /// The mean that was subtracted.
    pub mean: &'a [f32],
}

/// Where a gradient passed the ReLU.
#[derive(Clone, Copy)]
pub enum Mask<'a, T> {
    /// Where the normalisation of this sum's `z` is positive.
    Folded(&'a Folded),
    /// Where the output is.
    Output(&'a [T]),
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
        mean: &[f32],
        variance: &[f32],
        gamma: &[f32],
        beta: &[f32],
    ) {
        for c in 0..self.scale.len() {
            self.scale[c] = gamma[c] / (variance[c] + norm.epsilon).sqrt();
            self.shift[c] = beta[c] - mean[c] * self.scale[c];
        }
    }
}

impl Slope {
    /// Room for `channels` channels.
    pub fn new(channels: usize) -> Self {
        Self { a: vec![0.0; channels], b: vec![0.0; channels], c: vec![0.0; channels] }
    }
}
