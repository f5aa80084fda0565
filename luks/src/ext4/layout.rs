//! The structures of ext4 on a disk (kernel documentation, `filesystems/ext4`), checked when they are read.

use crate::Error;

pub(super) const SUPERBLOCK_AT: u64 = 1024;
pub(super) const SUPERBLOCK_LEN: usize = 1024;
pub(super) const MAGIC: u16 = 0xef53;
pub(super) const ROOT: u32 = 2;
pub(super) const JOURNAL: u32 = 8;

pub(super) const COMPAT_JOURNAL: u32 = 0x4;
pub(super) const COMPAT_EXT_ATTR: u32 = 0x8;
const COMPAT_SPARSE_SUPER2: u32 = 0x200;
pub(super) const INCOMPAT_FILE_TYPE: u32 = 0x2;
pub(super) const INCOMPAT_RECOVER: u32 = 0x4;
pub(super) const INCOMPAT_META_BG: u32 = 0x10;
pub(super) const INCOMPAT_EXTENTS: u32 = 0x40;
const INCOMPAT_64BIT: u32 = 0x80;
const INCOMPAT_FLEX_BG: u32 = 0x200;
const INCOMPAT_CSUM_SEED: u32 = 0x2000;
const INCOMPAT_LARGE_DIR: u32 = 0x4000;
pub(super) const RO_SPARSE_SUPER: u32 = 0x1;
pub(super) const RO_LARGE_FILE: u32 = 0x2;
const RO_DIR_NLINK: u32 = 0x20;
pub(super) const RO_EXTRA_ISIZE: u32 = 0x40;
const RO_BIGALLOC: u32 = 0x200;

/// What can be read.
const INCOMPAT_READ: u32 =
    INCOMPAT_WRITE | INCOMPAT_64BIT | INCOMPAT_FLEX_BG | INCOMPAT_CSUM_SEED | INCOMPAT_LARGE_DIR;
/// What can be written: the profile that `format` and `grow` make.
const INCOMPAT_WRITE: u32 =
    INCOMPAT_FILE_TYPE | INCOMPAT_RECOVER | INCOMPAT_META_BG | INCOMPAT_EXTENTS;
const COMPAT_WRITE: u32 = COMPAT_JOURNAL | COMPAT_EXT_ATTR;
const RO_WRITE: u32 = RO_SPARSE_SUPER | RO_LARGE_FILE | RO_DIR_NLINK | RO_EXTRA_ISIZE;

pub(super) const MODE_KIND: u16 = 0xf000;
pub(super) const MODE_DIRECTORY: u16 = 0x4000;
pub(super) const MODE_FILE: u16 = 0x8000;
pub(super) const FLAG_INDEX: u32 = 0x1000;
pub(super) const FLAG_EXTENTS: u32 = 0x8_0000;
/// Bytes of an inode that this crate makes.
pub(super) const INODE_LEN: usize = 256;
/// Where the tree of extents is in an inode.
pub(super) const INODE_TREE: std::ops::Range<usize> = 40..100;

/// Largest number of groups: 16 TiB of 4 KiB blocks.
const GROUPS_MAX: u64 = 1 << 17;

pub(super) fn le16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

pub(super) fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

pub(super) fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

pub(super) fn put32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// Sizes and places, as the superblock says them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    pub(super) block: usize,
    pub(super) blocks: u64,
    pub(super) first_block: u64,
    pub(super) blocks_per_group: u64,
    pub(super) inodes: u32,
    pub(super) inodes_per_group: u32,
    pub(super) inode_len: usize,
    pub(super) descriptor_len: usize,
    pub(super) groups: u64,
    /// Blocks of descriptors that lie one behind the other; those of later groups lie among their groups.
    pub(super) first_meta_bg: u64,
    /// Whether few groups hold a copy of the superblock.
    pub(super) sparse: bool,
    pub(super) has_journal: bool,
    /// A journal that may have to be replayed.
    pub(super) recover: bool,
    /// Whether this crate knows everything that writing needs.
    pub(super) writable: Result<(), &'static str>,
}

