//! Authenticated sectors: AES-XTS and HMAC-SHA256 tags in the layout of dm-integrity, written through its journal.
//!
//! A tag is the HMAC over sector number, IV and ciphertext: it notices changed and moved sectors, not an older
//! sector with its older tag. Data and tag lie apart, so a crash between the two writes would make a sector that
//! fails for good. Therefore what is written waits in memory until it is flushed (or half of the journal is full),
//! goes to the journal, waits for the medium, and only then to its place. Opening replays what a crash left.
//!
//! ```text
//!  commit: [wait, if the ring's oldest sections may not be in their places yet]
//!          sections to the journal -> wait -> data and tags to their places (on the medium by the next wait)
//! ```
//!
//! Content that nothing refers to yet, nearly all of a checkpoint, goes to its place at once, as in ext4's own
//! `data=ordered`: who names it flushes first, and what a crash leaves half written there is free and is not read.
//! A sector of which the ring still has an older version must go through the journal nevertheless: replaying would
//! bring that back.

use std::collections::BTreeMap;

use ring::hmac;

use super::cipher::Xts;
use super::journal::{
    After, Block, Blocks, Replay, Sequence, clearing_steps, decode, encode, fix_section, sequences,
};
use super::layout::{Layout, SECTOR, SUPERBLOCK, TAG};
use crate::Error;
use crate::disk::{Disk, check_range};

/// Bytes of data that are worked on at once.
const RUN: usize = 1 << 20;

/// A segment whose sectors are encrypted and authenticated.
pub struct Authenticated<D> {
    disk: D,
    layout: Layout,
    xts: Xts,
    mac: hmac::Key,
    /// Blocks that are newer than their places: not committed yet, or in the journal of a volume that is only read.
    newer: Blocks,
    /// Sectors that the ring may have, by the number that `Ring::written` had with them.
    held: BTreeMap<u64, u64>,
    /// For writing.
    ring: Option<Ring>,
}

/// Ciphertext of consecutive blocks that lie in one area, and their tags.
#[derive(Default)]
struct Run {
    data: Vec<u8>,
    tags: Vec<u8>,
}

/// Where the journal is written next.
#[derive(Clone, Copy, Debug)]
struct Ring {
    section: u64,
    sequence: Sequence,
    /// Sections that were written since the journal was replayed.
    written: u64,
    /// Sections before this one whose blocks may not be in their places on the medium.
    unsettled: u64,
    /// A write failed: what is in memory may not be what is on the disk.
    failed: bool,
}

impl<D: Disk> Authenticated<D> {
    /// Opens a formatted segment; the key is 64 bytes for AES-XTS, then 32 for HMAC. For writing, what a crash left
    /// in the journal is copied to its place first.
    ///
    /// # Errors
    /// `Damaged` or `Refused` for a superblock or a journal that does not suit.
    pub fn open(disk: D, key: &[u8], sector: u32, writable: bool) -> Result<Self, Error> {
        let mut superblock = [0; SECTOR as usize];
        disk.read_at(&mut superblock, 0)?;
        let per_block = u64::from(sector) / SECTOR;
        let layout = Layout::parse(&superblock, disk.len() / SECTOR, per_block)?;
        let mut opened = Self::with_layout(disk, layout, key, sector);
        let after = opened.read_journal()?;
        if writable {
            opened.recover(after)?;
        }
        Ok(opened)
    }

    /// Writes a superblock, an empty journal, and zeros with their tags over everything.
    ///
    /// # Errors
    /// When the segment is too small or cannot be written.
    pub fn format(disk: D, key: &[u8], sector: u32) -> Result<Self, Error> {
        Self::format_watched(disk, key, sector, &|_, _| ())
    }

    /// As [`Authenticated::format`]; `watch` is told of each write: its bytes, and those of all.
    ///
    /// # Errors
    /// As there.
    pub fn format_watched(
        disk: D,
        key: &[u8],
        sector: u32,
        watch: &dyn Fn(u64, u64),
    ) -> Result<Self, Error> {
        let layout = Layout::plan(disk.len() / SECTOR, u64::from(sector) / SECTOR)?;
        let mut formatted = Self::with_layout(disk, layout, key, sector);
        formatted.disk.write_at(&[0; (SUPERBLOCK * SECTOR) as usize], 0)?;
        let sections: Vec<u64> = (0..formatted.layout.sections).collect();
        formatted.empty(&sections, Sequence::FIRST)?;
        formatted.write_zeros(0, watch)?;
        let superblock = formatted.layout.to_bytes();
        formatted.disk.flush()?;
        formatted.disk.write_at(&superblock, 0)?;
        formatted.disk.flush()?;
        formatted.begin(0, Sequence::FIRST.next());
        Ok(formatted)
    }

