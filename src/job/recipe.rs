//! `Recipe`: what a job may change about its steps; by default nothing, and the bits are those of before.

use serde::{Deserialize, Serialize};

/// How steps differ from plain SGD with momentum on cropped and mirrored images.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Recipe {
    /// Nesterov's momentum: a step looks ahead along its velocity.
    #[serde(skip_serializing_if = "is_default")]
    pub nesterov: bool,
    /// Share of each label that is spread evenly over all classes (Szegedy et al., "Rethinking the Inception
    /// architecture", 2016).
    #[serde(skip_serializing_if = "is_default")]
    pub label_smoothing: f32,
    /// Which images are mirrored.
    #[serde(skip_serializing_if = "is_default")]
    pub flip: Flip,
    /// Side of a square that is cut out of each image, in pixels; 0 for none (DeVries and Taylor, "Improved
    /// regularization of convolutional neural networks with cutout", 2017).
    #[serde(skip_serializing_if = "is_default")]
    pub cutout: u32,
    /// Factor of the learning rate of normalisations' biases.
    #[serde(skip_serializing_if = "is_one")]
    pub bias_rate: f32,
    /// Share of the averaged weights that an update leaves of them; 0 for no averages (Polyak and Juditsky,
    /// "Acceleration of stochastic approximation by averaging", 1992; exponential as in Tarvainen and Valpola, "Mean
    /// teachers are better role models", 2017).
    #[serde(skip_serializing_if = "is_default")]
    pub ema: f32,
}

/// Which images are mirrored in an epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Flip {
    /// Each with a chance of one half.
    #[default]
    Random,
    /// Those that were not in the epoch before; by chance in the first (Jordan, "94% on CIFAR-10 in 3.29 seconds on a
    /// single GPU", 2024).
    Alternating,
    /// None: left and right mean something.
    None,
}

/// Largest factor of a rate: of what is larger, nothing is learned.
const BIAS_RATE_MAX: f32 = 1000.0;

impl Default for Recipe {
    fn default() -> Self {
        Self {
            nesterov: false,
            label_smoothing: 0.0,
            flip: Flip::Random,
            cutout: 0,
            bias_rate: 1.0,
            ema: 0.0,
        }
    }
}

impl Recipe {
    /// Whether weights are averaged.
    pub fn averages(&self) -> bool {
        self.ema != 0.0
    }

    /// What of the averaged weights is left after `count` updates that follow the first `step`. An average of few
    /// weights keeps less: those that a training began with would be most of it for thousands of steps.
    pub fn kept(&self, step: u64, count: u64) -> f32 {
        let least = |done: u64| (1.0 + done as f64) / (10.0 + done as f64);
        let kept = |done: u64| f64::from(self.ema).min(least(done));
        (step..step + count).map(kept).product::<f64>() as f32
    }

    /// The first of its numbers that no job of such images may have: its flag, and what is expected.
    pub fn fault(&self, side: usize) -> Option<(&'static str, &'static str)> {
        let parts = [
            ("label-smoothing", (0.0..1.0).contains(&self.label_smoothing), "0 to less than 1"),
            ("cutout", (self.cutout as usize) < side, "fewer pixels than an image has on a side"),
            ("bias-rate", (0.0..=BIAS_RATE_MAX).contains(&self.bias_rate), "0 to 1000"),
            ("ema", (0.0..1.0).contains(&self.ema), "0 to less than 1"),
        ];
        let wrong = parts.into_iter().find(|(_, is_right, _)| !is_right);
        wrong.map(|(name, _, expected)| (name, expected))
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn is_one(value: &f32) -> bool {
    *value == 1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_is_not_written_and_odd_numbers_are_named() {
        let written = |recipe: Recipe| serde_json::to_string(&recipe).expect("plain");
        assert_eq!(written(Recipe::default()), "{}");
        let own = Recipe { nesterov: true, flip: Flip::Alternating, ..Recipe::default() };
        assert_eq!(written(own), r#"{"nesterov":true,"flip":"alternating"}"#);
        assert_eq!(serde_json::from_str::<Recipe>(&written(own)).expect("own words"), own);
        assert!(serde_json::from_str::<Recipe>(r#"{"nestrov":true}"#).is_err());
        let plain = Recipe::default();
        assert_eq!(plain.fault(32), None);
        for (recipe, name) in [
            (Recipe { label_smoothing: 1.0, ..plain }, "label-smoothing"),
            (Recipe { label_smoothing: f32::NAN, ..plain }, "label-smoothing"),
            (Recipe { cutout: 32, ..plain }, "cutout"),
            (Recipe { bias_rate: -1.0, ..plain }, "bias-rate"),
            (Recipe { bias_rate: f32::INFINITY, ..plain }, "bias-rate"),
            (Recipe { ema: 1.0, ..plain }, "ema"),
            (Recipe { ema: f32::NAN, ..plain }, "ema"),
        ] {
            assert_eq!(recipe.fault(32).map(|(name, _)| name), Some(name), "{recipe:?}");
        }
    }

    #[test]
    fn averages_of_few_weights_keep_less_and_rounds_keep_what_their_steps_do() {
        let recipe = Recipe { ema: 0.99, ..Recipe::default() };
        assert!(recipe.averages() && !Recipe::default().averages());
        assert_eq!(
            [0, 8, 889, 891, 5000]
                .map(|step| recipe.kept(step, 1))
                .map(|kept| { (f64::from(kept) * 1000.0).round() / 1000.0 }),
            [0.1, 0.5, 0.99, 0.99, 0.99]
        );
        let steps: f64 = (20..23).map(|step| f64::from(recipe.kept(step, 1))).product();
        assert!((f64::from(recipe.kept(20, 3)) - steps).abs() < 1e-6);
    }
}
