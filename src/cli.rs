//! Every command, flag, default and help text: argv to what is to be run.

mod choice;

use std::path::PathBuf;
use std::time::Duration;

use argh::FromArgs;
use kernels::Isa;
use protocol::Role;

use crate::commands::bench;
use crate::commands::demo;
use crate::commands::doctor::{self, DoctorArgs};
use crate::commands::eval;
use crate::commands::initdata::{self, InitdataArgs};
use crate::commands::roster::{self, RosterArgs};
use crate::commands::secret::{self, SecretArgs};
use crate::commands::transfer::{self, ModelArgs};
use crate::commands::verify::{self, QuoteArgs, VerifyArgs};
use crate::commands::volumes::{self, LuksArgs, Size};
use crate::data::cifar::{Shard, Split};
use choice::{IsaChoice, ScheduleKind};

use crate::failure::{Doing, Failure};
use crate::hosts::HostList;
use crate::job::schedule::Schedule;
use crate::job::{
    Algorithm, Augment, BATCH_MAX, Job, Order, Precision, Stem, WORKERS_MAX, Weighting,
};
use crate::report::print;
use crate::termination;
use crate::training::roles;
use crate::training::store::Place;
use crate::trust::fetch::Service;
use crate::trust::passphrase::KeySource;
use crate::trust::{Attestation, Source, TrustOptions};

/// Horizontal federated learning of ResNet-50 in attested processes.
///
/// Run a role of a job (hfl --role ps0, hfl --role worker0, ...) or one of the commands.
#[derive(FromArgs, Debug)]
#[argh(
    example = "hfl demo\nhfl --role ps0 --attestation sim\nhfl --role worker0 --data cifar-10 --attestation sim",
    note = "A worker takes what defines the job (from --stem to --order) from ps0.",
    error_code(0, "done"),
    error_code(1, "failed"),
    error_code(2, "usage")
)]
pub struct Args {
    #[argh(subcommand)]
    command: Option<Command>,

