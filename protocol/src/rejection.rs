//! Why evidence is refused, in words and as stable codes.

use std::fmt;

use crate::evidence::quote::QuoteError;
use crate::hex::Hex;
use crate::judge::dcap::{self, Fault, Item, Problem, Shortcoming};
use crate::judge::remote::RemoteError;
use crate::role::Role;

/// Why evidence is refused. Each kind has a stable [`code`](Rejection::code).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// The attestation key did not sign this quote.
    QuoteSignature,
    /// The quoting enclave does not vouch for the attestation key.
    AttestationKey,
    /// The platform's key did not sign the quoting enclave's report.
    QeSignature,
    /// The platform's certificates do not lead to the trust anchor.
    Chain(String),
    /// The platform is not genuine, or its collateral does not serve.
    Dcap(Fault),
    /// The remote verifier does not vouch for the TD.
    Remote(RemoteError),
    /// The platform is not one that the policy accepts: what is wrong with it.
    Platform(&'static str),
    /// The attributes of the TD or the status of its platform.
    Rules(Shortcoming),
    /// The bytes are no quote.
    Malformed(QuoteError),
    /// The TD runs something else: each measurement that differs from the set of the policy that comes closest.
    Measurement(Vec<Differing>),
    /// Our clock is behind this moment, in seconds since 1970: of a document that was seen, or of our own build.
    Clock(u64),
    /// A virtual TPM runs something else, or its measurements are none that the policy tells.
    Pcr(Option<u8>),
    /// The evidence of a virtual TPM does not lead to its measurements.
    Vtpm(&'static str),
    /// The certificate carries no evidence.
    MissingEvidence,
    /// The certificate or its evidence extension is malformed.
    Certificate(&'static str),
    /// The quote is not about this key or this connection: replayed, relayed or of another job.
    ReportData,
    /// The peer shows our own key.
    Reflection,
    /// The measurement may not take this role.
    RoleOfMeasurement(Role),
    /// The measurement was accepted until this moment, in seconds since 1970.
    Outlived(u64),
    /// The key (SHA-256 of the SubjectPublicKeyInfo) is none that the policy lists for this role.
    Key(Role, [u8; 32]),
    /// Another key or machine than the one that had the role before.
    Successor(&'static str),
    /// The fellow of a job judges others by a policy (its digest) that is neither ours nor listed in ours.
    Policy(Role, [u8; 32]),
}

/// A measurement that is not what a policy says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Differing {
    /// Its name, such as RTMR2.
    pub register: String,
    /// What the TD has.
    pub found: [u8; 48],
    /// What the policy has.
    pub expected: [u8; 48],
}

impl fmt::Display for Differing {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { register, found, expected } = self;
        write!(f, "{register} is {}, expected {}", Hex(found), Hex(expected))
    }
}

impl Rejection {
    /// A stable name of the kind, for logs and scripts.
    pub fn code(&self) -> &'static str {
        match self {
            Self::QuoteSignature => "quote-signature",
            Self::AttestationKey => "attestation-key",
            Self::QeSignature => "qe-signature",
            Self::Chain(_) => "pck-chain",
            Self::Dcap(_) => "platform-evidence",
            Self::Remote(error) => error.code(),
            Self::Platform(_) => "platform",
            Self::Rules(why) => why.code(),
            Self::Malformed(_) => "quote-malformed",
            Self::Measurement(_) => "measurement",
            Self::Clock(_) => "clock-behind",
            Self::Pcr(_) => "pcr",
            Self::Vtpm(_) => "vtpm",
            Self::MissingEvidence => "evidence-missing",
            Self::Certificate(_) => "certificate",
            Self::ReportData => "report-data",
            Self::Reflection => "reflection",
            Self::RoleOfMeasurement(_) => "role",
            Self::Outlived(_) => "measurement-outlived",
            Self::Key(..) => "key",
            Self::Successor(_) => "successor",
            Self::Policy(..) => "policy",
        }
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::QuoteSignature => write!(f, "the quote's signature is wrong"),
            Self::AttestationKey => {
                write!(f, "the quoting enclave does not vouch for the attestation key")
            }
            Self::QeSignature => write!(f, "the quoting enclave's report has a wrong signature"),
            Self::Chain(why) => write!(f, "the platform's certificates are not trusted: {why}"),
            Self::Dcap(fault) => write!(f, "{fault} ({}): {}", fault.code(), fault.advice()),
            Self::Remote(error) => error.fmt(f),
            Self::Platform(what) => write!(f, "the policy refuses the platform: {what}"),
            Self::Rules(why) => why.fmt(f),
            Self::Malformed(error) => error.fmt(f),
            Self::Measurement(differing) => {
                let named: Vec<String> = differing.iter().map(ToString::to_string).collect();
                write!(f, "the TD runs something else: {}", named.join("; "))
            }
            Self::Clock(newest) => write!(
                f,
                "this machine's clock is behind {}, when Intel signed a document that was seen or this program was \
                 built: set the time",
                dcap::date(*newest)
            ),
            Self::Pcr(Some(number)) => write!(f, "the guest runs something else: PCR {number}"),
            Self::Pcr(None) => write!(
                f,
                "the TD is measured as the policy says, but by what is below the guest: the guest is \
                 measured by a TPM, and the policy lists no pcrs (or the other way round)"
            ),
            Self::Vtpm(what) => write!(f, "the virtual TPM's evidence: {what}"),
            Self::MissingEvidence => {
                write!(
                    f,
                    "no evidence, and the key is none of the policy's service_keys or node_keys"
                )
            }
            Self::Certificate(what) => write!(f, "the certificate is malformed: {what}"),
            Self::ReportData => {
                write!(f, "the quote is bound to another key, connection, role or job")
            }
            Self::Reflection => write!(f, "the peer shows our own key"),
            Self::RoleOfMeasurement(role @ Role::SecretService) => write!(
                f,
                "a TD with these measurements may not be {role}: no set of the policy has it in its roles, and \
                 there are no service_keys"
            ),
            Self::RoleOfMeasurement(role) => {
                write!(f, "a TD with these measurements may not be {role}")
            }
            Self::Outlived(until) => {
                write!(f, "a TD with these measurements was accepted until {}", dcap::date(*until))
            }
            Self::Key(role, key) => {
                write!(f, "the key {} is none that the policy lists for {role}", Hex(key))
            }
            Self::Successor(what) => write!(
                f,
                "another {what} than of the one that had the role before; the policy lists it for several roles, and \
                 not for this one by its name"
            ),
            Self::Policy(role, digest) => write!(
                f,
                "{role} judges others by the policy {}, which is neither ours nor listed in ours (policies)",
                Hex(digest)
            ),
        }
    }
}

impl std::error::Error for Rejection {}

impl From<Fault> for Rejection {
    fn from(fault: Fault) -> Self {
        match (&fault.item, &fault.problem) {
            (Item::Quote, Problem::Signature) => Self::QuoteSignature,
            (Item::AttestationKey, Problem::Unbound) => Self::AttestationKey,
            (Item::QeReport, Problem::Signature) => Self::QeSignature,
            _ => Self::Dcap(fault),
        }
    }
}
