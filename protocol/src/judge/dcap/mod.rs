//! DCAP: is this quote of a genuine, sufficiently patched platform? A pure function of quote, collateral,
//! time and trust anchor, after Intel's quote verification library, stricter where that is lax.
//!
//! ```text
//!  root (pinned) --> intermediate --> PCK leaf --> QE report --> attestation key --> quote
//!     |   '-- CRL        '-- CRL      | SVNs, FMSPC    | identity                      | TDX module
//!     '--> TCB signer --> TCB info ---+----------------+-- QE identity ---------------'--> Verdict
//! ```
//!
//! Every certificate, list and document is dated in both directions; what names itself wrongly, is
//! signed by somebody else or belongs to another platform is an error of its own, with a stable code.

mod anchor;
mod collateral;
mod date;
mod fault;
mod newest;
mod pck;
mod pki;
mod rules;
mod tcb;

pub use anchor::{Anchor, INTEL_ROOT};
pub use collateral::Collateral;
pub use date::{date, parse_timestamp};
pub use fault::{Fault, Item, Problem};
pub(crate) use newest::{Found, newest};
pub use pck::Platform;
pub use pki::LEEWAY;
pub use rules::{Rules, Shortcoming};
pub use tcb::{Component, Rating, Shortfall, Status};

use ring::digest::{SHA256, digest};
use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};

use crate::evidence::quote::{Body, Quote};
use anchor::Encoding;
use collateral::{Identity, TcbInfo};
use pki::{Certificate, RevocationList};

/// What is found out about a genuine quote; whether it is good enough is a policy's question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Everything together; for TDX 1.5 with the advice to launch the TD again.
    pub status: Status,
    /// With the versions that the TD was launched under.
    pub launch: Status,
    /// With the versions that run now (TDX 1.5).
    pub current: Option<Status>,
    /// CPU, firmware, PCE.
    pub platform: Rating,
    /// The TDX module, from version 1 on.
    pub module: Option<Rating>,
    /// The quoting enclave.
    pub qe: Rating,
    /// The oldest of the dates of these, in seconds since 1970.
    pub tcb_date: u64,
    /// Advisories of all of these, each once.
    pub advisories: Vec<String>,
    /// The lower evaluation number of TCB info and QE identity.
    pub evaluation_number: u32,
    /// When the oldest of TCB info, QE identity and revocation list of platforms was issued, in seconds
    /// since 1970.
    pub issued: u64,
    /// From when and until when this collateral is valid, in seconds since 1970.
    pub valid: [u64; 2],
    /// What is below the newest patch level, and by how much.
    pub shortfalls: Vec<Shortfall>,
    /// Which machine.
    pub machine: Platform,
    /// What is attested.
    pub body: Body,
}

/// Verifies a quote with its collateral at `now`, in seconds since 1970, for platforms under a root.
///
/// # Errors
/// The first thing that is wrong.
pub fn verify(
    quote: &Quote,
    collateral: &Collateral,
    root: &Anchor,
    now: u64,
) -> Result<Verdict, Fault> {
    let chain = Certificate::parse_chain(&quote.chain, Item::PckChain)?;
    let [leaf, intermediate, anchor] = trusted_chain(&chain, root, now)?;
    let roots = RevocationList::parse(&collateral.root_ca_crl, Item::RootCrl)?;
    roots.check(anchor, root, now, Item::RootCrl)?;
    let leaves = RevocationList::parse(&collateral.pck_crl, Item::PckCrl)?;
    leaves.check(intermediate, root, now, Item::PckCrl)?;
    roots.refuse(intermediate, Item::Intermediate)?;
    leaves.refuse(leaf, Item::Pck)?;
    let machine = Platform::parse(leaf)?;
    verify_signatures(quote, leaf, root)?;

    let is_tdx = matches!(quote.body, Body::Td(_));
    let signer = |chain: &[u8]| {
        let chain = Certificate::parse_chain(chain, Item::TcbSigner)?;
        let signer = pki::tcb_signer(&chain, root)?.clone();
        signer.check_issued_by(anchor, root, now, Item::TcbSigner)?;
        roots.refuse(&signer, Item::TcbSigner).map(|()| signer)
    };
    let [of_info, of_identity] =
        [&collateral.tcb_info_issuer_chain, &collateral.qe_identity_issuer_chain];
    let info_signer = signer(of_info)?;
    let info = TcbInfo::parse(collateral, &info_signer, root, is_tdx, now)?;
    info.check_platform(&machine)?;
    // Mostly the same signer.
    let signer = if of_info == of_identity { info_signer } else { signer(of_identity)? };
    let identity = Identity::parse(collateral, &signer, root, is_tdx, now)?;
    let qe = identity.rate(&quote.qe_report)?;
    let mut verdict = assess(quote, &info, &qe, &machine)?;
    verdict.evaluation_number = info.evaluation_number.min(identity.evaluation_number);
    verdict.issued = info.valid[0].min(identity.valid[0]).min(leaves.valid[0]);
    verdict.valid = [
        info.valid[0].max(identity.valid[0]),
        [info.valid[1], identity.valid[1], roots.valid[1], leaves.valid[1]]
            .into_iter()
            .min()
            .unwrap_or(0),
    ];
    Ok(verdict)
}

