//! What was found of a passport so far, in words and in types.

use std::path::Path;

use protocol::hex;

use crate::files::read_bounded;
use crate::job::receipt::Hash;
use crate::passport::{Files, attestation, training};

/// What was checked, and what it says.
#[derive(Default)]
pub(super) struct Checks {
    pub(super) lines: Vec<(&'static str, String)>,
}

/// A passport whose signatures are those of one key.
pub(super) struct Passport {
    pub(super) files: Files,
    pub(super) training: training::Said,
    pub(super) attestation: attestation::Said,
}

/// What does not hold.
pub(super) type Fault = String;

impl Checks {
    pub(super) fn say(&mut self, what: &'static str, says: impl Into<String>) {
        self.lines.push((what, says.into()));
    }
}

/// A file of the folder.
pub(super) fn read(dir: &Path, name: &str) -> Result<Vec<u8>, Fault> {
    let path = dir.join(name);
    let is_file = path.symlink_metadata().is_ok_and(|found| found.is_file());
    let bytes = if is_file {
        read_bounded(&path).map_err(|error| format!("{name}: {error}"))?
    } else {
        None
    };
    bytes.ok_or(format!("{name}: no such file"))
}

/// A hash as messages have it.
pub(super) fn short(hash: &Hash) -> String {
    hex(&hash[..6])
}
