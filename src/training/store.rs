//! `Store`: where a role keeps its model, a directory or a directory inside an encrypted volume.
//!
//! In a volume the files change together with `manifest.json`, which names each one's hash, the job and
//! the step, and is authenticated with a key derived from the volume's: files that were swapped for
//! others, or set back to an older state one by one, are noticed when they are read.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};

use luks::disk::Disk;
use luks::ext4::{FileSystem, NewFile};
use luks::{ManifestKey, Passphrase, Source, Volume};
use ring::digest::{Context, SHA256, digest};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::failure::{Doing, Failure};
use crate::files::{FILE_LEN_MAX, read_bounded};
use crate::training::sealing;
use crate::training::volume::{self, now};
use crate::trust::passphrase::KeySource;
use protocol::{hex, unhex};

/// The directory inside a volume.
pub const DIRECTORY: &str = "model";
/// The file that vouches for the others.
pub(crate) const MANIFEST: &str = "manifest.json";
const MANIFEST_LEN_MAX: u64 = 1 << 16;
/// How names of files end that are not whole yet.
const UNFINISHED: &str = ".tmp";

/// Where options say that the model is kept.
#[derive(Clone, Debug)]
pub struct Place {
    /// The directory, unless there is a volume.
    pub model_dir: PathBuf,
    /// An encrypted volume.
    pub volume: Option<PathBuf>,
    /// Bytes of a volume that is made if there is none.
    pub create: Option<u64>,
    /// What opens it.
    pub key: KeySource,
    /// Refuse a saved model of an earlier step: a host may have set the place back.
    pub min_step: u64,
}

impl Place {
    /// Fails if a saved model is of an earlier step than it must be; no model is of step 0.
    ///
    /// # Errors
    /// With both steps.
    pub fn check_step(&self, step: u64) -> Result<(), Failure> {
        match step >= self.min_step {
            true => Ok(()),
            false => Err(Failure::new(format!(
                "the saved model is of step {step}, --min-step asks for {}: it was set back",
                self.min_step
            ))),
        }
    }

    /// The volume that opening would make, and its bytes: a block device has its own.
    ///
    /// # Errors
    /// When a device cannot be read.
    pub fn new_volume(&self) -> Result<Option<(&Path, u64)>, Failure> {
        let (Some(path), Some(size)) = (&self.volume, self.create) else { return Ok(None) };
        let fail = |error| volume::explained(path, &error);
        match volume::is_absent(path).map_err(fail)? {
            true => Ok(Some((path, luks::device_len(path).map_err(fail)?.unwrap_or(size)))),
            false => Ok(None),
        }
    }

    /// Opens the place to write: a directory is made if it is not there, a volume only of a size that was asked
    /// for. The passphrase is asked for only if there is a volume.
    ///
    /// # Errors
    /// When the volume does not open.
    pub fn open(
        &self,
        passphrase: impl FnOnce() -> Result<Passphrase, Failure>,
    ) -> Result<Store, Failure> {
        let Some(path) = &self.volume else {
            return Store::directory(&self.model_dir).doing(self.model_dir.display());
        };
        let passphrase = passphrase()?;
        if let Some((path, size)) = self.new_volume()? {
            create(path, size, &passphrase)?;
        }
        let opened = Store::volume(path, &passphrase, Access::Write);
        opened.map_err(|error| volume::explained(path, &error))
    }

    /// Reads from the place, also while ps0 writes to it. What is read of a volume between two halves of a change
    /// does not fit its manifest, and is read again.
    ///
    /// # Errors
    /// When the volume does not open, and those of `work`.
    pub fn read<T>(&self, work: impl Fn(&Store) -> Result<T, Failure>) -> Result<T, Failure> {
        let Some(path) = &self.volume else {
            return work(&Store::Directory(self.model_dir.clone()));
        };
        let passphrase = self.key.read()?;
        let attempt = |access| {
            let opened = Store::volume(path, &passphrase, access);
            (
                opened.as_ref().err().is_some_and(|error| matches!(error, luks::Error::Busy(_))),
                opened,
            )
        };
        let explained = |error| volume::explained(path, &error);
        let (busy, opened) = attempt(Access::Read);
        if !busy {
            return work(&opened.map_err(explained)?);
        }
        log::info!("{}: in use, its last checkpoint is read", path.display());
        let read = || work(&attempt(Access::BesideWriter).1.map_err(explained)?);
        (1..ATTEMPTS).find_map(|_| read().ok()).map_or_else(read, Ok)
    }
}

/// How often a volume is read beside a writer. A reading takes a second or so, a change to its directory some
/// milliseconds, and between two of them lie minutes.
const ATTEMPTS: u32 = 4;

