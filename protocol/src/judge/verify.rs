//! The verifier: binding and measurements, signatures, certificate chain, collateral, policy of platforms, in
//! this order; the first failure ends it, and only the last two may need the network.
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
use crate::identity::certificate::spki_hash;
use crate::identity::chain;
use crate::identity::evidence::CertificateEvidence;
use crate::judge::dcap::{self, Anchor, Collateral, Shortcoming};
use crate::judge::policy::Policy;
use crate::judge::question::{Answer, Appraisal, Question};
use crate::judge::remote::{RemoteError, RemoteVerifier};
use crate::rejection::Rejection;
use crate::role::Role;
use crate::services::collateral_store::{CollateralStore, Lack, is_lack};

/// Whose signature makes a platform real.
#[derive(Clone, Debug)]
pub enum Trust {
    /// Intel's root, and what Intel publishes about the platforms that may take part.
    Hardware(Arc<CollateralStore>),
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

/// Evidence as a peer shows it, and what it has to be bound to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shown<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) report_data: &'a [u8; 64],
    /// What the peer claims to be, if it does already.
    pub(crate) role: Option<Role>,
    /// When it came, in seconds since 1970: measurements are judged by the rule of that day.
    pub(crate) at: u64,
    /// What the peer brought to judge it by.
    pub(crate) collateral: Option<&'a Collateral>,
}

/// What can be said about evidence at once.
#[derive(Debug)]
pub(crate) enum Judged {
    /// It is accepted. What a question then brings is for later.
    Accepted(Box<Verdict>, Option<Question>),
    /// Not before this is answered.
    Asks(Question),
}

impl Verdict {
    /// Judges an accepted quote once more, by the rules of one thing that its TD asks for.
    ///
    /// # Errors
    /// The first reason to refuse it.
    pub fn satisfies(&self, policy: &Policy, role: Role, now: u64) -> Result<(), Rejection> {
        if let Some(platform) = &self.platform {
            policy.check_platform(platform, Some(role), now)?;
        }
        policy.check(&self.report, self.pcrs.as_deref(), Some(role), now)
    }
}

