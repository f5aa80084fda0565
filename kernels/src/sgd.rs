//! Momentum SGD with weight decay over a flat buffer, in one pass.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::base::exec::Exec;
use crate::base::isa::Isa;
use crate::parallel::{DisjointChunks, Pool};

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
    /// Nesterov's momentum: the step goes along the velocity that the next one would have.
    pub nesterov: bool,
}

impl Sgd {
    /// `g = scale*g + decay*w; v = momentum*v + g; w -= rate*v`, and `w -= rate*(g + momentum*v)` by Nesterov's
    /// momentum, as PyTorch's SGD without dampening; on this thread. Returns whether all that it wrote is of use:
    /// finite, and with squares that are. Larger values would only overflow in the next normalisation, after they
    /// were saved.
    #[must_use]
    pub fn update(
        self,
        isa: Isa,
        weights: &mut [f32],
        velocity: &mut [f32],
        gradients: &[f32],
    ) -> bool {
        assert_eq!((weights.len(), velocity.len()), (gradients.len(), gradients.len()));
        match self.nesterov {
            false => self.advance::<false>(isa, weights, velocity, gradients),
            true => self.advance::<true>(isa, weights, velocity, gradients),
        }
    }

    fn advance<const NESTEROV: bool>(
        self,
        isa: Isa,
        weights: &mut [f32],
        velocity: &mut [f32],
        gradients: &[f32],
    ) -> bool {
        let Self { rate, momentum, decay, scale, .. } = self;
        // The largest exponent tells: a comparison a value would not be done on whole vectors, nor would a maximum
        // that lies behind a reference.
        let largest = isa.run(
            #[inline(always)]
            move || {
                let mut largest = 0;
                for ((w, v), &g) in weights.iter_mut().zip(velocity.iter_mut()).zip(gradients) {
                    let g = scale * g + decay * *w;
                    *v = momentum * *v + g;
                    *w -= rate * if NESTEROV { g + momentum * *v } else { *v };
                    largest = w.abs().to_bits().max(v.abs().to_bits()).max(largest);
                }
                largest
            },
        );
        largest < SQUARE_MAX.to_bits()
    }

    /// The first half of [`Sgd::update`] by plain momentum, to the same bits: turns gradients into the velocity after
    /// the update, and changes nothing else.
    pub fn next_velocity(self, isa: Isa, weights: &[f32], velocity: &[f32], gradients: &mut [f32]) {
        assert_eq!((weights.len(), velocity.len()), (gradients.len(), gradients.len()));
        let Self { momentum, decay, scale, .. } = self;
        isa.run(
            #[inline(always)]
            move || {
                for ((w, v), g) in weights.iter().zip(velocity).zip(gradients) {
                    *g = momentum * *v + (scale * *g + decay * *w);
                }
            },
        );
    }

    /// The weights after an update whose velocity is known.
    pub fn next_weights(self, isa: Isa, weights: &[f32], velocity: &[f32], next: &mut [f32]) {
        assert_eq!((weights.len(), velocity.len()), (next.len(), next.len()));
        let rate = self.rate;
        isa.run(
            #[inline(always)]
            move || {
                for ((w, v), next) in weights.iter().zip(velocity).zip(next) {
                    *next = *w - rate * *v;
                }
            },
        );
    }