/// Makes a volume where there is none: complete before a file gets its name, which is never taken from
/// another one, and before a device gets its header.
fn create(path: &Path, size: u64, passphrase: &Passphrase) -> Result<(), Failure> {
    let what = || format!("create {}", path.display());
    let options = luks::Options::new(size);
    let make = |path: &Path, force| {
        let passphrases = std::slice::from_ref(passphrase);
        volume::create_volume(path, None, &options, passphrases, force, true).doing(what())
    };
    let header = match luks::device_len(path).doing(what())? {
        Some(_) => make(path, false)?,
        None => {
            let unfinished = PathBuf::from(format!("{}.new", path.display()));
            let header = make(&unfinished, true)?;
            let named = fs::hard_link(&unfinished, path);
            named.and_then(|()| fs::remove_file(&unfinished)).doing(what())?;
            header
        }
    };
    log::info!("created {}, header id {}", path.display(), header.id());
    Ok(())
}

/// What a volume is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// To read; nobody writes meanwhile.
    Read,
    /// To read, while another process may write.
    BesideWriter,
    /// To read and write, alone.
    Write,
}

/// Where a model is kept.
pub enum Store {
    /// A directory of this system.
    Directory(PathBuf),
    /// A directory inside an encrypted volume.
    Volume(Box<Sealed>),
}

/// The inside of an open volume.
pub struct Sealed {
    path: PathBuf,
    files: FileSystem<Volume>,
    key: ManifestKey,
    manifest: Option<Manifest>,
}

/// What a volume's model directory holds, and of which step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Digest of the job, in hexadecimal.
    pub job: String,
    /// Step of the last change.
    pub step: u64,
    /// SHA-256 of the manifest before this one, in hexadecimal.
    pub previous: Option<String>,
    /// Length and SHA-256 of each file, by name.
    pub files: BTreeMap<String, (u64, String)>,
}

/// A manifest and its HMAC-SHA256, in hexadecimal.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Signed {
    /// The manifest's JSON, as text so that the MAC is over exact bytes.
    manifest: String,
    mac: String,
}

/// What a change belongs to.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Digest of the job.
    pub job: [u8; 32],
    /// Updates done.
    pub step: u64,
}

