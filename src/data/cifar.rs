//! CIFAR-10's and CIFAR-100's binary files.
//!
//! A record is one label byte (CIFAR-100: two, the coarse one first) and 3,072 pixel bytes: 32x32 red, then green,
//! then blue, row by row.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use crate::data::dataset::{Dataset, Split};
use crate::data::error::DataError;
use crate::data::place::Place;
use crate::data::spans::Spans;
use crate::job::Normalisation;
use crate::job::classes::ClassNames;
use crate::job::shape::Shape;

/// Bytes of a picture.
const PIXELS_LEN: usize = Shape::CIFAR.channels * Shape::CIFAR.side * Shape::CIFAR.side;
/// Bytes of a record of CIFAR-10.
pub const RECORD_LEN: usize = 1 + PIXELS_LEN;
/// Bytes of a record of CIFAR-100.
const RECORD100_LEN: usize = 2 + PIXELS_LEN;

/// Largest file: a device or a log named by mistake must not be read through.
const FILE_LEN_MAX: u64 = 4 << 30;
/// Records that are looked at together.
const TOGETHER: usize = 512;

/// What the files hold: labels, and where the pixels are.
pub(super) struct Records {
    pub(super) classes: ClassNames,
    pub(super) labels: Vec<u8>,
    /// `[3][32][32]` each.
    pub(super) planes: Spans,
}

/// Lists the files of a split: `test_batch.bin` or `data_batch_*.bin` in name order; or CIFAR-100's `test.bin` or
/// `train.bin`.
///
/// # Errors
/// When a file is missing, truncated or holds a wrong label; the error names file and offset.
pub(super) fn read(place: &Place, split: Split) -> Result<Records, DataError> {
    let directory = place.root();
    let hundred = directory.join(match split {
        Split::Test => "test.bin",
        Split::Train => "train.bin",
    });
    let (files, classes) = match split {
        _ if place.is_file(&hundred) => (vec![hundred], ClassNames::cifar100()),
        Split::Test => (vec![directory.join("test_batch.bin")], ClassNames::default()),
        Split::Train => (training_files(place)?, ClassNames::default()),
    };
    let mut all = Records { classes, labels: Vec::new(), planes: Spans::new(PIXELS_LEN) };
    for path in files {
        list(place, path, &mut all)?;
    }
    match all.labels.is_empty() {
        true => Err(DataError::Empty(directory.into(), "record".into())),
        false => Ok(all),
    }
}

/// Adds the records of a file.
fn list(place: &Place, path: PathBuf, all: &mut Records) -> Result<(), DataError> {
    let len = place.len(&path)?;
    if len > FILE_LEN_MAX {
        return Err(DataError::Format(path, format!("{len} bytes, more than {FILE_LEN_MAX}")));
    }
    let record_len = if all.classes.len() > 10 { RECORD100_LEN } else { RECORD_LEN };
    let labels_len = record_len - PIXELS_LEN;
    let mut room = vec![0; record_len * TOGETHER];
    let mut at = 0;
    while at < len {
        let count = usize::try_from(len - at).map_or(room.len(), |left| left.min(room.len()));
        let bytes = &mut room[..count];
        place.read_part(&path, at, bytes)?;
        check(&path, at, bytes, record_len, all.classes.len())?;
        for (number, record) in (0_u64..).zip(bytes.chunks_exact(record_len)) {
            all.labels.push(record[labels_len - 1]);
            all.planes.push(&path, at + number * record_len as u64 + labels_len as u64);
        }
        at += count as u64;
    }
    Ok(())
}

/// Makes a data set of records of CIFAR-10.
///
/// # Errors
/// When one is not whole, or its label is no class.
pub fn from_records(records: Vec<u8>) -> Result<Dataset, DataError> {
    check(Path::new("records"), 0, &records, RECORD_LEN, Shape::CIFAR.classes)?;
    Ok(Dataset::new(Shape::CIFAR, Normalisation::Cifar, records))
}

/// So many records with pixels that tell them apart, for tests of what takes data.
#[cfg(test)]
pub(super) fn numbered(n: usize) -> Dataset {
    let record = |i: usize| {
        let pixels = (1..RECORD_LEN).map(move |j| (i * 7 + j) as u8);
        std::iter::once((i % 10) as u8).chain(pixels)
    };
    from_records((0..n).flat_map(record).collect()).expect("valid")
}

fn training_files(place: &Place) -> Result<Vec<PathBuf>, DataError> {
    let directory = place.root();
    let mut files = place.list(directory)?;
    files.retain(|file| {
        let name = file.file_name().and_then(OsStr::to_str);
        name.is_some_and(|name| name.starts_with("data_batch") && name.ends_with(".bin"))
    });
    if files.is_empty() {
        let what =
            "data_batch_*.bin file, train.bin, train/CLASS/ (or CLASS/ with --hold-out) or .npz";
        return Err(DataError::Empty(directory.into(), what.into()));
    }
    files.sort();
    Ok(files)
}

/// Whether what a file has from `start` on are whole records of known classes.
fn check(
    path: &Path,
    start: u64,
    bytes: &[u8],
    record_len: usize,
    classes: usize,
) -> Result<(), DataError> {
    let records = bytes.chunks_exact(record_len);
    let rest = records.remainder();
    for (index, record) in records.enumerate() {
        let at = record_len - PIXELS_LEN - 1;
        if usize::from(record[at]) >= classes {
            let offset = start + (index * record_len + at) as u64;
            return Err(DataError::Label(path.into(), offset, record[at].into(), classes));
        }
    }
    if !rest.is_empty() {
        let offset = start + (bytes.len() - rest.len()) as u64;
        return Err(DataError::Truncated(path.into(), offset, [rest.len(), record_len]));
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
            let mut sampler = Sampler::new(1, 3, Order::Shuffled, Augment::Standard);
            sampler.fill(&set, 5, &mut batch).expect("in memory");
            assert!(batch.labels.iter().all(|&label| usize::from(label) < Shape::CIFAR.classes));
            assert!(batch.images.iter().all(|value| value.abs() < 3.0));
        }
        Err(DataError::Label(_, offset, label, _)) => {
            let found = data[usize::try_from(offset).expect("an offset in memory")];
            assert_eq!(u64::from(found), label);
            assert!(usize::from(found) >= Shape::CIFAR.classes);
        }
        Err(DataError::Truncated(_, offset, [len, _])) => {
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
