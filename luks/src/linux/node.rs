//! Device nodes, with udev or without: found, waited for, or made.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};

use crate::Error;

/// What the kernel knows a device by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceNumber {
    /// Of the driver.
    pub major: u32,
    /// Of its device.
    pub minor: u32,
}

/// How long udev may take to make a node: after that it is made here, since one that hangs must not hang us.
const UDEV_WAIT: Duration = Duration::from_secs(2);

/// Opens a character device, made first if a bare `/dev` lacks it.
pub(crate) fn open_character(path: &str, number: DeviceNumber) -> Result<File, Error> {
    if !Path::new(path).exists() {
        make(path, FileType::CharacterDevice, number)?;
    }
    OpenOptions::new().read(true).write(true).open(path).map_err(Error::io(path))
}

/// Makes sure that a block device has this node.
pub(crate) fn ensure_block(path: &str, number: DeviceNumber) -> Result<(), Error> {
    match fs::metadata(path) {
        Ok(found) if found.file_type().is_block_device() && number_of(&found) == number => Ok(()),
        Ok(_) => Err(Error::Busy(path.to_owned())),
        Err(_) => make(path, FileType::BlockDevice, number),
    }
}

/// `/dev/mapper/NAME`: udev's work where it runs, else ours.
pub(crate) fn ensure_mapped(name: &str, number: DeviceNumber) -> Result<(), Error> {
    let path = format!("/dev/mapper/{name}");
    let start = Instant::now();
    while udev_runs() && start.elapsed() < UDEV_WAIT {
        if Path::new(&path).exists() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    ensure_block(&path, number)
}

/// Removes `/dev/mapper/NAME` if it is a device node; udev's links are udev's.
pub(crate) fn remove_mapped(name: &str) {
    let path = format!("/dev/mapper/{name}");
    let is_node =
        fs::symlink_metadata(&path).is_ok_and(|found| found.file_type().is_block_device());
    if is_node {
        let _ = fs::remove_file(path);
    }
}

/// Major and minor number of a device file.
pub(crate) fn number_of(metadata: &fs::Metadata) -> DeviceNumber {
    let device = metadata.rdev();
    DeviceNumber { major: rustix::fs::major(device), minor: rustix::fs::minor(device) }
}

fn udev_runs() -> bool {
    Path::new("/run/udev/control").exists()
}

fn make(path: &str, kind: FileType, number: DeviceNumber) -> Result<(), Error> {
    if let Some(parent) = Path::new(path).parent() {
        fs::create_dir_all(parent).map_err(Error::io(parent.display().to_string()))?;
    }
    mknodat(CWD, path, kind, Mode::from_raw_mode(0o600), makedev(number.major, number.minor))
        .map_err(|error| Error::Io(format!("make {path}"), error.into()))
}
