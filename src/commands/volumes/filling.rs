//! `hfl luks create --files`: a directory's files inside a new volume, without privileges.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use luks::ext4::{FileSystem, NewFile};
use luks::{Error, Volume};

use super::export::CHUNK;
use crate::training::volume::now;

/// Files whose names are given at once: each commit waits for the medium.
const COMMITTED: usize = 64;

/// What is in a directory of this system, with its paths inside.
#[derive(Debug, Default)]
pub(super) struct Tree {
    /// Each after the one that it is in.
    directories: Vec<String>,
    files: Vec<(PathBuf, String)>,
}

impl Tree {
    /// Lists a directory, links followed.
    ///
    /// # Errors
    /// When it cannot be read, or has what a volume does not keep: no plain file, a name that is not UTF-8.
    pub(super) fn of(top: &Path) -> io::Result<Self> {
        let mut tree = Self::default();
        tree.scan(top, "")?;
        Ok(tree)
    }

    fn scan(&mut self, folder: &Path, inside: &str) -> io::Result<()> {
        let mut entries = fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for path in entries.iter().map(fs::DirEntry::path) {
            let wrong = |why: &str| io::Error::other(format!("{}: {why}", path.display()));
            let name = path.file_name().and_then(|name| name.to_str());
            let name = name.ok_or_else(|| wrong("a name that is not UTF-8"))?;
            let inner = format!("{inside}/{name}");
            let kind = fs::metadata(&path)?;
            if kind.is_dir() {
                self.directories.push(inner.clone());
                self.scan(&path, &inner)?;
            } else if kind.is_file() {
                self.files.push((path, inner));
            } else {
                return Err(wrong("no plain file"));
            }
        }
        Ok(())
    }

    /// How many files and directories.
    pub(super) fn len(&self) -> usize {
        self.directories.len() + self.files.len()
    }

    /// Copies everything.
    ///
    /// # Errors
    /// `Full`; when a file cannot be read.
    pub(super) fn copy_to(&self, volume: &mut FileSystem<Volume>) -> Result<(), Error> {
        for directory in &self.directories {
            volume.make_directory(directory, now())?;
        }
        let mut buffer = vec![0; CHUNK];
        for part in self.files.chunks(COMMITTED) {
            let mut files = Vec::new();
            for (path, inside) in part {
                files.push((inside.as_str(), copied(volume, path, &mut buffer)?));
            }
            volume.commit(files, now())?;
        }
        Ok(())
    }
}

fn copied(
    volume: &mut FileSystem<Volume>,
    path: &Path,
    buffer: &mut [u8],
) -> Result<NewFile, Error> {
    let name = || path.display().to_string();
    let mut source = fs::File::open(path).map_err(Error::io(name()))?;
    let mut file = NewFile::default();
    loop {
        match source.read(buffer).map_err(Error::io(name()))? {
            0 => return Ok(file),
            len => volume.append(&mut file, &buffer[..len])?,
        }
    }
}