    /// role to run: ps0, worker0, worker1, ...
    #[argh(option)]
    role: Option<Role>,
    /// added to a worker's number, where a site's own counting begins at worker0 [0]
    #[argh(option, default = "0")]
    first_worker: u16,
    /// host:port of ps0 [localhost:60002]
    #[argh(option, default = "list(\"localhost:60002\")")]
    ps_hosts: HostList,
    /// one host:port a worker; how many says how many workers [localhost:61002,localhost:61003]
    #[argh(option, default = "list(\"localhost:61002,localhost:61003\")")]
    worker_hosts: HostList,
    /// number of workers, instead of a list of hosts that nobody dials
    #[argh(option)]
    workers: Option<usize>,
    /// directory with CIFAR-10 binary files [data]
    #[argh(option, default = "PathBuf::from(\"data\")")]
    data: PathBuf,
    /// part I of N of the data, from 0, such as 0/2 [all]
    #[argh(option)]
    shard: Option<Shard>,
    /// where the model is kept [model]
    #[argh(option, default = "PathBuf::from(\"model\")")]
    model_dir: PathBuf,
    /// encrypted volume to keep the model in, instead of --model-dir (hfl luks create)
    #[argh(option)]
    volume: Option<PathBuf>,
    /// make the volume, of so many bytes (with K, M, G), if there is no such file
    #[argh(option)]
    create_volume: Option<Size>,
    /// file whose bytes are the volume's passphrase, - for stdin
    #[argh(option)]
    key_file: Option<PathBuf>,
    /// open file descriptor to read the volume's passphrase from
    #[argh(option)]
    key_fd: Option<u32>,
    /// host:port of the service that has the volume's passphrase (hfl secret serve)
    #[argh(option)]
    secret_service: Option<String>,
    /// name of the passphrase there [hfl-tdx-coco-app]
    #[argh(option, default = "Service::APP_ID.into()")]
    app_id: String,
    /// seconds to try for [120]
    #[argh(option, default = "Service::WAIT.as_secs()")]
    secret_wait: u64,
    /// refuse to resume from an earlier step: the place was set back [0]
    #[argh(option, default = "0")]
    min_step: u64,
    /// passes over the data [20]
    #[argh(option, default = "20")]
    epochs: u32,
    /// steps of the job, instead of --epochs
    #[argh(option)]
    steps: Option<u64>,
    /// images of one worker in a step [128]
    #[argh(option, default = "128")]
    batch_size: u32,
    /// largest learning rate [0.03]
    #[argh(option, default = "DEFAULT_RATE")]
    lr: f32,
    /// cosine (with warm-up) or constant [cosine]
    #[argh(option, default = "ScheduleKind::Cosine")]
    lr_schedule: ScheduleKind,
    /// steps over which the cosine's rate grows to its largest [a twentieth of all]
    #[argh(option)]
    warm_up: Option<u64>,
    /// share of the last velocity that SGD keeps [0.9]
    #[argh(option, default = "0.9")]
    momentum: f32,
    /// penalty on the weights of convolutions and of the classifier [0.0005]
    #[argh(option, default = "5e-4")]
    weight_decay: f32,
    /// weight of a worker: data (its share of all samples) or batch (of a step's) [data]
    #[argh(option, default = "Weighting::Data")]
    weighting: Weighting,
    /// seed of initialisation, order and augmentation [1]
    #[argh(option, default = "1")]
    seed: u64,
    /// first layers: imagenet (fast) or cifar (accurate) [imagenet]
    #[argh(option, default = "Stem::Imagenet")]
    stem: Stem,
    /// number format: fp32, or bf16 (faster, needs AVX512-BF16) [fp32]
    #[argh(option, default = "Precision::Fp32")]
    precision: Precision,
    /// convolutions: auto (Winograd's, Strassen's) or direct [auto]
    #[argh(option, default = "Algorithm::Auto")]
    conv: Algorithm,
    /// crop and flip: standard or none [standard]
    #[argh(option, default = "Augment::Standard")]
    augment: Augment,
    /// order of samples: shuffled or sequential [shuffled]
    #[argh(option, default = "Order::Shuffled")]
    order: Order,
    /// safetensors file that a new job starts from
    #[argh(option)]
    init: Option<PathBuf>,
    /// steps between checkpoints [400]
    #[argh(option, default = "400")]
    checkpoint_every: u64,
    /// minutes between checkpoints, where steps are long [10]
    #[argh(option, default = "10")]
    checkpoint_minutes: u64,
    /// threads of this role [all cores]
    #[argh(option, default = "cores()")]
    threads: usize,
    /// instruction set: auto, avx512, avx2 or portable [auto]
    #[argh(option, default = "IsaChoice(Isa::detect())")]
    isa: IsaChoice,
    /// source of evidence: auto, tdx, coco, azure or sim [auto]
    #[argh(option, default = "Attestation::Auto")]
    attestation: Attestation,
    /// collateral: file, https://PCCS:8081[#SHA256], folder to keep it in; as often as needed
    #[argh(option)]
    collateral: Vec<Source>,
    /// policy file that peers must satisfy; tdx needs one [sim: the same image as this one]
    #[argh(option)]
    policy: Option<PathBuf>,
    /// seconds for which a finished ps0 serves its volume, once, to hfl model pull [0]
    #[argh(option, default = "0")]
    linger: u64,
    /// one JSON object a line on stdout
    #[argh(switch)]
    json: bool,
    /// print the version
    #[argh(switch)]
    version: bool,
    /// what the simulated TD runs, for tests of who is refused
    #[argh(option, default = "TrustOptions::SIM_IMAGE.into()", hidden_help)]
    sim_image: String,
    /// milliseconds to wait before each step, for tests of slow workers
    #[argh(option, default = "0", hidden_help)]
    pause_ms: u64,
    /// process that started this one, to end with it
    #[argh(option, hidden_help)]
    with_parent: Option<u32>,
    /// seconds for which a worker tries to reach ps0, for tests of who gives up
    #[argh(option, default = "600", hidden_help)]
    wait: u64,
}

#[derive(FromArgs, Debug)]
#[argh(subcommand)]
enum Command {
    Bench(BenchArgs),
    Demo(DemoArgs),
    Doctor(DoctorArgs),
    Eval(EvalArgs),
    Initdata(InitdataArgs),
    Luks(LuksArgs),
    Model(ModelArgs),
    Quote(QuoteArgs),
    Roster(RosterArgs),
    Secret(SecretArgs),
    Verify(VerifyArgs),
}

