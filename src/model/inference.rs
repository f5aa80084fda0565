//! The forward pass with running statistics: each convolution, its normalisation, ReLU and residual add
//! in one pass over memory, and no more memory than the largest block needs.

use kernels::{
    Arena, Ending, Epilogue, Exec, Folded, GroupNorm, Isa, Linear, Pool, Results, Scratch, Target,
    average_forward,
};

use crate::data::batch::Batch;
use crate::model::network::{Block, Network, Unit};
use crate::model::resnet::NORM;

/// A network that classifies.
pub struct Inference {
    network: Network,
    pool: Pool,
    isa: Isa,
    batch_max: usize,
    folds: Vec<Folded>,
    /// Where groups of channels are normalised: after each convolution, in a pass of its own.
    group: Option<GroupNorm>,
    /// The flat buffer: its panels are what the kernels read.
    params: Vec<f32>,
    /// A block's input and output by turns, its two inner activations, its shortcut.
    outer: [Arena; 2],
    inner: [Arena; 2],
    shortcut: Arena,
    /// Not used here, but every tile has room for sums.
    sums: Vec<f32>,
    scratch: Arena,
    features: Vec<f32>,
    logits: Vec<f32>,
}

/// Values of the buffers that inference takes.
struct Sizes {
    /// Of what blocks read and write, the shortcut's too.
    outer: usize,
    inner: usize,
    scratch: usize,
    sums: usize,
    /// Images times channels of the widest layer, where groups of these are normalised.
    columns: usize,
}

impl Sizes {
    fn new(network: &Network, n: usize) -> Self {
        let (units, blocks) = (&network.units, &network.blocks);
        let most = |all: &mut dyn Iterator<Item = usize>| all.max().unwrap_or(0);
        let output = |u: usize| units[u].conv.output_len(n);
        let widest = most(&mut units.iter().map(|unit| unit.conv.channels_out));
        Self {
            // Where the stem is pooled, its activation is the shortcut's buffer.
            outer: most(&mut std::iter::once(0).chain(blocks.iter().map(|b| b.last)).map(output)),
            inner: most(&mut blocks.iter().flat_map(|b| b.first..b.last).map(output)),
            scratch: most(&mut units.iter().map(|unit| unit.conv.scratch_len(n))),
            sums: most(&mut units.iter().map(|unit| unit.conv.sums_len(n))),
            columns: if network.is_grouped { n * widest } else { 0 },
        }
    }
}

impl Inference {
    /// Folds the statistics of `params`, with memory for batches of up to `batch_max` images.
    ///
    /// # Errors
    /// When the system has not that much memory.
    pub fn new(
        network: Network,
        params: Vec<f32>,
        batch_max: usize,
        pool: Pool,
        isa: Isa,
    ) -> std::io::Result<Self> {
        let part = |range: &std::ops::Range<usize>| &params[range.clone()];
        let folded = if network.is_grouped { &[] } else { &*network.units };
        let folds = folded.iter().map(|unit| {
            let mut fold = Folded::new(unit.conv.channels_out);
            let [mean, variance] = &unit.running;
            let [gamma, beta] = &unit.affine;
            fold.set(NORM, part(mean), part(variance), part(gamma), part(beta));
            fold
        });
        let folds = folds.collect();
        let Sizes { outer, inner, scratch, sums, columns } = Sizes::new(&network, batch_max);
        Ok(Self {
            group: network.is_grouped.then(|| GroupNorm::new(columns)),
            folds,
            outer: [Arena::new(outer)?, Arena::new(outer)?],
            inner: [Arena::new(inner)?, Arena::new(inner)?],
            shortcut: Arena::new(outer)?,
            sums: vec![0.0; sums],
            scratch: Arena::new(scratch)?,
            features: vec![0.0; batch_max * network.features],
            logits: vec![0.0; batch_max * network.shape.classes],
            params,
            network,
            pool,
            isa,
            batch_max,
        })
    }

    /// Bytes that a network takes for batches of up to `batch_max` images, with its parameters.
    pub fn memory_len(network: &Network, batch_max: usize) -> usize {
        let Sizes { outer, inner, scratch, sums, columns } = Sizes::new(network, batch_max);
        let ends = batch_max * (network.features + network.shape.classes);
        let values = 3 * outer + 2 * inner + scratch + sums + ends + network.layout.len;
        values * size_of::<f32>() + GroupNorm::memory_len(columns)
    }

    /// Bytes of activations.
    pub fn arena_len(&self) -> usize {
        let arenas = self.outer.iter().chain(&self.inner).chain([&self.shortcut]);
        arenas.map(|arena| size_of_val(arena.as_slice())).sum()
    }

