//! `Classifier`: a saved model that tells classes, for `hfl eval` and `hfl predict`.

use std::sync::Arc;

use kernels::{Isa, Pool};

use crate::data::batch::Batch;
use crate::failure::{Doing, Failure};
use crate::job::Job;
use crate::model::inference::Inference;
use crate::model::network::Network;
use crate::model::params;
use crate::training::checkpoint::{self, Checkpoint};
use crate::training::store::Place;

/// A saved model as it was read.
pub struct Saved {
    network: Network,
    checkpoint: Checkpoint,
}

/// A saved model and what it is of.
pub struct Classifier {
    /// The job that it is of.
    pub job: Job,
    /// Step of the checkpoint.
    pub step: u64,
    /// Steps of its whole job.
    pub steps: Option<u64>,
    /// SHA-256 of the parameters.
    pub parameters: [u8; 32],
    model: Inference,
}

impl Saved {
    /// Reads the last checkpoint of a place, or the best one.
    ///
    /// # Errors
    /// When there is none, it is damaged, or of an earlier step than it must be.
    pub fn open(place: &Place, best: bool) -> Result<Self, Failure> {
        let file = if best { checkpoint::BEST_FILE } else { checkpoint::DATA_FILE };
        let (network, checkpoint) = place.read(|store| {
            let found = checkpoint::load(store, file).doing(store.name_of(file))?;
            found.ok_or_else(|| {
                Failure::new(format!("{}: no such file", store.name_of(file))).hint(match best {
                    true => "without --best, or a job whose workers have test images",
                    false => "--model-dir with the directory that ps0 wrote",
                })
            })
        })?;
        place.check_step(checkpoint.state.step)?;
        Ok(Self { network, checkpoint })
    }

    /// The network, the job that it is of, and its weights: averages, where the job has them.
    pub fn parts(&self) -> (&Network, &Job, &[f32]) {
        (&self.network, &self.checkpoint.job, self.checkpoint.state.weights())
    }

    /// Gets it ready for batches of so many images.
    ///
    /// # Errors
    /// When memory is short.
    pub fn ready(self, batch: usize, threads: usize, isa: Isa) -> Result<Classifier, Failure> {
        let Checkpoint { job, state } = self.checkpoint;
        let parameters = params::hash(&state.params);
        let network = self.network.computed(job.conv);
        if job.recipe.averages() {
            log::info!("averaged weights (--ema {})", job.recipe.ema);
        }
        let weights = Arc::unwrap_or_clone(state.average.unwrap_or(state.params));
        let model = Inference::new(network, weights, batch, Pool::new(threads), isa)
            .doing("memory for a batch")?;
        Ok(Classifier { job, step: state.step, steps: state.steps, parameters, model })
    }
}

impl Classifier {
    /// Probabilities of each image's classes, in the order of the job's names.
    pub fn classify(&mut self, batch: &Batch) -> Vec<Vec<f64>> {
        let classes = self.job.shape.classes;
        self.model.run(batch).chunks_exact(classes).map(softmax).collect()
    }
}

fn softmax(logits: &[f32]) -> Vec<f64> {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f64> = logits.iter().map(|&logit| f64::from(logit - most).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.iter().map(|power| power / sum).collect()
}

/// Classes by falling probability, the first of equals first.
pub fn ranked(probabilities: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..probabilities.len()).collect();
    order.sort_by(|&a, &b| probabilities[b].total_cmp(&probabilities[a]));
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_are_those_of_the_logits_and_ranked() {
        let found = softmax(&[1000.0, 1000.0, 1000.0 - 2.0_f32.ln()]);
        for (found, want) in found.iter().zip([0.4, 0.4, 0.2]) {
            assert!((found - want).abs() < 1e-4, "{found} instead of {want}");
        }
        assert_eq!(ranked(&found), [0, 1, 2]);
        assert_eq!(ranked(&[0.1, 0.3, 0.6]), [2, 1, 0]);
    }
}
