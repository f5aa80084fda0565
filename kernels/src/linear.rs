//! The fully connected layer: small (2048 by 10), so plain loops in a fixed order serve every tier.

use crate::base::exec::Exec;
use crate::parallel::DisjointChunks;

/// `y = x . w' + b` for `w` of `outputs` rows by `inputs` columns, as PyTorch keeps it.
#[derive(Clone, Copy, Debug)]
pub struct Linear {
    /// Values of a row of `x`.
    pub inputs: usize,
    /// Values of a row of `y`.
    pub outputs: usize,
}

/// Partial sums of a dot product: a vector of AVX-512, two of AVX2. Also its order of additions, the same on every
/// tier: changing it changes bits.
const LANES: usize = 16;

impl Linear {
    /// Logits of each row of `x`.
    pub fn forward(self, Exec { pool, isa }: Exec, x: &[f32], w: &[f32], b: &[f32], y: &mut [f32]) {
        assert_eq!((w.len(), b.len()), (self.inputs * self.outputs, self.outputs));
        assert_eq!(x.len() / self.inputs, y.len() / self.outputs);
        pool.for_each_chunk(y, self.outputs, |n, y| {
            let x = &x[n * self.inputs..][..self.inputs];
            isa.run(
                #[inline(always)]
                || {
                    for (k, y) in y.iter_mut().enumerate() {
                        *y = b[k] + dot(x, &w[k * self.inputs..][..self.inputs]);
                    }
                },
            );
        });
    }

    /// `dx = dy . w`.
    pub fn backward_input(self, Exec { pool, isa }: Exec, dy: &[f32], w: &[f32], dx: &mut [f32]) {
        assert_eq!(dx.len() / self.inputs, dy.len() / self.outputs);
        pool.for_each_chunk(dx, self.inputs, |n, dx| {
            let dy = &dy[n * self.outputs..][..self.outputs];
            isa.run(
                #[inline(always)]
                || {
                    dx.fill(0.0);
                    for (&dy, w) in dy.iter().zip(w.chunks_exact(self.inputs)) {
                        add_scaled(dx, dy, w);
                    }
                },
            );
        });
    }

    /// `dw = dy' . x` and `db = sum dy`.
    pub fn backward_weight(
        self,
        Exec { pool, isa }: Exec,
        x: &[f32],
        dy: &[f32],
        dw: &mut [f32],
        db: &mut [f32],
    ) {
        assert_eq!((dw.len(), db.len()), (self.inputs * self.outputs, self.outputs));
        let rows = DisjointChunks::new(dw, self.inputs);
        pool.for_each_chunk2(rows, DisjointChunks::new(db, 1), |k, dw, db| {
            isa.run(
                #[inline(always)]
                || {
                    dw.fill(0.0);
                    db[0] = 0.0;
                    for (x, dy) in x.chunks_exact(self.inputs).zip(dy.chunks_exact(self.outputs)) {
                        add_scaled(dw, dy[k], x);
                        db[0] += dy[k];
                    }
                },
            );
        });
    }
}

#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0_f32; LANES];
    let (a_lanes, a_rest) = a.as_chunks::<LANES>();
    let (b_lanes, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_lanes.iter().zip(b_lanes) {
        for i in 0..LANES {
            sums[i] += a[i] * b[i];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

#[inline(always)]
fn add_scaled(target: &mut [f32], factor: f32, source: &[f32]) {
    for (target, &source) in target.iter_mut().zip(source) {
        *target += factor * source;
    }
}
