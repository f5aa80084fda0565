//! The control messages, who may send which when, and their bytes (postcard).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::session::State;

/// Version of everything in this crate that both ends must agree on.
pub const PROTOCOL_VERSION: u16 = 1;

/// A part in a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Role {
    /// Keeps parameters and optimiser state.
    ParameterServer(u16),
    /// Computes gradients on its own data.
    Worker(u16),
}

/// A control message. Values travel in chunks beside them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Message {
    /// First words of both sides.
    Hello {
        /// [`PROTOCOL_VERSION`] of the sender.
        version: u16,
        /// What the sender is.
        role: Role,
        /// Fresh random bytes.
        nonce: [u8; 32],
        /// Digest of the server's job; zero from a client.
        job: [u8; 32],
    },
    /// A quote over the session's [`Binding`](crate::Binding).
    Evidence {
        /// The quote.
        quote: Vec<u8>,
    },
    /// The sender ends the session.
    Refused(Refusal),
    /// The job's definition, whose digest was in the server's hello.
    Job(Vec<u8>),
    /// A worker's data: its number of samples and of batches an epoch.
    Join {
        /// Samples of this worker.
        samples: u64,
        /// Batches that these make.
        batches: u64,
    },
    /// The parameters of `step` follow in chunks.
    Parameters {
        /// The step that they are for.
        step: u64,
        /// Steps of the whole job.
        steps: u64,
    },
    /// The gradients of `step` follow in chunks.
    Gradients {
        /// The step that they are of.
        step: u64,
        /// Samples of the batch.
        samples: u32,
        /// Mean loss of the batch.
        loss: f32,
    },
    /// The job is done.
    Finished {
        /// Steps that were done.
        steps: u64,
        /// SHA-256 of the final parameters.
        parameters: [u8; 32],
    },
}

/// Why a session is ended, as far as the other side may know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// The evidence was not accepted; why is in the log of the one who refused.
    Evidence,
    /// Something was said that may not be said now.
    Protocol,
    /// The role does not exist in this job, or is taken.
    Role,
    /// Another protocol version.
    Version,
    /// The worker's data is not what it was before.
    Data,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Evidence => "our evidence was not accepted (the other side's log says why)",
            Self::Protocol => "we broke the protocol",
            Self::Role => "the role does not exist in this job, or another process has it",
            Self::Version => "it speaks another protocol version",
            Self::Data => "our data is not what it was when the job began",
        })
    }
}

impl Message {
    /// The message's bytes.
    pub(crate) fn encode(&self) -> Vec<u8> {
        postcard::to_allocvec(self).expect("messages have no unsized parts")
    }

    /// A message from exactly these bytes.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        postcard::take_from_bytes(bytes).ok().filter(|(_, rest)| rest.is_empty()).map(|(m, _)| m)
    }

    /// A name for logs.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Hello { .. } => "hello",
            Self::Evidence { .. } => "evidence",
            Self::Refused(_) => "refused",
            Self::Job(_) => "job",
            Self::Join { .. } => "join",
            Self::Parameters { .. } => "parameters",
            Self::Gradients { .. } => "gradients",
            Self::Finished { .. } => "finished",
        }
    }

    /// Whether a peer may say this in `state`: the whole table. `from_client` tells which side says it.
    pub(crate) fn is_allowed(&self, state: State, from_client: bool) -> bool {
        match (self, state) {
            (Self::Refused(_), State::Hello | State::Evidence | State::Open) => true,
            (Self::Hello { .. }, State::Hello) | (Self::Evidence { .. }, State::Evidence) => true,
            (Self::Job(_) | Self::Parameters { .. } | Self::Finished { .. }, State::Open) => {
                !from_client
            }
            (Self::Join { .. } | Self::Gradients { .. }, State::Open) => from_client,
            _ => false,
        }
    }
}

impl Role {
    /// Four bytes, for digests.
    pub(crate) fn encode(self) -> [u8; 4] {
        let (kind, index) = match self {
            Self::ParameterServer(index) => (0, index),
            Self::Worker(index) => (1, index),
        };
        let [low, high] = index.to_le_bytes();
        [kind, 0, low, high]
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::ParameterServer(index) => write!(f, "ps{index}"),
            Self::Worker(index) => write!(f, "worker{index}"),
        }
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |digits: &str| digits.parse::<u16>().ok().filter(|n| n.to_string() == digits);
        let role = match (text.strip_prefix("ps"), text.strip_prefix("worker")) {
            (Some(digits), _) => number(digits).map(Self::ParameterServer),
            (_, Some(digits)) => number(digits).map(Self::Worker),
            _ => None,
        };
        role.ok_or_else(|| "expected ps0, worker0, worker1, ...".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one_of_each() -> Vec<Message> {
        vec![
            Message::Hello { version: 1, role: Role::Worker(3), nonce: [5; 32], job: [6; 32] },
            Message::Evidence { quote: vec![1, 2, 3] },
            Message::Refused(Refusal::Version),
            Message::Job(vec![9]),
            Message::Join { samples: 300, batches: 3 },
            Message::Parameters { step: 2, steps: 1000 },
            Message::Gradients { step: 2, samples: 128, loss: 1.5 },
            Message::Finished { steps: 1000, parameters: [7; 32] },
        ]
    }

    /// The first bytes of each message: the wire cannot drift unnoticed.
    #[test]
    fn golden_bytes() {
        let golden: [&[u8]; 8] = [
            &[0, 1, 1, 3, 5, 5],
            &[1, 3, 1, 2, 3],
            &[2, 3],
            &[3, 1, 9],
            &[4, 0xac, 2, 3],
            &[5, 2, 0xe8, 7],
            &[6, 2, 0x80, 1, 0, 0, 0xc0, 0x3f],
            &[7, 0xe8, 7, 7, 7],
        ];
        for (message, golden) in one_of_each().iter().zip(golden) {
            let bytes = message.encode();
            assert_eq!(&bytes[..golden.len()], golden, "{}", message.name());
            assert_eq!(Message::parse(&bytes).as_ref(), Some(message));
            assert_eq!(Message::parse(&[&bytes[..], &[0]].concat()), None, "trailing byte");
        }
    }

    #[test]
    fn the_table_allows_nothing_but_attestation_before_open() {
        let messages = one_of_each();
        let allowed = |state, from_client| -> Vec<&str> {
            let allowed = messages.iter().filter(|m| m.is_allowed(state, from_client));
            allowed.map(Message::name).collect()
        };
        for from_client in [false, true] {
            assert_eq!(allowed(State::Handshake, from_client), [""; 0]);
            assert_eq!(allowed(State::Hello, from_client), ["hello", "refused"]);
            assert_eq!(allowed(State::Evidence, from_client), ["evidence", "refused"]);
            assert_eq!(allowed(State::Closed, from_client), [""; 0]);
        }
        assert_eq!(allowed(State::Open, true), ["refused", "join", "gradients"]);
        assert_eq!(allowed(State::Open, false), ["refused", "job", "parameters", "finished"]);
    }

    #[test]
    fn roles_read_as_they_print() {
        for role in [Role::ParameterServer(0), Role::Worker(0), Role::Worker(65_535)] {
            assert_eq!(role.to_string().parse(), Ok(role));
        }
        for bad in ["", "ps", "worker-1", "worker01", "worker65536", "chief0"] {
            assert!(bad.parse::<Role>().is_err(), "{bad}");
        }
    }
}
