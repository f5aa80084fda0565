//! Parse arguments, run the command, turn the result into an exit code.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use argh::FromArgs;
use hfl::cli::{self, Args};
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

fn main() -> ExitCode {
    keep_memory_private();
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    let words: Vec<String> = std::env::args_os()
        .map(|word| word.into_string().unwrap_or_else(|odd| odd.to_string_lossy().into_owned()))
        .collect();
    let words: Vec<&str> = words.iter().flat_map(|word| cli::split_flag(word)).collect();
    let args = match Args::from_args(&["hfl"], words.get(1..).unwrap_or_default()) {
        Ok(args) => args,
        Err(exit) if exit.status.is_ok() => {
            println!("{}", exit.output.trim_end());
            return ExitCode::SUCCESS;
        }
        Err(exit) => {
            eprintln!("hfl: {}\n  try: hfl --help", exit.output.trim_end());
            return ExitCode::from(2);
        }
    };
    match cli::run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::FAILURE
        }
    }
}

/// No core files and no debugger of the same user: passphrases and keys pass through this memory.
fn keep_memory_private() {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    // Both can only fail where a sandbox forbids them; the sandbox decides then.
    let _ = setrlimit(Resource::Core, none);
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
}
