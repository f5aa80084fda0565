//! What a server keeps on the disk while it trains, and what it says where the disk refuses.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use super::Running;
use super::leaving::{Leaving, kept};
use crate::events::Event;
use crate::history::EventKind;
use crate::metrics::Metric;
use crate::training::checkpoint;
use crate::training::roles::options::Options;
use crate::training::roster;
use crate::training::rounds;
use crate::training::store::Progress;

impl Running {
    /// Writes down who was admitted, before anybody is told.
    pub(super) fn keep_roster(&mut self) -> Result<(), Leaving> {
        if !self.server.has_news() {
            return Ok(());
        }
        let bytes = roster::encode(self.server.roster());
        let progress = Progress { job: self.server.job().digest(), step: self.server.state().step };
        let saved = self.store.save(roster::FILE, progress, &|out| out.write_all(&bytes));
        saved.map_err(|error| {
            Leaving::unsaved(self.store.not_written(roster::FILE, &error, &kept(self.saved)))
        })?;
        self.server.roster_is_kept();
        Ok(())
    }

    /// A place that has no room for a second model keeps the last one, and the training goes on.
    pub(super) fn save_best(&mut self) {
        let (name, layout) = (checkpoint::BEST_FILE, &self.network.layout);
        let (job, state) = (self.server.job(), self.server.state());
        let saved = checkpoint::save_as(name, &mut self.store, layout, job, state);
        if let Err(error) = saved {
            let failure = self.store.not_written(name, &error, "the training goes on without it");
            log::warn!("{failure}");
            return;
        }
        self.sign(false);
    }

    pub(super) fn has_unsaved(&self) -> bool {
        self.saved.unwrap_or(0) != self.server.state().step
    }

    pub(super) fn save_in_time(&mut self, options: &Options) -> Result<(), Leaving> {
        match self.has_unsaved() && self.saved_at.elapsed() >= options.checkpoint_after {
            true => self.save(),
            false => Ok(()),
        }
    }

    pub(super) fn save(&mut self) -> Result<(), Leaving> {
        let start = Instant::now();
        let (job, state) = (self.server.job(), self.server.state());
        // First: rounds beyond a checkpoint are dropped, those that are missing could not be made up.
        let progress = Progress { job: job.digest(), step: state.step };
        self.record.keep_rounds(&mut self.store, progress).map_err(|error| {
            Leaving::unsaved(self.store.not_written(rounds::FILE, &error, &kept(self.saved)))
        })?;
        let saved = checkpoint::save(&mut self.store, &self.network.layout, job, state);
        saved.map_err(|error| {
            let kept = kept(self.saved);
            Leaving::unsaved(self.store.not_written(checkpoint::DATA_FILE, &error, &kept))
        })?;
        (self.saved, self.saved_at) = (Some(state.step), Instant::now());
        self.witness.iter().for_each(|witness| witness.saved(state.step));
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        self.metrics.set(Metric::CheckpointStep, state.step as f64);
        self.metrics.set(Metric::CheckpointTime, now.map_or(0.0, |since| since.as_secs_f64()));
        log::info!("checkpoint of step {} in {:.2?}", state.step, start.elapsed());
        let (step, seconds) = (state.step, start.elapsed().as_secs_f64());
        self.report.tell(|| Event::Checkpoint { step, seconds });
        self.note(EventKind::Checkpoint, String::new());
        self.keep_record();
        Ok(())
    }

    /// The record is for people: a disk that has no room for it ends no training.
    pub(super) fn keep_record(&mut self) {
        let progress = Progress { job: self.server.job().digest(), step: self.server.state().step };
        let bytes = self.count_bytes();
        if let Err(error) = self.record.keep(&mut self.store, progress, &bytes) {
            log::warn!("{error}; the training goes on without it");
        }
    }
}
