//! The learning rate as a pure function of the step.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::shape::Shape;

/// How the learning rate changes over a training.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// The same rate in every step.
    Constant {
        /// The rate.
        rate: f32,
    },
    /// Linear warm-up over the first twentieth of the steps, then half a cosine down to zero
    /// (Loshchilov and Hutter, "SGDR", 2017, without restarts).
    Cosine {
        /// The largest rate.
        rate: f32,
        /// Steps of the warm-up, unless it is a twentieth of all.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        warm_up: Option<u64>,
    },
}

/// The warm-up takes one of this many parts of the training.
const WARM_UP_PART: u64 = 20;

/// Largest rate of a step of so many images, by whether they are small ones. Of CIFAR-10's test images ResNet-50 with
/// the imagenet stem, in bf16 with one worker, knows after five epochs of steps of 128 images: 71.6 % with the usual
/// rate, 68.2 % with half of it, 58.4 % with 0.03. That of larger ones is Goyal's.
const RATE_OF_SMALL: f32 = 0.4;
const RATE_OF_LARGE: f32 = 0.1;
const USUAL_IMAGES: f32 = 256.0;
/// Weights that are there already are to be changed, not to be forgotten.
const PART_FROM_WEIGHTS: f32 = 0.1;

impl Schedule {
    /// The largest rate for steps of so many images of so many pixels a side, in proportion to the first (Goyal et al.,
    /// "Accurate, large minibatch SGD", 2017); less where training starts from weights.
    pub fn usual_rate(images: u32, side: usize, has_weights: bool) -> f32 {
        let whole = if side == Shape::CIFAR.side { RATE_OF_SMALL } else { RATE_OF_LARGE };
        let part = if has_weights { PART_FROM_WEIGHTS } else { 1.0 };
        whole * part * images as f32 / USUAL_IMAGES
    }

    /// The rate of `step` in a training of `steps` steps.
    pub fn rate(self, step: u64, steps: u64) -> f32 {
        match self {
            Self::Constant { rate } => rate,
            Self::Cosine { rate, warm_up } => {
                let warm_up = warm_up.unwrap_or(steps / WARM_UP_PART).max(1);
                if step < warm_up {
                    return rate * (step + 1) as f32 / warm_up as f32;
                }
                let done = (step - warm_up) as f64 / (steps.max(warm_up + 1) - warm_up) as f64;
                (f64::from(rate) * 0.5 * (1.0 + (std::f64::consts::PI * done).cos())) as f32
            }
        }
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Constant { rate } => write!(f, "a constant rate of {rate}"),
            Self::Cosine { rate, .. } => write!(f, "a cosine from a rate of {rate}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_rate_is_in_proportion_to_the_images_of_a_step() {
        let rates = [(256, 32, false), (128, 32, false), (256, 64, false), (256, 32, true)]
            .map(|(images, side, has_weights)| Schedule::usual_rate(images, side, has_weights));
        assert_eq!(rates.map(|rate| (rate * 1e3).round()), [400.0, 200.0, 100.0, 40.0]);
    }

    fn cosine(warm_up: Option<u64>) -> Schedule {
        Schedule::Cosine { rate: 0.1, warm_up }
    }

    #[test]
    fn a_warm_up_of_ones_own_and_the_usual_one_are_the_same_rule() {
        assert_eq!(cosine(Some(10)).rate(7, 200), cosine(None).rate(7, 200));
        assert_eq!(cosine(Some(0)).rate(0, 200), 0.1);
        assert!((cosine(Some(100)).rate(0, 200) - 0.001).abs() < 1e-7);
        // A warm-up that is longer than the training ends with it.
        assert!(cosine(Some(1000)).rate(199, 200) < 0.1);
        // What is not said is not written: the digest of a job stays.
        assert_eq!(
            serde_json::to_string(&cosine(None)).expect("plain"),
            r#"{"cosine":{"rate":0.1}}"#
        );
    }

    #[test]
    fn cosine_warms_up_then_falls_to_nearly_zero() {
        let rates: Vec<f32> = (0..200).map(|step| cosine(None).rate(step, 200)).collect();
        assert!((rates[0] - 0.01).abs() < 1e-7 && (rates[9] - 0.1).abs() < 1e-7);
        assert!(rates[10..].windows(2).all(|pair| pair[1] < pair[0]));
        assert!(rates[199] > 0.0 && rates[199] < 1e-4);
    }

    #[test]
    fn short_trainings_have_a_rate_for_every_step() {
        for steps in 1..5 {
            for step in 0..steps {
                let rate = cosine(None).rate(step, steps);
                assert!(rate.is_finite() && rate >= 0.0);
            }
        }
    }
}
