//! The file system inside a volume: ext4, so that the standard tools mount what this process wrote.
//!
//! Reading takes any common ext4. Writing is for the fixed profile of [`FileSystem::format`] (4 KiB
//! blocks, extents, journal, no checksums, no hashed directories): new files are written to free blocks
//! first, then one journaled transaction gives them their names and frees what they replace. So a
//! process that is killed at any moment leaves the last complete state.

mod blocks;
mod directory;
mod extent;
mod format;
mod grow;
mod journal;
mod layout;
mod write;

use std::collections::BTreeMap;
use std::ops::Range;

pub use format::capacity;
pub use write::NewFile;

use crate::Error;
use crate::disk::Disk;
use blocks::Blocks;
use extent::Extent;
use journal::Journal;
use layout::{
    Descriptor, Geometry, Inode, JOURNAL, MODE_DIRECTORY, MODE_FILE, ROOT, SUPERBLOCK_AT,
    SUPERBLOCK_LEN,
};

/// Largest directory that is read: all of it is in memory, and a hostile inode may claim a terabyte. Names enough for
/// 60,000 files.
const DIRECTORY_LEN_MAX: u64 = 16 << 20;
/// Most components of a path. Without a bound, a directory that contains itself is walked for ever.
const DEPTH_MAX: usize = 64;

/// What a directory lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name, as it is on the disk.
    pub name: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Bytes of a file.
    pub len: u64,
    inode: u32,
}

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A link, a device, a socket.
    Other,
}

/// An open file.
#[derive(Clone, Debug)]
pub struct File {
    extents: Vec<Extent>,
    len: u64,
}

impl File {
    /// Bytes in it.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// An ext4 file system on a disk.
pub struct FileSystem<D> {
    blocks: Blocks<D>,
    geometry: Geometry,
    /// For writing.
    journal: Option<Journal>,
    /// A transaction failed: what is in memory may not be what is on the disk.
    failed: bool,
}

impl<D: Disk> FileSystem<D> {
    /// Opens for reading; a log that a crash left is replayed in memory.
    ///
    /// # Errors
    /// `FileSystem`, `Truncated` or `Refused` when it is no ext4 file system that this crate reads.
    pub fn open(disk: D) -> Result<Self, Error> {
        let (mut opened, journal) = Self::load(disk)?;
        if let Some(mut journal) = journal.filter(|_| opened.geometry.recover) {
            opened.blocks.changes = journal.replay(&opened.blocks)?;
            opened.read_geometry()?;
        }
        Ok(opened)
    }

    /// Opens for writing; a log that a crash left is replayed onto the disk.
    ///
    /// # Errors
    /// As [`FileSystem::open`]; `Foreign` for a file system of another profile.
    pub fn open_writable(disk: D) -> Result<Self, Error> {
        let (mut opened, journal) = Self::load(disk)?;
        opened.geometry.writable.map_err(Error::Foreign)?;
        let mut journal = journal.ok_or_else(|| Error::file_system("no journal"))?;
        if opened.geometry.recover {
            let changes = journal.replay(&opened.blocks)?;
            journal.apply(&mut opened.blocks, &changes)?;
            opened.read_geometry()?;
            opened.geometry.writable.map_err(Error::Foreign)?;
        }
        opened.journal = Some(journal);
        opened.set_recover(true)?;
        Ok(opened)
    }

    fn load(disk: D) -> Result<(Self, Option<Journal>), Error> {
        let mut bytes = [0; SUPERBLOCK_LEN];
        disk.read_at(&mut bytes, SUPERBLOCK_AT)?;
        let geometry = Geometry::parse(&bytes, disk.len())?;
        let blocks =
            Blocks { disk, size: geometry.block, count: geometry.blocks, changes: BTreeMap::new() };
        let opened = Self { blocks, geometry, journal: None, failed: false };
        let journal = match opened.geometry.has_journal {
            false => None,
            true => {
                let (extents, _) = extent::read(&opened.blocks, &opened.inode(JOURNAL)?)?;
                Some(Journal::open(&opened.blocks, extents)?)
            }
        };
        Ok((opened, journal))
    }

    /// Takes in the geometry after a replay, which may have changed the superblock: it may have grown.
    fn read_geometry(&mut self) -> Result<(), Error> {
        let block = self.blocks.read(SUPERBLOCK_AT / self.geometry.block as u64)?;
        let at = SUPERBLOCK_AT as usize % self.geometry.block;
        let bytes = block[at..at + SUPERBLOCK_LEN].try_into().expect("a superblock");
        let found = Geometry::parse(bytes, self.blocks.disk.len())?;
        if found.block != self.geometry.block || found.blocks < self.geometry.blocks {
            return Err(Error::file_system("a journal that makes the file system smaller"));
        }
        self.blocks.count = found.blocks;
        self.geometry = found;
        Ok(())
    }

    /// What is in a directory, without `.` and `..`.
    ///
    /// # Errors
    /// `NotFound`, `FileSystem`.
    pub fn list(&self, path: &str) -> Result<Vec<Entry>, Error> {
        let (number, _) = self.lookup(path)?;
        self.list_inode(number)
    }

