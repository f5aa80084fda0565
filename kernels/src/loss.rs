//! Softmax cross-entropy, mean over the batch, and its gradient.

/// Mean loss of a batch; `logits` become their gradient. `labels` has one class a row.
///
/// ```
/// let mut logits = [0.0, 0.0];
/// let loss = kernels::softmax_cross_entropy(&mut logits, &[1], 2);
/// assert!((loss - f32::ln(2.0)).abs() < 1e-6);
/// assert_eq!(logits, [0.5, -0.5]);
/// ```
///
/// The exponentials are taken in `f64`: ten a sample cost nothing, and no logit overflows.
///
/// # Panics
/// If a label is no class or the lengths do not fit.
pub fn softmax_cross_entropy(logits: &mut [f32], labels: &[u8], classes: usize) -> f32 {
    assert_eq!(logits.len(), labels.len() * classes);
    let n = labels.len() as f64;
    let mut loss = 0.0;
    for (row, &label) in logits.chunks_exact_mut(classes).zip(labels) {
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = row.iter().map(|&x| f64::from(x - largest).exp()).sum();
        loss += sum.ln() - f64::from(row[usize::from(label)] - largest);
        for (class, x) in row.iter_mut().enumerate() {
            let target = if class == usize::from(label) { 1.0 } else { 0.0 };
            *x = ((f64::from(*x - largest).exp() / sum - target) / n) as f32;
        }
    }
    (loss / n) as f32
}

/// The same where a share of each label, `smoothing`, is spread evenly over all classes.
///
/// # Panics
/// As [`softmax_cross_entropy`].
pub fn smoothed_cross_entropy(
    logits: &mut [f32],
    labels: &[u8],
    classes: usize,
    smoothing: f32,
) -> f32 {
    if smoothing == 0.0 {
        return softmax_cross_entropy(logits, labels, classes);
    }
    assert_eq!(logits.len(), labels.len() * classes);
    let (n, smoothing) = (labels.len() as f64, f64::from(smoothing));
    let spread = smoothing / classes as f64;
    let mut loss = 0.0;
    for (row, &label) in logits.chunks_exact_mut(classes).zip(labels) {
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = row.iter().map(|&x| f64::from(x - largest).exp()).sum();
        for (class, x) in row.iter_mut().enumerate() {
            let own = if class == usize::from(label) { 1.0 - smoothing } else { 0.0 };
            let above = f64::from(*x - largest);
            loss += (own + spread) * (sum.ln() - above);
            *x = ((above.exp() / sum - own - spread) / n) as f32;
        }
    }
    (loss / n) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_logits_cost_the_logarithm_of_the_classes() {
        let mut logits = vec![3.0; 20];
        let loss = softmax_cross_entropy(&mut logits, &[4, 9], 10);
        assert!((loss - 10_f32.ln()).abs() < 1e-6);
        assert!((logits[4] - (0.1 - 1.0) / 2.0).abs() < 1e-7);
        assert!((logits[0] - 0.1 / 2.0).abs() < 1e-7);
    }

    #[test]
    fn smoothed_labels_cost_and_pull_as_in_pytorch() {
        // torch.nn.functional.cross_entropy(tensor([[1., 2., -1.], [0., 0.5, 3.]]), tensor([1, 0]),
        // label_smoothing=0.3), and its gradient.
        let mut logits = [1.0, 2.0, -1.0, 0.0, 0.5, 3.0];
        let loss = smoothed_cross_entropy(&mut logits, &[1, 0], 3, 0.3);
        let want = [
            0.079_748_24,
            -0.047_307_73,
            -0.032_440_48,
            -0.378_006_76,
            -0.013_739_28,
            0.391_746_04,
        ];
        for (found, want) in logits.iter().zip(want) {
            assert!((found - want).abs() < 1e-6, "{logits:?}");
        }
        assert!((loss - 1.761_442_5).abs() < 1e-5, "{loss}");
        let (mut plain, mut none) = ([0.5, -1.0], [0.5, -1.0]);
        let loss = softmax_cross_entropy(&mut plain, &[0], 2);
        assert_eq!((loss, plain), (smoothed_cross_entropy(&mut none, &[0], 2, 0.0), none));
    }

    #[test]
    fn huge_logits_do_not_overflow() {
        let mut logits = vec![1e30, -1e30, 0.0];
        assert_eq!(softmax_cross_entropy(&mut logits, &[0], 3), 0.0);
    }
}
