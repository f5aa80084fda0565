//! `hfl replay`: its flags.

use std::path::PathBuf;

use argh::FromArgs;

use super::choice::IsaChoice;
use super::local::{THREADS_MAX, cores};
use crate::commands::replay::{self, Asked, WorkerData};
use crate::commands::saved::saved_model;
use crate::data::hold_out::HoldOut;
use crate::failure::Failure;
use crate::report::print;

saved_model! {
    /// Compute rounds of a job again, by its log (rounds.json) and everybody's data, and compare what comes of them:
    /// says which round differs first. The instruction set has to be the workers'.
    #[derive(FromArgs, Debug)]
    #[argh(
        subcommand,
        name = "replay",
        example = "{command_name} --to 100 siteA/data siteB/data\n{command_name} data@0/2 data@1/2"
    )]
    pub(super) struct ReplayArgs {
        /// data of worker0, of worker1, ...; DIR@I/N for part I of N
        #[argh(positional)]
        data: Vec<WorkerData>,
        /// step to begin with: 0, or that of a checkpoint [0]
        #[argh(option, default = "0")]
        from: u64,
        /// step to end with [that of the model]
        #[argh(option)]
        to: Option<u64>,
        /// copy of model.ckpt-data to begin with [what is there of step --from]
        #[argh(option)]
        checkpoint: Option<PathBuf>,
        /// initial parameters, where the job was begun with some
        #[argh(option)]
        init: Option<PathBuf>,
        /// part of the pictures in CLASS/PICTURE that was tested with, as in the job
        #[argh(option)]
        hold_out: Option<HoldOut>,
        /// leave broken pictures out, as the workers did
        #[argh(switch)]
        skip_broken: bool,
        /// threads [all cores]
        #[argh(option, default = "cores()")]
        threads: usize,
        /// instruction set: auto, amx, avx512, avx2 or portable [auto]
        #[argh(option, default = "IsaChoice::auto()")]
        isa: IsaChoice,
    }
}

pub(super) fn run(args: &ReplayArgs) -> Result<(), Failure> {
    if !(1..=THREADS_MAX).contains(&args.threads) {
        return Err(Failure::usage("--threads counts from 1"));
    }
    let asked = Asked {
        from: args.from,
        to: args.to,
        checkpoint: args.checkpoint.clone(),
        init: args.init.clone(),
        data: args.data.clone(),
        hold_out: args.hold_out,
        skip_broken: args.skip_broken,
    };
    let replayed = replay::run(&args.place(0), &asked, args.threads, args.isa.0)?;
    print(&replayed.to_string())
}