    /// Takes in what the disk has behind the last sector: zeros with their tags, and then they count. Also sectors
    /// that count already, from byte `used` on, which the kernel does not give tags when it takes them in.
    ///
    /// # Errors
    /// What the disk refuses; the sectors that there were stay.
    pub fn grow(&mut self, used: u64) -> Result<(), Error> {
        let wider = self.layout.widened(self.disk.len() / SECTOR);
        let block = self.xts.sector() as u64;
        let start = used.min(self.len()).next_multiple_of(block);
        if wider.provided < self.layout.provided || wider.provided * SECTOR - start < block {
            return Ok(());
        }
        self.commit_all()?;
        let narrower = std::mem::replace(&mut self.layout, wider);
        let grown = self.write_behind(start);
        if grown.is_err() {
            self.layout = narrower;
        }
        grown
    }

    /// Writes zeros with their tags from a byte on, then the superblock.
    fn write_behind(&mut self, start: u64) -> Result<(), Error> {
        self.write_zeros(start, &|_, _| ())?;
        self.disk.flush()?;
        let mut superblock = [0; SECTOR as usize];
        self.disk.read_at(&mut superblock, 0)?;
        self.layout.write_provided(&mut superblock);
        self.disk.write_at(&superblock, 0)?;
        self.disk.flush()
    }

    fn write_zeros(&mut self, start: u64, watch: &dyn Fn(u64, u64)) -> Result<(), Error> {
        let zeros = vec![0; RUN];
        let mut run = Run::default();
        for (at, len) in self.runs(start, self.len() - start) {
            self.write_run(&zeros[..len], at, &mut run)?;
            watch(len as u64, self.len());
        }
        Ok(())
    }

    fn with_layout(disk: D, layout: Layout, key: &[u8], sector: u32) -> Self {
        let (cipher, mac) = key.split_at(64);
        let mac = hmac::Key::new(hmac::HMAC_SHA256, mac);
        let xts = Xts::new(cipher, sector);
        Self { disk, layout, xts, mac, newer: Blocks::new(), held: BTreeMap::new(), ring: None }
    }

    fn begin(&mut self, section: u64, sequence: Sequence) {
        self.ring = Some(Ring { section, sequence, written: 0, unsettled: 0, failed: false });
    }

    /// Collects what is in the journal and may not be in its place; how it goes on.
    fn read_journal(&mut self) -> Result<After, Error> {
        let mut bytes = vec![0; self.layout.section_len()];
        let mut found = Vec::new();
        for section in 0..self.layout.sections {
            self.disk.read_at(&mut bytes, self.layout.section_at(section))?;
            found.push(sequences(section, &bytes)?);
        }
        let replay = Replay::plan(&found)?;
        for section in replay.order {
            self.disk.read_at(&mut bytes, self.layout.section_at(section))?;
            decode(&self.layout, &bytes, &mut self.newer)?;
        }
        Ok(replay.after)
    }

    /// Copies what was in the journal to its place, and makes the journal ready for more.
    fn recover(&mut self, after: After) -> Result<(), Error> {
        let mut missing = Blocks::new();
        let blocks = std::mem::take(&mut self.newer);
        // A forged entry would destroy a sector that is whole.
        for (sector, block) in blocks {
            self.verify(sector, &block.data, &block.tag)?;
            self.held.insert(sector, 0);
            // The journal keeps what has long been in its place, and most of it is.
            if self.place(sector)? != block {
                missing.insert(sector, block);
            }
        }
        self.write_places(&missing)?;
        // Also what was found in its place: a process that was killed may not have waited for the medium.
        self.disk.flush()?;
        match after {
            After::Continue(section, sequence) => self.begin(section, sequence),
            After::Clear(start, sequence) => {
                for sections in clearing_steps(self.layout.sections, start) {
                    self.empty(&sections, sequence)?;
                }
                self.held.clear();
                self.begin(0, sequence.next());
            }
        }
        Ok(())
    }

