//! device-mapper through `/dev/mapper/control` (kernel `dm-ioctl.h`), without libdevmapper and udev.

use std::fs::File;
use std::time::Duration;

use zeroize::Zeroizing;

use super::node::{self, DeviceNumber};
use super::sys;
use crate::Error;

/// `/dev/mapper/control`: misc devices, MAPPER_CTRL_MINOR.
const CONTROL: DeviceNumber = DeviceNumber { major: 10, minor: 236 };
/// struct dm_ioctl and struct dm_target_spec.
const HEAD_LEN: usize = 312;
const SPEC_LEN: usize = 40;
/// The kernel answers in the same buffer, and with an empty table where that is too short: a line of crypt or integrity
/// is below 1 KiB.
const BUFFER_LEN: usize = 16 << 10;
/// DM_NAME_LEN and DM_UUID_LEN without the zero at their ends.
const NAME_MAX: usize = 127;
const UUID_MAX: usize = 128;
/// Flags of `linux/dm-ioctl.h`. The last has the kernel wipe its copies of the table, which has the key.
const READ_ONLY: u32 = 1;
const STATUS_TABLE: u32 = 0x10;
const SECURE_DATA: u32 = 0x8000;
/// A closed file system may keep its device for a moment.
const REMOVE_ATTEMPTS: usize = 25;
const REMOVE_WAIT: Duration = Duration::from_millis(200);

/// The ioctls that are used, by number.
#[derive(Clone, Copy)]
enum Command {
    Version = 0,
    ListDevices = 2,
    Create = 3,
    Remove = 4,
    Resume = 6,
    Status = 7,
    LoadTable = 9,
    TableStatus = 0xc,
}

/// A device that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its name below `/dev/mapper`.
    pub name: String,
    /// Its UUID: who made it and from what.
    pub uuid: String,
    /// Major and minor number.
    pub number: DeviceNumber,
    /// How many have it open.
    pub users: u32,
    /// Whether it cannot be written.
    pub read_only: bool,
}

/// One line of a table.
pub(crate) struct Target<'a> {
    pub(crate) sectors: u64,
    pub(crate) kind: &'a str,
    /// Holds the key if the kernel keyring cannot.
    pub(crate) params: Zeroizing<String>,
}

/// The control device.
pub(crate) struct Mapper {
    control: File,
}

impl Mapper {
    /// Opens it; opening loads the kernel's module.
    pub(crate) fn open() -> Result<Self, Error> {
        let control = node::open_character("/dev/mapper/control", CONTROL)?;
        let mapper = Self { control };
        mapper.run(Command::Version, "", "", 0, None).map_err(Error::io("device-mapper"))?;
        Ok(mapper)
    }

    /// The device of this name.
    pub(crate) fn find(&self, name: &str) -> Result<Option<Device>, Error> {
        match self.run(Command::Status, name, "", 0, None) {
            Ok(reply) => Ok(Some(reply.device())),
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            Err(error) => Err(Error::Io(format!("status of {name}"), error)),
        }
    }

    /// The device of this number.
    pub(crate) fn find_number(&self, number: DeviceNumber) -> Result<Option<Device>, Error> {
        let reply = self.run(Command::ListDevices, "", "", 0, None);
        let reply = reply.map_err(Error::io("list of devices"))?;
        for name in reply.names() {
            if let Some(device) = self.find(&name)?.filter(|device| device.number == number) {
                return Ok(Some(device));
            }
        }
        Ok(None)
    }

    /// Creates a device with this table and resumes it; nothing is left of a failure.
    pub(crate) fn create(
        &self,
        name: &str,
        uuid: &str,
        target: &Target,
        read_only: bool,
    ) -> Result<Device, Error> {
        if self.find(name)?.is_some() {
            return Err(Error::Busy(format!("the mapping {name}")));
        }
        let flags = if read_only { READ_ONLY } else { 0 };
        self.run(Command::Create, name, uuid, flags, None)
            .map_err(Error::io(format!("create the mapping {name}")))?;
        let load = |target| self.run(Command::LoadTable, name, "", flags | SECURE_DATA, target);
        let made = load(Some(target))
            .and_then(|_| self.run(Command::Resume, name, "", SECURE_DATA, None))
            .map_err(Error::io(format!("activate the mapping {name}")))
            .and_then(|reply| {
                let device = reply.device();
                node::ensure_block(&format!("/dev/dm-{}", device.number.minor), device.number)?;
                node::ensure_mapped(name, device.number)?;
                Ok(device)
            });
        if made.is_err() {
            self.remove_now(name);
        }
        made
    }

