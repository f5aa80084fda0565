//! How far long work is: a bar on a terminal, a line in the log now and then elsewhere; never on stdout.

use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::process::getpgrp;
use rustix::termios::tcgetpgrp;

/// Work that is done by then needs no bar.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two drawings, and between two lines of a log.
const PAUSES: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(15)];

/// Work of a known size, done by one thread or by several.
pub struct Progress {
    what: &'static str,
    unit: Unit,
    all: u64,
    done: AtomicU64,
    draws: bool,
    begun: Instant,
    /// When it is to be shown next.
    next: Mutex<Instant>,
}

/// What work is counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Shown in megabytes.
    Bytes,
    /// Pictures.
    Images,
    /// Steps of a benchmark.
    Steps,
}

impl Progress {
    /// Work that begins now.
    pub fn new(what: &'static str, all: u64, unit: Unit) -> Self {
        let begun = Instant::now();
        let (draws, next) = (is_in_front(), Mutex::new(begun + PATIENCE));
        Self { what, unit, all, done: AtomicU64::new(0), draws, begun, next }
    }

    /// So much more is done.
    pub fn advance(&self, more: u64) {
        // Relaxed: a count that is shown, nothing else depends on it.
        let done = self.done.fetch_add(more, Ordering::Relaxed) + more;
        // Whoever finds it taken leaves the showing to who has it.
        let Ok(mut next) = self.next.try_lock() else { return };
        let now = Instant::now();
        if now < *next {
            return;
        }
        *next = now + if self.draws { PAUSES[0] } else { PAUSES[1] };
        let line = self.line(done, now.saturating_duration_since(self.begun));
        match self.draws {
            true => draw(&format!("{} {line}", bar(done, self.all))),
            false => log::info!("{line}"),
        }
    }

    fn line(&self, done: u64, time: Duration) -> String {
        let seconds = time.as_secs_f64().max(1e-3);
        let rate = done as f64 / seconds;
        let left = time_left(self.all.saturating_sub(done) as f64 / rate.max(f64::MIN_POSITIVE));
        let (what, all) = (self.what, self.all);
        match self.unit {
            Unit::Bytes => {
                let mega = |bytes: f64| bytes / 1e6;
                let (done, all, rate) = (mega(done as f64), mega(all as f64), mega(rate));
                format!("{what} {done:.0} of {all:.0} MB, {rate:.0} MB/s, {left}")
            }
            Unit::Images => format!("{what} {done} of {all} images, {rate:.0} images/s, {left}"),
            Unit::Steps => format!("{what} {done} of {all} steps, {rate:.1} steps/s, {left}"),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.draws && self.begun.elapsed() >= PATIENCE {
            clear();
        }
    }
}

/// A training, of which steps are heard.
#[derive(Default)]
pub(crate) struct Training {
    /// When the first step was done, and which it was: it waits for workers, and the rate begins after it.
    first: Option<(Instant, u64)>,
    images: u64,
}

impl Training {
    /// Takes a step with so many images; how far the training is, once that can be said.
    pub(crate) fn step(&mut self, step: u64, steps: u64, loss: f64, images: u64) -> Option<String> {
        let Some((begun, first)) = self.first else {
            self.first = Some((Instant::now(), step));
            return None;
        };
        self.images += images;
        let seconds = begun.elapsed().as_secs_f64().max(1e-3);
        let done = step.saturating_sub(first).max(1) as f64;
        let left = time_left(steps.saturating_sub(step + 1) as f64 * seconds / done);
        let (shown, rate) = (bar(step + 1, steps), self.images as f64 / seconds);
        Some(format!(
            "{shown} step {} of {steps}, {rate:.0} images/s, loss {loss:.3}, {left}",
            step + 1
        ))
    }
}

/// How far something is, drawn.
pub(crate) fn bar(done: u64, all: u64) -> String {
    const WIDTH: u64 = 16;
    let filled = (done.saturating_mul(WIDTH) / all.max(1)).min(WIDTH) as usize;
    format!("[{}{}]", "#".repeat(filled), ".".repeat(WIDTH as usize - filled))
}

/// In words; for what would take longer than anybody waits, that it does.
pub(crate) fn time_left(seconds: f64) -> String {
    match seconds.round() {
        0.0..120.0 => format!("{seconds:.0} s left"),
        120.0..7200.0 => format!("{:.0} min left", (seconds / 60.0).ceil()),
        7200.0..1e7 => format!("{:.0} h left", (seconds / 3600.0).ceil()),
        _ => "months left".into(),
    }
}

/// Shows a line in place of what stands there.
pub(crate) fn draw(line: &str) {
    // Nobody has to see it for the work to go on.
    let _ = write!(std::io::stderr(), "\r\x1b[K{line}").and_then(|()| std::io::stderr().flush());
}

/// Takes away what stands there.
pub(crate) fn clear() {
    draw("");
}

/// Whether we may draw on a terminal: a process in its background would draw over the one in front.
pub(crate) fn is_in_front() -> bool {
    let stderr = std::io::stderr();
    stderr.is_terminal() && tcgetpgrp(&stderr).is_ok_and(|group| group == getpgrp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_far_how_fast_and_how_long() {
        let progress = Progress::new("evaluated", 1000, Unit::Images);
        let line = progress.line(250, Duration::from_secs(5));
        assert_eq!(line, "evaluated 250 of 1000 images, 50 images/s, 15 s left");
        let progress = Progress::new("received", 4_000_000_000, Unit::Bytes);
        let line = progress.line(1_000_000_000, Duration::from_secs(100));
        assert_eq!(line, "received 1000 of 4000 MB, 10 MB/s, 5 min left");
        assert!(progress.line(0, Duration::ZERO).ends_with("months left"));
    }

    #[test]
    fn a_training_is_told_from_its_second_step_on() {
        let mut training = Training::default();
        assert_eq!(training.step(7, 10, 2.0, 64), None);
        let line = training.step(8, 10, 1.5, 64).expect("a line");
        assert!(line.starts_with("[##############..] step 9 of 10, "), "{line}");
        assert!(line.contains(" images/s, loss 1.500, ") && line.ends_with(" s left"), "{line}");
    }

    #[test]
    fn bars_are_as_wide_whatever_is_done() {
        let bars = [(0, 0), (0, 9), (5, 9), (9, 9), (99, 9), (u64::MAX, u64::MAX)];
        assert!(bars.into_iter().all(|(done, all)| bar(done, all).len() == 18));
        assert_eq!(bar(1, 2), "[########........]");
    }
}