impl Geometry {
    pub(super) fn parse(bytes: &[u8; SUPERBLOCK_LEN], disk_len: u64) -> Result<Self, Error> {
        let wrong = |what: &str| Error::file_system(format!("ext4 superblock: {what}"));
        if le16(bytes, 56) != MAGIC {
            return Err(Error::refused("no ext4 file system in the volume"));
        }
        let [compat, incompat, ro] = [92, 96, 100].map(|at| le32(bytes, at));
        let is_meta = incompat & INCOMPAT_META_BG != 0;
        let unknown = incompat & !INCOMPAT_READ != 0 || ro & RO_BIGALLOC != 0;
        if unknown || is_meta && compat & COMPAT_SPARSE_SUPER2 != 0 {
            return Err(Error::refused("an ext4 file system with features that are not supported"));
        }
        let log_block = le32(bytes, 24);
        if log_block > 2 {
            return Err(Error::refused("ext4 blocks of more than 4 KiB"));
        }
        let block = 1024usize << log_block;
        let is_64bit = incompat & INCOMPAT_64BIT != 0;
        let high = if is_64bit { u64::from(le32(bytes, 0x150)) } else { 0 };
        let revision = le32(bytes, 76);
        let geometry = Self {
            block,
            blocks: u64::from(le32(bytes, 4)) | high << 32,
            first_block: le32(bytes, 20).into(),
            blocks_per_group: le32(bytes, 32).into(),
            inodes: le32(bytes, 0),
            inodes_per_group: le32(bytes, 40),
            inode_len: if revision == 0 { 128 } else { le16(bytes, 88).into() },
            descriptor_len: if is_64bit { le16(bytes, 0xfe).into() } else { 32 },
            groups: 0,
            first_meta_bg: if is_meta { le32(bytes, 0x104).into() } else { u64::MAX },
            sparse: ro & RO_SPARSE_SUPER != 0,
            has_journal: compat & COMPAT_JOURNAL != 0,
            recover: incompat & INCOMPAT_RECOVER != 0,
            writable: writable(bytes, block, [compat, incompat, ro]),
        };
        let bits = 8 * block as u64;
        if geometry.blocks.checked_mul(block as u64).is_some_and(|len| len > disk_len) {
            return Err(Error::truncated(format!(
                "a file system of {} blocks of {block} bytes, in {disk_len} bytes",
                geometry.blocks
            )));
        }
        if !(1..=bits).contains(&geometry.blocks_per_group)
            || !(1..=bits).contains(&u64::from(geometry.inodes_per_group))
            || geometry.first_block != u64::from(block == 1024)
            || geometry.blocks <= geometry.first_block
            || geometry.blocks.checked_mul(block as u64).is_none()
        {
            return Err(wrong("impossible numbers of blocks or inodes"));
        }
        let groups = (geometry.blocks - geometry.first_block).div_ceil(geometry.blocks_per_group);
        if !geometry.inode_len.is_power_of_two()
            || !(128..=block).contains(&geometry.inode_len)
            || !geometry.descriptor_len.is_power_of_two()
            || !(32..=block).contains(&geometry.descriptor_len)
            || (is_64bit && geometry.descriptor_len < 64)
            || groups > GROUPS_MAX
            || u64::from(geometry.inodes) > groups * u64::from(geometry.inodes_per_group)
        {
            return Err(wrong("impossible sizes of inodes or groups"));
        }
        Ok(Self { groups, ..geometry })
    }

    /// Block and offset of a group's descriptor.
    pub(super) fn descriptor(&self, group: u64) -> (u64, usize) {
        let per_block = self.descriptors_per_block();
        let index = group / per_block;
        let block = match index < self.first_meta_bg {
            true => self.first_block + 1 + index,
            false => self.own_descriptors(index * per_block),
        };
        (block, (group % per_block) as usize * self.descriptor_len)
    }

    pub(super) fn descriptors_per_block(&self) -> u64 {
        (self.block / self.descriptor_len) as u64
    }

    /// Where a group that holds descriptors of its neighbours has them (`meta_bg`).
    pub(super) fn own_descriptors(&self, group: u64) -> u64 {
        let has_superblock = !self.sparse || has_backup(group);
        self.first_block + group * self.blocks_per_group + u64::from(has_superblock)
    }

