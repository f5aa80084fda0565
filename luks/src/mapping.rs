//! Volumes in the kernel: dm-crypt devices and mounted file systems. Needs root.
//!
//! ```text
//!   file --loop--> /dev/loopN --[dm-integrity NAME_dif]--> dm-crypt /dev/mapper/NAME --ext4--> directory
//! ```
//!
//! Names and UUIDs are cryptsetup's, so either closes what the other opened. No text of the header gets
//! into a table: what the allow-list passed is written from constants. The key goes through the thread
//! keyring, where the kernel permits it, and is unlinked at once. Nothing is left of a failure.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::mount::{MountFlags, UnmountFlags, mount as mount_system, unmount as unmount_system};
use zeroize::Zeroizing;

pub use crate::linux::mapper::Device;
pub use crate::linux::node::DeviceNumber;

use crate::Error;
use crate::data::integrity::provided_sectors;
use crate::disk::{Disk, FileDisk};
use crate::header::Header;
use crate::header::metadata::CIPHER;
use crate::keys::secret::{Passphrase, Secret};
use crate::linux::loop_device::{LoopDevice, refuse_attached};
use crate::linux::mapper::{Mapper, Target};
use crate::linux::node;
use crate::linux::sys;
use crate::memory::limit_kib;
use crate::volume::{Source, lock};

const UUID_PREFIX: &str = "CRYPT-LUKS2-";
const INTEGRITY_PREFIXES: [&str; 2] = ["CRYPT-INTEGRITY-", "CRYPT-SUBDEV-"];
/// Ending of the device between data and encryption.
const INTEGRITY_NAME: &str = "_dif";
/// The cipher of the kernel under authenticated encryption.
const AEAD: &str = "capi:authenc(hmac(sha256),xts(aes))-plain64";
const SECTOR: u64 = 512;
/// Together five seconds: who reads a file as it is unmounted (an indexer, a shell that leaves) lets go of it within
/// that; the kernel tells nobody when.
const UNMOUNT_ATTEMPTS: usize = 25;
const UNMOUNT_WAIT: Duration = Duration::from_millis(200);

/// What `status` says of a mapping.
#[derive(Clone, Debug)]
pub struct Status {
    /// The device.
    pub device: Device,
    /// Cipher, as the kernel names it.
    pub cipher: String,
    /// Whether the kernel keyring provided the key.
    pub keyring: bool,
    /// Number of the device below.
    pub below: String,
    /// First sector on the device below.
    pub offset: u64,
    /// Where it is mounted.
    pub mounts: Vec<String>,
}

/// Opens a volume as `/dev/mapper/NAME`.
///
/// # Errors
/// As `Source::open`; `Busy` when the name is in use; what the kernel refuses. Nothing stays then.
pub fn open(
    source: &Source,
    passphrase: &Passphrase,
    name: &str,
    read_only: bool,
) -> Result<Device, Error> {
    check_name(name)?;
    let mapper = Mapper::open()?;
    if mapper.find(name)?.is_some() {
        return Err(Error::Busy(format!("the mapping {name}")));
    }
    let header = source.read_header()?;
    source.refuse_detached(&header)?;
    let (_, key) = header.unlock(passphrase, source.slot, limit_kib())?;
    refuse_attached(&source.path)?;
    let mut options = OpenOptions::new();
    options.read(true).write(!read_only).custom_flags(OFlags::NOFOLLOW.bits() as i32);
    let file = options.open(&source.path).map_err(Error::io(source.path.display().to_string()))?;
    // A role of this program may have the volume open in its process.
    lock(&file, &source.path, !read_only)?;
    let sector = header.metadata().segment.sector;
    let metadata = file.metadata().map_err(Error::io("metadata"))?;
    // Held until the mapping uses it; then it goes away with the mapping.
    let (_loop, below) = match metadata.file_type().is_block_device() {
        true => (None, node::number_of(&metadata)),
        false => {
            let attached = LoopDevice::attach(&file, sector, read_only)?;
            // The device shares this open file, and its lock: cryptsetup would wait for it.
            let _ = flock(&file, FlockOperation::Unlock);
            let number = attached.number;
            (Some(attached), number)
        }
    };
    let disk = FileDisk::new(file)?;
    activate(&mapper, &header, &key, &disk, below, name, read_only)
}

