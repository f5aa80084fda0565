//! Momentum SGD with weight decay over a flat buffer, in one pass.

use crate::isa::Isa;
use crate::pool::Pool;

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
    /// thread.
    pub fn update(self, isa: Isa, weights: &mut [f32], velocity: &mut [f32], gradients: &[f32]) {
        assert_eq!((weights.len(), velocity.len()), (gradients.len(), gradients.len()));
        isa.run(
            #[inline(always)]
            || {
                for ((w, v), &g) in weights.iter_mut().zip(velocity.iter_mut()).zip(gradients) {
                    *v = self.momentum * *v + (self.scale * g + self.decay * *w);
                    *w -= self.rate * *v;
                }
            },
        );
    }
}

/// [`Sgd::update`] on all threads.
pub fn momentum_sgd(
    (pool, isa): (&Pool, Isa),
    step: Sgd,
    weights: &mut [f32],
    velocity: &mut [f32],
    gradients: &[f32],
) {
    const LEN: usize = 1 << 14;
    assert_eq!((weights.len(), velocity.len()), (gradients.len(), gradients.len()));
    pool.for_each_chunk2((weights, LEN), (velocity, LEN), |index, weights, velocity| {
        let gradients = &gradients[index * LEN..index * LEN + weights.len()];
        step.update(isa, weights, velocity, gradients);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_steps_follow_the_recurrence_on_every_tier() {
        let pool = Pool::new(2);
        let step = Sgd { rate: 0.1, momentum: 0.9, decay: 0.01, scale: 0.5 };
        for isa in Isa::available() {
            let (mut w, mut v) = (vec![1.0_f32; 40_000], vec![0.0_f32; 40_000]);
            for _ in 0..2 {
                momentum_sgd((&pool, isa), step, &mut w, &mut v, &vec![2.0; 40_000]);
            }
            let (mut w1, mut v1) = (1.0_f32, 0.0_f32);
            for _ in 0..2 {
                v1 = 0.9 * v1 + (0.5 * 2.0 + 0.01 * w1);
                w1 -= 0.1 * v1;
            }
            assert!(w.iter().all(|&w| w == w1) && v.iter().all(|&v| v == v1), "{}", isa.name());
        }
    }
}
