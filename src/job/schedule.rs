//! The learning rate as a pure function of the step.

use serde::{Deserialize, Serialize};

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
    },
}

/// The warm-up takes one of this many parts of the training.
const WARM_UP_PART: u64 = 20;

impl Schedule {
    /// The rate of `step` in a training of `steps` steps.
    pub fn rate(self, step: u64, steps: u64) -> f32 {
        match self {
            Self::Constant { rate } => rate,
            Self::Cosine { rate } => {
                let warm_up = (steps / WARM_UP_PART).max(1);
                if step < warm_up {
                    return rate * (step + 1) as f32 / warm_up as f32;
                }
                let done = (step - warm_up) as f64 / (steps.max(warm_up + 1) - warm_up) as f64;
                (f64::from(rate) * 0.5 * (1.0 + (std::f64::consts::PI * done).cos())) as f32
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cosine_warms_up_then_falls_to_nearly_zero() {
        let rates: Vec<f32> =
            (0..200).map(|step| Schedule::Cosine { rate: 0.1 }.rate(step, 200)).collect();
        assert!((rates[0] - 0.01).abs() < 1e-7 && (rates[9] - 0.1).abs() < 1e-7);
        assert!(rates[10..].windows(2).all(|pair| pair[1] < pair[0]));
        assert!(rates[199] > 0.0 && rates[199] < 1e-4);
    }

    #[test]
    fn short_trainings_have_a_rate_for_every_step() {
        for steps in 1..5 {
            for step in 0..steps {
                let rate = Schedule::Cosine { rate: 0.1 }.rate(step, steps);
                assert!(rate.is_finite() && rate >= 0.0);
            }
        }
    }
}
