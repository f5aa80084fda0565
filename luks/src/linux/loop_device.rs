//! Loop devices: a file as a block device that frees itself with its last user (kernel `loop.h`).

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::node::{self, DeviceNumber};
use super::sys;
use crate::Error;

const CTL_GET_FREE: u32 = 0x4c82;
const SET_FD: u32 = 0x4c00;
const CLR_FD: u32 = 0x4c01;
const SET_STATUS64: u32 = 0x4c04;
const CONFIGURE: u32 = 0x4c0a;
const CONTROL: DeviceNumber = DeviceNumber { major: 10, minor: 237 };
const MAJOR: u32 = 7;
/// struct loop_config: fd, block size, loop_info64 (232 bytes), reserved.
const CONFIG_LEN: usize = 304;
const INFO: std::ops::Range<usize> = 8..240;
/// Offset of lo_flags in loop_info64.
const FLAGS_AT: usize = 52;
const READ_ONLY: u32 = 1;
const AUTOCLEAR: u32 = 4;
/// Others may take the free device first.
const ATTEMPTS: usize = 64;

/// An attached loop device; it detaches when this and every other user is gone.
pub(crate) struct LoopDevice {
    _device: File,
    /// Major and minor number.
    pub(crate) number: DeviceNumber,
}

impl LoopDevice {
    /// Attaches `file`; blocks of `block` bytes if its length is a multiple of them.
    pub(crate) fn attach(file: &File, block: u32, read_only: bool) -> Result<Self, Error> {
        let control = node::open_character("/dev/loop-control", CONTROL)?;
        let len = file.metadata().map_err(Error::io("length"))?.len();
        let block = if len.is_multiple_of(block.into()) { block } else { 512 };
        let mut config = [0u8; CONFIG_LEN];
        config[..4].copy_from_slice(&(file.as_raw_fd() as u32).to_ne_bytes());
        config[4..8].copy_from_slice(&block.to_ne_bytes());
        let flags = AUTOCLEAR | if read_only { READ_ONLY } else { 0 };
        config[INFO.start + FLAGS_AT..][..4].copy_from_slice(&flags.to_ne_bytes());
        for _ in 0..ATTEMPTS {
            let free = sys::ioctl_integer(&control, CTL_GET_FREE, 0);
            let index = free.map_err(Error::io("find a free loop device"))? as u32;
            let path = format!("/dev/loop{index}");
            let number = DeviceNumber { major: MAJOR, minor: index };
            node::ensure_block(&path, number)?;
            let device = OpenOptions::new().read(true).write(!read_only).open(&path);
            let device = device.map_err(Error::io(path.clone()))?;
            match configure(&device, file, &mut config) {
                Ok(()) => return Ok(Self { _device: device, number }),
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                Err(error) => return Err(Error::Io(format!("attach {path}"), error)),
            }
        }
        Err(Error::Busy("every loop device".into()))
    }
}

/// LOOP_CONFIGURE, or on kernels before 5.8 the two steps that it replaces.
fn configure(device: &File, file: &File, config: &mut [u8; CONFIG_LEN]) -> std::io::Result<()> {
    match sys::ioctl_bytes(device, CONFIGURE, config) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOTTY)) => {}
        done => return done,
    }
    sys::ioctl_integer(device, SET_FD, file.as_raw_fd())?;
    let set = sys::ioctl_bytes(device, SET_STATUS64, &mut config[INFO]);
    if set.is_err() {
        sys::ioctl_integer(device, CLR_FD, 0)?;
    }
    set
}

/// Fails if a loop device has this file attached: somebody may change it underneath.
pub(crate) fn refuse_attached(path: &Path) -> Result<(), Error> {
    match of_file(path) {
        Some(device) => Err(Error::Busy(format!("{} (by {device})", path.display()))),
        None => Ok(()),
    }
}

/// The loop device that has this file attached, if there is one.
fn of_file(path: &Path) -> Option<String> {
    let path = path.canonicalize().ok()?;
    let wanted = fs::metadata(&path).ok()?;
    let devices = fs::read_dir("/sys/block").ok()?.filter_map(Result::ok);
    devices.map(|device| device.file_name().to_string_lossy().into_owned()).find(|name| {
        let backing = fs::read_to_string(format!("/sys/block/{name}/loop/backing_file"));
        backing.is_ok_and(|backing| {
            let same =
                |found: fs::Metadata| (found.dev(), found.ino()) == (wanted.dev(), wanted.ino());
            fs::metadata(backing.trim_end_matches('\n')).is_ok_and(same)
        })
    })
}
