//! `hfl passport`: what a model's passport says, and whether all of it holds; offline, from one folder.

mod check;
mod found;
mod model;
mod receipts;
mod words;

use std::path::{Path, PathBuf};

use argh::FromArgs;
use serde_json::json;

use self::check::By;
use self::found::Checks;
pub use self::found::Lines;
use crate::failure::Failure;
use crate::report::print;
use crate::trust::Attestation;

/// Say who trained a model on what, and whether that holds, from the folder alone.
#[derive(FromArgs, Debug)]
#[argh(
    subcommand,
    name = "passport",
    example = "{command_name} verify model --policy policy.json --receipts receipts-worker1-5ac9e7d2.json",
    note = "Exit code 1 with the first thing that does not hold. Nothing is asked over a network."
)]
pub struct PassportArgs {
    #[argh(subcommand)]
    command: Command,
}

#[derive(FromArgs, Debug)]
#[argh(subcommand)]
enum Command {
    Show(ShowArgs),
    Verify(VerifyArgs),
}

/// Print what a passport says, its signatures checked, its evidence not judged.
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "show", example = "{command_name} model")]
struct ShowArgs {
    /// folder with the model
    #[argh(positional)]
    dir: PathBuf,
    /// one JSON object on stdout
    #[argh(switch)]
    json: bool,
}

/// Check all that a passport says: files, signatures, evidence, rounds.
#[derive(FromArgs, Debug)]
#[argh(
    subcommand,
    name = "verify",
    example = "{command_name} model --policy policy.json --receipts receipts-worker1-5ac9e7d2.json"
)]
struct VerifyArgs {
    /// folder with the model
    #[argh(positional)]
    dir: PathBuf,
    /// policy that everybody must satisfy [up to date, no debug mode, any measurement]
    #[argh(option)]
    policy: Option<PathBuf>,
    /// what a worker has kept of its receipts, as often as needed
    #[argh(option)]
    receipts: Vec<PathBuf>,
    /// trust anchor: tdx (Intel) or sim [tdx]
    #[argh(option, default = "Attestation::Tdx")]
    attestation: Attestation,
    /// one JSON object on stdout
    #[argh(switch)]
    json: bool,
}

/// Checks all of a passport, as `hfl passport verify` does; the lines until there, and what does not hold.
pub fn verify(
    dir: &Path,
    policy: Option<&Path>,
    attestation: Attestation,
    receipts: &[PathBuf],
) -> (Lines, Result<(), String>) {
    let mut checks = Checks::default();
    let found = checks.all(dir, By { policy, attestation }, receipts);
    (checks.lines, found)
}

/// Runs a command.
///
/// # Errors
/// The first thing that does not hold.
pub fn run(args: &PassportArgs) -> Result<(), Failure> {
    let (dir, json) = match &args.command {
        Command::Show(args) => (&args.dir, args.json),
        Command::Verify(args) => (&args.dir, args.json),
    };
    let (lines, found) = match &args.command {
        Command::Show(args) => {
            let mut checks = Checks::default();
            let found = checks.signatures(&args.dir).map(drop);
            (checks.lines, found)
        }
        Command::Verify(VerifyArgs { dir, policy, receipts, attestation, .. }) => {
            verify(dir, policy.as_deref(), *attestation, receipts)
        }
    };
    match json {
        true => print(&as_json(&lines, found.as_ref().err()))?,
        false => lines.iter().try_for_each(|line| print(&format!("{:<13} {}", line.0, line.1)))?,
    }
    let what = |why: String| Failure::new(format!("{}: {why}", dir.display()));
    found.map_err(what)
}

fn as_json(lines: &Lines, fault: Option<&String>) -> String {
    let lines: Vec<_> =
        lines.iter().map(|(what, said)| json!({"what": what, "says": said})).collect();
    let verdict = if fault.is_none() { "holds" } else { "refused" };
    json!({"verdict": verdict, "reason": fault, "checks": lines}).to_string()
}
