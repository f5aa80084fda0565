//! Error type of the whole crate: what was refused, and whose fault it is.

use std::fmt;
use std::io;

/// Why a volume cannot be used.
#[derive(Debug)]
pub enum Error {
    /// The thing is in use; what it is.
    Busy(String),
    /// The bytes contradict themselves or end early: damage, or somebody's hand.
    Damaged(String),
    /// The file system or the volume has no room left.
    Full,
    /// The system refused; what was being done.
    Io(String, io::Error),
    /// A key derivation needs more memory than there is, in KiB: needed, available.
    Memory(u64, u64),
    /// No such file in the file system.
    NotFound(String),
    /// No LUKS2 header here.
    NotLuks(&'static str),
    /// Well formed, but outside the allow-list: what, and what is allowed.
    Refused(String),
    /// No keyslot opens with this passphrase.
    WrongPassphrase,
}

impl Error {
    pub(crate) fn damaged(what: impl Into<String>) -> Self {
        Self::Damaged(what.into())
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
            Self::Full => write!(f, "no space left in the volume"),
            Self::Io(what, error) => write!(f, "{what}: {error}"),
            Self::Memory(needed, available) => write!(
                f,
                "the key derivation needs {needed} KiB of memory, {available} KiB are allowed here"
            ),
            Self::NotFound(path) => write!(f, "no file {} in the volume", path.escape_default()),
            Self::NotLuks(why) => write!(f, "no LUKS2 volume: {why}"),
            Self::Refused(what) => write!(f, "refused: {what}"),
            Self::WrongPassphrase => write!(f, "no keyslot opens with this passphrase"),
        }
    }
}

impl std::error::Error for Error {}
