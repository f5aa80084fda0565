//! Error type of the whole crate: what was refused, and whose fault it is.

use std::fmt;
use std::io;

/// Why a volume cannot be used.
#[derive(Debug)]
pub enum Error {
    /// The thing is in use; what it is.
    Busy(String),
    /// The header contradicts itself: damage, or somebody's hand.
    Damaged(String),
    /// The file system inside contradicts itself.
    FileSystem(String),
    /// An ext4 file system that is read but not written: why.
    Foreign(&'static str),
    /// The file system or the volume has no room left.
    Full,
    /// The system refused; what was being done.
    Io(String, io::Error),
    /// A key derivation needs more memory than there is, in KiB: needed, available.
    Memory(u64, u64),
    /// The header MAC is not of this header.
    Mac,
    /// Well formed, but only [`crate::Policy::Compat`] accepts it.
    NeedsCompat(String),
    /// A header without MAC, where one was asked for.
    NoMac,
    /// No such file in the file system.
    NotFound(String),
    /// No LUKS2 header here.
    NotLuks(&'static str),
    /// Well formed, but outside the allow-list: what, and what is allowed.
    Refused(String),
    /// The file or device ends before what it must hold.
    Truncated(String),
    /// What the volume key does not vouch for: which sector or file.
    Unauthentic(String),
    /// No keyslot that is tried opens with this passphrase; some have the priority to be tried only by number.
    Untried(Vec<u8>),
    /// No keyslot opens with this passphrase.
    WrongPassphrase,
}

impl Error {
    pub(crate) fn damaged(what: impl Into<String>) -> Self {
        Self::Damaged(what.into())
    }

    pub(crate) fn file_system(what: impl Into<String>) -> Self {
        Self::FileSystem(what.into())
    }

    pub(crate) fn truncated(what: impl Into<String>) -> Self {
        Self::Truncated(what.into())
    }

    pub(crate) fn refused(what: impl Into<String>) -> Self {
        Self::Refused(what.into())
    }

    /// For `map_err`: the system refused while `what` was being done.
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |error| Self::Io(what, error)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Busy(what) => write!(f, "{what} is in use"),
            Self::Damaged(what) => write!(f, "damaged: {what}"),
            Self::FileSystem(what) => write!(f, "the file system inside is damaged: {what}"),
            Self::Foreign(why) => write!(f, "an ext4 file system that is only read: {why}"),
            Self::Full => write!(f, "no space left in the volume"),
            Self::Io(what, error) => write!(f, "{what}: {error}"),
            Self::Memory(needed, available) => write!(
                f,
                "the key derivation needs {needed} KiB of memory, {available} KiB are allowed here"
            ),
            Self::Mac => write!(f, "the header MAC does not match this header"),
            Self::NeedsCompat(what) => write!(f, "refused by the strict policy: {what}"),
            Self::NoMac => write!(f, "a header without MAC"),
            Self::NotFound(path) => write!(f, "no file {} in the volume", path.escape_default()),
            Self::NotLuks(why) => write!(f, "no LUKS2 volume: {why}"),
            Self::Refused(what) => write!(f, "refused: {what}"),
            Self::Truncated(what) => write!(f, "cut off: {what}"),
            Self::Unauthentic(what) => write!(f, "{what} fails authentication"),
            Self::Untried(slots) => write!(
                f,
                "no keyslot that is tried opens with this passphrase; by their priority not tried: {}",
                slots.iter().map(u8::to_string).collect::<Vec<_>>().join(", ")
            ),
            Self::WrongPassphrase => write!(f, "no keyslot opens with this passphrase"),
        }
    }
}

impl std::error::Error for Error {}
