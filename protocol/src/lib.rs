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
//! 2. [`Message::Hello`] both ways: protocol version, role, nonce, digests of the job and of the own policy.
//! 3. [`Message::Evidence`] both ways: a fresh quote whose report data binds this very connection
//!    ([`Binding`]): roles, both keys, both nonces, the TLS exporter, the job and both policies. An owner's secret
//!    service and trusted node may show none where the policy lists their key ([`OwnerKey`]).
//! 4. Only when both quotes satisfy the [`Policy`] is any other message accepted.
//! 5. While the session is open each side asks the other anew from time to time ([`Message::Attest`],
//!    [`Message::Attested`]): a quote over the same binding, with a nonce of then in the place of the asker's first.
//!
//! `protocol/model/session.pml` has all of this against a symbolic attacker, and says what each part of the binding is
//! there for; `.ci/model.sh` searches it.
//!
//! Two parties in memory, on simulated platforms that run the same image:
//!
//! ```
//! use std::{error::Error, sync::Arc, time::Duration};
//! use protocol::{Config, Policy, Role, Session, SimPlatform, Trust, Verifier};
//!
//! fn clock() -> u64 {
//!     1_800_000_000
//! }
//! fn party(role: Role) -> Result<Arc<Config>, Box<dyn Error>> {
//!     let platform = SimPlatform::new(clock());
//!     let verifier = Verifier { trust: Trust::Simulated, policy: Policy::same_as(platform.report()) };
//!     Ok(Arc::new(Config::new(role, Arc::new(platform), verifier, clock)?))
//! }
//! /// Carries what one has to say to the other.
//! fn carry(from: &mut Session, to: &mut Session) -> Result<(), Box<dyn Error>> {
//!     let mut bytes = Vec::new();
//!     from.output(&mut bytes)?;
//!     to.receive(&bytes)?;
//!     while to.next_event()?.is_some() {}
//!     Ok(())
//! }
//!
//! let (now, job) = (Duration::ZERO, [9; 32]);
//! let mut worker = Session::client(party(Role::Worker(0))?, "ps0.example", now)?;
//! let mut server = Session::server(party(Role::ParameterServer(0))?, job, now)?;
//! while !(worker.is_open() && server.is_open()) {
//!     carry(&mut worker, &mut server)?;
//!     carry(&mut server, &mut worker)?;
//! }
//! assert_eq!(server.peer().map(|peer| peer.role), Some(Role::Worker(0)));
//! # Ok::<(), Box<dyn Error>>(())
//! ```
//!
//! Invariants: a peer's fault ends that peer's session only; nothing is allocated from a number that a
//! peer sent; this crate knows steps and byte ranges, not tensors.
//!
#![doc = include_str!("../ATTACKS.md")]
#![forbid(unsafe_code)]

mod certified;
mod evidence;
mod hex;
mod http;
mod identity;
pub mod judge;
mod limit;
mod rejection;
mod role;
mod services;
mod session;

pub use evidence::azure::AzureVm;
pub use evidence::boot::{Acpi, Boot, Expected};
pub use evidence::coco::GuestComponents;
pub use evidence::event_log::{EventLog, EventLogError, Logged};
pub use evidence::qgs::{Host, QuoteService, Stream};
pub use evidence::quote::{Body, Quote, QuoteError, Td15, TdReport};
pub use evidence::sim::{SimPlatform, is_simulated};
pub use evidence::tdvf::{BootError, Pages};
pub use evidence::tpm::Pcrs;
pub use evidence::tsm::ConfigfsTsm;
pub use evidence::vtpm::{Evidence, Vtpm};
pub use hex::{hex, unhex};
pub use http::{Authority, Url};
pub use identity::binding::Binding;
pub use identity::certificate::Identity;
pub use identity::evidence::{CertificateEvidence, Form};
pub use identity::owner::OwnerKey;
pub use judge::dcap;
pub use judge::policy::{Accepted, Measurement, Policy, PolicyError, Whose};
pub use judge::remote::{RemoteError, RemoteVerifier};
pub use judge::token::{Keys, Token, TokenError};
pub use judge::verify::{Trust, Verdict, Verifier};
pub use rejection::{Differing, Rejection};
pub use role::{Role, RoleKind};
pub use services::cdh::{Resource, ResourceError};
pub use services::collateral_store::CollateralStore;
pub use services::pccs::{FetchError, Pccs};
pub use session::close::CloseReason;
pub use session::config::Config;
pub use session::frame::CHUNK_LEN_MAX;
pub use session::link::Link;
pub use session::message::{Bound, Message, PROTOCOL_VERSION, Refusal, Spent, Unready};
pub use session::net::{LinkId, Net, Over, OwnQuote};
pub use session::roster::{Admission, Entry, ROSTER_MAX, Roster};
pub use session::{Event, Peer, Session};

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
