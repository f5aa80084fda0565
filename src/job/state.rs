//! `State`: everything of a training that survives a restart of the parameter server.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::job::receipt::Receipt;

/// The training after `step` updates. A clone is a snapshot: it shares the values with the original until one of
/// them changes.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// Parameters and running statistics.
    pub params: Arc<Vec<f32>>,
    /// SGD's velocity of the trained part.
    pub velocity: Arc<Vec<f32>>,
    /// Averages of parameters and running statistics, where the job has them.
    pub average: Option<Arc<Vec<f32>>>,
    /// Updates done.
    pub step: u64,
    /// Updates of the whole job, known once every worker has joined.
    pub steps: Option<u64>,
    /// What each worker trains on, as far as it has joined.
    pub members: Vec<Option<Member>>,
    /// What evaluations have found.
    pub found: Found,
    /// The receipt of the last round, in a chain with all before it.
    pub receipt: Option<Receipt>,
}

/// What evaluations on test images have found so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Found {
    /// Updates that the model had at the last evaluation; 0 before the first.
    pub last: u64,
    /// Updates that the best one had.
    pub best: u64,
    /// Images of which the best one found the class, and all images.
    pub counts: [u64; 2],
    /// Evaluations since the best one.
    pub since: u32,
}

impl Found {
    /// Takes in what an evaluation found, right and all images; says whether it is the best.
    pub fn take(&mut self, step: u64, counts: [u64; 2]) -> bool {
        self.last = step;
        if counts[1] == 0 {
            return false;
        }
        let [[right, all], [best, of]] = [counts, self.counts].map(|pair| pair.map(u128::from));
        let is_best = of == 0 || right * of > best * all;
        *self = match is_best {
            true => Self { last: step, best: step, counts, since: 0 },
            false => Self { since: self.since.saturating_add(1), ..*self },
        };
        is_best
    }
}

/// A worker's data, as it says when it joins; it may not change during a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Samples.
    pub samples: u64,
    /// Batches that these make in an epoch.
    pub batches: u64,
    /// Root of the Merkle tree over its records; `None` in checkpoints from before it was kept.
    #[serde(default, with = "digits")]
    pub data: Option<[u8; 32]>,
    /// Samples of each class; none in checkpoints from before they were kept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<u64>,
}

impl Member {
    /// Whether this is the data of before, as far as that is known.
    pub fn is_as(&self, before: &Self) -> bool {
        let counts = |member: &Self| (member.samples, member.batches);
        counts(self) == counts(before)
            && before.data.is_none_or(|data| self.data == Some(data))
            && (before.classes.is_empty() || self.classes == before.classes)
    }

    /// Whether there is a count for each of so many classes, and together they are the samples.
    pub fn counts(&self, classes: usize) -> bool {
        let all = self.classes.iter().try_fold(0, |sum: u64, count| sum.checked_add(*count));
        self.classes.len() == classes && all == Some(self.samples)
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
            params: Arc::new(params),
            velocity: Arc::new(vec![0.0; trained]),
            average: None,
            step: 0,
            steps: None,
            members: vec![None; usize::from(workers)],
            found: Found::default(),
            receipt: None,
        }
    }

    /// The same with averages, if the job has them: they begin as the parameters do.
    #[must_use]
    pub fn averaging(mut self, averages: bool) -> Self {
        self.average = averages.then(|| Arc::new(self.params.to_vec()));
        self
    }

    /// Whether a snapshot has the values too, so that a change would copy them first.
    pub fn is_shared(&self) -> bool {
        let mut values = [&self.params, &self.velocity].into_iter().chain(&self.average);
        values.any(|values| Arc::strong_count(values) > 1)
    }

    /// What is evaluated, exported and used: the averages, where the job has them.
    pub fn weights(&self) -> &Arc<Vec<f32>> {
        self.average.as_ref().unwrap_or(&self.params)
    }

    /// The averages to be changed, where there are any, and the parameters.
    pub fn average_mut(&mut self) -> Option<(&mut [f32], &[f32])> {
        let average = self.average.as_mut()?;
        Some((&mut *Arc::make_mut(average), &self.params))
    }

    /// Parameters and velocity to be changed; a copy of them where a snapshot has them too.
    pub fn values_mut(&mut self) -> (&mut [f32], &mut [f32]) {
        (&mut *Arc::make_mut(&mut self.params), &mut *Arc::make_mut(&mut self.velocity))
    }

    /// Whether all updates are done.
    pub fn is_finished(&self) -> bool {
        self.steps.is_some_and(|steps| self.step >= steps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_is_the_first_of_the_largest_shares() {
        let mut found = Found::default();
        assert!(!found.take(4, [0, 0]));
        assert_eq!((found.last, found.since), (4, 0), "without images nothing is worse");
        assert!(found.take(8, [1, 3]) && !found.take(12, [2, 6]) && !found.take(16, [0, 3]));
        assert_eq!((found.best, found.since, found.last), (8, 2, 16));
        assert!(found.take(20, [3, 8]));
        assert_eq!(found, Found { last: 20, best: 20, counts: [3, 8], since: 0 });
    }
}
