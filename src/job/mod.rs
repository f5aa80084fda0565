//! `Job`: everything that defines a training, decided by ps0 and shown to every worker as a digest.

pub mod bounds;
pub mod classes;
pub mod evaluation;
pub mod norm;
pub mod receipt;
pub mod recipe;
pub mod rng;
pub mod schedule;
pub mod shape;
pub mod skew;
pub mod state;

use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

use crate::job::classes::ClassNames;
use crate::job::evaluation::Evaluation;
use crate::job::norm::Norm;
use crate::job::recipe::{Flip, Recipe};
use crate::job::schedule::Schedule;
use crate::job::shape::{CHANNELS, SIDE_STEP, Shape};

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
    /// What the weight of a worker's gradients is in a step.
    #[serde(default, skip_serializing_if = "is_default")]
    pub weighting: Weighting,
    /// Which network of the family.
    #[serde(default, skip_serializing_if = "is_default")]
    pub model: Arch,
    /// Size of the images, and number of classes.
    #[serde(default, skip_serializing_if = "is_default")]
    pub shape: Shape,
    /// What the classes are called.
    #[serde(default, skip_serializing_if = "is_default")]
    pub classes: ClassNames,
    /// What is taken off pixels, and what they are divided by.
    #[serde(default, skip_serializing_if = "is_default")]
    pub normalisation: Normalisation,
    /// When the model is evaluated.
    #[serde(default, skip_serializing_if = "is_default")]
    pub evaluation: Evaluation,
    /// Number format of values between workers and server.
    #[serde(default, skip_serializing_if = "is_default")]
    pub wire: Wire,
    /// Steps that each worker makes of its own in a round, if it does: it sends what they changed, not gradients.
    #[serde(default, skip_serializing_if = "is_default")]
    pub local_steps: Option<u32>,
    /// What the server makes of the mean of such changes.
    #[serde(default, skip_serializing_if = "is_default")]
    pub outer: Outer,
    /// When a round closes without everybody, if it may.
    #[serde(default, skip_serializing_if = "is_default")]
    pub quorum: Option<Quorum>,
    /// What activations are normalised with.
    #[serde(default, skip_serializing_if = "is_default")]
    pub norm: Norm,
    /// What else steps are made of.
    #[serde(default, skip_serializing_if = "is_default")]
    pub recipe: Recipe,
}

/// What the command line asks for by itself.
impl Default for Job {
    fn default() -> Self {
        Self {
            stem: Stem::Imagenet,
            precision: Precision::Fp32,
            conv: Algorithm::Auto,
            workers: 2,
            batch_size: 128,
            epochs: 20,
            steps: None,
            schedule: Schedule::Cosine {
                rate: Schedule::usual_rate(256, 32, false),
                warm_up: None,
            },
            momentum: 0.9,
            weight_decay: 5e-4,
            seed: 1,
            augment: Augment::Standard,
            order: Order::Shuffled,
            init: None,
            weighting: Weighting::Data,
            model: Arch::default(),
            shape: Shape::CIFAR,
            classes: ClassNames::default(),
            normalisation: Normalisation::Cifar,
            evaluation: Evaluation::default(),
            wire: Wire::Fp32,
            local_steps: None,
            outer: Outer::default(),
            quorum: None,
            norm: Norm::default(),
            recipe: Recipe::default(),
        }
    }
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
    /// A random part of the picture's centre square, at 8/7 of the image's size, resized, and horizontal flip; the
    /// centre of it in evaluation.
    Resized,
    /// The same of the whole picture as it is in its file: torchvision's `RandomResizedCrop`.
    Parts,
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

/// What a worker's gradients weigh in a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Weighting {
    /// As its batch has samples. A worker whose data makes fewer batches begins anew within an epoch, so its
    /// samples count more often than those of others.
    Batch,
    /// As its data has samples: n_k of n, as federated averaging is defined (McMahan et al., "Communication-efficient
    /// learning of deep networks from decentralized data", 2017). Each sample counts alike.
    #[default]
    Data,
}

/// Number format of values between workers and server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wire {
    /// Single precision.
    #[default]
    Fp32,
    /// bfloat16, rounded to nearest even.
    Bf16,
    /// Gradients in 8 bits with a scale a block, what is rounded off added to the next ones; parameters in bfloat16.
    Int8,
}

/// The outer step: plain averaging, unless it says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outer {
    /// Share of the mean change that is applied.
    pub rate: f32,
    /// Nesterov's momentum.
    pub momentum: f32,
}

impl Default for Outer {
    fn default() -> Self {
        Self { rate: 1.0, momentum: 0.0 }
    }
}