/// Train on this machine: ps0 and workers as processes, then evaluate.
#[derive(FromArgs, Debug)]
#[argh(
    subcommand,
    name = "demo",
    example = "{command_name}\n{command_name} --data cifar-10 --epochs 2"
)]
struct DemoArgs {
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

/// Evaluate a saved model: accuracy, per-class table, confusion matrix.
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "eval", example = "{command_name} --model-dir model --data cifar-10")]
struct EvalArgs {
    /// directory of the model [model]
    #[argh(option, default = "PathBuf::from(\"model\")")]
    model_dir: PathBuf,
    /// encrypted volume with the model, instead of --model-dir
    #[argh(option)]
    volume: Option<PathBuf>,
    /// file whose bytes are the volume's passphrase, - for stdin
    #[argh(option)]
    key_file: Option<PathBuf>,
    /// open file descriptor to read the volume's passphrase from
    #[argh(option)]
    key_fd: Option<u32>,
    /// refuse a model of an earlier step: the place was set back [0]
    #[argh(option, default = "0")]
    min_step: u64,
    /// directory with CIFAR-10 binary files [data]
    #[argh(option, default = "PathBuf::from(\"data\")")]
    data: PathBuf,
    /// images to use: test or train [test]
    #[argh(option, default = "Split::Test", from_str_fn(split))]
    split: Split,
    /// threads [all cores]
    #[argh(option, default = "cores()")]
    threads: usize,
    /// instruction set: auto, avx512, avx2 or portable [auto]
    #[argh(option, default = "IsaChoice(Isa::detect())")]
    isa: IsaChoice,
    /// one JSON object on stdout
    #[argh(switch)]
    json: bool,
}

