//! `Contradiction`: what a server says of a round that cannot be, kept as evidence.

use std::fmt;

use serde::Serialize;

use crate::job::receipt::{Hash, Receipt, Share};
use protocol::{Roster, hex};

/// The file of a worker for a job.
pub fn file_of(worker: u16, job: &Hash) -> String {
    format!("contradiction-worker{worker}-{}.json", hex(&job[..4]))
}

/// What cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Another head than this one for the same step.
    TwoHeads(Hash),
    /// Our contribution is not in it, or another is.
    Lacks(Share),
    /// The chain over our contributions is not this one.
    Chain(Hash),
    /// The parameters that came with it have this hash.
    Parameters(Hash),
    /// A worker's contribution is not in it, though no round of the job closes without everybody.
    Without(u16),
}

/// A receipt that contradicts what we know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contradiction {
    /// Updates after the round that it is about.
    pub step: u64,
    /// What cannot be.
    pub kind: Kind,
    /// What the server says.
    pub told: Receipt,
    /// The last receipt before it.
    pub last: Option<Receipt>,
}

impl fmt::Display for Contradiction {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let step = self.step;
        match self.kind {
            Kind::TwoHeads(_) => {
                write!(f, "two receipts of one round, which ended after step {step}")
            }
            Kind::Lacks(_) => {
                write!(f, "our contribution is not in the round that ended after step {step}")
            }
            Kind::Chain(_) => write!(
                f,
                "by the receipt of the round that ended after step {step} our earlier contributions were others"
            ),
            Kind::Without(worker) => {
                write!(f, "the round that ended after step {step} is without worker{worker}")
            }
            Kind::Parameters(_) => {
                write!(f, "the parameters of step {step} are not those that its receipt names")
            }
        }
    }
}

/// The file's fields: hashes and receipts in hexadecimal.
#[derive(Serialize)]
struct Written<'a> {
    what: String,
    worker: u16,
    step: u64,
    /// What we know instead.
    ours: String,
    samples: Option<u32>,
    told: &'a Receipt,
    told_head: String,
    last: Option<&'a Receipt>,
    /// SHA-256 of the server's public key, by which its evidence is in our roster.
    server_key: String,
    /// Our roster, as entries and head.
    roster: (usize, String),
}

impl Contradiction {
    /// The file's bytes: what `worker` was told by the server of this key, whose roster this is.
    pub fn encode(&self, worker: u16, key: &Hash, roster: &Roster) -> Vec<u8> {
        let (ours, samples) = match self.kind {
            Kind::Lacks(share) => (share.hash, Some(share.samples)),
            Kind::TwoHeads(hash) | Kind::Chain(hash) | Kind::Parameters(hash) => (hash, None),
            Kind::Without(_) => ([0; 32], None),
        };
        let written = Written {
            what: self.to_string(),
            worker,
            step: self.step,
            ours: hex(&ours),
            samples,
            told: &self.told,
            told_head: hex(&self.told.head()),
            last: self.last.as_ref(),
            server_key: hex(key),
            roster: (roster.entries().len(), hex(roster.head())),
        };
        let mut text = serde_json::to_vec_pretty(&written).expect("plain text and numbers");
        text.push(b'\n');
        text
    }
}
