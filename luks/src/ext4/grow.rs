//! Growing: groups behind those that there are, then one transaction that counts them in.
//!
//! What lies behind the end of the file system is nobody's: it is written first, past the journal. A process that is
//! killed before the transaction leaves the file system as it was, one that is killed after it the larger one.
//! Descriptors for which there is no room behind the superblock lie among their groups (`meta_bg`), as the kernel
//! puts them when it grows a file system that has no blocks reserved for them; so nothing has to move.

use super::FileSystem;
use super::format::bitmap;
use super::layout::{
    Geometry, INCOMPAT_META_BG, INCOMPAT_RECOVER, INODE_LEN, SUPERBLOCK_AT, SUPERBLOCK_LEN,
    has_backup, le16, le32, put16, put32,
};
use crate::Error;
use crate::disk::Disk;

const BLOCK: usize = 4096;
/// Where the superblock is in block 0.
const SUPERBLOCK: usize = SUPERBLOCK_AT as usize;
/// Blocks that a last group must have for content: fewer are not worth its tables.
const CONTENT_MIN: u64 = 64;

/// The file system before and after.
struct Growth {
    before: Geometry,
    after: Geometry,
}

/// Where the parts of a new group are.
struct Group {
    first: u64,
    len: u64,
    bitmaps: u64,
    table: u64,
    content: u64,
}

impl Growth {
    /// What can be had of a disk of that many bytes, if it is more than there is.
    fn plan(before: &Geometry, disk_len: u64) -> Result<Option<Self>, Error> {
        if !before.sparse {
            return Err(Error::Foreign("hfl did not make it"));
        }
        let mut after = before.clone();
        let blocks = (disk_len / BLOCK as u64).min(u32::MAX.into());
        if blocks <= before.blocks {
            return Ok(None);
        }
        after.blocks = blocks;
        after.groups = blocks.div_ceil(before.blocks_per_group);
        let per_block = before.descriptors_per_block();
        let behind_superblock = before.groups.div_ceil(per_block);
        if after.groups > behind_superblock * per_block {
            after.first_meta_bg = before.first_meta_bg.min(behind_superblock);
        }
        let growth = Self { before: before.clone(), after }.without_scrap();
        let mut new = (before.groups..growth.after.groups).map(|group| growth.group(group));
        match new.all(|new| new.content < new.first + new.len) {
            true => Ok(Some(growth).filter(|growth| growth.after.blocks > before.blocks)),
            false => Err(Error::file_system("groups that are smaller than their tables")),
        }
    }

    /// Without a new last group that is too small for its tables.
    fn without_scrap(mut self) -> Self {
        let last = self.after.groups - 1;
        if last >= self.before.groups {
            let Group { first, len, content, .. } = self.group(last);
            if first + len < content + CONTENT_MIN {
                self.after.blocks = first;
                self.after.groups = last;
            }
        }
        self
    }

    /// A new group: copies in front, bitmaps, inodes, content.
    fn group(&self, group: u64) -> Group {
        let (first, len) = self.after.group(group);
        let bitmaps = first + u64::from(has_backup(group)) + self.descriptors_in(group);
        let inodes = u64::from(self.after.inodes_per_group);
        let table_len = (inodes * INODE_LEN as u64).div_ceil(BLOCK as u64);
        Group { first, len, bitmaps, table: bitmaps + 2, content: bitmaps + 2 + table_len }
    }

    /// Blocks of descriptors that lie behind each copy of the superblock.
    fn behind_superblock(&self) -> u64 {
        let all = self.after.groups.div_ceil(self.after.descriptors_per_block());
        all.min(self.after.first_meta_bg)
    }

    /// Blocks of descriptors that a group holds.
    fn descriptors_in(&self, group: u64) -> u64 {
        let per_block = self.after.descriptors_per_block();
        match group / per_block < self.after.first_meta_bg {
            true if has_backup(group) => self.behind_superblock(),
            true => 0,
            false => u64::from([0, 1, per_block - 1].contains(&(group % per_block))),
        }
    }

