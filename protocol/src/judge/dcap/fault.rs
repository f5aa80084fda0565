//! `Fault`: which part of the evidence is wrong, and how; a stable code for each.

use std::fmt;

/// A part of the evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item {
    /// The key that signs quotes on this machine.
    AttestationKey,
    /// The file or message with the collateral.
    Collateral,
    /// The platform CA or the processor CA.
    Intermediate,
    /// The TDX module.
    Module,
    /// The machine's certificate.
    Pck,
    /// The certificates in the quote.
    PckChain,
    /// Revoked machines.
    PckCrl,
    /// The documented identity of the quoting enclave.
    QeIdentity,
    /// The quoting enclave's report.
    QeReport,
    /// The quote itself.
    Quote,
    /// Intel's root, or a test root.
    Root,
    /// Revoked authorities and signers.
    RootCrl,
    /// The documented patch levels of this kind of platform.
    TcbInfo,
    /// Who signed these documents.
    TcbSigner,
}

/// How it is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// Past its end: the end, in seconds since 1970.
    Expired(u64),
    /// Not of the form that it must have: what.
    Malformed(&'static str),
    /// Names or describes something else: the field.
    Mismatch(&'static str),
    /// Not there.
    Missing(&'static str),
    /// Before its beginning: the beginning, in seconds since 1970.
    NotYetValid(u64),
    /// Of a lower evaluation number than was seen for the same kind of platform: that number.
    Older(u32),
    /// Its issuer took it back.
    Revoked,
    /// The signature is not of whom it should be.
    Signature,
    /// Nothing vouches for it.
    Unbound,
    /// No documented patch level is low enough: the platform is older than all of them.
    Unsupported,
    /// Another root than the one that is trusted.
    Untrusted,
}

/// The first thing that is wrong with a quote or its collateral.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Which part.
    pub item: Item,
    /// How.
    pub problem: Problem,
}

impl Fault {
    pub(crate) fn new(item: Item, problem: Problem) -> Self {
        Self { item, problem }
    }

    pub(crate) fn malformed(item: Item, what: &'static str) -> Self {
        Self::new(item, Problem::Malformed(what))
    }

    /// A stable name for logs and scripts, such as `tcb-info-expired`.
    pub fn code(&self) -> String {
        let problem = match self.problem {
            Problem::Expired(_) => "expired",
            Problem::Malformed(_) => "malformed",
            Problem::Mismatch(_) => "mismatch",
            Problem::Missing(_) => "missing",
            Problem::NotYetValid(_) => "not-yet-valid",
            Problem::Older(_) => "older",
            Problem::Revoked => "revoked",
            Problem::Signature => "signature",
            Problem::Unbound => "unbound",
            Problem::Unsupported => "unsupported",
            Problem::Untrusted => "untrusted",
        };
        format!("{}-{problem}", self.item.code())
    }

    /// What the reader can do about it.
    pub fn advice(&self) -> &'static str {
        match (self.item, &self.problem) {
            (_, Problem::NotYetValid(_)) => "set this machine's clock",
            (Item::Pck, Problem::Revoked) => {
                "this machine's key is known to attackers: use another one"
            }
            (Item::Pck | Item::Intermediate | Item::Root, Problem::Expired(_)) => {
                "check this machine's clock; else the peer's platform needs new certificates"
            }
            (_, Problem::Expired(_) | Problem::Older(_)) => "fetch fresh collateral",
            (Item::TcbInfo, Problem::Mismatch(_)) => {
                "fetch the collateral of this platform (its FMSPC is in the quote)"
            }
            (Item::TcbInfo, Problem::Unsupported) => {
                "the platform is older than every documented level: its firmware needs an update"
            }
            (Item::Root, Problem::Untrusted) => {
                "the quote is of a pre-production or simulated platform, or forged"
            }
            _ => "the evidence is damaged or forged: get a new quote",
        }
    }
}

impl Item {
    fn code(self) -> &'static str {
        match self {
            Self::AttestationKey => "attestation-key",
            Self::Collateral => "collateral",
            Self::Intermediate => "intermediate",
            Self::Module => "tdx-module",
            Self::Pck => "pck",
            Self::PckChain => "pck-chain",
            Self::PckCrl => "pck-crl",
            Self::QeIdentity => "qe-identity",
            Self::QeReport => "qe-report",
            Self::Quote => "quote",
            Self::Root => "root",
            Self::RootCrl => "root-crl",
            Self::TcbInfo => "tcb-info",
            Self::TcbSigner => "tcb-signer",
        }
    }
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::AttestationKey => "the attestation key",
            Self::Collateral => "the collateral",
            Self::Intermediate => "the platform CA's certificate",
            Self::Module => "the TDX module",
            Self::Pck => "the platform's certificate (PCK)",
            Self::PckChain => "the certificate chain in the quote",
            Self::PckCrl => "the revocation list of platforms",
            Self::QeIdentity => "the QE identity",
            Self::QeReport => "the quoting enclave's report",
            Self::Quote => "the quote",
            Self::Root => "the root certificate",
            Self::RootCrl => "the root's revocation list",
            Self::TcbInfo => "the TCB info",
            Self::TcbSigner => "the TCB signer's certificate",
        })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let item = self.item;
        match &self.problem {
            Problem::Expired(end) => {
                write!(f, "{item} expired at {}", super::date::date(*end))
            }
            Problem::Malformed(what) => write!(f, "{item} is malformed: {what}"),
            Problem::Mismatch(field) => write!(f, "{item} is of something else: {field} differs"),
            Problem::Missing(what) => write!(f, "{item} lacks {what}"),
            Problem::NotYetValid(start) => write!(
                f,
                "{item} is valid only from {}: this machine's clock is behind",
                super::date::date(*start)
            ),
            Problem::Older(seen) => write!(
                f,
                "{item} is older than what was seen for this kind of platform, evaluation number {seen}"
            ),
            Problem::Revoked => write!(f, "{item} is revoked"),
            Problem::Signature => write!(f, "{item} has a wrong signature"),
            Problem::Unbound => write!(f, "nothing vouches for {item}"),
            Problem::Unsupported => write!(f, "{item} has no level that is low enough"),
            Problem::Untrusted => write!(f, "{item} is not the one that is trusted"),
        }
    }
}

impl std::error::Error for Fault {}
