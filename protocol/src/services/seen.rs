//! `Seen`: the highest evaluation number of collateral that was seen for each kind of platform. It only rises, and is
//! kept beside fetched bundles, so that a restart does not forget it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::hex::Hex;

/// The file, in the folder of fetched bundles.
const FILE: &str = "evaluation-numbers.json";
/// Most kinds of platforms; more take no part in a job.
const KINDS_MAX: usize = 256;
/// Largest file.
const FILE_LEN_MAX: u64 = 64 << 10;

/// FMSPC, and whether it is about TDs, else about enclaves.
type Kind = ([u8; 6], bool);

/// The highest numbers.
#[derive(Debug, Default)]
pub(super) struct Seen {
    numbers: Mutex<BTreeMap<String, u32>>,
    file: Option<PathBuf>,
}

impl Seen {
    /// What was seen before, according to a folder, and is kept there.
    pub(super) fn kept_in(folder: &Path) -> Self {
        let file = folder.join(FILE);
        let fits =
            fs::metadata(&file).is_ok_and(|meta| meta.is_file() && meta.len() <= FILE_LEN_MAX);
        let text = fits.then(|| fs::read(&file).ok()).flatten();
        let numbers = text.map(|text| serde_json::from_slice(&text)).transpose();
        let numbers = numbers.unwrap_or_else(|error| {
            log::warn!("{}: {error}; evaluation numbers count from here", file.display());
            None
        });
        Self { numbers: Mutex::new(numbers.unwrap_or_default()), file: Some(file) }
    }

    /// Takes note of a number and returns the highest.
    pub(super) fn raise(&self, (fmspc, is_tdx): Kind, number: u32) -> u32 {
        let kind = format!("{}-{}", if is_tdx { "tdx" } else { "sgx" }, Hex(&fmspc));
        let mut numbers = self.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        let known = numbers.get(&kind).copied();
        if known.is_some_and(|known| known >= number) || numbers.len() >= KINDS_MAX {
            return known.unwrap_or(number).max(number);
        }
        numbers.insert(kind, number);
        if let Some(file) = &self.file
            && let Err(error) = write(file, &numbers)
        {
            log::warn!("{}: {error}", file.display());
        }
        number
    }
}

/// Whole or not at all.
fn write(file: &Path, numbers: &BTreeMap<String, u32>) -> std::io::Result<()> {
    let part = file.with_extension("part");
    fs::write(&part, serde_json::to_vec_pretty(numbers)?)?;
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
        assert_eq!(Seen::kept_in(&folder).raise(([1; 6], true), 19), 21);
        assert_eq!(Seen::default().raise(([1; 6], true), 19), 19, "nowhere to keep it");
        fs::write(folder.join(FILE), "{").expect("write");
        assert_eq!(Seen::kept_in(&folder).raise(([1; 6], true), 19), 19);
        fs::remove_dir_all(&folder).expect("remove");
    }
}
