//! The disk: LUKS2 volumes, the file system inside them, and dm-crypt devices over them.
//!
//! ```text
//!  file ----header---> binary + json -> metadata (allow-list)        one copy in memory, never read again
//!    |                      passphrase -> keyslot -> volume key -> mac
//!    '----segment----> cipher (XTS) [+ integrity] -> ext4            in this process, no privileges
//!                      mapping: loop device -> device-mapper -> mount  with root
//! ```
//!
//! Nothing here knows of training. What is read from a volume is hostile until its digest matches: it is
//! read once, parsed into types with a bound on every length, and checked against an allow-list. Nothing
//! formats, repairs or falls back by itself. System calls without a safe wrapper are in `linux::sys`,
//! the only unsafe code.

#![deny(unsafe_code)]

mod data;
pub mod disk;
mod error;
pub mod ext4;
mod fuzz;
mod header;
mod keys;
pub mod linux;
pub mod mapping;
mod memory;
mod random;
mod volume;

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
pub use volume::{Options, Source, Volume, create};
