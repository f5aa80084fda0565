//! The control messages, who may send which when, and their bytes (postcard).

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::role::{Role, RoleKind};
use crate::session::roster::Entry;

/// Version of everything in this crate that both ends must agree on.
pub const PROTOCOL_VERSION: u16 = 4;

/// Where a session stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// TLS is being agreed on.
    Handshake,
    /// Waiting for the peer's hello.
    Hello,
    /// Waiting for the peer's evidence.
    Evidence,
    /// Both sides are verified (as far as we can know: the peer refuses otherwise).
    Open,
    /// Over.
    Closed,
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
        /// Digest of the policy that the sender judges others by.
        policy: [u8; 32],
    },
    /// A quote over the session's [`Binding`](crate::Binding).
    Evidence {
        /// The quote.
        quote: Vec<u8>,
        /// A bundle with the collateral of the sender's platform, or nothing.
        collateral: Vec<u8>,
    },
    /// The sender ends the session.
    Refused(Refusal),
    /// The job's definition, whose digest was in the server's hello.
    Job(Vec<u8>),
    /// A worker's data: what it is, its number of samples and of batches an epoch, and its samples of each class.
    Join {
        /// Root of the Merkle tree over its records.
        data: [u8; 32],
        /// Samples of this worker.
        samples: u64,
        /// Batches that these make.
        batches: u64,
        /// Samples of each class of the job.
        classes: Vec<u64>,
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
        /// Nothing of earlier rounds is in them, though the job's number format carries over what is rounded off.
        fresh: bool,
    },
    /// The job is done.
    Finished {
        /// Steps that were done.
        steps: u64,
        /// SHA-256 of the final parameters.
        parameters: [u8; 32],
    },
    /// Asks for the secret of an application.
    SecretRequest {
        /// Its name in the service's file.
        app_id: String,
    },
    /// The secret, as [`Session::seal`](crate::Session::seal) sealed it for this connection.
    Secret(Vec<u8>),
    /// Asks for the volume with the finished model.
    Pull,
    /// The volume follows in chunks of step 0; what is left out is zero.
    Volume {
        /// Its length in bytes.
        len: u64,
    },
    /// The volume is complete.
    VolumeEnd,
    /// The next entry of the server's roster.
    Admitted(Box<Entry>),
    /// The sender is alive. A client answers a server's with the same number, so that an answer that was on
    /// its way before a question is not taken for one to it.
    Alive {
        /// Questions that the server has asked.
        number: u64,
    },
    /// The parameters of `step`, which follow, are to be tried on the worker's test images.
    Evaluate {
        /// The step.
        step: u64,
    },
    /// What a worker found on its test images.
    Evaluated {
        /// The step whose parameters were tried.
        step: u64,
        /// Images by `class * classes + found`; empty from who has no test images, and need not be asked.
        confusion: Vec<u32>,
    },
    /// Where the time of a worker's step went, for the report; nothing is decided by it.
    Spent(Spent),
    /// The gradients of `step` are to be sent again: another worker lost what it had carried over, so that the sum
    /// is made anew.
    Repeat {
        /// The step that they are of.
        step: u64,
    },
    /// The receiver was left out of a round, the last one or the one at hand: nothing of what it sent, or is about to
    /// send for it, counts.
    Skipped {
        /// The step that the round began with, or the one after it.
        step: u64,
    },
    /// What the last round was made of, before the parameters that came of it: in the program's own form.
    Receipt(Vec<u8>),
    /// Asks for fresh evidence over this connection.
    Attest {
        /// Fresh random bytes, in the place of those of the sender's hello.
        nonce: [u8; 32],
    },
    /// A fresh quote, for the last [`Message::Attest`].
    Attested {
        /// The quote.
        quote: Vec<u8>,
        /// A bundle with the collateral of the sender's platform, or nothing.
        collateral: Vec<u8>,
    },
    /// A server tells a secret service that the checkpoint in the volume of `app_id` is of `step`, and asks which was
    /// the last that the service was told of: who has the disk cannot set that back.
    Witness {
        /// Name of the secret that opens the volume.
        app_id: String,
        /// Digest of the job.
        job: [u8; 32],
        /// Step of the checkpoint, 0 without one.
        step: u64,
    },
    /// The last step of the job that the service was told of, this time included.
    Witnessed {
        /// The step.
        step: u64,
    },
}

