//! `CloseReason`: why a session is over, in words, and how much of it the peer is told.

use std::fmt;
use std::io;
use std::time::Duration;

use crate::rejection::Rejection;
use crate::role::Role;
use crate::session::frame::FrameError;
use crate::session::message::{PROTOCOL_VERSION, Refusal};

/// Time for handshake and evidence together; a quote takes about a second.
pub(crate) const OPEN_TIMEOUT: Duration = Duration::from_secs(30);

/// A server that lets nothing be heard for so long is gone: a client ends the session and connects again.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(120);

/// Why a session is over.
#[derive(Debug)]
pub enum CloseReason {
    /// The other side closed the connection.
    ByPeer,
    /// We closed it.
    ByUs,
    /// The peer broke the framing.
    Frame(FrameError),
    /// The peer's bytes are no message.
    Malformed,
    /// The peer said something that it may not say now.
    NotAllowed(&'static str),
    /// The role refused what the peer said.
    Refused(Refusal),
    /// The peer refused us.
    RefusedByPeer(Refusal),
    /// The peer's evidence is not accepted.
    Rejected(Rejection),
    /// The server admitted somebody whose evidence we do not accept.
    Fellow(Role, Rejection),
    /// TLS failed.
    Tls(rustls::Error),
    /// The peer speaks another version of the protocol.
    Version(u16),
    /// The peer did not finish opening the session in time.
    Timeout,
    /// The service that we judge it by did not answer in time.
    Unanswered,
    /// The peer was asked for fresh evidence, and did not show it in time.
    Unattested,
    /// The server let nothing be heard for too long.
    Silent,
    /// We have no evidence to show.
    NoEvidence(io::Error),
    /// The connection broke.
    Io(io::Error),
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::ByPeer => write!(f, "the other side closed the connection"),
            Self::ByUs => write!(f, "closed"),
            Self::Frame(error) => write!(f, "it broke the protocol: {error}"),
            Self::Malformed => write!(f, "it broke the protocol: bytes that are no message"),
            Self::NotAllowed(what) => write!(f, "it broke the protocol: {what} is not allowed now"),
            Self::Refused(why) => write!(f, "refused: {}", why.told()),
            Self::RefusedByPeer(why) if why.is_end() => why.fmt(f),
            Self::RefusedByPeer(why) => write!(f, "it refused us: {why}"),
            Self::Rejected(why) => write!(f, "its evidence is refused [{}]: {why}", why.code()),
            Self::Fellow(role, why) => {
                write!(f, "it admitted {role}, whose evidence we refuse [{}]: {why}", why.code())
            }
            Self::Tls(rustls::Error::AlertReceived(alert)) => write!(
                f,
                "it refused our certificate or TLS offer (alert {alert:?}; the other side's log says why)"
            ),
            Self::Tls(error) => write!(f, "TLS failed: {error}"),
            Self::Version(theirs) => {
                write!(f, "it speaks protocol version {theirs}, we speak {PROTOCOL_VERSION}")
            }
            Self::Timeout => write!(f, "it did not attest within {} s", OPEN_TIMEOUT.as_secs()),
            Self::Unanswered => write!(
                f,
                "the service that its evidence is judged by (--collateral) did not answer in time"
            ),
            Self::Unattested => {
                write!(
                    f,
                    "it was asked for fresh evidence (--reattest), and did not show it in time"
                )
            }
            Self::Silent => write!(f, "it said nothing for {} s", SILENCE_MAX.as_secs()),
            Self::NoEvidence(error) => write!(f, "we have no evidence to show: {error}"),
            Self::Io(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for CloseReason {}

impl CloseReason {
    /// What the peer is told.
    pub(super) fn refusal(&self) -> Option<Refusal> {
        match self {
            Self::Frame(_) | Self::Malformed | Self::NotAllowed(_) | Self::Timeout => {
                Some(Refusal::Protocol)
            }
            Self::Refused(refusal) => Some(*refusal),
            Self::Rejected(Rejection::Policy(..)) => Some(Refusal::Policy),
            Self::Rejected(_) | Self::Fellow(..) | Self::Unattested => Some(Refusal::Evidence),
            Self::Version(_) => Some(Refusal::Version),
            Self::Unanswered => Some(Refusal::Later),
            _ => None,
        }
    }

    /// Whether trying again could help: the connection broke, nobody refused anybody for good.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::RefusedByPeer(why) => why.is_end() || *why == Refusal::Later,
            Self::ByPeer | Self::Io(_) | Self::Silent | Self::Timeout | Self::Unanswered => true,
            _ => false,
        }
    }
}