/// Removes a mapping that this program or cryptsetup made, and what is below it.
///
/// # Errors
/// `NotFound`, `Refused` for a mapping of somebody else, `Busy`.
pub fn close(name: &str) -> Result<(), Error> {
    check_name(name)?;
    let mapper = Mapper::open()?;
    let device = ours(&mapper, name)?;
    mapper.remove(&device.name)?;
    let below = format!("{name}{INTEGRITY_NAME}");
    match mapper.find(&below)? {
        Some(below) if INTEGRITY_PREFIXES.iter().any(|prefix| below.uuid.starts_with(prefix)) => {
            mapper.remove(&below.name)
        }
        _ => Ok(()),
    }
}

/// What a mapping is.
///
/// # Errors
/// `NotFound`, `Refused` for a mapping of somebody else.
pub fn status(name: &str) -> Result<Status, Error> {
    check_name(name)?;
    let mapper = Mapper::open()?;
    let device = ours(&mapper, name)?;
    let table = mapper.table(name)?;
    // cipher key iv_offset device offset [options]: the key is not copied.
    let fields: Vec<&str> = table.split(' ').collect();
    let [cipher, key, _, below, offset, ..] = fields[..] else {
        return Err(Error::damaged("a table that is not dm-crypt's"));
    };
    Ok(Status {
        cipher: cipher.to_owned(),
        keyring: key.starts_with(':'),
        below: below.to_owned(),
        offset: offset.parse().map_err(|_| Error::damaged("a table that is not dm-crypt's"))?,
        mounts: mounts()?
            .into_iter()
            .filter(|mount| mount.number == device.number)
            .map(|mount| mount.directory)
            .collect(),
        device,
    })
}

/// Opens a volume and mounts its ext4 file system; `target` is made if it is not there.
///
/// # Errors
/// As [`open`]; when there is no ext4 file system, the mapping is closed again.
pub fn mount(
    source: &Source,
    passphrase: &Passphrase,
    name: &str,
    target: &Path,
    read_only: bool,
) -> Result<Device, Error> {
    fs::create_dir_all(target).map_err(Error::io(target.display().to_string()))?;
    let device = open(source, passphrase, name, read_only)?;
    let mut flags =
        MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::NOATIME;
    if read_only {
        flags |= MountFlags::RDONLY;
    }
    let node = format!("/dev/dm-{}", device.number.minor);
    let mounted = mount_system(node.as_str(), target, "ext4", flags, c"errors=remount-ro");
    match mounted {
        Ok(()) => Ok(device),
        Err(error) => {
            close(name)?;
            Err(Error::Io(format!("mount {}", target.display()), error.into()))
        }
    }
}

/// Unmounts a directory and closes the mapping under it.
///
/// # Errors
/// `NotFound` when nothing is mounted there, `Refused` if it is no volume of ours, `Busy`.
pub fn unmount(target: &Path) -> Result<(), Error> {
    let path = target.canonicalize().map_err(Error::io(target.display().to_string()))?;
    let text = path.display().to_string();
    let found = mounts()?.into_iter().rev().find(|mount| mount.directory == text);
    let Mount { number, .. } =
        found.ok_or_else(|| Error::NotFound(format!("system mounted at {text}")))?;
    let mapper = Mapper::open()?;
    let device = mapper.find_number(number)?;
    let device = device.ok_or_else(|| Error::refused(format!("{text} is no mapping")))?;
    let device = ours(&mapper, &device.name)?;
    for attempt in 1.. {
        match unmount_system(&path, UnmountFlags::empty()) {
            Ok(()) => break,
            Err(rustix::io::Errno::BUSY) if attempt < UNMOUNT_ATTEMPTS => {
                std::thread::sleep(UNMOUNT_WAIT);
            }
            Err(rustix::io::Errno::BUSY) => return Err(Error::Busy(text)),
            Err(error) => return Err(Error::Io(format!("unmount {text}"), error.into())),
        }
    }
    close(&device.name)
}

