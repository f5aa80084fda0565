//! The disk: LUKS2 volumes, the file system inside them, and dm-crypt devices over them.
//!
//! ```text
//!  file ----header---> binary + json -> metadata (allow-list)        one copy in memory, never read again
//!    |                      passphrase -> keyslot -> volume key -> mac
//!    '----segment----> cipher (XTS) [+ integrity] -> ext4            in this process, no privileges
//!                      mapping: loop device -> device-mapper -> mount  with root
//! ```
//!
//! ```
//! use luks::{Options, Passphrase, Source, create, ext4::{FileSystem, NewFile}};
//!
//! # let folder = std::env::temp_dir().join(format!("luks-example-{}", std::process::id()));
//! # std::fs::create_dir_all(&folder)?;
//! let path = folder.join("model.luks");
//! let passphrase = Passphrase::from_bytes(b"of a key service");
//! let volume = create(&path, None, &Options::new(64 << 20), &[passphrase], false)?;
//! let mut files = FileSystem::format(volume, "model", 1_800_000_000)?;
//! let mut file = NewFile::default();
//! files.append(&mut file, b"weights")?;
//! files.commit(vec![("/model.bin", file)], 1_800_000_000)?;
//! files.close()?;
//!
//! let volume = Source::new(&path).open(&Passphrase::from_bytes(b"of a key service"), false)?;
//! let files = FileSystem::open(volume)?;
//! let mut content = [0; 7];
//! files.read_at(&files.file("/model.bin")?, &mut content, 0)?;
//! assert_eq!(&content, b"weights");
//! # std::fs::remove_dir_all(&folder)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Nothing here knows of training. What is read from a volume is hostile until its digest matches: it is
//! read once, parsed into types with a bound on every length, and checked against an allow-list. Nothing
//! formats, repairs or falls back by itself. System calls without a safe wrapper are in `linux::sys`,
//! the only unsafe code.

#![deny(unsafe_code)]

mod creation;
mod data;
pub mod disk;
mod error;
pub mod ext4;
mod fuzz;
mod header;
mod keys;
pub mod linux;
mod maintenance;
pub mod mapping;
mod memory;
mod random;
mod volume;

pub use creation::{create, create_with, device_len, is_blank};
pub use data::{cipher, encrypted, integrity};
pub use error::Error;

pub use fuzz::{fuzz_binary, fuzz_ext4, fuzz_header, fuzz_integrity, fuzz_journal, fuzz_json};
pub use header::Header;
pub use header::json::Value as Json;
pub use header::mac::{HeaderId, ManifestKey};
pub use header::metadata::{Metadata, Policy};
pub use keys::hash::Hash;
pub use keys::kdf::{Kdf, KdfCost};
pub use keys::secret::{Passphrase, Secret};
pub use volume::{Options, Source, Volume};
