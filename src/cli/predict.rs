//! `hfl predict`: its flags.

use std::path::PathBuf;

use argh::FromArgs;

use super::choice::IsaChoice;
use super::local::{THREADS_MAX, cores};
use crate::commands::predict;
use crate::commands::saved::saved_model;
use crate::failure::{Doing, Failure};
use crate::report::print;

saved_model! {
    /// Tell what pictures show, by a saved model: the likeliest classes with their probabilities.
    #[derive(FromArgs, Debug)]
    #[argh(subcommand, name = "predict", example = "{command_name} --model-dir model scan.png")]
    pub(super) struct PredictArgs {
        /// pictures, PNG or JPEG
        #[argh(positional)]
        images: Vec<PathBuf>,
        /// refuse a model of an earlier step: the place was set back [0]
        #[argh(option, default = "0")]
        min_step: u64,
        /// the parameters that were best on test images, instead of the last
        #[argh(switch)]
        best: bool,
        /// classes to tell of each picture [5]
        #[argh(option, default = "5")]
        top: usize,
        /// threads [all cores]
        #[argh(option, default = "cores()")]
        threads: usize,
        /// instruction set: auto, amx, avx512, avx2 or portable [auto]
        #[argh(option, default = "IsaChoice::auto()")]
        isa: IsaChoice,
        /// one JSON object a picture on stdout
        #[argh(switch)]
        json: bool,
    }
}

pub(super) fn run(args: &PredictArgs) -> Result<(), Failure> {
    if args.images.is_empty() {
        return Err(Failure::usage("no picture to predict").hint("hfl predict PICTURE..."));
    }
    if !(1..=THREADS_MAX).contains(&args.threads) || args.top == 0 {
        return Err(Failure::usage("--threads and --top count from 1"));
    }
    let place = args.place(args.min_step);
    let (images, isa) = (args.images.clone(), args.isa.0);
    let found = predict::run(&place, args.best, images, args.top, args.threads, isa)?;
    for prediction in found {
        match args.json {
            true => print(&serde_json::to_string(&prediction).doing("report")?)?,
            false => print(&prediction.to_string())?,
        }
    }
    Ok(())
}
