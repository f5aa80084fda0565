//! The journal (JBD2): groups of blocks that change together or not at all.
//!
//! Reading replays what a crash left, into memory or onto the disk. Writing puts one transaction at the
//! start of the log, makes it valid by a single block (the journal's superblock), copies its blocks to
//! their places, and empties the log again. A process that dies anywhere in between leaves either the
//! old state, or the new one with a log that any ext4 replays.

use std::collections::{BTreeMap, HashMap};

use super::blocks::Blocks;
use super::extent::Extent;
use crate::Error;
use crate::disk::Disk;

const MAGIC: u32 = 0xc03b_3998;
const KIND_DESCRIPTOR: u32 = 1;
const KIND_COMMIT: u32 = 2;
const KIND_SUPERBLOCK: [u32; 2] = [3, 4];
const KIND_REVOKE: u32 = 5;
const FLAG_ESCAPE: u16 = 1;
const FLAG_SAME_UUID: u16 = 2;
const FLAG_LAST: u16 = 8;
const INCOMPAT_REVOKE: u32 = 1;
const INCOMPAT_64BIT: u32 = 2;
/// Most bytes that are replayed: the largest journal that `mke2fs` chooses. They are in memory, and a hostile
/// superblock may claim the whole disk.
const REPLAY_MAX: usize = 1 << 30;
/// Bytes of the header of every log block, and of the UUID after a descriptor's first tag.
const HEAD: usize = 12;
const UUID: usize = 16;

/// The journal of an open file system.
#[derive(Clone, Debug)]
pub(super) struct Journal {
    extents: Vec<Extent>,
    superblock: Vec<u8>,
    /// Blocks of the log, the superblock included.
    len: u32,
    first: u32,
    sequence: u32,
    start: u32,
    wide_tags: bool,
}

impl Journal {
    /// The journal in these blocks.
    pub(super) fn open<D: Disk>(blocks: &Blocks<D>, extents: Vec<Extent>) -> Result<Self, Error> {
        let first =
            extents.first().ok_or_else(|| Error::file_system("a journal without blocks"))?;
        let superblock = blocks.read(first.physical)?;
        let word = |at| be32(&superblock, at);
        let damaged = || Error::file_system("the superblock of the journal");
        if word(0) != MAGIC || !KIND_SUPERBLOCK.contains(&word(4)) {
            return Err(damaged());
        }
        let features = if word(4) == KIND_SUPERBLOCK[1] { word(40) } else { 0 };
        let has = extents.iter().map(|extent| extent.len).sum::<u64>();
        let journal = Self {
            len: word(16),
            first: word(20),
            sequence: word(24),
            start: word(28),
            wide_tags: features & INCOMPAT_64BIT != 0,
            extents,
            superblock: superblock.clone(),
        };
        if word(12) as usize != blocks.size()
            || u64::from(journal.len) > has
            || !(1..journal.len).contains(&journal.first)
            || journal.start >= journal.len
        {
            return Err(damaged());
        }
        if journal.start != 0 && features & !(INCOMPAT_REVOKE | INCOMPAT_64BIT) != 0 {
            return Err(Error::refused(
                "a file system that was not unmounted, with a journal only the kernel replays: mount it once",
            ));
        }
        Ok(journal)
    }

    /// What the log would change, by block; empty after a clean end.
    pub(super) fn replay<D: Disk>(
        &mut self,
        blocks: &Blocks<D>,
    ) -> Result<BTreeMap<u64, Vec<u8>>, Error> {
        let mut changes = BTreeMap::new();
        if self.start == 0 {
            return Ok(changes);
        }
        let transactions = self.transactions(blocks)?;
        let mut revoked: HashMap<u64, u32> = HashMap::new();
        for transaction in &transactions {
            for &block in &transaction.revoked {
                revoked.insert(block, transaction.sequence);
            }
        }
        for transaction in &transactions {
            for (block, bytes) in &transaction.blocks {
                let is_revoked = revoked.get(block).is_some_and(|&by| by >= transaction.sequence);
                if !is_revoked {
                    // Block 0, the superblock, is part of nearly every transaction.
                    blocks.check((*block).max(1), 1)?;
                    changes.insert(*block, bytes.clone());
                }
            }
        }
        self.sequence = self.sequence.wrapping_add(transactions.len() as u32);
        Ok(changes)
    }

