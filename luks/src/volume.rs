//! `Volume`: creating and opening encrypted volumes in this process, without privileges.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, OFlags, flock};

use crate::Error;
use crate::data::encrypted::Encrypted;
use crate::data::integrity::Authenticated;
use crate::disk::{Disk, FileDisk, Slice};
use crate::header::Header;
use crate::header::binary::{Binary, Checksum, LABEL_LEN, is_printable};
use crate::header::mac::{HeaderId, ManifestKey};
use crate::header::metadata::{Metadata, Policy, Segment};
use crate::keys::antiforensic::STRIPES;
use crate::keys::hash::Hash;
use crate::keys::kdf::{Kdf, KdfCost, pbkdf2};
use crate::keys::keyslot::{self, Digest, Keyslot};
use crate::keys::secret::{Passphrase, Secret};
use crate::linux::loop_device::refuse_attached;
use crate::memory::limit_kib;
use crate::random::random;

/// Where the data begins: cryptsetup's default, after 16 MiB of headers and keyslots.
const DATA_OFFSET: u64 = 16 << 20;
/// Bytes of a metadata copy.
const METADATA_LEN: u64 = 16 << 10;
/// Iterations of the volume key's digest; the key is random, so more would protect nothing.
const DIGEST_ITERATIONS: u32 = 1000;

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
        let (slot, key) = header.unlock(passphrase, self.slot, limit_kib())?;
        Volume::new(header, slot, key, Box::new(disk), writable)
    }
}

/// An open volume: its plaintext is a [`Disk`].
pub struct Volume {
    header: Header,
    slot: u8,
    key: Secret,
    data: AnyDisk,
}

/// A disk that threads may share.
type AnyDisk = Box<dyn Disk + Send + Sync>;

impl Volume {
    pub(crate) fn new(
        header: Header,
        slot: u8,
        key: Secret,
        disk: AnyDisk,
        writable: bool,
    ) -> Result<Self, Error> {
        let segment = header.metadata().segment;
        let len = segment.len_on(disk.len())?;
        let slice = Slice { disk, offset: segment.offset, len };
        let data: AnyDisk = match segment.integrity {
            false => Box::new(Encrypted::new(slice, &key, segment.sector)),
            true => Box::new(Authenticated::open(slice, &key, segment.sector, writable)?),
        };
        Ok(Self { header, slot, key, data })
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
        self.data.len()
    }

    fn read_at(&self, target: &mut [u8], offset: u64) -> Result<(), Error> {
        self.data.read_at(target, offset)
    }

    fn write_at(&mut self, source: &[u8], offset: u64) -> Result<(), Error> {
        self.data.write_at(source, offset)
    }

    fn flush(&mut self) -> Result<(), Error> {
        self.data.flush()
    }
}

/// Creates a volume in `path`, with a keyslot for each passphrase; a detached header goes to `header`.
/// The plaintext is noise afterwards, or zeros with integrity. A failed creation leaves no file behind.
///
/// # Errors
/// When a file is there already and `force` is not given, and when options make no sense.
pub fn create(
    path: &Path,
    header: Option<&Path>,
    options: &Options,
    passphrases: &[Passphrase],
    force: bool,
) -> Result<Volume, Error> {
    create_watched(path, header, options, passphrases, force, &|_, _| ())
}

/// As [`create`]; with integrity `watch` is told of each write: its bytes, and those of all.
///
/// # Errors
/// As there.
pub fn create_watched(
    path: &Path,
    header: Option<&Path>,
    options: &Options,
    passphrases: &[Passphrase],
    force: bool,
    watch: &dyn Fn(u64, u64),
) -> Result<Volume, Error> {
    let mut created = Vec::new();
    let made = create_files(path, header, (options, watch), passphrases, force, &mut created);
    if made.is_err() {
        for path in created {
            let _ = std::fs::remove_file(path);
        }
    }
    made
}