    /// What is in a directory that was listed.
    ///
    /// # Errors
    /// As [`FileSystem::list`].
    pub fn list_entry(&self, directory: &Entry) -> Result<Vec<Entry>, Error> {
        self.list_inode(directory.inode)
    }

    fn list_inode(&self, number: u32) -> Result<Vec<Entry>, Error> {
        let inode = self.inode(number)?;
        if inode.kind() != MODE_DIRECTORY {
            return Err(Error::refused(format!("inode {number} is no directory")));
        }
        let mut listed = Vec::new();
        for entry in self.directory(&inode)? {
            let found = self.inode(entry.inode)?;
            let kind = match found.kind() {
                MODE_DIRECTORY => Kind::Directory,
                MODE_FILE => Kind::File,
                _ => Kind::Other,
            };
            let (len, inode) = (found.len(), entry.inode);
            listed.push(Entry { name: entry.name, kind, len, inode });
        }
        Ok(listed)
    }

    /// Opens a regular file.
    ///
    /// # Errors
    /// `NotFound`; `Refused` for what is no regular file.
    pub fn file(&self, path: &str) -> Result<File, Error> {
        let (_, inode) = self.lookup(path)?;
        self.file_inode(&inode)?
            .ok_or_else(|| Error::refused(format!("{} is no regular file", path.escape_default())))
    }

    /// Opens a regular file that was listed.
    ///
    /// # Errors
    /// As [`FileSystem::file`].
    pub fn file_entry(&self, entry: &Entry) -> Result<File, Error> {
        let file = self.file_inode(&self.inode(entry.inode)?)?;
        file.ok_or_else(|| {
            Error::refused(format!("{} is no regular file", entry.name.escape_ascii()))
        })
    }

    fn file_inode(&self, inode: &Inode) -> Result<Option<File>, Error> {
        if inode.kind() != MODE_FILE {
            return Ok(None);
        }
        let (extents, _) = extent::read(&self.blocks, inode)?;
        Ok(Some(File { extents, len: inode.len() }))
    }

