//! Momentum SGD with weight decay over a flat buffer, in one pass.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::base::exec::Exec;
use crate::base::isa::Isa;
use crate::parallel::DisjointChunks;

/// 2^64: from here on squares are infinite.
const SQUARE_MAX: f32 = 18_446_744_073_709_551_616.0;

/// The hyper-parameters of one update.
#[derive(Clone, Copy, Debug)]
pub struct Sgd {
    /// Learning rate.
    pub rate: f32,
    /// Share of the last velocity that is kept.
    pub momentum: f32,
    /// L2 penalty on the weights.
    pub decay: f32,
    /// Factor of the gradient: one over the total weight of the summed ones.
    pub scale: f32,
}

impl Sgd {
    /// `g = scale*g + decay*w; v = momentum*v + g; w -= rate*v`, as PyTorch's SGD without dampening; on this
    /// thread. Returns whether all that it wrote is of use: finite, and with squares that are. Larger values would
    /// only overflow in the next normalisation, after they were saved.
    #[must_use]
    pub fn update(
        self,
        isa: Isa,
        weights: &mut [f32],
        velocity: &mut [f32],
        gradients: &[f32],
    ) -> bool {
        assert_eq!((weights.len(), velocity.len()), (gradients.len(), gradients.len()));
        let Self { rate, momentum, decay, scale } = self;
        // The largest exponent tells: a comparison a value would not be done on whole vectors, nor would a maximum
        // that lies behind a reference.
        let largest = isa.run(
            #[inline(always)]
            move || {
                let mut largest = 0;
                for ((w, v), &g) in weights.iter_mut().zip(velocity.iter_mut()).zip(gradients) {
                    *v = momentum * *v + (scale * g + decay * *w);
                    *w -= rate * *v;
                    largest = w.abs().to_bits().max(v.abs().to_bits()).max(largest);
                }
                largest
            },
        );
        largest < SQUARE_MAX.to_bits()
    }
}

/// [`Sgd::update`] on all threads.
#[must_use]
pub fn momentum_sgd(
    Exec { pool, isa }: Exec,
    step: Sgd,
    weights: &mut [f32],
    velocity: &mut [f32],
    gradients: &[f32],
) -> bool {
    // 64 KiB of each of three: some ten microseconds a task, and pieces that fit the second-level cache.
    const LEN: usize = 1 << 14;
    assert_eq!((weights.len(), velocity.len()), (gradients.len(), gradients.len()));
    let is_finite = AtomicBool::new(true);
    let weights = DisjointChunks::new(weights, LEN);
    let velocity = DisjointChunks::new(velocity, LEN);
    pool.for_each_chunk2(weights, velocity, |index, weights, velocity| {
        let gradients = &gradients[index * LEN..index * LEN + weights.len()];
        if !step.update(isa, weights, velocity, gradients) {
            is_finite.store(false, Ordering::Relaxed);
        }
    });
    // The pool's end of a region orders this after all stores.
    is_finite.into_inner()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Pool;

    #[test]
    fn two_steps_follow_the_recurrence_on_every_tier() {
        let pool = Pool::new(2);
        let step = Sgd { rate: 0.1, momentum: 0.9, decay: 0.01, scale: 0.5 };
        for isa in Isa::available() {
            let (mut w, mut v) = (vec![1.0_f32; 40_000], vec![0.0_f32; 40_000]);
            for _ in 0..2 {
                assert!(momentum_sgd(
                    Exec::new(&pool, isa),
                    step,
                    &mut w,
                    &mut v,
                    &vec![2.0; 40_000]
                ));
            }
            let (mut w1, mut v1) = (1.0_f32, 0.0_f32);
            for _ in 0..2 {
                v1 = 0.9 * v1 + (0.5 * 2.0 + 0.01 * w1);
                w1 -= 0.1 * v1;
            }
            for (at, bad) in [(0, f32::NAN), (39_999, f32::INFINITY), (17_000, f32::MAX)] {
                let mut gradients = vec![0.0; 40_000];
                gradients[at] = bad;
                let steep = Sgd { rate: 1e30, ..step };
                let (mut w, mut v) = (w.clone(), v.clone());
                let finite = momentum_sgd(Exec::new(&pool, isa), steep, &mut w, &mut v, &gradients);
                assert!(!finite, "{bad} at {at}, {}", isa.name());
            }
            assert!(w.iter().all(|&w| w == w1) && v.iter().all(|&v| v == v1), "{}", isa.name());
        }
    }
}
