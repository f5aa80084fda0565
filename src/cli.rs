//! The command line: argv to what is to be run.

mod args;
mod choice;
mod completions;
pub mod help;
mod local;
mod predict;
mod replay;
mod role;

use crate::commands::{
    doctor, export, identity, initdata, measure, passport, report, roster, secret, transfer,
    verify, volumes,
};
use crate::failure::Failure;
use crate::report::print;
use crate::training::roles;
pub use args::Args;
use args::Command;

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
        (Some(Command::Bench(args)), _) => local::run_bench(&args),
        (Some(Command::Completions(args)), _) => completions::run(&args),
        (Some(Command::Demo(args)), _) => local::run_demo(&args),
        (Some(Command::Doctor(args)), _) => doctor::run(&args),
        (Some(Command::Eval(args)), _) => local::run_eval(&args),
        (Some(Command::Export(args)), _) => export::run(&args),
        (Some(Command::Identity(args)), _) => identity::run(args),
        (Some(Command::Measure(args)), _) => measure::run(&args),
        (Some(Command::Initdata(args)), _) => initdata::run(&args),
        (Some(Command::Luks(args)), _) => volumes::run(args),
        (Some(Command::Model(args)), _) => transfer::run(args),
        (Some(Command::Passport(args)), _) => passport::run(&args),
        (Some(Command::Predict(args)), _) => predict::run(&args),
        (Some(Command::Quote(args)), _) => verify::show(&args),
        (Some(Command::Replay(args)), _) => replay::run(&args),
        (Some(Command::Report(args)), _) => report::run(&args),
        (Some(Command::Roster(args)), _) => roster::run(args),
        (Some(Command::Secret(args)), _) => secret::run(args),
        (Some(Command::Verify(args)), _) => verify::run(&args),
        (None, Some(role)) => roles::run(&role::options(args, role)?),
        (None, None) => Err(Failure::usage("nothing to do").hint("hfl --help, or hfl demo")),
    }
}
