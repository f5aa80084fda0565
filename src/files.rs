//! Files of this system, read with a bound.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Largest file that is read.
pub(crate) const FILE_LEN_MAX: u64 = 1 << 30;

/// Reads a file of this system, if it is there and not too large.
///
/// # Errors
/// When the system refuses.
pub fn read_bounded(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let len = file.metadata()?.len();
    if len > FILE_LEN_MAX {
        return Err(io::Error::other(format!("{len} bytes, more than {FILE_LEN_MAX}")));
    }
    let mut bytes = Vec::with_capacity(len as usize);
    file.take(FILE_LEN_MAX).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}
