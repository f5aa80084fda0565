//! Commands of one machine: to try, to evaluate, to time.

use std::path::PathBuf;

use argh::FromArgs;

use super::choice::IsaChoice;
use crate::commands::saved::saved_model;
use crate::commands::{bench, demo, eval};
use crate::data::dataset::Split;
use crate::data::hold_out::HoldOut;
use crate::data::source::Selection;
use crate::failure::{Doing, Failure};
use crate::job::shape::Shape;
use crate::job::{Algorithm, Precision, Stem, WORKERS_MAX};
use crate::report::print;

/// Most threads: a typing error should not ask for all memory.
pub(super) const THREADS_MAX: usize = 256;

/// Train on this machine: ps0 and workers as processes, then evaluate.
#[derive(FromArgs, Debug)]
#[argh(
    subcommand,
    name = "demo",
    example = "{command_name}\n{command_name} --data cifar-10 --epochs 2"
)]
pub(super) struct DemoArgs {
    /// directory with CIFAR-10 binary files [images that hfl draws]
    #[argh(option)]
    data: Option<PathBuf>,
    /// working directory, holds data and model [demo]
    #[argh(option, default = "PathBuf::from(\"demo\")")]
    dir: PathBuf,
    /// number of workers [2]
    #[argh(option, default = "2")]
    workers: u16,
    /// passes over the data [as many as a few minutes allow]
    #[argh(option)]
    epochs: Option<u32>,
    /// first layers: imagenet or cifar [imagenet]
    #[argh(option, default = "Stem::Imagenet")]
    stem: Stem,
}

saved_model! {
    /// Evaluate a saved model: accuracy, precision and recall of each class, confusion matrix.
    #[derive(FromArgs, Debug)]
    #[argh(subcommand, name = "eval", example = "{command_name} --model-dir model --data cifar-10")]
    pub(super) struct EvalArgs {
        /// refuse a model of an earlier step: the place was set back [0]
        #[argh(option, default = "0")]
        min_step: u64,
        /// the parameters that were best on test images, instead of the last
        #[argh(switch)]
        best: bool,
        /// CIFAR's binary files, test/CLASS/PICTURE (PNG, JPEG), or an .npz file [data]
        #[argh(option, default = "PathBuf::from(\"data\")")]
        data: PathBuf,
        /// CSV file for each image's class, the one found, and all probabilities
        #[argh(option)]
        predictions: Option<PathBuf>,
        /// part of the pictures in CLASS/PICTURE that is tested with, as in the job
        #[argh(option)]
        hold_out: Option<HoldOut>,
        /// average the probabilities of each image and of its mirror image
        #[argh(switch)]
        mirrored: bool,
        /// images to use: test or train [test]
        #[argh(option, default = "Split::Test", from_str_fn(split))]
        split: Split,
        /// threads [all cores]
        #[argh(option, default = "cores()")]
        threads: usize,
        /// instruction set: auto, amx, avx512, avx2 or portable [auto]
        #[argh(option, default = "IsaChoice::auto()")]
        isa: IsaChoice,
        /// one JSON object on stdout
        #[argh(switch)]
        json: bool,
    }
}

/// Time training steps of this machine: forward, backward, update, in one process.
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "bench", example = "{command_name} --stem cifar --batch 64 --json")]
pub(super) struct BenchArgs {
    /// first layers: imagenet or cifar [imagenet]
    #[argh(option, default = "Stem::Imagenet")]
    stem: Stem,
    /// number format: fp32, or bf16 (faster, needs AMX or AVX512-BF16) [fp32]
    #[argh(option, default = "Precision::Fp32")]
    precision: Precision,
    /// convolutions: auto (Winograd's, Strassen's) or direct [auto]
    #[argh(option, default = "Algorithm::Auto")]
    conv: Algorithm,
    /// images of a step [128]
    #[argh(option, default = "128")]
    batch: usize,
    /// height and width of an image: 32 to 256 in steps of 32 [32]
    #[argh(option, default = "Shape::CIFAR.side")]
    image_size: usize,
    /// threads [all cores]
    #[argh(option, default = "cores()")]
    threads: usize,
    /// timed steps, after three that are not [6]
    #[argh(option, default = "6")]
    steps: usize,
    /// instruction set: auto, amx, avx512, avx2 or portable [auto]
    #[argh(option, default = "IsaChoice::auto()")]
    isa: IsaChoice,
    /// forward passes as hfl eval runs them, not training steps
    #[argh(switch)]
    inference: bool,
    /// in turns with steps on one thread: how many times as fast all are
    #[argh(switch)]
    scaling: bool,
    /// one JSON object on stdout
    #[argh(switch)]
    json: bool,
}

