//! ResNet-50 in motion: forward, loss, backward over one arena; gradients leave as soon as they are done.
//!
//! What is kept from the forward pass is each convolution's output `z` and each block's output; the
//! activations between are computed again when the backward pass needs them.
//!
//! ```text
//! block   x --conv1-- z1 --bn,relu-- a1 --conv2-- z2 --bn,relu-- a2 --conv3-- z3 --bn-- + --relu-- y
//!         '------------------ identity, or conv -- zp -- bn ------------------------'
//! ```

use std::ops::Range;

use kernels::{
    Arena, BatchNorm, Folded, Identity, Isa, Linear, Pool, Slope, Statistics, average_backward,
    average_forward, mask_by_output, softmax_cross_entropy,
};

use crate::cifar::{Batch, CLASSES, COLOURS, SIDE};
use crate::network::{Block, Network, Unit};

/// Normalisation constants of torchvision.
pub const NORM: BatchNorm = BatchNorm { epsilon: 1e-5, momentum: 0.1 };

/// A network with memory for batches of up to `batch_max` images.
pub struct ResNet {
    /// Its layers.
    pub network: Network,
    pool: Pool,
    isa: Isa,
    batch_max: usize,
    arena: Arena,
    plan: Plan,
    norms: Vec<Norm>,
    transposed: Vec<f32>,
    head: Head,
}

/// What a normalisation works with besides its parameters.
struct Norm {
    statistics: Statistics,
    fold: Folded,
    slope: Slope,
}

/// Where things are in the arena, for the largest batch.
struct Plan {
    images: Range<usize>,
    /// Output of each unit's convolution.
    z: Vec<Range<usize>>,
    /// Output of the stem, then of each block.
    y: Vec<Range<usize>>,
    /// An activation between two convolutions, computed again when needed.
    activation: Range<usize>,
    /// Gradient at a block's output, then at its input.
    outer: Range<usize>,
    /// Gradients inside a block.
    inner: [Range<usize>; 2],
}

/// Buffers after the last block.
struct Head {
    linear: Linear,
    features: Vec<f32>,
    logits: Vec<f32>,
}

/// Which statistics a forward pass normalises with.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Inference,
    Training,
}

impl ResNet {
    /// Memory for batches of up to `batch_max` images.
    ///
    /// # Errors
    /// When the system has not that much memory.
    pub fn new(network: Network, batch_max: usize, pool: Pool, isa: Isa) -> std::io::Result<Self> {
        let plan = Plan::new(&network, batch_max);
        let mut norms: Vec<Norm> = network.units.iter().map(Norm::new).collect();
        for (norm, unit) in norms.iter_mut().zip(&network.units) {
            norm.statistics.reserve(unit.conv.output_len(batch_max) / unit.conv.channels_out);
        }
        let largest = network.units.iter().map(|unit| unit.conv.weights()).max().unwrap_or(0);
        let head = Head {
            linear: Linear { inputs: network.features, outputs: CLASSES },
            features: vec![0.0; 2 * batch_max * network.features],
            logits: vec![0.0; batch_max * CLASSES],
        };
        Ok(Self {
            arena: Arena::new(plan.inner[1].end)?,
            plan,
            norms,
            transposed: vec![0.0; largest],
            head,
            network,
            pool,
            isa,
            batch_max,
        })
    }

    /// Bytes of the arena.
    pub fn arena_len(&self) -> usize {
        self.plan.inner[1].end * size_of::<f32>()
    }

    /// The threads that this network computes with.
    pub fn exec(&self) -> (&Pool, Isa) {
        (&self.pool, self.isa)
    }

    /// One step's loss and gradients. `done(loss, range, gradients)` is called for each part of the flat
    /// buffer as it becomes final, from its end to its start without a gap; the statistics' part holds
    /// the running statistics after this batch.
    pub fn step(
        &mut self,
        params: &[f32],
        batch: &Batch,
        gradients: &mut [f32],
        mut done: impl FnMut(f32, Range<usize>, &[f32]),
    ) -> f32 {
        assert_eq!((params.len(), gradients.len()), (self.network.layout.len, params.len()));
        self.forward(params, batch, Mode::Training);
        self.update_running(params, gradients);
        let n = batch.len();
        let loss =
            softmax_cross_entropy(&mut self.head.logits[..n * CLASSES], &batch.labels, CLASSES);
        done(loss, self.network.layout.trained..self.network.layout.len, gradients);
        self.backward_head(params, n, gradients);
        done(loss, self.network.classifier[0].start..self.network.classifier[1].end, gradients);
        for index in (0..self.network.blocks.len()).rev() {
            self.backward_block(index, params, n, gradients);
            done(loss, self.block_range(index), gradients);
        }
        self.backward_stem(params, n, gradients);
        done(loss, 0..self.network.units[0].affine[1].end, gradients);
        loss
    }

