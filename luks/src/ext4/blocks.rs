//! Blocks of the disk, and what a transaction is going to change in them.

use std::collections::BTreeMap;

use crate::Error;
use crate::disk::Disk;

/// Blocks of a disk, with changes that are only in memory on top.
pub(super) struct Blocks<D> {
    pub(super) disk: D,
    pub(super) size: usize,
    pub(super) count: u64,
    pub(super) changes: BTreeMap<u64, Vec<u8>>,
}

impl<D: Disk> Blocks<D> {
    pub(super) fn size(&self) -> usize {
        self.size
    }

    pub(super) fn check(&self, first: u64, count: u64) -> Result<(), Error> {
        match first.checked_add(count) {
            Some(end) if first > 0 && end <= self.count => Ok(()),
            _ => Err(Error::file_system("a block outside of the file system")),
        }
    }

    pub(super) fn read(&self, block: u64) -> Result<Vec<u8>, Error> {
        if let Some(changed) = self.changes.get(&block) {
            return Ok(changed.clone());
        }
        let mut bytes = vec![0; self.size];
        self.disk.read_at(&mut bytes, block * self.size as u64)?;
        Ok(bytes)
    }

    /// The bytes of a block, to be changed with the next transaction.
    pub(super) fn edit(&mut self, block: u64) -> Result<&mut Vec<u8>, Error> {
        if !self.changes.contains_key(&block) {
            let bytes = self.read(block)?;
            self.changes.insert(block, bytes);
        }
        Ok(self.changes.get_mut(&block).expect("inserted"))
    }

    /// Gives a block new bytes with the next transaction.
    pub(super) fn replace(&mut self, block: u64, bytes: Vec<u8>) {
        self.changes.insert(block, bytes);
    }

    /// Writes past the journal.
    pub(super) fn write_now(&mut self, block: u64, bytes: &[u8]) -> Result<(), Error> {
        self.disk.write_at(bytes, block * self.size as u64)
    }

    /// Writes content that no inode on the disk refers to yet.
    pub(super) fn write_unnamed(&mut self, block: u64, bytes: &[u8]) -> Result<(), Error> {
        self.disk.write_unnamed_at(bytes, block * self.size as u64)
    }

    pub(super) fn flush(&mut self) -> Result<(), Error> {
        self.disk.flush()
    }
}