/// When a round closes without everybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quorum {
    /// Workers that have to be in.
    pub workers: u16,
    /// Seconds for which the others are waited for.
    pub seconds: u32,
}

/// What is not said does not change a job's digest.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A network of the family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Arch {
    /// 18 layers in basic blocks.
    Resnet18,
    /// 34 layers in basic blocks.
    Resnet34,
    /// 50 layers in bottlenecks.
    #[default]
    Resnet50,
    /// 101 layers in bottlenecks.
    Resnet101,
    /// 152 layers in bottlenecks.
    Resnet152,
}

/// What pixels are normalised with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Normalisation {
    /// Mean and deviation of CIFAR-10's training images.
    #[default]
    Cifar,
    /// Those of ImageNet, which torchvision's pretrained weights expect.
    Imagenet,
}

impl Augment {
    /// What suits images of that side: there are not pixels enough for parts of small ones.
    pub fn of_side(side: usize) -> Self {
        if side >= 2 * SIDE_STEP { Self::Parts } else { Self::Standard }
    }
}

impl Normalisation {
    /// Mean and standard deviation of each channel, of pixels in 0..1.
    pub fn constants(self) -> [[f32; CHANNELS]; 2] {
        match self {
            Self::Cifar => [[0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]],
            Self::Imagenet => [[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]],
        }
    }
}

impl Job {
    /// Whether the last maps of the network have one pixel, over which one image has no variance.
    pub fn needs_two(&self) -> bool {
        self.stem == Stem::Imagenet && self.shape.side == SIDE_STEP && !self.norm.is_grouped()
    }

    /// Batches that so many samples make in an epoch. A rest of one is part of the batch before it, where it could
    /// not be normalised alone.
    pub fn batches(&self, samples: u64) -> u64 {
        let size = u64::from(self.batch_size);
        let merged = self.needs_two() && samples > size && samples % size == 1;
        samples.div_ceil(size) - u64::from(merged)
    }

    /// Most images of a worker in a step.
    pub fn batch_max(&self) -> u32 {
        self.batch_size + u32::from(self.needs_two())
    }

    /// Whether workers make steps of their own between two exchanges.
    pub fn is_local(&self) -> bool {
        self.local_steps.is_some()
    }

    /// Whether an update is a velocity and what follows from that alone, and statistics are the workers' mean.
    pub fn has_plain_updates(&self) -> bool {
        let Recipe { nesterov, bias_rate, .. } = self.recipe;
        !matches!(self.norm, Norm::Frozen { .. }) && !nesterov && bias_rate == 1.0
    }

    /// Whether a round that is made again, from an earlier checkpoint, has the same bits: nothing depends on who is
    /// there in time, or on what rounding left in memories.
    pub fn makes_equal_rounds(&self) -> bool {
        self.quorum.is_none() && self.wire != Wire::Int8
    }

    /// Steps of the round that begins with `step`, of so many in all.
    pub fn round_len(&self, step: u64, steps: u64) -> u64 {
        u64::from(self.local_steps.unwrap_or(1)).min(steps.saturating_sub(step))
    }

    /// SHA-256 over the job's wire form.
    pub fn digest(&self) -> [u8; 32] {
        let hash = digest(&SHA256, &self.encode());
        hash.as_ref().try_into().expect("SHA-256 has 32 bytes")
    }

    /// Whether a training that began as this job may go on as the other: it differs in the learning rate alone,
    /// which has to be lowered where a training diverged.
    pub fn is_continued_by(&self, other: &Self) -> bool {
        Self { schedule: other.schedule, ..self.clone() } == *other
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
        if job.classes.len() != job.shape.classes {
            return Err(JobError::OutOfRange("names of classes", job.classes.len() as u64));
        }
        if job.local_steps.is_some_and(|steps| !(2..=LOCAL_STEPS_MAX).contains(&steps)) {
            return Err(JobError::OutOfRange("local_steps", job.local_steps.map_or(0, u64::from)));
        }
        if let Some(Quorum { workers, seconds }) = job.quorum {
            if !(1..=job.workers).contains(&workers) {
                return Err(JobError::OutOfRange("quorum", workers.into()));
            }
            if !(1..=DEADLINE_MAX).contains(&seconds) {
                return Err(JobError::OutOfRange("deadline", seconds.into()));
            }
        }
        if !job.norm.is_valid() {
            return Err(JobError::Unexpected("frozen-after", "0 to 1"));
        }
        if let Some((name, value)) = job.shape.out_of_range() {
            return Err(JobError::OutOfRange(name, value));
        }
        if let Some((name, expected)) = job.recipe.fault(job.shape.side) {
            return Err(JobError::Unexpected(name, expected));
        }
        Ok(job)
    }
}

