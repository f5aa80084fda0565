//! What was found of a passport so far, in words and in types.

use std::path::Path;

use protocol::hex;

use crate::files::{FILE_LEN_MAX, read_at_most};
use crate::job::receipt::Hash;
use crate::passport::{Files, attestation, training};
use crate::training::checkpoint::DATA_FILE;

/// Largest file with a statement: what it becomes in memory takes ten times as much. A participant's evidence takes
/// some 15 KB, and there are as many of them as there were connections.
const STATEMENT_LEN_MAX: u64 = 64 << 20;

/// What was checked, and what it says, in the order in which it was.
pub type Lines = Vec<(&'static str, String)>;

/// The checks so far.
#[derive(Default)]
pub(super) struct Checks {
    pub(super) lines: Lines,
}

/// A passport whose signatures are those of one key.
pub(super) struct Passport {
    pub(super) files: Files,
    /// Files that may lie beside these.
    pub(super) ignored: Vec<String>,
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

impl Passport {
    /// Whether it is of a job that is done, rather than of the best model so far.
    pub(super) fn is_final(&self) -> bool {
        self.training.files.contains_key(DATA_FILE)
    }
}

/// A file of the folder.
pub(super) fn read(dir: &Path, name: &str) -> Result<Vec<u8>, Fault> {
    bounded(dir, name, FILE_LEN_MAX)
}

/// A file with a statement.
pub(super) fn read_statement(dir: &Path, name: &str) -> Result<Vec<u8>, Fault> {
    bounded(dir, name, STATEMENT_LEN_MAX)
}

fn bounded(dir: &Path, name: &str, len_max: u64) -> Result<Vec<u8>, Fault> {
    let (path, name) = (dir.join(name), name.escape_default());
    match path.symlink_metadata() {
        Ok(found) if found.is_file() => {
            read_at_most(&path, len_max).map_err(|error| format!("{name}: {error}"))
        }
        _ => Err(format!("{name}: no such file")),
    }
}

/// A hash as messages have it.
pub(super) fn short(hash: &Hash) -> String {
    hex(&hash[..6])
}