    /// Writes sections without blocks, and waits for the medium.
    fn empty(&mut self, sections: &[u64], sequence: Sequence) -> Result<(), Error> {
        let mut bytes = vec![0; self.layout.section_len()];
        for &section in sections {
            encode(&self.layout, section, sequence, [], &mut bytes);
            self.disk.write_at(&bytes, self.layout.section_at(section))?;
        }
        self.disk.flush()
    }

    /// The block that is in its place.
    fn place(&self, sector: u64) -> Result<Block, Error> {
        let place = self.layout.place(sector);
        let mut block = Block { data: vec![0; self.xts.sector()], tag: [0; TAG] };
        self.disk.read_at(&mut block.data, place.data)?;
        self.disk.read_at(&mut block.tag, place.tag)?;
        Ok(block)
    }

    /// Encrypts whole blocks and appends their tags.
    fn seal(&self, data: &mut [u8], offset: u64, tags: &mut Vec<u8>) {
        self.xts.encrypt(data, offset);
        for (index, data) in data.chunks(self.xts.sector()).enumerate() {
            let mut context = hmac::Context::with_key(&self.mac);
            context.update(&tag_head(offset / SECTOR + index as u64 * self.layout.per_block));
            context.update(data);
            tags.extend_from_slice(context.sign().as_ref());
        }
    }

    /// Writes what lies in one area to its place, past the journal.
    fn write_run(&mut self, source: &[u8], offset: u64, run: &mut Run) -> Result<(), Error> {
        run.data.clear();
        run.tags.clear();
        run.data.extend_from_slice(source);
        self.seal(&mut run.data, offset, &mut run.tags);
        let place = self.layout.place(offset / SECTOR);
        self.disk.write_at(&run.data, place.data)?;
        self.disk.write_at(&run.tags, place.tag)
    }

    /// Whether the journal has any of these bytes, or will have: what is in their places may be overwritten with it.
    fn is_journaled(&self, ring: &Ring, offset: u64, len: usize) -> bool {
        let sectors = offset / SECTOR..(offset + len as u64) / SECTOR;
        let is_held = |&at: &u64| ring.written - at < self.layout.sections;
        self.newer.range(sectors.clone()).next().is_some()
            || self.held.range(sectors).any(|(_, at)| is_held(at))
    }

    fn verify(&self, sector: u64, data: &[u8], tag: &[u8]) -> Result<(), Error> {
        let message = [&tag_head(sector), data].concat();
        hmac::verify(&self.mac, &message, tag)
            .map_err(|_| Error::Unauthentic(format!("sector {sector}")))
    }

    /// Reads whole blocks that lie in one area.
    fn read_run(&self, target: &mut [u8], offset: u64) -> Result<(), Error> {
        let block = self.xts.sector();
        let place = self.layout.place(offset / SECTOR);
        self.disk.read_at(target, place.data)?;
        let mut tags = vec![0; target.len() / block * TAG];
        self.disk.read_at(&mut tags, place.tag)?;
        for (index, (data, tag)) in target.chunks_mut(block).zip(tags.chunks_mut(TAG)).enumerate() {
            let sector = offset / SECTOR + index as u64 * self.layout.per_block;
            if let Some(newer) = self.newer.get(&sector) {
                data.copy_from_slice(&newer.data);
                tag.copy_from_slice(&newer.tag);
            }
            self.verify(sector, data, tag)?;
        }
        self.xts.decrypt(target, offset);
        Ok(())
    }

    /// Writes blocks to where they belong: what follows one another in one go, data before tags.
    fn write_places(&mut self, blocks: &Blocks) -> Result<(), Error> {
        let mut blocks = blocks.iter().peekable();
        while let Some((&first, block)) = blocks.next() {
            let place = self.layout.place(first);
            let (mut data, mut tags) = (block.data.clone(), block.tag.to_vec());
            let mut next = first + self.layout.per_block;
            while next - first < place.left && data.len() < RUN {
                let Some((_, block)) = blocks.next_if(|&(&sector, _)| sector == next) else {
                    break;
                };
                data.extend_from_slice(&block.data);
                tags.extend_from_slice(&block.tag);
                next += self.layout.per_block;
            }
            self.disk.write_at(&data, place.data)?;
            self.disk.write_at(&tags, place.tag)?;
        }
        Ok(())
    }

