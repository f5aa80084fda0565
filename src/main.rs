//! Parse arguments, run the command, turn the result into an exit code.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use argh::FromArgs;
use hfl::cli::{self, Args};

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    let words: Vec<String> = std::env::args_os()
        .map(|word| word.into_string().unwrap_or_else(|odd| odd.to_string_lossy().into_owned()))
        .collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
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
