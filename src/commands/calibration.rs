//! The expected calibration error: how far a model's certainty is from how often it is right.

/// Bins of equal width, as in Guo et al., "On calibration of modern neural networks" (2017).
const BINS: usize = 15;

/// Images by how certain the model was of its answer.
#[derive(Clone, Debug, Default)]
pub(super) struct Calibration {
    bins: [Bin; BINS],
}

#[derive(Clone, Copy, Debug, Default)]
struct Bin {
    images: u64,
    right: u64,
    certainty: f64,
}

impl Calibration {
    /// Takes an answer in: its probability, and whether it was right.
    pub(super) fn take(&mut self, probability: f64, is_right: bool) {
        // A certainty of 1 belongs to the last bin, as if it were just below.
        let at = ((probability * BINS as f64) as usize).min(BINS - 1);
        let bin = &mut self.bins[at];
        bin.images += 1;
        bin.right += u64::from(is_right);
        bin.certainty += probability;
    }

    /// The mean over images of the distance between certainty and share of right answers, each of the image's bin.
    pub(super) fn error(&self) -> f64 {
        let images: u64 = self.bins.iter().map(|bin| bin.images).sum();
        let far: f64 = self.bins.iter().map(|bin| (bin.right as f64 - bin.certainty).abs()).sum();
        far / images.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_right_as_often_as_it_is_certain_has_no_error() {
        assert_eq!(Calibration::default().error(), 0.0);
        let mut calm = Calibration::default();
        (0..4).for_each(|index| calm.take(0.75, index != 0));
        assert!(calm.error() < 1e-12);
        let mut boastful = Calibration::default();
        (0..4).for_each(|index| boastful.take(1.0, index == 0));
        assert!((boastful.error() - 0.75).abs() < 1e-12);
        // Two bins that err in opposite ways do not make up for each other: (|0 - 0.5| + |1 - 0.6|) / 2.
        let mut both = Calibration::default();
        both.take(0.5, false);
        both.take(0.6, true);
        assert!((both.error() - 0.45).abs() < 1e-12);
    }
}
