//! `Job`: everything that defines a training, decided by ps0 and shown to every worker as a digest.

pub mod rng;
pub mod schedule;
pub mod state;

use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

use crate::job::schedule::Schedule;

/// The definition of a job. Two parties that know the same digest train the same model the same way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Job {
    /// First layers of the network.
    pub stem: Stem,
    /// Number format of activations and products.
    pub precision: Precision,
    /// How convolutions are computed.
    pub conv: Algorithm,
    /// Number of workers, `worker0` to `worker{n-1}`.
    pub workers: u16,
    /// Images of one worker in a step.
    pub batch_size: u32,
    /// Passes over the data, unless `steps` says otherwise.
    pub epochs: u32,
    /// Steps of the whole training; `None`: as many as the epochs take.
    pub steps: Option<u64>,
    /// Largest learning rate, and how it changes.
    pub schedule: Schedule,
    /// Share of the last velocity that SGD keeps.
    pub momentum: f32,
    /// Weight decay on convolution and classifier weights.
    pub weight_decay: f32,
    /// Seed of initialisation, order and augmentation.
    pub seed: u64,
    /// Random crop and flip, or none.
    pub augment: Augment,
    /// Order of a worker's samples in an epoch.
    pub order: Order,
    /// SHA-256 of the parameters that the training starts from, if they came from a file.
    pub init: Option<[u8; 32]>,
}

/// The network's first layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stem {
    /// 3x3 convolution with stride 1, no pooling: made for 32x32 images.
    Cifar,
    /// 7x7 convolution with stride 2 and max pooling: the standard network.
    Imagenet,
}

/// Number format of activations and products.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Single precision everywhere.
    Fp32,
    /// Activations and operands of products in bfloat16; sums, weights and statistics in single precision.
    Bf16,
}

/// How convolutions are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Algorithm {
    /// By Winograd's and Strassen's algorithms where they are faster, at some more rounding error.
    Auto,
    /// By the definition.
    Direct,
}

/// What is done to training images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Augment {
    /// Nothing.
    None,
    /// Random crop from the image padded by 4 pixels, and horizontal flip.
    Standard,
}

/// In which order a worker takes its samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// As they are in the files.
    Sequential,
    /// In a new random order each epoch.
    Shuffled,
}

impl Job {
    /// SHA-256 over the job's wire form.
    pub fn digest(&self) -> [u8; 32] {
        let hash = digest(&SHA256, &self.encode());
        hash.as_ref().try_into().expect("SHA-256 has 32 bytes")
    }

    /// The wire form: JSON, so that an auditor can read what the digest covers.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a job has no maps with odd keys")
    }

    /// Parses the wire form.
    ///
    /// # Errors
    /// When the bytes are no job, or one whose size no job has.
    pub fn parse(bytes: &[u8]) -> Result<Self, JobError> {
        let job: Self = serde_json::from_slice(bytes).map_err(JobError::Format)?;
        if !(1..=BATCH_MAX).contains(&job.batch_size) {
            return Err(JobError::OutOfRange("batch_size", job.batch_size.into()));
        }
        if !(1..=WORKERS_MAX).contains(&job.workers) {
            return Err(JobError::OutOfRange("workers", job.workers.into()));
        }
        Ok(job)
    }
}

/// Most images of one worker in a step: memory is taken for so many.
pub const BATCH_MAX: u32 = 4096;
/// Most workers of a job.
pub const WORKERS_MAX: u16 = 64;

/// Why bytes are no job.
#[derive(Debug)]
pub enum JobError {
    /// They are not its JSON.
    Format(serde_json::Error),
    /// A number is zero or too large.
    OutOfRange(&'static str, u64),
}

impl std::fmt::Display for JobError {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Self::Format(error) => error.fmt(f),
            Self::OutOfRange(what, value) => write!(f, "{what} is {value}"),
        }
    }
}

macro_rules! names {
    ($type:ident { $($name:literal => $variant:ident),+ }) => {
        impl std::str::FromStr for $type {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $($name => Ok(Self::$variant),)+
                    _ => Err(format!("expected {}", [$($name),+].join(" or "))),
                }
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str(match self { $(Self::$variant => $name),+ })
            }
        }
    };
}

names!(Stem { "imagenet" => Imagenet, "cifar" => Cifar });
names!(Precision { "fp32" => Fp32, "bf16" => Bf16 });
names!(Algorithm { "auto" => Auto, "direct" => Direct });
names!(Augment { "standard" => Standard, "none" => None });
names!(Order { "shuffled" => Shuffled, "sequential" => Sequential });

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_out_of_range_or_with_unknown_fields_are_refused() {
        let text = r#"{"stem":"imagenet","precision":"fp32","conv":"auto","workers":2,"batch_size":128,"epochs":1,
            "steps":null,"schedule":{"cosine":{"rate":0.1}},"momentum":0.9,"weight_decay":0.0005,
            "seed":1,"augment":"standard","order":"shuffled","init":null}"#;
        let job = Job::parse(text.as_bytes()).expect("valid");
        assert_eq!(Job::parse(&job.encode()).expect("own bytes").digest(), job.digest());
        for (from, to) in [
            (":128", ":0"),
            (":128", ":4097"),
            ("workers\":2", "workers\":0"),
            ("workers\":2", "workers\":65"),
            ("\"seed\"", "\"x\":0,\"seed\""),
        ] {
            let changed = text.replacen(from, to, 1);
            assert_ne!(changed, text);
            assert!(Job::parse(changed.as_bytes()).is_err(), "{to}");
        }
    }
}
