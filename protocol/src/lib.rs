//! The conversation: attested, encrypted, framed.
//!
//! ```text
//!            bytes from the socket                       typed events
//!   TCP  --------------------------->  [ Session ]  ---------------------->  role
//!        <---------------------------                <----------------------
//!            bytes to the socket        rustls, frame,    send, send_chunk
//!                                       message, state
//! ```
//!
//! A [`Session`] is one connection as a state machine without sockets, clocks or threads: bytes and the
//! time in, bytes and events out. The same code runs over mio ([`Net`]), in a simulated cluster on
//! virtual time, and under the fuzzer.
//!
//! How two parties come to trust one another:
//!
//! 1. TLS 1.3; each side's self-signed certificate carries a TDX quote over the hash of its key
//!    ([`Identity`]). No tickets, no early data.
//! 2. [`Message::Hello`] both ways: protocol version, role, nonce, digest of the job.
//! 3. [`Message::Evidence`] both ways: a fresh quote whose report data binds this very connection
//!    ([`Binding`]): roles, both keys, both nonces, the TLS exporter and the job.
//! 4. Only when both quotes satisfy the [`Policy`] is any other message accepted.
//!
//! Invariants: a peer's fault ends that peer's session only; nothing is allocated from a number that a
//! peer sent; this crate knows steps and byte ranges, not tensors.

#![forbid(unsafe_code)]

mod azure;
mod binding;
mod certificate;
mod chain;
mod coco;
pub mod dcap;
mod frame;
mod hex;
mod http;
mod limit;
mod message;
mod net;
mod pccs;
mod policy;
mod qgs;
mod quote;
mod remote;
mod roster;
mod seal;
mod session;
mod shelf;
mod sim;
mod tls;
mod token;
mod tpm;
mod tsm;
mod verify;
mod vtpm;

pub use azure::AzureVm;
pub use binding::Binding;
pub use certificate::{CertificateEvidence, Form, Identity};
pub use coco::GuestComponents;
pub use frame::CHUNK_LEN_MAX;
pub use http::{Authority, Url};
pub use message::{Message, PROTOCOL_VERSION, Refusal, Role, RoleKind};
pub use net::{LinkId, Net, Over};
pub use pccs::{FetchError, Pccs};
pub use policy::{Accepted, Measurement, Policy, PolicyError};
pub use qgs::{Host, QuoteService, Stream};
pub use quote::{Body, Quote, QuoteError, Td15, TdReport};
pub use remote::{RemoteError, RemoteVerifier};
pub use roster::{Admission, Entry, ROSTER_MAX, Roster};
pub use session::{Config, Ended, Event, Session};
pub use shelf::Shelf;
pub use sim::SimPlatform;
pub use token::{Keys, Token, TokenError};
pub use tpm::Pcrs;
pub use tsm::ConfigfsTsm;
pub use verify::{Rejection, Trust, Verdict, Verifier};
pub use vtpm::{Evidence, Vtpm};

/// A source of evidence about the TD that this program runs in.
pub trait Attester: Send + Sync {
    /// A quote over 64 bytes of report data; with a virtual TPM's if the guest is measured by one.
    ///
    /// # Errors
    /// What the platform answered instead.
    fn quote(&self, report_data: &[u8; 64]) -> std::io::Result<Vec<u8>>;

    /// A name for logs: where the evidence comes from.
    fn name(&self) -> &'static str;
}

#[cfg(any(test, fuzzing))]
pub mod fuzz;