/// Microseconds of a worker's step; what takes longer than an hour says the most that there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spent {
    /// Samples of the step.
    pub samples: u32,
    /// Receiving the parameters.
    pub pull: u32,
    /// Forward pass, with making the batch.
    pub forward: u32,
    /// Backward pass, with what is sent meanwhile.
    pub backward: u32,
    /// Sending what the backward pass before this step's left.
    pub push: u32,
    /// Waiting after it, for the others and for the update.
    pub waiting: u32,
}

/// Why a session is ended, as far as the other side may know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// The evidence was not accepted; why is in the log of the one who refused.
    Evidence,
    /// Something was said that may not be said now.
    Protocol,
    /// The role does not exist in this job.
    Role,
    /// Another protocol version.
    Version,
    /// The worker's data is not what it was before.
    Data,
    /// There is no such secret for the peer: unknown, spent, expired or not allowed.
    Secret,
    /// Not now; later perhaps.
    Later,
    /// Another process has the role, and is alive.
    Taken,
    /// The worker's loss or gradients are infinite or no numbers.
    NotFinite,
    /// The server ends, and goes on when it is started again.
    Stopped,
    /// The server ends: it cannot write what has to be kept.
    Unsaved,
    /// The server ends: the training came to infinite values or to no numbers.
    Diverged,
    /// The other's policy is neither ours nor one that ours lists.
    Policy,
    /// The worker does not take this job: what is out of the bounds that it was started with.
    Bounds(Bound),
    /// What the server says of rounds contradicts what it said before, or what the worker sent.
    Receipt,
    /// The server could not begin, and ends.
    Unready(Unready),
}

/// Why a server that somebody has connected to cannot begin its job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unready {
    /// What is kept there is of another job, or cannot be gone on with.
    Job,
    /// There is not enough memory.
    Memory,
    /// The place of the model cannot be read or written.
    Place,
}

impl fmt::Display for Unready {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Job => "what it keeps is no beginning of its job",
            Self::Memory => "it has not enough memory",
            Self::Place => "it cannot use the place where the model is kept",
        })
    }
}

/// A bound that a worker sets on jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Bound {
    /// It takes one job only, which is another.
    Job,
    /// Fewer images in a step than it allows: gradients over few tell what is in them.
    Batch,
    /// More steps than it allows.
    Steps,
    /// A network or data that it was not started for.
    Model,
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Job => "it is not the one of its --job",
            Self::Batch => "a step has fewer images than its --min-batch",
            Self::Steps => "it has more steps than its --max-steps",
            Self::Model => "its network is none of its --models",
        })
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Evidence => "our evidence was not accepted (the other side's log says why)",
            Self::Protocol => "we broke the protocol",
            Self::Role => "the job has no such role",
            Self::Version => "it speaks another protocol version",
            Self::Data => "our data is not what it was when the job began",
            Self::Secret => "it has no secret of this app id for us (the service's log says why)",
            Self::Later => "it cannot do that now",
            Self::Taken => "another process has our role, and is alive",
            Self::NotFinite => "our loss or gradients are not finite",
            Self::Stopped => "it was stopped, and goes on when it is started again",
            Self::Unsaved => {
                "it ended, since it could not write what has to be kept (its log says where)"
            }
            Self::Diverged => "it ended, since the training came to values that are not finite",
            Self::Policy => {
                "it judges others by another policy than we do, and does not list ours (policies)"
            }
            Self::Bounds(bound) => return write!(f, "it does not take the job: {bound}"),
            Self::Receipt => "a receipt of ours contradicts what it knows of its rounds",
            Self::Unready(why) => {
                return write!(f, "it could not begin: {why} (its log says more)");
            }
        })
    }
}

impl Refusal {
    /// Whether the other side ends for reasons of its own, and may come back.
    pub fn is_end(self) -> bool {
        matches!(self, Self::Stopped | Self::Unsaved | Self::Diverged)
    }

