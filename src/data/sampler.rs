//! `Sampler`: which images make the batch of a step, as a pure function of (seed, epoch, sample).

use crate::data::batch::{Batch, Image, View};
use crate::data::dataset::Dataset;
use crate::data::error::DataError;
use crate::data::resize::{ATTEMPTS, Part};
use crate::job::recipe::Flip;
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
    /// Which images are mirrored, where they are cropped.
    pub flip: Flip,
    /// Side of the square that is cut out of each, if that is not 0.
    pub cutout: usize,
    /// Whether a rest of one sample is part of the batch before it.
    pub merges_single: bool,
    epoch: Option<u64>,
    indexes: Vec<u32>,
}

impl Sampler {
    /// A sampler; workers with equal data need seeds of their own.
    pub fn new(seed: u64, batch_size: usize, order: Order, augment: Augment) -> Self {
        let (epoch, indexes) = (None, Vec::new());
        let (flip, cutout) = (Flip::Random, 0);
        Self {
            seed,
            batch_size,
            order,
            augment,
            flip,
            cutout,
            merges_single: false,
            epoch,
            indexes,
        }
    }

    /// The sampler of a worker's part in a job.
    pub fn of(job: &Job, worker: u16) -> Self {
        Self {
            merges_single: job.needs_two(),
            flip: job.recipe.flip,
            cutout: job.recipe.cutout as usize,
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
    ///
    /// # Errors
    /// When pictures that are not in memory cannot be read, or are others than they were.
    pub fn fill(&mut self, data: &Dataset, step: u64, batch: &mut Batch) -> Result<(), DataError> {
        let batches = self.batches(data.len());
        let (epoch, position) = (step / batches, (step % batches) as usize);
        self.arrange(epoch, data.len());
        let rest = &self.indexes[position * self.batch_size..];
        let is_last = position as u64 + 1 == batches;
        let indexes = if is_last { rest } else { &rest[..self.batch_size] };
        let side = data.shape().side;
        let view = |index: u32, image: &Image| self.view(epoch, index, image.size, side);
        data.put_all(indexes, view, batch)
    }

    /// How a sample is seen in an epoch: an image of that size, by a network of images of that side.
    fn view(&self, epoch: u64, index: u32, size: [usize; 2], side: usize) -> View {
        if self.augment == Augment::None {
            return View::default();
        }
        let stream = Stream::new(self.seed, "augment");
        let view = View::random(stream.words(sample(epoch, index)));
        let flip = match self.flip {
            Flip::Random => view.flip,
            // As in the first epoch, and the other way round in every second one.
            Flip::Alternating => {
                View::random(stream.words(sample(0, index))).flip ^ !epoch.is_multiple_of(2)
            }
            Flip::None => false,
        };
        let view = view.mirrored_if(flip);
        let view = match self.augment {
            Augment::None | Augment::Standard => view,
            Augment::Resized | Augment::Parts => view.of_part(Part::random(size, |attempt| {
                Stream::new(self.seed, PARTS[attempt]).words(sample(epoch, index))
            })),
        };
        match self.cutout {
            0 => view,
            cutout => {
                let words = Stream::new(self.seed, "cutout").words(sample(epoch, index));
                view.cut_out(cutout, side, words)
            }
        }
    }

    /// Sorts the samples by a random key, a pure function of (seed, epoch, sample).
    fn arrange(&mut self, epoch: u64, samples: usize) {
        if self.epoch == Some(epoch) && self.indexes.len() == samples {
            return;
        }
        self.epoch = Some(epoch);
        self.indexes =
            (0..u32::try_from(samples).expect("no more images than samplers count")).collect();
        if self.order == Order::Shuffled {
            let stream = Stream::new(self.seed, "order");
            self.indexes.sort_by_cached_key(|&index| {
                let [a, b, ..] = stream.words(sample(epoch, index));
                (a, b, index)
            });
        }
    }
}

/// The streams of a part's attempts.
const PARTS: [&str; ATTEMPTS] = [
    "part 0", "part 1", "part 2", "part 3", "part 4", "part 5", "part 6", "part 7", "part 8",
    "part 9",
];

fn sample(epoch: u64, index: u32) -> u64 {
    (epoch << 32) | u64::from(index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::cifar::numbered;
    use crate::job::Normalisation;
    use crate::job::shape::Shape;

    #[test]
    fn a_rest_of_one_is_part_of_the_batch_before() {
        let set = numbered(9);
        let lens = |merges_single| {
            let sampler = Sampler::new(1, 4, Order::Sequential, Augment::None);
            let mut sampler = Sampler { merges_single, ..sampler };
            let mut batch = Batch::default();
            let mut len = |step| {
                sampler.fill(&set, step, &mut batch).expect("in memory");
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
                sampler.fill(&data, epoch * 3 + position, &mut batch).expect("in memory");
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
        sampler.fill(&data, 7, &mut one).expect("in memory");
        sampler.fill(&data, 2, &mut two).expect("in memory");
        sampler.fill(&data, 7, &mut two).expect("in memory");
        assert_eq!(one.images, two.images);
        Sampler::new(4, 4, Order::Shuffled, Augment::Standard)
            .fill(&data, 7, &mut two)
            .expect("in memory");
        assert_ne!(one.images, two.images);
    }

    /// A sample as it is seen in an epoch, alone in its batch.
    fn seen(sampler: &mut Sampler, data: &Dataset, epoch: u64) -> Vec<f32> {
        let mut batch = Batch::default();
        sampler.fill(data, epoch, &mut batch).expect("in memory");
        batch.images
    }

    #[test]
    fn alternating_flips_show_each_side_in_every_second_epoch() {
        // An image whose left half is dark, so that a crop keeps its sides apart.
        let bytes = (0..3072).map(|at| if at % 32 < 16 { 10 } else { 200 });
        let data = crate::data::cifar::from_records(std::iter::once(0).chain(bytes).collect());
        let data = data.expect("a record");
        let is_flipped = |flip, seed, epoch| {
            let plain = Sampler::new(seed, 1, Order::Sequential, Augment::Standard);
            let images = seen(&mut Sampler { flip, ..plain }, &data, epoch);
            let row: Vec<f32> = images[16 * 96..17 * 96].iter().step_by(3).copied().collect();
            row[8] > row[23]
        };
        let mut first = Vec::new();
        for seed in 0..20 {
            let flips = [0, 1, 2, 3].map(|epoch| is_flipped(Flip::Alternating, seed, epoch));
            assert_eq!(flips, [flips[0], !flips[0], flips[0], !flips[0]], "seed {seed}");
            assert_eq!(flips[0], is_flipped(Flip::Random, seed, 0));
            assert!(!is_flipped(Flip::None, seed, 0) && !is_flipped(Flip::None, seed, 1));
            first.push(flips[0]);
        }
        assert!(first.contains(&true) && first.contains(&false));
    }

    #[test]
    fn a_square_is_cut_out_somewhere_else_in_each_epoch() {
        let bytes = std::iter::once(0).chain(std::iter::repeat_n(255, 3072)).collect();
        let data = crate::data::cifar::from_records(bytes).expect("a record");
        let plain = Sampler::new(3, 1, Order::Sequential, Augment::Standard);
        let mut sampler = Sampler { cutout: 9, ..plain };
        let mut places = Vec::new();
        for epoch in 0..12 {
            let images = seen(&mut sampler, &data, epoch);
            let holes: Vec<usize> =
                (0..1024).filter(|pixel| images[3 * pixel..3 * pixel + 3] == [0.0; 3]).collect();
            let [rows, columns] = [32, 1].map(|by| {
                let at = holes.iter().map(|pixel| pixel / by % 32);
                at.clone().max().unwrap_or(0) - at.min().unwrap_or(0) + 1
            });
            assert_eq!(rows * columns, holes.len(), "a rectangle");
            assert!((5..=9).contains(&rows) && (5..=9).contains(&columns), "{rows} x {columns}");
            places.push(holes[0]);
        }
        places.dedup();
        assert!(places.len() > 6, "{places:?}");
        let again = seen(&mut sampler.clone(), &data, 5);
        assert_eq!(seen(&mut sampler, &data, 5), again);
    }

    #[test]
    fn parts_of_larger_pictures_are_a_pure_function_of_seed_epoch_and_sample() {
        for (side, kept) in [(64, 73), (224, 256)] {
            let shape = Shape { side, ..Shape::CIFAR };
            let records = (0..2_u8).flat_map(|label| {
                let pixels = (0..3 * kept * kept).map(move |at| (at / 7 + at % kept) as u8);
                std::iter::once(label).chain(pixels)
            });
            let data = Dataset::larger(shape, Normalisation::Imagenet, kept, records.collect());
            let new = |seed| Sampler::new(seed, 2, Order::Sequential, Augment::Resized);
            let fill = |sampler: &mut Sampler, epoch| {
                let mut batch = Batch::default();
                sampler.fill(&data, epoch, &mut batch).expect("in memory");
                batch
            };
            let mut sampler = new(3);
            let first = fill(&mut sampler, 0);
            assert_eq!((first.labels.len(), first.images.len()), (2, 2 * shape.image_len()));
            let second = fill(&mut sampler, 1);
            assert_ne!(first.images, second.images);
            assert_eq!(first.images, fill(&mut sampler, 0).images);
            assert_ne!(first.images, fill(&mut new(4), 0).images);
            // Evaluated is the centre.
            let (mut centre, mut whole) = (Batch::default(), new(3));
            whole.augment = Augment::None;
            data.batch(0, 2, &mut centre).expect("in memory");
            assert_eq!(centre.images, fill(&mut whole, 5).images);
            let margin = (kept - side) / 2;
            let byte = data.records()[1 + margin * kept + margin];
            let [mean, deviation] = Normalisation::Imagenet.constants();
            assert_eq!(centre.images[0], (f32::from(byte) / 255.0 - mean[0]) / deviation[0]);
        }
    }
}