    /// First block of a group, and how many it has.
    pub(super) fn group(&self, group: u64) -> (u64, u64) {
        let first = self.first_block + group * self.blocks_per_group;
        (first, self.blocks_per_group.min(self.blocks - first))
    }
}

fn writable(bytes: &[u8], block: usize, features: [u32; 3]) -> Result<(), &'static str> {
    let [compat, incompat, ro] = features;
    if compat & !COMPAT_WRITE | incompat & !INCOMPAT_WRITE | ro & !RO_WRITE != 0
        || compat & COMPAT_JOURNAL == 0
        || incompat & INCOMPAT_EXTENTS == 0
        || block != 4096
        || le16(bytes, 88) as usize != INODE_LEN
    {
        return Err("hfl did not make it");
    }
    match le16(bytes, 58) & 2 {
        0 => Ok(()),
        _ => Err("errors are recorded in it: e2fsck first"),
    }
}

/// Fields of a group descriptor.
pub(super) struct Descriptor<'a>(pub(super) &'a [u8]);

impl Descriptor<'_> {
    fn block(&self, at: usize) -> u64 {
        let high = if self.0.len() >= 64 { le32(self.0, 32 + at) } else { 0 };
        u64::from(le32(self.0, at)) | u64::from(high) << 32
    }

    pub(super) fn block_bitmap(&self) -> u64 {
        self.block(0)
    }

    pub(super) fn inode_bitmap(&self) -> u64 {
        self.block(4)
    }

    pub(super) fn inode_table(&self) -> u64 {
        self.block(8)
    }

    pub(super) fn free_blocks(&self) -> u64 {
        let high = if self.0.len() >= 64 { le16(self.0, 44) } else { 0 };
        u64::from(le16(self.0, 12)) | u64::from(high) << 16
    }
}

/// An inode, as many bytes as the file system gives it.
#[derive(Clone, Debug)]
pub(super) struct Inode {
    pub(super) bytes: Vec<u8>,
}

impl Inode {
    pub(super) fn mode(&self) -> u16 {
        le16(&self.bytes, 0)
    }

    pub(super) fn kind(&self) -> u16 {
        self.mode() & MODE_KIND
    }

    pub(super) fn len(&self) -> u64 {
        u64::from(le32(&self.bytes, 4)) | u64::from(le32(&self.bytes, 108)) << 32
    }

    pub(super) fn links(&self) -> u16 {
        le16(&self.bytes, 26)
    }

    pub(super) fn flags(&self) -> u32 {
        le32(&self.bytes, 32)
    }

    pub(super) fn attribute_block(&self) -> u32 {
        le32(&self.bytes, 104)
    }

    pub(super) fn tree(&self) -> &[u8] {
        &self.bytes[INODE_TREE]
    }

    /// A new inode: 256 bytes, no content.
    pub(super) fn new(mode: u16, links: u16, now: u32) -> Self {
        let mut inode = Self { bytes: vec![0; INODE_LEN] };
        put16(&mut inode.bytes, 0, mode);
        put16(&mut inode.bytes, 26, links);
        put32(&mut inode.bytes, 32, FLAG_EXTENTS);
        put16(&mut inode.bytes, 128, 32);
        put32(&mut inode.bytes, 144, now);
        put32(&mut inode.bytes, 8, now);
        inode.touch(now);
        inode
    }

    pub(super) fn touch(&mut self, now: u32) {
        put32(&mut self.bytes, 12, now);
        put32(&mut self.bytes, 16, now);
    }

    pub(super) fn set_links(&mut self, links: u16) {
        put16(&mut self.bytes, 26, links);
    }

    /// Length in bytes, and blocks of 4 KiB that are used for content and tree.
    pub(super) fn set_len(&mut self, len: u64, blocks: u64) {
        put32(&mut self.bytes, 4, len as u32);
        put32(&mut self.bytes, 108, (len >> 32) as u32);
        put32(&mut self.bytes, 28, (blocks * 8) as u32);
    }
}

/// Whether a group holds a copy of superblock and descriptors (`sparse_super`).
pub(super) fn has_backup(group: u64) -> bool {
    let power_of = |base: u64| {
        let mut power = base;
        while power < group {
            power *= base;
        }
        power == group
    };
    group <= 1 || [3, 5, 7].into_iter().any(power_of)
}
