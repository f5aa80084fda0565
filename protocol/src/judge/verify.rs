//! The verifier: quote, signatures, certificate chain, policy, in this order; the first failure ends it.
//!
//! The trust anchor decides what is real: Intel's root for hardware, the public test root for
//! simulated TDs, which is refused unless asked for.

use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::evidence::quote::TdReport;
use crate::evidence::sim;
use crate::evidence::tpm::Pcrs;
use crate::evidence::vtpm::{Evidence, Vtpm};
use crate::identity::chain;
use crate::identity::evidence::CertificateEvidence;
use crate::judge::dcap::{self, Anchor, Collateral, Shortcoming};
use crate::judge::policy::Policy;
use crate::judge::remote::RemoteVerifier;
use crate::rejection::Rejection;
use crate::role::Role;
use crate::services::collateral_store::{Shelf, is_lack};

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

    /// The collateral of the platform that a certificate's quote is of; nothing where there is none.
    pub(crate) fn own_collateral(&self, certificate: &[u8], now: u64) -> Vec<u8> {
        let Trust::Hardware(shelf) = &self.trust else { return Vec::new() };
        CertificateEvidence::parse(certificate)
            .ok()
            .and_then(|evidence| Evidence::parse(&evidence.quote).ok())
            .and_then(|evidence| shelf.of_platform(&evidence.quote, now))
            .unwrap_or_default()
    }

    /// Checks the evidence in a peer's certificate and that it is about the certificate's own key.
    ///
    /// # Errors
    /// The first reason to refuse it.
    pub(crate) fn verify_certificate(&self, certificate: &[u8], now: u64) -> Result<(), Rejection> {
        let evidence = CertificateEvidence::parse(certificate)?;
        self.verify_first(&evidence.quote, &evidence.report_data, now)
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
