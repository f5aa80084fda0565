//! Writing: content to free blocks, then names and bookkeeping in one transaction.

use super::directory::{self, NAME_LEN_MAX, TYPE_DIRECTORY, TYPE_FILE};
use super::extent::{self, Extent};
use super::layout::{
    FLAG_INDEX, Inode, MODE_DIRECTORY, MODE_FILE, SUPERBLOCK_AT, le16, le32, put16, put32,
};
use super::{FileSystem, components};
use crate::Error;
use crate::disk::Disk;

/// Content is written in pieces of this many bytes.
const PIECE: usize = 1 << 20;
/// First inode for files.
const FIRST_INODE: u32 = 11;
/// Where the superblock is in block 0 of a file system of 4 KiB blocks.
const SUPERBLOCK: usize = SUPERBLOCK_AT as usize;
const INCOMPAT_AT: usize = SUPERBLOCK + 96;

/// A file that has content but no name yet.
#[derive(Debug, Default)]
pub struct NewFile {
    extents: Vec<Extent>,
    len: u64,
    /// Content that is not written yet, less than a piece.
    rest: Vec<u8>,
}

impl<D: Disk> FileSystem<D> {
    /// Appends to a new file.
    ///
    /// # Errors
    /// `Full`; [`FileSystem::discard`] then gives the space back.
    pub fn append(&mut self, file: &mut NewFile, mut bytes: &[u8]) -> Result<(), Error> {
        self.check_writable()?;
        while !bytes.is_empty() {
            let take = bytes.len().min(PIECE - file.rest.len());
            file.rest.extend_from_slice(&bytes[..take]);
            bytes = &bytes[take..];
            if file.rest.len() == PIECE {
                self.write_rest(file)?;
            }
        }
        Ok(())
    }

    /// Gives the space of a file that will not get a name back.
    ///
    /// # Errors
    /// What the disk refuses.
    pub fn discard(&mut self, file: NewFile) -> Result<(), Error> {
        self.free(&file.extents)
    }

    /// Makes a directory; its parent must exist. Nothing happens if it exists.
    ///
    /// # Errors
    /// `NotFound`, `Full`, `Refused` if a file has this name.
    pub fn make_directory(&mut self, path: &str, now: u32) -> Result<(), Error> {
        self.check_writable()?;
        if self.exists(path)? {
            return self.list(path).map(drop);
        }
        self.transaction(|fs| {
            let (parent, name) = fs.parent(path)?;
            let number = fs.take_inode(true)?;
            let block = fs.take_blocks(1, None)?.0;
            let mut content = directory::new_block(fs.geometry.block, Some([number, parent]));
            put16(&mut content, 16, (fs.geometry.block - 12) as u16);
            fs.blocks.replace(block, content);
            let mut inode = Inode::new(MODE_DIRECTORY | 0o700, 2, now);
            inode.set_len(fs.geometry.block as u64, 1);
            let extent = Extent { logical: 0, physical: block, len: 1, written: true };
            extent::write(&mut fs.blocks, &mut inode, &[extent], &[]);
            fs.put_inode(number, &inode)?;
            let mut above = fs.inode(parent)?;
            above.set_links(above.links() + 1);
            fs.put_inode(parent, &above)?;
            fs.link(parent, name, number, TYPE_DIRECTORY, now)
        })
    }

    /// Gives new files their names, in the place of what has them: all of them, or none.
    ///
    /// # Errors
    /// `NotFound` for a directory that is not there, `Full`.
    pub fn commit(&mut self, files: Vec<(&str, NewFile)>, now: u32) -> Result<(), Error> {
        self.check_writable()?;
        let mut ready = Vec::new();
        for (path, mut file) in files {
            self.write_rest(&mut file)?;
            ready.push((path, file));
        }
        // Content first: a name never stands for blocks that are not written.
        self.blocks.flush()?;
        self.transaction(|fs| {
            let mut replaced = Vec::new();
            for (path, file) in &ready {
                replaced.extend(fs.place(path, file, now)?);
            }
            // Last, so that nothing of this transaction reuses what the last state still needs.
            replaced.into_iter().try_for_each(|number| fs.drop_inode(number))
        })
    }

