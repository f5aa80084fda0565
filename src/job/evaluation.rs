//! `Evaluation`: when a job looks at how good its model is, and when it gives up to become better.

use serde::{Deserialize, Serialize};

/// When each worker evaluates the model on its own test images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluation {
    /// Epochs between two evaluations; 0 for none.
    pub every: u32,
    /// The job ends after so many evaluations that were not better than the best.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patience: Option<u32>,
}

impl Default for Evaluation {
    fn default() -> Self {
        Self { every: 1, patience: None }
    }
}

impl Evaluation {
    /// Whether the model after `step` of `steps` updates is evaluated, where `batches` make an epoch and `each` a
    /// round: with the round that ends each such number of epochs, and at the end of the job.
    pub fn is_due(self, step: u64, steps: u64, [batches, each]: [u64; 2]) -> bool {
        let between = u64::from(self.every).saturating_mul(batches);
        if between == 0 || step == 0 {
            return false;
        }
        step == steps || step / between > step.saturating_sub(each) / between
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evaluations_end_epochs_and_the_job() {
        let due = |every, steps: u64| {
            let plan = Evaluation { every, ..Evaluation::default() };
            (0..=steps).filter(|&step| plan.is_due(step, steps, [4, 1])).collect::<Vec<u64>>()
        };
        assert_eq!(due(1, 10), [4, 8, 10]);
        assert_eq!(due(2, 16), [8, 16]);
        assert_eq!(due(9, 3), [3]);
        assert!(due(0, 16).is_empty());
        let rounds = (0..=21).step_by(3).filter(|&at| Evaluation::default().is_due(at, 22, [4, 3]));
        assert!(rounds.eq([6, 9, 12, 18, 21]), "the rounds in which 4, 8, 12, 16 and 20 lie");
    }
}
