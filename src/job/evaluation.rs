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
    /// Whether the model after `step` of `steps` updates is evaluated, where `batches` make an epoch: at the end of
    /// each such number of epochs, and at the end of the job.
    pub fn is_due(self, step: u64, steps: u64, batches: u64) -> bool {
        let between = u64::from(self.every).saturating_mul(batches);
        between > 0 && step > 0 && (step == steps || step.is_multiple_of(between))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evaluations_end_epochs_and_the_job() {
        let due = |every, steps: u64| {
            let plan = Evaluation { every, ..Evaluation::default() };
            (0..=steps).filter(|&step| plan.is_due(step, steps, 4)).collect::<Vec<u64>>()
        };
        assert_eq!(due(1, 10), [4, 8, 10]);
        assert_eq!(due(2, 16), [8, 16]);
        assert_eq!(due(9, 3), [3]);
        assert!(due(0, 16).is_empty());
    }
}