fn activate(
    mapper: &Mapper,
    header: &Header,
    key: &Secret,
    disk: &FileDisk,
    below: DeviceNumber,
    name: &str,
    read_only: bool,
) -> Result<Device, Error> {
    let segment = header.metadata().segment;
    let uuid = header.uuid().replace('-', "");
    let offset = segment.offset / SECTOR;
    let sectors = segment.len_on(disk.len())? / SECTOR;
    if !segment.integrity {
        return crypt(header, key, CIPHER, Start { device: below, offset }, sectors, |target| {
            create_crypt(mapper, name, &uuid, target, read_only)
        });
    }
    let provided = provided_sectors(disk, segment.offset, sectors, segment.sector)?;
    let between = format!("{name}{INTEGRITY_NAME}");
    let target = Target {
        sectors: provided,
        kind: "integrity",
        params: Zeroizing::new(format!(
            "{}:{} {offset} 32 J 2 block_size:{} fix_padding",
            below.major, below.minor, segment.sector
        )),
    };
    let between_uuid = format!("{}{uuid}-{between}", INTEGRITY_PREFIXES[0]);
    let lower = mapper.create(&between, &between_uuid, &target, read_only)?;
    let made =
        crypt(header, key, AEAD, Start { device: lower.number, offset: 0 }, provided, |target| {
            create_crypt(mapper, name, &uuid, target, read_only)
        });
    if made.is_err() {
        mapper.remove_now(&between);
    }
    made
}

fn create_crypt(
    mapper: &Mapper,
    name: &str,
    uuid: &str,
    target: &Target,
    read_only: bool,
) -> Result<Device, Error> {
    mapper.create(name, &format!("{UUID_PREFIX}{uuid}-{name}"), target, read_only)
}

/// Where on the device below a target begins, in sectors of 512 bytes.
struct Start {
    device: DeviceNumber,
    offset: u64,
}

/// Builds dm-crypt's table with the key in the keyring, or inline where that is forbidden, and uses it.
fn crypt(
    header: &Header,
    key: &Secret,
    cipher: &str,
    below: Start,
    sectors: u64,
    create: impl FnOnce(&Target) -> Result<Device, Error>,
) -> Result<Device, Error> {
    let segment = header.metadata().segment;
    let digest = header.metadata().segment_digest().number;
    let description = format!("cryptsetup:{}-d{digest}", header.uuid());
    let name = std::ffi::CString::new(description.clone()).expect("no NUL in a UUID");
    let added = sys::KernelKey::add(&name, key);
    let key_text = match &added {
        Ok(_) => Zeroizing::new(format!(":{}:logon:{description}", key.len())),
        Err(_) => {
            let digits = b"0123456789abcdef";
            let nibbles = key.iter().flat_map(|byte| [byte >> 4, byte & 15]);
            let mut text = Zeroizing::new(String::with_capacity(2 * key.len()));
            nibbles.for_each(|nibble| text.push(char::from(digits[usize::from(nibble)])));
            text
        }
    };
    let mut options = Vec::new();
    if segment.integrity {
        options.push("integrity:32:aead".to_owned());
    }
    if segment.sector != SECTOR as u32 {
        options.push(format!("sector_size:{}", segment.sector));
    }
    let mut params = Zeroizing::new(String::with_capacity(1024));
    params.push_str(&format!("{cipher} "));
    params.push_str(&key_text);
    params.push_str(&format!(" 0 {}:{} {}", below.device.major, below.device.minor, below.offset));
    if !options.is_empty() {
        params.push_str(&format!(" {} {}", options.len(), options.join(" ")));
    }
    create(&Target { sectors, kind: "crypt", params })
}

/// The device of this name, if it is a LUKS2 mapping.
fn ours(mapper: &Mapper, name: &str) -> Result<Device, Error> {
    let found = mapper.find(name)?;
    let device = found.ok_or_else(|| Error::NotFound(format!("/dev/mapper/{name}")))?;
    match device.uuid.starts_with(UUID_PREFIX) {
        true => Ok(device),
        false => Err(Error::refused(format!("{name} is no LUKS2 mapping"))),
    }
}

fn check_name(name: &str) -> Result<(), Error> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    match (1..=100).contains(&name.len()) && name.bytes().all(plain) && !name.starts_with('.') {
        true if name != "control" => Ok(()),
        _ => Err(Error::refused("a mapping name other than 1 to 100 of A-Z a-z 0-9 . _ -")),
    }
}

/// A mounted device.
struct Mount {
    number: DeviceNumber,
    directory: String,
}

/// Every mount of this process.
fn mounts() -> Result<Vec<Mount>, Error> {
    let path = "/proc/self/mountinfo";
    let text = fs::read_to_string(path).map_err(Error::io(path))?;
    let mount = |line: &str| {
        let mut fields = line.split(' ').skip(2);
        let (major, minor) = fields.next()?.split_once(':')?;
        let directory = fields.nth(1)?;
        let directory = directory.replace("\\040", " ").replace("\\134", "\\");
        let number = DeviceNumber { major: major.parse().ok()?, minor: minor.parse().ok()? };
        Some(Mount { number, directory })
    };
    Ok(text.lines().filter_map(mount).collect())
}
