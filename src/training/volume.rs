//! A LUKS2 volume for a model: made with a file system inside, its errors with what to try.

use std::cell::RefCell;
use std::io;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use luks::ext4::FileSystem;
use luks::{Error, Header, Passphrase, Volume};

use crate::failure::Failure;
use crate::progress::{Progress, Unit};

/// Makes a volume with an empty file system; for `create` and the demo. A block device is filled.
///
/// # Errors
/// When there is something already, or the options make no sense.
pub fn create_volume(
    path: &Path,
    header: Option<&Path>,
    options: &luks::Options,
    passphrases: &[Passphrase],
    force: bool,
    file_system: bool,
) -> Result<Header, Error> {
    let fill = |volume| match file_system {
        true => FileSystem::format(volume, &options.label, now())?.close(),
        false => Ok(volume),
    };
    create_filled(path, header, options, passphrases, force, fill)
}

/// Makes a volume that something is put into.
///
/// # Errors
/// As [`luks::create_with`].
pub fn create_filled(
    path: &Path,
    header: Option<&Path>,
    options: &luks::Options,
    passphrases: &[Passphrase],
    force: bool,
    fill: impl FnOnce(Volume) -> Result<Volume, Error>,
) -> Result<Header, Error> {
    // With integrity the whole volume is written.
    let progress = RefCell::new(None);
    let watch = |more, all| {
        let mut progress = progress.borrow_mut();
        progress.get_or_insert_with(|| Progress::new("written", all, Unit::Bytes)).advance(more);
    };
    let fill = |volume| {
        drop(progress.take());
        fill(volume)
    };
    let volume = luks::create_with(path, header, options, passphrases, force, &watch, fill)?;
    Ok(volume.header().clone())
}

/// Opens a volume to write, with the file system inside. On a block device both grow with it: who has a larger disk
/// made for a pod cannot run a command there.
///
/// # Errors
/// When the volume does not open, or has no file system that is written.
pub fn open_to_write(
    source: &luks::Source,
    passphrase: &Passphrase,
) -> Result<FileSystem<Volume>, Error> {
    let name = source.path.display();
    if luks::device_len(&source.path)?.is_none() {
        return FileSystem::open_writable(source.open(passphrase, true)?);
    }
    let mut files = FileSystem::open_writable(source.open_grown(passphrase)?)?;
    match files.grow()? {
        0 => {}
        gained => log::info!("{name}: {} MiB more, as the device has", gained >> 20),
    }
    Ok(files)
}

/// Whether there is no volume, and nothing else either: no file, or a blank block device.
///
/// # Errors
/// When a device cannot be read.
pub fn is_absent(path: &Path) -> Result<bool, Error> {
    match luks::device_len(path)? {
        Some(_) => luks::is_blank(path),
        None => Ok(!path.exists()),
    }
}

/// Seconds since 1970, as ext4 keeps them.
pub fn now() -> u32 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as u32)
}

/// An error of a volume, with what to try: for roles, and whatever else has no `--compat` or `--slot`.
pub fn explained(path: &Path, error: &Error) -> Failure {
    let failure = Failure::new(format!("{}: {error}", path.display()));
    match hint(error) {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// What to try, where something helps.
pub fn hint(error: &Error) -> Option<&'static str> {
    Some(match error {
        Error::Damaged(_) => "hfl luks header restore, if there is a backup of the header",
        Error::FileSystem(_) => {
            "a backup of the volume, or e2fsck over what hfl luks export --raw gives"
        }
        Error::Foreign(_) => {
            "hfl luks convert OLD NEW copies its files into a volume that is written"
        }
        Error::Io(_, io) => match io.kind() {
            io::ErrorKind::NotFound => "hfl luks create makes a volume",
            io::ErrorKind::PermissionDenied => "a user who may open it",
            _ => return None,
        },
        Error::Mac => "a backup of the header; hfl luks seal if it was changed on purpose",
        Error::Memory(..) => "hfl luks key change --kdf-memory, where there is more memory",
        Error::NeedsCompat(_) => {
            "hfl luks seal --compat makes copies and checksum anew, hfl luks key change --compat a keyslot"
        }
        Error::NoMac => "hfl luks seal adds one, where the volume is known to be what it says",
        Error::Truncated(_) => "the whole of it: a copy that was cut off cannot be repaired",
        Error::Unauthentic(_) => "a backup; hfl luks export --files saves the files that are whole",
        Error::Untried(_) => "cryptsetup config --priority normal, for the keyslot",
        Error::WrongPassphrase => "a key file counts to its last byte, newline included",
        Error::Busy(_)
        | Error::Full
        | Error::NotFound(_)
        | Error::NotLuks(_)
        | Error::Refused(_) => {
            return None;
        }
    })
}
