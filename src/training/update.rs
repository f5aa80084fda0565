//! The update of a round: one step of SGD with the mean gradient, or the outer step with the mean difference.

use std::ops::Range;

use kernels::{Exec, Isa, Sgd, momentum_sgd, moving_average};

use crate::job::state::{Member, State};
use crate::job::{Job, Outer, Weighting};
use crate::model::gradients::Bucket;
use crate::model::params::{Kind, Layout, Tensor};
use crate::training::round::Round;

/// Applies a closed round to the state; statistics become the workers' mean. Whether all of it is finite.
pub fn update(
    job: &Job,
    layout: &Layout,
    state: &mut State,
    round: &Round,
    exec: Exec,
    steps: u64,
) -> bool {
    let rate = job.schedule.rate(state.step, steps);
    // All have the same then, and their mean would move by its rounding.
    let is_frozen = job.norm.is_frozen(state.step, steps);
    let (params, velocity) = state.values_mut();
    let scale = 1.0 / round.weight();
    let mut is_finite = true;
    for tensor in &layout.tensors {
        let range = tensor.range.clone();
        let sum = &round.sum()[range.clone()];
        let params = &mut params[range.clone()];
        is_finite &= match Trained::of(tensor, job.weight_decay, job.recipe.bias_rate) {
            None if is_frozen => true,
            None => replace(params, sum, scale),
            Some(_) if job.is_local() => {
                outer_step(job.outer, params, &mut velocity[range], sum, scale)
            }
            Some(own) => {
                let (momentum, nesterov) = (job.momentum, job.recipe.nesterov);
                let sgd = own.step(Sgd { rate, momentum, decay: 0.0, scale, nesterov });
                momentum_sgd(exec, sgd, params, &mut velocity[range], sum)
            }
        };
    }
    is_finite
}

/// Moves the averages, where the job has them, towards the parameters after a round of so many updates. Running
/// statistics are averaged too: those of the parameters at hand are of other activations than the averages make.
pub fn average(job: &Job, state: &mut State, exec: Exec, count: u64) {
    let kept = job.recipe.kept(state.step, count);
    if let Some((averages, params)) = state.average_mut() {
        moving_average(exec, kept, averages, params);
    }
}

/// What a worker's gradients weigh. Where all data is of one size, the samples of the batches say the same with
/// smaller numbers.
pub fn weight(job: &Job, members: &[Option<Member>], worker: u16, samples: u32) -> f32 {
    let [own, first] = [usize::from(worker), 0]
        .map(|index| members[index].as_ref().map_or(0, |member| member.samples));
    // Where somebody may come later, nothing depends on who is known by now.
    let is_even = job.quorum.is_none() && members.iter().flatten().all(|m| m.samples == first);
    match job.weighting {
        Weighting::Data if !is_even => own as f32,
        Weighting::Data | Weighting::Batch => samples as f32,
    }
}

/// A trained tensor, and what its steps have of their own.
#[derive(Clone, Debug)]
pub struct Trained {
    pub(crate) range: Range<usize>,
    pub(crate) decay: f32,
    /// Factor of the learning rate.
    rate: f32,
}

impl Trained {
    /// Where weights have that decay, and normalisations' biases that factor; none of what is not trained.
    fn of(tensor: &Tensor, decay: f32, bias_rate: f32) -> Option<Self> {
        let rate = if tensor.is_norm_bias() { bias_rate } else { 1.0 };
        let decay = match tensor.kind {
            Kind::Affine => 0.0,
            Kind::Weight => decay,
            Kind::Statistic => return None,
        };
        Some(Self { range: tensor.range.clone(), decay, rate })
    }

    /// This tensor's step.
    fn step(&self, step: Sgd) -> Sgd {
        Sgd { decay: self.decay, rate: self.rate * step.rate, ..step }
    }
}

/// Statistics become the workers' mean; whether all are finite.
pub(crate) fn replace(values: &mut [f32], sum: &[f32], scale: f32) -> bool {
    let mut is_finite = true;
    for (value, sum) in values.iter_mut().zip(sum) {
        *value = scale * sum;
        is_finite &= value.is_finite();
    }
    is_finite
}

/// Nesterov's momentum on the mean difference, whose negative stands for a gradient (Douillard et al., "DiLoCo:
/// distributed low-communication training of language models", 2023). With rate 1 and momentum 0 it is federated
/// averaging.
fn outer_step(
    Outer { rate, momentum }: Outer,
    params: &mut [f32],
    velocity: &mut [f32],
    sum: &[f32],
    scale: f32,
) -> bool {
    let mut largest = 0;
    for ((param, velocity), sum) in params.iter_mut().zip(velocity).zip(sum) {
        let difference = scale * sum;
        *velocity = momentum * *velocity + difference;
        *param += rate * (difference + momentum * *velocity);
        largest = param.abs().to_bits().max(velocity.abs().to_bits()).max(largest);
    }
    largest < f32::INFINITY.to_bits()
}

/// A worker's own optimiser, which begins anew with each round: what a worker sends depends on nothing but the
/// parameters and the step, so nothing of it can be lost.
pub struct Inner {
    /// Parameters that the round began with.
    start: Vec<f32>,
    velocity: Vec<f32>,
    trained: Vec<Trained>,
    momentum: f32,
    nesterov: bool,
}