    /// Logits of each image with the running statistics.
    pub fn infer(&mut self, params: &[f32], batch: &Batch) -> &[f32] {
        self.forward(params, batch, Mode::Inference);
        &self.head.logits[..batch.len() * CLASSES]
    }

    fn forward(&mut self, params: &[f32], batch: &Batch, mode: Mode) {
        let n = batch.len();
        assert!((1..=self.batch_max).contains(&n), "batch of {n}, room for {}", self.batch_max);
        let images = first(&self.plan.images, n * SIDE * SIDE * COLOURS);
        self.arena.as_mut_slice()[images.clone()].copy_from_slice(&batch.images);
        self.convolve(0, images, params, n, mode);
        self.forward_stem(n);
        for index in 0..self.network.blocks.len() {
            self.forward_block(index, params, n, mode);
        }
        let features = n * self.network.features;
        let last = self.y(self.network.blocks.len(), n);
        let exec = (&self.pool, self.isa);
        let pooled = &mut self.head.features[..features];
        average_forward(exec, &self.arena.as_slice()[last], pooled);
        let [weight, bias] = self.network.classifier.clone().map(|range| &params[range]);
        let logits = &mut self.head.logits[..n * CLASSES];
        self.head.linear.forward(exec, pooled, (weight, bias), logits);
    }

    /// `z = conv(x)` of one unit, and its normalisation folded for use.
    fn convolve(&mut self, u: usize, x: Range<usize>, params: &[f32], n: usize, mode: Mode) {
        let exec = (&self.pool, self.isa);
        let unit = &self.network.units[u];
        let z = self.plan.z(u, n, unit);
        let [x, z] = disjoint(&mut self.arena, [x, z]);
        unit.conv.forward(exec, n, x, &params[unit.weight.clone()], z);
        let Norm { statistics, fold, .. } = &mut self.norms[u];
        let affine = unit.affine.clone().map(|range| &params[range]);
        let running = unit.running.clone().map(|range| &params[range]);
        match mode {
            Mode::Inference => fold.set(NORM, running.into(), affine.into()),
            Mode::Training => {
                statistics.measure(exec, z, running[0]);
                fold.set(NORM, (&statistics.mean, &statistics.variance), affine.into());
            }
        }
    }

    /// The activation after a unit, into the shared buffer.
    fn activate(&mut self, u: usize, n: usize) -> Range<usize> {
        let z = self.z(u, n);
        let target = first(&self.plan.activation, z.len());
        let [z, y] = disjoint(&mut self.arena, [z, target.clone()]);
        self.norms[u].fold.activate((&self.pool, self.isa), z, Identity::None, y);
        target
    }

    fn forward_stem(&mut self, n: usize) {
        let y = self.y(0, n);
        match self.network.max_pool {
            None => {
                let exec = (&self.pool, self.isa);
                let z = self.z(0, n);
                let [z, y] = disjoint(&mut self.arena, [z, y]);
                self.norms[0].fold.activate(exec, z, Identity::None, y);
            }
            Some(max_pool) => {
                let a = self.activate(0, n);
                let channels = self.network.units[0].conv.channels_out;
                let [a, y] = disjoint(&mut self.arena, [a, y]);
                max_pool.forward((&self.pool, self.isa), n * channels, a, y);
            }
        }
    }

    fn forward_block(&mut self, index: usize, params: &[f32], n: usize, mode: Mode) {
        let Block { units: [u1, u2, u3], projection } = self.network.blocks[index];
        let x = self.y(index, n);
        self.convolve(u1, x.clone(), params, n, mode);
        let a1 = self.activate(u1, n);
        self.convolve(u2, a1, params, n, mode);
        let a2 = self.activate(u2, n);
        self.convolve(u3, a2, params, n, mode);
        if let Some(p) = projection {
            self.convolve(p, x.clone(), params, n, mode);
        }
        let shortcut = projection.map_or(x, |p| self.z(p, n));
        let (z3, y) = (self.z(u3, n), self.y(index + 1, n));
        let [shortcut, z3, y] = disjoint(&mut self.arena, [shortcut, z3, y]);
        let identity = match projection {
            None => Identity::Plain(shortcut),
            Some(p) => Identity::Projected(shortcut, &self.norms[p].fold),
        };
        self.norms[u3].fold.activate((&self.pool, self.isa), z3, identity, y);
    }