    /// Makes what was written survive a crash, then brings it to its place; where the ring goes on.
    fn commit(&mut self, mut ring: Ring) -> Result<Ring, Error> {
        let entries = self.layout.section_entries() as usize;
        let sections = self.newer.len().div_ceil(entries) as u64;
        if ring.unsettled + sections > self.layout.sections {
            // What is about to be overwritten may be the only copy.
            self.disk.flush()?;
        }
        let mut blocks = self.newer.iter().peekable();
        let mut bytes = vec![0; self.layout.section_len()];
        while blocks.peek().is_some() {
            ring.written += 1;
            let part: Vec<_> = blocks.by_ref().take(entries).collect();
            self.held.extend(part.iter().map(|&(&sector, _)| (sector, ring.written)));
            encode(&self.layout, ring.section, ring.sequence, part, &mut bytes);
            self.disk.write_at(&bytes, self.layout.section_at(ring.section))?;
            ring.section += 1;
            if ring.section == self.layout.sections {
                (ring.section, ring.sequence) = (0, ring.sequence.next());
                self.held.retain(|_, &mut at| ring.written - at < self.layout.sections);
            }
        }
        // Also what the commit before brought to its place is on the medium now.
        self.disk.flush()?;
        let blocks = std::mem::take(&mut self.newer);
        if let Err(error) = self.write_places(&blocks) {
            self.newer = blocks;
            return Err(error);
        }
        ring.unsettled = sections;
        Ok(ring)
    }

    /// Commits; after a failure nothing is written any more, so that the journal still says what was whole.
    fn commit_all(&mut self) -> Result<(), Error> {
        let ring = self.ring_for_writing()?;
        self.ring = Some(Ring { failed: true, ..ring });
        self.ring = Some(self.commit(ring)?);
        Ok(())
    }

    fn ring_for_writing(&self) -> Result<Ring, Error> {
        match self.ring {
            Some(ring) if !ring.failed => Ok(ring),
            Some(_) => Err(Error::refused("a write failed before; open the volume again")),
            None => Err(Error::refused("a volume that was opened for reading")),
        }
    }

    /// The parts of a range of whole blocks that lie in one area each: offset and length.
    fn runs(&self, offset: u64, len: u64) -> Vec<(u64, usize)> {
        let mut runs = Vec::new();
        let (mut at, mut left) = (offset, len);
        while left > 0 {
            let in_area = self.layout.place(at / SECTOR).left * SECTOR;
            let take = left.min(RUN as u64).min(in_area);
            runs.push((at, take as usize));
            (at, left) = (at + take, left - take);
        }
        runs
    }
}

/// What a tag is over, in front of the ciphertext: sector number and IV, which starts with it too.
fn tag_head(sector: u64) -> [u8; 24] {
    let mut head = [0; 24];
    head[..8].copy_from_slice(&sector.to_le_bytes());
    head[8..16].copy_from_slice(&sector.to_le_bytes());
    head
}

/// Sectors that a formatted segment of `sectors` at `offset` provides, as its superblock says; its blocks
/// have `block` bytes.
pub(crate) fn provided_sectors(
    disk: &dyn Disk,
    offset: u64,
    sectors: u64,
    block: u32,
) -> Result<u64, Error> {
    let mut superblock = [0; SECTOR as usize];
    disk.read_at(&mut superblock, offset)?;
    let per_block = u64::from(block) / SECTOR;
    Layout::parse(&superblock, sectors, per_block).map(|layout| layout.provided)
}

impl<D: Disk> Disk for Authenticated<D> {
    fn len(&self) -> u64 {
        self.layout.provided * SECTOR
    }

