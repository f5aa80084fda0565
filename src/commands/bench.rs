//! `hfl bench`: step time of this machine, forward to parameter update, in one process.

use std::time::Instant;

use kernels::{Arena, Isa, Pool, Sgd};
use serde::Serialize;

use crate::commands::core_latency::round_trip;
use crate::commands::tier;
use crate::data::batch::Batch;
use crate::job::rng::Stream;
use crate::job::shape::Shape;
use crate::job::{Algorithm, Arch, Precision, Stem};
use crate::model::Model;
use crate::model::gradients::{Bucket, Pieces};
use crate::model::inference::Inference;
use crate::model::init;
use crate::model::network::Network;
use crate::progress::{Progress, Unit};
use crate::training::update::{trained, update_part};

/// What to time.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// First layers of the network.
    pub stem: Stem,
    /// Number format.
    pub precision: Precision,
    /// How convolutions are computed.
    pub conv: Algorithm,
    /// Of the images.
    pub shape: Shape,
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
    /// Training steps in turns with the same on one thread.
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
    /// Instruction-set tier of its products.
    pub isa: &'static str,
    /// Why no better one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_better_isa: Option<String>,
    /// Height and width of an image.
    pub image_size: usize,
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
    /// Median of the ratios of steps of the same turn: how many times as fast all threads are.
    pub speedup: f64,
    /// Median time, before the steps of all threads, in which a cache line went from one to another and back: a
    /// few tens of nanoseconds between cores that share a last-level cache, some hundreds between others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub round_trip_ns: Option<f64>,
}

/// The update of a step, as a parameter server does it; each tensor has its own decay.
const STEP: Sgd = Sgd { rate: 0.01, momentum: 0.9, decay: 0.0, scale: 1.0, nesterov: false };
/// That of the weights.
const WEIGHT_DECAY: f32 = 5e-4;
/// Steps before the timed ones: the first takes the pages, the second meets cold branches, the third is as all others.
const WARM_UP: usize = 3;

/// Times whole training steps, or forward passes, on random images.
///
/// # Errors
/// When the system has not enough memory, or the CPU not the instructions.
pub fn run(options: Options) -> std::io::Result<Report> {
    let Options { stem, batch: n, threads, precision, conv, inference, .. } = options;
    let isa = tier::of(options.isa, precision);
    let network =
        Network::new(Arch::default(), stem, options.shape).map_err(std::io::Error::other)?;
    // Two operations a multiplication; forward, gradient by input and gradient by weight.
    let passes = if inference { 1 } else { 3 };
    let operations = 2 * passes * network.multiplications() * n;
    let Times { ways, round_trips, arena_bytes } = match inference {
        true => infer(options, network)?,
        false => train(options, network)?,
    };
    let all = ways[0].iter().copied();
    let scaling = ways.get(1).map(|alone| Scaling {
        alone_s: median(alone.iter().copied()),
        speedup: median(alone.iter().zip(all.clone()).map(|(alone, all)| alone / all)),
        round_trip_ns: (!round_trips.is_empty()).then(|| 1e9 * median(round_trips.into_iter())),
    });
    let (least, median) = (all.clone().fold(f64::INFINITY, f64::min), median(all));
    Ok(Report {
        what: if inference { "hfl inference" } else { "hfl training step" },
        stem,
        precision,
        conv,
        isa: isa.name(),
        no_better_isa: tier::why_no_better(isa, precision),
        image_size: options.shape.side,
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

/// What was timed, in seconds.
struct Times {
    /// Each step, on all threads and, where that is asked for, on one.
    ways: Vec<Vec<f64>>,
    /// Of a cache line, before those on all where there are others.
    round_trips: Vec<f64>,
    /// Of the arenas.
    arena_bytes: usize,
}

/// Training steps.
fn train(options: Options, network: Network) -> std::io::Result<Times> {
    let (precision, conv) = (options.precision, options.conv);
    let mut params = Arena::new(network.layout.len)?;
    init::initialise_in(&network.layout, 1, init::IDENTITY_BLOCKS, params.as_mut_slice());
    let mut velocity = Arena::new(network.layout.trained)?;
    let mut gradients = Arena::new(network.layout.len)?;
    let batch = random_batch(network.shape, options.batch);
    let mut pools = vec![Pool::new(options.threads)];
    pools.extend(options.scaling.then(|| Pool::new(1)));
    let pool = pools[0].clone();
    let mut model = Model::new(network, precision, conv, options.batch, pool, options.isa)?;
    let trained = trained(&model.network().layout, WEIGHT_DECAY, 1.0);
    let mut round_trips = Vec::new();
    let ways = timed(options.steps, pools.len(), |turn| {
        if options.scaling && turn == 0 {
            round_trips.extend(round_trip(&pools[0]).map(|trip| trip.as_secs_f64()));
        }
        model.compute_on(pools[turn].clone());
        let (params, velocity) = (params.as_mut_slice(), velocity.as_mut_slice());
        // A benchmark has no model to spoil.
        let update = |part: Bucket| {
            let _ = update_part(&trained, options.isa, STEP, part, velocity);
        };
        seconds(|| {
            model.step(params, &batch, gradients.as_mut_slice(), Pieces::Small, update);
        })
    });
    Ok(Times { ways, round_trips, arena_bytes: model.arena_len() })
}

/// Forward passes.
fn infer(options: Options, network: Network) -> std::io::Result<Times> {
    let params = init::initialise(&network.layout, 1, init::IDENTITY_BLOCKS);
    let (pool, isa) = (Pool::new(options.threads), options.isa);
    let batch = random_batch(network.shape, options.batch);
    let network = network.computed(options.conv);
    let mut model = Inference::new(network, params, options.batch, pool, isa)?;
    let ways = timed(options.steps, 1, |_| {
        seconds(|| {
            std::hint::black_box(model.run(&batch));
        })
    });
    Ok(Times { ways, round_trips: Vec::new(), arena_bytes: model.arena_len() })
}

fn seconds(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

/// What so many steps take, after those to warm up, for each of some ways, which take turns. The first step after
/// another way is not timed: it takes longer than those that follow, as most do in a training run.
fn timed(steps: usize, ways: usize, mut step: impl FnMut(usize) -> f64) -> Vec<Vec<f64>> {
    let mut times = vec![Vec::with_capacity(steps); ways];
    let progress = Progress::new("timed", (WARM_UP + steps) as u64, Unit::Steps);
    for round in 0..WARM_UP + steps {
        for (way, times) in times.iter_mut().enumerate() {
            if ways > 1 {
                step(way);
            }
            let taken = step(way);
            if round >= WARM_UP {
                times.push(taken);
            }
        }
        progress.advance(1);
    }
    times
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    (values[(values.len() - 1) / 2] + values[values.len() / 2]) / 2.0
}

fn random_batch(shape: Shape, n: usize) -> Batch {
    let stream = Stream::new(1, "bench");
    let images = (0..(n * shape.image_len()) as u64).map(|i| stream.normal(i)).collect();
    let labels = (0..n).map(|i| (i % shape.classes) as u8).collect();
    Batch { images, labels }
}
