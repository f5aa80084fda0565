//! `Sampler`: which images make the batch of a step, as a pure function of (seed, epoch, sample).

use crate::data::batch::{Batch, View};
use crate::data::dataset::Dataset;
use crate::job::rng::Stream;
use crate::job::{Augment, Job, Order};

/// Which samples make the batch of a step, and how they are changed.
#[derive(Clone, Debug)]
pub struct Sampler {
    /// Seed of order and augmentation.
    pub seed: u64,
    /// Samples of a batch; the last one of an epoch may be shorter.
    pub batch_size: usize,
    /// Order of samples.
    pub order: Order,
    /// Crop and flip, or none.
    pub augment: Augment,
    /// Whether a rest of one sample is part of the batch before it.
    pub merges_single: bool,
    epoch: Option<u64>,
    indexes: Vec<u32>,
}

impl Sampler {
    /// A sampler; workers with equal data need seeds of their own.
    pub fn new(seed: u64, batch_size: usize, order: Order, augment: Augment) -> Self {
        let (epoch, indexes) = (None, Vec::new());
        Self { seed, batch_size, order, augment, merges_single: false, epoch, indexes }
    }

    /// The sampler of a worker's part in a job.
    pub fn of(job: &Job, worker: u16) -> Self {
        Self {
            merges_single: job.needs_two(),
            // Each worker draws from its own streams: equal data would be augmented differently.
            ..Self::new(
                job.seed.wrapping_add(u64::from(worker) << 32),
                job.batch_size as usize,
                job.order,
                job.augment,
            )
        }
    }

    /// Batches of an epoch over `samples` samples, as [`Job::batches`] counts them.
    pub fn batches(&self, samples: usize) -> u64 {
        let size = self.batch_size;
        let merged = self.merges_single && samples > size && samples % size == 1;
        (samples.div_ceil(size) - usize::from(merged)) as u64
    }

    /// Fills the batch of `step`.
    pub fn fill(&mut self, data: &Dataset, step: u64, batch: &mut Batch) {
        let batches = self.batches(data.len());
        let (epoch, position) = (step / batches, (step % batches) as usize);
        self.arrange(epoch, data.len());
        let rest = &self.indexes[position * self.batch_size..];
        let is_last = position as u64 + 1 == batches;
        let indexes = if is_last { rest } else { &rest[..self.batch_size] };
        batch.resize(data.shape(), indexes.len());
        let stream = Stream::new(self.seed, "augment");
        for (i, &index) in indexes.iter().enumerate() {
            let view = match self.augment {
                Augment::None => View::default(),
                Augment::Standard => View::random(stream.words(sample(epoch, index))),
            };
            data.put(index as usize, view, batch, i);
        }
    }

    /// Sorts the samples by a random key, a pure function of (seed, epoch, sample).
    fn arrange(&mut self, epoch: u64, samples: usize) {
        if self.epoch == Some(epoch) && self.indexes.len() == samples {
            return;
        }
        self.epoch = Some(epoch);
        self.indexes = (0..u32::try_from(samples).expect("a data set fits memory")).collect();
        if self.order == Order::Shuffled {
            let stream = Stream::new(self.seed, "order");
            self.indexes.sort_by_cached_key(|&index| {
                let [a, b, ..] = stream.words(sample(epoch, index));
                (a, b, index)
            });
        }
    }
}

fn sample(epoch: u64, index: u32) -> u64 {
    (epoch << 32) | u64::from(index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::cifar::numbered;

    #[test]
    fn a_rest_of_one_is_part_of_the_batch_before() {
        let set = numbered(9);
        let lens = |merges_single| {
            let sampler = Sampler::new(1, 4, Order::Sequential, Augment::None);
            let mut sampler = Sampler { merges_single, ..sampler };
            let mut batch = Batch::default();
            let mut len = |step| {
                sampler.fill(&set, step, &mut batch);
                batch.len()
            };
            [0, 1, 2, 3].map(&mut len)
        };
        assert_eq!(lens(true), [4, 5, 4, 5]);
        assert_eq!(lens(false), [4, 4, 1, 4]);
    }

    #[test]
    fn an_epoch_visits_every_sample_once_and_ends_with_a_short_batch() {
        let data = numbered(10);
        let mut sampler = Sampler::new(3, 4, Order::Shuffled, Augment::None);
        let mut batch = Batch::default();
        let mut orders = Vec::new();
        for epoch in 0..2 {
            let mut labels = Vec::new();
            for position in 0..3 {
                sampler.fill(&data, epoch * 3 + position, &mut batch);
                assert_eq!(batch.len(), if position == 2 { 2 } else { 4 });
                labels.extend_from_slice(&batch.labels);
            }
            let mut sorted = labels.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..10).collect::<Vec<u8>>());
            orders.push(labels);
        }
        assert_ne!(orders[0], orders[1]);
    }

    #[test]
    fn a_step_is_a_pure_function_of_seed_and_number() {
        let data = numbered(9);
        let (mut one, mut two) = (Batch::default(), Batch::default());
        let mut sampler = Sampler::new(3, 4, Order::Shuffled, Augment::Standard);
        sampler.fill(&data, 7, &mut one);
        sampler.fill(&data, 2, &mut two);
        sampler.fill(&data, 7, &mut two);
        assert_eq!(one.images, two.images);
        Sampler::new(4, 4, Order::Shuffled, Augment::Standard).fill(&data, 7, &mut two);
        assert_ne!(one.images, two.images);
    }
}
