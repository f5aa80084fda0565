//! The flags of a role, with their defaults and help, and the list of commands.

use std::path::PathBuf;

use argh::FromArgs;
use protocol::Role;

use super::choice::{
    ClassSource, ImageDigest, IsaChoice, NormKind, ReportKind, ScheduleKind, Shell,
};
use super::local::{BenchArgs, DemoArgs, EvalArgs, cores};
use super::predict::PredictArgs;
use super::replay::ReplayArgs;
use crate::commands::doctor::DoctorArgs;
use crate::commands::export::ExportArgs;
use crate::commands::identity::IdentityArgs;
use crate::commands::initdata::InitdataArgs;
use crate::commands::measure::MeasureArgs;
use crate::commands::passport::PassportArgs;
use crate::commands::report::ReportArgs;
use crate::commands::roster::RosterArgs;
use crate::commands::secret::SecretArgs;
use crate::commands::transfer::ModelArgs;
use crate::commands::verify::{QuoteArgs, VerifyArgs};
use crate::commands::volumes::{LuksArgs, Size};
use crate::data::dataset::Shard;
use crate::data::hold_out::HoldOut;
use crate::hosts::HostList;
use crate::job::bounds::Bounds;
use crate::job::evaluation::Evaluation;
use crate::job::recipe::Flip;
use crate::job::shape::Shape;
use crate::job::{
    Algorithm, Arch, Augment, Normalisation, Order, Precision, Stem, Weighting, Wire,
};
use crate::trust::fetch::{Keeper, Service};
use crate::trust::flags::attested;