    /// Removes a device; waits a few seconds for its last user.
    pub(crate) fn remove(&self, name: &str) -> Result<(), Error> {
        for _ in 0..REMOVE_ATTEMPTS {
            match self.run(Command::Remove, name, "", 0, None) {
                Ok(_) => {
                    node::remove_mapped(name);
                    return Ok(());
                }
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                    std::thread::sleep(REMOVE_WAIT);
                }
                Err(error) => return Err(Error::Io(format!("remove the mapping {name}"), error)),
            }
        }
        Err(Error::Busy(format!("the mapping {name}")))
    }

    /// Removes what a failure would leave behind.
    pub(crate) fn remove_now(&self, name: &str) {
        let _ = self.run(Command::Remove, name, "", 0, None);
        node::remove_mapped(name);
    }

    /// The parameters of a device's only target; they may hold a key.
    pub(crate) fn table(&self, name: &str) -> Result<Zeroizing<String>, Error> {
        let reply = self.run(Command::TableStatus, name, "", STATUS_TABLE | SECURE_DATA, None);
        Ok(reply.map_err(Error::io(format!("table of {name}")))?.table())
    }

    fn run(
        &self,
        command: Command,
        name: &str,
        uuid: &str,
        flags: u32,
        target: Option<&Target>,
    ) -> std::io::Result<Reply> {
        let mut bytes = Zeroizing::new(vec![0; BUFFER_LEN]);
        let mut put =
            |at: usize, source: &[u8]| bytes[at..][..source.len()].copy_from_slice(source);
        assert!(name.len() <= NAME_MAX && uuid.len() <= UUID_MAX, "checked by the caller");
        put(0, &4u32.to_ne_bytes());
        put(12, &(BUFFER_LEN as u32).to_ne_bytes());
        put(16, &(HEAD_LEN as u32).to_ne_bytes());
        put(20, &u32::from(target.is_some()).to_ne_bytes());
        put(28, &flags.to_ne_bytes());
        put(48, name.as_bytes());
        put(176, uuid.as_bytes());
        if let Some(target) = target {
            put(HEAD_LEN + 8, &target.sectors.to_ne_bytes());
            put(HEAD_LEN + 24, target.kind.as_bytes());
            put(HEAD_LEN + SPEC_LEN, target.params.as_bytes());
        }
        let request = 0xc138_fd00 | command as u32;
        sys::ioctl_bytes(&self.control, request, &mut bytes)?;
        Ok(Reply { bytes })
    }
}

struct Reply {
    bytes: Zeroizing<Vec<u8>>,
}

impl Reply {
    fn word(&self, at: usize) -> u32 {
        u32::from_ne_bytes(self.bytes[at..at + 4].try_into().expect("four bytes"))
    }

    fn text(&self, at: usize, len: usize) -> String {
        let field = &self.bytes[at..at + len];
        let end = field.iter().position(|&byte| byte == 0).unwrap_or(len);
        String::from_utf8_lossy(&field[..end]).into_owned()
    }

    fn device(&self) -> Device {
        let number = u64::from_ne_bytes(self.bytes[40..48].try_into().expect("eight bytes"));
        Device {
            name: self.text(48, 128),
            uuid: self.text(176, 129),
            number: decode_number(number),
            users: self.word(24),
            read_only: self.word(28) & READ_ONLY != 0,
        }
    }

    /// The names of a list: each entry has a number, the distance to the next, and a name.
    fn names(&self) -> Vec<String> {
        let mut names = Vec::new();
        let mut at = self.word(16) as usize;
        while at + 12 < self.bytes.len() {
            let number =
                u64::from_ne_bytes(self.bytes[at..at + 8].try_into().expect("eight bytes"));
            if number == 0 {
                break;
            }
            names.push(self.text(at + 12, NAME_MAX.min(self.bytes.len() - at - 12)));
            match self.word(at + 8) as usize {
                0 => break,
                next => at += next,
            }
        }
        names
    }

    fn table(&self) -> Zeroizing<String> {
        let start = self.word(16) as usize + SPEC_LEN;
        let len = self.bytes.len().saturating_sub(start);
        Zeroizing::new(if len == 0 { String::new() } else { self.text(start, len) })
    }
}

/// The kernel's `huge_encode_dev`.
fn decode_number(device: u64) -> DeviceNumber {
    let minor = (device & 0xff | device >> 12 & 0xfff00) as u32;
    DeviceNumber { major: (device >> 8 & 0xfff) as u32, minor }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_decode_as_the_kernel_encodes_them() {
        assert_eq!(decode_number(0xfd00), DeviceNumber { major: 253, minor: 0 });
        assert_eq!(decode_number(0x0010_fd05), DeviceNumber { major: 253, minor: 0x105 });
    }
}
