//! What a server keeps on the disk while it trains, and what it says where the disk refuses.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use super::Running;
use super::leaving::{Leaving, kept};
use super::saver::{Done, Snapshot, Unwritten};
use crate::events::Event;
use crate::history::EventKind;
use crate::metrics::Metric;
use crate::training::checkpoint;
use crate::training::roles::options::Options;
use crate::training::roles::record::SoFar;
use crate::training::roster;
use crate::training::store::Progress;

impl Running {
    /// Writes down who was admitted, before anybody is told; while a checkpoint is written they wait.
    pub(super) fn keep_roster(&mut self) -> Result<(), Leaving> {
        if !self.server.has_news() || self.saver.is_busy() {
            return Ok(());
        }
        let bytes = roster::encode(self.server.roster());
        let progress = Progress { job: self.server.job().digest(), step: self.server.state().step };
        let store = self.saver.store();
        let saved = store.save(roster::FILE, progress, &|out| out.write_all(&bytes));
        saved.map_err(|error| {
            Leaving::unsaved(store.not_written(roster::FILE, &error, &kept(self.saved)))
        })?;
        self.server.roster_is_kept();
        Ok(())
    }

    pub(super) fn save_best(&mut self) {
        let (before, after) = (Vec::new(), None);
        self.begin_saving(checkpoint::BEST_FILE, before, after);
    }

    pub(super) fn has_unsaved(&self) -> bool {
        self.saved.unwrap_or(0) != self.server.state().step && !self.saver.is_busy()
    }

    pub(super) fn save_in_time(&mut self, options: &Options) {
        if self.has_unsaved() && self.saved_at.elapsed() >= options.checkpoint_after {
            self.save();
        }
    }

    /// Begins to write a checkpoint; the training goes on meanwhile.
    pub(super) fn save(&mut self) {
        self.note(EventKind::Checkpoint, String::new());
        let bytes = self.count_bytes();
        // First: rounds beyond a checkpoint are dropped, those that are missing could not be made up.
        let (before, after) = (self.record.rounds(), self.record.so_far(&bytes));
        self.begin_saving(checkpoint::DATA_FILE, before, Some(after));
    }

    /// Writes a checkpoint and waits for it.
    pub(super) fn save_now(&mut self) -> Result<(), Leaving> {
        self.save();
        self.settle_saves()
    }

    /// Waits for all that is to be written.
    pub(super) fn settle_saves(&mut self) -> Result<(), Leaving> {
        while self.saver.is_busy() {
            self.saver.wait();
            self.take_saved()?;
        }
        Ok(())
    }

    /// Takes in what was written meanwhile.
    pub(super) fn take_saved(&mut self) -> Result<(), Leaving> {
        while let Some(done) = self.saver.take_done() {
            match done.snapshot.name {
                checkpoint::BEST_FILE => self.saved_best(done),
                _ => self.saved(done)?,
            }
        }
        Ok(())
    }

    fn begin_saving(
        &mut self,
        name: &'static str,
        before: Vec<(&'static str, Vec<u8>)>,
        after: Option<SoFar>,
    ) {
        let (job, state) = (self.server.job().clone(), self.server.state().clone());
        self.saver.save(Snapshot { job, state, before, name, after });
    }

    /// A place that has no room for a second model keeps the last one, and the training goes on.
    fn saved_best(&mut self, Done { result, .. }: Done) {
        if let Err(Unwritten { name, error }) = result {
            let kept = "the training goes on without it";
            log::warn!("{}", self.saver.store().not_written(name, &error, kept));
            return;
        }
        self.sign_best();
    }

    fn saved(&mut self, Done { snapshot, result, time }: Done) -> Result<(), Leaving> {
        result.map_err(|Unwritten { name, error }| {
            let kept = kept(self.saved);
            Leaving::unsaved(self.saver.store().not_written(name, &error, &kept))
        })?;
        let step = snapshot.state.step;
        (self.saved, self.saved_at) = (Some(step), Instant::now());
        self.witness.iter().for_each(|witness| witness.saved(step));
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        self.metrics.set(Metric::CheckpointStep, step as f64);
        self.metrics.set(Metric::CheckpointTime, now.map_or(0.0, |since| since.as_secs_f64()));
        log::info!("checkpoint of step {step} in {time:.2?}");
        let seconds = time.as_secs_f64();
        self.report.tell(|| Event::Checkpoint { step, seconds });
        Ok(())
    }

    /// The record is for people: a disk that has no room for it ends no training.
    pub(super) fn keep_record(&mut self) {
        let progress = Progress { job: self.server.job().digest(), step: self.server.state().step };
        let bytes = self.count_bytes();
        let so_far = self.record.so_far(&bytes);
        if let Err(error) = so_far.save(self.saver.store(), progress) {
            log::warn!("{error}; the training goes on without it");
        }
    }
}