    /// The second half of [`Sgd::update`]. Returns what that does.
    #[must_use]
    pub fn finish(
        self,
        isa: Isa,
        weights: &mut [f32],
        velocity: &mut [f32],
        next_velocity: &[f32],
    ) -> bool {
        assert_eq!((weights.len(), velocity.len()), (next_velocity.len(), next_velocity.len()));
        let rate = self.rate;
        let largest = isa.run(
            #[inline(always)]
            move || {
                let mut largest = 0;
                for ((w, v), &next) in
                    weights.iter_mut().zip(velocity.iter_mut()).zip(next_velocity)
                {
                    *v = next;
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
    exec: Exec,
    step: Sgd,
    weights: &mut [f32],
    velocity: &mut [f32],
    gradients: &[f32],
) -> bool {
    in_pieces(exec.pool, weights, velocity, gradients, |weights, velocity, gradients| {
        step.update(exec.isa, weights, velocity, gradients)
    })
}

/// [`Sgd::finish`] on all threads.
#[must_use]
pub fn finish_momentum_sgd(
    exec: Exec,
    step: Sgd,
    weights: &mut [f32],
    velocity: &mut [f32],
    next_velocity: &[f32],
) -> bool {
    in_pieces(exec.pool, weights, velocity, next_velocity, |weights, velocity, next| {
        step.finish(exec.isa, weights, velocity, next)
    })
}

/// `average = kept*average + (1 - kept)*value`, on all threads.
pub fn moving_average(exec: Exec, kept: f32, averages: &mut [f32], values: &[f32]) {
    assert_eq!(averages.len(), values.len());
    let share = 1.0 - kept;
    exec.pool.for_each_chunk(averages, PIECE, |index, averages| {
        let values = &values[index * PIECE..][..averages.len()];
        exec.isa.run(
            #[inline(always)]
            move || {
                for (average, &value) in averages.iter_mut().zip(values) {
                    *average = kept * *average + share * value;
                }
            },
        );
    });
}

/// Values of a piece, 64 KiB of each buffer: some ten microseconds a task, and pieces that fit the second-level cache.
const PIECE: usize = 1 << 14;

/// Works on pieces of three buffers on all threads; says whether all said yes.
fn in_pieces(
    pool: &Pool,
    weights: &mut [f32],
    velocity: &mut [f32],
    gradients: &[f32],
    work: impl Fn(&mut [f32], &mut [f32], &[f32]) -> bool + Sync,
) -> bool {
    assert_eq!((weights.len(), velocity.len()), (gradients.len(), gradients.len()));
    let is_finite = AtomicBool::new(true);
    let weights = DisjointChunks::new(weights, PIECE);
    let velocity = DisjointChunks::new(velocity, PIECE);
    pool.for_each_chunk2(weights, velocity, |index, weights, velocity| {
        let gradients = &gradients[index * PIECE..][..weights.len()];
        if !work(weights, velocity, gradients) {
            is_finite.store(false, Ordering::Relaxed);
        }
    });
    // The pool's end of a region orders this after all stores.
    is_finite.into_inner()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_average_follows_its_values_to_the_same_bits_on_every_tier() {
        let pool = Pool::new(2);
        let values: Vec<f32> = (0..40_001_u16).map(|i| f32::from(i % 997) - 400.0).collect();
        let start: Vec<f32> = values.iter().rev().copied().collect();
        let plain: Vec<f32> =
            start.iter().zip(&values).map(|(a, v)| 0.9 * a + (1.0 - 0.9) * v).collect();
        for isa in Isa::available() {
            let mut averages = start.clone();
            moving_average(Exec::new(&pool, isa), 0.9, &mut averages, &values);
            assert!(averages == plain, "{}", isa.name());
        }
    }

    #[test]
    fn two_halves_of_an_update_are_the_whole_to_the_bit() {
        let pool = Pool::new(2);
        let step =
            Sgd { rate: 0.03, momentum: 0.9, decay: 5e-4, scale: 1.0 / 3.0, nesterov: false };
        let values = |factor: u32| -> Vec<f32> {
            (0..40_001_u32).map(|i| (i.wrapping_mul(factor) % 1999) as f32 / 777.0 - 1.2).collect()
        };
        for isa in Isa::available() {
            let exec = Exec::new(&pool, isa);
            let (mut w, mut v, mut g) = (values(7), values(11), values(13));
            let (mut whole_w, mut whole_v) = (w.clone(), v.clone());
            assert!(momentum_sgd(exec, step, &mut whole_w, &mut whole_v, &g));
            // In parts of any length, as they become known.
            let mut next = vec![0.0; w.len()];
            for at in (0..w.len()).step_by(1237) {
                let part = at..w.len().min(at + 1237);
                let (w, v) = (&w[part.clone()], &v[part.clone()]);
                step.next_velocity(isa, w, v, &mut g[part.clone()]);
                step.next_weights(isa, w, &g[part.clone()], &mut next[part]);
            }
            assert!(finish_momentum_sgd(exec, step, &mut w, &mut v, &g));
            let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<u32>>();
            assert_eq!(bits(&w), bits(&whole_w), "{}", isa.name());
            assert_eq!(bits(&v), bits(&whole_v), "{}", isa.name());
            assert_eq!(bits(&next), bits(&whole_w), "{}", isa.name());
            g[17] = f32::NAN;
            assert!(!finish_momentum_sgd(exec, step, &mut w, &mut v, &g), "{}", isa.name());
        }
    }

    #[test]
    fn two_steps_follow_the_recurrence_on_every_tier() {
        let pool = Pool::new(2);
        let step = Sgd { rate: 0.1, momentum: 0.9, decay: 0.01, scale: 0.5, nesterov: false };
        for (isa, nesterov) in
            Isa::available().into_iter().flat_map(|isa| [(isa, false), (isa, true)])
        {
            let step = Sgd { nesterov, ..step };
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
                let g1 = 0.5 * 2.0 + 0.01 * w1;
                v1 = 0.9 * v1 + g1;
                w1 -= 0.1 * if nesterov { g1 + 0.9 * v1 } else { v1 };
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
