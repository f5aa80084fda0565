//! Plaintext out of a volume: all of it, or the files of the file system inside.

use std::fmt::Display;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use luks::disk::Disk;
use luks::ext4::{File as Inside, FileSystem, Kind};
use luks::{Error, Volume};

use crate::failure::{Doing, Failure};
use crate::progress::{Progress, Unit};

/// What a volume's plaintext is copied through.
pub(super) const CHUNK: usize = 1 << 20;

/// Writes the whole plaintext, and says which bytes of it are zeros because they fail authentication.
pub(super) fn copy(volume: &Volume, out: &mut dyn io::Write) -> io::Result<Vec<Range<u64>>> {
    let mut buffer = vec![0; CHUNK];
    let mut left_out = Vec::new();
    let progress = Progress::new("exported", volume.len(), Unit::Bytes);
    for at in (0..volume.len()).step_by(CHUNK) {
        let part = &mut buffer[..CHUNK.min((volume.len() - at) as usize)];
        match volume.read_at(part, at) {
            Err(Error::Unauthentic(_)) => left_out.extend(read_apart(volume, part, at)?),
            read => read.map_err(io::Error::other)?,
        }
        out.write_all(part)?;
        progress.advance(part.len() as u64);
    }
    Ok(left_out)
}

/// Reads each sector by itself: zeros for those that fail authentication, which it returns.
fn read_apart(volume: &Volume, target: &mut [u8], offset: u64) -> io::Result<Vec<Range<u64>>> {
    let sector = volume.header().metadata().segment.sector as usize;
    let mut left_out: Vec<Range<u64>> = Vec::new();
    for (at, part) in (offset..).step_by(sector).zip(target.chunks_mut(sector)) {
        match volume.read_at(part, at) {
            Err(Error::Unauthentic(_)) => {
                part.fill(0);
                let end = at + part.len() as u64;
                match left_out.last_mut().filter(|last| last.end == at) {
                    Some(last) => last.end = end,
                    None => left_out.push(at..end),
                }
            }
            read => read.map_err(io::Error::other)?,
        }
    }
    Ok(left_out)
}

/// Most ranges that a message names.
const RANGES_MAX: usize = 20;

/// Fails with what was left out of a plaintext, but for free blocks: a process that was killed leaves such.
pub(super) fn check_left_out(volume: Volume, left_out: Vec<Range<u64>>) -> Result<(), Failure> {
    if left_out.is_empty() {
        return Ok(());
    }
    let files = FileSystem::open(volume).ok();
    let is_free = |range: &Range<u64>| {
        files.as_ref().is_some_and(|files| files.is_free(range).unwrap_or(false))
    };
    let count = left_out.len();
    let used: Vec<Range<u64>> = left_out.into_iter().filter(|range| !is_free(range)).collect();
    if used.len() < count {
        log::warn!(
            "zeros for free blocks that fail authentication, as a killed process leaves them"
        );
    }
    if used.is_empty() {
        return Ok(());
    }
    let named: Vec<String> =
        used.iter().take(RANGES_MAX).map(|it| format!("{} to {}", it.start, it.end)).collect();
    let more = if used.len() > RANGES_MAX { ", and more" } else { "" };
    let named = named.join(", ");
    Err(Failure::new(format!("zeros for bytes that fail authentication: {named}{more}")))
}

/// Most files and directories that are copied: a damaged directory may contain itself.
const ENTRIES_MAX: usize = 100_000;

/// What became of the files inside.
#[derive(Debug, Default)]
pub(super) struct Exported {
    /// Files that were copied.
    pub(super) count: usize,
    /// What was not, each with why.
    left_out: Vec<String>,
    seen: usize,
}

impl Exported {
    /// Fails with the list of what was left out, if anything was.
    pub(super) fn complete(&self) -> Result<(), Failure> {
        match self.left_out.as_slice() {
            [] => Ok(()),
            left => Err(Failure::new(format!("left out:\n  {}", left.join("\n  ")))),
        }
    }

    /// Remembers what stays behind, and says so at once.
    fn leave_out(&mut self, name: &[u8], why: impl Display) {
        let line = format!("{}: {why}", name.escape_ascii());
        log::warn!("left out: {line}");
        self.left_out.push(line);
    }
}

/// Copies the files inside to a directory. What cannot be copied is told, and the rest goes on.
pub(super) fn export_files<D: Disk>(
    files: &FileSystem<D>,
    target: &Path,
) -> Result<Exported, Failure> {
    fs::create_dir_all(target).doing(target.display())?;
    let mut exported = Exported::default();
    // Names that could leave `target` do not exist in ext4 as it is read.
    visit(files, "", &mut exported, &mut |kind, inside| match kind {
        Kind::Directory => fs::create_dir_all(target.join(inside)),
        _ => export_file(files, inside, &target.join(inside)),
    });
    Ok(exported)
}

