//! Support: what the participants of a simulated job are, and what they compute: pure functions.

use hfl::job::rng::Stream;
use hfl::job::schedule::Schedule;
use hfl::job::state::State;
use hfl::job::{Algorithm, Augment, Job, Order};
use hfl::model::params::{Kind, Layout};

use crate::cluster::{STEPS, WORKERS};

/// The training before its first step.
pub(crate) fn start(job: &Job, layout: &Layout) -> State {
    let stream = Stream::new(7, "start");
    let params = (0..layout.len as u64).map(|i| stream.normal(i)).collect();
    State::new(params, layout.trained, WORKERS).averaging(job.recipe.averages())
}

pub(crate) fn layout() -> Layout {
    Layout::new([
        ("a.weight".into(), vec![150], Kind::Weight),
        ("a.bias".into(), vec![30], Kind::Affine),
        ("a.running_mean".into(), vec![37], Kind::Statistic),
    ])
}

pub(crate) fn job() -> Job {
    Job {
        conv: Algorithm::Direct,
        workers: WORKERS,
        batch_size: 8,
        epochs: 1,
        steps: Some(STEPS),
        schedule: Schedule::Cosine { rate: 0.1, warm_up: None },
        augment: Augment::None,
        order: Order::Sequential,
        ..Job::default()
    }
}

/// Samples of a worker.
pub(crate) fn samples(worker: usize) -> u64 {
    14 + worker as u64
}

/// Gradients as a pure function of parameters, worker and step, like a real model's.
pub(crate) fn gradients(worker: usize, step: u64, params: &[f32]) -> (u32, f32, Vec<f32>) {
    let stream = Stream::new(worker as u64, "gradient");
    let values =
        params.iter().enumerate().map(|(i, &p)| 0.3 * p + stream.normal(step << 20 | i as u64));
    (3 + worker as u32, 1.0 + worker as f32 / (1.0 + step as f32), values.collect())
}

/// What a worker finds on its test images, a pure function of the parameters too; the second has none.
pub(crate) fn table(worker: usize, params: &[f32]) -> Vec<u32> {
    let bits =
        params.iter().fold(worker as u64, |sum, p| sum.rotate_left(7) ^ u64::from(p.to_bits()));
    let stream = Stream::new(bits, "table");
    let counts = (0..100).map(|at| stream.words(at)[0] % 5);
    if worker == 1 { Vec::new() } else { counts.collect() }
}

/// What a worker contributes to a round of so many steps: samples, loss, and gradients or what it changed.
pub(crate) fn computed(
    job: &Job,
    worker: usize,
    (step, count): (u64, u64),
    (params, trained): (&mut [f32], usize),
) -> (u32, f32, Vec<f32>) {
    match job.is_local() {
        false => gradients(worker, step, params),
        true => difference(worker, (step, count), params, trained),
    }
}

/// What so many steps of a worker's own change.
fn difference(
    worker: usize,
    (first, count): (u64, u64),
    params: &mut [f32],
    trained: usize,
) -> (u32, f32, Vec<f32>) {
    let start = params.to_vec();
    let (mut all, mut last, mut statistics) = (0, 0.0, Vec::new());
    for step in first..first + count {
        let (samples, loss, values) = gradients(worker, step, params);
        (all, last) = (all + samples, loss);
        let (gradients, replaced) = values.split_at(trained);
        params.iter_mut().zip(gradients).for_each(|(param, gradient)| *param -= 0.05 * gradient);
        statistics = replaced.to_vec();
        params[trained..].copy_from_slice(&statistics);
    }
    let trained = params.iter().zip(&start).take(trained).map(|(param, start)| param - start);
    (all, last, trained.chain(statistics).collect())
}
