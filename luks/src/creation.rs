//! Creating volumes: in files, or over whole block devices.
//!
//! ```text
//!  device: mark over where headers begin -> keyslots -> inside -> header
//! ```
//!
//! The header comes last, so what has one is whole. A process that is killed before leaves its mark on a device, and
//! the next one begins anew; of a device with anything else on it nothing is overwritten unasked.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::Error;
use crate::disk::{Disk, FileDisk};
use crate::header::Header;
use crate::header::binary::{Binary, Checksum, LABEL_LEN, is_printable};
use crate::header::metadata::{Metadata, Segment};
use crate::keys::antiforensic::STRIPES;
use crate::keys::hash::Hash;
use crate::keys::kdf::{Kdf, pbkdf2};
use crate::keys::keyslot::{self, Digest, Keyslot};
use crate::keys::secret::{Passphrase, Secret};
use crate::linux::loop_device::refuse_attached;
use crate::memory::limit_kib;
use crate::random::random;
use crate::volume::{DATA_OFFSET, Options, Volume, exclusive_flags, lock, open_file};

/// Bytes of a metadata copy.
const METADATA_LEN: u64 = 16 << 10;
/// Iterations of the volume key's digest; the key is random, so more would protect nothing.
const DIGEST_ITERATIONS: u32 = 1000;
/// Stands where a header will, until the volume is whole.
const MARK: &[u8] = b"hfl: a volume that is not finished\n";
/// Bytes at the end of a device that are looked at: RAID metadata and copies of partition tables lie there.
const END_LEN: u64 = 1 << 20;

/// Creates a volume in `path`, with a keyslot for each passphrase; a detached header goes to `header`. A block device
/// is filled. `fill` puts something inside, where the plaintext is noise, or zeros with integrity: of their writing
/// `watch` is told, the bytes of each and those of all. A failed creation leaves no file behind.
///
/// # Errors
/// When there is something already and `force` is not given, and when options make no sense; those of `fill`.
pub fn create_with(
    path: &Path,
    header: Option<&Path>,
    options: &Options,
    passphrases: &[Passphrase],
    force: bool,
    watch: &dyn Fn(u64, u64),
    fill: impl FnOnce(Volume) -> Result<Volume, Error>,
) -> Result<Volume, Error> {
    let mut files = Files { options, force, watch, created: Vec::new() };
    let made = files.create([Some(path), header], passphrases, fill);
    if made.is_err() {
        for path in files.created {
            let _ = std::fs::remove_file(path);
        }
    }
    made
}

/// As [`create_with`], with nothing inside.
///
/// # Errors
/// As there.
pub fn create(
    path: &Path,
    header: Option<&Path>,
    options: &Options,
    passphrases: &[Passphrase],
    force: bool,
) -> Result<Volume, Error> {
    create_with(path, header, options, passphrases, force, &|_, _| (), Ok)
}

/// Bytes of a block device; `None` for anything else, also for what is not there.
///
/// # Errors
/// When the system refuses.
pub fn device_len(path: &Path) -> Result<Option<u64>, Error> {
    let is_device = std::fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device());
    is_device.then(|| FileDisk::new(open_file(path, false)?).map(|disk| disk.len())).transpose()
}

/// Whether there is nothing on a block device: zeros where headers and file systems begin and at its end, or what a
/// creation left that was cut off.
///
/// # Errors
/// When it cannot be read.
pub fn is_blank(path: &Path) -> Result<bool, Error> {
    is_blank_disk(&FileDisk::new(open_file(path, false)?)?)
}

fn is_blank_disk(disk: &FileDisk) -> Result<bool, Error> {
    let mut bytes = vec![0; disk.len().min(DATA_OFFSET) as usize];
    disk.read_at(&mut bytes, 0)?;
    if bytes.starts_with(MARK) {
        return Ok(true);
    }
    let mut end = vec![0; disk.len().min(END_LEN) as usize];
    let end_at = disk.len() - end.len() as u64;
    disk.read_at(&mut end, end_at)?;
    Ok(bytes.iter().chain(&end).all(|&byte| byte == 0))
}

/// What is being created.
struct Files<'a> {
    options: &'a Options,
    force: bool,
    watch: &'a dyn Fn(u64, u64),
    created: Vec<PathBuf>,
}

impl Files<'_> {
    fn create(
        &mut self,
        [path, detached]: [Option<&Path>; 2],
        passphrases: &[Passphrase],
        fill: impl FnOnce(Volume) -> Result<Volume, Error>,
    ) -> Result<Volume, Error> {
        let path = path.expect("a volume has data");
        let offset = if detached.is_some() { 0 } else { DATA_OFFSET };
        let mut options = self.options.clone();
        if let Some(len) = device_len(path)? {
            options.size = len / 4096 * 4096;
        }
        let (header, key) = new_header(&options, offset, passphrases)?;
        let data = self.open(path, options.size)?;
        let mut target = match detached {
            Some(path) => self.open(path, DATA_OFFSET)?,
            None => data.again()?,
        };
        let mut mark = vec![0; 2 * METADATA_LEN as usize];
        mark[..MARK.len()].copy_from_slice(MARK);
        target.write_at(&mark, 0)?;
        target.flush()?;
        header.write_keyslots(&mut target)?;
        let slot = header.metadata().keyslots[0].number;
        let volume = fill(Volume::empty(header.clone(), slot, key, Box::new(data), self.watch)?)?;
        header.write_new(&mut target)?;
        Ok(volume)
    }

    /// A new file of that many bytes, or a blank device.
    fn open(&mut self, path: &Path, len: u64) -> Result<FileDisk, Error> {
        let existed = path.exists();
        if existed {
            // Not even by force from under somebody who has it mounted.
            refuse_attached(path)?;
        }
        let is_device = device_len(path)?.is_some();
        let mut opened = OpenOptions::new();
        opened.read(true).write(true).mode(0o600).custom_flags(exclusive_flags(path).bits() as i32);
        let file = match self.force || is_device {
            true => opened.create(!is_device).truncate(false).open(path),
            false => opened.create_new(true).open(path),
        };
        let what = || format!("create {}", path.display());
        let file = file.map_err(Error::io(what()))?;
        if !existed {
            self.created.push(path.to_owned());
        }
        lock(&file, path, true)?;
        if file.metadata().map_err(Error::io("metadata"))?.is_file() {
            file.set_len(0).and_then(|()| file.set_len(len)).map_err(Error::io("set length"))?;
            if self.options.preallocate {
                rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, len)
                    .map_err(|error| Error::Io("allocate space".into(), error.into()))?;
            }
        }
        let disk = FileDisk::new(file)?;
        if is_device && !self.force && !is_blank_disk(&disk)? {
            let taken = io::Error::new(io::ErrorKind::AlreadyExists, "there is something on it");
            return Err(Error::Io(what(), taken));
        }
        Ok(disk)
    }
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