    fn backward_head(&mut self, params: &[f32], n: usize, gradients: &mut [f32]) {
        let exec = (&self.pool, self.isa);
        let outer = first(&self.plan.outer, self.y(self.network.blocks.len(), n).len());
        let Head { linear, features, logits } = &mut self.head;
        let count = n * self.network.features;
        let (features, gradient) = features.split_at_mut(self.batch_max * self.network.features);
        let (features, gradient) = (&features[..count], &mut gradient[..count]);
        let dlogits = &logits[..n * CLASSES];
        let [weight, bias] = self.network.classifier.clone();
        linear.backward_input(exec, dlogits, &params[weight.clone()], gradient);
        let [dw, db] = gradients.get_disjoint_mut([weight, bias]).expect("tensors are disjoint");
        linear.backward_weight(exec, (features, dlogits), (dw, db));
        average_backward(exec, gradient, &mut self.arena.as_mut_slice()[outer]);
    }

    /// From the gradient at the block's output to that at its input, both in `outer`.
    fn backward_block(&mut self, index: usize, params: &[f32], n: usize, gradients: &mut [f32]) {
        let Block { units: [u1, u2, u3], projection } = self.network.blocks[index];
        let (x, y) = (self.y(index, n), self.y(index + 1, n));
        let dy = first(&self.plan.outer, y.len());
        {
            let [y, dy] = disjoint(&mut self.arena, [y, dy.clone()]);
            mask_by_output((&self.pool, self.isa), y, dy);
        }
        let [inner0, inner1] = self.plan.inner.clone();
        let dz3 = self.backward_norm(u3, params, n, gradients, dy.clone(), Some(inner0.clone()));
        let a2 = self.activate(u2, n);
        let da2 = self.backward_conv(u3, params, n, gradients, (a2, dz3), (&inner1, false));
        let dz2 = self.backward_norm(u2, params, n, gradients, da2, None);
        let a1 = self.activate(u1, n);
        let da1 = self.backward_conv(u2, params, n, gradients, (a1, dz2), (&inner0, false));
        let dz1 = self.backward_norm(u1, params, n, gradients, da1, None);
        let outer = self.plan.outer.clone();
        if let Some(p) = projection {
            let dzp = self.backward_norm(p, params, n, gradients, dy, Some(inner1));
            self.backward_conv(p, params, n, gradients, (x.clone(), dzp), (&outer, false));
        }
        self.backward_conv(u1, params, n, gradients, (x, dz1), (&outer, true));
    }

    fn backward_stem(&mut self, params: &[f32], n: usize, gradients: &mut [f32]) {
        let y = self.y(0, n);
        let dy = first(&self.plan.outer, y.len());
        let da = match self.network.max_pool {
            None => dy,
            Some(max_pool) => {
                let a = self.activate(0, n);
                let da = first(&self.plan.inner[0], a.len());
                let channels = self.network.units[0].conv.channels_out;
                let [a, y, dy, target] = disjoint(&mut self.arena, [a, y, dy, da.clone()]);
                max_pool.backward((&self.pool, self.isa), n * channels, (a, y, dy), target);
                da
            }
        };
        let dz = self.backward_norm(0, params, n, gradients, da, None);
        let images = first(&self.plan.images, n * SIDE * SIDE * COLOURS);
        let [x, dz] = disjoint(&mut self.arena, [images, dz]);
        let unit = &self.network.units[0];
        let dw = &mut gradients[unit.weight.clone()];
        unit.conv.backward_weight((&self.pool, self.isa), n, (x, dz), dw);
    }

    /// Gradients by gamma and beta, and by the convolution's output: in place where `target` is `None`
    /// (through the unit's own ReLU), else into `target` (no ReLU between).
    fn backward_norm(
        &mut self,
        u: usize,
        params: &[f32],
        n: usize,
        gradients: &mut [f32],
        dy: Range<usize>,
        target: Option<Range<usize>>,
    ) -> Range<usize> {
        let exec = (&self.pool, self.isa);
        let unit = &self.network.units[u];
        let Norm { statistics, fold, slope } = &mut self.norms[u];
        let mask = target.is_none().then_some(&*fold);
        let z = self.plan.z(u, n, unit);
        let gamma = &params[unit.affine[0].clone()];
        let [dgamma, dbeta] =
            gradients.get_disjoint_mut(unit.affine.clone()).expect("tensors are disjoint");
        let dz = target.map_or(dy.clone(), |target| first(&target, dy.len()));
        let memory = self.arena.as_mut_slice();
        let sums = (&memory[dy.clone()], &memory[z.clone()], mask);
        statistics.backward(exec, NORM, sums, gamma, (dgamma, dbeta, slope));
        if mask.is_some() {
            let [dy, z] = memory.get_disjoint_mut([dy, z]).expect("buffers are disjoint");
            slope.apply_in_place(exec, z, mask, dy);
        } else {
            let buffers = memory.get_disjoint_mut([dy, z, dz.clone()]);
            let [dy, z, dz] = buffers.expect("buffers are disjoint");
            slope.apply(exec, (dy, z), dz);
        }
        dz
    }