    /// Removes a file; nothing happens if it is not there.
    ///
    /// # Errors
    /// `Refused` for a directory.
    pub fn remove(&mut self, path: &str, now: u32) -> Result<(), Error> {
        self.check_writable()?;
        if !self.exists(path)? {
            return Ok(());
        }
        self.transaction(|fs| {
            let (number, inode) = fs.lookup(path)?;
            if inode.kind() != MODE_FILE {
                return Err(Error::refused(format!("{} is no file", path.escape_default())));
            }
            let (parent, name) = fs.parent(path)?;
            fs.unlink(parent, name, now)?;
            fs.drop_inode(number)
        })
    }

    /// Marks a clean end. Not calling it loses nothing: the next one replays an empty log.
    ///
    /// # Errors
    /// What the disk refuses.
    pub fn close(mut self) -> Result<D, Error> {
        if self.journal.is_some() && !self.failed {
            self.set_recover(false)?;
        }
        Ok(self.blocks.disk)
    }

    /// Sets or clears the flag that tells the next one to look into the journal.
    pub(super) fn set_recover(&mut self, recover: bool) -> Result<(), Error> {
        let mut block = self.blocks.read(0)?;
        let flag = super::layout::INCOMPAT_RECOVER;
        let features = le32(&block, INCOMPAT_AT);
        let features = if recover { features | flag } else { features & !flag };
        put32(&mut block, INCOMPAT_AT, features);
        // Also in blocks that wait for the next transaction.
        if self.blocks.changes.contains_key(&0) {
            self.blocks.replace(0, block.clone());
        }
        self.blocks.write_now(0, &block)?;
        self.blocks.flush()
    }

    pub(super) fn check_writable(&self) -> Result<(), Error> {
        match (&self.journal, self.failed) {
            (Some(_), false) => Ok(()),
            (Some(_), true) => Err(Error::refused("a write failed before; open the volume again")),
            (None, _) => Err(Error::refused("a file system that was opened for reading")),
        }
    }

    /// Runs changes and writes them as one; a failure leaves the disk as it was.
    pub(super) fn transaction(
        &mut self,
        change: impl FnOnce(&mut Self) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let before = self.blocks.changes.clone();
        if let Err(error) = change(self) {
            self.blocks.changes = before;
            return Err(error);
        }
        let changes = std::mem::take(&mut self.blocks.changes);
        let journal = self.journal.as_mut().expect("checked by the caller");
        let written = journal.commit(&mut self.blocks, &changes);
        self.failed = written.is_err();
        written
    }

    /// Writes what a file still has in memory, the last block filled with zeros.
    fn write_rest(&mut self, file: &mut NewFile) -> Result<(), Error> {
        let size = self.geometry.block;
        file.len += file.rest.len() as u64;
        let mut rest = std::mem::take(&mut file.rest);
        rest.resize(rest.len().next_multiple_of(size), 0);
        let mut bytes = &rest[..];
        while !bytes.is_empty() {
            let after = file.extents.last().map(|last| last.physical + last.len);
            let (first, count) = self.take_blocks((bytes.len() / size) as u64, after)?;
            extent::push(&mut file.extents, first, count);
            let (now, later) = bytes.split_at(count as usize * size);
            self.blocks.write_unnamed(first, now)?;
            bytes = later;
        }
        Ok(())
    }

    /// Makes an inode of a written file and links it; the inode that had the name, if one had.
    fn place(&mut self, path: &str, file: &NewFile, now: u32) -> Result<Option<u32>, Error> {
        let (parent, name) = self.parent(path)?;
        let number = self.take_inode(false)?;
        let mut nodes = Vec::new();
        for _ in 0..extent::nodes_needed(file.extents.len(), self.geometry.block)? {
            nodes.push(self.take_blocks(1, None)?.0);
        }
        let content: u64 = file.extents.iter().map(|extent| extent.len).sum();
        let mut inode = Inode::new(MODE_FILE | 0o600, 1, now);
        inode.set_len(file.len, content + nodes.len() as u64);
        extent::write(&mut self.blocks, &mut inode, &file.extents, &nodes);
        self.put_inode(number, &inode)?;
        let replaced = match self.lookup(path) {
            Ok((_, inode)) if inode.kind() != MODE_FILE => {
                return Err(Error::refused(format!("{} is no file", path.escape_default())));
            }
            Ok((old, _)) => {
                self.unlink(parent, name, now)?;
                Some(old)
            }
            Err(Error::NotFound(_)) => None,
            Err(error) => return Err(error),
        };
        self.link(parent, name, number, TYPE_FILE, now)?;
        Ok(replaced)
    }