    fn read_at(&self, target: &mut [u8], offset: u64) -> Result<(), Error> {
        check_range(self.len(), target.len(), offset)?;
        let block = self.xts.sector() as u64;
        let inside = (offset % block) as usize;
        let first = offset - inside as u64;
        if inside != 0 || !(target.len() as u64).is_multiple_of(block) {
            let mut blocks = vec![0; (inside + target.len()).next_multiple_of(block as usize)];
            self.read_at(&mut blocks, first)?;
            target.copy_from_slice(&blocks[inside..][..target.len()]);
            return Ok(());
        }
        let mut rest = target;
        for (at, len) in self.runs(offset, rest.len() as u64) {
            let (run, left) = rest.split_at_mut(len);
            self.read_run(run, at)?;
            rest = left;
        }
        Ok(())
    }

    fn write_at(&mut self, source: &[u8], offset: u64) -> Result<(), Error> {
        check_range(self.len(), source.len(), offset)?;
        self.ring_for_writing()?;
        let block = self.xts.sector();
        assert!(source.len().is_multiple_of(block), "part of a sector");
        assert!(offset.is_multiple_of(block as u64), "from within a sector");
        // Half of the ring, so that the other half's blocks are in their places when it is overwritten.
        let room = (self.layout.sections / 2).max(1) * self.layout.section_entries();
        let mut tag = Vec::with_capacity(TAG);
        for (index, part) in source.chunks(block).enumerate() {
            let at = offset + (index * block) as u64;
            let mut data = part.to_vec();
            tag.clear();
            self.seal(&mut data, at, &mut tag);
            if self.newer.len() as u64 >= room && !self.newer.contains_key(&(at / SECTOR)) {
                self.commit_all()?;
            }
            let tag = tag.as_slice().try_into().expect("a tag");
            self.newer.insert(at / SECTOR, Block { data, tag });
        }
        Ok(())
    }

