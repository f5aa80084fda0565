//! The verifier: quote, signatures, certificate chain, policy, in this order; the first failure ends it.
//!
//! The trust anchor decides what is real: Intel's root for hardware, the public test root for
//! simulated TDs, which is refused unless asked for.

use std::fmt;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::certificate::{CertificateEvidence, Identity};
use crate::chain;
use crate::dcap::{self, Anchor, Collateral, Fault, Item, Problem, Shortcoming};
use crate::hex::Hex;
use crate::message::Role;
use crate::policy::Policy;
use crate::quote::{QuoteError, TdReport};
use crate::remote::{RemoteError, RemoteVerifier};
use crate::shelf::{Shelf, is_lack};
use crate::sim;
use crate::tpm::Pcrs;
use crate::vtpm::{Evidence, Vtpm};

/// Whose signature makes a platform real.
#[derive(Clone, Debug)]
pub enum Trust {
    /// Intel's root, and what Intel publishes about the platforms that may take part.
    Hardware(Arc<Shelf>),
    /// A service that judges quotes, and whose tokens are believed.
    Remote(Arc<RemoteVerifier>),
    /// The public test root: anybody can make such quotes.
    Simulated,
}

/// Checks quotes against one trust anchor and one policy.
#[derive(Clone, Debug)]
pub struct Verifier {
    /// Whose signature makes a platform real.
    pub trust: Trust,
    /// Which TDs are accepted.
    pub policy: Policy,
}

/// What an accepted quote says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The TD.
    pub report: TdReport,
    /// Its platform; a simulated one has none.
    pub platform: Option<Box<dcap::Verdict>>,
    /// Measurements of the guest, where these are a virtual TPM's and those of the TD are of what is below.
    pub pcrs: Option<Box<Pcrs>>,
}

impl Verdict {
    /// Judges an accepted quote once more, by the rules of one thing that its TD asks for.
    ///
    /// # Errors
    /// The first reason to refuse it.
    pub fn satisfies(&self, policy: &Policy, role: Role, now: u64) -> Result<(), Rejection> {
        if let Some(platform) = &self.platform {
            policy.check_platform(platform, now)?;
        }
        policy.check(&self.report, self.pcrs.as_deref(), Some(role))
    }
}

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
    /// The TD runs something else.
    Measurement {
        /// What it runs.
        mr_td: [u8; 48],
        /// What it should run, if only one thing is accepted.
        expected: Option<[u8; 48]>,
    },
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
            Self::Measurement { .. } => "measurement",
            Self::Pcr(_) => "pcr",
            Self::Vtpm(_) => "vtpm",
            Self::MissingEvidence => "evidence-missing",
            Self::Certificate(_) => "certificate",
            Self::ReportData => "report-data",
            Self::Reflection => "reflection",
            Self::RoleOfMeasurement(_) => "role",
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
            Self::Measurement { mr_td, expected } => {
                write!(f, "the TD runs something else: MRTD {}", Hex(mr_td))?;
                expected.as_ref().map_or(Ok(()), |mr| write!(f, ", accepted is {}", Hex(mr)))
            }
            Self::Pcr(Some(number)) => write!(f, "the guest runs something else: PCR {number}"),
            Self::Pcr(None) => write!(
                f,
                "the TD is measured as the policy says, but by what is below the guest: the guest is \
                 measured by a TPM, and the policy lists no pcrs (or the other way round)"
            ),
            Self::Vtpm(what) => write!(f, "the virtual TPM's evidence: {what}"),
            Self::MissingEvidence => write!(f, "the certificate carries no evidence"),
            Self::Certificate(what) => write!(f, "the certificate is malformed: {what}"),
            Self::ReportData => {
                write!(f, "the quote is bound to another key, connection, role or job")
            }
            Self::Reflection => write!(f, "the peer shows our own key"),
            Self::RoleOfMeasurement(role) => {
                write!(f, "a TD with these measurements may not be {role}")
            }
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

impl Verifier {
    /// Checks a quote over `report_data` from a peer that claims `role` (if it does already), at
    /// `now` in seconds since 1970.
    ///
    /// # Errors
    /// The first reason to refuse it.
    pub fn verify(
        &self,
        quote: &[u8],
        report_data: &[u8; 64],
        role: Option<Role>,
        now: u64,
    ) -> Result<Verdict, Rejection> {
        self.verify_with(quote, report_data, role, None, now)
    }

