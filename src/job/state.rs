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
    /// Root of the Merkle tree over its records; `None` in checkpoints from before it was kept.
    #[serde(default, with = "digits")]
    pub data: Option<[u8; 32]>,
}

impl Member {
    /// Whether this is the data of before, as far as that is known.
    pub fn is_as(&self, before: &Self) -> bool {
        let counts = |member: &Self| (member.samples, member.batches);
        counts(self) == counts(before) && before.data.is_none_or(|data| self.data == Some(data))
    }
}

/// A digest as hexadecimal digits.
mod digits {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

    use protocol::{hex, unhex};

    pub(super) fn serialize<S: Serializer>(
        data: &Option<[u8; 32]>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        data.as_ref().map(|data| hex(data)).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<[u8; 32]>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        let read = |text: String| unhex(&text).and_then(|bytes| bytes.try_into().ok());
        let wrong = || de::Error::custom("data is no digest of 32 bytes");
        text.map(|text| read(text).ok_or_else(wrong)).transpose()
    }
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