attested! {
    /// Horizontal federated learning of ResNet-50 in attested processes.
    ///
    /// Run a role of a job (hfl --role ps0, hfl --role worker0, ...) or one of the commands.
    #[derive(FromArgs, Debug)]
    #[argh(
        example = "hfl demo\nhfl --role ps0 --attestation sim\nhfl --role worker0 --data cifar-10 --attestation sim",
        note = "A worker takes what defines the job (from --epochs to --order) from ps0.",
        error_code(0, "done"),
        error_code(1, "failed"),
        error_code(2, "usage")
    )]
    pub struct Args {
        #[argh(subcommand)]
        pub(super) command: Option<Command>,

        /// role to run: ps0, worker0, worker1, ...
        #[argh(option)]
        pub(super) role: Option<Role>,
        /// added to a worker's number, where a site's own counting begins at worker0 [0]
        #[argh(option, default = "0")]
        pub(super) first_worker: u16,
        /// host:port of ps0 [localhost:60002]
        #[argh(option, default = "list(\"localhost:60002\")")]
        pub(super) ps_hosts: HostList,
        /// one host:port a worker; how many says how many workers [localhost:61002,localhost:61003]
        #[argh(option, default = "list(\"localhost:61002,localhost:61003\")")]
        pub(super) worker_hosts: HostList,
        /// number of workers, instead of a list of hosts that nobody dials
        #[argh(option)]
        pub(super) workers: Option<usize>,
        /// CIFAR's binary files, train/CLASS/PICTURE (PNG, JPEG), or an .npz file [data]
        #[argh(option, default = "PathBuf::from(\"data\")")]
        pub(super) data: PathBuf,
        /// encrypted volume whose inside is the data, instead of --data; read only (hfl luks create)
        #[argh(option)]
        pub(super) data_volume: Option<PathBuf>,
        /// part I of N of the data, from 0, such as 0/2 [all]
        #[argh(option)]
        pub(super) shard: Option<Shard>,
        /// part of the pictures in CLASS/PICTURE to test with, by their content, such as 0.1
        #[argh(option)]
        pub(super) hold_out: Option<HoldOut>,
        /// most bytes of memory for pictures (with K, M, G); more are read as they are needed [what is left]
        #[argh(option)]
        pub(super) data_memory: Option<Size>,
        /// leave broken pictures out, each named in the log
        #[argh(switch)]
        pub(super) skip_broken: bool,
        /// the only job that a worker takes: a file (model.ckpt-meta) or its SHA-256 [any within the bounds below]
        #[argh(option)]
        pub(super) job: Option<String>,
        /// fewest pictures of a worker in a step, of jobs that it takes [16]
        #[argh(option, default = "Bounds::BATCH_MIN")]
        pub(super) min_batch: u32,
        /// most steps of jobs that a worker takes [10000000]
        #[argh(option, default = "Bounds::STEPS_MAX")]
        pub(super) max_steps: u64,
        /// a network of jobs that a worker takes, as often as needed [all of --model]
        #[argh(option)]
        pub(super) models: Vec<Arch>,
        /// where the model is kept [model]
        #[argh(option, default = "PathBuf::from(\"model\")")]
        pub(super) model_dir: PathBuf,
        /// encrypted volume to keep the model in, instead of --model-dir (hfl luks create)
        #[argh(option)]
        pub(super) volume: Option<PathBuf>,
        /// make the volume, of so many bytes (with K, M, G), if there is no such file; a blank block device is filled
        #[argh(option)]
        pub(super) create_volume: Option<Size>,
        /// file whose bytes are the passphrase of --volume and --data-volume, - for stdin
        #[argh(option)]
        pub(super) key_file: Option<PathBuf>,
        /// open file descriptor to read that passphrase from
        #[argh(option)]
        pub(super) key_fd: Option<u32>,
        /// who has that passphrase: host:port[#SHA256 of its owner's key] (hfl secret serve), or in a
        /// confidential pod cdh:REPOSITORY/TYPE/TAG of its Trustee
        #[argh(option)]
        pub(super) secret_service: Option<Keeper>,
        /// name of the passphrase there [hfl-tdx-coco-app]
        #[argh(option, default = "Service::APP_ID.into()")]
        pub(super) app_id: String,
        /// seconds to try for [120]
        #[argh(option, default = "Service::WAIT.as_secs()")]
        pub(super) secret_wait: u64,
        /// refuse to resume from an earlier step: the place was set back [0]
        #[argh(option, default = "0")]
        pub(super) min_step: u64,
        /// passes over the data [20]
        #[argh(option, default = "20")]
        pub(super) epochs: u32,
        /// steps of the job, instead of --epochs
        #[argh(option)]
        pub(super) steps: Option<u64>,
        /// images of one worker in a step [128]
        #[argh(option, default = "128")]
        pub(super) batch_size: u32,
        /// largest learning rate [0.4 for steps of 256 images, in proportion; from 64 pixels 0.1; a tenth with --init]
        #[argh(option)]
        pub(super) lr: Option<f32>,
        /// cosine (with warm-up) or constant [cosine]
        #[argh(option, default = "ScheduleKind::Cosine")]
        pub(super) lr_schedule: ScheduleKind,
        /// steps over which the cosine's rate grows to its largest [a twentieth of all]
        #[argh(option)]
        pub(super) warm_up: Option<u64>,
        /// share of the last velocity that SGD keeps [0.9]
        #[argh(option, default = "0.9")]
        pub(super) momentum: f32,
        /// penalty on the weights of convolutions and of the classifier [0.0005]
        #[argh(option, default = "5e-4")]
        pub(super) weight_decay: f32,
        /// step ahead along the velocity (Nesterov's momentum)
        #[argh(switch)]
        pub(super) nesterov: bool,
        /// factor of the rate of normalisations' biases [1]
        #[argh(option, default = "1.0")]
        pub(super) bias_rate: f32,
        /// decay of an exponential moving average of the weights, such as 0.999: it is evaluated and used [0: none]
        #[argh(option, default = "0.0")]
        pub(super) ema: f32,
        /// share of each label that is spread over all classes [0]
        #[argh(option, default = "0.0")]
        pub(super) label_smoothing: f32,
        /// weight of a worker: data (its share of all samples) or batch (of a step's) [data]
        #[argh(option, default = "Weighting::Data")]
        pub(super) weighting: Weighting,
        /// number format of what workers and ps0 exchange: fp32, bf16 or int8 [fp32]
        #[argh(option, default = "Wire::Fp32")]
        pub(super) wire: Wire,
        /// steps of a worker between two exchanges; momentum begins anew with each [1]
        #[argh(option, default = "1")]
        pub(super) local_steps: u32,
        /// share of the workers' mean change that ps0 applies, with --local-steps [1]
        #[argh(option, default = "1.0")]
        pub(super) outer_rate: f32,
        /// momentum (Nesterov's) over such changes, as DiLoCo has it [0]
        #[argh(option, default = "0.0")]
        pub(super) outer_momentum: f32,
        /// workers with which a round may close once --deadline is over [all]
        #[argh(option)]
        pub(super) quorum: Option<u16>,
        /// seconds for which a round waits for workers beyond --quorum
        #[argh(option)]
        pub(super) deadline: Option<u32>,
        /// seed of initialisation, order and augmentation [1]
        #[argh(option, default = "1")]
        pub(super) seed: u64,
        /// network: resnet18, resnet34, resnet50, resnet101 or resnet152 [resnet50]
        #[argh(option, default = "Arch::default()")]
        pub(super) model: Arch,
        /// classes of the job: cifar-10, cifar-100, their number, or a file with a name a line [cifar-10]
        #[argh(option, default = "ClassSource::Cifar10")]
        pub(super) classes: ClassSource,
        /// height and width of an image in the network: 32 to 256 in steps of 32 [32]
        #[argh(option, default = "Shape::CIFAR.side")]
        pub(super) image_size: usize,
        /// constants of the pixels: cifar, or imagenet for pretrained weights [cifar]
        #[argh(option, default = "Normalisation::Cifar")]
        pub(super) normalisation: Normalisation,
        /// first layers: imagenet (fast) or cifar (accurate) [imagenet]
        #[argh(option, default = "Stem::Imagenet")]
        pub(super) stem: Stem,
        /// number format: fp32, or bf16 (faster, needs AVX512-BF16) [fp32]
        #[argh(option, default = "Precision::Fp32")]
        pub(super) precision: Precision,
        /// convolutions: auto (Winograd's, Strassen's) or direct [auto]
        #[argh(option, default = "Algorithm::Auto")]
        pub(super) conv: Algorithm,
        /// statistics that normalise: batch, frozen (the running ones later) or group (of each image) [batch]
        #[argh(option, default = "NormKind::Batch")]
        pub(super) norm: NormKind,
        /// part of the job after which --norm frozen holds its statistics [0.25]
        #[argh(option)]
        pub(super) frozen_after: Option<f32>,
        /// flip, and crop (standard) or part of the picture (parts) or of its centre square (resized), or none
        /// [parts for images of 64 and up, else standard]
        #[argh(option)]
        pub(super) augment: Option<Augment>,
        /// which images --augment mirrors: random, alternating (every second epoch) or none [random]
        #[argh(option, default = "Flip::Random")]
        pub(super) flip: Flip,
        /// side of a square that --augment cuts out of each image, in pixels [0]
        #[argh(option, default = "0")]
        pub(super) cutout: u32,
        /// order of samples: shuffled or sequential [shuffled]
        #[argh(option, default = "Order::Shuffled")]
        pub(super) order: Order,
        /// epochs between evaluations on the workers' own test images, 0 for none [1]
        #[argh(option, default = "Evaluation::default().every")]
        pub(super) evaluate_every: u32,
        /// end after so many evaluations that were no better than the best [never]
        #[argh(option)]
        pub(super) patience: Option<u32>,
        /// safetensors file that a new job starts from
        #[argh(option)]
        pub(super) init: Option<PathBuf>,
        /// steps between checkpoints [400]
        #[argh(option, default = "400")]
        pub(super) checkpoint_every: u64,
        /// minutes between checkpoints, where steps are long [10]
        #[argh(option, default = "10")]
        pub(super) checkpoint_minutes: u64,
        /// threads of this role [all cores]
        #[argh(option, default = "cores()")]
        pub(super) threads: usize,
        /// instruction set: auto, amx, avx512, avx2 or portable [auto]
        #[argh(option, default = "IsaChoice::auto()")]
        pub(super) isa: IsaChoice,
        /// seconds until peers of open connections show fresh evidence, 0 for never [600]
        #[argh(option, default = "600")]
        pub(super) reattest: u64,
        /// seconds for which a finished ps0 serves its volume, once, to hfl model pull [0]
        #[argh(option, default = "0")]
        pub(super) linger: u64,
        /// one JSON object a line on stdout
        #[argh(switch)]
        pub(super) json: bool,
        /// serve numbers for Prometheus, and health, at HOST:PORT, or at a PORT of this machine's own
        #[argh(option)]
        pub(super) metrics: Option<String>,
        /// page that ps0 writes beside the model: html or none [html]
        #[argh(option, default = "ReportKind::Html")]
        pub(super) report: ReportKind,
        /// sha256:DIGEST of ps0's container image, which the model's passport then names
        #[argh(option)]
        pub(super) image_digest: Option<ImageDigest>,
        /// write a bill of materials beside the model (CycloneDX ML-BOM)
        #[argh(switch)]
        pub(super) bom: bool,
        /// print the version
        #[argh(switch)]
        pub(super) version: bool,
        /// milliseconds to wait before each step, for tests of slow workers
        #[argh(option, default = "0", hidden_help)]
        pub(super) pause_ms: u64,
        /// process that started this one, to end with it
        #[argh(option, hidden_help)]
        pub(super) with_parent: Option<u32>,
        /// seconds for which a worker tries to reach ps0, for tests of who gives up
        #[argh(option, default = "600", hidden_help)]
        pub(super) wait: u64,
    }
}