    /// Logits of each image.
    pub fn run(&mut self, batch: &Batch) -> &[f32] {
        let n = batch.len();
        assert!((1..=self.batch_max).contains(&n), "batch of {n}, room for {}", self.batch_max);
        self.stem(batch);
        for index in 0..self.network.blocks.len() {
            self.block(index, n);
            self.outer.swap(0, 1);
        }
        let exec = Exec::new(&self.pool, self.isa);
        let last = &self.network.units[self.network.blocks[self.network.blocks.len() - 1].last];
        let features = &mut self.features[..n * self.network.features];
        average_forward(exec, &self.outer[0].as_slice()[..last.conv.output_len(n)], features);
        let [weight, bias] = self.network.classifier.clone().map(|range| &self.params[range]);
        let classes = self.network.shape.classes;
        let logits = &mut self.logits[..n * classes];
        let linear = Linear { inputs: self.network.features, outputs: classes };
        linear.forward(exec, features, weight, bias, logits);
        logits
    }

    fn stem(&mut self, batch: &Batch) {
        let (exec, n) = (Exec::new(&self.pool, self.isa), batch.len());
        let unit = &self.network.units[0];
        let len = unit.conv.output_len(n);
        let y = match self.network.max_pool {
            None => &mut self.outer[0].as_mut_slice()[..len],
            Some(_) => &mut self.shortcut.as_mut_slice()[..len],
        };
        let weight = &self.params[unit.weight.clone()];
        let target = Target { values: y, sums: &mut self.sums };
        let fold = epilogue(&self.folds, 0, Ending { identity: None, relu: true });
        unit.conv.forward_images(exec, &batch.images, weight, target, fold);
        if let Some(group) = &mut self.group {
            let y = match self.network.max_pool {
                None => &mut self.outer[0].as_mut_slice()[..len],
                Some(_) => &mut self.shortcut.as_mut_slice()[..len],
            };
            let affine = unit.affine.clone().map(|range| &self.params[range]);
            let ending = Ending { identity: None, relu: true };
            group.infer(exec, NORM, unit.extent(n), affine, y, ending);
        }
        if let Some(max_pool) = self.network.max_pool {
            let row = n * unit.conv.channels_out;
            let pooled = &mut self.outer[0].as_mut_slice()[..max_pool.output.pow(2) * row];
            max_pool.forward(exec, row, &self.shortcut.as_slice()[..len], pooled);
        }
    }

    /// From the first outer buffer to the second.
    fn block(&mut self, index: usize, n: usize) {
        let Block { first, last, projection } = self.network.blocks[index];
        let [x, y] = &mut self.outer;
        let [a1, a2] = &mut self.inner;
        let exec = Exec::new(&self.pool, self.isa);
        let mut convolve = |u: usize, x: &Arena, y: &mut Arena, add: Option<&Arena>, relu: bool| {
            let unit: &Unit = &self.network.units[u];
            let x = &x.as_slice()[..unit.conv.input_len(n)];
            let weight = &self.params[unit.weight.clone()];
            let y = &mut y.as_mut_slice()[..unit.conv.output_len(n)];
            let identity = add.map(Arena::as_slice);
            let fold = epilogue(&self.folds, u, Ending { identity, relu });
            // Weights are read as they are.
            let scratch = Scratch { panels: &mut [], parts: self.scratch.as_mut_slice() };
            let results = Results { values: &mut *y, sums: &mut self.sums, scratch };
            unit.conv.forward(exec, x, weight, results, fold);
            if let Some(group) = &mut self.group {
                let affine = unit.affine.clone().map(|range| &self.params[range]);
                let identity = identity.map(|all| &all[..y.len()]);
                let ending = Ending { identity, relu };
                group.infer(exec, NORM, unit.extent(n), affine, y, ending);
            }
        };
        convolve(first, x, a1, None, true);
        // Activations take turns in two buffers.
        let [mut from, mut to] = [a1, a2];
        for u in first + 1..last {
            convolve(u, from, to, None, true);
            std::mem::swap(&mut from, &mut to);
        }
        if let Some(p) = projection {
            convolve(p, x, &mut self.shortcut, None, false);
        }
        let identity = if projection.is_some() { &self.shortcut } else { &*x };
        convolve(last, from, y, Some(identity), true);
    }
}

/// What a unit's convolution ends with: nothing where its normalisation cannot be folded.
fn epilogue<'a>(
    folds: &'a [Folded],
    u: usize,
    Ending { identity, relu }: Ending<'a, f32>,
) -> Epilogue<'a, f32> {
    folds.get(u).map_or(Epilogue::Keep, |fold| Epilogue::Fold(fold, identity, relu))
}
