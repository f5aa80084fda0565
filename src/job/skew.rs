//! How much the classes of a job's workers differ, and what to choose then.

use crate::job::norm::Norm;

/// From here on it is told: of two workers of one size, each would have 3 of 20 of its samples in other classes than
/// the whole has. A split of classes in halves is at a half, Dirichlet's of 0.3 among ten classes at a third and more.
const TOLD: f64 = 0.15;

/// The mean over all samples of how far their worker's classes are from those of the whole: the part of a worker's
/// samples that would have to be of another class (total variation), less what chance alone makes of so few samples.
///
/// `counts` has a row a worker, and in it the samples of each class. 0 where there is one worker, or nothing.
pub fn skew(counts: &[&[u64]]) -> f64 {
    let classes = counts.iter().map(|row| row.len()).max().unwrap_or(0);
    let number = |row: &[u64], class: usize| row.get(class).copied().unwrap_or(0) as f64;
    let sum = |row: &[u64]| row.iter().map(|&count| count as f64).sum::<f64>();
    let all: f64 = counts.iter().map(|row| sum(row)).sum();
    if all == 0.0 {
        return 0.0;
    }
    let whole: Vec<f64> = (0..classes)
        .map(|class| counts.iter().map(|row| number(row, class)).sum::<f64>() / all)
        .collect();
    let of_worker = |row: &&[u64]| {
        let samples = sum(row);
        if samples == 0.0 {
            return 0.0;
        }
        let far = |(class, share): (usize, &f64)| (number(row, class) / samples - share).abs();
        // The mean distance of a normal value, for draws of which some are the whole's own.
        let left = 1.0 - samples / all;
        let chance = |share: &f64| (left * share * (1.0 - share) / samples).sqrt();
        let chance: f64 =
            whole.iter().map(chance).sum::<f64>() * (2.0 / std::f64::consts::PI).sqrt();
        let far: f64 = whole.iter().enumerate().map(far).sum();
        samples / all * ((far - chance) / 2.0).max(0.0)
    };
    counts.iter().map(of_worker).sum()
}

/// What is said of such counts at the start of a job, if they ask for a choice that it has not made.
pub fn advice(counts: &[&[u64]], norm: Norm, is_pretrained: bool) -> Option<String> {
    let skew = skew(counts);
    if skew < TOLD || norm != Norm::Batch {
        return None;
    }
    let choice = match is_pretrained {
        true => {
            "--norm frozen --frozen-after 0 (or --norm group, for weights that were trained so)"
        }
        false => "--norm group, or --norm frozen",
    };
    Some(format!(
        "the workers' classes differ: {:.0} % of the samples are of others than among all; statistics of each batch \
         may cost much of the accuracy then: {choice}",
        100.0 * skew
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_of_the_classes_are_told_and_what_chance_makes_is_not() {
        let halves = [&[100, 100, 0, 0][..], &[0, 0, 100, 100]];
        assert!((0.4..=0.5).contains(&skew(&halves)), "{}", skew(&halves));
        assert!(skew(&[&[5000, 5000], &[5000, 5000]]) < 1e-9);
        // Nine samples of ten classes each, drawn from the same.
        let few = [&[2, 0, 1, 1, 0, 2, 1, 1, 0, 1][..], &[0, 1, 1, 2, 1, 0, 1, 0, 2, 1]];
        assert!(skew(&few) < TOLD, "{}", skew(&few));
        // One of ten has one class only.
        let mostly: Vec<&[u64]> =
            std::iter::repeat_n(&[50, 50][..], 9).chain([&[100, 0][..]]).collect();
        assert!(skew(&mostly) < TOLD && skew(&mostly) > 0.0, "{}", skew(&mostly));
        for alone in [&[][..], &[&[7, 0, 9][..]], &[&[][..], &[]], &[&[0, 0][..], &[0, 0]]] {
            assert_eq!(skew(alone), 0.0, "{alone:?}");
        }
    }

    #[test]
    fn who_has_chosen_is_not_told() {
        let halves = [&[100, 0][..], &[0, 100]];
        let told = |norm| advice(&halves, norm, false);
        let text = told(Norm::Batch).expect("they differ");
        assert!(text.contains("--norm group") && text.contains("differ"), "{text}");
        assert!(told(Norm::Group).is_none() && told(Norm::Frozen { after: 0.5 }).is_none());
        let pretrained = advice(&halves, Norm::Batch, true).expect("they differ");
        assert!(pretrained.contains("--norm frozen --frozen-after 0"), "{pretrained}");
        assert!(advice(&[&[50, 50], &[49, 51]], Norm::Batch, false).is_none());
    }
}