impl Verifier {
    /// Checks a quote over `report_data` from a peer that claims `role` (if it does already), at
    /// `now` in seconds since 1970. Blocks while a service is asked.
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
        self.verify_shown(
            &Shown { bytes: quote, report_data, role, at: now, collateral: None },
            now,
        )
    }

    /// The same with collateral that the peer brought, for a platform of which we have none.
    ///
    /// # Errors
    /// The first reason to refuse it.
    pub(crate) fn verify_shown(&self, shown: &Shown, now: u64) -> Result<Verdict, Rejection> {
        match self.judge(shown, None, now)? {
            Judged::Accepted(verdict, _) => Ok(*verdict),
            Judged::Asks(question) => match self.judge(shown, Some(question.ask()), now)? {
                Judged::Accepted(verdict, _) => Ok(*verdict),
                Judged::Asks(_) => Err(Rejection::Remote(RemoteError::Service(TWICE.into()))),
            },
        }
    }

    /// Judges evidence without a wait: first by what costs nothing (whom it is bound to, what it measures), then
    /// by signatures and by what is at hand. Only a genuine platform that runs what the policy accepts, for this
    /// very connection, leads to a question, and only if `answer` is not there yet.
    ///
    /// # Errors
    /// The first reason to refuse it.
    pub(crate) fn judge(
        &self,
        shown: &Shown,
        answer: Option<Answer>,
        now: u64,
    ) -> Result<Judged, Rejection> {
        let evidence = Evidence::parse(shown.bytes).map_err(Rejection::Malformed)?;
        let quote = &evidence.quote;
        let report = *quote.td().map_err(Rejection::Malformed)?;
        self.check_td(&evidence, &report, shown)?;
        let mut refresh = None;
        let platform = match &self.trust {
            Trust::Simulated => {
                verify_simulated(quote, now)?;
                None
            }
            Trust::Hardware(store) => {
                let judged = store.judge(quote, None, now);
                let stale = |verdict| self.policy.wants_newer(verdict, now).then_some(Lack::Now);
                let lack = judged.as_ref().ok().and_then(stale).or(store.lacks(&judged, now));
                let lack = lack.filter(|_| answer.is_none());
                let origin = lack.map_or(Ok(None), |lack| store.may_ask(quote, lack, now))?;
                let question = origin.map(|at| Question::Collateral(Arc::clone(store), at));
                match (lack, question) {
                    (Some(Lack::Now), Some(question)) => return Ok(Judged::Asks(question)),
                    (_, question) => refresh = question,
                }
                // A peer would choose what it is judged by: what it brings counts where nothing else is to be had.
                let verdict = match (judged, shown.collateral) {
                    (Err(fault), Some(theirs)) if is_lack(&fault) => {
                        store.judge(quote, Some(theirs), now)?
                    }
                    (judged, _) => judged?,
                };
                self.policy.check_platform(&verdict, shown.role, now)?;
                Some(Box::new(verdict))
            }
            Trust::Remote(service) => {
                dcap::origin(quote, &Anchor::default(), now)?;
                let quote = Evidence::quote_bytes(shown.bytes);
                let Some(status) = answer.and_then(|answer| answer.of_quote(quote)) else {
                    let service = Arc::clone(service);
                    let quote = quote.to_vec();
                    let asked = Box::new(Appraisal { service, quote, report, now });
                    return Ok(Judged::Asks(Question::Appraisal(asked)));
                };
                let status = status.map_err(Rejection::Remote)?;
                if !self.policy.rules.accepted.contains(&status) {
                    return Err(Rejection::Rules(Shortcoming::Status(status)));
                }
                None
            }
        };
        let pcrs = evidence.vtpm.map(|vtpm| Box::new(vtpm.pcrs));
        Ok(Judged::Accepted(Box::new(Verdict { report, platform, pcrs }), refresh))
    }

    /// Whether a clock is not behind what Intel signed, as far as that was seen: collateral of yesterday would decide,
    /// and who was taken back since would pass.
    ///
    /// # Errors
    /// [`Rejection::Clock`].
    pub fn check_clock(&self, now: u64) -> Result<(), Rejection> {
        let Trust::Hardware(store) = &self.trust else { return Ok(()) };
        match store.newest() {
            newest if now.saturating_add(dcap::LEEWAY) < newest => Err(Rejection::Clock(newest)),
            _ => Ok(()),
        }
    }

    /// The collateral of the platform that a certificate's quote is of; nothing where there is none. Blocks while a
    /// service is asked.
    pub(crate) fn own_collateral(&self, certificate: &[u8], now: u64) -> Vec<u8> {
        CertificateEvidence::parse(certificate)
            .ok()
            .and_then(|evidence| {
                let Trust::Hardware(store) = &self.trust else { return None };
                store.of_platform(&Evidence::parse(&evidence.quote).ok()?.quote, now)
            })
            .unwrap_or_default()
    }

    /// The collateral of the platform of a quote, as far as it is at hand.
    pub(crate) fn collateral_of(&self, quote: &[u8], now: u64) -> Option<Vec<u8>> {
        let Trust::Hardware(store) = &self.trust else { return None };
        store.at_hand(&Evidence::parse(quote).ok()?.quote, now)
    }

    /// Checks the evidence in a peer's certificate and that it is about the certificate's own key.
    ///
    /// # Errors
    /// The first reason to refuse it.
    pub(crate) fn verify_certificate(&self, certificate: &[u8], now: u64) -> Result<(), Rejection> {
        match CertificateEvidence::parse(certificate) {
            Ok(evidence) => self.verify_first(&evidence.quote, &evidence.report_data, now),
            // The key of an owner; for which role is asked when a role is claimed.
            Err(Rejection::MissingEvidence)
                if self.policy.vouches(None, &spki_hash(certificate)?) =>
            {
                Ok(())
            }
            Err(why) => Err(why),
        }
    }

    /// Checks the quote in a certificate, and asks nobody: a platform of which we have no collateral yet, and one
    /// that a remote verifier is to judge, has to be genuine only. The rest is judged with the fresh quote, before
    /// which nothing else is accepted.
    ///
    /// # Errors
    /// The first reason to refuse it.
    pub(crate) fn verify_first(
        &self,
        quote: &[u8],
        report_data: &[u8; 64],
        now: u64,
    ) -> Result<(), Rejection> {
        let evidence = Evidence::parse(quote).map_err(Rejection::Malformed)?;
        let report = *evidence.quote.td().map_err(Rejection::Malformed)?;
        let shown = Shown { bytes: quote, report_data, role: None, at: now, collateral: None };
        self.check_td(&evidence, &report, &shown)?;
        match &self.trust {
            Trust::Simulated => verify_simulated(&evidence.quote, now),
            Trust::Remote(_) => {
                Ok(dcap::origin(&evidence.quote, &Anchor::default(), now).map(drop)?)
            }
            Trust::Hardware(store) => match store.judge(&evidence.quote, None, now) {
                Ok(verdict) => self.policy.check_platform(&verdict, None, now),
                Err(fault) if is_lack(&fault) => Ok(store.check_genuine(&evidence.quote, now)?),
                Err(fault) => Err(fault.into()),
            },
        }
    }

    fn check_td(
        &self,
        evidence: &Evidence,
        report: &TdReport,
        shown: &Shown,
    ) -> Result<(), Rejection> {
        let is_over = evidence.is_over(shown.report_data)?;
        let pcrs = evidence.vtpm.as_ref().map(Vtpm::pcrs);
        self.policy.check(report, pcrs, shown.role, shown.at)?;
        if is_over { Ok(()) } else { Err(Rejection::ReportData) }
    }
}

/// Cannot be: an answer ends the questions.
const TWICE: &str = "it was asked twice";

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
