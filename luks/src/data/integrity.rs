//! Authenticated sectors: AES-XTS and HMAC-SHA256 tags in the layout of dm-integrity (the kernel's
//! `dm-integrity.rst` and `dm-integrity.c`, versions 1 to 5 without bitmap and journal MAC).
//!
//! ```text
//!  superblock 4 KiB | journal | tags of area 0 | data of area 0 | tags of area 1 | data of area 1 | ...
//! ```
//!
//! A tag is the HMAC over sector number, IV and ciphertext: it notices changed and moved sectors, not
//! an older sector with its older tag. The kernel writes through the journal; a journal that it left is
//! read as part of the data. This process writes without: whoever calls must not rely on single writes
//! being atomic (`ext4` has a journal of its own).

use std::collections::BTreeMap;

use ring::hmac;

use crate::Error;
use crate::data::cipher::Xts;
use crate::disk::{Disk, check_range};

const SECTOR: u64 = 512;
const MAGIC: &[u8; 8] = b"integrt\0";
/// Sectors of the superblock.
const SUPERBLOCK: u64 = 8;
/// Sectors at the start of a journal section that hold its entries.
const ENTRY_SECTORS: u64 = 8;
/// Bytes of such a sector before the commit id.
const ENTRY_SPACE: u64 = SECTOR - 8;
const TAG: usize = 32;
/// The only flags that this reader understands: fixed padding, and a fix for HMACs of the journal.
const FLAGS_KNOWN: u32 = 0x08 | 0x10;
const FLAG_FIXED_PADDING: u32 = 0x08;
/// Sector number of a journal entry that holds nothing.
const UNUSED: u64 = 0xffff_ffff << 32;
const COMMIT_IDS: [u64; 4] =
    [0x1111_1111_1111_1111, 0x2222_2222_2222_2222, 0x3333_3333_3333_3333, 0x4444_4444_4444_4444];
/// Bytes of data that are worked on at once.
const RUN: usize = 1 << 20;

/// Where things are.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Layout {
    log2_interleave: u32,
    sections: u64,
    /// Sectors that are usable.
    provided: u64,
    flags: u32,
    /// Sectors of a block: 1 or 8.
    per_block: u64,
}

impl Layout {
    fn parse(bytes: &[u8; SECTOR as usize], device: u64, per_block: u64) -> Result<Self, Error> {
        let wrong = |what: &str| Error::refused(format!("dm-integrity superblock: {what}"));
        if bytes[..8] != *MAGIC {
            return Err(Error::damaged("no dm-integrity superblock"));
        }
        let le32 = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four"));
        let le64 = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight"));
        let tag = u16::from_le_bytes([bytes[10], bytes[11]]);
        let layout = Self {
            log2_interleave: bytes[9].into(),
            sections: le32(12).into(),
            provided: le64(16),
            flags: le32(24),
            per_block: 1u64.checked_shl(bytes[28].into()).unwrap_or(0),
        };
        if !(1..=5).contains(&bytes[8]) || layout.flags & !FLAGS_KNOWN != 0 {
            return Err(wrong("a version or a flag that is not known"));
        }
        if usize::from(tag) != TAG || layout.per_block != per_block {
            return Err(wrong("tags or blocks of another length"));
        }
        if !(3..=31).contains(&layout.log2_interleave) || layout.sections == 0 {
            return Err(wrong("impossible areas or no journal"));
        }
        match layout.provided > 0
            && layout.provided.is_multiple_of(per_block)
            && layout.fits(device)
        {
            true => Ok(layout),
            false => Err(wrong("more data than the device has")),
        }
    }

    /// The layout that the kernel would choose for a device of that many sectors.
    fn plan(device: u64, per_block: u64) -> Result<Self, Error> {
        let mut layout = Self {
            log2_interleave: 15,
            sections: 1,
            provided: 0,
            flags: FLAG_FIXED_PADDING,
            per_block,
        };
        layout.sections = ((device / 128).min(8192) / layout.section_sectors()).max(1);
        for bit in (3..64 - device.leading_zeros()).rev() {
            layout.provided |= 1 << bit;
            if !layout.fits(device) {
                layout.provided &= !(1 << bit);
            }
        }
        match layout.provided {
            0 => Err(Error::refused("a device that is too small for tags and data")),
            _ => Ok(layout),
        }
    }

