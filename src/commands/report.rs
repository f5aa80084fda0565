//! `hfl report`: the page about a job, and event files for TensorBoard, from the history beside its model.

use std::fs;
use std::path::{Path, PathBuf};

use argh::FromArgs;

use crate::commands::saved::saved_model;
use crate::failure::{Doing, Failure};
use crate::files::renew;
use crate::history::page::page;
use crate::history::tensorboard::Events;
use crate::history::{self, History};
use crate::report::print;

saved_model! {
    /// Write the page about a job: what happened, how it learned, who took part.
    #[derive(FromArgs, Debug)]
    #[argh(
        subcommand,
        name = "report",
        example = "{command_name} --model-dir model --tensorboard events"
    )]
    pub struct ReportArgs {
        /// where the page goes [report.html]
        #[argh(option, default = "PathBuf::from(history::REPORT)")]
        out: PathBuf,
        /// directory that gets an event file of loss, rate and images a second
        #[argh(option)]
        tensorboard: Option<PathBuf>,
    }
}

/// Runs the command.
///
/// # Errors
/// When there is no history, or something else has the name of what is to be written.
pub fn run(args: &ReportArgs) -> Result<(), Failure> {
    let history = args.place(0).read(|store| {
        let name = store.name_of(history::FILE);
        let bytes = store.read(history::FILE).doing(&name)?;
        let bytes = bytes.ok_or_else(|| {
            Failure::new(format!("{name}: no such file")).hint("a model that ps0 has saved")
        })?;
        History::parse(&bytes).doing(&name)
    })?;
    let is_page = |bytes: &[u8]| bytes.starts_with(b"<!doctype html>");
    renew(&args.out, page(&history).as_bytes(), "page", is_page)?;
    if let Some(directory) = &args.tensorboard {
        write_events(directory, &history)?;
    }
    print(&args.out.display().to_string())
}

/// One file a job, under a name that TensorBoard looks for.
fn write_events(directory: &Path, history: &History) -> Result<(), Failure> {
    fs::create_dir_all(directory).doing(directory.display())?;
    let events = events(history).doing("events")?;
    let path = directory.join(format!("events.out.tfevents.{}.hfl", history.began));
    // A record's length, its checksum, then field 1 of the protocol buffer, the time.
    let is_events = |bytes: &[u8]| bytes.get(12) == Some(&9);
    renew(&path, &events, "event file", is_events)
}

fn events(history: &History) -> std::io::Result<Vec<u8>> {
    let mut file = Vec::new();
    let mut now = history.began as f64;
    let mut events = Events::new(&mut file, now)?;
    for point in history.curve.points() {
        now += point.seconds;
        let rate = point.images as f64 / point.seconds.max(f64::MIN_POSITIVE);
        let values = [
            ("loss", point.loss as f32),
            ("learning_rate", point.rate as f32),
            ("images_per_second", rate as f32),
        ];
        events.scalars(now, point.step, &values)?;
    }
    Ok(file)
}