fn create_files(
    path: &Path,
    header_path: Option<&Path>,
    (options, watch): (&Options, &dyn Fn(u64, u64)),
    passphrases: &[Passphrase],
    force: bool,
    created: &mut Vec<PathBuf>,
) -> Result<Volume, Error> {
    let offset = if header_path.is_some() { 0 } else { DATA_OFFSET };
    let (header, key) = new_header(options, offset, passphrases)?;
    let mut new_file = |path: &Path, len: u64| {
        let existed = path.exists();
        if existed {
            // Not even by force from under somebody who has it mounted.
            refuse_attached(path)?;
        }
        let mut opened = OpenOptions::new();
        opened.read(true).write(true).mode(0o600).custom_flags(exclusive_flags(path).bits() as i32);
        let file = match force {
            true => opened.create(true).truncate(false).open(path),
            false => opened.create_new(true).open(path),
        };
        let file = file.map_err(Error::io(format!("create {}", path.display())))?;
        if !existed {
            created.push(path.to_owned());
        }
        lock(&file, path, true)?;
        if file.metadata().map_err(Error::io("metadata"))?.is_file() {
            file.set_len(0).and_then(|()| file.set_len(len)).map_err(Error::io("set length"))?;
            if options.preallocate {
                rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, len)
                    .map_err(|error| Error::Io("allocate space".into(), error.into()))?;
            }
        }
        FileDisk::new(file)
    };
    let data = new_file(path, options.size)?;
    let mut disks = [Some(data), None];
    if let Some(path) = header_path {
        disks[1] = Some(new_file(path, DATA_OFFSET)?);
    }
    let [data, detached] = &mut disks;
    let target = detached.as_mut().or(data.as_mut()).expect("a disk");
    header.write_whole(target)?;
    let data = Box::new(disks[0].take().expect("the data"));
    let slot = header.metadata().keyslots[0].number;
    if options.integrity {
        let len = data.len() - offset;
        let inside = Slice { disk: data, offset, len };
        Authenticated::format_watched(inside, &key, options.sector, watch)?;
        let file = open_file(path, true)?;
        lock(&file, path, true)?;
        return Volume::new(header, slot, key, Box::new(FileDisk::new(file)?), true);
    }
    Volume::new(header, slot, key, data, true)
}

fn new_header(
    options: &Options,
    offset: u64,
    passphrases: &[Passphrase],
) -> Result<(Header, Secret), Error> {
    let label_fits = options.label.len() < LABEL_LEN && options.label.chars().all(is_printable);
    if !label_fits || ![512, 4096].contains(&options.sector) {
        return Err(Error::refused(
            "a label of over 47 bytes or with control characters, or sectors not of 512 or 4096",
        ));
    }
    if !(1..=8).contains(&passphrases.len()) || passphrases.iter().any(|p| p.bytes().is_empty()) {
        return Err(Error::refused("other than 1 to 8 passphrases, or an empty one"));
    }
    if options.size < offset + (1 << 20) || !options.size.is_multiple_of(4096) {
        return Err(Error::refused(format!(
            "a size of {} bytes; at least {} and a multiple of 4096 are needed",
            options.size,
            offset + (1 << 20)
        )));
    }
    let cost = options.cost.check()?;
    let key_len = if options.integrity { 96 } else { 64 };
    let mut key = Secret::zeroed(key_len);
    random(&mut key)?;
    let area_len = (key_len * STRIPES).next_multiple_of(4096) as u64;
    let mut keyslots = Vec::new();
    let mut material = Vec::new();
    for (number, passphrase) in passphrases.iter().enumerate() {
        let slot = Keyslot {
            number: number as u8,
            key_len,
            priority: 1,
            area: [2 * METADATA_LEN + number as u64 * area_len, area_len],
            area_key_len: 64,
            af_hash: Hash::Sha256,
            kdf: Kdf { cost, salt: random_salt()? },
        };
        material.push(keyslot::seal(&slot, &key, passphrase, limit_kib())?);
        keyslots.push(slot);
    }
    let salt = random_salt()?;
    let mut digest = vec![0; 32];
    pbkdf2(Hash::Sha256, DIGEST_ITERATIONS, &salt, &key, &mut digest);
    let digest = Digest {
        number: 0,
        keyslots: keyslots.iter().map(|slot| slot.number).collect(),
        of_segment: true,
        hash: Hash::Sha256,
        iterations: DIGEST_ITERATIONS,
        salt,
        digest,
    };
    let segment =
        Segment { offset, size: None, sector: options.sector, integrity: options.integrity };
    let metadata = Metadata {
        keyslots,
        tokens: Vec::new(),
        segment,
        digests: vec![digest],
        keyslots_len: DATA_OFFSET - 2 * METADATA_LEN,
    };
    let binary = Binary {
        size: METADATA_LEN,
        sequence: 0,
        label: options.label.clone(),
        checksum: Checksum::Sha256,
        uuid: random_uuid()?,
        subsystem: String::new(),
    };
    let mut header = Header::new(binary, metadata, material);
    header.seal(&key)?;
    Ok((header, key))
}

fn random_salt() -> Result<[u8; 32], Error> {
    let mut salt = [0; 32];
    random(&mut salt).map(|()| salt)
}

/// A random UUID (RFC 9562, version 4).
fn random_uuid() -> Result<String, Error> {
    let mut bytes = [0; 16];
    random(&mut bytes)?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok([&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-"))
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
fn exclusive_flags(path: &Path) -> OFlags {
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
