//! One connection as a sans-IO state machine: TLS, frames, messages, attestation.
//!
//! Methods come in four kinds:
//!
//! * what it is: [`Session::is_open`], [`Session::peer`], [`Session::wants_input`], …
//! * in from network and time: [`Session::receive`], [`Session::handle_timeout`]
//! * commands of the role: [`Session::send`], [`Session::send_chunk`], [`Session::close`]
//! * out: [`Session::next_event`] (call it until `None` after every input), [`Session::output`]
//!
//! ```text
//! Handshake --TLS done, hello sent--> Hello --peer's hello, evidence sent--> Evidence
//!                                               --peer's quote verified--> Open --> Closed
//! ```
//!
//! A session never waits: what only a service can tell about evidence is a question that its owner takes, has asked
//! elsewhere, and answers. Until then nothing that the peer says is looked at.

mod alive;
mod asking;
pub(crate) mod close;
pub(crate) mod config;
pub(crate) mod frame;
mod fresh;
mod inquiry;
mod judging;
pub(crate) mod link;
pub(crate) mod message;
pub(crate) mod net;
mod places;
mod reattest;
mod returning;
pub(crate) mod roster;
mod seal;
mod socket;
pub(crate) mod tls;

use std::fmt;
use std::io::{self, BufRead, IoSlice, Write};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConnection, Connection, ServerConnection};
use zeroize::Zeroizing;

use crate::identity::certificate::spki_hash;
use crate::judge::policy::Policy;
use crate::judge::verify::Verdict;
use crate::rejection::Rejection;
use crate::role::Role;
use crate::session::asking::Asking;
use crate::session::close::{CloseReason, OPEN_TIMEOUT};
use crate::session::config::{Config, nonce};
use crate::session::frame::{FRAME_LEN_MAX, Frame};
use crate::session::fresh::Fresh;
use crate::session::message::{Message, PROTOCOL_VERSION, Refusal, State};
use crate::session::roster::Admission;
use crate::session::tls::rejection;

/// Label of the exporter that gives the key for secrets.
const SECRET_LABEL: &[u8] = b"EXPORTER-hfl-secret-v1";

/// Something that the role has to know.
#[derive(Debug)]
pub enum Event<'a> {
    /// The peer is verified.
    Opened,
    /// A control message.
    Message(Message),
    /// Values. They are gone with the next call of [`Session::next_event`], unless held.
    Chunk {
        /// The step that they belong to.
        step: u64,
        /// Where they begin in the flat buffer, in bytes.
        offset: u64,
        /// Little-endian values.
        data: &'a [u8],
    },
}

/// A verified peer.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its role.
    pub role: Role,
    /// What its quote says; `None` where its key stands in the place of evidence.
    pub verdict: Option<Verdict>,
    /// SHA-256 of its SubjectPublicKeyInfo.
    pub key: [u8; 32],
}

impl Peer {
    /// Judges the peer once more, by the rules of one thing that it asks for.
    ///
    /// # Errors
    /// The first reason to refuse it.
    pub fn satisfies(&self, policy: &Policy, now: u64) -> Result<(), Rejection> {
        policy.check_key(self.role, &self.key)?;
        match &self.verdict {
            Some(verdict) => verdict.satisfies(policy, self.role, now),
            None if policy.vouches(Some(self.role), &self.key) => Ok(()),
            None => Err(Rejection::MissingEvidence),
        }
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Session({:?}, peer {:?})", self.state, self.peer.as_ref().map(|peer| peer.role))
    }
}

/// What the peer said in its hello, and its key; not verified before `peer` is set.
#[derive(Clone, Copy, Debug)]
struct Claimed {
    role: Role,
    nonce: [u8; 32],
    key: [u8; 32],
    /// Digest of the policy that it judges others by.
    policy: [u8; 32],
}

/// One connection.
pub struct Session {
    config: Arc<Config>,
    tls: Connection,
    state: State,
    job: [u8; 32],
    nonce: [u8; 32],
    claimed: Option<Claimed>,
    peer: Option<Peer>,
    admission: Option<Admission>,
    asking: Asking,
    fresh: Fresh,
    announced: bool,
    /// Decrypted bytes; the first `done` of them are used up.
    plain: Vec<u8>,
    done: usize,
    /// Length of the chunk frame that the role is looking at.
    shown: usize,
    deadline: Duration,
    bytes: [u64; 2],
    /// When a byte last came and went, as far as the times that we were told say.
    heard: Duration,
    said: Duration,
    /// Questions for a sign of life that a server asked, and the last that its client answered.
    probes: u64,
    answered: u64,
    /// A sign of life that is to be said once everything before it is out.
    owed: Option<u64>,
    /// Whether one came or went since we were told the time.
    has_heard: bool,
    has_said: bool,
}

