//! `State`: everything of a training that survives a restart of the parameter server.

use serde::{Deserialize, Serialize};

/// The training after `step` updates.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// Parameters and running statistics.
    pub params: Vec<f32>,
    /// SGD's velocity of the trained part.
    pub velocity: Vec<f32>,
    /// Updates done.
    pub step: u64,
    /// Updates of the whole job, known once every worker has joined.
    pub steps: Option<u64>,
    /// What each worker trains on, as far as it has joined.
    pub members: Vec<Option<Member>>,
}

/// A worker's data, as it says when it joins; it may not change during a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Samples.
    pub samples: u64,
    /// Batches that these make in an epoch.
    pub batches: u64,
}

impl State {
    /// A training that begins with these parameters.
    pub fn new(params: Vec<f32>, trained: usize, workers: u16) -> Self {
        Self {
            params,
            velocity: vec![0.0; trained],
            step: 0,
            steps: None,
            members: vec![None; usize::from(workers)],
        }
    }

    /// Whether all updates are done.
    pub fn is_finished(&self) -> bool {
        self.steps.is_some_and(|steps| self.step >= steps)
    }
}
