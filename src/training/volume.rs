//! A LUKS2 volume for a model: made with a file system inside, its errors with what to try.

use std::io;
use std::path::Path;

use luks::ext4::FileSystem;
use luks::{Error, Header, Passphrase};

use crate::failure::Failure;

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
    let volume = luks::create(path, header, options, passphrases, force)?;
    let header = volume.header().clone();
    if file_system {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let now = now.map_or(0, |since| since.as_secs() as u32);
        FileSystem::format(volume, &options.label, now)?.close()?;
    }
    Ok(header)
}

/// An error of a volume, with what to try.
pub fn explained(path: &Path, error: &Error) -> Failure {
    let failure = Failure::new(format!("{}: {error}", path.display()));
    match error {
        Error::Damaged(_) => failure.hint("cryptsetup repair, on a machine that you trust"),
        Error::Io(_, io) if io.kind() == io::ErrorKind::NotFound => {
            failure.hint("hfl luks create makes a volume")
        }
        Error::Io(_, io) if io.kind() == io::ErrorKind::PermissionDenied => {
            failure.hint("root for dm-crypt; export and --volume need no privileges")
        }
        Error::Memory(..) => failure.hint("a keyslot with less memory: --kdf-memory, or pbkdf2"),
        Error::Refused(_) => failure.hint("--compat for volumes made elsewhere"),
        Error::WrongPassphrase => {
            failure.hint("a key file counts to its last byte, newline included")
        }
        _ => failure,
    }
}
