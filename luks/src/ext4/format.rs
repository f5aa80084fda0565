//! Making a file system: a fixed profile that every ext4 since 2008 mounts.

use super::FileSystem;
use super::blocks::Blocks;
use super::directory::{self, TYPE_DIRECTORY};
use super::extent::{self, Extent};
use super::journal;
use super::layout::{
    COMPAT_EXT_ATTR, COMPAT_JOURNAL, INCOMPAT_EXTENTS, INCOMPAT_FILE_TYPE, INODE_LEN, INODE_TREE,
    Inode, JOURNAL, MAGIC, MODE_DIRECTORY, MODE_FILE, RO_EXTRA_ISIZE, RO_LARGE_FILE,
    RO_SPARSE_SUPER, ROOT, SUPERBLOCK_AT, has_backup, put16, put32,
};
use crate::Error;
use crate::disk::Disk;
use crate::random::random;

const BLOCK: usize = 4096;
const BLOCKS_PER_GROUP: u64 = 8 * BLOCK as u64;
/// A model directory has a handful of files.
const INODES_PER_GROUP: u32 = 512;
/// As many as a bitmap has bits for.
const INODES_PER_GROUP_MAX: u64 = 8 * BLOCK as u64;
const INODES_PER_BLOCK: u64 = (BLOCK / INODE_LEN) as u64;
/// The least that JBD2 accepts: 4 MiB.
const JOURNAL_BLOCKS: u64 = 1024;
const FIRST_INODE: u32 = 11;
const LOST_AND_FOUND: u32 = FIRST_INODE;

/// Where the parts of a group are.
struct Group {
    first: u64,
    len: u64,
    /// Superblock and descriptors in front, if this group has them.
    backup: u64,
    inodes: u32,
}

impl Group {
    fn bitmaps(&self) -> u64 {
        self.first + self.backup
    }

    fn table(&self) -> u64 {
        self.bitmaps() + 2
    }

    /// First block for content.
    fn content(&self) -> u64 {
        self.table() + u64::from(self.inodes) / INODES_PER_BLOCK
    }
}

impl<D: Disk> FileSystem<D> {
    /// Makes an empty file system over the whole disk, and opens it for writing. `now` is in seconds
    /// since 1970.
    ///
    /// # Errors
    /// `Refused` when the disk is too small; what the disk refuses.
    pub fn format(disk: D, label: &str, now: u32) -> Result<Self, Error> {
        Self::format_for(disk, label, 0, now)
    }

