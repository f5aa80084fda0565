//! A ResNet in motion: forward, loss, backward over one arena; gradients leave as soon as they are done.
//!
//! What is kept from the forward pass is each convolution's output `z` and each block's output; the
//! activations between are computed again when the backward pass needs them.
//!
//! ```text
//! bottleneck (a basic block has one convolution less)
//!         x --conv1-- z1 --bn,relu-- a1 --conv2-- z2 --bn,relu-- a2 --conv3-- z3 --bn-- + --relu-- y
//!         '------------------ identity, or conv -- zp -- bn ------------------------'
//! ```

use std::ops::Range;

use kernels::{
    Arena, BatchNorm, Epilogue, Exec, Extent, GroupNorm, Isa, Linear, NormGradients, Operand, Pool,
    Product, Results, Retiring, Rows, Scratch, Sums, Target, average_backward, average_forward,
    run_epilogue, smoothed_cross_entropy,
};

use crate::data::batch::Batch;
use crate::model::flow::{Arriving, Flow};
use crate::model::gradients::{Bucket, Pieces, ReadyBuckets};
use crate::model::network::{Block, Network};
use crate::model::operand::{Behind, Norm, Recomputed, Source, View};
use crate::model::plan::{Plan, Sizes, around, around2, first};

/// Normalisation constants of torchvision.
pub const NORM: BatchNorm = BatchNorm { epsilon: 1e-5, momentum: 0.1 };

/// A network with memory for training on batches of up to `batch_max` images; activations are stored
/// as `T`.
pub struct ResNet<T: Product> {
    /// Its layers.
    pub network: Network,
    pool: Pool,
    isa: Isa,
    batch_max: usize,
    arena: Arena<T>,
    plan: Plan,
    norms: Vec<Norm>,
    /// Where groups of channels are normalised: what is kept as `z` is normalised already.
    group: Option<GroupNorm>,
    /// Whether running statistics normalise, and stand still.
    is_frozen: bool,
    /// Share of each label that is spread over all classes.
    smoothing: f32,
    sums: Sums,
    /// Weights of one layer as the kernels read them.
    panels: Arena<T>,
    scratch: Arena,
    head: Head,
}

/// Buffers after the last block.
struct Head {
    linear: Linear,
    features: Vec<f32>,
    logits: Vec<f32>,
}

impl<T: Product> ResNet<T> {
    /// Memory for batches of up to `batch_max` images.
    ///
    /// # Errors
    /// When the system has not that much memory.
    pub fn new(network: Network, batch_max: usize, pool: Pool, isa: Isa) -> std::io::Result<Self> {
        let plan = Plan::new(&network, batch_max);
        let sizes = Sizes::new(&network, &plan);
        let grouped = if network.is_grouped { batch_max } else { 0 };
        let head = Head {
            linear: Linear { inputs: network.features, outputs: network.shape.classes },
            features: vec![0.0; sizes.features],
            logits: vec![0.0; sizes.logits],
        };
        Ok(Self {
            arena: Arena::new(sizes.arena)?,
            panels: Arena::new(sizes.panels)?,
            scratch: Arena::new(sizes.scratch)?,
            norms: network.units.iter().map(|unit| Norm::new(unit, grouped)).collect(),
            group: network.is_grouped.then(|| GroupNorm::new(sizes.columns)),
            is_frozen: false,
            smoothing: 0.0,
            sums: Sums::new(sizes.sums, sizes.channels),
            plan,
            head,
            network,
            pool,
            isa,
            batch_max,
        })
    }

    /// Bytes that a network takes for batches of up to `batch_max` images.
    pub fn memory_len(network: &Network, batch_max: usize) -> usize {
        let sizes = Sizes::new(network, &Plan::new(network, batch_max));
        (sizes.arena + sizes.panels) * size_of::<T>() + sizes.single_len()
    }

    /// Bytes of the arena.
    pub fn arena_len(&self) -> usize {
        self.plan.end() * size_of::<T>()
    }

