//! `Spans`: byte ranges of one length in files, which are pictures that need no decoder.

use std::path::{Path, PathBuf};

use crate::data::error::DataError;
use crate::data::place::Place;

/// Where pictures of one size are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Spans {
    len: usize,
    files: Vec<PathBuf>,
    at: Vec<Span>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    file: u32,
    offset: u64,
}

impl Spans {
    /// None yet, of so many bytes each.
    pub(super) fn new(len: usize) -> Self {
        Self { len, files: Vec::new(), at: Vec::new() }
    }

    /// Adds one; those of a file come together.
    pub(super) fn push(&mut self, path: &Path, offset: u64) {
        if self.files.last().is_none_or(|last| last != path) {
            self.files.push(path.into());
        }
        self.at.push(Span { file: self.files.len() as u32 - 1, offset });
    }

    /// How many there are.
    #[cfg(any(test, fuzzing))]
    pub(super) fn count(&self) -> usize {
        self.at.len()
    }

    /// Only these, in this order.
    pub(super) fn only(&self, kept: impl Iterator<Item = usize>) -> Self {
        Self { at: kept.map(|at| self.at[at]).collect(), files: self.files.clone(), ..*self }
    }

    /// The bytes of one.
    pub(super) fn read(&self, place: &Place, index: usize) -> Result<Vec<u8>, DataError> {
        let Span { file, offset } = self.at[index];
        let mut bytes = vec![0; self.len];
        place.read_part(&self.files[file as usize], offset, &mut bytes)?;
        Ok(bytes)
    }
}
