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
//!
//! What strangers and hosts try, what stands against it, and the test that holds it:
//!
//! * A stolen or public quote makes the verifier fetch or ask: binding and measurements are checked
//!   first, and a certificate never makes anybody ask.
//!   `services::pccs`:
//!   `only_accepted_code_over_this_very_connection_makes_anybody_ask`
//! * A service that does not answer stalls everybody: it is asked on a thread, once for one kind of
//!   platform, at most four at a time; the session waits, the loop does not.
//!   `session::net`:
//!   `a_service_that_does_not_answer_is_asked_once_and_holds_up_nobody_else`
//! * A name server that does not answer stalls everybody: as above.
//!   `session::net`:
//!   `a_name_is_looked_up_meanwhile_and_one_that_nobody_has_ends_the_connection`
//! * Idle, dripping, garbage and thieving connections take every place: verified peers have places of
//!   their own; of the others the network that has most loses its oldest.
//!   `session::net`:
//!   `strangers_of_every_kind_neither_end_a_conversation_nor_keep_anybody_out`
//! * Strangers use up the rate of an address, which is a proxy's: beyond the rate they share few
//!   places, nobody is refused; who attests does not count.
//!   `secrets`:
//!   `one_shot_secrets_reloading_and_a_restart`
//! * A peer, or a file named last, has documents of a lower evaluation number: per platform the newest
//!   authentic document of each kind decides, and the highest number is remembered.
//!   `services::collateral_store`:
//!   `the_newest_document_of_each_kind_decides_whatever_brought_it_and_is_never_undercut`
//! * The host sets the clock back, to hide what was revoked since: what Intel signed last names it.
//!   `services::collateral_store`:
//!   `a_clock_that_is_behind_is_named_whoever_hides_the_newer_documents`
//! * A second process takes a worker's place with other data: refused while the first is alive, and
//!   later by the digest in the roster.
//!   `processes` of the program:
//!   `a_port_in_use_an_unknown_host_and_a_taken_role_are_clear_ends`
//! * The same guest starts another container: MRCONFIGID counts where it is set.
//!   `judge::policy`:
//!   `the_configuration_counts_where_there_is_one_and_each_register_that_differs_is_named`
//! * A relay shows an honest party's fresh quote on a connection of its own: the exporter differs.
//!   `session::tests`:
//!   `a_tls_terminating_man_in_the_middle_is_refused`
//!   `.ci/model.sh` searches it for both ends' keys lost (`protocol/model/session.pml`): it holds with the exporter,
//!   and fails without
//! * A quote of an earlier connection, or our own shown to us: nonces, keys and direction are bound.
//!   `session::tests`:
//!   `a_replayed_quote_of_an_honest_session_is_refused`
//! * A TD turns to something else once it is in: open sessions are attested anew, over a nonce of then.
//!   `session::reattest`:
//!   `who_runs_something_else_by_now_leaves_with_the_reason`
//! * A host's quote service stalls the loop that serves everybody: our quotes are made on a thread.
//!   `session::reattest`:
//!   `a_quote_that_takes_its_time_holds_up_nothing_else`
//! * A certificate without evidence, or with another's: refused before anything else is said.
//!   `session::tests`:
//!   `certificates_without_evidence_or_with_stolen_evidence_are_refused`
//! * The host starts the genuine program as secret service, with secrets of its own: no measurement makes a secret
//!   service unless its owner says so, and keys say whose it is.
//!   `session::tests`:
//!   `the_genuine_program_is_no_secret_service_of_another_owner`
//! * The key of an owner is used for another role: it stands for evidence in its own only.
//!   `session::tests`:
//!   `an_owner_without_a_td_is_known_by_its_key_in_its_role_only`
//! * A participant has a lax policy and lets others in: policies are bound, and the same or listed.
//!   `session::tests`:
//!   `participants_judge_by_one_policy_or_by_ones_that_they_list`
//! * A server asks for one step of one picture: a worker's bounds.
//!   `job::bounds` of the program:
//!   `each_bound_is_a_bound_and_a_named_job_is_the_only_one`
//! * Somebody is left out of, or put into, the list of who took part: a chain, each entry bound to its evidence.
//!   `session::roster`:
//!   `a_chain_grows_and_nothing_else`
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
