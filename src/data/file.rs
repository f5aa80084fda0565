//! A file of data, read with a bound.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::data::error::DataError;

/// Reads a file of at most so many bytes.
pub(super) fn read(path: &Path, len_max: u64) -> Result<Vec<u8>, DataError> {
    let unreadable = |error| DataError::Read(path.into(), error);
    let file = File::open(path).map_err(unreadable)?;
    let len = file.metadata().map_err(unreadable)?.len();
    if len > len_max {
        return Err(DataError::TooLarge(path.into(), len, len_max));
    }
    let mut bytes = Vec::with_capacity(len as usize);
    file.take(len_max).read_to_end(&mut bytes).map_err(unreadable)?;
    Ok(bytes)
}
