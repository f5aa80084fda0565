//! Opening a volume for a command that has `--compat` and `--slot`, and its errors with what to try.

use std::io;
use std::path::Path;

use luks::{Error, Header, Passphrase, Source, Volume};

use crate::failure::Failure;
use crate::training::volume;

/// An error of a volume, with what to try: these commands have `--compat` and `--slot`.
pub(super) fn explained(path: &Path, error: &Error) -> Failure {
    let failure = volume::explained(path, error);
    match error {
        Error::NeedsCompat(_) => failure.hint("--compat, for a volume that was made elsewhere"),
        Error::Untried(_) => failure.hint("--slot N, for one of them"),
        _ => failure,
    }
}

/// Opens a volume for reading.
pub(super) fn open_volume(source: &Source, passphrase: &Passphrase) -> Result<Volume, Failure> {
    let volume = source.open(passphrase, false).map_err(|error| explained(&source.path, &error))?;
    warn_without_mac(volume.header());
    Ok(volume)
}

fn warn_without_mac(header: &Header) {
    if !header.has_mac() {
        log::warn!("no header MAC: nothing vouches for the header (hfl luks seal adds one)");
    }
}

/// An error on the way to a device of the kernel.
pub(super) fn mapped(path: &Path, error: &Error) -> Failure {
    let failure = explained(path, error);
    match error {
        Error::Io(_, io) if io.kind() == io::ErrorKind::PermissionDenied => {
            failure.hint("root, for dm-crypt; export and --volume need no privileges")
        }
        _ => failure,
    }
}