    /// The same for the log of the one who refuses.
    pub fn told(self) -> &'static str {
        match self {
            Self::Policy => "its policy is neither ours nor listed in ours",
            Self::Bounds(_) => "its job is out of the bounds that we set",
            Self::Unready(_) => "we could not begin",
            Self::Evidence => "its evidence is not accepted",
            Self::Receipt => "its receipt contradicts what we know of our rounds",
            Self::Protocol => "it broke the protocol",
            Self::Role => "its evidence is for a role that has no place here",
            Self::Version => "it speaks another protocol version",
            Self::Data => "its data is not what it was when the job began",
            Self::Secret => "there is no secret of this app id for it",
            Self::Later => "not now",
            Self::Taken => "another process has its role, and is alive",
            Self::NotFinite => "its loss or gradients are not finite",
            Self::Stopped => "we were stopped",
            Self::Unsaved => "we could not write what has to be kept",
            Self::Diverged => "the training came to values that are not finite",
        }
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
            Self::SecretRequest { .. } => "secret request",
            Self::Secret(_) => "secret",
            Self::Pull => "pull",
            Self::Volume { .. } => "volume",
            Self::VolumeEnd => "end of volume",
            Self::Admitted(_) => "admitted",
            Self::Alive { .. } => "alive",
            Self::Evaluate { .. } => "evaluate",
            Self::Evaluated { .. } => "evaluated",
            Self::Spent(_) => "spent",
            Self::Repeat { .. } => "repeat",
            Self::Skipped { .. } => "skipped",
            Self::Receipt(_) => "receipt",
            Self::Attest { .. } => "question for fresh evidence",
            Self::Attested { .. } => "fresh evidence",
            Self::Witness { .. } => "witness",
            Self::Witnessed { .. } => "witnessed",
        }
    }

    /// Whether a peer may say this in `state`: the whole table. `from_client` tells which side says it,
    /// `sender` what it is, once that is verified.
    pub(crate) fn is_allowed(
        &self,
        state: State,
        from_client: bool,
        sender: Option<RoleKind>,
    ) -> bool {
        use RoleKind::{ParameterServer, SecretService, TrustedNode, Worker};
        let who = match (self, state) {
            (Self::Refused(_), State::Hello | State::Evidence | State::Open) => return true,
            (Self::Hello { .. }, State::Hello) => return true,
            (Self::Evidence { .. }, State::Evidence) => return true,
            (_, State::Handshake | State::Hello | State::Evidence | State::Closed) => return false,
            (message, State::Open) => match message {
                Self::Hello { .. } | Self::Evidence { .. } | Self::Refused(_) => return false,
                Self::Alive { .. } | Self::Attest { .. } | Self::Attested { .. } => {
                    return sender.is_some();
                }
                Self::Join { .. }
                | Self::Gradients { .. }
                | Self::Evaluated { .. }
                | Self::Spent(_) => (true, &[Worker][..]),
                Self::SecretRequest { .. } => (true, &[ParameterServer, Worker, TrustedNode][..]),
                Self::Secret(_) | Self::Witnessed { .. } => (false, &[SecretService][..]),
                Self::Witness { .. } => (true, &[ParameterServer][..]),
                Self::Pull => (true, &[TrustedNode][..]),
                Self::Volume { .. } | Self::VolumeEnd => {
                    (false, &[ParameterServer, TrustedNode][..])
                }
                Self::Admitted(_)
                | Self::Evaluate { .. }
                | Self::Finished { .. }
                | Self::Job(_)
                | Self::Parameters { .. }
                | Self::Receipt(_)
                | Self::Repeat { .. }
                | Self::Skipped { .. } => (false, &[ParameterServer][..]),
            },
        };
        who.0 == from_client && sender.is_some_and(|sender| who.1.contains(&sender))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::roster::Admission;

    fn one_of_each() -> Vec<Message> {
        vec![
            Message::Hello {
                version: 1,
                role: Role::Worker(3),
                nonce: [5; 32],
                job: [6; 32],
                policy: [7; 32],
            },
            Message::Evidence { quote: vec![1, 2, 3], collateral: vec![4] },
            Message::Refused(Refusal::Version),
            Message::Job(vec![9]),
            Message::Join { data: [7; 32], samples: 300, batches: 3, classes: vec![299, 1] },
            Message::Parameters { step: 2, steps: 1000 },
            Message::Gradients { step: 2, samples: 128, loss: 1.5, fresh: true },
            Message::Finished { steps: 1000, parameters: [7; 32] },
            Message::SecretRequest { app_id: "app".into() },
            Message::Secret(vec![4, 5]),
            Message::Pull,
            Message::Volume { len: 1 << 20 },
            Message::VolumeEnd,
            Message::Admitted(Box::new(Entry {
                number: 300,
                previous: [8; 32],
                admission: Admission {
                    role: Role::Worker(1),
                    server: Role::ParameterServer(0),
                    time: 5,
                    keys: [[1; 32]; 2],
                    nonces: [[2; 32]; 2],
                    exporter: [3; 32],
                    job: [4; 32],
                    policies: [[5; 32]; 2],
                    data: Some([6; 32]),
                    quote: vec![1],
                },
            })),
            Message::Repeat { step: 2 },
            Message::Skipped { step: 2 },
            Message::Receipt(vec![7; 300]),
            Message::Attest { nonce: [5; 32] },
            Message::Attested { quote: vec![1, 2, 3], collateral: vec![4] },
            Message::Alive { number: 300 },
            Message::Evaluate { step: 300 },
            Message::Evaluated { step: 300, confusion: vec![7, 0, 300, 9] },
            Message::Spent(Spent {
                samples: 128,
                pull: 1,
                forward: 300,
                backward: 2,
                push: 3,
                waiting: 4,
            }),
            Message::Witness { app_id: "app".into(), job: [6; 32], step: 300 },
            Message::Witnessed { step: 300 },
        ]
    }

    /// The first bytes of each message: the wire cannot drift unnoticed.
    #[test]
    fn golden_bytes() {
        let golden: [&[u8]; 25] = [
            &[0, 1, 1, 3, 5, 5],
            &[1, 3, 1, 2, 3, 1, 4],
            &[2, 3],
            &[3, 1, 9],
            &[4, 7, 7, 7],
            &[5, 2, 0xe8, 7],
            &[6, 2, 0x80, 1, 0, 0, 0xc0, 0x3f, 1],
            &[7, 0xe8, 7, 7, 7],
            &[8, 3, b'a', b'p', b'p'],
            &[9, 2, 4, 5],
            &[10],
            &[11, 0x80, 0x80, 0x40],
            &[12],
            &[13, 0xac, 2, 8, 8],
            &[18, 2],
            &[19, 2],
            &[20, 0xac, 2, 7, 7],
            &[21, 5, 5],
            &[22, 3, 1, 2, 3, 1, 4],
            &[14, 0xac, 2],
            &[15, 0xac, 2],
            &[16, 0xac, 2, 4, 7, 0, 0xac, 2, 9],
            &[17, 0x80, 1, 1, 0xac, 2, 2, 3, 4],
            &[23, 3, b'a', b'p', b'p', 6, 6],
            &[24, 0xac, 2],
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
        let allowed = |state, from_client, sender| -> Vec<&str> {
            let allowed = messages.iter().filter(|m| m.is_allowed(state, from_client, sender));
            allowed.map(Message::name).collect()
        };
        for (from_client, sender) in [(false, None), (true, None), (true, Some(RoleKind::Worker))] {
            assert_eq!(allowed(State::Handshake, from_client, sender), [""; 0]);
            assert_eq!(allowed(State::Hello, from_client, sender), ["hello", "refused"]);
            assert_eq!(allowed(State::Evidence, from_client, sender), ["evidence", "refused"]);
            assert_eq!(allowed(State::Closed, from_client, sender), [""; 0]);
        }
        assert_eq!(allowed(State::Open, true, None), ["refused"]);
        let expected: [(RoleKind, &[&str], &[&str]); 4] = [
            (
                RoleKind::ParameterServer,
                &["secret request", "witness"],
                &[
                    "job",
                    "parameters",
                    "finished",
                    "volume",
                    "end of volume",
                    "admitted",
                    "repeat",
                    "receipt",
                    "skipped",
                    "evaluate",
                ],
            ),
            (RoleKind::Worker, &["join", "gradients", "secret request", "evaluated", "spent"], &[]),
            (RoleKind::SecretService, &[], &["secret", "witnessed"]),
            (RoleKind::TrustedNode, &["secret request", "pull"], &["volume", "end of volume"]),
        ];
        for (kind, as_client, as_server) in expected {
            let both = [(true, as_client), (false, as_server)];
            for (from_client, says) in both {
                let always = ["refused", "alive", "question for fresh evidence", "fresh evidence"];
                let mut says = [&always, says].concat();
                let mut allowed = allowed(State::Open, from_client, Some(kind));
                says.sort_unstable();
                allowed.sort_unstable();
                assert_eq!(allowed, says, "{kind:?}");
            }
        }
    }
}
