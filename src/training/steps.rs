//! What a worker computes in a round: its batches, its steps, and the contribution that comes of them.
//!
//! A pure function of job, data and parameters, so that a round can be computed again anywhere; who watches may send
//! what is final while the rest is still computed.

use kernels::{Arena, Isa, Pool};

use crate::data::batch::Batch;
use crate::data::dataset::Dataset;
use crate::data::error::DataError;
use crate::data::feed::Feed;
use crate::data::sampler::Sampler;
use crate::failure::{Doing, Failure};
use crate::job::Job;
use crate::model::Model;
use crate::model::gradients::{Bucket, Pieces};
use crate::model::network::Network;
use crate::model::params::Layout;
use crate::training::cells::{CELL, Cells};
use crate::training::contribution::{Contribution, Tail};
use crate::training::update::Inner;

/// The network of a job, and memory for its steps.
pub struct Steps {
    /// The job.
    pub job: Job,
    network: Model,
    isa: Isa,
    batch: Batch,
    gradients: Arena,
    /// Where steps are made without the server.
    inner: Option<Inner>,
}

/// A worker's own: what it trains on, and what it contributed last.
pub struct Share {
    /// Its data, and which of that makes the batch of a step.
    pub feed: Feed,
    /// What it sends.
    pub contribution: Contribution,
}

/// What is told about a round while it is computed.
pub trait Watch: Send {
    /// The forward pass is about to read the first `end` parameters and the running statistics, or has read all of
    /// them: whether they are there, and for all whether what is made of them may be told. Else it ends here.
    fn await_end(&mut self, _params: &mut [f32], _end: usize) -> bool {
        true
    }

    /// A part of this step's gradients is final.
    fn part(&mut self, _step: u64) {}

    /// More of the contribution can be sent.
    fn send(&mut self, _contribution: &mut Contribution, _gradients: Tail) {}

    /// Whether to end between two steps.
    fn is_stopped(&self) -> bool {
        false
    }
}

/// Nobody watches.
impl Watch for () {}

/// A round that was computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Computed {
    /// Its last step.
    pub last: u64,
    /// Mean loss over its samples.
    pub loss: f32,
    /// Its samples.
    pub samples: u32,
}

impl Steps {
    /// Memory for batches of up to `batch_max` images.
    ///
    /// # Errors
    /// When the system has not that much memory, or the CPU not the instructions.
    pub fn new(
        job: &Job,
        network: Network,
        batch_max: usize,
        pool: Pool,
        isa: Isa,
    ) -> Result<Self, Failure> {
        let inner = job.is_local().then(|| Inner::new(job, &network.layout));
        let gradients = Arena::new(network.layout.len).doing("memory for the gradients")?;
        let network = Model::new(network, job.precision, job.conv, batch_max, pool, isa);
        let mut network = network.doing("memory for a step")?;
        network.smooth_labels(job.recipe.label_smoothing);
        Ok(Self { job: job.clone(), network, isa, batch: Batch::default(), gradients, inner })
    }

    /// The layers.
    pub fn network(&self) -> &Network {
        self.network.network()
    }

    /// What was computed last.
    pub fn gradients(&self) -> &[f32] {
        self.gradients.as_slice()
    }

    /// Computes the round that begins with `step`; nothing where it was stopped, and where that was before the
    /// parameters were all there, the contribution before is as it was.
    ///
    /// # Errors
    /// When pictures cannot be read any more, or are others than they were.
    pub fn compute(
        &mut self,
        share: &mut Share,
        params: &mut [f32],
        step: u64,
        steps: u64,
        watch: &mut impl Watch,
    ) -> Result<Option<Computed>, DataError> {
        match self.inner {
            None => self.single(share, params, [step, steps], watch),
            Some(_) => self.several(share, params, step, steps, watch),
        }
    }

    /// One step, whose gradients are contributed while the backward pass runs.
    fn single(
        &mut self,
        Share { feed, contribution }: &mut Share,
        params: &mut [f32],
        [step, steps]: [u64; 2],
        watch: &mut impl Watch,
    ) -> Result<Option<Computed>, DataError> {
        self.network.freeze(self.job.norm.is_frozen(step, steps));
        feed.fill(step, steps, &mut self.batch)?;
        let samples = self.batch.len() as u32;
        let mut await_end = |params: &mut [f32], end| watch.await_end(params, end);
        if !self.network.forward(params, &self.batch, &mut await_end) {
            return Ok(None);
        }
        contribution.begin(step, self.job.round_len(step, steps));
        let pushed = |part: Bucket| {
            watch.part(step);
            contribution.take(samples, &part);
            let (start, gradients) = (part.range.start, part.gradients);
            watch.send(contribution, Tail { start, gradients });
        };
        let gradients = self.gradients.as_mut_slice();
        let loss = self.network.backward(params, &self.batch, gradients, Pieces::Whole, pushed);
        Ok(Some(Computed { last: step, loss, samples }))
    }

    /// The steps of a round without the server, and the contribution of what they changed.
    fn several(
        &mut self,
        Share { feed, contribution }: &mut Share,
        params: &mut [f32],
        first: u64,
        steps: u64,
        watch: &mut impl Watch,
    ) -> Result<Option<Computed>, DataError> {
        let Some(inner) = &mut self.inner else { return Ok(None) };
        let isa = self.isa;
        inner.begin(params);
        let (mut losses, mut samples) = (0.0, 0);
        let count = self.job.round_len(first, steps);
        contribution.begin(first, count);
        let end = first + count;
        for step in first..end {
            feed.fill(step, steps, &mut self.batch)?;
            let rate = self.job.schedule.rate(step, steps);
            self.network.freeze(self.job.norm.is_frozen(step, steps));
            let update = |part: Bucket| {
                watch.part(step);
                inner.update(isa, rate, part);
            };
            let gradients = self.gradients.as_mut_slice();
            let loss = self.network.step(params, &self.batch, gradients, Pieces::Small, update);
            losses += f64::from(loss) * self.batch.len() as f64;
            samples += self.batch.len() as u32;
            if watch.is_stopped() {
                return Ok(None);
            }
        }
        let gradients = self.gradients.as_mut_slice();
        inner.difference(params, gradients);
        let loss = (losses / f64::from(samples)) as f32;
        contribution.take(samples, &Bucket { loss, range: 0..gradients.len(), params, gradients });
        watch.send(contribution, Tail { start: 0, gradients });
        Ok(Some(Computed { last: end - 1, loss, samples }))
    }
}

impl Share {
    /// A worker's part in a job, which has contributed nothing yet.
    pub fn new(job: &Job, worker: u16, data: Dataset, layout: &Layout, isa: Isa) -> Self {
        let cells = Cells::of_gradients(job, layout, CELL, isa);
        let contribution = Contribution::new(cells, layout.trained);
        Self { feed: Feed::new(data, Sampler::of(job, worker)), contribution }
    }
}
