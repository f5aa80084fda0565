//! A LUKS2 volume for a model: made with a file system inside, its errors with what to try.

use std::cell::OnceCell;
use std::io;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use luks::ext4::FileSystem;
use luks::{Error, Header, Passphrase};

use crate::failure::Failure;
use crate::progress::{Progress, Unit};

/// Makes a volume with an empty file system; for `create` and the demo.
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
    // With integrity the whole volume is written.
    let progress = OnceCell::new();
    let watch = |more, all| {
        progress.get_or_init(|| Progress::new("written", all, Unit::Bytes)).advance(more);
    };
    let volume = luks::create_watched(path, header, options, passphrases, force, &watch)?;
    drop(progress);
    let header = volume.header().clone();
    if file_system {
        FileSystem::format(volume, &options.label, now())?.close()?;
    }
    Ok(header)
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

fn hint(error: &Error) -> Option<&'static str> {
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
