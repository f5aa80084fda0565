//! `Disk`: bytes at offsets, whatever is below: a file, a decrypted segment, memory.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use crate::Error;

/// A fixed number of bytes that can be read and written in place.
pub trait Disk {
    /// Bytes in all.
    fn len(&self) -> u64;

    /// Fills `target` with the bytes from `offset` on.
    ///
    /// # Errors
    /// When the range ends outside, or what is below refuses.
    fn read_at(&self, target: &mut [u8], offset: u64) -> Result<(), Error>;

    /// Writes `source` from `offset` on; encrypted disks take whole sectors only.
    ///
    /// # Errors
    /// When the range ends outside, or what is below refuses.
    fn write_at(&mut self, source: &[u8], offset: u64) -> Result<(), Error>;

    /// As `write_at`, to where nothing that would survive a crash refers: until the next flush what is there may be
    /// lost, and may not even be readable. So it need not be written twice.
    ///
    /// # Errors
    /// As there.
    fn write_unnamed_at(&mut self, source: &[u8], offset: u64) -> Result<(), Error> {
        self.write_at(source, offset)
    }

    /// Returns when everything written is on the medium.
    ///
    /// # Errors
    /// When the system cannot promise that.
    fn flush(&mut self) -> Result<(), Error>;

    /// Whether there is nothing.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Fails unless `len` bytes from `offset` on are inside of `disk_len`.
pub(crate) fn check_range(disk_len: u64, len: usize, offset: u64) -> Result<(), Error> {
    match offset.checked_add(len as u64) {
        Some(end) if end <= disk_len => Ok(()),
        _ => Err(Error::truncated(format!("{len} bytes at {offset} end outside of {disk_len}"))),
    }
}

/// A file or a block device.
#[derive(Debug)]
pub struct FileDisk {
    file: File,
    len: u64,
}

impl FileDisk {
    /// The whole of `file`.
    ///
    /// # Errors
    /// When its length cannot be had.
    pub fn new(mut file: File) -> Result<Self, Error> {
        let len = file.seek(SeekFrom::End(0)).map_err(Error::io("length"))?;
        Ok(Self { file, len })
    }

    /// The file itself.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The same open file once more, with its lock.
    pub(crate) fn again(&self) -> Result<Self, Error> {
        let file = self.file.try_clone().map_err(Error::io("descriptor"))?;
        Ok(Self { file, len: self.len })
    }
}

impl Disk for FileDisk {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, target: &mut [u8], offset: u64) -> Result<(), Error> {
        check_range(self.len, target.len(), offset)?;
        self.file.read_exact_at(target, offset).map_err(Error::io("read"))
    }

    fn write_at(&mut self, source: &[u8], offset: u64) -> Result<(), Error> {
        check_range(self.len, source.len(), offset)?;
        self.file.write_all_at(source, offset).map_err(Error::io("write"))
    }

    fn flush(&mut self) -> Result<(), Error> {
        self.file.sync_data().map_err(Error::io("flush"))
    }
}

/// A part of a disk.
pub(crate) struct Slice<D> {
    pub(crate) disk: D,
    /// First byte on the disk.
    pub(crate) offset: u64,
    /// Bytes.
    pub(crate) len: u64,
}

impl<D: Disk> Disk for Slice<D> {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, target: &mut [u8], offset: u64) -> Result<(), Error> {
        check_range(self.len, target.len(), offset)?;
        self.disk.read_at(target, self.offset + offset)
    }

    fn write_at(&mut self, source: &[u8], offset: u64) -> Result<(), Error> {
        check_range(self.len, source.len(), offset)?;
        self.disk.write_at(source, self.offset + offset)
    }

    fn flush(&mut self) -> Result<(), Error> {
        self.disk.flush()
    }
}

/// Memory.
impl Disk for Vec<u8> {
    fn len(&self) -> u64 {
        self.as_slice().len() as u64
    }

    fn read_at(&self, target: &mut [u8], offset: u64) -> Result<(), Error> {
        check_range(Disk::len(self), target.len(), offset)?;
        target.copy_from_slice(&self[offset as usize..][..target.len()]);
        Ok(())
    }

    fn write_at(&mut self, source: &[u8], offset: u64) -> Result<(), Error> {
        check_range(Disk::len(self), source.len(), offset)?;
        self[offset as usize..][..source.len()].copy_from_slice(source);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Error> {
        Ok(())
    }
}

impl<D: Disk + ?Sized> Disk for Box<D> {
    fn len(&self) -> u64 {
        (**self).len()
    }

    fn read_at(&self, target: &mut [u8], offset: u64) -> Result<(), Error> {
        (**self).read_at(target, offset)
    }

    fn write_at(&mut self, source: &[u8], offset: u64) -> Result<(), Error> {
        (**self).write_at(source, offset)
    }

    fn write_unnamed_at(&mut self, source: &[u8], offset: u64) -> Result<(), Error> {
        (**self).write_unnamed_at(source, offset)
    }

    fn flush(&mut self) -> Result<(), Error> {
        (**self).flush()
    }
}
