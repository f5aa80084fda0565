//! `hfl eval`: accuracy, per-class table and confusion matrix of a saved model.

use std::fmt;
use std::path::Path;
use std::time::Instant;

use kernels::{Isa, Pool};
use serde::Serialize;

use crate::data::batch::Batch;
use crate::data::cifar::{self, CLASS_NAMES};
use crate::data::dataset::Split;
use crate::failure::{Doing, Failure};
use crate::model::inference::Inference;
use crate::training::checkpoint;
use crate::training::store::Place;
use protocol::hex;

/// What a model does on a set of images.
#[derive(Clone, Debug, Serialize)]
pub struct Evaluation {
    /// Step of the checkpoint.
    pub step: u64,
    /// Steps of its whole job; the model is final where both are equal.
    pub steps: Option<u64>,
    /// Digest of the job.
    pub job: String,
    /// SHA-256 of the parameters.
    pub parameters: String,
    /// Images.
    pub images: usize,
    /// Share of images whose class was found.
    pub accuracy: f64,
    /// `confusion[class][found]` counts images.
    pub confusion: Vec<Vec<u64>>,
    /// Images a second.
    pub images_per_s: f64,
}

/// Images of a batch.
const BATCH: usize = 256;

/// Evaluates the checkpoint at `place` on a split of `data`.
///
/// # Errors
/// When model or data cannot be used.
pub fn run(
    place: &Place,
    (data, split): (&Path, Split),
    threads: usize,
    isa: Isa,
) -> Result<Evaluation, Failure> {
    let (network, checkpoint) = place.read(|store| {
        let found = checkpoint::load(store).doing(store.name_of(checkpoint::DATA_FILE))?;
        found.ok_or_else(|| {
            Failure::new(format!("{}: no such file", store.name_of(checkpoint::DATA_FILE)))
                .hint("--model-dir with the directory that ps0 wrote")
        })
    })?;
    place.check_step(checkpoint.state.step)?;
    let set = cifar::read(data, split, None).map_err(|error| {
        Failure::new(error).hint("--data with a directory of CIFAR-10 binary files")
    })?;
    let (conv, job) = (checkpoint.job.conv, hex(&checkpoint.job.digest()));
    let steps = checkpoint.state.steps;
    let params = checkpoint.state.params;
    let parameters = hex(&crate::model::params::hash(&params));
    let exec = (Pool::new(threads), isa);
    let mut model = Inference::new(network.computed(conv), params, BATCH.min(set.len()), exec)
        .doing("memory for a batch")?;
    let classes = set.shape().classes;
    let mut confusion = vec![vec![0; classes]; classes];
    let mut batch = Batch::default();
    let start = Instant::now();
    for first in (0..set.len()).step_by(BATCH) {
        set.batch(first, BATCH.min(set.len() - first), &mut batch);
        let logits = model.run(&batch);
        for (row, &label) in logits.chunks_exact(classes).zip(&batch.labels) {
            confusion[usize::from(label)][largest(row)] += 1;
        }
    }
    let found: u64 = (0..classes).map(|class| confusion[class][class]).sum();
    Ok(Evaluation {
        step: checkpoint.state.step,
        steps,
        job,
        parameters,
        images: set.len(),
        accuracy: found as f64 / set.len() as f64,
        confusion,
        images_per_s: set.len() as f64 / start.elapsed().as_secs_f64(),
    })
}

/// Index of the largest value, the first of equals.
fn largest(row: &[f32]) -> usize {
    (1..row.len()).fold(0, |best, index| if row[index] > row[best] { index } else { best })
}

impl fmt::Display for Evaluation {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let of = match self.steps {
            Some(steps) if steps == self.step => format!("the last of job {}", self.job),
            Some(steps) => format!("of {steps} of job {}", self.job),
            None => format!("of job {}", self.job),
        };
        writeln!(f, "model       step {} {of}", self.step)?;
        writeln!(f, "parameters  sha256:{}", self.parameters)?;
        writeln!(f, "images      {} at {:.0} images/s", self.images, self.images_per_s)?;
        writeln!(f, "accuracy    {:.2} %\n", 100.0 * self.accuracy)?;
        write!(f, "{:10} {:>7} {:>8}   found as", "class", "images", "correct")?;
        for name in CLASS_NAMES {
            write!(f, " {:>5}", &name[..name.len().min(5)])?;
        }
        for (class, row) in self.confusion.iter().enumerate() {
            let total: u64 = row.iter().sum();
            let share = 100.0 * row[class] as f64 / total.max(1) as f64;
            write!(f, "\n{:10} {total:>7} {share:>6.1} %           ", CLASS_NAMES[class])?;
            for count in row {
                write!(f, " {count:>5}")?;
            }
        }
        Ok(())
    }
}
