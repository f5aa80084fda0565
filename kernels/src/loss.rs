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
    fn huge_logits_do_not_overflow() {
        let mut logits = vec![1e30, -1e30, 0.0];
        assert_eq!(softmax_cross_entropy(&mut logits, &[0], 3), 0.0);
    }
}
