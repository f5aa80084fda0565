//! `Volume`: opening encrypted volumes in this process, without privileges.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, OFlags, flock};

use crate::Error;
use crate::data::encrypted::Encrypted;
use crate::data::integrity::Authenticated;
use crate::disk::{Disk, FileDisk, Slice};
use crate::ext4;
use crate::header::Header;
use crate::header::mac::{HeaderId, ManifestKey};
use crate::header::metadata::{Policy, Segment};
use crate::keys::kdf::KdfCost;
use crate::keys::secret::{Passphrase, Secret};
use crate::linux::loop_device::refuse_attached;
use crate::memory::limit_kib;

/// Where the data begins: cryptsetup's default, after 16 MiB of headers and keyslots.
pub(crate) const DATA_OFFSET: u64 = 16 << 20;
/// What a new volume is like.
#[derive(Clone, Debug)]
pub struct Options {
    /// Bytes of the file, headers included.
    pub size: u64,
    /// A label, at most 47 bytes of UTF-8 without control characters.
    pub label: String,
    /// Encryption sector, 512 or 4096 bytes.
    pub sector: u32,
    /// Whether every sector carries a tag.
    pub integrity: bool,
    /// Key derivation of the keyslots.
    pub cost: KdfCost,
    /// Writes to the whole file now, so that the space is there.
    pub preallocate: bool,
}

impl Options {
    /// The defaults for a volume of `size` bytes.
    pub fn new(size: u64) -> Self {
        Self {
            size,
            label: String::new(),
            sector: 4096,
            integrity: false,
            cost: KdfCost::DEFAULT,
            preallocate: false,
        }
    }

    /// Bytes of the file behind the header, as long as that is in the same file.
    pub fn data_len(&self) -> u64 {
        self.size.saturating_sub(DATA_OFFSET)
    }
}

/// What to open, and what it must be.
#[derive(Clone, Debug)]
pub struct Source {
    /// A file or a block device.
    pub path: PathBuf,
    /// The header in a file of its own.
    pub header: Option<PathBuf>,
    /// How strict the header is read.
    pub policy: Policy,
    /// The header that it must be.
    pub expect: Option<HeaderId>,
    /// Refuse a header without MAC.
    pub require_mac: bool,
    /// Try this keyslot only.
    pub slot: Option<u8>,
    /// Read although somebody else writes through this system: what is read may be half of a change, and who
    /// reads it has to know (by a manifest with hashes, say) and to try again.
    pub beside_writer: bool,
}

impl Source {
    /// This path, with the strict policy.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            header: None,
            policy: Policy::Strict,
            expect: None,
            require_mac: false,
            slot: None,
            beside_writer: false,
        }
    }

    /// Reads the header and checks what is asked of it, also that its data fits the device; opens nothing. A header
    /// in a file of its own is read without its device if that is not there.
    ///
    /// # Errors
    /// When there is no header, or not the expected one.
    pub fn read_header(&self) -> Result<Header, Error> {
        let path = self.header.as_ref().unwrap_or(&self.path);
        let disk = FileDisk::new(open_file(path, false)?)?;
        let header = self.checked_header(&disk)?;
        let segment = header.metadata().segment;
        let device = match &self.header {
            // A detached header alone: what can be said of it is said.
            None => Some(disk.len()).filter(|_| segment.offset > 0),
            Some(_) if !self.path.exists() => None,
            Some(_) => Some(FileDisk::new(open_file(&self.path, false)?)?.len()),
        };
        if let Some(device) = device {
            segment.len_on(device)?;
        }
        Ok(header)
    }

    pub(crate) fn checked_header(&self, disk: &dyn Disk) -> Result<Header, Error> {
        let header = Header::read(disk, self.policy)?;
        if self.expect.is_some_and(|expected| expected != header.id()) {
            return Err(Error::refused(format!("header id {}, not the expected one", header.id())));
        }
        if self.require_mac && !header.has_mac() {
            return Err(Error::NoMac);
        }
        Ok(header)
    }

    /// Fails if the header stands where its data would begin: it would be read, and overwritten, as data.
    pub(crate) fn refuse_detached(&self, header: &Header) -> Result<(), Error> {
        match self.header.is_none() && header.metadata().segment.offset == 0 {
            true => Err(Error::refused("a detached header without its data (--header FILE)")),
            false => Ok(()),
        }
    }

    /// Opens the volume in this process.
    ///
    /// # Errors
    /// `WrongPassphrase`, `Busy` when somebody else has it open, and all that a header can be refused for.
    pub fn open(&self, passphrase: &Passphrase, writable: bool) -> Result<Volume, Error> {
        let (header, disk) = self.opened(writable)?;
        let (slot, key) = header.unlock(passphrase, self.slot, limit_kib())?;
        Volume::new(header, slot, key, Box::new(disk), writable)
    }

    /// The header, and the data's disk, locked.
    pub(crate) fn opened(&self, writable: bool) -> Result<(Header, FileDisk), Error> {
        let file = open_file(&self.path, writable)?;
        if writable || !self.beside_writer {
            lock(&file, &self.path, writable)?;
        }
        refuse_attached(&self.path)?;
        let disk = FileDisk::new(file)?;
        let header = match &self.header {
            Some(path) => self.checked_header(&FileDisk::new(open_file(path, false)?)?)?,
            None => self.checked_header(&disk)?,
        };
        self.refuse_detached(&header)?;
        Ok((header, disk))
    }
}

/// An open volume: its plaintext is a [`Disk`].
pub struct Volume {
    header: Header,
    slot: u8,
    key: Secret,
    data: Data,
}

