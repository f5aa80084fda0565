//! `hfl luks resize`: a volume and its file system take in what their file or device gained.

use luks::Error;
use luks::disk::Disk;
use luks::ext4::{self, FileSystem};

use super::args::ResizeArgs;
use super::opening::explained;
use crate::failure::Failure;
use crate::report::print;

pub(super) fn run(args: &ResizeArgs) -> Result<(), Failure> {
    let (source, key) = args.source();
    let path = &args.volume;
    let fail = |error: Error| match error {
        // Its segment has grown; what is inside is for who made it.
        Error::Foreign(_) => Failure::new(format!("{}: {error}", path.display()))
            .hint("hfl luks open, then resize2fs over the mapping: the volume has its new size"),
        error => explained(path, &error),
    };
    let volume = source.open_grown(&key.read()?).map_err(fail)?;
    let id = volume.header().id();
    let inside = match ext4::len_on(&volume) {
        None => format!("{} bytes, no file system", volume.len()),
        Some(before) => {
            let mut files = FileSystem::open_writable(volume).map_err(fail)?;
            files.grow().map_err(fail)?;
            let after = files.len();
            files.close().map_err(fail)?;
            match after > before {
                true => format!("ext4 of {} MiB, was {} MiB", after >> 20, before >> 20),
                false => format!("ext4 of {} MiB, as before", after >> 20),
            }
        }
    };
    print(&format!("resized {}\nheader id {id}\ninside    {inside}", path.display()))
}