    /// The threads that this network computes with.
    pub fn exec(&self) -> Exec<'_> {
        Exec::new(&self.pool, self.isa)
    }

    /// Computes on these threads from now on.
    pub fn compute_on(&mut self, pool: Pool) {
        self.pool = pool;
    }

    /// Normalises by running statistics from now on, or by the batch's.
    pub fn freeze(&mut self, is_frozen: bool) {
        self.is_frozen = is_frozen;
    }

    /// Spreads such a share of each label over all classes from now on.
    pub fn smooth_labels(&mut self, smoothing: f32) {
        self.smoothing = smoothing;
    }

    /// The forward pass over parameters that may still be coming in: `await_end` is called before the first so many of
    /// them, and the running statistics, are read, and last for all; it may write to what was not asked for yet.
    /// Whether the pass came to its end: it stops where that says no.
    pub fn forward(
        &mut self,
        params: &mut [f32],
        batch: &Batch,
        await_end: &mut dyn FnMut(&mut [f32], usize) -> bool,
    ) -> bool {
        let n = batch.len();
        assert!((1..=self.batch_max).contains(&n), "batch of {n}, room for {}", self.batch_max);
        assert_eq!(params.len(), self.network.layout.len);
        self.forward_all(&batch.images, Arriving { params, await_end, n }).is_some()
    }

    /// A whole step with parameters that are all there: its loss.
    pub fn step(
        &mut self,
        params: &mut [f32],
        batch: &Batch,
        gradients: &mut [f32],
        pieces: Pieces,
        done: impl FnMut(Bucket) + Send,
    ) -> f32 {
        self.forward(params, batch, &mut |_, _| true);
        self.backward(params, batch, gradients, pieces, done)
    }

    /// The backward pass after a whole forward pass: the step's loss, and its gradients. `done` is called for each part
    /// of the flat buffers after it became final, from their end to their start without a gap, beside the backward
    /// pass; or for pieces of them. The statistics' part holds the running statistics after this batch.
    pub fn backward(
        &mut self,
        params: &mut [f32],
        batch: &Batch,
        gradients: &mut [f32],
        pieces: Pieces,
        done: impl FnMut(Bucket) + Send,
    ) -> f32 {
        assert_eq!((params.len(), gradients.len()), (self.network.layout.len, params.len()));
        let n = batch.len();
        self.update_running(params, gradients);
        let classes = self.network.shape.classes;
        let logits = &mut self.head.logits[..n * classes];
        let loss = smoothed_cross_entropy(logits, &batch.labels, classes, self.smoothing);
        let Network { layout, classifier: [weight, bias], .. } = &self.network;
        let statistics = layout.trained..layout.len;
        let head = weight.start..bias.end;
        let pool = self.pool.clone();
        let ready = ReadyBuckets::new(pieces, done);
        let hand_over = |part, depth| {
            ready.push(part, depth);
            if pool.threads() == 1 {
                ready.flush();
            }
        };
        let gradients = Retiring::new(gradients);
        let mut flow = Flow { images: &batch.images, params, gradients, n };
        let backward = || {
            let blocks = self.network.blocks.len();
            if !statistics.is_empty() {
                hand_over(flow.retire(statistics, loss), blocks);
            }
            self.backward_head(&mut flow);
            hand_over(flow.retire(head, loss), blocks);
            for depth in (0..=blocks).rev() {
                self.backward_depth(depth, &mut flow);
                hand_over(flow.retire(self.range(depth), loss), depth);
            }
            ready.flush();
        };
        pool.beside(|| ready.hand_on_overdue(), || ready.hand_on_brief(), backward);
        loss
    }

    /// From the masked gradient at the output of a block, or of the stem, whose sums are taken, to that before it.
    fn backward_depth(&mut self, depth: usize, flow: &mut Flow) {
        match depth.checked_sub(1) {
            Some(index) => self.backward_block(index, flow),
            None => self.backward_stem(flow),
        }
    }

    fn forward_all(&mut self, images: &[f32], mut arriving: Arriving) -> Option<()> {
        let n = arriving.n;
        self.convolve(0, Source::Images(images), &mut arriving)?;
        let mut x = self.forward_stem(n);
        for index in 0..self.network.blocks.len() {
            x = self.forward_block(index, x, &mut arriving)?;
        }
        let features = n * self.network.features;
        let last = self.make(x, n);
        let exec = Exec::new(&self.pool, self.isa);
        let pooled = &mut self.head.features[..features];
        average_forward(exec, &self.arena.as_slice()[last], pooled);
        let params = arriving.until(self.network.classifier[1].end)?;
        let [weight, bias] = self.network.classifier.clone().map(|range| &params[range]);
        let logits = &mut self.head.logits[..n * self.network.shape.classes];
        self.head.linear.forward(exec, pooled, weight, bias, logits);
        arriving.until(self.network.layout.len).map(|_| ())
    }

    /// `z = conv(x)` of one unit, and its normalisation folded for use.
    fn convolve(&mut self, u: usize, x: Source, arriving: &mut Arriving) -> Option<()> {
        let exec = Exec::new(&self.pool, self.isa);
        let (unit, n) = (&self.network.units[u], arriving.n);
        let params = arriving.until(unit.affine[1].end)?;
        let weight = &params[unit.weight.clone()];
        let [mean, _] = unit.running.clone().map(|range| &params[range]);
        let shape = unit.conv.output_tiles(n);
        let sums = self.sums.tiles(shape);
        // Statistics of the batch are not asked for everywhere.
        let measure = match self.is_frozen || self.group.is_some() {
            true => Epilogue::Keep,
            false => Epilogue::Measure(mean),
        };
        let z = self.plan.z(u, n, unit);
        let view = View { network: &self.network, plan: &self.plan, norms: &self.norms, n };
        match x {
            Source::Stored(x) => {
                let (z, rest) = around(&mut self.arena, z);
                let results = Results {
                    values: z,
                    sums,
                    scratch: scratch(&mut self.panels, &mut self.scratch),
                };
                unit.conv.forward(exec, rest.get(x), weight, results, measure);
            }
            Source::Recompute(of, x) => {
                let ([z, x], rest) = around2(&mut self.arena, [z, x]);
                let x = Operand::Recompute(x, view.rows(of, &rest));
                let results = Results {
                    values: z,
                    sums,
                    scratch: scratch(&mut self.panels, &mut self.scratch),
                };
                unit.conv.forward(exec, x, weight, results, measure);
            }
            Source::Images(images) => {
                let z = &mut self.arena.as_mut_slice()[z];
                let target = Target { values: z, sums };
                unit.conv.forward_images(exec, images, weight, target, measure);
            }
        }
        self.normalise(u, params, shape, n);
        Some(())
    }

    /// The fold of a unit's normalisation, from the sums that were just taken, or from the running statistics. Groups
    /// are normalised at once, and the fold is what is left.
    fn normalise(&mut self, u: usize, params: &[f32], shape: Extent, n: usize) {
        let exec = Exec::new(&self.pool, self.isa);
        let unit = &self.network.units[u];
        let [mean, variance] = unit.running.clone().map(|range| &params[range]);
        let [gamma, beta] = unit.affine.clone().map(|range| &params[range]);
        let Norm { statistics, fold, inverse, .. } = &mut self.norms[u];
        if let Some(group) = &mut self.group {
            let z = &mut self.arena.as_mut_slice()[self.plan.z(u, n, unit)];
            group.normalise(exec, NORM, unit.extent(n), z, inverse);
            fold.scale.copy_from_slice(gamma);
            fold.shift.copy_from_slice(beta);
            return;
        }
        if self.is_frozen {
            statistics.fix(mean, variance);
        } else {
            self.sums.add_up(exec);
            statistics.set(&self.sums, shape.rows(), mean);
        }
        fold.set(NORM, &statistics.mean, &statistics.variance, gamma, beta);
    }

    /// The activation after a unit, which belongs into the buffer of a depth.
    fn activation(&self, u: usize, depth: usize, n: usize) -> Source<'static> {
        Source::Recompute(
            Recomputed::Unit(u),
            first(&self.plan.activation[depth], self.z(u, n).len()),
        )
    }

    /// Makes what is to be read, if it is not there.
    fn make(&mut self, source: Source, n: usize) -> Range<usize> {
        match source {
            Source::Images(_) => unreachable!("images are there"),
            Source::Stored(range) => range,
            Source::Recompute(of, range) => {
                let view = View { network: &self.network, plan: &self.plan, norms: &self.norms, n };
                let (y, rest) = around(&mut self.arena, range.clone());
                view.rows(of, &rest).make(Exec::new(&self.pool, self.isa), y);
                range
            }
        }
    }

    fn forward_stem(&mut self, n: usize) -> Source<'static> {
        let y = self.y(0, n);
        let Some(max_pool) = self.network.max_pool else {
            return Source::Recompute(Recomputed::Output(0), y);
        };
        let a = self.make(self.activation(0, 0, n), n);
        let channels = self.network.units[0].conv.channels_out;
        let (target, rest) = around(&mut self.arena, y.clone());
        max_pool.forward(Exec::new(&self.pool, self.isa), n * channels, rest.get(a), target);
        Source::Stored(y)
    }

    /// From what a block reads to what the next one does.
    fn forward_block(
        &mut self,
        index: usize,
        x: Source,
        arriving: &mut Arriving,
    ) -> Option<Source<'static>> {
        let Block { first, last, projection } = self.network.blocks[index];
        let n = arriving.n;
        self.convolve(first, x, arriving)?;
        for u in first + 1..=last {
            self.convolve(u, self.activation(u - 1, index + 1, n), arriving)?;
        }
        if let Some(p) = projection {
            self.convolve(p, Source::Stored(self.y(index, n)), arriving)?;
        }
        Some(Source::Recompute(Recomputed::Output(index + 1), self.y(index + 1, n)))
    }

    /// From the logits' gradient to the masked one at the last block's output, in `outer`.
    fn backward_head(&mut self, flow: &mut Flow) {
        let exec = Exec::new(&self.pool, self.isa);
        let (n, count) = (flow.n, flow.n * self.network.features);
        let last = self.network.blocks.len();
        let outer = self.outer(last, n);
        let Head { linear, features, logits } = &mut self.head;
        let (features, gradient) = features.split_at_mut(self.batch_max * self.network.features);
        let (features, gradient) = (&features[..count], &mut gradient[..count]);
        let dlogits = &logits[..n * self.network.shape.classes];
        let [weight, bias] = self.network.classifier.clone();
        linear.backward_input(exec, dlogits, &flow.params[weight.clone()], gradient);
        let tensors = flow.gradients.get_disjoint_mut([weight, bias]);
        let [dw, db] = tensors.expect("tensors are disjoint");
        linear.backward_weight(exec, features, dlogits, dw, db);

        let view = View { network: &self.network, plan: &self.plan, norms: &self.norms, n };
        let (dy, rest) = around(&mut self.arena, outer);
        average_backward(exec, gradient, dy);
        let behind = view.behind(Behind::Output(last), &rest);
        let shape = Extent::new(dy.len() / count, n, self.network.features);
        let sums = self.sums.tiles(shape);
        run_epilogue(exec, shape, dy, sums, behind);
        self.sums.add_up(exec);
    }

    /// From `dy`, the masked gradient at a block's output, to that at its input, `dx`. Of a bottleneck with a
    /// projection, after each step (`a2`, `a1` are made again beside these, for the gradients by weight):
    /// ```text
    /// step                      inner 0    inner 1    outer above   outer
    /// by input of 3             dz3 of dy  da2        dy
    /// slope of 2, in place      -          dz2        dy
    /// by input of 2             da1        dz2        dy
    /// slope of 1, in place      dz1        -          dy
    /// by input of projection    dz1        dzp of dy  dy            dx, set
    /// by input of 1             dz1        -          -             dx, added to and masked
    /// ```
    /// Without a projection both outer ranges are one: what 1 adds to is `dy`, the gradient of the identity.
    fn backward_block(&mut self, index: usize, flow: &mut Flow) {
        let n = flow.n;
        let Block { first: u1, last, projection } = self.network.blocks[index];
        self.backward_norm(last, 1, flow);
        if let Some(p) = projection {
            self.backward_norm(p, 2, flow);
        }
        let dy = self.outer(index + 1, n);
        // Gradients by a unit's output and by its input take turns in two buffers.
        let [mut own, mut other] = self.plan.inner[index + 1].clone();
        let mut dz = first(&own, dy.len());
        let mut gradient = self.slope(last, flow, dy.clone(), dz.clone());
        for u in (u1 + 1..=last).rev() {
            let da = self.backward_input(u, flow, gradient, &other, false, Behind::Unit(u - 1));
            let a = self.make(self.activation(u - 1, index + 1, n), n);
            self.backward_weight(u, flow, a, dz);
            self.backward_norm(u - 1, 1, flow);
            dz = self.apply_slope(u - 1, flow, da);
            gradient = Source::Stored(dz.clone());
            std::mem::swap(&mut own, &mut other);
        }
        let (x, outer) = (self.y(index, n), self.plan.outer[index].clone());
        if let Some(p) = projection {
            let dzp = first(&other, dy.len());
            let gradient = self.slope(p, flow, dy, dzp.clone());
            self.backward_input(p, flow, gradient, &outer, false, Behind::Nothing);
            self.backward_weight(p, flow, x.clone(), dzp);
        }
        let pooled = index == 0 && self.network.max_pool.is_some();
        let behind = if pooled { Behind::Nothing } else { Behind::Output(index) };
        self.backward_weight(u1, flow, x, dz);
        self.backward_input(u1, flow, gradient, &outer, true, behind);
    }

    fn backward_stem(&mut self, flow: &mut Flow) {
        let n = flow.n;
        let (y, dy) = (self.y(0, n), self.outer(0, n));
        let da = match self.network.max_pool {
            None => dy,
            Some(_) => self.backward_pool(y, dy, n),
        };
        self.backward_norm(0, 1, flow);
        let dz = self.apply_slope(0, flow, da);
        let unit = &self.network.units[0];
        let (dz, dw) = (&self.arena.as_slice()[dz], &mut flow.gradients[unit.weight.clone()]);
        let (exec, scratch) = (Exec::new(&self.pool, self.isa), self.scratch.as_mut_slice());
        unit.conv.backward_weight_images(exec, flow.images, dz, dw, scratch);
    }

    /// The masked gradient at the stem's activation from that at the pooled one, and its sums.
    fn backward_pool(&mut self, y: Range<usize>, dy: Range<usize>, n: usize) -> Range<usize> {
        let Some(max_pool) = self.network.max_pool else { return dy };
        let a = self.make(self.activation(0, 0, n), n);
        let exec = Exec::new(&self.pool, self.isa);
        let target = first(&self.plan.inner[0][0], a.len());
        let shape = self.network.units[0].conv.output_tiles(n);
        let view = View { network: &self.network, plan: &self.plan, norms: &self.norms, n };
        let (da, rest) = around(&mut self.arena, target.clone());
        let [a, y, dy] = [a, y, dy].map(|range| rest.get(range));
        max_pool.backward(exec, n * shape.channels, a, y, dy, da);
        let behind = view.behind(Behind::Unit(0), &rest);
        run_epilogue(exec, shape, da, self.sums.tiles(shape), behind);
        self.sums.add_up(exec);
        target
    }

    /// Gradients by gamma and beta, and the slope, from the sums that were just taken.
    fn backward_norm(&mut self, u: usize, which: usize, flow: &mut Flow) {
        let unit = &self.network.units[u];
        let Norm { statistics, slope, .. } = &mut self.norms[u];
        let gamma = &flow.params[unit.affine[0].clone()];
        let tensors = flow.gradients.get_disjoint_mut(unit.affine.clone());
        let [dgamma, dbeta] = tensors.expect("tensors are disjoint");
        if self.group.is_some() {
            return self.sums.by_affine(which, dgamma, dbeta);
        }
        let gradients = NormGradients { gamma: dgamma, beta: dbeta, slope };
        statistics.backward(NORM, &self.sums, which, gamma, gradients);
    }

    /// The gradient by a convolution's output, into a buffer, of the masked one behind its normalisation. That of
    /// groups is made at once: it has a slope a column, and the next layer's takes its place.
    fn slope(
        &mut self,
        u: usize,
        flow: &Flow,
        g: Range<usize>,
        into: Range<usize>,
    ) -> Source<'static> {
        let Some(group) = &mut self.group else {
            return Source::Recompute(Recomputed::Slope(u, g), into);
        };
        let unit = &self.network.units[u];
        let (dz, rest) = around(&mut self.arena, into.clone());
        let rows = [g, self.plan.z(u, flow.n, unit)].map(|range| rest.get(range));
        let exec = Exec::new(&self.pool, self.isa);
        let gamma = &flow.params[unit.affine[0].clone()];
        let slope = group.backward(exec, unit.extent(flow.n), gamma, &self.norms[u].inverse, rows);
        Rows::Slope(slope, rows).make(exec, dz);
        Source::Stored(into)
    }

    /// The gradient by a convolution's output over the masked one behind its normalisation.
    fn apply_slope(&mut self, u: usize, flow: &Flow, g: Range<usize>) -> Range<usize> {
        let unit = &self.network.units[u];
        let (dz, rest) = around(&mut self.arena, g.clone());
        let z = rest.get(self.plan.z(u, flow.n, unit));
        let exec = Exec::new(&self.pool, self.isa);
        let slope = match &mut self.group {
            None => &self.norms[u].slope,
            Some(group) => {
                let gamma = &flow.params[unit.affine[0].clone()];
                group.backward(exec, unit.extent(flow.n), gamma, &self.norms[u].inverse, [dz, z])
            }
        };
        slope.apply_in_place(exec, z, dz);
        g
    }

    /// The gradient by a convolution's input, into or added to `target`, masked by what is behind.
    fn backward_input(
        &mut self,
        u: usize,
        flow: &Flow,
        dz: Source,
        target: &Range<usize>,
        add: bool,
        behind: Behind,
    ) -> Range<usize> {
        let (exec, n) = (Exec::new(&self.pool, self.isa), flow.n);
        let conv = &self.network.units[u].conv;
        let weight = &flow.params[self.network.units[u].weight.clone()];
        let target = first(target, conv.input_len(n));
        let view = View { network: &self.network, plan: &self.plan, norms: &self.norms, n };
        let (of, dz) = match dz {
            Source::Images(_) => unreachable!("no gradient by images"),
            Source::Stored(dz) => (None, dz),
            Source::Recompute(of, dz) => (Some(of), dz),
        };
        let ([dx, dz], rest) = around2(&mut self.arena, [target.clone(), dz]);
        let finish = view.behind(behind, &rest);
        let dz = match of {
            None => Operand::Stored(dz),
            Some(of) => Operand::Recompute(dz, view.rows(of, &rest)),
        };
        let sums = self.sums.tiles(conv.input_tiles(n));
        let results =
            Results { values: dx, sums, scratch: scratch(&mut self.panels, &mut self.scratch) };
        conv.backward_input(exec, dz, weight, results, add, finish);
        if !matches!(finish, Epilogue::Keep) {
            self.sums.add_up(exec);
        }
        target
    }

    /// The gradient by a convolution's weights.
    fn backward_weight(&mut self, u: usize, flow: &mut Flow, x: Range<usize>, dz: Range<usize>) {
        let unit = &self.network.units[u];
        let memory = self.arena.as_slice();
        let dw = &mut flow.gradients[unit.weight.clone()];
        let exec = Exec::new(&self.pool, self.isa);
        unit.conv.backward_weight(exec, &memory[x], &memory[dz], dw, self.scratch.as_mut_slice());
    }

    fn update_running(&self, params: &[f32], gradients: &mut [f32]) {
        if self.group.is_some() {
            return;
        }
        for (unit, norm) in self.network.units.iter().zip(&self.norms) {
            let ranges = unit.running.clone();
            let [mean, variance] =
                gradients.get_disjoint_mut(ranges.clone()).expect("tensors are disjoint");
            mean.copy_from_slice(&params[ranges[0].clone()]);
            variance.copy_from_slice(&params[ranges[1].clone()]);
            if !self.is_frozen {
                norm.statistics.update_running(NORM, mean, variance);
            }
        }
    }

    /// The trained tensors of a block or of the stem: one piece of the flat buffer.
    fn range(&self, depth: usize) -> Range<usize> {
        let Network { units, blocks, .. } = &self.network;
        let (first, last) = match depth.checked_sub(1) {
            None => (0, 0),
            Some(index) => {
                let units = blocks[index].units();
                (*units.start(), *units.end())
            }
        };
        units[first].weight.start..units[last].affine[1].end
    }

    /// Where the gradient at the output of a block or of the stem is.
    fn outer(&self, depth: usize, n: usize) -> Range<usize> {
        first(&self.plan.outer[depth], self.y(depth, n).len())
    }

    fn z(&self, u: usize, n: usize) -> Range<usize> {
        self.plan.z(u, n, &self.network.units[u])
    }

    fn y(&self, index: usize, n: usize) -> Range<usize> {
        self.plan.y(index, n)
    }
}

/// What convolutions work with.
fn scratch<'a, T: Product>(panels: &'a mut Arena<T>, parts: &'a mut Arena) -> Scratch<'a, T> {
    Scratch { panels: panels.as_mut_slice(), parts: parts.as_mut_slice() }
}
