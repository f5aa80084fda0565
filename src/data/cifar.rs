//! CIFAR-10 binary files, and batches of them as a pure function of (seed, epoch, sample).
//!
//! A record is one label byte and 3,072 pixel bytes: 32x32 red, then green, then blue, row by row.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::data::merkle::Tree;
use crate::job::rng::Stream;
use crate::job::{Augment, Job, Order};

/// Height and width of an image.
pub const SIDE: usize = 32;
/// Colours of an image.
pub const COLOURS: usize = 3;
/// Classes of the data set.
pub const CLASSES: usize = 10;
/// Bytes of a record.
pub const RECORD_LEN: usize = 1 + COLOURS * SIDE * SIDE;
/// Names of the classes.
pub const CLASS_NAMES: [&str; CLASSES] =
    ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

/// Mean of each colour over the training images, of pixels in 0..1.
pub const MEAN: [f32; COLOURS] = [0.4914, 0.4822, 0.4465];
/// Standard deviation of each colour.
pub const DEVIATION: [f32; COLOURS] = [0.2470, 0.2435, 0.2616];

/// Largest file that is read.
const FILE_LEN_MAX: u64 = 4 << 30;
/// Pixels of padding around an image before a random crop.
const PADDING: usize = 4;

/// Labelled images in memory.
#[derive(Clone, Debug, Default)]
pub struct Dataset {
    /// Records one after the other, as in the files.
    records: Vec<u8>,
}

/// Which files of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// `test_batch.bin`.
    Test,
    /// `data_batch_*.bin`, in name order.
    Train,
}

/// Every `of`-th record, from `index` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Which one, from 0.
    pub index: usize,
    /// Of how many.
    pub of: usize,
}

/// One batch: images `[32][32][n][3]`, normalised, and their labels.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Pixels in the order of the kernels.
    pub images: Vec<f32>,
    /// One class an image.
    pub labels: Vec<u8>,
}

/// Why data cannot be used.
#[derive(Debug)]
pub enum DataError {
    /// The directory has none of the files, or they hold no record (of the shard).
    Empty(PathBuf, String),
    /// A label that is no class.
    Label(PathBuf, u64, u8),
    /// The system refused to read.
    Read(PathBuf, std::io::Error),
    /// The file is larger than any CIFAR-10 file.
    TooLarge(PathBuf, u64),
    /// The file ends inside a record.
    Truncated(PathBuf, u64, usize),
}

impl fmt::Display for DataError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Empty(path, what) => write!(f, "{}: no {what} here", path.display()),
            Self::Label(path, offset, label) => write!(
                f,
                "{}: label {label} at offset {offset}, expected 0 to {}",
                path.display(),
                CLASSES - 1
            ),
            Self::Read(path, error) => write!(f, "{}: {error}", path.display()),
            Self::TooLarge(path, len) => {
                write!(f, "{}: {len} bytes, more than {FILE_LEN_MAX}", path.display())
            }
            Self::Truncated(path, offset, len) => write!(
                f,
                "{}: truncated record at offset {offset}: {len} of {RECORD_LEN} bytes",
                path.display()
            ),
        }
    }
}

impl std::error::Error for DataError {}

impl std::str::FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (index, of) = text.split_once('/').ok_or("expected I/N, such as 0/2")?;
        let number = |text: &str| text.parse().map_err(|_| format!("'{text}' is no number"));
        let (index, of) = (number(index)?, number(of)?);
        if index >= of {
            return Err(format!("shard {index} of {of}: shards count from 0"));
        }
        Ok(Self { index, of })
    }
}

impl Dataset {
    /// Reads the files of a split and keeps the shard's records.
    ///
    /// # Errors
    /// When a file is missing, truncated or holds a wrong label; the error names file and offset.
    pub fn read(directory: &Path, split: Split, shard: Option<Shard>) -> Result<Self, DataError> {
        let files = match split {
            Split::Test => vec![directory.join("test_batch.bin")],
            Split::Train => training_files(directory)?,
        };
        let mut all = Self::default();
        for path in files {
            let mut bytes = Vec::new();
            let unreadable = |error| DataError::Read(path.clone(), error);
            let file = File::open(&path).map_err(unreadable)?;
            let len = file.metadata().map_err(unreadable)?.len();
            if len > FILE_LEN_MAX {
                return Err(DataError::TooLarge(path, len));
            }
            file.take(FILE_LEN_MAX).read_to_end(&mut bytes).map_err(unreadable)?;
            all.records.extend(parse(&path, bytes)?.records);
        }
        let kept = match shard {
            None => all,
            Some(shard) => all.shard(shard),
        };
        if kept.is_empty() {
            let what = shard.map_or("record".into(), |Shard { index, of }| {
                format!("record for shard {index}/{of}")
            });
            return Err(DataError::Empty(directory.into(), what));
        }
        Ok(kept)
    }