impl Store {
    /// A directory, made if it is not there.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn directory(path: &Path) -> io::Result<Self> {
        fs::create_dir_all(path).map(|()| Self::Directory(path.into()))
    }

    /// The inside of a volume that `hfl luks create` made.
    ///
    /// # Errors
    /// When the volume does not open, or its manifest is not authentic.
    pub fn volume(
        path: &Path,
        passphrase: &Passphrase,
        access: Access,
    ) -> Result<Self, luks::Error> {
        let mut source = Source::new(path);
        source.require_mac = true;
        source.beside_writer = access == Access::BesideWriter;
        let files = match access {
            Access::Write => {
                let mut files = volume::open_to_write(&source, passphrase)?;
                files.make_directory(DIRECTORY, now())?;
                files
            }
            Access::Read | Access::BesideWriter => {
                FileSystem::open(source.open(passphrase, false)?)?
            }
        };
        let key = files.disk().manifest_key();
        let manifest = read_manifest(&files, &key)?;
        Ok(Self::Volume(Box::new(Sealed { path: path.into(), files, key, manifest })))
    }

    /// Keeps other servers out of a directory while the lock lives; a volume has a lock of its own.
    ///
    /// # Errors
    /// When another process holds it.
    pub fn lock(&self) -> Result<Option<File>, Failure> {
        let Self::Directory(path) = self else { return Ok(None) };
        let directory = File::open(path).doing(path.display())?;
        match directory.try_lock() {
            Ok(()) => Ok(Some(directory)),
            Err(TryLockError::WouldBlock) => {
                Err(Failure::new(format!("{}: another ps0 keeps its model there", path.display()))
                    .hint("end it, or another --model-dir"))
            }
            Err(TryLockError::Error(error)) => Err(error).doing(path.display()),
        }
    }

    /// Under which name a directory has a file that is not whole yet.
    pub fn unfinished(name: &str) -> String {
        format!("{name}{UNFINISHED}")
    }

    /// How messages name a file of the store.
    pub fn name_of(&self, name: &str) -> String {
        match self {
            Self::Directory(path) => path.join(name).display().to_string(),
            Self::Volume(sealed) => format!("{}:/{DIRECTORY}/{name}", sealed.path.display()),
        }
    }

    /// The manifest of a volume that has one.
    pub fn manifest(&self) -> Option<&Manifest> {
        match self {
            Self::Directory(_) => None,
            Self::Volume(sealed) => sealed.manifest.as_ref(),
        }
    }

    /// Whether there is a file of this name.
    ///
    /// # Errors
    /// When the file system is damaged.
    pub fn has(&self, name: &str) -> io::Result<bool> {
        match self {
            Self::Directory(path) => Ok(path.join(name).exists()),
            Self::Volume(sealed) => {
                sealed.files.exists(&format!("{DIRECTORY}/{name}")).map_err(io::Error::other)
            }
        }
    }

    /// Bytes of a file, 0 of one that is not there.
    ///
    /// # Errors
    /// When the file system is damaged.
    pub fn len_of(&self, name: &str) -> io::Result<u64> {
        match self {
            Self::Directory(path) => Ok(fs::metadata(path.join(name)).map_or(0, |meta| meta.len())),
            Self::Volume(sealed) => match sealed.files.file(&format!("{DIRECTORY}/{name}")) {
                Ok(file) => Ok(file.len()),
                Err(luks::Error::NotFound(_)) => Ok(0),
                Err(error) => Err(io::Error::other(error)),
            },
        }
    }

    /// The files that are there, but for those that are not whole yet.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn names(&self) -> io::Result<Vec<String>> {
        let path = match self {
            Self::Directory(path) => path,
            Self::Volume(sealed) => {
                return Ok(sealed.manifest.iter().flat_map(|m| m.files.keys().cloned()).collect());
            }
        };
        let mut names = Vec::new();
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if entry.file_type()?.is_file() && !name.ends_with(UNFINISHED) {
                names.push(name);
            }
        }
        Ok(names)
    }

    /// SHA-256 of a file.
    ///
    /// # Errors
    /// When it is not there, or not what the manifest names.
    pub fn digest(&self, name: &str) -> io::Result<[u8; 32]> {
        let bytes = self.read(name)?.ok_or_else(|| io::Error::from(ErrorKind::NotFound))?;
        Ok(digest(&SHA256, &bytes).as_ref().try_into().expect("SHA-256 has 32 bytes"))
    }

    /// Seals a secret for this volume; `None` in a directory, where nothing can be.
    pub(super) fn seal(&self, secret: &[u8]) -> Option<io::Result<Vec<u8>>> {
        self.sealing_key().map(|key| sealing::seal(&key, secret))
    }

    /// Opens what was sealed for this volume.
    pub(super) fn unseal(&self, sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        self.sealing_key().and_then(|key| sealing::open(&key, sealed))
    }

    fn sealing_key(&self) -> Option<Zeroizing<[u8; 32]>> {
        match self {
            Self::Directory(_) => None,
            Self::Volume(sealed) => Some(Zeroizing::new(sealed.key.sign(sealing::LABEL))),
        }
    }

    /// Reads a file; `None` when there is none.
    ///
    /// # Errors
    /// When it is too large, or not what the manifest names.
    pub fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        match self {
            Self::Directory(path) => read_bounded(&path.join(name)),
            Self::Volume(sealed) => sealed.read(name),
        }
    }

    /// Writes a file in the place of the one of this name: after a crash it is the old one or the new.
    ///
    /// # Errors
    /// When the system refuses, or `write` fails; the old file stays then.
    pub fn save(
        &mut self,
        name: &str,
        progress: Progress,
        write: &dyn Fn(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<()> {
        match self {
            Self::Directory(path) => save_in_directory(path, name, write),
            Self::Volume(sealed) => sealed.save(name, progress, write),
        }
    }

    /// Why a file could not be written: to which path, what is there still, and what to try.
    pub fn not_written(&self, name: &str, error: &io::Error, kept: &str) -> Failure {
        let failure = Failure::new(format!("write {}: {error}; {kept}", self.name_of(name)));
        failure.hint(match error.kind() {
            ErrorKind::FileTooLarge | ErrorKind::QuotaExceeded | ErrorKind::StorageFull => {
                "make room there, then the same command goes on"
            }
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
                "a place that this user may write to, then the same command goes on"
            }
            _ => "the same command goes on once that is mended",
        })
    }

    /// Closes a volume cleanly; a directory needs nothing.
    ///
    /// # Errors
    /// What the disk refuses; nothing is lost then.
    pub fn close(self) -> io::Result<()> {
        match self {
            Self::Directory(_) => Ok(()),
            Self::Volume(sealed) => sealed.files.close().map(drop).map_err(io::Error::other),
        }
    }
}

