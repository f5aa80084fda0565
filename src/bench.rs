//! `hfl bench`: step time of this machine, forward to parameter update, in one process.

use std::time::Instant;

use kernels::{Arena, Isa, Pool, Sgd};
use serde::Serialize;

use crate::cifar::{Batch, CLASSES, COLOURS, SIDE};
use crate::inference::Inference;
use crate::init;
use crate::job::{Algorithm, Precision, Stem};
use crate::model::Model;
use crate::network::Network;
use crate::params::{Kind, Layout};
use crate::resnet::Part;
use crate::rng::Stream;

/// What to time.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// First layers of the network.
    pub stem: Stem,
    /// Number format.
    pub precision: Precision,
    /// How convolutions are computed.
    pub conv: Algorithm,
    /// Images of a step.
    pub batch: usize,
    /// Threads.
    pub threads: usize,
    /// Timed steps, after three that are not.
    pub steps: usize,
    /// Instruction-set tier.
    pub isa: Isa,
    /// Forward passes with running statistics instead of training steps; always `f32`.
    pub inference: bool,
}

/// What was measured.
#[derive(Debug, Serialize)]
pub struct Report {
    /// "hfl training step" or "hfl inference".
    pub what: &'static str,
    /// First layers of the network.
    pub stem: Stem,
    /// Number format.
    pub precision: Precision,
    /// How convolutions are computed.
    pub conv: Algorithm,
    /// Instruction-set tier.
    pub isa: &'static str,
    /// Images of a step.
    pub batch: usize,
    /// Threads.
    pub threads: usize,
    /// Median time of a step, in seconds.
    pub median_s: f64,
    /// Shortest time of a step.
    pub min_s: f64,
    /// Images a second at the median.
    pub images_per_s: f64,
    /// Arithmetic of the direct convolution (no products with padding) a second at the median, in units
    /// of 10^9.
    pub gflops: f64,
    /// Bytes of activations and gradients inside the network.
    pub arena_bytes: usize,
}

/// Steps before the timed ones.
const WARM_UP: usize = 3;

/// Times whole training steps, or forward passes, on random images.
///
/// # Errors
/// When the system has not enough memory, or the CPU not the instructions.
pub fn run(options: Options) -> std::io::Result<Report> {
    let Options { stem, batch: n, threads, steps, isa, precision, conv, inference } = options;
    let network = Network::resnet50(stem).map_err(std::io::Error::other)?;
    // Two operations a multiplication; forward, gradient by input and gradient by weight.
    let passes = if inference { 1 } else { 3 };
    let operations = 2 * passes * network.multiplications() * n;
    let (mut times, arena_bytes) = match inference {
        true => infer(options, network)?,
        false => train(options, network)?,
    };
    let kept = &mut times[WARM_UP..];
    kept.sort_by(f64::total_cmp);
    let median = (kept[(steps - 1) / 2] + kept[steps / 2]) / 2.0;
    Ok(Report {
        what: if inference { "hfl inference" } else { "hfl training step" },
        stem,
        precision,
        conv,
        isa: isa.name(),
        batch: n,
        threads,
        median_s: median,
        min_s: kept[0],
        images_per_s: n as f64 / median,
        gflops: operations as f64 / median / 1e9,
        arena_bytes,
    })
}

/// Seconds of each step, and the arena's bytes.
fn train(options: Options, network: Network) -> std::io::Result<(Vec<f64>, usize)> {
    let way = (options.precision, options.conv);
    let mut params = Arena::new(network.layout.len)?;
    init::initialise_in(&network.layout, 1, init::IDENTITY_BLOCKS, params.as_mut_slice());
    let mut velocity = Arena::new(network.layout.trained)?;
    let mut gradients = Arena::new(network.layout.len)?;
    let batch = random_batch(options.batch);
    let exec = (Pool::new(options.threads), options.isa);
    let mut model = Model::new(network, way, options.batch, exec)?;
    let layout = model.network().layout.clone();
    let times = timed(options.steps, || {
        let (params, velocity) = (params.as_mut_slice(), velocity.as_mut_slice());
        model.step(params, &batch, gradients.as_mut_slice(), |part| {
            update(&layout, options.isa, part, velocity);
        });
    });
    Ok((times, model.arena_len()))
}

/// Seconds of each forward pass, and the arenas' bytes.
fn infer(options: Options, network: Network) -> std::io::Result<(Vec<f64>, usize)> {
    let params = init::initialise(&network.layout, 1, init::IDENTITY_BLOCKS);
    let exec = (Pool::new(options.threads), options.isa);
    let mut model = Inference::new(network.computed(options.conv), params, options.batch, exec)?;
    let batch = random_batch(options.batch);
    let times = timed(options.steps, || {
        std::hint::black_box(model.run(&batch));
    });
    Ok((times, model.arena_len()))
}

/// Seconds of each call, those for warming up included.
fn timed(steps: usize, mut step: impl FnMut()) -> Vec<f64> {
    let time = |_| {
        let start = Instant::now();
        step();
        start.elapsed().as_secs_f64()
    };
    (0..WARM_UP + steps).map(time).collect()
}

/// One SGD step over the trained tensors of a part, as the parameter server does it.
fn update(layout: &Layout, isa: Isa, part: Part, velocity: &mut [f32]) {
    let Part { range, params, gradients, .. } = part;
    let trained = layout.tensors.iter().filter(|tensor| tensor.kind != Kind::Statistic);
    for tensor in trained.filter(|tensor| range.contains(&tensor.range.start)) {
        let decay = if tensor.kind == Kind::Weight { 5e-4 } else { 0.0 };
        let step = Sgd { rate: 0.01, momentum: 0.9, decay, scale: 1.0 };
        let here = tensor.range.start - range.start..tensor.range.end - range.start;
        let velocity = &mut velocity[tensor.range.clone()];
        step.update(isa, &mut params[here.clone()], velocity, &gradients[here]);
    }
}

fn random_batch(n: usize) -> Batch {
    let stream = Stream::new(1, "bench");
    let images = (0..(n * SIDE * SIDE * COLOURS) as u64).map(|i| stream.normal(i)).collect();
    let labels = (0..n).map(|i| (i % CLASSES) as u8).collect();
    Batch { images, labels }
}
