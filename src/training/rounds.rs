//! `rounds.json`: who contributed to which round with how many samples, so that a job can be repeated exactly.
//!
//! With the job, the data and the first parameters this is all that the final ones depend on. Rounds that are alike
//! are one entry. It is written before the checkpoint that it leads to: what it has beyond that is dropped.

use serde::{Deserialize, Serialize};

#[cfg(doc)]
use crate::model::params;
use crate::training::round::Contributed;
use crate::training::server::Closed;

/// The file in the model's directory.
pub const FILE: &str = "rounds.json";
/// Form of the file.
const VERSION: u32 = 1;

/// The rounds of a job so far.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoundLog {
    /// Form of this file.
    version: u32,
    /// Rounds, in their order.
    runs: Vec<Run>,
}

/// Rounds with equal contributions, one after another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// First step of the first of these rounds.
    pub step: u64,
    /// Steps of each.
    pub steps: u64,
    /// How many rounds they are.
    pub rounds: u64,
    /// Who contributed.
    pub workers: Vec<Contributed>,
    /// [`params::check`] of the parameters after each of these rounds; none in logs of before it was kept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<u32>,
}

/// One round of the log.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Logged<'a> {
    /// Its first step.
    pub step: u64,
    /// Its steps.
    pub steps: u64,
    /// Who contributed.
    pub workers: &'a [Contributed],
    /// [`params::check`] of the parameters after it, if it was kept.
    pub check: Option<u32>,
}

impl Logged<'_> {
    /// The step after it.
    pub fn end(&self) -> u64 {
        self.step.saturating_add(self.steps)
    }
}

/// A worker's part in a job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Rounds that it contributed to.
    pub rounds: u64,
    /// Samples of these.
    pub samples: u64,
}

impl Default for RoundLog {
    fn default() -> Self {
        Self { version: VERSION, runs: Vec::new() }
    }
}

impl RoundLog {
    /// Adds a round.
    pub fn push(&mut self, closed: &Closed) {
        let step = closed.step + 1 - closed.count;
        let goes_on = |run: &&mut Run| {
            run.end() == step && run.steps == closed.count && run.workers == closed.contributed
        };
        match self.runs.last_mut().filter(goes_on) {
            Some(run) => {
                // Where a log of before checksums goes on, the places of all would be wrong.
                if run.checks.len() as u64 == run.rounds {
                    run.checks.push(closed.check);
                }
                run.rounds += 1;
            }
            None => self.runs.push(Run {
                step,
                steps: closed.count,
                rounds: 1,
                workers: closed.contributed.clone(),
                checks: vec![closed.check],
            }),
        }
    }

    /// Drops what came after `step` steps: the training goes on from there.
    pub fn cut(&mut self, step: u64) {
        self.runs.retain(|run| run.step < step);
        if let Some(run) = self.runs.last_mut() {
            run.rounds = run.rounds.min((step - run.step).div_ceil(run.steps.max(1)));
            run.checks.truncate(usize::try_from(run.rounds).unwrap_or(usize::MAX));
        }
    }

    /// What a worker has contributed.
    pub fn share_of(&self, worker: u16) -> Share {
        let mut share = Share::default();
        for run in &self.runs {
            let of_worker = run.workers.iter().filter(|part| part.worker == worker);
            for part in of_worker {
                // A file may say anything.
                let samples = run.rounds.saturating_mul(u64::from(part.samples));
                share.rounds = share.rounds.saturating_add(run.rounds);
                share.samples = share.samples.saturating_add(samples);
            }
        }
        share
    }

    /// The rounds.
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// Each round, in their order.
    pub fn rounds(&self) -> impl Iterator<Item = Logged<'_>> {
        self.runs.iter().flat_map(|run| {
            (0..run.rounds).map(|round| Logged {
                step: run.step.saturating_add(round.saturating_mul(run.steps)),
                steps: run.steps,
                workers: &run.workers,
                check: usize::try_from(round).ok().and_then(|at| run.checks.get(at).copied()),
            })
        })
    }

    /// The file's bytes.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("plain numbers")
    }

    /// The log in these bytes.
    ///
    /// # Errors
    /// When they are none.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let log: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        match log.version == VERSION {
            true => Ok(log),
            false => Err(format!("form {} is unknown", log.version)),
        }
    }
}

impl Run {
    fn end(&self) -> u64 {
        self.step.saturating_add(self.steps.saturating_mul(self.rounds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_that_are_alike_are_one_entry_and_what_is_undone_is_cut() {
        let mut log = RoundLog::default();
        let part = |worker| Contributed { worker, samples: 4, fresh: false };
        for (index, workers) in
            [vec![0, 1], vec![0, 1], vec![0], vec![0, 1]].into_iter().enumerate()
        {
            let contributed = workers.into_iter().map(part).collect();
            let (step, count) = (3 * index as u64 + 2, 3);
            let check = index as u32;
            log.push(&Closed { step, count, steps: 12, loss: 1.0, samples: 8, contributed, check });
        }
        let rounds = |log: &RoundLog| -> Vec<(u64, u64, usize)> {
            log.runs().iter().map(|run| (run.step, run.rounds, run.workers.len())).collect()
        };
        assert_eq!(rounds(&log), [(0, 2, 2), (6, 1, 1), (9, 1, 2)]);
        assert_eq!(RoundLog::parse(&log.encode()).as_ref(), Ok(&log));
        let shares = [0, 1, 2].map(|worker| log.share_of(worker));
        assert_eq!(shares.map(|share| (share.rounds, share.samples)), [(4, 16), (3, 12), (0, 0)]);
        let each: Vec<_> = log.rounds().map(|round| (round.step, round.check)).collect();
        assert_eq!(each, [(0, Some(0)), (3, Some(1)), (6, Some(2)), (9, Some(3))]);
        log.cut(9);
        assert_eq!(rounds(&log), [(0, 2, 2), (6, 1, 1)]);
        log.cut(3);
        assert_eq!(rounds(&log), [(0, 1, 2)]);
        assert_eq!(log.rounds().map(|round| round.check).collect::<Vec<_>>(), [Some(0)]);
        log.cut(0);
        assert_eq!(rounds(&log), []);
        let old = br#"{"version":1,"runs":[{"step":0,"steps":1,"rounds":2,"workers":[]}]}"#;
        let old = RoundLog::parse(old).expect("a log of before checksums");
        assert_eq!(old.rounds().map(|round| round.check).collect::<Vec<_>>(), [None, None]);
        assert!(RoundLog::parse(br#"{"version":2,"runs":[]}"#).is_err());
    }
}