/// Most images of one worker in a step: memory is taken for so many.
pub const BATCH_MAX: u32 = 4096;
/// Most steps of a worker between two exchanges.
pub const LOCAL_STEPS_MAX: u32 = 10_000;
/// Most seconds for which a round waits for its last workers: a week.
pub const DEADLINE_MAX: u32 = 7 * 24 * 3600;
/// Most workers of a job: sums are made in their order, so that the last waits for all others.
pub const WORKERS_MAX: u16 = 64;

/// Why bytes are no job.
#[derive(Debug)]
pub enum JobError {
    /// They are not its JSON.
    Format(serde_json::Error),
    /// A number is one that no job has.
    OutOfRange(&'static str, u64),
    /// A number is another one than is expected.
    Unexpected(&'static str, &'static str),
}

impl std::fmt::Display for JobError {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Self::Format(error) => error.fmt(f),
            Self::OutOfRange(what, value) => write!(f, "{what} is {value}"),
            Self::Unexpected(what, expected) => write!(f, "{what}: expected {expected}"),
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
names!(Augment { "standard" => Standard, "parts" => Parts, "resized" => Resized, "none" => None });
names!(Weighting { "data" => Data, "batch" => Batch });
names!(Arch {
    "resnet18" => Resnet18, "resnet34" => Resnet34, "resnet50" => Resnet50, "resnet101" => Resnet101,
    "resnet152" => Resnet152
});
names!(Normalisation { "cifar" => Cifar, "imagenet" => Imagenet });
names!(Wire { "fp32" => Fp32, "bf16" => Bf16, "int8" => Int8 });
names!(Flip { "random" => Random, "alternating" => Alternating, "none" => None });
names!(Order { "shuffled" => Shuffled, "sequential" => Sequential });

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_leaves_the_digest_and_a_rest_of_one_is_merged() {
        let text = r#"{"stem":"imagenet","precision":"fp32","conv":"auto","workers":2,"batch_size":16,"epochs":1,
            "steps":null,"schedule":{"cosine":{"rate":0.1}},"momentum":0.9,"weight_decay":0.0005,
            "seed":1,"augment":"standard","order":"shuffled","init":null}"#;
        let job = Job::parse(text.as_bytes()).expect("valid");
        let bare: String = text.split_whitespace().collect();
        assert_eq!(job.encode(), bare.as_bytes());
        let batches = |stem, samples| Job { stem, ..job.clone() }.batches(samples);
        for (samples, merged, split) in [(1, 1, 1), (16, 1, 1), (17, 1, 2), (18, 2, 2), (33, 2, 3)]
        {
            assert_eq!(batches(Stem::Imagenet, samples), merged, "{samples} samples");
            assert_eq!(batches(Stem::Cifar, samples), split, "{samples} samples");
        }
    }

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
            ("\"seed\"", "\"wire\":\"int4\",\"seed\""),
            ("\"seed\"", "\"norm\":\"layer\",\"seed\""),
            ("\"seed\"", "\"recipe\":{\"cutout\":32},\"seed\""),
            ("\"seed\"", "\"recipe\":{\"flip\":\"twice\"},\"seed\""),
            ("\"seed\"", "\"norm\":{\"frozen\":{\"after\":1.5}},\"seed\""),
            ("\"seed\"", "\"norm\":{\"frozen\":{}},\"seed\""),
            ("\"seed\"", "\"quorum\":{\"workers\":3,\"seconds\":9},\"seed\""),
            ("\"seed\"", "\"quorum\":{\"workers\":1,\"seconds\":0},\"seed\""),
            ("\"seed\"", "\"local_steps\":1,\"seed\""),
            ("\"seed\"", "\"local_steps\":10001,\"seed\""),
            ("\"seed\"", "\"shape\":{\"side\":0,\"channels\":3,\"classes\":10},\"seed\""),
            ("\"seed\"", "\"shape\":{\"side\":48,\"channels\":3,\"classes\":10},\"seed\""),
            ("\"seed\"", "\"shape\":{\"side\":288,\"channels\":3,\"classes\":10},\"seed\""),
            ("\"seed\"", "\"shape\":{\"side\":32,\"channels\":1,\"classes\":10},\"seed\""),
            ("\"seed\"", "\"shape\":{\"side\":32,\"channels\":3,\"classes\":257},\"seed\""),
        ] {
            let changed = text.replacen(from, to, 1);
            assert_ne!(changed, text);
            assert!(Job::parse(changed.as_bytes()).is_err(), "{to}");
        }
    }
}