/// Time training steps of this machine: forward, backward, update, in one process.
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "bench", example = "{command_name} --stem cifar --batch 64 --json")]
struct BenchArgs {
    /// first layers: imagenet or cifar [imagenet]
    #[argh(option, default = "Stem::Imagenet")]
    stem: Stem,
    /// number format: fp32, or bf16 (faster, needs AVX512-BF16) [fp32]
    #[argh(option, default = "Precision::Fp32")]
    precision: Precision,
    /// convolutions: auto (Winograd's, Strassen's) or direct [auto]
    #[argh(option, default = "Algorithm::Auto")]
    conv: Algorithm,
    /// images of a step [128]
    #[argh(option, default = "128")]
    batch: usize,
    /// threads [all cores]
    #[argh(option, default = "cores()")]
    threads: usize,
    /// timed steps, after three that are not [6]
    #[argh(option, default = "6")]
    steps: usize,
    /// instruction set: auto, avx512, avx2 or portable [auto]
    #[argh(option, default = "IsaChoice(Isa::detect())")]
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

/// 22.7 % of CIFAR-10's test images after one epoch of two workers; 0.1 took PyTorch to 15 %.
const DEFAULT_RATE: f32 = 0.03;
/// Images of all workers in a step for which it was chosen.
const DEFAULT_IMAGES: f32 = 256.0;
/// Most threads: a typing error should not ask for all memory.
const THREADS_MAX: usize = 256;

/// `--name=value` as the two words that it stands for.
pub fn split_flag(word: &str) -> impl Iterator<Item = &str> {
    let (name, value) = match word.split_once('=') {
        Some((name, value)) if name.starts_with("--") => (name, Some(value)),
        _ => (word, None),
    };
    std::iter::once(name).chain(value)
}

/// Runs what the arguments ask for.
///
/// # Errors
/// Why it could not be done.
pub fn run(mut args: Args) -> Result<(), Failure> {
    if args.version {
        return print(concat!("hfl ", env!("CARGO_PKG_VERSION")));
    }
    match (args.command.take(), args.role) {
        (Some(Command::Bench(args)), _) => run_bench(&args),
        (Some(Command::Demo(args)), _) => run_demo(&args),
        (Some(Command::Doctor(args)), _) => doctor::run(&args),
        (Some(Command::Eval(args)), _) => run_eval(&args),
        (Some(Command::Initdata(args)), _) => initdata::run(&args),
        (Some(Command::Luks(args)), _) => volumes::run(args),
        (Some(Command::Model(args)), _) => transfer::run(args),
        (Some(Command::Quote(args)), _) => verify::show(&args),
        (Some(Command::Roster(args)), _) => roster::run(args),
        (Some(Command::Secret(args)), _) => secret::run(args),
        (Some(Command::Verify(args)), _) => verify::run(&args),
        (None, Some(role)) => {
            let role = numbered(role, args.first_worker)?;
            roles::run(&role_options(args, role)?)
        }
        (None, None) => Err(Failure::usage("nothing to do").hint("hfl --help, or hfl demo")),
    }
}

/// A worker's number in the job, where its site counts from 0.
fn numbered(role: Role, first: u16) -> Result<Role, Failure> {
    match role {
        Role::Worker(number) => number.checked_add(first).map(Role::Worker).ok_or_else(|| {
            Failure::usage(format!("--first-worker {first}: no worker has such a number"))
        }),
        role => Ok(role),
    }
}

fn role_options(args: Args, role: Role) -> Result<roles::Options, Failure> {
    check_numbers(&args)?;
    let named = args.key_file.is_some() || args.key_fd.is_some();
    if args.secret_service.is_some() && (named || args.volume.is_none()) {
        return Err(Failure::usage("--secret-service gives the passphrase of --volume")
            .hint("--volume, and neither --key-file nor --key-fd"));
    }
    if let Some(parent) = args.with_parent {
        termination::with_parent(parent)?;
    }
    match role {
        Role::Worker(_) => say_what_is_ignored(&args),
        _ => say_the_rule_of_the_rate(&args),
    }
    let wait = Duration::from_secs(args.secret_wait);
    Ok(roles::Options {
        role,
        job: job(&args)?,
        ps_hosts: args.ps_hosts.0,
        data: args.data,
        shard: args.shard,
        place: Place {
            model_dir: args.model_dir,
            volume: args.volume,
            create: args.create_volume.map(|size| size.0),
            key: KeySource { file: args.key_file, descriptor: args.key_fd },
            min_step: args.min_step,
        },
        init: args.init,
        checkpoint_every: args.checkpoint_every,
        checkpoint_after: Duration::from_secs(args.checkpoint_minutes.max(1).saturating_mul(60)),
        threads: args.threads,
        isa: args.isa.0,
        trust: TrustOptions {
            attestation: args.attestation,
            collateral: args.collateral,
            policy: args.policy,
            sim_image: args.sim_image,
        },
        service: args.secret_service.map(|address| Service { address, app_id: args.app_id, wait }),
        linger: Duration::from_secs(args.linger),
        json: args.json,
        pause: Duration::from_millis(args.pause_ms),
        wait: Duration::from_secs(args.wait),
    })
}

/// Numbers that the parser takes and no job can have.
fn check_numbers(args: &Args) -> Result<(), Failure> {
    let within = |what: &str, value: usize, max: usize| match (1..=max).contains(&value) {
        true => Ok(()),
        false => Err(Failure::usage(format!("{what} is {value}, expected 1 to {max}"))),
    };
    within("the number of workers", args.workers(), WORKERS_MAX.into())?;
    within("--threads", args.threads, THREADS_MAX)?;
    within("--batch-size", args.batch_size as usize, BATCH_MAX as usize)?;
    within("--epochs", args.epochs as usize, u32::MAX as usize)?;
    if args.steps == Some(0) || args.checkpoint_every == 0 {
        return Err(Failure::usage("--steps and --checkpoint-every count from 1"));
    }
    let parts = [
        ("--lr", args.lr, f32::MAX),
        ("--momentum", args.momentum, 1.0),
        ("--weight-decay", args.weight_decay, 1.0),
    ];
    for (name, value, max) in parts {
        if !(0.0..=max).contains(&value) {
            let end = if max == 1.0 { " to 1" } else { "" };
            return Err(Failure::usage(format!(
                "{name} is {value}, expected a number from 0{end}"
            )));
        }
    }
    let single = args.batch_size == 1 && Job::needs_two(args.stem);
    match single {
        true => Err(Failure::usage(
            "--batch-size 1: the last maps of the imagenet stem have one pixel, and the mean over one \
             value is the value: nothing could be learned",
        )
        .hint("--batch-size 2, or --stem cifar")),
        false => Ok(()),
    }
}

fn job(args: &Args) -> Result<Job, Failure> {
    let (rate, warm_up) = (args.lr, args.warm_up);
    Ok(Job {
        stem: args.stem,
        precision: args.precision,
        conv: args.conv,
        workers: u16::try_from(args.workers()).doing("--workers")?,
        batch_size: args.batch_size,
        epochs: args.epochs,
        steps: args.steps,
        schedule: match args.lr_schedule {
            ScheduleKind::Constant => Schedule::Constant { rate },
            ScheduleKind::Cosine => Schedule::Cosine { rate, warm_up },
        },
        momentum: args.momentum,
        weight_decay: args.weight_decay,
        seed: args.seed,
        augment: args.augment,
        order: args.order,
        init: None,
        weighting: args.weighting,
    })
}

/// What defines a job is ps0's to say. Somebody who gives it to a worker believes otherwise.
fn say_what_is_ignored(args: &Args) {
    let defaults = Args::from_args(&["hfl"], &[]).expect("no argument is needed");
    let given = job_flags(args);
    let usual = job_flags(&defaults);
    let ignored: Vec<&str> =
        given.iter().zip(&usual).filter(|(a, b)| a.1 != b.1).map(|(a, _)| a.0).collect();
    if !ignored.is_empty() {
        log::warn!("{}: ignored, a worker takes the job from ps0", ignored.join(", "));
    }
}

/// The default rate was chosen for one number of images a step; for others it is said what the usual rule gives
/// (Goyal et al., "Accurate, large minibatch SGD", 2017), and left to who trains.
fn say_the_rule_of_the_rate(args: &Args) {
    let images = args.workers() as f32 * args.batch_size as f32;
    if args.lr == DEFAULT_RATE && images != DEFAULT_IMAGES {
        log::info!(
            "the default rate {DEFAULT_RATE} was chosen for {DEFAULT_IMAGES} images a step; for {images} the linear \
             rule gives --lr {:.4}",
            DEFAULT_RATE * images / DEFAULT_IMAGES
        );
    }
}

/// The options that define a job, and what they are.
fn job_flags(args: &Args) -> [(&'static str, String); 17] {
    [
        ("--stem", args.stem.to_string()),
        ("--precision", args.precision.to_string()),
        ("--conv", args.conv.to_string()),
        ("--workers", args.workers().to_string()),
        ("--batch-size", args.batch_size.to_string()),
        ("--epochs", args.epochs.to_string()),
        ("--steps", format!("{:?}", args.steps)),
        ("--lr", args.lr.to_string()),
        ("--lr-schedule", format!("{:?}", args.lr_schedule)),
        ("--warm-up", format!("{:?}", args.warm_up)),
        ("--momentum", args.momentum.to_string()),
        ("--weight-decay", args.weight_decay.to_string()),
        ("--weighting", args.weighting.to_string()),
        ("--seed", args.seed.to_string()),
        ("--augment", args.augment.to_string()),
        ("--order", args.order.to_string()),
        ("--init", format!("{:?}", args.init)),
    ]
}

impl Args {
    fn workers(&self) -> usize {
        self.workers.unwrap_or(self.worker_hosts.0.len())
    }
}

fn run_demo(args: &DemoArgs) -> Result<(), Failure> {
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

fn run_eval(args: &EvalArgs) -> Result<(), Failure> {
    let source = (args.data.as_path(), args.split);
    let place = Place {
        model_dir: args.model_dir.clone(),
        volume: args.volume.clone(),
        create: None,
        key: KeySource { file: args.key_file.clone(), descriptor: args.key_fd },
        min_step: args.min_step,
    };
    let evaluation = eval::run(&place, source, args.threads, args.isa.0)?;
    if args.json {
        return print(&serde_json::to_string(&evaluation).doing("report")?);
    }
    print(&evaluation.to_string())
}

fn run_bench(args: &BenchArgs) -> Result<(), Failure> {
    if args.steps == 0 || args.batch == 0 || args.threads == 0 {
        return Err(Failure::new("--steps, --batch and --threads count from 1"));
    }
    if args.inference && args.precision != Precision::Fp32 {
        return Err(Failure::new("--inference runs in fp32 only").hint("without --precision"));
    }
    if args.inference && args.scaling {
        return Err(Failure::new("--scaling times training steps").hint("without --inference"));
    }
    let report = bench::run(bench::Options {
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
    print(&format!(
        "{} stem, {}, {} convolutions, batch {}, {} threads, {}: median {:.4} s, min {:.4} s a step, \
         {:.1} images/s, {:.1} GFLOP/s{scaling}",
        report.stem,
        report.precision,
        report.conv,
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

fn list(text: &str) -> HostList {
    text.parse().expect("a default is valid")
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, |count| count.get().min(THREADS_MAX))
}