    /// The same with collateral that the peer brought, for a platform of which we have none.
    ///
    /// # Errors
    /// The first reason to refuse it.
    pub(crate) fn verify_with(
        &self,
        bytes: &[u8],
        report_data: &[u8; 64],
        role: Option<Role>,
        shown: Option<&Collateral>,
        now: u64,
    ) -> Result<Verdict, Rejection> {
        let evidence = Evidence::parse(bytes).map_err(Rejection::Malformed)?;
        let quote = &evidence.quote;
        let report = *quote.td().map_err(Rejection::Malformed)?;
        let platform = match &self.trust {
            Trust::Simulated => {
                verify_simulated(quote, now)?;
                None
            }
            Trust::Hardware(shelf) => {
                let verdict = shelf.judge(quote, shown, now)?;
                self.policy.check_platform(&verdict, now)?;
                Some(Box::new(verdict))
            }
            Trust::Remote(service) => {
                // Only quotes of genuine platforms are worth a question.
                dcap::origin(quote, &Anchor::default(), now)?;
                let status = service.appraise(Evidence::quote_bytes(bytes), &report, now);
                let status = status.map_err(Rejection::Remote)?;
                if !self.policy.rules.accepted.contains(&status) {
                    return Err(Rejection::Rules(Shortcoming::Status(status)));
                }
                None
            }
        };
        self.check_td(&evidence, &report, report_data, role)?;
        let pcrs = evidence.vtpm.map(|vtpm| Box::new(vtpm.pcrs));
        Ok(Verdict { report, platform, pcrs })
    }

    /// The collateral of the platform that an identity's quote is of; nothing where there is none.
    pub(crate) fn own_collateral(&self, identity: &Identity, now: u64) -> Vec<u8> {
        let Trust::Hardware(shelf) = &self.trust else { return Vec::new() };
        CertificateEvidence::parse(identity.certificate())
            .ok()
            .and_then(|evidence| Evidence::parse(&evidence.quote).ok())
            .and_then(|evidence| shelf.of_platform(&evidence.quote, now))
            .unwrap_or_default()
    }

    /// Checks the quote in a certificate. A platform of which we have no collateral yet has to be genuine
    /// only: its patch level is judged with the fresh quote, before which nothing else is accepted.
    ///
    /// # Errors
    /// The first reason to refuse it.
    pub(crate) fn verify_first(
        &self,
        quote: &[u8],
        report_data: &[u8; 64],
        now: u64,
    ) -> Result<(), Rejection> {
        match self.verify(quote, report_data, None, now) {
            Err(Rejection::Dcap(fault)) if is_lack(&fault) => {
                let evidence = Evidence::parse(quote).map_err(Rejection::Malformed)?;
                dcap::origin(&evidence.quote, &Anchor::default(), now)?;
                let report = *evidence.quote.td().map_err(Rejection::Malformed)?;
                self.check_td(&evidence, &report, report_data, None)
            }
            judged => judged.map(drop),
        }
    }

    fn check_td(
        &self,
        evidence: &Evidence,
        report: &TdReport,
        report_data: &[u8; 64],
        role: Option<Role>,
    ) -> Result<(), Rejection> {
        let is_over = evidence.is_over(report_data)?;
        let pcrs = evidence.vtpm.as_ref().map(Vtpm::pcrs);
        self.policy.check(report, pcrs, role)?;
        if is_over { Ok(()) } else { Err(Rejection::ReportData) }
    }
}

/// Most certificates of a chain.
const CHAIN_MAX: usize = 4;

fn verify_simulated(quote: &crate::Quote, now: u64) -> Result<(), Rejection> {
    let chain = parse_chain(&quote.chain)?;
    let Some(leaf) = chain.first() else {
        return Err(Rejection::Chain("no certificate".into()));
    };
    let algorithms = [webpki::ring::ECDSA_P256_SHA256];
    chain::verify(&chain, sim::ROOT_CERTIFICATE, &algorithms, now)
        .map_err(|error| Rejection::Chain(error.to_string()))?;
    Ok(dcap::verify_signed_by(quote, leaf)?)
}

fn parse_chain(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Rejection> {
    // Quotes end their chain with a zero byte.
    let pem = pem.strip_suffix(&[0]).unwrap_or(pem);
    CertificateDer::pem_slice_iter(pem)
        .take(CHAIN_MAX + 1)
        .collect::<Result<Vec<_>, _>>()
        .ok()
        .filter(|chain| chain.len() <= CHAIN_MAX)
        .ok_or_else(|| Rejection::Chain("not a PEM chain of at most four certificates".into()))
}