/// Print a script that makes a shell complete commands and options.
#[derive(FromArgs, Debug)]
#[argh(
    subcommand,
    name = "completions",
    example = "{command_name} bash > ~/.local/share/bash-completion/completions/hfl",
    example = "{command_name} zsh > ~/.zsh/completions/_hfl",
    example = "{command_name} fish > ~/.config/fish/completions/hfl.fish"
)]
pub(super) struct CompletionsArgs {
    /// bash, zsh or fish
    #[argh(positional)]
    pub(super) shell: Shell,
}

#[derive(FromArgs, Debug)]
#[argh(subcommand)]
pub(super) enum Command {
    Bench(BenchArgs),
    Completions(CompletionsArgs),
    Demo(DemoArgs),
    Doctor(DoctorArgs),
    Eval(EvalArgs),
    Export(ExportArgs),
    Identity(IdentityArgs),
    Initdata(InitdataArgs),
    Luks(LuksArgs),
    Measure(MeasureArgs),
    Model(ModelArgs),
    Passport(PassportArgs),
    Predict(PredictArgs),
    Quote(QuoteArgs),
    Replay(ReplayArgs),
    Report(ReportArgs),
    Roster(RosterArgs),
    Secret(SecretArgs),
    Verify(VerifyArgs),
}

impl Args {
    pub(super) fn workers(&self) -> usize {
        self.workers.unwrap_or(self.worker_hosts.0.len())
    }
}

fn list(text: &str) -> HostList {
    text.parse().expect("a default is valid")
}