    fn write_unnamed_at(&mut self, source: &[u8], offset: u64) -> Result<(), Error> {
        check_range(self.len(), source.len(), offset)?;
        let (mut rest, mut run) = (source, Run::default());
        for (at, len) in self.runs(offset, source.len() as u64) {
            let (part, left) = rest.split_at(len);
            let ring = self.ring_for_writing()?;
            if self.is_journaled(&ring, at, len) {
                self.write_at(part, at)?;
            } else if let Err(error) = self.write_run(part, at, &mut run) {
                self.ring = Some(Ring { failed: true, ..ring });
                return Err(error);
            }
            rest = left;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Error> {
        match self.ring {
            Some(_) => self.commit_all(),
            None => self.disk.flush(),
        }
    }
}

/// Bytes of the disk of the fuzzer, and its key.
const FUZZ_DISK: usize = 3 << 20;
const FUZZ_KEY: [u8; 96] = [7; 96];

/// Fuzzing entry, see `fuzz_integrity`: what is written and flushed is there when the disk is opened again.
pub(crate) fn fuzz(data: &[u8]) {
    let Some((&flags, data)) = data.split_first() else { return };
    for sector in [512, 4096] {
        let mut disk = vec![0; FUZZ_DISK];
        let len = data.len().min(disk.len());
        disk[..len].copy_from_slice(&data[..len]);
        if flags & 1 == 1 {
            fix_commit_ids(&mut disk, sector);
        }
        if let Ok(opened) = Authenticated::open(disk.clone(), &FUZZ_KEY, sector, false) {
            let _ = opened.read_at(&mut vec![0; sector as usize], 0);
        }
        let Ok(mut opened) = Authenticated::open(disk, &FUZZ_KEY, sector, true) else { continue };
        let written = vec![9; sector as usize];
        let wrote = match flags & 2 {
            0 => opened.write_at(&written, 0),
            _ => opened.write_unnamed_at(&written, 0),
        };
        wrote.and_then(|()| opened.flush()).expect("room");
        let again = Authenticated::open(opened.disk, &FUZZ_KEY, sector, true).expect("our own");
        let mut read = vec![0; sector as usize];
        again.read_at(&mut read, 0).expect("our own");
        assert_eq!(read, written);
    }
}

/// Gives every sector of a journal a commit id; which, says the one that it has.
fn fix_commit_ids(disk: &mut [u8], sector: u32) {
    let Some(superblock) = disk.first_chunk() else { return };
    let per_block = u64::from(sector) / SECTOR;
    let sectors = disk.len() as u64 / SECTOR;
    let Ok(layout) = Layout::parse(superblock, sectors, per_block) else { return };
    for section in 0..layout.sections {
        let at = layout.section_at(section) as usize;
        fix_section(section, &mut disk[at..][..layout.section_len()]);
    }
}

/// A seed for the fuzzer: superblock and journal of a disk with two blocks in it.
#[cfg(test)]
pub(crate) fn fuzz_seed() -> Vec<u8> {
    let disk = vec![0; FUZZ_DISK];
    let mut opened = Authenticated::format(disk, &FUZZ_KEY, 512).expect("room");
    opened.write_at(&[3; 1024], 512 * 30).and_then(|()| opened.flush()).expect("room");
    let end = opened.layout.section_at(opened.layout.sections) as usize;
    [&[1], &opened.disk[..end]].concat()
}

#[cfg(test)]
mod tests {
    use super::super::layout::Place;
    use super::*;

    #[test]
    fn changed_and_moved_sectors_are_noticed() {
        for sector in [512, 4096] {
            let key: Vec<u8> = (0..96).collect();
            let mut opened =
                Authenticated::format(vec![0u8; 20 << 20], &key, sector).expect("format");
            assert!(opened.len() > 18 << 20 || sector == 512 && opened.len() > 17 << 20);
            let data: Vec<u8> = (0..3 * 4096).map(|at| (at / 5) as u8).collect();
            let far = opened.len() - 3 * 4096;
            opened.write_at(&data, far).and_then(|()| opened.flush()).expect("write");
            let disk = opened.disk;
            let opened = Authenticated::open(disk, &key, sector, true).expect("open");
            let mut read = vec![0; data.len() - 100];
            opened.read_at(&mut read, far + 50).expect("read");
            assert_eq!(read, data[50..data.len() - 50]);
            let Place { data: at, tag: tag_at, .. } = opened.layout.place(far / SECTOR);
            for damage in [at + 7, tag_at + 31] {
                let mut disk = opened.disk.clone();
                disk[damage as usize] ^= 1;
                let mut damaged = Authenticated::open(disk, &key, sector, false).expect("open");
                // Without what the journal still has of it.
                damaged.newer.clear();
                assert!(damaged.read_at(&mut read, far).is_err());
                damaged.read_at(&mut read, 0).expect("others are fine");
            }
            let mut disk = opened.disk.clone();
            let Place { data: other, tag: other_tag, .. } = opened.layout.place(0);
            disk.copy_within(at as usize..at as usize + sector as usize, other as usize);
            disk.copy_within(tag_at as usize..tag_at as usize + TAG, other_tag as usize);
            let mut moved = Authenticated::open(disk, &key, sector, false).expect("open");
            moved.newer.clear();
            assert!(moved.read_at(&mut read, 0).is_err());
        }
    }

    #[test]
    fn what_the_journal_has_is_not_overwritten_past_it() {
        for sector in [512, 4096] {
            let mut opened =
                Authenticated::format(vec![0u8; 20 << 20], &FUZZ_KEY, sector).expect("format");
            let [old, new] = [1, 2].map(|byte| vec![byte; 2 * sector as usize]);
            let mut read = old.clone();
            opened.write_at(&old, 0).and_then(|()| opened.flush()).expect("write");
            opened.write_unnamed_at(&new, 0).and_then(|()| opened.flush()).expect("write");
            let mut again =
                Authenticated::open(opened.disk, &FUZZ_KEY, sector, true).expect("open");
            again.read_at(&mut read, 0).expect("read");
            assert_eq!(read, new, "the journal brought the old ones back");
            // Also of a journal that another process wrote, but not once its last pass is overwritten.
            let ring = again.ring.expect("for writing");
            assert!(again.is_journaled(&ring, 0, sector as usize));
            for _ in 0..again.layout.sections {
                again.write_at(&old, 1 << 20).and_then(|()| again.flush()).expect("write");
            }
            let ring = again.ring.expect("for writing");
            assert!(!again.is_journaled(&ring, 0, sector as usize));
            assert!(again.is_journaled(&ring, 1 << 20, sector as usize));
            again.write_unnamed_at(&old, 0).expect("write");
            assert!(again.newer.is_empty(), "past the journal");
            again.flush().expect("flush");
            let again = Authenticated::open(again.disk, &FUZZ_KEY, sector, true).expect("open");
            again.read_at(&mut read, 0).expect("read");
            assert_eq!(read, old);
        }
    }
}
