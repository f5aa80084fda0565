//! CIFAR-10's binary files.
//!
//! A record is one label byte and 3,072 pixel bytes: 32x32 red, then green, then blue, row by row.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::data::dataset::{Dataset, Shard, Split};
use crate::job::Normalisation;
use crate::job::shape::Shape;

/// Bytes of a record.
pub const RECORD_LEN: usize = 1 + Shape::CIFAR.channels * Shape::CIFAR.side * Shape::CIFAR.side;
/// Names of the classes.
pub const CLASS_NAMES: [&str; Shape::CIFAR.classes] =
    ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

/// Largest file that is read.
const FILE_LEN_MAX: u64 = 4 << 30;

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
                Shape::CIFAR.classes - 1
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

/// Reads the files of a split, `test_batch.bin` or `data_batch_*.bin` in name order, and keeps the shard's records.
///
/// # Errors
/// When a file is missing, truncated or holds a wrong label; the error names file and offset.
pub fn read(directory: &Path, split: Split, shard: Option<Shard>) -> Result<Dataset, DataError> {
    let files = match split {
        Split::Test => vec![directory.join("test_batch.bin")],
        Split::Train => training_files(directory)?,
    };
    let mut records = Vec::new();
    for path in files {
        let mut bytes = Vec::new();
        let unreadable = |error| DataError::Read(path.clone(), error);
        let file = File::open(&path).map_err(unreadable)?;
        let len = file.metadata().map_err(unreadable)?.len();
        if len > FILE_LEN_MAX {
            return Err(DataError::TooLarge(path, len));
        }
        file.take(FILE_LEN_MAX).read_to_end(&mut bytes).map_err(unreadable)?;
        check(&path, &bytes)?;
        records.extend(bytes);
    }
    let all = of_whole(records);
    let kept = shard.map_or_else(|| all.clone(), |shard| all.shard(shard));
    if kept.is_empty() {
        let what = shard.map_or("record".into(), |Shard { index, of }| {
            format!("record for shard {index}/{of}")
        });
        return Err(DataError::Empty(directory.into(), what));
    }
    Ok(kept)
}

/// Makes a data set of records.
///
/// # Errors
/// When one is not whole, or its label is no class.
pub fn from_records(records: Vec<u8>) -> Result<Dataset, DataError> {
    check(Path::new("records"), &records)?;
    Ok(of_whole(records))
}

fn of_whole(records: Vec<u8>) -> Dataset {
    Dataset::new(Shape::CIFAR, Normalisation::Cifar, records)
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

fn check(path: &Path, bytes: &[u8]) -> Result<(), DataError> {
    let (records, rest) = bytes.as_chunks::<RECORD_LEN>();
    for (index, record) in records.iter().enumerate() {
        if usize::from(record[0]) >= Shape::CIFAR.classes {
            let offset = (index * RECORD_LEN) as u64;
            return Err(DataError::Label(path.into(), offset, record[0]));
        }
    }
    if !rest.is_empty() {
        let offset = (bytes.len() - rest.len()) as u64;
        return Err(DataError::Truncated(path.into(), offset, rest.len()));
    }
    Ok(())
}

/// Fuzzing entry: whatever parses has whole records with valid labels and gives finite batches.
#[cfg(any(test, fuzzing))]
pub fn fuzz(data: &[u8]) {
    use crate::data::batch::Batch;
    use crate::data::sampler::Sampler;
    use crate::job::{Augment, Order};

    match from_records(data.to_vec()) {
        Ok(set) => {
            assert_eq!(set.records(), data);
            assert_eq!(set.len() * RECORD_LEN, data.len());
            if set.is_empty() {
                return;
            }
            let mut batch = Batch::default();
            Sampler::new(1, 3, Order::Shuffled, Augment::Standard).fill(&set, 5, &mut batch);
            assert!(batch.labels.iter().all(|&label| usize::from(label) < Shape::CIFAR.classes));
            assert!(batch.images.iter().all(|value| value.abs() < 3.0));
        }
        Err(DataError::Label(_, offset, label)) => {
            assert_eq!(data[usize::try_from(offset).expect("an offset in memory")], label);
            assert!(usize::from(label) >= Shape::CIFAR.classes);
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
        let error = from_records(bytes).expect_err("truncated").to_string();
        assert_eq!(error, "records: truncated record at offset 6146: 100 of 3073 bytes");
        let mut bytes = records(3);
        bytes[RECORD_LEN] = 10;
        let error = from_records(bytes).expect_err("label").to_string();
        assert_eq!(error, "records: label 10 at offset 3073, expected 0 to 9");
    }
}
