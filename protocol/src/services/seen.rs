//! `Seen`: the highest evaluation number of collateral that was seen for each kind of platform, and the newest date
//! that Intel signed. They only rise, and are kept beside fetched bundles, so that a restart does not forget them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::hex::Hex;

/// The file, in the folder of fetched bundles.
const FILE: &str = "seen.json";
/// Most kinds of platforms; more take no part in a job.
const KINDS_MAX: usize = 256;
/// Largest file.
const FILE_LEN_MAX: u64 = 64 << 10;

/// FMSPC, and whether it is about TDs, else about enclaves.
type Kind = ([u8; 6], bool);

/// What is kept.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    /// The highest numbers.
    evaluation_numbers: BTreeMap<String, u32>,
    /// When the newest document was issued, in seconds since 1970.
    newest: u64,
}

/// The highest numbers, and the newest date.
#[derive(Debug, Default)]
pub(super) struct Seen {
    kept: Mutex<Kept>,
    file: Option<PathBuf>,
}

impl Seen {
    /// What was seen before, according to a folder, and is kept there.
    pub(super) fn kept_in(folder: &Path) -> Self {
        let file = folder.join(FILE);
        let fits =
            fs::metadata(&file).is_ok_and(|meta| meta.is_file() && meta.len() <= FILE_LEN_MAX);
        let text = fits.then(|| fs::read(&file).ok()).flatten();
        let kept = text.map(|text| serde_json::from_slice(&text)).transpose();
        let kept = kept.unwrap_or_else(|error| {
            log::warn!("{}: {error}; evaluation numbers count from here", file.display());
            None
        });
        Self { kept: Mutex::new(kept.unwrap_or_default()), file: Some(file) }
    }

    /// Takes note of a number and returns the highest.
    pub(super) fn raise(&self, (fmspc, is_tdx): Kind, number: u32) -> u32 {
        let kind = format!("{}-{}", if is_tdx { "tdx" } else { "sgx" }, Hex(&fmspc));
        let mut kept = self.kept();
        let known = kept.evaluation_numbers.get(&kind).copied();
        if known.is_some_and(|known| known >= number) || kept.evaluation_numbers.len() >= KINDS_MAX
        {
            return known.unwrap_or(number).max(number);
        }
        kept.evaluation_numbers.insert(kind, number);
        self.write(&kept);
        number
    }

    /// Takes note of when a document was issued.
    pub(super) fn note(&self, issued: u64) {
        let mut kept = self.kept();
        if kept.newest < issued {
            kept.newest = issued;
            self.write(&kept);
        }
    }

    /// The newest date.
    pub(super) fn newest(&self) -> u64 {
        self.kept().newest
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, kept: &Kept) {
        if let Some(file) = &self.file
            && let Err(error) = write(file, kept)
        {
            log::warn!("{}: {error}", file.display());
        }
    }
}

/// Whole or not at all.
fn write(file: &Path, kept: &Kept) -> std::io::Result<()> {
    let part = file.with_extension("part");
    fs::write(&part, serde_json::to_vec_pretty(kept)?)?;
    fs::rename(part, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_only_rise_and_survive_a_restart_where_there_is_a_place() {
        let folder = std::env::temp_dir().join(format!("hfl-seen-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("create");
        let seen = Seen::kept_in(&folder);
        assert_eq!(
            [20, 19, 21, 5].map(|number| seen.raise(([1; 6], true), number)),
            [20, 20, 21, 21]
        );
        assert_eq!(seen.raise(([1; 6], false), 3), 3, "enclaves count by themselves");
        for (issued, newest) in [(7, 7), (5, 7), (9, 9)] {
            seen.note(issued);
            assert_eq!(seen.newest(), newest);
        }
        assert_eq!(Seen::kept_in(&folder).newest(), 9);
        assert_eq!(Seen::kept_in(&folder).raise(([1; 6], true), 19), 21);
        assert_eq!(Seen::default().raise(([1; 6], true), 19), 19, "nowhere to keep it");
        fs::write(folder.join(FILE), "{").expect("write");
        assert_eq!(Seen::kept_in(&folder).raise(([1; 6], true), 19), 19);
        fs::remove_dir_all(&folder).expect("remove");
    }
}