    fn to_bytes(&self) -> [u8; SECTOR as usize] {
        let mut bytes = [0; SECTOR as usize];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8] = 4;
        bytes[9] = self.log2_interleave as u8;
        bytes[10..12].copy_from_slice(&(TAG as u16).to_le_bytes());
        bytes[12..16].copy_from_slice(&(self.sections as u32).to_le_bytes());
        bytes[16..24].copy_from_slice(&self.provided.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.flags.to_le_bytes());
        bytes[28] = self.per_block.trailing_zeros() as u8;
        bytes
    }

    fn fits(&self, device: u64) -> bool {
        let journal = self.sections.checked_mul(self.section_sectors());
        let initial = journal.and_then(|journal| journal.checked_add(SUPERBLOCK));
        let areas = (self.provided.saturating_sub(1) >> self.log2_interleave) + 1;
        let tags = areas.checked_mul(self.tag_run());
        initial
            .zip(tags)
            .and_then(|(initial, tags)| initial.checked_add(tags)?.checked_add(self.provided))
            .is_some_and(|end| end <= device)
    }

    /// Bytes of a journal entry: sector number, the last bytes of each sector, the tag.
    fn entry_len(&self) -> u64 {
        8 + 8 * self.per_block + TAG as u64
    }

    /// Where an entry is in its section.
    fn entry_at(&self, entry: u64) -> usize {
        (entry % ENTRY_SECTORS * SECTOR + entry / ENTRY_SECTORS * self.entry_len()) as usize
    }

    fn section_entries(&self) -> u64 {
        ENTRY_SPACE / self.entry_len() * ENTRY_SECTORS
    }

    fn section_sectors(&self) -> u64 {
        self.section_entries() * self.per_block + ENTRY_SECTORS
    }

    fn initial(&self) -> u64 {
        SUPERBLOCK + self.sections * self.section_sectors()
    }

    /// Sectors of the tags of an area.
    fn tag_run(&self) -> u64 {
        let bytes = (TAG as u64) << (self.log2_interleave - self.per_block.trailing_zeros());
        let unit = if self.flags & FLAG_FIXED_PADDING != 0 { 8 * SECTOR } else { SECTOR << 8 };
        bytes.next_multiple_of(unit) / SECTOR
    }

    /// Byte offsets on the device of a data sector and of its block's tag; the sectors left in its area.
    fn place(&self, sector: u64) -> (u64, u64, u64) {
        let interleave = 1 << self.log2_interleave;
        let (area, inside) = (sector / interleave, sector % interleave);
        let tags = self.initial() + area * (interleave + self.tag_run());
        let data = tags + self.tag_run() + inside;
        (data * SECTOR, tags * SECTOR + inside / self.per_block * TAG as u64, interleave - inside)
    }
}

/// A segment whose sectors are encrypted and authenticated.
pub struct Authenticated<D> {
    disk: D,
    layout: Layout,
    xts: Xts,
    mac: hmac::Key,
    /// Ciphertext and tag of blocks that are still in the kernel's journal, by first sector.
    journal: BTreeMap<u64, (Vec<u8>, [u8; TAG])>,
}

impl<D: Disk> Authenticated<D> {
    /// Opens a formatted segment; the key is 64 bytes for AES-XTS, then 32 for HMAC.
    ///
    /// # Errors
    /// `Damaged` or `Refused` for a superblock that does not suit.
    pub fn open(disk: D, key: &[u8], sector: u32, writable: bool) -> Result<Self, Error> {
        let mut superblock = [0; SECTOR as usize];
        disk.read_at(&mut superblock, 0)?;
        let per_block = u64::from(sector) / SECTOR;
        let layout = Layout::parse(&superblock, disk.len() / SECTOR, per_block)?;
        let mut opened = Self::with_layout(disk, layout, key, sector);
        opened.read_journal()?;
        if writable {
            opened.apply_journal()?;
        }
        Ok(opened)
    }