    /// Everywhere that a block of descriptors is.
    fn places(&self, index: u64) -> Vec<u64> {
        let per_block = self.after.descriptors_per_block();
        if index >= self.after.first_meta_bg {
            let groups = [0, 1, per_block - 1].map(|at| index * per_block + at);
            let there = groups.into_iter().filter(|&group| group < self.after.groups);
            return there.map(|group| self.after.own_descriptors(group)).collect();
        }
        let end = self.after.first_meta_bg.saturating_mul(per_block).min(self.after.groups);
        let holders = (0..end).filter(|&group| has_backup(group));
        holders.map(|group| self.after.group(group).0 + 1 + index).collect()
    }

    /// The groups whose descriptors change.
    fn changed_groups(&self) -> std::ops::Range<u64> {
        self.before.groups - 1..self.after.groups
    }

    /// Blocks that the last of the old groups gains.
    fn more_in_last(&self) -> u64 {
        let last = self.before.groups - 1;
        self.after.group(last).1 - self.before.group(last).1
    }

    /// Blocks for content that are gained in all.
    fn free(&self) -> u64 {
        let new = (self.before.groups..self.after.groups).map(|group| self.group(group));
        self.more_in_last() + new.map(|new| new.first + new.len - new.content).sum::<u64>()
    }
}

impl<D: Disk> FileSystem<D> {
    /// Takes in what its disk has behind it; the bytes that were gained. Nothing happens if there is nothing, or
    /// less than a group needs.
    ///
    /// # Errors
    /// `Foreign` where [`FileSystem::format`] did not make it; what the disk refuses. Killed within, it is as it was.
    pub fn grow(&mut self) -> Result<u64, Error> {
        self.check_writable()?;
        let Some(growth) = Growth::plan(&self.geometry, self.blocks.disk.len())? else {
            return Ok(0);
        };
        let inodes = growth.after.groups.checked_mul(growth.after.inodes_per_group.into());
        let inodes = inodes.and_then(|inodes| u32::try_from(inodes).ok());
        let inodes = inodes.ok_or_else(|| Error::refused("more than 2^32 inodes"))?;
        let after = Geometry { inodes, ..growth.after.clone() };
        self.write_new_groups(&growth)?;
        self.write_copied_descriptors(&growth)?;
        let mut outside = Vec::new();
        let before = self.blocks.changes.clone();
        let counted = self.count_in(&growth, inodes, &mut outside);
        let changes = std::mem::replace(&mut self.blocks.changes, before);
        counted?;
        for (block, bytes) in outside {
            self.blocks.write_now(block, &bytes)?;
        }
        // New groups before they are counted.
        self.blocks.flush()?;
        self.transaction(|fs| {
            fs.blocks.changes = changes;
            Ok(())
        })?;
        let gained = (after.blocks - self.geometry.blocks) * BLOCK as u64;
        self.blocks.count = after.blocks;
        self.geometry = after;
        Ok(gained)
    }

    fn write_new_groups(&mut self, growth: &Growth) -> Result<(), Error> {
        let inodes = growth.after.inodes_per_group;
        for group in growth.before.groups..growth.after.groups {
            let Group { first, len, bitmaps, table, content } = growth.group(group);
            self.blocks.write_now(bitmaps, &bitmap(content - first, len))?;
            self.blocks.write_now(bitmaps + 1, &bitmap(0, inodes.into()))?;
            self.blocks.write_now(table, &vec![0; (content - table) as usize * BLOCK])?;
        }
        Ok(())
    }

    /// Writes the blocks of descriptors that do not change to those new groups that hold copies.
    fn write_copied_descriptors(&mut self, growth: &Growth) -> Result<(), Error> {
        let first_changed = growth.changed_groups().start / growth.after.descriptors_per_block();
        for index in 0..first_changed.min(growth.behind_superblock()) {
            let (place, _) = growth.before.descriptor(index * growth.after.descriptors_per_block());
            let bytes = self.blocks.read(place)?;
            for place in growth.places(index) {
                if place >= growth.before.blocks {
                    self.blocks.write_now(place, &bytes)?;
                }
            }
        }
        Ok(())
    }

