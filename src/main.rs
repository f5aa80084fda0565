//! Parse arguments, run the command, turn the result into an exit code.

#![forbid(unsafe_code)]

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use argh::FromArgs;
use hfl::cli::help::{self, Asked};
use hfl::cli::{self, Args};
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

fn main() -> ExitCode {
    keep_memory_private();
    start_log();
    let words: Vec<String> = std::env::args_os()
        .map(|word| word.into_string().unwrap_or_else(|odd| odd.to_string_lossy().into_owned()))
        .collect();
    let words: Vec<&str> = words.iter().flat_map(|word| cli::split_flag(word)).collect();
    let words = match help::asked(words.get(1..).unwrap_or_default()) {
        Asked::Words(words) => words,
        Asked::Text(text) => {
            println!("{text}");
            return ExitCode::SUCCESS;
        }
    };
    let args = match Args::from_args(&["hfl"], &words) {
        Ok(args) => args,
        Err(exit) if exit.status.is_ok() => {
            println!("{}", exit.output.trim_end());
            return ExitCode::SUCCESS;
        }
        Err(exit) => {
            let near = help::nearest(&words).map_or(String::new(), |near| format!("{near}; "));
            eprintln!("hfl: {}\n  try: {near}hfl --help", exit.output.trim_end());
            return ExitCode::from(2);
        }
    };
    match cli::run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{failure}");
            if failure.is_usage() { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}

/// Lines with the time in UTC: logs of several machines are read side by side.
fn start_log() {
    let filter = env_logger::Env::default().default_filter_or("info");
    env_logger::Builder::from_env(filter)
        .format(|out, record| {
            let since = SystemTime::now().duration_since(UNIX_EPOCH);
            let time = protocol::dcap::date(since.map_or(0, |since| since.as_secs()));
            // A line of progress may stand there.
            if std::io::stderr().is_terminal() {
                write!(out, "\r\x1b[K")?;
            }
            writeln!(out, "{time} {:<5} {}", record.level(), record.args())
        })
        .init();
}

/// No core files and no debugger of the same user: passphrases and keys pass through this memory.
fn keep_memory_private() {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    // Both can only fail where a sandbox forbids them; the sandbox decides then.
    let _ = setrlimit(Resource::Core, none);
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
}