    /// Gradients by the weights and by the input, the latter into (or added to) `target`.
    fn backward_conv(
        &mut self,
        u: usize,
        params: &[f32],
        n: usize,
        gradients: &mut [f32],
        (x, dz): (Range<usize>, Range<usize>),
        (target, accumulate): (&Range<usize>, bool),
    ) -> Range<usize> {
        let exec = (&self.pool, self.isa);
        let unit = &self.network.units[u];
        let weight = unit.weight.clone();
        let dx = first(target, x.len());
        let memory = self.arena.as_mut_slice();
        unit.conv.backward_weight(
            exec,
            n,
            (&memory[x], &memory[dz.clone()]),
            &mut gradients[weight.clone()],
        );
        let transposed = &mut self.transposed[..weight.len()];
        unit.conv.transpose(exec, &params[weight], transposed);
        let [dz, out] = memory.get_disjoint_mut([dz, dx.clone()]).expect("buffers are disjoint");
        unit.conv.backward_input(exec, n, dz, transposed, (out, accumulate));
        dx
    }

    fn update_running(&self, params: &[f32], gradients: &mut [f32]) {
        for (unit, norm) in self.network.units.iter().zip(&self.norms) {
            let ranges = unit.running.clone();
            let [mean, variance] =
                gradients.get_disjoint_mut(ranges.clone()).expect("tensors are disjoint");
            mean.copy_from_slice(&params[ranges[0].clone()]);
            variance.copy_from_slice(&params[ranges[1].clone()]);
            norm.statistics.update_running(NORM, mean, variance);
        }
    }

    /// The trained tensors of a block: one piece of the flat buffer.
    fn block_range(&self, index: usize) -> Range<usize> {
        let Block { units, projection } = self.network.blocks[index];
        let last = projection.unwrap_or(units[2]);
        self.network.units[units[0]].weight.start..self.network.units[last].affine[1].end
    }

    fn z(&self, u: usize, n: usize) -> Range<usize> {
        self.plan.z(u, n, &self.network.units[u])
    }

    fn y(&self, index: usize, n: usize) -> Range<usize> {
        first(&self.plan.y[index], self.plan.y[index].len() / self.batch_max * n)
    }
}

impl Norm {
    fn new(unit: &Unit) -> Self {
        let channels = unit.conv.channels_out;
        Self {
            statistics: Statistics::new(channels),
            fold: Folded::new(channels),
            slope: Slope::new(channels),
        }
    }
}

impl Plan {
    fn new(network: &Network, n: usize) -> Self {
        let mut end = 0;
        let mut take = |len: usize| {
            // Pieces start at cache lines.
            let start = end;
            end = (start + len).next_multiple_of(16);
            start..start + len
        };
        let images = take(n * SIDE * SIDE * COLOURS);
        let outputs: Vec<usize> =
            network.units.iter().map(|unit| unit.conv.output_len(n)).collect();
        let z = outputs.iter().map(|&len| take(len)).collect();
        let stem = network.max_pool.map_or(outputs[0], |pool| {
            pool.output * pool.output * n * network.units[0].conv.channels_out
        });
        let y: Vec<Range<usize>> = std::iter::once(stem)
            .chain(network.blocks.iter().map(|block| outputs[block.units[2]]))
            .map(&mut take)
            .collect();
        // The stem's activation is only computed again where it is pooled.
        let stem_activation = network.max_pool.map(|_| outputs[0]);
        let between =
            network.blocks.iter().flat_map(|b| [outputs[b.units[0]], outputs[b.units[1]]]);
        let activation = between.chain(stem_activation).max().unwrap_or(0);
        let outer = y.iter().map(Range::len).max().unwrap_or(0);
        Self {
            images,
            z,
            activation: take(activation),
            outer: take(outer),
            inner: [take(outer.max(activation)), take(outer.max(activation))],
            y,
        }
    }

    fn z(&self, u: usize, n: usize, unit: &Unit) -> Range<usize> {
        first(&self.z[u], unit.conv.output_len(n))
    }
}

/// The first `len` values of a range.
fn first(range: &Range<usize>, len: usize) -> Range<usize> {
    assert!(len <= range.len(), "{len} values in a buffer of {}", range.len());
    range.start..range.start + len
}

fn disjoint<const N: usize>(arena: &mut Arena, ranges: [Range<usize>; N]) -> [&mut [f32]; N] {
    arena.as_mut_slice().get_disjoint_mut(ranges).expect("buffers are disjoint")
}