    /// Whole transactions from the start of the log on.
    fn transactions<D: Disk>(&self, blocks: &Blocks<D>) -> Result<Vec<Transaction>, Error> {
        let mut transactions = Vec::new();
        let mut open = Transaction { sequence: self.sequence, ..Transaction::default() };
        let mut at = self.start;
        let mut left = self.len - self.first;
        let mut room = REPLAY_MAX / blocks.size();
        while left > 0 {
            let block = self.read(blocks, at)?;
            let [magic, kind, sequence] = [0, 4, 8].map(|at| be32(&block, at));
            if magic != MAGIC || sequence != open.sequence {
                break;
            }
            (at, left) = (self.after(at), left - 1);
            match kind {
                KIND_DESCRIPTOR => {
                    for tag in self.tags(&block)? {
                        if left == 0 {
                            return Ok(transactions);
                        }
                        let mut bytes = self.read(blocks, at)?;
                        if tag.escaped {
                            bytes[..4].copy_from_slice(&MAGIC.to_be_bytes());
                        }
                        room = room.checked_sub(1).ok_or_else(|| {
                            Error::refused(
                                "a file system with more than 1 GiB to replay: mount it once",
                            )
                        })?;
                        open.blocks.push((tag.block, bytes));
                        (at, left) = (self.after(at), left - 1);
                    }
                }
                KIND_REVOKE => open.revoked.extend(self.revoked(&block)?),
                KIND_COMMIT => {
                    let next = open.sequence.wrapping_add(1);
                    let done = Transaction { sequence: next, ..Transaction::default() };
                    transactions.push(std::mem::replace(&mut open, done));
                }
                _ => break,
            }
        }
        Ok(transactions)
    }

    fn tags(&self, block: &[u8]) -> Result<Vec<Tag>, Error> {
        let len = if self.wide_tags { 12 } else { 8 };
        let mut tags = Vec::new();
        let mut at = HEAD;
        loop {
            let tag =
                block.get(at..at + len).ok_or_else(|| Error::file_system("a journal block"))?;
            let flags = u16::from_be_bytes([tag[6], tag[7]]);
            let high = if self.wide_tags { u64::from(be32(tag, 8)) << 32 } else { 0 };
            let number = high | u64::from(be32(tag, 0));
            tags.push(Tag { block: number, escaped: flags & FLAG_ESCAPE != 0 });
            at += len + if flags & FLAG_SAME_UUID == 0 { UUID } else { 0 };
            if flags & FLAG_LAST != 0 {
                return Ok(tags);
            }
        }
    }

    fn revoked(&self, block: &[u8]) -> Result<Vec<u64>, Error> {
        let used = be32(block, HEAD) as usize;
        let numbers =
            block.get(HEAD + 4..used).ok_or_else(|| Error::file_system("a journal block"))?;
        Ok(match self.wide_tags {
            true => numbers
                .chunks_exact(8)
                .map(|n| u64::from_be_bytes(n.try_into().expect("eight bytes")))
                .collect(),
            false => numbers.chunks_exact(4).map(|n| be32(n, 0).into()).collect(),
        })
    }

