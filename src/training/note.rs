//! What a parameter server tells those who watch it; nothing in it decides anything.

use std::fmt;

use protocol::{Role, Spent};

/// Something worth a line, an event, or a place in the report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// A worker is part of the rounds from now on.
    Joined {
        /// Its number.
        worker: u16,
        /// Whether it was before.
        returns: bool,
        /// Samples that it has.
        samples: u64,
        /// What its data is, and who is here now.
        detail: String,
    },
    /// For who runs the job, who may want to choose otherwise.
    Advised(String),
    /// For the log.
    Said(String),
    /// Where the time of a worker's step went.
    Spent {
        /// Its number.
        worker: u16,
        /// The times.
        spent: Spent,
    },
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Joined { worker, returns, samples, detail } => {
                let how = if *returns { "is back" } else { "joined" };
                write!(f, "{}: {how}, {samples} samples, {detail}", Role::Worker(*worker))
            }
            Self::Advised(text) | Self::Said(text) => f.write_str(text),
            Self::Spent { worker, spent, .. } => {
                write!(f, "{}: {spent:?}", Role::Worker(*worker))
            }
        }
    }
}
