//! `hfl luks convert`: the files of a volume in a new one with the file system that this program writes.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::path::Path;

use luks::ext4::{FileSystem, Kind, NewFile};
use luks::{Options, Volume};

use super::args::ConvertArgs;
use super::export::{CHUNK, Exported, visit};
use super::opening::{explained, open_volume};
use crate::failure::{Doing, Failure};
use crate::progress::{Progress, Unit};
use crate::report::print;
use crate::training::volume::now;

pub(super) fn run(args: &ConvertArgs) -> Result<(), Failure> {
    let (source, key) = args.source();
    let passphrase = key.read()?;
    let old = open_volume(&source, &passphrase)?;
    let size = match args.size {
        Some(size) => size.0,
        None => len_of(&args.volume)?,
    };
    let mut options = Options::new(size.next_multiple_of(4096));
    options.integrity = args.integrity;
    options.label = old.header().label().to_owned();
    let old = FileSystem::open(old).map_err(|error| explained(&args.volume, &error))?;
    let fail = |error: luks::Error| explained(&args.new, &error);
    let created = luks::create(&args.new, None, &options, &[passphrase], false).map_err(fail)?;
    let copied = FileSystem::format(created, &options.label, now())
        .map_err(fail)
        .and_then(|new| copy_all(&old, new, &args.new));
    let copied = match copied {
        Ok(copied) => copied,
        Err(failure) => {
            // Half a copy is worse than none, and the old volume is as it was.
            let _ = std::fs::remove_file(&args.new);
            return Err(failure);
        }
    };
    print(&format!("{} files in {}", copied.count, args.new.display()))?;
    copied.complete()
}

/// Bytes of a file or device.
fn len_of(path: &Path) -> Result<u64, Failure> {
    File::open(path).and_then(|mut file| file.seek(SeekFrom::End(0))).doing(path.display())
}

/// Copies what there is and closes the new file system; what cannot be copied is told, and the rest goes on.
fn copy_all(
    old: &FileSystem<Volume>,
    mut new: FileSystem<Volume>,
    path: &Path,
) -> Result<Exported, Failure> {
    let mut copied = Exported::default();
    visit(old, "", &mut copied, &mut |kind, inside| match kind {
        Kind::Directory => new.make_directory(inside, now()).map_err(io::Error::other),
        _ => copy_file(old, &mut new, inside).map_err(io::Error::other),
    });
    new.close().map_err(|error| explained(path, &error))?;
    Ok(copied)
}

/// Copies a file, its holes as zeros.
fn copy_file(
    old: &FileSystem<Volume>,
    new: &mut FileSystem<Volume>,
    path: &str,
) -> Result<(), luks::Error> {
    let file = old.file(path)?;
    if file.len() > new.free_space()? {
        return Err(luks::Error::Full);
    }
    let mut copy = NewFile::default();
    let progress = Progress::new("copied", file.len(), Unit::Bytes);
    let mut buffer = vec![0; CHUNK.min(file.len() as usize)];
    for at in (0..file.len()).step_by(CHUNK) {
        let len = CHUNK.min((file.len() - at) as usize);
        let part = &mut buffer[..len];
        let written = old.read_at(&file, part, at).and_then(|()| new.append(&mut copy, part));
        if let Err(error) = written {
            new.discard(copy)?;
            return Err(error);
        }
        progress.advance(len as u64);
    }
    new.commit(vec![(path, copy)], now())
}
