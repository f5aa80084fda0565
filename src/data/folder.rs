//! A folder of class folders with pictures: `train/CLASS/*` to learn from, `test/CLASS/*` to test with; or `CLASS/*`
//! for both, parted by content.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use crate::data::dataset::Split;
use crate::data::error::DataError;
use crate::data::hold_out::HoldOut;
use crate::data::pixels::FILE_LEN_MAX;
use crate::data::place::Place;

/// Pictures by their class, in the order of class names and then of file names.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Folder {
    /// Names of the class folders, in order, also of those that are empty.
    pub(super) names: Vec<String>,
    /// Each picture with its class's place in `names`.
    pub(super) files: Vec<(PathBuf, usize)>,
}

/// Most pictures of a folder: their paths are kept in memory.
const FILES_MAX: usize = 10_000_000;

/// The folder of a split.
pub(super) fn of_split(place: &Place, split: Split) -> PathBuf {
    place.root().join(match split {
        Split::Test => "test",
        Split::Train => "train",
    })
}

/// Lists a split's pictures. Names that begin with a dot are passed over, as file managers leave some.
///
/// # Errors
/// When something else than a class folder is among them, or something else than a file in one of them.
pub(super) fn scan(place: &Place, split: Split) -> Result<Folder, DataError> {
    scan_some(place, of_split(place, split), |_| Ok(true))
}

/// As [`scan`] of class folders that are not parted: what the part holds is to test with, all else to learn from.
///
/// # Errors
/// As [`scan`].
pub(super) fn scan_parted(
    place: &Place,
    split: Split,
    hold_out: HoldOut,
) -> Result<Folder, DataError> {
    scan_some(place, place.root().into(), |file| {
        Ok(hold_out.holds(&place.read(file, FILE_LEN_MAX)?) == (split == Split::Test))
    })
}

fn scan_some(
    place: &Place,
    top: PathBuf,
    is_wanted: impl Fn(&Path) -> Result<bool, DataError>,
) -> Result<Folder, DataError> {
    let mut folder = Folder { names: Vec::new(), files: Vec::new() };
    for path in entries(place, &top)? {
        let wrong = |why: &str| DataError::Format(path.clone(), why.into());
        if !place.is_dir(&path) {
            return Err(wrong("a file beside the class folders, expected CLASS/PICTURE"));
        }
        let name = path.file_name().and_then(OsStr::to_str);
        let name = name.ok_or_else(|| wrong("the name of a class has to be UTF-8"))?.to_owned();
        for file in entries(place, &path)? {
            if !place.is_file(&file) {
                // A pipe would be waited for.
                let what = if place.is_dir(&file) { "a folder" } else { "no plain file" };
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
fn entries(place: &Place, folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let mut found = place.list(folder)?;
    let is_hidden = |name: &OsStr| name.as_encoded_bytes().starts_with(b".");
    found.retain(|path| !path.file_name().is_some_and(is_hidden));
    found.sort();
    Ok(found)
}
