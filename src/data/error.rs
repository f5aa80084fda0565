//! `DataError`: why pictures cannot be used, always with the file.

use std::fmt;
use std::path::PathBuf;

use crate::data::picture::PictureError;

/// Why data cannot be used.
#[derive(Debug)]
pub enum DataError {
    /// Classes that the job has not, and those that it has.
    Classes {
        /// Whose they are.
        data: PathBuf,
        /// Those that the job has not.
        unknown: Vec<String>,
        /// The job's.
        job: Vec<String>,
    },
    /// A picture that was read before, and is another now.
    Changed(PathBuf),
    /// The directory has none of the files, or they hold no record (of the shard).
    Empty(PathBuf, String),
    /// What is there is not what belongs there.
    Format(PathBuf, String),
    /// A label that is no class: where, the label, and how many classes there are.
    Label(PathBuf, u64, u64, usize),
    /// A picture that cannot be used.
    Picture(PathBuf, PictureError),
    /// The system refused to read.
    Read(PathBuf, std::io::Error),
    /// The file ends inside a record: where, and how many of how many bytes there are.
    Truncated(PathBuf, u64, [usize; 2]),
}

impl DataError {
    /// Whether nothing is there, rather than something that is wrong.
    pub(super) fn is_absence(&self) -> bool {
        match self {
            Self::Empty(..) => true,
            Self::Read(_, error) => error.kind() == std::io::ErrorKind::NotFound,
            _ => false,
        }
    }
}

/// Names that a message lists at most: a screen, not a log.
const NAMES_MAX: usize = 12;

fn list(names: &[String]) -> String {
    let shown: Vec<String> =
        names.iter().take(NAMES_MAX).map(|name| name.escape_debug().to_string()).collect();
    match names.len().checked_sub(NAMES_MAX) {
        Some(more) if more > 0 => format!("{} and {more} more", shown.join(", ")),
        _ => shown.join(", "),
    }
}

impl fmt::Display for DataError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Classes { data, unknown, job } => write!(
                f,
                "{}: classes that the job has not: {}; the job's are {}",
                data.display(),
                list(unknown),
                list(job)
            ),
            Self::Changed(path) => {
                write!(f, "{}: it is another picture than when the job began", path.display())
            }
            Self::Empty(path, what) => write!(f, "{}: no {what} here", path.display()),
            Self::Format(path, why) => write!(f, "{}: {why}", path.display()),
            Self::Label(path, at, label, classes) => {
                let last = classes.saturating_sub(1);
                write!(f, "{}: label {label} at offset {at}, expected 0 to {last}", path.display())
            }
            Self::Picture(path, why) => write!(f, "{}: {why}", path.display()),
            Self::Read(path, error) => write!(f, "{}: {error}", path.display()),
            Self::Truncated(path, offset, [len, of]) => write!(
                f,
                "{}: truncated record at offset {offset}: {len} of {of} bytes",
                path.display()
            ),
        }
    }
}

impl std::error::Error for DataError {}