impl Session {
    /// The side that connects. It adopts the job of the server that it verifies.
    ///
    /// # Errors
    /// When `server` is no possible name of a server, or there are no random numbers.
    pub fn client(config: Arc<Config>, server: &str, now: Duration) -> Result<Self, CloseReason> {
        let name = ServerName::try_from(server.to_owned()).map_err(|_| {
            CloseReason::Io(io::Error::other(format!("'{server}' is no host name")))
        })?;
        let tls = ClientConnection::new(Arc::clone(&config.tls.client), name)
            .map_err(CloseReason::Tls)?;
        Self::new(config, Connection::Client(tls), [0; 32], now)
    }

    /// The side that was connected to; `job` is the digest of the server's job.
    ///
    /// # Errors
    /// When there are no random numbers.
    pub fn server(config: Arc<Config>, job: [u8; 32], now: Duration) -> Result<Self, CloseReason> {
        let tls =
            ServerConnection::new(Arc::clone(&config.tls.server)).map_err(CloseReason::Tls)?;
        Self::new(config, Connection::Server(tls), job, now)
    }

    fn new(
        config: Arc<Config>,
        mut tls: Connection,
        job: [u8; 32],
        now: Duration,
    ) -> Result<Self, CloseReason> {
        // What is queued is bounded by the role: one chunk, and messages.
        tls.set_buffer_limit(None);
        let nonce = nonce().map_err(CloseReason::Io)?;
        Ok(Self {
            config,
            tls,
            state: State::Handshake,
            job,
            nonce,
            claimed: None,
            peer: None,
            admission: None,
            asking: Asking::default(),
            fresh: Fresh::default(),
            announced: false,
            plain: Vec::new(),
            done: 0,
            shown: 0,
            deadline: now + OPEN_TIMEOUT,
            bytes: [0; 2],
            heard: now,
            said: now,
            probes: 0,
            answered: 0,
            owed: None,
            has_heard: false,
            has_said: false,
        })
    }

    /// Whether both sides are verified and the role may talk.
    pub fn is_open(&self) -> bool {
        self.state == State::Open
    }

    /// Whether the peer showed a certificate whose key it has and whose evidence may be accepted.
    pub(crate) fn has_certificate(&self) -> bool {
        matches!(self.state, State::Hello | State::Evidence | State::Open)
    }

    /// The verified peer.
    pub fn peer(&self) -> Option<&Peer> {
        self.peer.as_ref()
    }

    /// A verified client's evidence, for the roster; a client has none of its server.
    pub fn admission(&self) -> Option<&Admission> {
        self.admission.as_ref()
    }

    /// Digest of the job that both sides are bound to.
    pub fn job(&self) -> &[u8; 32] {
        &self.job
    }

    /// Whether there is room for more input: false while the role leaves chunks unused.
    pub fn wants_input(&self) -> bool {
        self.plain.len() - self.done < FRAME_LEN_MAX
    }

    /// Whether bytes wait to be sent.
    pub fn wants_output(&self) -> bool {
        self.tls.wants_write()
    }

    /// Bytes received and sent so far, as they are on the wire.
    pub fn bytes(&self) -> [u64; 2] {
        self.bytes
    }

    /// Takes bytes from the network.
    ///
    /// # Errors
    /// When TLS or the evidence in the peer's certificate is not accepted. The session is over then,
    /// but what [`Session::output`] still gives (an alert) should be sent.
    pub fn receive(&mut self, mut bytes: &[u8]) -> Result<(), CloseReason> {
        self.bytes[0] += bytes.len() as u64;
        self.has_heard = true;
        while !bytes.is_empty() {
            let end = |error: rustls::Error| match rejection(&error) {
                Some(rejection) => CloseReason::Rejected(rejection),
                None => CloseReason::Tls(error),
            };
            self.tls.read_tls(&mut bytes).map_err(CloseReason::Io)?;
            if let Err(error) = self.tls.process_new_packets() {
                self.state = State::Closed;
                return Err(end(error));
            }
            self.take_plain().map_err(CloseReason::Io)?;
        }
        if self.state == State::Handshake && !self.tls.is_handshaking() {
            self.state = State::Hello;
            let role = self.config.role;
            let version = PROTOCOL_VERSION;
            let (job, policy) = (self.job, self.config.policy);
            self.put(&Message::Hello { version, role, nonce: self.nonce, job, policy })?;
        }
        Ok(())
    }