impl Inner {
    /// Room for the optimiser.
    pub fn new(job: &Job, layout: &Layout) -> Self {
        Self {
            start: vec![0.0; layout.trained],
            velocity: vec![0.0; layout.trained],
            trained: trained(layout, job.weight_decay, job.recipe.bias_rate),
            momentum: job.momentum,
            nesterov: job.recipe.nesterov,
        }
    }

    /// Begins a round.
    pub fn begin(&mut self, params: &[f32]) {
        let trained = self.start.len();
        self.start.copy_from_slice(&params[..trained]);
        self.velocity.fill(0.0);
    }

    /// Updates a part; statistics are taken over.
    pub fn update(&mut self, isa: Isa, rate: f32, mut part: Bucket) {
        let of_trained = self.start.len().clamp(part.range.start, part.range.end);
        let len = of_trained - part.range.start;
        let statistics = len..part.range.len();
        part.params[statistics.clone()].copy_from_slice(&part.gradients[statistics]);
        part.range.end = of_trained;
        let (momentum, nesterov) = (self.momentum, self.nesterov);
        let sgd = Sgd { rate, momentum, decay: 0.0, scale: 1.0, nesterov };
        // What is not finite is found by who adds the differences up.
        let _ = update_part(&self.trained, isa, sgd, part, &mut self.velocity);
    }

    /// Turns the trained part of the gradients into the difference that the round made. The statistics in
    /// them are those of the last step.
    pub fn difference(&self, params: &[f32], gradients: &mut [f32]) {
        for ((gradient, param), start) in gradients.iter_mut().zip(params).zip(&self.start) {
            *gradient = param - start;
        }
    }
}

/// The trained tensors, which a layout has in the order of the buffer.
pub fn trained(layout: &Layout, decay: f32, bias_rate: f32) -> Vec<Trained> {
    layout.tensors.iter().filter_map(|tensor| Trained::of(tensor, decay, bias_rate)).collect()
}

/// One SGD step over the values of a part that are of trained tensors. `trained` are those in order. Whether all is
/// finite.
pub fn update_part(
    trained: &[Trained],
    isa: Isa,
    step: Sgd,
    part: Bucket,
    velocity: &mut [f32],
) -> bool {
    let Bucket { range, params, gradients, .. } = part;
    let first = trained.partition_point(|own| own.range.end <= range.start);
    let mut is_finite = true;
    for own in trained[first..].iter().take_while(|own| own.range.start < range.end) {
        let tensor = &own.range;
        let here = tensor.start.max(range.start)..tensor.end.min(range.end);
        let velocity = &mut velocity[here.clone()];
        let here = here.start - range.start..here.end - range.start;
        is_finite &=
            own.step(step).update(isa, &mut params[here.clone()], velocity, &gradients[here]);
    }
    is_finite
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outer_steps_are_averaging_and_nesterovs_momentum() {
        let sum = [4.0_f32, -8.0];
        let (mut params, mut velocity) = (vec![1.0_f32; 2], vec![0.0; 2]);
        assert!(outer_step(Outer::default(), &mut params, &mut velocity, &sum, 0.25));
        assert_eq!(params, [2.0, -1.0]);
        let outer = Outer { rate: 0.7, momentum: 0.9 };
        let (mut params, mut velocity) = (vec![1.0_f32; 2], vec![0.0; 2]);
        // PyTorch's SGD(lr=0.7, momentum=0.9, nesterov=True) with gradients -1, twice.
        let (mut weight, mut buffer) = (1.0_f32, 0.0_f32);
        for _ in 0..2 {
            assert!(outer_step(outer, &mut params, &mut velocity, &sum, 0.25));
            buffer = 0.9 * buffer - 1.0;
            weight -= 0.7 * (-1.0 + 0.9 * buffer);
        }
        assert_eq!(params[0], weight);
        assert!(!outer_step(outer, &mut params, &mut velocity, &[f32::NAN, 0.0], 0.25));
    }

    #[test]
    fn biases_of_normalisations_have_a_rate_of_their_own_and_parts_make_the_same_step() {
        let tensors = [("conv1.weight", Kind::Weight), ("bn1.weight", Kind::Affine)];
        let more = [("bn1.bias", Kind::Affine), ("fc.bias", Kind::Affine)];
        let named = tensors.into_iter().chain(more);
        let layout = Layout::new(named.map(|(name, kind)| (name.into(), vec![4], kind)));
        let trained = trained(&layout, 0.5, 8.0);
        let step = Sgd { rate: 0.1, momentum: 0.9, decay: 0.0, scale: 1.0, nesterov: true };
        let gradients = [1.0; 16];
        let after = |cuts: &[usize]| {
            let (mut params, mut velocity) = (vec![1.0; 16], vec![0.0; 16]);
            for pair in cuts.windows(2) {
                let range = pair[0]..pair[1];
                let params = &mut params[range.clone()];
                let gradients = &gradients[range.start..];
                let part = Bucket { loss: 0.0, range, params, gradients };
                assert!(update_part(&trained, Isa::Portable, step, part, &mut velocity));
            }
            params
        };
        let whole = after(&[0, 16]);
        assert_eq!(whole, after(&[0, 3, 9, 16]));
        // By Nesterov's momentum from rest a step is 1.9 gradients long.
        let long = [1.0 - 0.1 * 1.9 * 1.5, 1.0 - 0.1 * 1.9, 1.0 - 0.8 * 1.9, 1.0 - 0.1 * 1.9];
        for (found, want) in whole.chunks(4).zip(long) {
            assert!(found.iter().all(|value| (value - want).abs() < 1e-6), "{found:?} for {want}");
        }
    }
}
