//! Why a server ends before its job does, and what there is to go on from.

use protocol::Refusal;

use crate::failure::Failure;

/// Why the server ends before the job does, and what the workers are told of it.
pub(super) struct Leaving {
    pub(super) told: Refusal,
    pub(super) failure: Failure,
}

impl From<Failure> for Leaving {
    fn from(failure: Failure) -> Self {
        Self { told: Refusal::Later, failure }
    }
}

impl Leaving {
    /// What was done could not be kept.
    pub(super) fn unsaved(failure: Failure) -> Self {
        Self { told: Refusal::Unsaved, failure }
    }
}

/// What there is to go on from.
pub(super) fn kept(saved: Option<u64>) -> String {
    saved.map_or("there is no checkpoint yet".into(), |step| {
        format!("the checkpoint of step {step} is kept")
    })
}
