//! `Place`: where a data set lies, a directory of this system or the inside of an encrypted volume.
//!
//! A volume is read in this process: who has the disk sees ciphertext. It is opened for reading only, so that several
//! processes share it and its medium may be read-only; what a crash left in its journals is replayed in memory.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use luks::ext4::{Entry, File, FileSystem, Kind};
use luks::{Passphrase, Source, Volume};

use crate::data::error::DataError;
use crate::files::read_open;

/// What every ext4 has in its root, for `e2fsck`.
const LOST_AND_FOUND: &str = "lost+found";

/// Where a data set's files lie.
#[derive(Clone, Debug)]
pub struct Place {
    root: PathBuf,
    volume: Option<Arc<Inside>>,
}

/// A volume's file system.
struct Inside {
    files: FileSystem<Volume>,
    /// What was listed, so that a name is not looked up among thousands for each of thousands.
    known: Mutex<HashMap<PathBuf, Entry>>,
}

impl std::fmt::Debug for Inside {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("Inside")
    }
}

impl Place {
    /// A directory, or a file that is a data set by itself.
    pub fn directory(path: impl Into<PathBuf>) -> Self {
        Self { root: path.into(), volume: None }
    }

    /// The inside of a volume.
    ///
    /// # Errors
    /// When it does not open, or has no file system that is read.
    pub fn volume(path: &Path, passphrase: &Passphrase) -> Result<Self, luks::Error> {
        let files = FileSystem::open(Source::new(path).open(passphrase, false)?)?;
        let inside = Inside { files, known: Mutex::default() };
        let root = PathBuf::from(format!("{}:", path.display()));
        Ok(Self { root, volume: Some(Arc::new(inside)) })
    }

    /// The path of the whole: files of a volume are named `VOLUME:/PATH`.
    pub fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn is_dir(&self, path: &Path) -> bool {
        match &self.volume {
            None => path.is_dir(),
            Some(_) if path == self.root => true,
            Some(inside) => inside.kind(&self.inner(path)) == Some(Kind::Directory),
        }
    }

    pub(super) fn is_file(&self, path: &Path) -> bool {
        match &self.volume {
            None => path.is_file(),
            Some(inside) => inside.kind(&self.inner(path)) == Some(Kind::File),
        }
    }

    /// What is in a directory, in any order.
    pub(super) fn list(&self, folder: &Path) -> Result<Vec<PathBuf>, DataError> {
        let listed = match &self.volume {
            None => {
                let entries = fs::read_dir(folder).and_then(Iterator::collect::<io::Result<_>>);
                entries.map(|all: Vec<fs::DirEntry>| all.iter().map(fs::DirEntry::path).collect())
            }
            Some(inside) => inside.list(&self.inner(folder)).map(|names| {
                let names = names.into_iter();
                let is_data = |name: &OsString| folder != self.root || name != LOST_AND_FOUND;
                names.filter(is_data).map(|name| folder.join(name)).collect()
            }),
        };
        listed.map_err(|error| DataError::Read(folder.into(), error))
    }

    /// Reads a file of at most so many bytes.
    pub(super) fn read(&self, path: &Path, len_max: u64) -> Result<Vec<u8>, DataError> {
        let read = match &self.volume {
            None => open(path).and_then(|file| read_open(&file, len_max)),
            Some(inside) => inside.read(&self.inner(path), len_max),
        };
        read.map_err(|error| DataError::Read(path.into(), error))
    }

    /// Bytes of a file.
    pub(super) fn len(&self, path: &Path) -> Result<u64, DataError> {
        let len = match &self.volume {
            None => fs::metadata(path).map(|found| found.len()),
            Some(inside) => inside.file(&self.inner(path)).map(|file| file.len()),
        };
        len.map_err(|error| DataError::Read(path.into(), error))
    }

    /// Reads the bytes of a file from `offset` on.
    pub(super) fn read_part(
        &self,
        path: &Path,
        offset: u64,
        part: &mut [u8],
    ) -> Result<(), DataError> {
        let read = match &self.volume {
            None => open(path).and_then(|file| file.read_exact_at(part, offset)),
            Some(inside) => inside.file(&self.inner(path)).and_then(|file| {
                inside.files.read_at(&file, part, offset).map_err(io::Error::other)
            }),
        };
        read.map_err(|error| DataError::Read(path.into(), error))
    }

    /// The path inside of the volume.
    fn inner(&self, path: &Path) -> PathBuf {
        path.strip_prefix(&self.root).unwrap_or(path).into()
    }
}

/// Opens a file of this system. Data is opened again all through a job: what was put in its place meanwhile, such as a
/// pipe that nobody writes to, is waited for by nobody.
fn open(path: &Path) -> io::Result<fs::File> {
    let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let file = fs::File::options().read(true).custom_flags(flags).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("not a regular file")),
    }
}

impl Inside {
    /// What is at a path, if anything is.
    fn entry(&self, path: &Path) -> Option<Entry> {
        let known = |path: &Path| {
            self.known.lock().unwrap_or_else(PoisonError::into_inner).get(path).cloned()
        };
        known(path).or_else(|| {
            self.list(path.parent()?).ok()?;
            known(path)
        })
    }

    fn kind(&self, path: &Path) -> Option<Kind> {
        self.entry(path).map(|entry| entry.kind)
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<OsString>> {
        let listed = match folder.as_os_str().is_empty() {
            true => self.files.list(""),
            false => match self.entry(folder) {
                None => return Err(io::ErrorKind::NotFound.into()),
                Some(entry) => self.files.list_entry(&entry),
            },
        };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let remember = |entry: Entry| {
            let name = OsString::from_vec(entry.name.clone());
            known.insert(folder.join(&name), entry);
            name
        };
        Ok(listed.map_err(io::Error::other)?.into_iter().map(remember).collect())
    }

    fn file(&self, path: &Path) -> io::Result<File> {
        let entry = self.entry(path).ok_or(io::ErrorKind::NotFound)?;
        self.files.file_entry(&entry).map_err(io::Error::other)
    }

    fn read(&self, path: &Path, len_max: u64) -> io::Result<Vec<u8>> {
        let file = self.file(path)?;
        if file.len() > len_max {
            return Err(io::Error::other(format!("{} bytes, more than {len_max}", file.len())));
        }
        let mut bytes = vec![0; file.len() as usize];
        self.files.read_at(&file, &mut bytes, 0).map_err(io::Error::other)?;
        Ok(bytes)
    }
}
