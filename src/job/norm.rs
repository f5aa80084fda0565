//! `Norm`: what the network's activations are normalised with.

use serde::{Deserialize, Serialize};

/// What activations are normalised with. Where workers' data differ much, statistics of each batch make each of them
/// compute another function, and the mean of what they find fits none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Norm {
    /// Statistics of each batch; running ones in evaluation.
    #[default]
    Batch,
    /// Those of each batch first, then the running ones, which are the mean of all workers' and no longer move.
    Frozen {
        /// The part of the job's steps after which they stand still.
        after: f32,
    },
    /// Statistics of each image over groups of channels (Wu and He, "Group Normalization", 2018).
    Group,
}

/// The part of the job after which statistics stand still, unless it is said.
pub const FROZEN_AFTER: f32 = 0.25;

impl Norm {
    /// Whether running statistics stand still in `step` of `steps`.
    pub fn is_frozen(self, step: u64, steps: u64) -> bool {
        match self {
            Self::Frozen { after } => step as f64 >= f64::from(after) * steps as f64,
            Self::Batch | Self::Group => false,
        }
    }

    /// Whether each image is normalised by itself.
    pub fn is_grouped(self) -> bool {
        self == Self::Group
    }

    /// Whether its numbers are such that a job may have it.
    pub(crate) fn is_valid(self) -> bool {
        match self {
            Self::Frozen { after } => (0.0..=1.0).contains(&after),
            Self::Batch | Self::Group => true,
        }
    }

    /// How PyTorch makes the layer; what `norm_layer` of torchvision's networks takes.
    pub fn layer(self) -> &'static str {
        match self {
            Self::Batch | Self::Frozen { .. } => "torch.nn.BatchNorm2d",
            Self::Group => "lambda channels: torch.nn.GroupNorm(32, channels)",
        }
    }
}

impl std::fmt::Display for Norm {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Self::Batch => f.write_str("batch"),
            Self::Frozen { after } => write!(f, "frozen after {after}"),
            Self::Group => f.write_str("group"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_stand_still_from_their_part_of_the_job_on() {
        let frozen = |after, step| Norm::Frozen { after }.is_frozen(step, 10);
        assert_eq!([4, 5, 9].map(|step| frozen(0.5, step)), [false, true, true]);
        assert!(frozen(0.0, 0) && !frozen(1.0, 9));
        assert!(!Norm::Batch.is_frozen(9, 10) && !Norm::Group.is_frozen(9, 10));
        for (after, is_valid) in [(0.0, true), (1.0, true), (1.1, false), (-0.1, false)] {
            assert_eq!(Norm::Frozen { after }.is_valid(), is_valid, "{after}");
        }
        assert!(!Norm::Frozen { after: f32::NAN }.is_valid());
        let written = |norm: Norm| serde_json::to_string(&norm).expect("plain");
        assert_eq!(written(Norm::Frozen { after: 0.5 }), r#"{"frozen":{"after":0.5}}"#);
        assert_eq!(written(Norm::Group), r#""group""#);
        assert!(serde_json::from_str::<Norm>(r#"{"frozen":{"after":0.5,"x":1}}"#).is_err());
    }
}
