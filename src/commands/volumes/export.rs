//! Plaintext out of a volume: all of it, or the files of the file system inside.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use luks::Volume;
use luks::disk::Disk;
use luks::ext4::{FileSystem, Kind};

use crate::failure::{Doing, Failure};

/// What a volume's plaintext is copied through.
pub(super) const CHUNK: usize = 1 << 20;

/// Writes the whole plaintext.
pub(super) fn copy(volume: &Volume, out: &mut dyn io::Write) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    for at in (0..volume.len()).step_by(CHUNK) {
        let len = CHUNK.min((volume.len() - at) as usize);
        volume.read_at(&mut buffer[..len], at).map_err(io::Error::other)?;
        out.write_all(&buffer[..len])?;
    }
    Ok(())
}

/// Most files and directories that are copied: a damaged directory may contain itself.
const ENTRIES_MAX: usize = 100_000;

/// Copies the files inside to a directory; how many.
pub(super) fn export_files(files: &FileSystem<Volume>, target: &Path) -> Result<usize, Failure> {
    let mut seen = 0;
    export_directory(files, "", target, &mut seen)
}

/// Copies a directory; names that could leave `target` do not exist in ext4 as it is read.
fn export_directory(
    files: &FileSystem<Volume>,
    path: &str,
    target: &Path,
    seen: &mut usize,
) -> Result<usize, Failure> {
    fs::create_dir_all(target).doing(target.display())?;
    let mut count = 0;
    for entry in files.list(path).doing(format!("read /{path}"))? {
        *seen += 1;
        if *seen > ENTRIES_MAX {
            return Err(Failure::new(format!("more than {ENTRIES_MAX} entries in the volume")));
        }
        let name = String::from_utf8_lossy(&entry.name).into_owned();
        let unsafe_name =
            name.contains(['/', '\0']) || name.is_empty() || name.as_bytes() != entry.name;
        if unsafe_name || entry.kind == Kind::Other {
            log::warn!("left out: {}", entry.name.escape_ascii());
            continue;
        }
        let inside = format!("{path}/{name}").trim_start_matches('/').to_owned();
        let outside = target.join(&name);
        match entry.kind {
            Kind::Directory if inside == "lost+found" => {}
            Kind::Directory => count += export_directory(files, &inside, &outside, seen)?,
            _ => {
                export_file(files, &inside, &outside).doing(outside.display())?;
                count += 1;
            }
        }
    }
    Ok(count)
}

fn export_file(files: &FileSystem<Volume>, inside: &str, outside: &Path) -> io::Result<()> {
    let file = files.file(inside).map_err(io::Error::other)?;
    // A damaged length would fill the disk with zeros.
    if file.len() > files.len() {
        return Err(io::Error::other("a file that is longer than its volume"));
    }
    let mut out = new_file(outside)?;
    let mut buffer = vec![0; CHUNK.min(file.len() as usize)];
    for at in (0..file.len()).step_by(CHUNK) {
        let len = CHUNK.min((file.len() - at) as usize);
        files.read_at(&file, &mut buffer[..len], at).map_err(io::Error::other)?;
        out.write_all(&buffer[..len])?;
    }
    Ok(())
}

/// A file that only its owner reads and that is not written through a link.
pub(super) fn new_file(path: &Path) -> io::Result<File> {
    let nofollow = rustix::fs::OFlags::NOFOLLOW.bits() as i32;
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600).custom_flags(nofollow);
    let file = options.open(path)?;
    if file.metadata()?.is_file() {
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
    }
    Ok(file)
}