    /// The directory of a path, and the name in it.
    fn parent<'p>(&self, path: &'p str) -> Result<(u32, &'p str), Error> {
        let names = components(path)?;
        let (name, directories) =
            names.split_last().ok_or_else(|| Error::refused("the root as a file"))?;
        let (number, inode) = self.lookup(&directories.join("/"))?;
        if inode.kind() != MODE_DIRECTORY || inode.flags() & FLAG_INDEX != 0 {
            return Err(Error::refused("a directory that is hashed, or none"));
        }
        Ok((number, name))
    }

    fn link(
        &mut self,
        directory: u32,
        name: &str,
        number: u32,
        kind: u8,
        now: u32,
    ) -> Result<(), Error> {
        assert!(name.len() <= NAME_LEN_MAX, "checked by components");
        let mut inode = self.inode(directory)?;
        inode.touch(now);
        for block in self.directory_blocks(&inode)? {
            let mut bytes = self.blocks.read(block)?;
            if directory::insert(&mut bytes, name.as_bytes(), number, kind)? {
                self.blocks.replace(block, bytes);
                return self.put_inode(directory, &inode);
            }
        }
        let (mut extents, mut nodes) = extent::read(&self.blocks, &inode)?;
        let after = extents.last().map(|last| last.physical + last.len);
        let (block, _) = self.take_blocks(1, after)?;
        let mut bytes = directory::new_block(self.geometry.block, None);
        let inserted = directory::insert(&mut bytes, name.as_bytes(), number, kind)?;
        assert!(inserted, "an empty block has room");
        self.blocks.replace(block, bytes);
        extent::push(&mut extents, block, 1);
        while nodes.len() < extent::nodes_needed(extents.len(), self.geometry.block)? {
            nodes.push(self.take_blocks(1, None)?.0);
        }
        let count: u64 = extents.iter().map(|extent| extent.len).sum();
        inode.set_len(count * self.geometry.block as u64, count + nodes.len() as u64);
        extent::write(&mut self.blocks, &mut inode, &extents, &nodes);
        self.put_inode(directory, &inode)
    }

    fn unlink(&mut self, directory: u32, name: &str, now: u32) -> Result<(), Error> {
        let mut inode = self.inode(directory)?;
        inode.touch(now);
        self.put_inode(directory, &inode)?;
        for block in self.directory_blocks(&inode)? {
            let mut bytes = self.blocks.read(block)?;
            if directory::remove(&mut bytes, name.as_bytes())? {
                self.blocks.replace(block, bytes);
                return Ok(());
            }
        }
        Err(Error::NotFound(name.into()))
    }

    fn put_inode(&mut self, number: u32, inode: &Inode) -> Result<(), Error> {
        let (block, at) = self.inode_place(number)?;
        self.blocks.edit(block)?[at..][..inode.bytes.len()].copy_from_slice(&inode.bytes);
        Ok(())
    }

    /// Frees an inode that no name stands for any more, and its blocks.
    fn drop_inode(&mut self, number: u32) -> Result<(), Error> {
        let mut inode = self.inode(number)?;
        if inode.links() > 1 {
            inode.set_links(inode.links() - 1);
            return self.put_inode(number, &inode);
        }
        if inode.attribute_block() != 0 || number < FIRST_INODE {
            return Err(Error::refused("a file with extended attributes in a block of their own"));
        }
        let (extents, nodes) = extent::read(&self.blocks, &inode)?;
        self.free(&extents)?;
        for physical in nodes {
            self.free(&[Extent { logical: 0, physical, len: 1, written: true }])?;
        }
        inode.bytes.fill(0);
        self.put_inode(number, &inode)?;
        let group = u64::from((number - 1) / self.geometry.inodes_per_group);
        let bitmap = self.descriptor(group, |descriptor| descriptor.inode_bitmap())?;
        self.blocks.check(bitmap, 1)?;
        clear(self.blocks.edit(bitmap)?, (number - 1) % self.geometry.inodes_per_group)?;
        self.count_inode(group, false, true)
    }

    fn take_inode(&mut self, is_directory: bool) -> Result<u32, Error> {
        for group in 0..self.geometry.groups {
            let bitmap = self.descriptor(group, |descriptor| descriptor.inode_bitmap())?;
            self.blocks.check(bitmap, 1)?;
            let bits = self.blocks.read(bitmap)?;
            let first = if group == 0 { FIRST_INODE - 1 } else { 0 };
            let free = (first..self.geometry.inodes_per_group).find(|&bit| !is_set(&bits, bit));
            if let Some(bit) = free {
                self.blocks.edit(bitmap)?[bit as usize / 8] |= 1 << (bit % 8);
                self.count_inode(group, is_directory, false)?;
                let number = group * u64::from(self.geometry.inodes_per_group) + u64::from(bit) + 1;
                return u32::try_from(number).map_err(|_| Error::Full);
            }
        }
        Err(Error::Full)
    }

    /// Takes up to `want` consecutive blocks, the next ones after `after` if they are free.
    fn take_blocks(&mut self, want: u64, after: Option<u64>) -> Result<(u64, u64), Error> {
        let start = after.map_or(0, |after| after / self.geometry.blocks_per_group);
        for step in 0..self.geometry.groups {
            let group = (start + step) % self.geometry.groups;
            let (first, len) = self.geometry.group(group);
            let bitmap = self.descriptor(group, |descriptor| descriptor.block_bitmap())?;
            self.blocks.check(bitmap, 1)?;
            let bits = self.blocks.read(bitmap)?;
            let near = after.filter(|after| (first..first + len).contains(after));
            let from = near.map_or(0, |after| after - first) as u32;
            let len = len as u32;
            let free = |bit: &u32| !is_set(&bits, *bit);
            let Some(bit) = (from..len).find(free).or_else(|| (0..from).find(free)) else {
                continue;
            };
            let count = (bit..len).take_while(free).take(want as usize).count() as u32;
            let target = self.blocks.edit(bitmap)?;
            for bit in bit..bit + count {
                target[bit as usize / 8] |= 1 << (bit % 8);
            }
            self.count_blocks(group, -i64::from(count))?;
            return Ok((first + u64::from(bit), count.into()));
        }
        Err(Error::Full)
    }

    fn free(&mut self, extents: &[Extent]) -> Result<(), Error> {
        for extent in extents {
            let (mut at, end) = (extent.physical, extent.physical + extent.len);
            while at < end {
                let group = (at - self.geometry.first_block) / self.geometry.blocks_per_group;
                let (first, len) = self.geometry.group(group);
                let stop = end.min(first + len);
                let bitmap = self.descriptor(group, |descriptor| descriptor.block_bitmap())?;
                self.blocks.check(bitmap, 1)?;
                let bits = self.blocks.edit(bitmap)?;
                (at - first..stop - first).try_for_each(|bit| clear(bits, bit as u32))?;
                self.count_blocks(group, (stop - at) as i64)?;
                at = stop;
            }
        }
        Ok(())
    }

    fn count_blocks(&mut self, group: u64, change: i64) -> Result<(), Error> {
        let (block, at) = self.geometry.descriptor(group);
        let bytes = self.blocks.edit(block)?;
        let free = i64::from(le16(bytes, at + 12)) + change;
        put16(bytes, at + 12, free as u16);
        let bytes = self.blocks.edit(0)?;
        let free = i64::from(le32(bytes, SUPERBLOCK + 12)) + change;
        put32(bytes, SUPERBLOCK + 12, free as u32);
        Ok(())
    }

    fn count_inode(&mut self, group: u64, is_directory: bool, freed: bool) -> Result<(), Error> {
        let change = if freed { 1 } else { -1 };
        let (block, at) = self.geometry.descriptor(group);
        let bytes = self.blocks.edit(block)?;
        let free = i32::from(le16(bytes, at + 14)) + change;
        put16(bytes, at + 14, free as u16);
        if is_directory {
            let directories = le16(bytes, at + 16).wrapping_add(1);
            put16(bytes, at + 16, directories);
        }
        let bytes = self.blocks.edit(0)?;
        let free = le32(bytes, SUPERBLOCK + 16).wrapping_add_signed(change);
        put32(bytes, SUPERBLOCK + 16, free);
        Ok(())
    }
}

fn is_set(bits: &[u8], bit: u32) -> bool {
    bits[bit as usize / 8] >> (bit % 8) & 1 == 1
}

fn clear(bits: &mut [u8], bit: u32) -> Result<(), Error> {
    match is_set(bits, bit) {
        true => {
            bits[bit as usize / 8] &= !(1 << (bit % 8));
            Ok(())
        }
        false => Err(Error::file_system("a block or an inode that is freed twice")),
    }
}