    /// The same with room for so many files and directories.
    ///
    /// # Errors
    /// As [`FileSystem::format`].
    pub fn format_for(disk: D, label: &str, files: u64, now: u32) -> Result<Self, Error> {
        let groups = plan(disk.len() / BLOCK as u64, files)?;
        let per_group = groups[0].inodes;
        let count = groups.last().map_or(0, |group| group.first + group.len);
        let mut blocks =
            Blocks { disk, size: BLOCK, count, changes: std::collections::BTreeMap::new() };
        let mut uuid = [0; 32];
        random(&mut uuid)?;
        let (uuid, hash_seed) = uuid.split_at(16);
        let uuid: &[u8; 16] = uuid.try_into().expect("half of 32");

        // The content of group 0: root, lost+found, journal.
        let root = groups[0].content();
        let (lost, log) = (root + 1, root + 2);
        write_first_content(&mut blocks, root, uuid)?;
        let used_in_first = log + JOURNAL_BLOCKS - groups[0].first;
        let mut table = vec![0; per_group as usize * INODE_LEN];
        let mut journal_tree = [0; 60];
        let inodes = [
            (ROOT, MODE_DIRECTORY | 0o755, 3, root, 1),
            (JOURNAL, MODE_FILE | 0o600, 1, log, JOURNAL_BLOCKS),
            (LOST_AND_FOUND, MODE_DIRECTORY | 0o700, 2, lost, 1),
        ];
        for (number, mode, links, physical, len) in inodes {
            let mut inode = Inode::new(mode, links, now);
            inode.set_len(len * BLOCK as u64, len);
            let extent = Extent { logical: 0, physical, len, written: true };
            extent::write(&mut blocks, &mut inode, &[extent], &[]);
            if number == JOURNAL {
                journal_tree.copy_from_slice(&inode.bytes[INODE_TREE]);
            }
            table[(number - 1) as usize * INODE_LEN..][..INODE_LEN].copy_from_slice(&inode.bytes);
        }
        let mut descriptors = vec![0; descriptor_blocks(groups.len()) as usize * BLOCK];
        let mut free = 0;
        for (index, group) in groups.iter().enumerate() {
            let used = if index == 0 { used_in_first } else { group.content() - group.first };
            blocks.write_now(group.bitmaps(), &bitmap(used, group.len))?;
            let inodes_used = if index == 0 { FIRST_INODE } else { 0 };
            let inode_bitmap = bitmap(inodes_used.into(), per_group.into());
            blocks.write_now(group.bitmaps() + 1, &inode_bitmap)?;
            blocks.write_now(group.table(), &table)?;
            table.fill(0);
            let descriptor = &mut descriptors[index * 32..][..32];
            put32(descriptor, 0, group.bitmaps() as u32);
            put32(descriptor, 4, group.bitmaps() as u32 + 1);
            put32(descriptor, 8, group.table() as u32);
            put16(descriptor, 12, (group.len - used) as u16);
            put16(descriptor, 14, (per_group - inodes_used) as u16);
            put16(descriptor, 16, if index == 0 { 2 } else { 0 });
            free += group.len - used;
        }
        let mut superblock = superblock(&groups, free, label, now);
        superblock[104..120].copy_from_slice(uuid);
        superblock[0xec..0xfc].copy_from_slice(hash_seed);
        superblock[0x10c..0x10c + 60].copy_from_slice(&journal_tree);
        put32(&mut superblock, 0x10c + 64, (JOURNAL_BLOCKS * BLOCK as u64) as u32);
        // The first copy last: until then there is no file system.
        for (index, group) in groups.iter().enumerate().rev().filter(|(_, g)| g.backup > 0) {
            put16(&mut superblock, 90, index as u16);
            let mut block = vec![0; BLOCK];
            let at = if index == 0 { SUPERBLOCK_AT as usize } else { 0 };
            block[at..at + superblock.len()].copy_from_slice(&superblock);
            blocks.write_now(group.first + 1, &descriptors)?;
            if index == 0 {
                blocks.flush()?;
            }
            blocks.write_now(group.first, &block)?;
        }
        blocks.flush()?;
        Self::open_writable(blocks.disk)
    }
}

/// Bytes that content can take in a file system that is made on so many; 0 where there is none.
pub fn capacity(disk_len: u64) -> u64 {
    let Ok(groups) = plan(disk_len / BLOCK as u64, 0) else {
        return 0;
    };
    let free: u64 = groups.iter().map(|group| group.first + group.len - group.content()).sum();
    // Root, lost+found and the journal.
    (free - 2 - JOURNAL_BLOCKS) * BLOCK as u64
}

/// Root, lost+found and an empty journal, one after the other from `root` on.
fn write_first_content<D: Disk>(
    blocks: &mut Blocks<D>,
    root: u64,
    uuid: &[u8; 16],
) -> Result<(), Error> {
    let mut root_block = directory::new_block(BLOCK, Some([ROOT, ROOT]));
    close_block(&mut root_block);
    let name = b"lost+found";
    let fits = directory::insert(&mut root_block, name, LOST_AND_FOUND, TYPE_DIRECTORY)?;
    assert!(fits, "an empty block has room");
    let mut lost_block = directory::new_block(BLOCK, Some([LOST_AND_FOUND, ROOT]));
    close_block(&mut lost_block);
    let mut log = vec![0; BLOCK * JOURNAL_BLOCKS as usize];
    log[..BLOCK].copy_from_slice(&journal::new_superblock(BLOCK, JOURNAL_BLOCKS as u32, uuid));
    for (block, bytes) in [(root, root_block), (root + 1, lost_block), (root + 2, log)] {
        blocks.write_now(block, &bytes)?;
    }
    Ok(())
}

