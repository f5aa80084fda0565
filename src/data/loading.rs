//! From pictures to records: in memory where they fit, else read again whenever they are needed.
//!
//! Both give the same bytes. What is read again is compared with what it was at first, by its hash in the Merkle tree
//! that the worker joined with: files that are changed under way end the worker instead of its evidence being wrong.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::data::error::DataError;
use crate::data::merkle::leaf;
use crate::data::parallel::on_threads;
use crate::data::pixels::Pixels;
use crate::data::place::Place;
use crate::data::record::Form;
use crate::memory;
use crate::progress::{Progress, Unit};

/// How a data set is loaded.
#[derive(Clone, Copy, Debug)]
pub struct Loading {
    /// Threads that read and decode.
    pub threads: usize,
    /// Bytes that records may take in memory.
    pub room: u64,
}

impl Loading {
    /// Where all else that takes memory is there already.
    pub fn beside_all(threads: usize) -> Self {
        Self { threads, room: memory::left().map_or(u64::MAX, |left| left.bytes / 8 * 7) }
    }
}

/// Pictures that can be read, and read again.
#[derive(Debug)]
pub(super) struct Pictures {
    pub(super) place: Place,
    pub(super) pixels: Pixels,
    /// The job's number of each one's class.
    pub(super) labels: Vec<u8>,
    pub(super) form: Form,
    pub(super) skips_broken: bool,
    pub(super) threads: usize,
}

/// Records, wherever they are.
#[derive(Clone, Debug)]
pub(super) enum Kept {
    Memory(Vec<Box<[u8]>>),
    Away(std::sync::Arc<Away>),
}

/// Records that are read when they are needed.
#[derive(Debug)]
pub(super) struct Away {
    pictures: Pictures,
    entries: Vec<Entry>,
}

/// A record that is not in memory: the picture's number, and the record's leaf in the Merkle tree.
#[derive(Debug)]
struct Entry {
    index: usize,
    leaf: [u8; 32],
}

/// A record as it was read for the first time.
struct First {
    entry: Entry,
    record: Option<Box<[u8]>>,
}

impl Pictures {
    /// Reads all of them once, and keeps their records if there is room for all.
    pub(super) fn load(self, room: u64) -> Result<Kept, DataError> {
        let taken = AtomicU64::new(0);
        let known = self.form.len().map(|len| (len * self.labels.len()) as u64);
        let is_known_to_fit = known.is_some_and(|len| len <= room);
        let progress = Progress::new("decoded", self.labels.len() as u64, Unit::Images);
        let firsts = on_threads(self.threads, self.labels.len(), |index| {
            let record = match self.record(index) {
                Err(why @ DataError::Picture(..)) if self.skips_broken => return Ok(Err(why)),
                read => read?,
            };
            progress.advance(1);
            let len = record.len() as u64;
            let fits = is_known_to_fit || taken.fetch_add(len, Ordering::Relaxed) + len <= room;
            // What is sure to stay in memory is never compared.
            let leaf = if is_known_to_fit { [0; 32] } else { leaf(&[&record]) };
            let record = fits.then(|| record.into_boxed_slice());
            Ok::<_, DataError>(Ok(First { entry: Entry { index, leaf }, record }))
        })?;
        drop(progress);
        let firsts = self.whole(firsts)?;
        if firsts.iter().all(|first| first.record.is_some()) {
            return Ok(Kept::Memory(firsts.into_iter().filter_map(|first| first.record).collect()));
        }
        log::info!(
            "{}: more than the {} MiB that pictures may take; they are read as they are needed",
            self.place.root().display(),
            room >> 20
        );
        let entries = firsts.into_iter().map(|first| first.entry).collect();
        Ok(Kept::Away(Away { pictures: self, entries }.into()))
    }

    fn record(&self, index: usize) -> Result<Vec<u8>, DataError> {
        self.pixels.record(&self.place, index, self.form, self.labels[index])
    }

    /// Those that are not broken; the others are named in the log.
    fn whole(&self, all: Vec<Result<First, DataError>>) -> Result<Vec<First>, DataError> {
        let count = all.len();
        let mut whole = Vec::with_capacity(count);
        for one in all {
            match one {
                Ok(first) => whole.push(first),
                Err(why) => log::warn!("skipped {why}"),
            }
        }
        if whole.len() < count {
            let root = self.place.root();
            log::warn!("{}: {} of {count} skipped", root.display(), count - whole.len());
            if whole.is_empty() {
                return Err(DataError::Empty(root.into(), "whole picture".into()));
            }
        }
        Ok(whole)
    }
}

impl Away {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn threads(&self) -> usize {
        self.pictures.threads
    }

    pub(super) fn label(&self, at: usize) -> u8 {
        self.pictures.labels[self.entries[at].index]
    }

    /// Leaves of the Merkle tree.
    pub(super) fn leaves(&self) -> impl Iterator<Item = [u8; 32]> + '_ {
        self.entries.iter().map(|entry| entry.leaf)
    }

    /// A record, if it is what it was.
    pub(super) fn read(&self, at: usize) -> Result<Vec<u8>, DataError> {
        let Entry { index, leaf: expected } = &self.entries[at];
        let record = self.pictures.record(*index)?;
        match leaf(&[&record]) == *expected {
            true => Ok(record),
            false => Err(DataError::Changed(self.pictures.pixels.title(*index).into())),
        }
    }
}