/// A disk that threads may share.
type AnyDisk = Box<dyn Disk + Send + Sync>;

/// The segment under its cipher.
enum Data {
    Encrypted(Encrypted<Slice<AnyDisk>>),
    Authenticated(Box<Authenticated<Slice<AnyDisk>>>),
}

impl Data {
    fn disk(&self) -> &dyn Disk {
        match self {
            Self::Encrypted(data) => data,
            Self::Authenticated(data) => &**data,
        }
    }

    fn disk_mut(&mut self) -> &mut dyn Disk {
        match self {
            Self::Encrypted(data) => data,
            Self::Authenticated(data) => &mut **data,
        }
    }
}

impl Volume {
    pub(crate) fn new(
        header: Header,
        slot: u8,
        key: Secret,
        disk: AnyDisk,
        writable: bool,
    ) -> Result<Self, Error> {
        let slice = slice(&header, disk)?;
        let Segment { sector, integrity, .. } = header.metadata().segment;
        let data = match integrity {
            false => Data::Encrypted(Encrypted::new(slice, &key, sector)),
            true => {
                Data::Authenticated(Box::new(Authenticated::open(slice, &key, sector, writable)?))
            }
        };
        Ok(Self { header, slot, key, data })
    }

    /// A volume whose segment has nothing in it yet: noise, or zeros with their tags, whose writing is watched.
    pub(crate) fn empty(
        header: Header,
        slot: u8,
        key: Secret,
        disk: AnyDisk,
        watch: &dyn Fn(u64, u64),
    ) -> Result<Self, Error> {
        let slice = slice(&header, disk)?;
        let Segment { sector, integrity, .. } = header.metadata().segment;
        let data = match integrity {
            false => Data::Encrypted(Encrypted::new(slice, &key, sector)),
            true => Data::Authenticated(Box::new(Authenticated::format_watched(
                slice, &key, sector, watch,
            )?)),
        };
        Ok(Self { header, slot, key, data })
    }

    /// Takes in what the file or device gained behind the last sector that has a tag.
    pub(crate) fn grow(&mut self) -> Result<(), Error> {
        let used = ext4::len_on(self).unwrap_or(self.len());
        match &mut self.data {
            Data::Encrypted(_) => Ok(()),
            Data::Authenticated(data) => data.grow(used),
        }
    }

    /// The header that the volume was opened with.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The keyslot that opened.
    pub fn slot(&self) -> u8 {
        self.slot
    }

    /// The volume key, for those who may have it.
    pub fn key(&self) -> &Secret {
        &self.key
    }

    /// The key for manifests of what is kept in the volume.
    pub fn manifest_key(&self) -> ManifestKey {
        ManifestKey::new(&self.key, self.header.uuid())
    }
}

impl Disk for Volume {
    fn len(&self) -> u64 {
        self.data.disk().len()
    }

    fn read_at(&self, target: &mut [u8], offset: u64) -> Result<(), Error> {
        self.data.disk().read_at(target, offset)
    }

    fn write_at(&mut self, source: &[u8], offset: u64) -> Result<(), Error> {
        self.data.disk_mut().write_at(source, offset)
    }

    fn write_unnamed_at(&mut self, source: &[u8], offset: u64) -> Result<(), Error> {
        self.data.disk_mut().write_unnamed_at(source, offset)
    }

    fn flush(&mut self) -> Result<(), Error> {
        self.data.disk_mut().flush()
    }
}

fn slice(header: &Header, disk: AnyDisk) -> Result<Slice<AnyDisk>, Error> {
    let segment = header.metadata().segment;
    let len = segment.len_on(disk.len())?;
    Ok(Slice { disk, offset: segment.offset, len })
}

/// A regular file or a block device, not behind a symbolic link.
pub(crate) fn open_file(path: &Path, writable: bool) -> Result<File, Error> {
    let name = path.display().to_string();
    let flags = match writable {
        true => exclusive_flags(path),
        false => OFlags::NOFOLLOW,
    } | OFlags::NONBLOCK;
    let mut options = OpenOptions::new();
    options.read(true).write(writable).custom_flags(flags.bits() as i32);
    let file = options.open(path).map_err(|error| match error.raw_os_error() {
        Some(libc::ELOOP) => Error::refused(format!("{name} is a symbolic link")),
        Some(libc::EBUSY) => Error::Busy(name.clone()),
        _ => Error::Io(name.clone(), error),
    })?;
    let file_type = file.metadata().map_err(Error::io(name.clone()))?.file_type();
    match file_type.is_file() || file_type.is_block_device() {
        true => Ok(file),
        false => Err(Error::refused(format!("{name} is no file and no block device"))),
    }
}

/// Not through a symbolic link; a block device only if it is neither mounted nor mapped.
pub(crate) fn exclusive_flags(path: &Path) -> OFlags {
    let is_device = std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_block_device());
    OFlags::NOFOLLOW | if is_device { OFlags::EXCL } else { OFlags::empty() }
}

/// How long a lock is waited for: a child process between fork and exec may hold one for a moment.
const LOCK_ATTEMPTS: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(25);

/// One writer, or several readers.
pub(crate) fn lock(file: &File, path: &Path, exclusive: bool) -> Result<(), Error> {
    let operation = match exclusive {
        true => FlockOperation::NonBlockingLockExclusive,
        false => FlockOperation::NonBlockingLockShared,
    };
    for _ in 0..LOCK_ATTEMPTS {
        if flock(file, operation).is_ok() {
            return Ok(());
        }
        std::thread::sleep(LOCK_PAUSE);
    }
    Err(Error::Busy(path.display().to_string()))
}