/// Leaf, intermediate and root of a quote's chain, each issued by the next, up to the trusted root.
fn trusted_chain<'a>(
    chain: &'a [Certificate],
    root: &Anchor,
    now: u64,
) -> Result<[&'a Certificate; 3], Fault> {
    let [leaf, intermediate, anchor] = pki::pck_chain(chain)?;
    if !root.is(&anchor.sha256()) {
        return Err(Fault::new(Item::Root, Problem::Untrusted));
    }
    // Its hash says more than its own signature on itself.
    anchor.check_dates(now, Item::Root)?;
    intermediate.check_issued_by(anchor, root, now, Item::Intermediate)?;
    leaf.check_issued_by(intermediate, root, now, Item::Pck)?;
    Ok([leaf, intermediate, anchor])
}

/// What says which collateral a quote needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Origin {
    /// Family, model, stepping, platform type.
    pub fmspc: [u8; 6],
    /// Certified by Intel's platform CA, else by its processor CA.
    pub is_platform_ca: bool,
    /// A TD, else an enclave.
    pub is_tdx: bool,
}

/// Where a quote comes from: its signatures and certificates are genuine, its platform is not judged yet.
///
/// # Errors
/// The first thing that is wrong.
pub fn origin(quote: &Quote, root: &Anchor, now: u64) -> Result<Origin, Fault> {
    let chain = Certificate::parse_chain(&quote.chain, Item::PckChain)?;
    let [leaf, intermediate, _] = trusted_chain(&chain, root, now)?;
    verify_signatures(quote, leaf, root)?;
    let name = intermediate.common_name().unwrap_or_default();
    Ok(Origin {
        fmspc: Platform::parse(leaf)?.fmspc,
        is_platform_ca: name.contains("Platform"),
        is_tdx: matches!(quote.body, Body::Td(_)),
    })
}

/// The machine that a quote says it is of. Says nothing about whether it is genuine.
///
/// # Errors
/// When its certificates are malformed.
pub(crate) fn machine(quote: &Quote) -> Result<Platform, Fault> {
    let chain = Certificate::parse_chain(&quote.chain, Item::PckChain)?;
    let [leaf, ..] = pki::pck_chain(&chain)?;
    Platform::parse(leaf)
}

/// Platform, module and quoting enclave together, at launch and now.
fn assess(
    quote: &Quote,
    info: &TcbInfo,
    qe: &Rating,
    machine: &Platform,
) -> Result<Verdict, Fault> {
    let (platform, module, current) = match &quote.body {
        Body::Enclave(_) => (info.rate_platform(machine, None)?, None, None),
        Body::Td(report) => {
            info.check_module(report)?;
            let rated = |svn: &[u8; 16]| {
                let module = info.rate_module(svn)?;
                info.rate_platform(machine, Some(svn)).map(|platform| (platform, module))
            };
            let (platform, module) = rated(&report.tee_tcb_svn)?;
            let current = match &report.v15 {
                None => None,
                Some(v15) => {
                    let (platform, module) = rated(&v15.tee_tcb_svn_2)?;
                    Some(tcb::converge(&platform, module.as_ref(), qe))
                }
            };
            (platform, module, current)
        }
    };
    let launch = tcb::converge(&platform, module.as_ref(), qe);
    let parts = [Some(&platform), module.as_ref(), Some(qe)];
    let mut advisories: Vec<String> = Vec::new();
    for advisory in parts.iter().flatten().flat_map(|rating| &rating.advisories) {
        if !advisories.contains(advisory) {
            advisories.push(advisory.clone());
        }
    }
    let shortfalls = info.shortfalls(machine, &quote.body);
    Ok(Verdict {
        status: tcb::relaunch(launch, current),
        launch,
        current,
        tcb_date: parts.iter().flatten().map(|rating| rating.date).min().unwrap_or(0),
        advisories,
        evaluation_number: 0,
        issued: 0,
        valid: [0, 0],
        shortfalls,
        machine: machine.clone(),
        body: quote.body,
        qe: qe.clone(),
        platform,
        module,
    })
}

/// As [`verify_signatures`] for a leaf in DER, which the caller trusts.
pub(crate) fn verify_signed_by(quote: &Quote, leaf: &[u8]) -> Result<(), Fault> {
    verify_signatures(quote, &Certificate::parse(leaf, Item::Pck)?, &Anchor::default())
}

/// The PCK key signed the QE's report, that vouches for the attestation key, and that signed the quote.
fn verify_signatures(quote: &Quote, leaf: &Certificate, root: &Anchor) -> Result<(), Fault> {
    let (report, signature) = (&quote.qe_report, &quote.qe_signature);
    leaf.verify(root, Encoding::Fixed, report, signature, Item::QeReport)?;
    let vouched = digest(&SHA256, &[quote.attestation_key.as_slice(), &quote.auth].concat());
    let (hash, tail) = quote.qe_report[320..].split_at(32);
    if hash != vouched.as_ref() || tail.iter().any(|&byte| byte != 0) {
        return Err(Fault::new(Item::AttestationKey, Problem::Unbound));
    }
    let key = [&[4], quote.attestation_key.as_slice()].concat();
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key)
        .verify(&quote.signed, &quote.signature)
        .map_err(|_| Fault::new(Item::Quote, Problem::Signature))
}

#[cfg(any(test, fuzzing))]
pub(crate) use collateral::fuzz as fuzz_documents;
#[cfg(any(test, fuzzing))]
pub(crate) use pck::fuzz as fuzz_certificates;

#[cfg(test)]
pub(crate) mod tests;