    /// Writes a superblock, an empty journal, and zeros with their tags over everything.
    ///
    /// # Errors
    /// When the segment is too small or cannot be written.
    pub fn format(disk: D, key: &[u8], sector: u32) -> Result<Self, Error> {
        let layout = Layout::plan(disk.len() / SECTOR, u64::from(sector) / SECTOR)?;
        let mut formatted = Self::with_layout(disk, layout, key, sector);
        let zeros = vec![0; RUN];
        formatted.disk.write_at(&zeros[..(SUPERBLOCK * SECTOR) as usize], 0)?;
        formatted.write_empty_journal()?;
        for at in (0..formatted.len()).step_by(RUN) {
            let len = RUN.min((formatted.len() - at) as usize);
            formatted.write_at(&zeros[..len], at)?;
        }
        let superblock = formatted.layout.to_bytes();
        formatted.disk.flush()?;
        formatted.disk.write_at(&superblock, 0)?;
        formatted.disk.flush()?;
        Ok(formatted)
    }

    fn with_layout(disk: D, layout: Layout, key: &[u8], sector: u32) -> Self {
        let (cipher, mac) = key.split_at(64);
        let mac = hmac::Key::new(hmac::HMAC_SHA256, mac);
        Self { disk, layout, xts: Xts::new(cipher, sector), mac, journal: BTreeMap::new() }
    }

    fn tag(&self, sector: u64, ciphertext: &[u8]) -> hmac::Tag {
        let mut context = hmac::Context::with_key(&self.mac);
        let number = sector.to_le_bytes();
        for part in [&number[..], &number, &[0; 8], ciphertext] {
            context.update(part);
        }
        context.sign()
    }

    fn verified(&self, sector: u64, ciphertext: &[u8], tag: &[u8]) -> Result<(), Error> {
        let mut message = Vec::with_capacity(24 + ciphertext.len());
        let number = sector.to_le_bytes();
        for part in [&number[..], &number, &[0; 8], ciphertext] {
            message.extend_from_slice(part);
        }
        hmac::verify(&self.mac, &message, tag)
            .map_err(|_| Error::damaged(format!("sector {sector} fails authentication")))
    }

    /// Reads whole blocks that lie in one area.
    fn read_run(&self, target: &mut [u8], offset: u64) -> Result<(), Error> {
        let block = self.xts.sector();
        let (data_at, tags_at, _) = self.layout.place(offset / SECTOR);
        self.disk.read_at(target, data_at)?;
        let mut tags = vec![0; target.len() / block * TAG];
        self.disk.read_at(&mut tags, tags_at)?;
        for (index, (data, tag)) in target.chunks_mut(block).zip(tags.chunks_mut(TAG)).enumerate() {
            let sector = offset / SECTOR + index as u64 * self.layout.per_block;
            if let Some((newer, its_tag)) = self.journal.get(&sector) {
                data.copy_from_slice(newer);
                tag.copy_from_slice(its_tag);
            }
            self.verified(sector, data, tag)?;
        }
        self.xts.decrypt(target, offset);
        Ok(())
    }

    fn write_run(&mut self, source: &[u8], offset: u64) -> Result<(), Error> {
        let block = self.xts.sector();
        let mut data = source.to_vec();
        self.xts.encrypt(&mut data, offset);
        let mut tags = Vec::with_capacity(data.len() / block * TAG);
        for (index, data) in data.chunks(block).enumerate() {
            let sector = offset / SECTOR + index as u64 * self.layout.per_block;
            tags.extend_from_slice(self.tag(sector, data).as_ref());
        }
        let (data_at, tags_at, _) = self.layout.place(offset / SECTOR);
        self.disk.write_at(&data, data_at)?;
        self.disk.write_at(&tags, tags_at)
    }

    /// The parts of a range of whole blocks that lie in one area each: offset and length.
    fn runs(&self, offset: u64, len: usize) -> Vec<(u64, usize)> {
        let mut runs = Vec::new();
        let (mut at, mut left) = (offset, len);
        while left > 0 {
            let (_, _, in_area) = self.layout.place(at / SECTOR);
            let take = left.min(RUN).min((in_area * SECTOR) as usize);
            runs.push((at, take));
            (at, left) = (at + take as u64, left - take);
        }
        runs
    }