/// Shows the directories and files below `path` to `copy`, directories first, and remembers what it could not copy.
pub(super) fn visit<D: Disk>(
    files: &FileSystem<D>,
    path: &str,
    exported: &mut Exported,
    copy: &mut dyn FnMut(Kind, &str) -> io::Result<()>,
) {
    let entries = match files.list(path) {
        Ok(entries) => entries,
        Err(error) => return exported.leave_out(format!("{path}/").as_bytes(), error),
    };
    for entry in entries {
        let whole = [path.as_bytes(), &entry.name].join(&b'/');
        let whole = whole.strip_prefix(b"/").unwrap_or(&whole);
        exported.seen += 1;
        if exported.seen > ENTRIES_MAX {
            return exported.leave_out(whole, format!("more than {ENTRIES_MAX} entries"));
        }
        let inside = match std::str::from_utf8(whole) {
            Ok(_) if entry.name.is_empty() || entry.name.iter().any(|b| b"/\0".contains(b)) => {
                exported.leave_out(whole, "no name for a file");
                continue;
            }
            Ok(inside) => inside,
            Err(_) => {
                exported.leave_out(whole, "a name that is not UTF-8");
                continue;
            }
        };
        let copied = match entry.kind {
            Kind::Directory if inside == "lost+found" => continue,
            Kind::Directory => {
                copy(Kind::Directory, inside).map(|()| visit(files, inside, exported, copy))
            }
            Kind::File => copy(Kind::File, inside).map(|()| exported.count += 1),
            Kind::Other => Err(io::Error::other("a link, a device or a socket")),
        };
        if let Err(error) = copied {
            exported.leave_out(whole, error);
        }
    }
}

/// Copies a file with its holes; nothing stays of one that cannot be read to its end.
fn export_file<D: Disk>(files: &FileSystem<D>, inside: &str, outside: &Path) -> io::Result<()> {
    let file = files.file(inside).map_err(io::Error::other)?;
    let out = new_file(outside)?;
    let copied = copy_content(files, &file, &out);
    if copied.is_err() {
        let _ = fs::remove_file(outside);
    }
    copied
}

fn copy_content<D: Disk>(files: &FileSystem<D>, file: &Inside, out: &File) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK.min(file.len() as usize)];
    let progress = Progress::new("exported", file.len(), Unit::Bytes);
    for range in files.content(file) {
        for at in range.clone().step_by(CHUNK) {
            let len = CHUNK.min((range.end - at) as usize);
            files.read_at(file, &mut buffer[..len], at).map_err(io::Error::other)?;
            out.write_all_at(&buffer[..len], at)?;
            progress.advance(len as u64);
        }
    }
    // The last hole; a length that the system cannot have is refused by it.
    out.set_len(file.len())
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

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::{MetadataExt, symlink};
    use std::process::Command;

    use super::*;

    #[test]
    fn odd_files_are_told_and_the_rest_is_there() {
        let scratch = std::env::temp_dir().join(format!("hfl-export-{}", std::process::id()));
        let [source, image, target] = ["source", "image", "target"].map(|name| scratch.join(name));
        fs::create_dir_all(source.join("model")).expect("create");
        fs::write(source.join("a"), b"first").expect("write");
        symlink("/etc/passwd", source.join("b-link")).expect("link");
        fs::write(source.join(OsStr::from_bytes(b"c-\xff")), b"no text").expect("write");
        let sparse = File::create(source.join("d-sparse")).expect("create");
        sparse.write_all_at(b"far", 1 << 30).and_then(|()| sparse.set_len(2 << 30)).expect("write");
        fs::write(source.join("model/z"), vec![7; 3 << 20]).expect("write");
        let made = Command::new("/sbin/mke2fs")
            .args(["-q", "-F", "-t", "ext4", "-d"])
            .args([&source, &image])
            .arg("16M")
            .status();
        assert!(made.expect("mke2fs; apt-get install e2fsprogs").success());

        let files = FileSystem::open(fs::read(&image).expect("read")).expect("ext4");
        let exported = export_files(&files, &target).expect("a directory");
        assert_eq!(exported.count, 3);
        let expected =
            ["b-link: a link, a device or a socket", "c-\\xff: a name that is not UTF-8"];
        let mut left_out = exported.left_out;
        left_out.sort();
        assert_eq!(left_out, expected);
        assert_eq!(fs::read(target.join("a")).expect("read"), b"first");
        assert_eq!(fs::read(target.join("model/z")).expect("read"), vec![7; 3 << 20]);
        let sparse = File::open(target.join("d-sparse")).expect("open");
        let mut far = [0; 4];
        sparse.read_exact_at(&mut far, 1 << 30).expect("read");
        assert_eq!(&far, b"far\0");
        let metadata = sparse.metadata().expect("metadata");
        assert_eq!(metadata.len(), 2 << 30);
        assert!(metadata.blocks() < 1 << 11, "holes are kept: {} sectors", metadata.blocks());
        fs::remove_dir_all(&scratch).expect("remove");
    }
}