    /// Takes what is decrypted, record by record: a reader would clear room for what it does not know to be there.
    fn take_plain(&mut self) -> io::Result<()> {
        let mut reader = self.tls.reader();
        loop {
            let len = match reader.fill_buf() {
                Ok([]) => return Ok(()),
                Ok(record) => {
                    self.plain.extend_from_slice(record);
                    record.len()
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            reader.consume(len);
        }
    }

    /// What the peer says it is, verified or not.
    pub fn claimed(&self) -> Option<Role> {
        self.claimed.map(|claimed| claimed.role)
    }

    /// The next thing that the role has to know, or `None` until more input comes.
    ///
    /// # Errors
    /// When the peer breaks the protocol or is refused. The session is over then; the peer is told by
    /// what [`Session::output`] still gives.
    pub fn next_event(&mut self) -> Result<Option<Event<'_>>, CloseReason> {
        self.done += std::mem::take(&mut self.shown);
        self.say_owed()?;
        if let Some(message) = self.judge_again()? {
            return Ok(Some(Event::Message(message)));
        }
        self.show_own().map_err(|why| self.end(why))?;
        if self.is_asking() || self.lacks_own() {
            return Ok(None);
        }
        loop {
            if self.state == State::Open && !self.announced {
                self.announced = true;
                return Ok(Some(Event::Opened));
            }
            let parsed = frame::parse(&self.plain[self.done..]);
            let (len, message) = match parsed {
                Err(error) => return Err(self.end(CloseReason::Frame(error))),
                Ok(None) => {
                    self.plain.drain(..self.done);
                    self.done = 0;
                    return Ok(None);
                }
                Ok(Some((Frame::Chunk { .. }, len))) => (len, None),
                Ok(Some((Frame::Message(bytes), len))) => (len, Some(Message::parse(bytes))),
            };
            match message {
                None if self.state != State::Open => {
                    return Err(self.end(CloseReason::NotAllowed("chunk")));
                }
                None => {
                    self.shown = len;
                    return Ok(self.shown_chunk());
                }
                Some(None) => return Err(self.end(CloseReason::Malformed)),
                Some(Some(message)) => {
                    self.done += len;
                    if let Some(message) = self.handle(message).map_err(|why| self.end(why))? {
                        return Ok(Some(Event::Message(message)));
                    }
                    if self.is_asking() || self.lacks_own() {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// Keeps the chunk that was shown: the next call of [`Session::next_event`] shows it again.
    pub fn hold(&mut self) {
        self.shown = 0;
    }

    /// Queues a message.
    ///
    /// # Errors
    /// When the session is not open.
    pub fn send(&mut self, message: &Message) -> Result<(), CloseReason> {
        if !self.is_open() {
            return Err(CloseReason::ByUs);
        }
        self.put(message)
    }

    /// Queues values at `offset` bytes of the flat buffer of `step`.
    ///
    /// # Errors
    /// When the session is not open.
    pub fn send_chunk(&mut self, step: u64, offset: u64, data: &[u8]) -> Result<(), CloseReason> {
        if !self.is_open() {
            return Err(CloseReason::ByUs);
        }
        let head = frame::chunk_head(step, offset, data.len());
        self.write(&head, data)
    }

    /// Encrypts a secret under a key that only the two ends of this connection have, so that it lies in
    /// no buffer of the layers below in the clear. At most a few a connection: the nonce is random.
    ///
    /// # Errors
    /// When the session is not open.
    pub fn seal(&mut self, secret: &[u8]) -> Result<Vec<u8>, CloseReason> {
        let key = self.secret_key()?;
        seal::seal(&key, secret).map_err(|error| self.end(CloseReason::Io(error)))
    }

    /// Decrypts what the peer sealed.
    ///
    /// # Errors
    /// When it was not sealed for this connection.
    pub fn unseal(&mut self, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, CloseReason> {
        let key = self.secret_key()?;
        seal::unseal(&key, sealed).ok_or_else(|| self.end(CloseReason::Malformed))
    }

    fn secret_key(&mut self) -> Result<Zeroizing<[u8; 32]>, CloseReason> {
        if !self.is_open() {
            return Err(CloseReason::ByUs);
        }
        let key = self.tls.export_keying_material([0; 32], SECRET_LABEL, None);
        key.map(Zeroizing::new).map_err(CloseReason::Tls)
    }

    /// Says goodbye; with a reason if the peer is at fault.
    pub fn close(&mut self, refusal: Option<Refusal>) -> CloseReason {
        self.end(refusal.map_or(CloseReason::ByUs, CloseReason::Refused))
    }

    /// Writes queued bytes until none are left or `sink` would block.
    ///
    /// # Errors
    /// Those of `sink`, without the one that says it would block.
    pub fn output(&mut self, sink: &mut dyn Write) -> io::Result<()> {
        while self.tls.wants_write() {
            match self.tls.write_tls(sink) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(len) => self.bytes[1] += len as u64,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn shown_chunk(&self) -> Option<Event<'_>> {
        match frame::parse(&self.plain[self.done..]) {
            Ok(Some((Frame::Chunk { step, offset, data }, _))) => {
                Some(Event::Chunk { step, offset, data })
            }
            _ => None,
        }
    }

    /// The one place where messages meet states. Returns those that are the role's business.
    fn handle(&mut self, message: Message) -> Result<Option<Message>, CloseReason> {
        let from_client = matches!(self.tls, Connection::Server(_));
        let sender = self.peer.as_ref().map(|peer| peer.role.kind());
        if !message.is_allowed(self.state, from_client, sender) {
            return Err(CloseReason::NotAllowed(message.name()));
        }
        match message {
            Message::Hello { version, .. } if version != PROTOCOL_VERSION => {
                Err(CloseReason::Version(version))
            }
            Message::Hello { role, nonce, job, policy, .. } => {
                self.handle_hello(role, nonce, job, policy).map(|()| None)
            }
            Message::Evidence { quote, collateral } => {
                self.handle_evidence(quote, collateral).map(|()| None)
            }
            Message::Attest { nonce } => self.handle_attest(nonce).map(|()| None),
            Message::Attested { .. } if self.asked_nonce().is_none() => {
                Err(CloseReason::NotAllowed("evidence that was not asked for"))
            }
            Message::Attested { quote, collateral } => {
                self.handle_attested(quote, collateral).map(|()| None)
            }
            Message::Refused(refusal) => Err(CloseReason::RefusedByPeer(refusal)),
            Message::Alive { number } if from_client => {
                if number > self.probes {
                    return Err(CloseReason::NotAllowed("an answer to no question"));
                }
                self.answered = self.answered.max(number);
                Ok(None)
            }
            Message::Alive { number } => {
                self.owed = Some(number);
                self.say_owed().map(|()| None)
            }
            other => Ok(Some(other)),
        }
    }

    fn handle_hello(
        &mut self,
        role: Role,
        nonce: [u8; 32],
        job: [u8; 32],
        policy: [u8; 32],
    ) -> Result<(), CloseReason> {
        let certificate = self.tls.peer_certificates().and_then(|chain| chain.first());
        let certificate = certificate.ok_or(CloseReason::Rejected(Rejection::MissingEvidence))?;
        let key = spki_hash(certificate).map_err(CloseReason::Rejected)?;
        if key == self.config.identity.spki_hash || nonce == self.nonce {
            return Err(CloseReason::Rejected(Rejection::Reflection));
        }
        if matches!(self.tls, Connection::Client(_)) {
            self.job = job;
        }
        self.claimed = Some(Claimed { role, nonce, key, policy });
        let report_data = self.report_data(true, None)?;
        self.state = State::Evidence;
        self.quote_own(report_data)
    }

    fn put(&mut self, message: &Message) -> Result<(), CloseReason> {
        let bytes = message.encode();
        let head = frame::message_head(bytes.len());
        self.write(&head, &bytes)
    }

    /// Encrypts head and body together, so that they share records.
    fn write(&mut self, head: &[u8], body: &[u8]) -> Result<(), CloseReason> {
        self.has_said = true;
        let mut parts = [IoSlice::new(head), IoSlice::new(body)];
        let mut parts = &mut parts[..];
        while !parts.is_empty() {
            let len = self.tls.writer().write_vectored(parts).map_err(CloseReason::Io)?;
            IoSlice::advance_slices(&mut parts, len);
            while parts.first().is_some_and(|part| part.is_empty()) {
                parts = &mut parts[1..];
            }
        }
        Ok(())
    }

    /// Ends the session and tells the peer as much as it may know.
    fn end(&mut self, why: CloseReason) -> CloseReason {
        if self.state != State::Closed && self.state != State::Handshake {
            if let Some(refusal) = why.refusal() {
                // The connection may be broken already; then the peer learns nothing.
                let _ = self.put(&Message::Refused(refusal));
            }
            self.tls.send_close_notify();
        }
        self.state = State::Closed;
        why
    }
}

#[cfg(test)]
mod tests;