    /// Collects what the kernel wrote to its journal and may not have copied to the data yet.
    fn read_journal(&mut self) -> Result<(), Error> {
        let mut states = Vec::new();
        for section in 0..self.layout.sections {
            match self.commit_ids(section)? {
                Some(ids) => states.push(ids),
                None => return Err(Error::damaged("the journal of dm-integrity")),
            }
        }
        for section in replay_order(&states) {
            self.read_section(section)?;
        }
        Ok(())
    }

    /// The commit ids in the sectors of a section, a bit each; `None` if one is none.
    fn commit_ids(&self, section: u64) -> Result<Option<u8>, Error> {
        let bytes = self.section(section)?;
        let mut ids = 0;
        for (index, sector) in bytes.chunks(SECTOR as usize).enumerate() {
            let id = u64::from_le_bytes(sector[ENTRY_SPACE as usize..].try_into().expect("eight"));
            let id = id ^ (section << 32) ^ index as u64;
            match COMMIT_IDS.iter().position(|&known| known == id) {
                Some(known) => ids |= 1 << known,
                None => return Ok(None),
            }
        }
        Ok(Some(ids))
    }

    fn section(&self, section: u64) -> Result<Vec<u8>, Error> {
        let sectors = self.layout.section_sectors();
        let mut bytes = vec![0; (sectors * SECTOR) as usize];
        self.disk.read_at(&mut bytes, (SUPERBLOCK + section * sectors) * SECTOR)?;
        Ok(bytes)
    }

    fn read_section(&mut self, section: u64) -> Result<(), Error> {
        let bytes = self.section(section)?;
        let block = self.xts.sector();
        for entry in 0..self.layout.section_entries() {
            let at =
                entry % ENTRY_SECTORS * SECTOR + entry / ENTRY_SECTORS * self.layout.entry_len();
            let fields = &bytes[at as usize..][..self.layout.entry_len() as usize];
            let sector = u64::from_le_bytes(fields[..8].try_into().expect("eight"));
            if sector >> 32 >= 0xffff_fffe {
                continue;
            }
            if sector >= self.layout.provided || sector % self.layout.per_block != 0 {
                return Err(Error::damaged("a journal entry of a sector that is not there"));
            }
            let data_at = (ENTRY_SECTORS + entry * self.layout.per_block) * SECTOR;
            let mut data = bytes[data_at as usize..][..block].to_vec();
            for (index, sector) in data.chunks_mut(SECTOR as usize).enumerate() {
                sector[ENTRY_SPACE as usize..].copy_from_slice(&fields[8 + 8 * index..][..8]);
            }
            let tag = fields[fields.len() - TAG..].try_into().expect("a tag");
            self.journal.insert(sector, (data, tag));
        }
        Ok(())
    }

    /// Copies the journal's blocks to the data, then empties the journal.
    fn apply_journal(&mut self) -> Result<(), Error> {
        for (sector, (data, tag)) in std::mem::take(&mut self.journal) {
            let (data_at, tag_at, _) = self.layout.place(sector);
            self.disk.write_at(&data, data_at)?;
            self.disk.write_at(&tag, tag_at)?;
        }
        self.disk.flush()?;
        self.write_empty_journal()
    }

