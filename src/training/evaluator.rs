//! `Evaluator`: a worker's own test images, and what a model takes them for.

use std::io;

use kernels::{Isa, Pool};

use crate::data::batch::Batch;
use crate::data::dataset::Dataset;
use crate::job::Job;
use crate::model::inference::Inference;
use crate::model::network::Network;

/// Images of a batch: enough for every thread, and little memory beside that of a training step.
pub(crate) const BATCH: usize = 64;

/// A worker's test images.
pub struct Evaluator {
    set: Dataset,
}

impl Evaluator {
    /// Of these images.
    pub fn new(set: Dataset) -> Self {
        Self { set }
    }

    /// Images by `class * classes + found`, by running statistics in single precision, as `hfl eval` counts them.
    ///
    /// # Errors
    /// When the system has not the memory for a batch, or pictures cannot be read any more.
    pub fn table(&self, job: &Job, params: &[f32], pool: Pool, isa: Isa) -> io::Result<Vec<u32>> {
        let network = Network::of(job).map_err(io::Error::other)?.computed(job.conv);
        let most = BATCH.min(self.set.len());
        let mut model = Inference::new(network, params.to_vec(), most, pool, isa)?;
        let classes = job.shape.classes;
        let mut table = vec![0; classes * classes];
        let mut batch = Batch::default();
        for first in (0..self.set.len()).step_by(most) {
            let batched = self.set.batch(first, most.min(self.set.len() - first), &mut batch);
            batched.map_err(io::Error::other)?;
            let logits = model.run(&batch).chunks_exact(classes);
            for (&label, logits) in batch.labels.iter().zip(logits) {
                table[usize::from(label) * classes + likeliest(logits)] += 1;
            }
        }
        Ok(table)
    }
}

/// The first of the largest.
fn likeliest(logits: &[f32]) -> usize {
    let larger =
        |best: usize, class: usize| if logits[class] > logits[best] { class } else { best };
    (0..logits.len()).reduce(larger).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::likeliest;

    #[test]
    fn of_equals_the_first_is_taken_as_in_eval() {
        assert_eq!(likeliest(&[0.1, 0.7, 0.7, -1.0]), 1);
        assert_eq!(likeliest(&[f32::MIN, f32::NAN]), 0);
    }
}
