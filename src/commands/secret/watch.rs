//! Notices that files were changed, so that nobody has to look now and then.
//!
//! What is watched are the directories that the files are named in: an editor puts another file in the place of
//! the one of before, and a cluster swaps a link beside it.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{CreateFlags, Reader, WatchFlags, add_watch, init};

/// Room for some events; what is in them does not matter.
const EVENTS_LEN: usize = 4096;

/// A descriptor that becomes readable when something happens in the directories of some files.
pub(super) struct Watch(OwnedFd);

impl Watch {
    /// Watches the directories of these files.
    ///
    /// # Errors
    /// When the system refuses.
    pub(super) fn new<'a>(files: impl Iterator<Item = &'a PathBuf>) -> io::Result<Self> {
        let descriptor = init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        let changes = WatchFlags::CLOSE_WRITE
            | WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVED_TO
            | WatchFlags::MODIFY;
        for file in files {
            let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty());
            add_watch(&descriptor, directory.unwrap_or(Path::new(".")), changes)?;
        }
        Ok(Self(descriptor))
    }

    /// What to wait for.
    ///
    /// # Errors
    /// When the system has no descriptor left.
    pub(super) fn descriptor(&self) -> io::Result<OwnedFd> {
        self.0.try_clone()
    }

    /// Takes note of all that has happened so far.
    pub(super) fn clear(&self) {
        let mut events = [MaybeUninit::uninit(); EVENTS_LEN];
        let mut reader = Reader::new(&self.0, &mut events);
        while reader.next().is_ok() {}
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    fn is_ready(watch: &Watch) -> bool {
        let none = Timespec::default();
        poll(&mut [PollFd::new(&watch.0, PollFlags::IN)], Some(&none)).expect("poll") == 1
    }

    #[test]
    fn written_replaced_and_swapped_files_are_noticed() {
        let folder = std::env::temp_dir().join(format!("hfl-watch-{}", std::process::id()));
        fs::create_dir_all(folder.join("one")).expect("a folder");
        let file = folder.join("policy.json");
        fs::write(&file, "1").expect("write");
        let watch = Watch::new([&file].into_iter()).expect("watch");
        assert!(!is_ready(&watch));
        let changes: [(&str, &dyn Fn()); 3] = [
            ("written", &|| fs::write(&file, "2").expect("write")),
            ("replaced", &|| {
                fs::write(folder.join("new"), "3").expect("write");
                fs::rename(folder.join("new"), &file).expect("rename");
            }),
            ("a link beside it", &|| {
                std::os::unix::fs::symlink(folder.join("one"), folder.join("..data"))
                    .expect("link");
            }),
        ];
        for (name, change) in changes {
            change();
            assert!(is_ready(&watch), "{name}");
            watch.clear();
            assert!(!is_ready(&watch), "{name}");
        }
        fs::remove_dir_all(&folder).expect("remove");
    }
}
