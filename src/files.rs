//! Files of this system: read with a bound, written without loss of another's.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::failure::{Doing, Failure};
use crate::progress::{Progress, Unit};

/// Largest file that is read whole; what may be larger (data, volumes) is read in parts.
pub(crate) const FILE_LEN_MAX: u64 = 1 << 30;

/// Bytes that are written at a time: what is long shows how far it is.
const PART: usize = 1 << 20;

/// Reads a file of this system, if it is there and not too large.
///
/// # Errors
/// When the system refuses.
pub fn read_bounded(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match read_at_most(path, FILE_LEN_MAX) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some),
    }
}

/// Reads a file of at most so many bytes.
///
/// # Errors
/// When it is longer, or the system refuses.
pub fn read_at_most(path: &Path, len_max: u64) -> io::Result<Vec<u8>> {
    read_open(&File::open(path)?, len_max)
}

/// Reads an open file of at most so many bytes.
///
/// # Errors
/// When it is longer, or the system refuses.
pub(crate) fn read_open(file: &File, len_max: u64) -> io::Result<Vec<u8>> {
    let len = file.metadata()?.len();
    if len > len_max {
        return Err(io::Error::other(format!("{len} bytes, more than {len_max}")));
    }
    let mut bytes = Vec::with_capacity(len as usize);
    file.take(len_max).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Writes a new file that only its owner can read.
///
/// # Errors
/// When the name is taken, or the system refuses.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Writes a file whole. What has this name already is replaced if it is of the same kind (`what`, by `is_one`),
/// as by a command that is repeated; anything else stays.
///
/// # Errors
/// When there is another kind of file, or the system refuses.
pub(crate) fn renew(
    path: &Path,
    bytes: &[u8],
    what: &str,
    is_one: impl Fn(&[u8]) -> bool,
) -> Result<(), Failure> {
    let name = path.display();
    // A terminal or a pipe has nothing to lose, and would be waited for.
    if fs::metadata(path).is_ok_and(|found| !found.is_file() && !found.is_dir()) {
        return fs::write(path, bytes).doing(name);
    }
    let exists = match read_bounded(path).doing(&name)? {
        Some(found) if !is_one(&found) => {
            return Err(Failure::new(format!("{name} is there already, and is no {what}"))
                .hint("another name: nothing is overwritten"));
        }
        found => found.is_some(),
    };
    let target = if exists { path.with_added_extension("tmp") } else { path.into() };
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create_new(true).open(&target).doing(target.display())?;
    let progress = Progress::new("wrote", bytes.len() as u64, Unit::Bytes);
    let mut parts = bytes.chunks(PART);
    let written = parts.try_for_each(|part| {
        file.write_all(part)?;
        progress.advance(part.len() as u64);
        Ok(())
    });
    if let Err(error) = written.and_then(|()| file.sync_all()) {
        // Half of it helps nobody.
        let _ = fs::remove_file(&target);
        return Err(error).doing(name);
    }
    match exists {
        true => fs::rename(&target, path).doing(name),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_of_its_kind_is_replaced() {
        let dir = std::env::temp_dir().join(format!("hfl-renew-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("directory");
        let path = dir.join("list.json");
        let is_list = |bytes: &[u8]| bytes.starts_with(b"[");
        for text in ["[1]", "[2, 3]"] {
            renew(&path, text.as_bytes(), "list", is_list).expect("written");
            assert_eq!(fs::read_to_string(&path).expect("read"), text);
        }
        fs::write(&path, "a thesis").expect("write");
        let refused = renew(&path, b"[]", "list", is_list).expect_err("another's").to_string();
        assert!(refused.contains("is there already, and is no list"), "{refused}");
        assert_eq!(fs::read_to_string(&path).expect("read"), "a thesis");
        assert_eq!(fs::read_dir(&dir).expect("directory").count(), 1, "nothing else is left");
        renew(Path::new("/dev/null"), b"x", "list", is_list)
            .expect("a device takes what it is given");
        fs::remove_dir_all(&dir).expect("remove");
    }
}