pub(super) fn run_demo(args: &DemoArgs) -> Result<(), Failure> {
    if !(1..=WORKERS_MAX).contains(&args.workers) {
        return Err(Failure::usage(format!("--workers: expected 1 to {WORKERS_MAX}")));
    }
    demo::run(&demo::Options {
        data: args.data.clone(),
        directory: args.dir.clone(),
        workers: args.workers,
        epochs: args.epochs,
        stem: args.stem,
        threads: cores(),
    })
}

pub(super) fn run_eval(args: &EvalArgs) -> Result<(), Failure> {
    let evaluation = eval::run(&eval::Options {
        place: &args.place(args.min_step),
        best: args.best,
        mirrored: args.mirrored,
        data: &args.data,
        selection: Selection { split: args.split, shard: None, hold_out: args.hold_out },
        threads: args.threads,
        isa: args.isa.0,
        predictions: args.predictions.as_deref(),
    })?;
    if args.json {
        return print(&serde_json::to_string(&evaluation).doing("report")?);
    }
    print(&evaluation.to_string())
}

pub(super) fn run_bench(args: &BenchArgs) -> Result<(), Failure> {
    if args.steps == 0 || args.batch == 0 || args.threads == 0 {
        return Err(Failure::usage("--steps, --batch and --threads count from 1"));
    }
    if args.inference && args.precision != Precision::Fp32 {
        return Err(Failure::usage("--inference runs in fp32 only").hint("without --precision"));
    }
    if args.inference && args.scaling {
        return Err(Failure::usage("--scaling times training steps").hint("without --inference"));
    }
    let shape = Shape { side: args.image_size, ..Shape::CIFAR };
    if shape.out_of_range().is_some() {
        return Err(Failure::usage("--image-size: expected 32 to 256 in steps of 32"));
    }
    let report = bench::run(bench::Options {
        shape,
        stem: args.stem,
        precision: args.precision,
        conv: args.conv,
        batch: args.batch,
        threads: args.threads,
        steps: args.steps,
        isa: args.isa.0,
        inference: args.inference,
        scaling: args.scaling,
    })
    .doing("memory or instructions for a step")?;
    if args.json {
        return print(&serde_json::to_string(&report).doing("report")?);
    }
    let scaling = |scaling: &bench::Scaling| {
        let bench::Scaling { alone_s, speedup, round_trip_ns } = scaling;
        let trip = |ns: f64| format!(", a cache line there and back in {ns:.0} ns");
        let trip = round_trip_ns.map_or(String::new(), trip);
        format!(", {speedup:.2} times as fast as on 1 ({alone_s:.4} s){trip}")
    };
    let scaling = report.scaling.as_ref().map_or(String::new(), scaling);
    let better = report.no_better_isa.as_ref().map_or(String::new(), |why| format!(" ({why})"));
    print(&format!(
        "{} stem, {}, {} convolutions, {} pixels, batch {}, {} threads, {}: median {:.4} s, min {:.4} s a step, \
         {:.1} images/s, {:.1} GFLOP/s{scaling}{better}",
        report.stem,
        report.precision,
        report.conv,
        report.image_size,
        report.batch,
        report.threads,
        report.isa,
        report.median_s,
        report.min_s,
        report.images_per_s,
        report.gflops
    ))
}

fn split(text: &str) -> Result<Split, String> {
    match text {
        "test" => Ok(Split::Test),
        "train" => Ok(Split::Train),
        _ => Err("expected test or train".into()),
    }
}

/// Threads where none are named.
pub(super) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, |count| count.get().min(THREADS_MAX))
}
