//! When the log says which workers a job waits for.

use std::time::{Duration, Instant};

/// When the log says which workers are missing, counted from the moment that the first was: soon, for who
/// mistyped a name, then rarely, for who reads logs the next day.
const MISSING: [Duration; 3] =
    [Duration::from_secs(10), Duration::from_secs(60), Duration::from_secs(600)];

/// Since when workers are missing, and how often the log said so.
#[derive(Default)]
pub(super) struct Missing {
    since: Option<Instant>,
    said: usize,
}

impl Missing {
    /// When it is to be said again.
    pub(super) fn next(&self) -> Option<Instant> {
        self.since.map(|since| since + self.wait())
    }

    /// How long until it is to be said again.
    pub(super) fn left(&self) -> Option<Duration> {
        let left = self.next()?.saturating_duration_since(Instant::now());
        Some(left + Duration::from_millis(1))
    }

    fn wait(&self) -> Duration {
        let last = MISSING[MISSING.len() - 1];
        let more = (self.said + 1).saturating_sub(MISSING.len()) as u32;
        MISSING.get(self.said).copied().unwrap_or(last * (more + 1))
    }

    /// Whether it is to be said now; counts that it is.
    pub(super) fn is_due(&mut self) -> bool {
        let due = self.since.get_or_insert_with(Instant::now).elapsed() >= self.wait();
        self.said += usize::from(due);
        due
    }
}
