//! A folder of class folders with pictures: `train/CLASS/*` to learn from, `test/CLASS/*` to test with; or `CLASS/*`
//! for both, parted by content.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use crate::data::dataset::Split;
use crate::data::error::{DataError, read_file};
use crate::data::hold_out::HoldOut;

/// Pictures by their class, in the order of class names and then of file names.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Folder {
    /// Names of the class folders, in order, also of those that are empty.
    pub(super) names: Vec<String>,
    /// Each picture with its class's place in `names`.
    pub(super) files: Vec<(PathBuf, usize)>,
}

/// Largest picture file.
pub(super) const FILE_LEN_MAX: u64 = 256 << 20;
/// Most pictures of a folder: their paths are kept in memory.
const FILES_MAX: usize = 10_000_000;

/// The folder of a split.
pub(super) fn place(directory: &Path, split: Split) -> PathBuf {
    directory.join(match split {
        Split::Test => "test",
        Split::Train => "train",
    })
}

/// Lists a split's pictures. Names that begin with a dot are passed over, as file managers leave some.
///
/// # Errors
/// When something else than a class folder is among them, or something else than a file in one of them.
pub(super) fn scan(directory: &Path, split: Split) -> Result<Folder, DataError> {
    scan_some(place(directory, split), |_| Ok(true))
}

/// As [`scan`] of class folders that are not parted: what the part holds is to test with, all else to learn from.
///
/// # Errors
/// As [`scan`].
pub(super) fn scan_parted(
    directory: &Path,
    split: Split,
    hold_out: HoldOut,
) -> Result<Folder, DataError> {
    scan_some(directory.into(), |file| {
        Ok(hold_out.holds(&read_file(file, FILE_LEN_MAX)?) == (split == Split::Test))
    })
}

fn scan_some(
    top: PathBuf,
    is_wanted: impl Fn(&Path) -> Result<bool, DataError>,
) -> Result<Folder, DataError> {
    let mut folder = Folder { names: Vec::new(), files: Vec::new() };
    for path in entries(&top)? {
        let wrong = |why: &str| DataError::Format(path.clone(), why.into());
        if !path.is_dir() {
            return Err(wrong("a file beside the class folders, expected CLASS/PICTURE"));
        }
        let name = path.file_name().and_then(OsStr::to_str);
        let name = name.ok_or_else(|| wrong("the name of a class has to be UTF-8"))?.to_owned();
        for file in entries(&path)? {
            if !file.is_file() {
                // A pipe would be waited for.
                let what = if file.is_dir() { "a folder" } else { "no plain file" };
                let why = format!("{what} inside a class folder, expected pictures only");
                return Err(DataError::Format(file, why));
            }
            if folder.files.len() == FILES_MAX {
                return Err(DataError::Format(top, format!("more than {FILES_MAX} pictures")));
            }
            if is_wanted(&file)? {
                folder.files.push((file, folder.names.len()));
            }
        }
        folder.names.push(name);
    }
    if folder.files.is_empty() {
        return Err(DataError::Empty(top, "CLASS/PICTURE".into()));
    }
    Ok(folder)
}

/// What is in a folder, in the order of names' bytes: the same on every machine and file system.
fn entries(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let unreadable = |error| DataError::Read(folder.into(), error);
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        if !entry.file_name().as_encoded_bytes().starts_with(b".") {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}