impl Sealed {
    /// The volume's file or device.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes that the file system inside has left.
    pub(super) fn free_space(&self) -> io::Result<u64> {
        self.files.free_space().map_err(io::Error::other)
    }

    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let path = format!("{DIRECTORY}/{name}");
        let Some(bytes) =
            read_inside(&self.files, &path, FILE_LEN_MAX).map_err(io::Error::other)?
        else {
            return Ok(None);
        };
        let entry = self.manifest.as_ref().and_then(|manifest| manifest.files.get(name));
        let (len, sum) =
            entry.ok_or_else(|| io::Error::other("a file that the manifest does not name"))?;
        match *len == bytes.len() as u64 && hex(digest(&SHA256, &bytes).as_ref()) == *sum {
            true => Ok(Some(bytes)),
            false => Err(io::Error::other("not the file that the manifest names")),
        }
    }

    fn save(
        &mut self,
        name: &str,
        progress: Progress,
        write: &dyn Fn(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut sink = Sink {
            files: &mut self.files,
            file: NewFile::default(),
            sum: Context::new(&SHA256),
            len: 0,
        };
        let written = write(&mut sink);
        let Sink { file, sum, len, .. } = sink;
        if let Err(error) = written {
            self.files.discard(file).map_err(io::Error::other)?;
            return Err(error);
        }
        let mut manifest = self.manifest.clone().unwrap_or_else(|| Manifest {
            job: String::new(),
            step: 0,
            previous: None,
            files: BTreeMap::new(),
        });
        manifest.previous =
            self.manifest.as_ref().map(|before| hex(digest(&SHA256, &text(before)).as_ref()));
        manifest.job = hex(&progress.job);
        manifest.step = progress.step;
        manifest.files.insert(name.into(), (len, hex(sum.finish().as_ref())));
        let text = text(&manifest);
        let mac = hex(&self.key.sign(&text));
        let manifest_text = String::from_utf8(text).expect("JSON is UTF-8");
        let signed = serde_json::to_vec(&Signed { manifest: manifest_text, mac });
        let mut signed_file = NewFile::default();
        let paths = [name, MANIFEST].map(|name| format!("{DIRECTORY}/{name}"));
        self.files
            .append(&mut signed_file, &signed.expect("plain text"))
            .and_then(|()| {
                let files = vec![(paths[0].as_str(), file), (paths[1].as_str(), signed_file)];
                self.files.commit(files, now())
            })
            .map_err(io::Error::other)?;
        self.manifest = Some(manifest);
        Ok(())
    }
}

/// A new file in a volume that is hashed while it is written.
struct Sink<'a> {
    files: &'a mut FileSystem<Volume>,
    file: NewFile,
    sum: Context,
    len: u64,
}

impl Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.files.append(&mut self.file, bytes).map_err(io::Error::other)?;
        self.sum.update(bytes);
        self.len += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn text(manifest: &Manifest) -> Vec<u8> {
    serde_json::to_vec(manifest).expect("plain text and numbers")
}

/// The manifest of a volume; a volume without one has no model yet.
fn read_manifest(
    files: &FileSystem<Volume>,
    key: &ManifestKey,
) -> Result<Option<Manifest>, luks::Error> {
    let damaged = || luks::Error::Unauthentic(format!("{DIRECTORY}/{MANIFEST}"));
    let path = format!("{DIRECTORY}/{MANIFEST}");
    let Some(bytes) = read_inside(files, &path, MANIFEST_LEN_MAX)? else { return Ok(None) };
    let signed: Signed = serde_json::from_slice(&bytes).map_err(|_| damaged())?;
    let mac = unhex(&signed.mac).ok_or_else(damaged)?;
    if !key.verify(signed.manifest.as_bytes(), &mac) {
        return Err(luks::Error::Unauthentic(format!("{DIRECTORY}/{MANIFEST}")));
    }
    serde_json::from_str(&signed.manifest).map(Some).map_err(|_| damaged())
}

fn read_inside(
    files: &FileSystem<impl Disk>,
    path: &str,
    len_max: u64,
) -> Result<Option<Vec<u8>>, luks::Error> {
    let file = match files.file(path) {
        Ok(file) => file,
        Err(luks::Error::NotFound(_)) => return Ok(None),
        Err(error) => return Err(error),
    };
    if file.len() > len_max {
        return Err(luks::Error::FileSystem(format!("{path} is longer than {len_max} bytes")));
    }
    let mut bytes = vec![0; file.len() as usize];
    files.read_at(&file, &mut bytes, 0)?;
    Ok(Some(bytes))
}

/// To a temporary file, to the disk, then in the place of the last one. What could not be finished is removed: on
/// a full disk it would be in the way.
fn save_in_directory(
    directory: &Path,
    name: &str,
    write: &dyn Fn(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let unfinished = directory.join(Store::unfinished(name));
    let written = write_whole(&unfinished, write)
        .and_then(|()| fs::rename(&unfinished, directory.join(name)));
    if written.is_err() {
        // What is left of it is overwritten next time.
        let _ = fs::remove_file(&unfinished);
    }
    written?;
    File::open(directory)?.sync_all()
}

fn write_whole(path: &Path, write: &dyn Fn(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    write(&mut file)?;
    file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
}