    /// Collects what has to change at once: the superblock, descriptors and copies of both, the last bitmap. What of
    /// it lies in new groups goes to `outside`.
    fn count_in(
        &mut self,
        growth: &Growth,
        inodes: u32,
        outside: &mut Vec<(u64, Vec<u8>)>,
    ) -> Result<(), Error> {
        let end = growth.before.blocks;
        let mut put = |fs: &mut Self, block: u64, bytes: Vec<u8>| match block < end {
            true => fs.blocks.replace(block, bytes),
            false => outside.push((block, bytes)),
        };
        self.extend_last_group(growth)?;
        let per_block = growth.after.descriptors_per_block();
        let changed = growth.changed_groups();
        for index in changed.start / per_block..=(changed.end - 1) / per_block {
            let bytes = self.descriptors(growth, index)?;
            for place in growth.places(index) {
                put(self, place, bytes.clone());
            }
        }
        let superblock = self.larger_superblock(growth, inodes)?;
        for group in (1..growth.after.groups).filter(|&group| has_backup(group)) {
            let mut copy = vec![0; BLOCK];
            copy[..SUPERBLOCK_LEN].copy_from_slice(&superblock);
            put16(&mut copy, 90, group as u16);
            let features = le32(&copy, 96);
            put32(&mut copy, 96, features & !INCOMPAT_RECOVER);
            put(self, growth.after.group(group).0, copy);
        }
        self.blocks.edit(0)?[SUPERBLOCK..][..SUPERBLOCK_LEN].copy_from_slice(&superblock);
        Ok(())
    }

    /// Frees what the last of the old groups gains, in its bitmap and its descriptor.
    fn extend_last_group(&mut self, growth: &Growth) -> Result<(), Error> {
        let last = growth.before.groups - 1;
        let len = growth.before.group(last).1;
        let bitmap = self.descriptor(last, |descriptor| descriptor.block_bitmap())?;
        self.blocks.check(bitmap, 1)?;
        let bits = self.blocks.edit(bitmap)?;
        (len..len + growth.more_in_last())
            .for_each(|bit| bits[bit as usize / 8] &= !(1 << (bit % 8)));
        let (block, at) = growth.before.descriptor(last);
        let bytes = self.blocks.edit(block)?;
        let free = u64::from(le16(bytes, at + 12)) + growth.more_in_last();
        put16(bytes, at + 12, free as u16);
        Ok(())
    }

    /// A block of descriptors: those that there are, and the new ones.
    fn descriptors(&self, growth: &Growth, index: u64) -> Result<Vec<u8>, Error> {
        let per_block = growth.after.descriptors_per_block();
        let mut bytes = match index * per_block < growth.before.groups {
            true => self.blocks.read(growth.before.descriptor(index * per_block).0)?,
            false => vec![0; BLOCK],
        };
        let end = ((index + 1) * per_block).min(growth.after.groups);
        for group in (index * per_block).max(growth.before.groups)..end {
            let Group { first, len, bitmaps, table, content } = growth.group(group);
            let at = (group % per_block) as usize * growth.after.descriptor_len;
            put32(&mut bytes, at, bitmaps as u32);
            put32(&mut bytes, at + 4, bitmaps as u32 + 1);
            put32(&mut bytes, at + 8, table as u32);
            put16(&mut bytes, at + 12, (first + len - content) as u16);
            put16(&mut bytes, at + 14, growth.after.inodes_per_group as u16);
        }
        Ok(bytes)
    }

    fn larger_superblock(
        &self,
        growth: &Growth,
        inodes: u32,
    ) -> Result<[u8; SUPERBLOCK_LEN], Error> {
        let block = self.blocks.read(0)?;
        let mut bytes: [u8; SUPERBLOCK_LEN] =
            block[SUPERBLOCK..][..SUPERBLOCK_LEN].try_into().expect("a superblock");
        let free_blocks = u64::from(le32(&bytes, 12)) + growth.free();
        let free_inodes = le32(&bytes, 16).wrapping_add(inodes - growth.before.inodes);
        put32(&mut bytes, 0, inodes);
        put32(&mut bytes, 4, growth.after.blocks as u32);
        put32(&mut bytes, 12, free_blocks as u32);
        put32(&mut bytes, 16, free_inodes);
        if growth.after.first_meta_bg != u64::MAX {
            let features = le32(&bytes, 96);
            put32(&mut bytes, 96, features | INCOMPAT_META_BG);
            put32(&mut bytes, 0x104, growth.after.first_meta_bg as u32);
        }
        Ok(bytes)
    }
}