    /// Whether there is a file or a directory of this name.
    ///
    /// # Errors
    /// `FileSystem`.
    pub fn exists(&self, path: &str) -> Result<bool, Error> {
        match self.lookup(path) {
            Ok(_) => Ok(true),
            Err(Error::NotFound(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Fills `target` with the bytes from `offset` on; holes are zeros.
    ///
    /// # Errors
    /// When the range ends outside of the file.
    pub fn read_at(&self, file: &File, target: &mut [u8], offset: u64) -> Result<(), Error> {
        crate::disk::check_range(file.len, target.len(), offset)?;
        target.fill(0);
        let block = self.geometry.block as u64;
        let end = offset + target.len() as u64;
        let first = file.extents.partition_point(|e| (e.logical + e.len) * block <= offset);
        for extent in file.extents[first..].iter().take_while(|e| e.logical * block < end) {
            let start = (extent.logical * block).max(offset);
            let stop = ((extent.logical + extent.len) * block).min(end);
            if extent.written {
                let at = extent.physical * block + (start - extent.logical * block);
                let part = &mut target[(start - offset) as usize..(stop - offset) as usize];
                self.read_content(part, at)?;
            }
        }
        Ok(())
    }

    /// The byte ranges of a file that are no holes, in their order.
    pub fn content(&self, file: &File) -> Vec<Range<u64>> {
        let block = self.geometry.block as u64;
        let written = file.extents.iter().filter(|extent| extent.written);
        let range = |extent: &Extent| {
            let start = extent.logical * block;
            start..(start + extent.len * block).min(file.len)
        };
        written.map(range).filter(|range| !range.is_empty()).collect()
    }

    /// Reads from the disk what may also be in replayed blocks.
    fn read_content(&self, target: &mut [u8], at: u64) -> Result<(), Error> {
        self.blocks.disk.read_at(target, at)?;
        let size = self.geometry.block as u64;
        let end = at + target.len() as u64;
        for (&block, bytes) in self.blocks.changes.range(at / size..end.div_ceil(size)) {
            let start = (block * size).max(at);
            let stop = ((block + 1) * size).min(end);
            target[(start - at) as usize..(stop - at) as usize].copy_from_slice(
                &bytes[(start - block * size) as usize..(stop - block * size) as usize],
            );
        }
        Ok(())
    }

    /// Bytes of the file system.
    pub fn len(&self) -> u64 {
        self.blocks.count * self.geometry.block as u64
    }

    /// Bytes that content can still take.
    ///
    /// # Errors
    /// What the disk refuses.
    pub fn free_space(&self) -> Result<u64, Error> {
        let mut blocks = 0u64;
        for group in 0..self.geometry.groups {
            let free = self.descriptor(group, |descriptor| descriptor.free_blocks())?;
            blocks = blocks.saturating_add(free);
        }
        Ok(blocks.saturating_mul(self.geometry.block as u64))
    }

    /// Whether no file or directory has any of these bytes of the disk. Of file systems of another profile that is
    /// not known, and they are taken for in use.
    ///
    /// # Errors
    /// `FileSystem`; what the disk refuses.
    pub fn is_free(&self, range: &Range<u64>) -> Result<bool, Error> {
        let size = self.geometry.block as u64;
        let (first, end) = (range.start / size, range.end.div_ceil(size));
        if self.geometry.writable.is_err() || end > self.blocks.count {
            return Ok(false);
        }
        for block in first..end {
            let (group, bit) =
                (block / self.geometry.blocks_per_group, block % self.geometry.blocks_per_group);
            let bitmap = self.descriptor(group, |descriptor| descriptor.block_bitmap())?;
            self.blocks.check(bitmap, 1)?;
            if self.blocks.read(bitmap)?[bit as usize / 8] >> (bit % 8) & 1 == 1 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Never: the superblock alone has a block.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The disk below.
    pub fn disk(&self) -> &D {
        &self.blocks.disk
    }

    /// The disk below, without what is only in memory.
    pub fn into_disk(self) -> D {
        self.blocks.disk
    }

    fn lookup(&self, path: &str) -> Result<(u32, Inode), Error> {
        let mut found = (ROOT, self.inode(ROOT)?);
        for name in components(path)? {
            if found.1.kind() != MODE_DIRECTORY {
                return Err(Error::NotFound(path.into()));
            }
            let entries = self.directory(&found.1)?;
            let entry = entries.into_iter().find(|entry| entry.name == name.as_bytes());
            let number = entry.ok_or_else(|| Error::NotFound(path.into()))?.inode;
            found = (number, self.inode(number)?);
        }
        Ok(found)
    }

    /// The live entries of a directory, without `.` and `..`.
    fn directory(&self, inode: &Inode) -> Result<Vec<directory::Entry>, Error> {
        let mut entries = Vec::new();
        for block in self.directory_blocks(inode)? {
            let live = |entry: &directory::Entry| {
                entry.inode != 0 && entry.name != b"." && entry.name != b".."
            };
            entries.extend(directory::entries(&self.blocks.read(block)?)?.into_iter().filter(live));
        }
        Ok(entries)
    }

    fn directory_blocks(&self, inode: &Inode) -> Result<Vec<u64>, Error> {
        if inode.len() > DIRECTORY_LEN_MAX {
            return Err(Error::refused("a directory of more than 16 MiB"));
        }
        let (extents, _) = extent::read(&self.blocks, inode)?;
        let count = inode.len().div_ceil(self.geometry.block as u64);
        if extents.iter().any(|extent| extent.logical + extent.len > count) {
            return Err(Error::file_system("a directory longer than it says"));
        }
        Ok(extents
            .iter()
            .flat_map(|extent| extent.physical..extent.physical + extent.len)
            .collect())
    }

    fn descriptor<T>(&self, group: u64, field: impl FnOnce(Descriptor) -> T) -> Result<T, Error> {
        let (block, at) = self.geometry.descriptor(group);
        let bytes = self.blocks.read(block)?;
        Ok(field(Descriptor(&bytes[at..][..self.geometry.descriptor_len])))
    }

    /// Block of an inode and its offset in there.
    fn inode_place(&self, number: u32) -> Result<(u64, usize), Error> {
        if number == 0 || number > self.geometry.inodes {
            return Err(Error::file_system(format!("inode {number} is not there")));
        }
        let index = number - 1;
        let group = index / self.geometry.inodes_per_group;
        let table = self.descriptor(group.into(), |descriptor| descriptor.inode_table())?;
        let at = u64::from(index % self.geometry.inodes_per_group) * self.geometry.inode_len as u64;
        let block = table.saturating_add(at / self.geometry.block as u64);
        self.blocks.check(block, 1)?;
        Ok((block, at as usize % self.geometry.block))
    }

    fn inode(&self, number: u32) -> Result<Inode, Error> {
        let (block, at) = self.inode_place(number)?;
        let bytes = self.blocks.read(block)?[at..][..self.geometry.inode_len].to_vec();
        Ok(Inode { bytes })
    }
}

/// Bytes of the file system on a disk, as its superblock says them; `None` where there is none.
pub fn len_on(disk: &dyn Disk) -> Option<u64> {
    let mut bytes = [0; SUPERBLOCK_LEN];
    disk.read_at(&mut bytes, SUPERBLOCK_AT).ok()?;
    let geometry = Geometry::parse(&bytes, disk.len()).ok()?;
    Some(geometry.blocks * geometry.block as u64)
}

/// The names of a path, which may not leave its root.
fn components(path: &str) -> Result<Vec<&str>, Error> {
    let names: Vec<&str> = path.split('/').filter(|name| !name.is_empty()).collect();
    let plain = |name: &&str| {
        !name.contains('\0')
            && !matches!(*name, "." | "..")
            && name.len() <= directory::NAME_LEN_MAX
    };
    match names.len() <= DEPTH_MAX && names.iter().all(plain) {
        true => Ok(names),
        false => Err(Error::refused(format!("the path {}", path.escape_default()))),
    }
}

#[cfg(test)]
mod tests;