    /// Makes a data set of records; each must be a whole one with a valid label.
    pub fn from_records(records: Vec<u8>) -> Result<Self, DataError> {
        parse(Path::new("records"), records)
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.records.len() / RECORD_LEN
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// The class of an image.
    pub fn label(&self, index: usize) -> u8 {
        self.records[index * RECORD_LEN]
    }

    /// All records, as in a file.
    pub fn records(&self) -> &[u8] {
        &self.records
    }

    /// What these records are, in 32 bytes: the root of a Merkle tree over them in their order.
    pub fn digest(&self) -> [u8; 32] {
        let mut tree = Tree::default();
        self.records.chunks_exact(RECORD_LEN).for_each(|record| tree.push(&[record]));
        tree.root()
    }

    fn pixels(&self, index: usize) -> &[u8] {
        &self.records[index * RECORD_LEN + 1..][..RECORD_LEN - 1]
    }

    fn shard(&self, shard: Shard) -> Self {
        let kept = self.records.chunks_exact(RECORD_LEN).skip(shard.index).step_by(shard.of);
        Self { records: kept.flatten().copied().collect() }
    }

    /// The images `first..first + n`, as they are.
    pub fn batch(&self, first: usize, n: usize, batch: &mut Batch) {
        batch.resize(n);
        for i in 0..n {
            batch.put(i, self.label(first + i), self.pixels(first + i), View::default());
        }
    }
}

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
            merges_single: Job::needs_two(job.stem),
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
        batch.resize(indexes.len());
        let stream = Stream::new(self.seed, "augment");
        for (i, &index) in indexes.iter().enumerate() {
            let view = match self.augment {
                Augment::None => View::default(),
                Augment::Standard => View::random(stream.words(sample(epoch, index))),
            };
            batch.put(i, data.label(index as usize), data.pixels(index as usize), view);
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

/// A crop of the padded image, perhaps mirrored.
#[derive(Clone, Copy)]
struct View {
    top: usize,
    left: usize,
    flip: bool,
}

impl Default for View {
    fn default() -> Self {
        Self { top: PADDING, left: PADDING, flip: false }
    }
}

impl View {
    fn random([a, b, c, _]: [u32; 4]) -> Self {
        let offsets = 2 * PADDING as u32 + 1;
        Self { top: (a % offsets) as usize, left: (b % offsets) as usize, flip: c & 1 == 1 }
    }
}

impl Batch {
    /// Number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    fn resize(&mut self, n: usize) {
        self.labels.resize(n, 0);
        self.images.resize(n * SIDE * SIDE * COLOURS, 0.0);
    }

    fn put(&mut self, i: usize, label: u8, pixels: &[u8], view: View) {
        self.labels[i] = label;
        let n = self.len();
        for h in 0..SIDE {
            for w in 0..SIDE {
                let column = if view.flip { SIDE - 1 - w } else { w };
                let source = source(h + view.top).zip(source(column + view.left));
                let target = &mut self.images[((h * SIDE + w) * n + i) * COLOURS..][..COLOURS];
                for (colour, target) in target.iter_mut().enumerate() {
                    // The padding is black, like PyTorch's RandomCrop before normalisation.
                    let value = source.map_or(0, |(y, x)| pixels[(colour * SIDE + y) * SIDE + x]);
                    *target = (f32::from(value) / 255.0 - MEAN[colour]) / DEVIATION[colour];
                }
            }
        }
    }
}

/// The image's row or column behind one of the padded image.
fn source(padded: usize) -> Option<usize> {
    padded.checked_sub(PADDING).filter(|&at| at < SIDE)
}

fn training_files(directory: &Path) -> Result<Vec<PathBuf>, DataError> {
    let unreadable = |error| DataError::Read(directory.into(), error);
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(unreadable)? {
        let name = entry.map_err(unreadable)?.file_name();
        let matches =
            name.to_str().is_some_and(|n| n.starts_with("data_batch") && n.ends_with(".bin"));
        if matches {
            files.push(directory.join(name));
        }
    }
    if files.is_empty() {
        return Err(DataError::Empty(directory.into(), "data_batch_*.bin file".into()));
    }
    files.sort();
    Ok(files)
}

fn parse(path: &Path, bytes: Vec<u8>) -> Result<Dataset, DataError> {
    let (records, rest) = bytes.as_chunks::<RECORD_LEN>();
    for (index, record) in records.iter().enumerate() {
        if usize::from(record[0]) >= CLASSES {
            let offset = (index * RECORD_LEN) as u64;
            return Err(DataError::Label(path.into(), offset, record[0]));
        }
    }
    if !rest.is_empty() {
        let offset = (bytes.len() - rest.len()) as u64;
        return Err(DataError::Truncated(path.into(), offset, rest.len()));
    }
    Ok(Dataset { records: bytes })
}

/// Fuzzing entry: whatever parses has whole records with valid labels and gives finite batches.
#[cfg(any(test, fuzzing))]
pub fn fuzz(data: &[u8]) {
    match Dataset::from_records(data.to_vec()) {
        Ok(set) => {
            assert_eq!(set.records(), data);
            assert_eq!(set.len() * RECORD_LEN, data.len());
            if set.is_empty() {
                return;
            }
            let mut batch = Batch::default();
            Sampler::new(1, 3, Order::Shuffled, Augment::Standard).fill(&set, 5, &mut batch);
            assert!(batch.labels.iter().all(|&label| usize::from(label) < CLASSES));
            assert!(batch.images.iter().all(|value| value.abs() < 3.0));
        }
        Err(DataError::Label(_, offset, label)) => {
            assert_eq!(data[usize::try_from(offset).expect("an offset in memory")], label);
            assert!(usize::from(label) >= CLASSES);
        }
        Err(DataError::Truncated(_, offset, len)) => {
            assert_eq!(offset + len as u64, data.len() as u64);
        }
        Err(other) => panic!("no file is read here: {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(n: usize) -> Vec<u8> {
        (0..n)
            .flat_map(|i| {
                std::iter::once((i % 10) as u8)
                    .chain((1..RECORD_LEN).map(move |j| (i * 7 + j) as u8))
            })
            .collect()
    }

    #[test]
    fn a_rest_of_one_is_part_of_the_batch_before() {
        let set = Dataset::from_records(crate::data::synthetic::records(1, 9)).expect("records");
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
    fn seeds_of_the_fuzz_target_replay() {
        let seeds = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/cifar");
        for entry in std::fs::read_dir(seeds).expect("seeds") {
            fuzz(&std::fs::read(entry.expect("entry").path()).expect("a seed"));
        }
        fuzz(&records(4));
    }

    #[test]
    fn truncated_and_mislabelled_records_are_named_by_offset() {
        let mut bytes = records(3);
        bytes.truncate(2 * RECORD_LEN + 100);
        let error = Dataset::from_records(bytes).expect_err("truncated").to_string();
        assert_eq!(error, "records: truncated record at offset 6146: 100 of 3073 bytes");
        let mut bytes = records(3);
        bytes[RECORD_LEN] = 10;
        let error = Dataset::from_records(bytes).expect_err("label").to_string();
        assert_eq!(error, "records: label 10 at offset 3073, expected 0 to 9");
    }

    #[test]
    fn an_epoch_visits_every_sample_once_and_ends_with_a_short_batch() {
        let data = Dataset::from_records(records(10)).expect("valid");
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
        let data = Dataset::from_records(records(9)).expect("valid");
        let (mut one, mut two) = (Batch::default(), Batch::default());
        let mut sampler = Sampler::new(3, 4, Order::Shuffled, Augment::Standard);
        sampler.fill(&data, 7, &mut one);
        sampler.fill(&data, 2, &mut two);
        sampler.fill(&data, 7, &mut two);
        assert_eq!(one.images, two.images);
        Sampler::new(4, 4, Order::Shuffled, Augment::Standard).fill(&data, 7, &mut two);
        assert_ne!(one.images, two.images);
    }

    #[test]
    fn images_are_normalised_and_pixel_major() {
        let data = Dataset::from_records(records(2)).expect("valid");
        let mut batch = Batch::default();
        data.batch(0, 2, &mut batch);
        let (h, w, colour) = (5, 9, 2);
        for i in 0..2 {
            let byte = data.records()[i * RECORD_LEN + 1 + (colour * SIDE + h) * SIDE + w];
            let want = (f32::from(byte) / 255.0 - MEAN[colour]) / DEVIATION[colour];
            assert_eq!(batch.images[((h * SIDE + w) * 2 + i) * COLOURS + colour], want);
        }
    }

    #[test]
    fn shards_part_the_data() {
        let data = Dataset::from_records(records(7)).expect("valid");
        let lens: Vec<usize> =
            (0..3).map(|index| data.shard(Shard { index, of: 3 }).len()).collect();
        assert_eq!(lens, [3, 2, 2]);
        assert_eq!(data.shard(Shard { index: 1, of: 3 }).label(1), 4);
        assert!("3/3".parse::<Shard>().is_err() && "1".parse::<Shard>().is_err());
    }
}
