//! `Bounds`: which jobs a worker takes, whatever an accepted server asks for.
//!
//! Gradients over one picture tell what is in it: from a step of batch 1 the label can be read off the difference of
//! the classifier's bias. So a worker has a say of its own: one job that its owner has read, or limits.

use std::fmt;

use protocol::{Bound, hex};

use crate::job::{Arch, Job};

/// What a worker takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Only the job of this digest. The other bounds do not count then: who names a job has read it.
    pub job: Option<[u8; 32]>,
    /// Fewest pictures of this worker in a step.
    pub batch_min: u32,
    /// Most steps of a job.
    pub steps_max: u64,
    /// The networks; empty: every one that this program knows.
    pub models: Vec<Arch>,
}

/// A job that is out of bounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exceeded {
    /// The bound, as the server hears of it.
    pub bound: Bound,
    what: String,
}

impl fmt::Display for Exceeded {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "we do not take this job: {}", self.what)
    }
}

impl std::error::Error for Exceeded {}

impl Bounds {
    /// The usual limits: the defaults of the command line.
    pub const BATCH_MIN: u32 = 16;
    /// Some 50,000 epochs of CIFAR-10 over two workers: 40 days at three steps a second.
    pub const STEPS_MAX: u64 = 10_000_000;

    /// Whether a worker with so many pictures takes the job.
    ///
    /// # Errors
    /// The first bound that it exceeds.
    pub fn check(&self, job: &Job, samples: u64) -> Result<(), Exceeded> {
        let exceeds = |bound, what| Err(Exceeded { bound, what });
        if let Some(digest) = self.job {
            let found = job.digest();
            return match found == digest {
                true => Ok(()),
                false => exceeds(
                    Bound::Job,
                    format!("it is {}, and --job names {}", hex(&found), hex(&digest)),
                ),
            };
        }
        if !self.models.is_empty() && !self.models.contains(&job.model) {
            return exceeds(Bound::Model, format!("{} is none of --models", job.model));
        }
        let batch = u64::from(job.batch_size).min(samples);
        if batch < self.batch_min.into() {
            let what = format!(
                "a step has {batch} of our {samples} pictures, and --min-batch is {}: gradients over few tell what \
                 is in them",
                self.batch_min
            );
            return exceeds(Bound::Batch, what);
        }
        job.steps.map_or(Ok(()), |steps| self.check_steps(steps))
    }

    /// Whether a job may have so many steps, which only the server knows where it counts in epochs.
    ///
    /// # Errors
    /// When it has more.
    pub fn check_steps(&self, steps: u64) -> Result<(), Exceeded> {
        match self.job.is_none() && steps > self.steps_max {
            true => Err(Exceeded {
                bound: Bound::Steps,
                what: format!("it has {steps} steps, and --max-steps is {}", self.steps_max),
            }),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job() -> Job {
        let text = r#"{"stem":"imagenet","precision":"fp32","conv":"auto","workers":2,"batch_size":16,"epochs":1,
            "steps":null,"schedule":{"cosine":{"rate":0.1}},"momentum":0.9,"weight_decay":0.0005,
            "seed":1,"augment":"standard","order":"shuffled","init":null}"#;
        Job::parse(text.as_bytes()).expect("valid")
    }

    #[test]
    fn each_bound_is_a_bound_and_a_named_job_is_the_only_one() {
        let usual = Bounds { job: None, batch_min: 16, steps_max: 100, models: Vec::new() };
        let refused = |bounds: &Bounds, job: &Job, samples| {
            bounds.check(job, samples).err().map(|exceeded| exceeded.bound)
        };
        assert_eq!(refused(&usual, &job(), 16), None);
        // The attack: one step of one picture; and the same by a worker that has only few.
        let one = Job { batch_size: 1, steps: Some(1), ..job() };
        assert_eq!(refused(&usual, &one, 1000), Some(Bound::Batch));
        assert_eq!(refused(&usual, &job(), 15), Some(Bound::Batch));
        assert_eq!(refused(&usual, &Job { steps: Some(101), ..job() }, 16), Some(Bound::Steps));
        assert_eq!(refused(&usual, &Job { steps: Some(100), ..job() }, 16), None);
        assert!(usual.check_steps(100).is_ok() && usual.check_steps(101).is_err());
        let models = Bounds { models: vec![Arch::Resnet101], ..usual.clone() };
        assert_eq!(refused(&models, &job(), 16), Some(Bound::Model));
        let named = Bounds { job: Some(one.digest()), ..usual };
        assert_eq!(refused(&named, &one, 1000), None);
        assert_eq!(refused(&named, &job(), 1000), Some(Bound::Job));
        assert_eq!(refused(&named, &Job { seed: 2, ..one }, 1000), Some(Bound::Job));
        assert!(named.check_steps(u64::MAX).is_ok());
    }
}
