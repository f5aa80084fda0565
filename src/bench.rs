//! `hfl bench`: step time of this machine, forward to parameter update, in one process.

use std::ops::Range;
use std::time::Instant;

use kernels::{Arena, Isa, Pool, Sgd};
use serde::Serialize;

use crate::backlog::{Part, Pieces};
use crate::cifar::{Batch, CLASSES, COLOURS, SIDE};
use crate::inference::Inference;
use crate::init;
use crate::job::{Algorithm, Precision, Stem};
use crate::model::Model;
use crate::network::Network;
use crate::params::{Kind, Layout};
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
    /// After each training step the same on one thread.
    pub scaling: bool,
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
    /// Against one thread, if that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scaling: Option<Scaling>,
}

/// What more threads bring.
#[derive(Debug, Serialize)]
pub struct Scaling {
    /// Median time of a step on one thread.
    pub alone_s: f64,
    /// Median of the ratios of steps that followed each other: how many times as fast all threads are.
    pub speedup: f64,
}

/// Steps before the timed ones.
const WARM_UP: usize = 3;

/// Times whole training steps, or forward passes, on random images.
///
/// # Errors
/// When the system has not enough memory, or the CPU not the instructions.
pub fn run(options: Options) -> std::io::Result<Report> {
    let Options { stem, batch: n, threads, isa, precision, conv, inference, .. } = options;
    let network = Network::resnet50(stem).map_err(std::io::Error::other)?;
    // Two operations a multiplication; forward, gradient by input and gradient by weight.
    let passes = if inference { 1 } else { 3 };
    let operations = 2 * passes * network.multiplications() * n;
    let (times, arena_bytes) = match inference {
        true => infer(options, network)?,
        false => train(options, network)?,
    };
    let all = times[0].iter().copied();
    let scaling = times.get(1).map(|alone| Scaling {
        alone_s: median(alone.iter().copied()),
        speedup: median(alone.iter().zip(all.clone()).map(|(alone, all)| alone / all)),
    });
    let (least, median) = (all.clone().fold(f64::INFINITY, f64::min), median(all));
    Ok(Report {
        what: if inference { "hfl inference" } else { "hfl training step" },
        stem,
        precision,
        conv,
        isa: isa.name(),
        batch: n,
        threads,
        median_s: median,
        min_s: least,
        images_per_s: n as f64 / median,
        gflops: operations as f64 / median / 1e9,
        arena_bytes,
        scaling,
    })
}

/// Seconds of each step, on all threads and, where that is asked for, on one; and the arena's bytes.
fn train(options: Options, network: Network) -> std::io::Result<(Vec<Vec<f64>>, usize)> {
    let way = (options.precision, options.conv);
    let mut params = Arena::new(network.layout.len)?;
    init::initialise_in(&network.layout, 1, init::IDENTITY_BLOCKS, params.as_mut_slice());
    let mut velocity = Arena::new(network.layout.trained)?;
    let mut gradients = Arena::new(network.layout.len)?;
    let batch = random_batch(options.batch);
    let mut pools = vec![Pool::new(options.threads)];
    pools.extend(options.scaling.then(|| Pool::new(1)));
    let exec = (pools[0].clone(), options.isa);
    let mut model = Model::new(network, way, options.batch, exec)?;
    let trained = trained(&model.network().layout);
    let times = timed(options.steps, pools.len(), |turn| {
        model.compute_on(pools[turn].clone());
        let (params, velocity) = (params.as_mut_slice(), velocity.as_mut_slice());
        let update = |part: Part| update(&trained, options.isa, part, velocity);
        model.step(params, &batch, gradients.as_mut_slice(), (Pieces::Small, update));
    });
    Ok((times, model.arena_len()))
}

/// Seconds of each forward pass, and the arenas' bytes.
fn infer(options: Options, network: Network) -> std::io::Result<(Vec<Vec<f64>>, usize)> {
    let params = init::initialise(&network.layout, 1, init::IDENTITY_BLOCKS);
    let exec = (Pool::new(options.threads), options.isa);
    let mut model = Inference::new(network.computed(options.conv), params, options.batch, exec)?;
    let batch = random_batch(options.batch);
    let times = timed(options.steps, 1, |_| {
        std::hint::black_box(model.run(&batch));
    });
    Ok((times, model.arena_len()))
}

/// Seconds of so many steps for each of some ways, which take turns.
fn timed(steps: usize, ways: usize, mut step: impl FnMut(usize)) -> Vec<Vec<f64>> {
    let mut times = vec![Vec::with_capacity(steps); ways];
    for round in 0..WARM_UP + steps {
        for (way, times) in times.iter_mut().enumerate() {
            let start = Instant::now();
            step(way);
            if round >= WARM_UP {
                times.push(start.elapsed().as_secs_f64());
            }
        }
    }
    times
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    (values[(values.len() - 1) / 2] + values[values.len() / 2]) / 2.0
}

/// One SGD step over the values of a part that are of trained tensors, as the parameter server does it. `trained`
/// are those in order, each with its decay.
fn update(trained: &[(Range<usize>, f32)], isa: Isa, part: Part, velocity: &mut [f32]) {
    let Part { range, params, gradients, .. } = part;
    let first = trained.partition_point(|(tensor, _)| tensor.end <= range.start);
    for (tensor, decay) in trained[first..].iter().take_while(|(t, _)| t.start < range.end) {
        let here = tensor.start.max(range.start)..tensor.end.min(range.end);
        let step = Sgd { rate: 0.01, momentum: 0.9, decay: *decay, scale: 1.0 };
        let velocity = &mut velocity[here.clone()];
        let here = here.start - range.start..here.end - range.start;
        step.update(isa, &mut params[here.clone()], velocity, &gradients[here]);
    }
}

/// The trained tensors, which a layout has in the order of the buffer, and their decay.
fn trained(layout: &Layout) -> Vec<(Range<usize>, f32)> {
    let decay = |kind| if kind == Kind::Weight { 5e-4 } else { 0.0 };
    let trained = layout.tensors.iter().filter(|tensor| tensor.kind != Kind::Statistic);
    trained.map(|tensor| (tensor.range.clone(), decay(tensor.kind))).collect()
}

fn random_batch(n: usize) -> Batch {
    let stream = Stream::new(1, "bench");
    let images = (0..(n * SIDE * SIDE * COLOURS) as u64).map(|i| stream.normal(i)).collect();
    let labels = (0..n).map(|i| (i % CLASSES) as u8).collect();
    Batch { images, labels }
}
