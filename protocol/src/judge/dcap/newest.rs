//! The newest of several bundles, document by document: whoever brings collateral, and in whichever order, what Intel
//! published last decides.

use super::anchor::Anchor;
use super::collateral::{Collateral, Identity, TcbInfo};
use super::fault::{Fault, Item, Problem};
use super::pck::Platform;
use super::pki::{self, Certificate, RevocationList};
use super::trusted_chain;
use crate::evidence::quote::{Body, Quote};

/// What a document is compared by: evaluation number (none for lists), then when it was issued.
type Age = (u32, u64);

/// Where the newest document of a kind is, and how new it is.
#[derive(Clone, Copy, Default)]
struct Newest<'a> {
    found: Option<(Age, &'a Collateral)>,
}

impl<'a> Newest<'a> {
    fn offer(&mut self, age: Option<Age>, bundle: &'a Collateral) {
        if let Some(age) = age
            && self.found.is_none_or(|(found, _)| found <= age)
        {
            self.found = Some((age, bundle));
        }
    }

    fn or<'b>(&self, other: &'b Collateral) -> &'b Collateral
    where
        'a: 'b,
    {
        self.found.map_or(other, |(_, bundle)| bundle)
    }
}

/// The certificates and the machine that documents have to be about.
struct Subject<'a> {
    leaf: &'a Certificate,
    intermediate: &'a Certificate,
    anchor: &'a Certificate,
    root: &'a Anchor,
    machine: Platform,
    is_tdx: bool,
    now: u64,
}

/// What several bundles have.
pub(crate) struct Found {
    /// One bundle of the newest documents of each kind.
    pub(crate) newest: Collateral,
    /// When the last authentic document was issued that a clock which is behind would not see, in seconds since 1970.
    pub(crate) ahead: Option<u64>,
}

/// One bundle of the newest documents that are authentic, valid at `now` and of the platform of a quote. Where a kind
/// has none, that of the last bundle stands for it, to say what is wrong with it; `None` without any bundle.
///
/// # Errors
/// What is wrong with the certificates in the quote; and a revocation in any of the lists, which a later one that does
/// not know of it does not heal.
pub(crate) fn newest(
    quote: &Quote,
    bundles: &[&Collateral],
    root: &Anchor,
    now: u64,
) -> Result<Option<Found>, Fault> {
    let Some(last) = bundles.last() else { return Ok(None) };
    let chain = Certificate::parse_chain(&quote.chain, Item::PckChain)?;
    let [leaf, intermediate, anchor] = trusted_chain(&chain, root, now)?;
    let machine = Platform::parse(leaf)?;
    let is_tdx = matches!(quote.body, Body::Td(_));
    let of = Subject { leaf, intermediate, anchor, root, machine, is_tdx, now };
    let [mut roots, mut leaves, mut infos, mut identities] = [Newest::default(); 4];
    let mut ahead = None;
    for bundle in bundles.iter().copied() {
        roots.offer(dated(of.root_list(bundle), &mut ahead)?, bundle);
        leaves.offer(dated(of.platform_list(bundle), &mut ahead)?, bundle);
    }
    let revoked = RevocationList::parse(&roots.or(last).root_ca_crl, Item::RootCrl).ok();
    for bundle in bundles.iter().copied() {
        infos.offer(dated(of.info(bundle, revoked.as_ref()), &mut ahead)?, bundle);
        identities.offer(dated(of.identity(bundle, revoked.as_ref()), &mut ahead)?, bundle);
    }
    let [roots, leaves] = [roots.or(last), leaves.or(last)];
    let [info, identity] = [infos.or(last), identities.or(last)];
    let newest = Collateral {
        tcb_info_issuer_chain: info.tcb_info_issuer_chain.clone(),
        tcb_info: info.tcb_info.clone(),
        tcb_info_signature: info.tcb_info_signature.clone(),
        qe_identity_issuer_chain: identity.qe_identity_issuer_chain.clone(),
        qe_identity: identity.qe_identity.clone(),
        qe_identity_signature: identity.qe_identity_signature.clone(),
        root_ca_crl: roots.root_ca_crl.clone(),
        pck_crl: leaves.pck_crl.clone(),
    };
    Ok(Some(Found { newest, ahead }))
}

/// The age of a document; what is authentic and not valid yet is noted, whatever else is wrong with a document makes it
/// none, and only a revocation ends everything.
fn dated(age: Result<Age, Fault>, ahead: &mut Option<u64>) -> Result<Option<Age>, Fault> {
    match age {
        Ok(age) => Ok(Some(age)),
        Err(Fault { item: Item::Intermediate | Item::Pck, problem: Problem::Revoked }) => {
            age.map(Some)
        }
        Err(Fault { problem: Problem::NotYetValid(start), .. }) => {
            *ahead = (*ahead).max(Some(start));
            Ok(None)
        }
        Err(_) => Ok(None),
    }
}

impl Subject<'_> {
    fn root_list(&self, bundle: &Collateral) -> Result<Age, Fault> {
        let list = RevocationList::parse(&bundle.root_ca_crl, Item::RootCrl)?;
        list.check(self.anchor, self.root, self.now, Item::RootCrl)?;
        list.refuse(self.intermediate, Item::Intermediate)?;
        Ok((0, list.valid[0]))
    }

    fn platform_list(&self, bundle: &Collateral) -> Result<Age, Fault> {
        let list = RevocationList::parse(&bundle.pck_crl, Item::PckCrl)?;
        list.check(self.intermediate, self.root, self.now, Item::PckCrl)?;
        list.refuse(self.leaf, Item::Pck)?;
        Ok((0, list.valid[0]))
    }

    fn info(&self, bundle: &Collateral, revoked: Option<&RevocationList>) -> Result<Age, Fault> {
        let signer = self.signer(&bundle.tcb_info_issuer_chain, revoked)?;
        let info = TcbInfo::parse(bundle, &signer, self.root, self.is_tdx, self.now)?;
        info.check_platform(&self.machine)?;
        Ok((info.evaluation_number, info.valid[0]))
    }

    fn identity(
        &self,
        bundle: &Collateral,
        revoked: Option<&RevocationList>,
    ) -> Result<Age, Fault> {
        let signer = self.signer(&bundle.qe_identity_issuer_chain, revoked)?;
        let identity = Identity::parse(bundle, &signer, self.root, self.is_tdx, self.now)?;
        Ok((identity.evaluation_number, identity.valid[0]))
    }

    /// Who signed a document: a signer that was taken back has a successor.
    fn signer(&self, chain: &[u8], revoked: Option<&RevocationList>) -> Result<Certificate, Fault> {
        let chain = Certificate::parse_chain(chain, Item::TcbSigner)?;
        let signer = pki::tcb_signer(&chain, self.root)?.clone();
        signer.check_issued_by(self.anchor, self.root, self.now, Item::TcbSigner)?;
        revoked.map_or(Ok(()), |list| list.refuse(&signer, Item::TcbSigner))?;
        Ok(signer)
    }
}