/// Lets the last entry of a fresh directory block take the rest of it.
fn close_block(block: &mut [u8]) {
    put16(block, 12 + 4, (BLOCK - 12) as u16);
}

/// The groups of a disk; a last one that is too small for its own tables is left out.
fn plan(blocks: u64, files: u64) -> Result<Vec<Group>, Error> {
    let blocks = blocks.min(u32::MAX.into());
    let needed = (files + u64::from(FIRST_INODE)).div_ceil((blocks / BLOCKS_PER_GROUP).max(1));
    let inodes = needed.next_multiple_of(INODES_PER_BLOCK).max(INODES_PER_GROUP.into());
    if inodes > INODES_PER_GROUP_MAX {
        return Err(Error::refused(format!("{files} files in {} MiB", blocks >> 8)));
    }
    let inodes = inodes as u32;
    let mut groups = groups_of(blocks, inodes);
    if groups.last().is_some_and(|last| last.len < last.content() - last.first + 64) {
        // Anew: the others may need a block of descriptors less.
        groups = groups_of(blocks / BLOCKS_PER_GROUP * BLOCKS_PER_GROUP, inodes);
    }
    let needed = |first: &Group| first.content() + JOURNAL_BLOCKS + 256;
    match groups.first() {
        Some(first) if first.len >= needed(first) => Ok(groups),
        _ => Err(Error::refused("a file system on less than about 6 MiB of data")),
    }
}

fn groups_of(blocks: u64, inodes: u32) -> Vec<Group> {
    let count = blocks.div_ceil(BLOCKS_PER_GROUP);
    let group = |index: u64| Group {
        first: index * BLOCKS_PER_GROUP,
        len: BLOCKS_PER_GROUP.min(blocks - index * BLOCKS_PER_GROUP),
        backup: if has_backup(index) { 1 + descriptor_blocks(count as usize) } else { 0 },
        inodes,
    };
    (0..count).map(group).collect()
}

fn descriptor_blocks(groups: usize) -> u64 {
    (groups * 32).div_ceil(BLOCK) as u64
}

/// The first `used` bits, and those behind `len`.
pub(super) fn bitmap(used: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0u8; BLOCK];
    for bit in (0..used).chain(len..8 * BLOCK as u64) {
        bytes[bit as usize / 8] |= 1 << (bit % 8);
    }
    bytes
}

fn superblock(groups: &[Group], free: u64, label: &str, now: u32) -> Vec<u8> {
    let mut bytes = vec![0; 1024];
    let last = groups.last().expect("at least one group");
    let inodes = last.inodes * groups.len() as u32;
    let words = [
        (0, inodes),
        (4, (last.first + last.len) as u32),
        (12, free as u32),
        (16, inodes - FIRST_INODE),
        (24, 2),
        (28, 2),
        (32, BLOCKS_PER_GROUP as u32),
        (36, BLOCKS_PER_GROUP as u32),
        (40, last.inodes),
        (48, now),
        (64, now),
        (76, 1),
        (84, FIRST_INODE),
        (92, COMPAT_JOURNAL | COMPAT_EXT_ATTR),
        (96, INCOMPAT_FILE_TYPE | INCOMPAT_EXTENTS),
        (100, RO_SPARSE_SUPER | RO_LARGE_FILE | RO_EXTRA_ISIZE),
        (0xe0, JOURNAL),
        (0x100, 0xc),
        (0x108, now),
    ];
    for (at, word) in words {
        put32(&mut bytes, at, word);
    }
    // Mount count without limit, magic, clean, remount read-only on errors, inode size, extra fields.
    let halves = [
        (54, 0xffff),
        (56, MAGIC),
        (58, 1),
        (60, 2),
        (88, INODE_LEN as u16),
        (0x15c, 32),
        (0x15e, 32),
    ];
    for (at, half) in halves {
        put16(&mut bytes, at, half);
    }
    // Half MD4 for hashed directories, and the kind of the journal's backup.
    bytes[0xfc] = 1;
    bytes[0xfd] = 1;
    let label = &label.as_bytes()[..label.floor_char_boundary(16)];
    bytes[120..120 + label.len()].copy_from_slice(label);
    bytes
}