    /// Sections without entries, all of one sequence.
    fn write_empty_journal(&mut self) -> Result<(), Error> {
        for section in 0..self.layout.sections {
            let sectors = self.layout.section_sectors();
            let mut bytes = vec![0; (sectors * SECTOR) as usize];
            for entry in 0..self.layout.section_entries() {
                let at = self.layout.entry_at(entry);
                bytes[at..at + 8].copy_from_slice(&UNUSED.to_le_bytes());
            }
            for (index, sector) in bytes.chunks_mut(SECTOR as usize).enumerate() {
                let id = COMMIT_IDS[0] ^ (section << 32) ^ index as u64;
                sector[ENTRY_SPACE as usize..].copy_from_slice(&id.to_le_bytes());
            }
            self.disk.write_at(&bytes, (SUPERBLOCK + section * sectors) * SECTOR)?;
        }
        self.disk.flush()
    }
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

/// The sections to replay, oldest first, as the kernel does it: `ids` has a bit for each commit id that
/// occurs in a section; one with several was torn by a crash and ends the log.
fn replay_order(ids: &[u8]) -> Vec<u64> {
    let used = ids.iter().fold(0, |used, ids| used | ids);
    let is_used = |id: u32| used >> id & 1 == 1;
    let unused = match is_used(3) {
        false => u8::BITS - used.leading_zeros(),
        true => match (0..4).find(|&id| !is_used(id)) {
            Some(unused) => unused,
            None => return Vec::new(),
        },
    };
    let before = |id: u32| (id + 3) % 4;
    let last = before(unused);
    let older = before(last);
    if !is_used(older) && is_used(before(older)) {
        return Vec::new();
    }
    let start = ids.iter().rposition(|ids| ids >> last & 1 == 1).map_or(0, |newest| newest + 1);
    let tail = (start..ids.len()).take_while(|&at| ids[at] == 1 << older);
    let mut order: Vec<usize> = tail.collect();
    if order.len() == ids.len() - start {
        order.extend((0..start).take_while(|&at| ids[at] == 1 << last));
    }
    order.into_iter().map(|section| section as u64).collect()
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
        for (at, len) in self.runs(offset, rest.len()) {
            let (run, left) = rest.split_at_mut(len);
            self.read_run(run, at)?;
            rest = left;
        }
        Ok(())
    }

    fn write_at(&mut self, source: &[u8], offset: u64) -> Result<(), Error> {
        check_range(self.len(), source.len(), offset)?;
        let block = self.xts.sector();
        assert!(source.len().is_multiple_of(block), "part of a sector");
        assert!(offset.is_multiple_of(block as u64), "from within a sector");
        let mut rest = source;
        for (at, len) in self.runs(offset, rest.len()) {
            let (run, left) = rest.split_at(len);
            self.write_run(run, at)?;
            rest = left;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Error> {
        self.disk.flush()
    }
}

#[cfg(test)]
mod tests {
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
            opened.write_at(&data, far).expect("write");
            let disk = opened.disk;
            let opened = Authenticated::open(disk, &key, sector, true).expect("open");
            let mut read = vec![0; data.len() - 100];
            opened.read_at(&mut read, far + 50).expect("read");
            assert_eq!(read, data[50..data.len() - 50]);
            let (at, tag_at, _) = opened.layout.place(far / SECTOR);
            for damage in [at + 7, tag_at + 31] {
                let mut disk = opened.disk.clone();
                disk[damage as usize] ^= 1;
                let damaged = Authenticated::open(disk, &key, sector, false).expect("open");
                assert!(damaged.read_at(&mut read, far).is_err());
                damaged.read_at(&mut read, 0).expect("others are fine");
            }
            let mut disk = opened.disk.clone();
            let (other, other_tag, _) = opened.layout.place(0);
            disk.copy_within(at as usize..at as usize + sector as usize, other as usize);
            disk.copy_within(tag_at as usize..tag_at as usize + TAG, other_tag as usize);
            let moved = Authenticated::open(disk, &key, sector, false).expect("open");
            assert!(moved.read_at(&mut read, 0).is_err());
        }
    }

    #[test]
    fn the_order_of_replay_follows_the_commit_ids() {
        let order = |ids: &[u32]| replay_order(&ids.iter().map(|id| 1 << id).collect::<Vec<u8>>());
        // Section 2 was written last (id 1); sections 3 and 4 still carry id 0.
        assert_eq!(order(&[1, 1, 1, 0, 0]), [3, 4, 0, 1, 2]);
        assert_eq!(order(&[0, 0, 0]), [0, 1, 2]);
        assert_eq!(order(&[3, 3]), [0, 1]);
        assert_eq!(order(&[2, 1]), [1, 0]);
        assert_eq!(order(&[0, 3]), [1, 0]);
        assert_eq!(order(&[0, 1, 2, 3]), Vec::<u64>::new());
        // Section 1 is torn: half of it has the id of the last pass.
        assert_eq!(replay_order(&[0b10, 0b11, 0b01]), [2, 0]);
    }
}