    /// Makes these blocks change together.
    pub(super) fn commit<D: Disk>(
        &mut self,
        blocks: &mut Blocks<D>,
        changes: &BTreeMap<u64, Vec<u8>>,
    ) -> Result<(), Error> {
        let size = blocks.size();
        let tags_max = (size - HEAD - UUID) / 8;
        let room = ((self.len - self.first) as usize).saturating_sub(2);
        if changes.len() > tags_max.min(room) || self.wide_tags {
            return Err(Error::refused("a change of too many blocks at once"));
        }
        let mut descriptor = self.log_block(KIND_DESCRIPTOR, size);
        let mut at = HEAD;
        for (index, (&number, bytes)) in changes.iter().enumerate() {
            let escaped = be32(bytes, 0) == MAGIC;
            let mut flags = if escaped { FLAG_ESCAPE } else { 0 };
            flags |= if index > 0 { FLAG_SAME_UUID } else { 0 };
            flags |= if index + 1 == changes.len() { FLAG_LAST } else { 0 };
            descriptor[at..at + 4].copy_from_slice(&(number as u32).to_be_bytes());
            descriptor[at + 6..at + 8].copy_from_slice(&flags.to_be_bytes());
            at += 8 + if index == 0 { UUID } else { 0 };
            let mut copy = bytes.clone();
            if escaped {
                copy[..4].fill(0);
            }
            blocks.write_now(self.place(self.first + 1 + index as u32)?, &copy)?;
        }
        blocks.write_now(self.place(self.first)?, &descriptor)?;
        let commit = self.log_block(KIND_COMMIT, size);
        blocks.write_now(self.place(self.first + 1 + changes.len() as u32)?, &commit)?;
        blocks.flush()?;
        self.write_superblock(blocks, self.first)?;
        for (&number, bytes) in changes {
            blocks.write_now(number, bytes)?;
        }
        blocks.flush()?;
        self.sequence = self.sequence.wrapping_add(1);
        self.write_superblock(blocks, 0)
    }

    /// Copies a replayed log to its places and empties it.
    pub(super) fn apply<D: Disk>(
        &mut self,
        blocks: &mut Blocks<D>,
        changes: &BTreeMap<u64, Vec<u8>>,
    ) -> Result<(), Error> {
        for (&number, bytes) in changes {
            blocks.write_now(number, bytes)?;
        }
        blocks.flush()?;
        self.write_superblock(blocks, 0)
    }

    /// One block decides: a log that begins at `start`, or none.
    fn write_superblock<D: Disk>(
        &mut self,
        blocks: &mut Blocks<D>,
        start: u32,
    ) -> Result<(), Error> {
        self.superblock[24..28].copy_from_slice(&self.sequence.to_be_bytes());
        self.superblock[28..32].copy_from_slice(&start.to_be_bytes());
        blocks.write_now(self.place(0)?, &self.superblock)?;
        blocks.flush()?;
        self.start = start;
        Ok(())
    }

    fn log_block(&self, kind: u32, size: usize) -> Vec<u8> {
        let mut block = vec![0; size];
        for (at, word) in [(0, MAGIC), (4, kind), (8, self.sequence)] {
            block[at..at + 4].copy_from_slice(&word.to_be_bytes());
        }
        block
    }

    fn read<D: Disk>(&self, blocks: &Blocks<D>, at: u32) -> Result<Vec<u8>, Error> {
        blocks.read(self.place(at)?)
    }

    fn after(&self, at: u32) -> u32 {
        if at + 1 < self.len { at + 1 } else { self.first }
    }

    fn place(&self, at: u32) -> Result<u64, Error> {
        let at = u64::from(at);
        let holds = |extent: &&Extent| (extent.logical..extent.logical + extent.len).contains(&at);
        let extent = self.extents.iter().find(holds);
        let extent = extent.ok_or_else(|| Error::file_system("a journal with holes"))?;
        Ok(extent.physical + at - extent.logical)
    }
}

/// The superblock of an empty journal of `len` blocks.
pub(super) fn new_superblock(block: usize, len: u32, uuid: &[u8; 16]) -> Vec<u8> {
    let mut bytes = vec![0; block];
    let words = [
        (0, MAGIC),
        (4, KIND_SUPERBLOCK[1]),
        (12, block as u32),
        (16, len),
        (20, 1),
        (24, 1),
        (64, 1),
    ];
    for (at, word) in words {
        bytes[at..at + 4].copy_from_slice(&word.to_be_bytes());
    }
    bytes[48..64].copy_from_slice(uuid);
    bytes
}

#[derive(Default)]
struct Transaction {
    sequence: u32,
    blocks: Vec<(u64, Vec<u8>)>,
    revoked: Vec<u64>,
}

struct Tag {
    block: u64,
    escaped: bool,
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}
