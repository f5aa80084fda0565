//! What happens to a volume after its creation: a MAC, other keys, more room, a backup of its header and its return.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::Error;
use crate::disk::{Disk, FileDisk};
use crate::ext4::FileSystem;
use crate::header::Header;
use crate::keys::kdf::KdfCost;
use crate::keys::secret::{Passphrase, Secret};
use crate::linux::loop_device::refuse_attached;
use crate::memory::limit_kib;
use crate::volume::{Source, Volume, lock, open_file};

impl Source {
    /// Puts a fresh header MAC into the header of a volume that the passphrase opens, and makes both copies whole.
    ///
    /// # Errors
    /// As [`Source::open`].
    pub fn seal(&self, passphrase: &Passphrase) -> Result<Header, Error> {
        let (mut header, mut disk) = self.locked_header()?;
        // A stale MAC is what sealing is for; the digest has vouched for the key.
        let mut bare = header.clone();
        bare.remove_mac();
        let (_, key) = bare.unlock(passphrase, self.slot, limit_kib())?;
        header.seal(&key)?;
        header.write(&mut disk)?;
        Ok(header)
    }

    /// Opens the volume to write, once its segment reaches to the end of its file or device, which may have grown.
    /// Cut off anywhere, it is to be repeated.
    ///
    /// # Errors
    /// As [`Source::open`].
    pub fn open_grown(&self, passphrase: &Passphrase) -> Result<Volume, Error> {
        let detached = self.header.as_ref().map(|_| self.locked_file()).transpose()?;
        let (mut header, disk) = self.opened(true)?;
        let (slot, key) = header.unlock(passphrase, self.slot, limit_kib())?;
        header.widen(&mut detached.map_or_else(|| disk.again(), Ok)?, &key, disk.len())?;
        let mut volume = Volume::new(header, slot, key, Box::new(disk), true)?;
        volume.grow()?;
        Ok(volume)
    }

    /// Adds a keyslot for `new`, given what opens the volume; its number.
    ///
    /// # Errors
    /// As [`Source::open`]; `Refused` when there is no room.
    pub fn add_key(
        &self,
        passphrase: &Passphrase,
        new: &Passphrase,
        cost: KdfCost,
    ) -> Result<u8, Error> {
        let (mut header, mut disk) = self.locked_header()?;
        let (_, key) = header.unlock(passphrase, self.slot, limit_kib())?;
        header.add_key(&mut disk, &key, new, cost)
    }

    /// Gives the keyslot that `old` opens the passphrase `new`; its number. Where a change to just that was cut off,
    /// it is finished.
    ///
    /// # Errors
    /// As [`Source::add_key`].
    pub fn change_key(
        &self,
        old: &Passphrase,
        new: &Passphrase,
        cost: KdfCost,
    ) -> Result<u8, Error> {
        let (mut header, mut disk) = self.locked_header()?;
        let opened = match header.unlock(old, self.slot, limit_kib()) {
            Err(Error::WrongPassphrase | Error::Untried(_)) => {
                header.unlock(new, self.slot, limit_kib())
            }
            opened => opened,
        };
        let (number, key) = opened?;
        header.change_key(&mut disk, &key, number, new, cost).map(|()| number)
    }

    /// Removes a keyslot, given a passphrase that opens another one.
    ///
    /// # Errors
    /// As [`Source::open`]; `Refused` for a slot that is not there, or the last one.
    pub fn remove_key(&self, number: u8, remaining: &Passphrase) -> Result<(), Error> {
        let (mut header, mut disk) = self.locked_header()?;
        header.remove_key(&mut disk, number, remaining)
    }

    /// Writes header and key material to a new file, once the volume key has vouched for them. cryptsetup restores
    /// such a file too.
    ///
    /// # Errors
    /// As [`Source::open`]; `NoMac`; when there is a file already.
    pub fn backup(&self, passphrase: &Passphrase, target: &Path) -> Result<Header, Error> {
        let path = self.header.as_ref().unwrap_or(&self.path);
        let header = self.checked_header(&FileDisk::new(open_file(path, false)?)?)?;
        self.vouched(&header, passphrase)?;
        let name = target.display().to_string();
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).mode(0o600).open(target);
        let file = file.map_err(Error::io(format!("create {name}")))?;
        let len = 2 * header.size() + header.metadata().keyslots_len;
        let written = file
            .set_len(len)
            .map_err(Error::io(name))
            .and_then(|()| header.write_whole(&mut FileDisk::new(file)?));
        if written.is_err() {
            let _ = std::fs::remove_file(target);
        }
        written.map(|()| header)
    }

    /// Puts a backup in the place of the header, once the volume key has vouched for it: the volume's own header, or
    /// of one whose header is lost its file system, must say that it is this volume's. Cut off, it is to be repeated.
    ///
    /// # Errors
    /// As [`Source::backup`]; `Refused` for the header of another volume.
    pub fn restore(&self, passphrase: &Passphrase, backup: &Path) -> Result<Header, Error> {
        let mut header = self.checked_header(&FileDisk::new(open_file(backup, false)?)?)?;
        let (slot, key) = self.vouched(&header, passphrase)?;
        let path = self.header.as_ref().unwrap_or(&self.path);
        let mut disk = self.locked_file()?;
        refuse_attached(&self.path)?;
        let data = match &self.header {
            None if header.metadata().segment.offset == 0 => {
                return Err(Error::refused("a detached header in front of data (--header FILE)"));
            }
            None => Box::new(FileDisk::new(open_file(path, false)?)?),
            Some(_) => Box::new(FileDisk::new(open_file(&self.path, false)?)?),
        };
        header.metadata().segment.len_on(data.len())?;
        match Header::read(&disk, self.policy) {
            Ok(there) if there.id() == header.id() => header.count_from(there.sequence()),
            Ok(_) => return Err(Error::refused("a backup of another volume than this")),
            Err(_) => {
                let inside = Volume::new(header.clone(), slot, Secret::copy(&key), data, false);
                inside.and_then(FileSystem::open).map_err(|error| {
                    Error::refused(format!(
                        "a backup that may be of another volume: no header is left to compare with, and inside: {error}"
                    ))
                })?;
            }
        }
        header.seal(&key)?;
        header.write_whole(&mut disk)?;
        Ok(header)
    }

    /// The volume key, of a header with a MAC by it.
    fn vouched(&self, header: &Header, passphrase: &Passphrase) -> Result<(u8, Secret), Error> {
        let opened = header.unlock(passphrase, self.slot, limit_kib())?;
        match header.has_mac() {
            true => Ok(opened),
            false => Err(Error::NoMac),
        }
    }

    /// The header, which nobody else changes or uses meanwhile, and its disk.
    fn locked_header(&self) -> Result<(Header, FileDisk), Error> {
        let disk = self.locked_file()?;
        let header = self.checked_header(&disk)?;
        Ok((header, disk))
    }

    /// The file that the header is in.
    fn locked_file(&self) -> Result<FileDisk, Error> {
        let path = self.header.as_ref().unwrap_or(&self.path);
        let file = open_file(path, true)?;
        lock(&file, path, true)?;
        FileDisk::new(file)
    }
}
