//! Certificates and revocation lists under Intel's root: names, dates in both directions, signatures.

use ring::digest::{SHA256, digest};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_cert::crl::CertificateList;
use x509_cert::der::asn1::{AnyRef, ObjectIdentifier};
use x509_cert::der::{Decode, Reader, SliceReader};
use x509_cert::ext::pkix::BasicConstraints;
use x509_cert::time::Time;

use super::anchor::{Anchor, Encoding};
use super::fault::{Fault, Item, Problem};

/// Most certificates of a chain (Intel's have three; each costs a signature), and most bytes of a list, which a peer
/// may bring.
const CHAIN_MAX: usize = 4;
const CRL_LEN_MAX: usize = 4 << 20;
const ECDSA_WITH_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2");
const EC_PUBLIC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const BASIC_CONSTRAINTS: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.19");
const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");

/// A certificate whose key is on P-256.
#[derive(Clone, Debug)]
pub(super) struct Certificate {
    der: Vec<u8>,
    parsed: x509_cert::Certificate,
    /// Uncompressed point.
    key: Vec<u8>,
}

impl Certificate {
    /// The certificates of a PEM text; a zero byte may end it.
    pub(super) fn parse_chain(pem: &[u8], item: Item) -> Result<Vec<Self>, Fault> {
        let pem = pem.strip_suffix(&[0]).unwrap_or(pem);
        let mut chain = Vec::new();
        for der in CertificateDer::pem_slice_iter(pem) {
            let der = der.map_err(|_| Fault::malformed(item, "no PEM"))?;
            if chain.len() == CHAIN_MAX {
                return Err(Fault::malformed(item, "more than four certificates"));
            }
            chain.push(Self::parse(&der, item)?);
        }
        Ok(chain)
    }

    pub(super) fn parse(der: &[u8], item: Item) -> Result<Self, Fault> {
        let parsed = x509_cert::Certificate::from_der(der)
            .map_err(|_| Fault::malformed(item, "a certificate that is no DER"))?;
        let info = parsed.tbs_certificate().subject_public_key_info();
        let curve = info.algorithm.parameters.as_ref();
        let curve = curve.and_then(|any| any.decode_as::<ObjectIdentifier>().ok());
        let key = info.subject_public_key.as_bytes().map(<[u8]>::to_vec);
        match (info.algorithm.oid == EC_PUBLIC_KEY && curve == Some(P256), key) {
            (true, Some(key)) => Ok(Self { der: der.to_vec(), key, parsed }),
            _ => Err(Fault::malformed(item, "a key that is not on P-256")),
        }
    }

    pub(super) fn sha256(&self) -> [u8; 32] {
        digest(&SHA256, &self.der).as_ref().try_into().expect("32 bytes")
    }

    /// Content of the extension with this identifier.
    pub(super) fn extension(&self, id: ObjectIdentifier) -> Option<&[u8]> {
        let extensions = self.parsed.tbs_certificate().extensions()?;
        let found = extensions.iter().find(|extension| extension.extn_id == id)?;
        Some(found.extn_value.as_bytes())
    }

    pub(super) fn common_name(&self) -> Option<String> {
        let names = self.parsed.tbs_certificate().subject().iter_rdn();
        let name = names.flat_map(|name| name.iter()).find(|part| part.oid == COMMON_NAME)?;
        std::str::from_utf8(name.value.value()).ok().map(str::to_owned)
    }

    fn is_authority(&self) -> bool {
        self.extension(BASIC_CONSTRAINTS)
            .and_then(|bytes| BasicConstraints::from_der(bytes).ok())
            .is_some_and(|constraints| constraints.ca)
    }

    pub(super) fn check_dates(&self, now: u64, item: Item) -> Result<(), Fault> {
        let validity = self.parsed.tbs_certificate().validity();
        check_dates([seconds(&validity.not_before), seconds(&validity.not_after)], now, item)
    }

    fn check_signature(&self, issuer: &Self, root: &Anchor, item: Item) -> Result<(), Fault> {
        let wrong = || Fault::new(item, Problem::Signature);
        let tbs = signed_part(&self.der).ok_or_else(wrong)?;
        let algorithms =
            [self.parsed.signature_algorithm(), self.parsed.tbs_certificate().signature()];
        let signature = self.parsed.signature().as_bytes().ok_or_else(wrong)?;
        if algorithms.iter().any(|algorithm| algorithm.oid != ECDSA_WITH_SHA256) {
            return Err(wrong());
        }
        issuer.verify(root, Encoding::Asn1, tbs, signature, item)
    }

    /// Dated, signed and named by an authority.
    pub(super) fn check_issued_by(
        &self,
        issuer: &Self,
        root: &Anchor,
        now: u64,
        item: Item,
    ) -> Result<(), Fault> {
        if self.parsed.tbs_certificate().issuer() != issuer.parsed.tbs_certificate().subject() {
            return Err(Fault::new(item, Problem::Mismatch("its issuer")));
        }
        if !issuer.is_authority() {
            return Err(Fault::new(item, Problem::Mismatch("its issuer, which is no CA,")));
        }
        if self.is_authority() != (item == Item::Intermediate) {
            return Err(Fault::new(item, Problem::Mismatch("whether it is a CA")));
        }
        self.check_signature(issuer, root, item)?;
        self.check_dates(now, item)
    }

    /// Checks a signature by this certificate's key.
    pub(super) fn verify(
        &self,
        root: &Anchor,
        encoding: Encoding,
        message: &[u8],
        signature: &[u8],
        item: Item,
    ) -> Result<(), Fault> {
        root.verify(encoding, &self.key, message, signature)
            .map_err(|_| Fault::new(item, Problem::Signature))
    }
}

/// The first element of a signed sequence, byte for byte: what was signed.
fn signed_part(der: &[u8]) -> Option<&[u8]> {
    let whole = AnyRef::from_der(der).ok()?;
    SliceReader::new(whole.value()).ok()?.tlv_bytes().ok()
}

/// Leaf, intermediate and root of a quote's chain, which Intel's tools leave in any order.
pub(super) fn pck_chain(chain: &[Certificate]) -> Result<[&Certificate; 3], Fault> {
    let named = |part: &'static str| {
        let has = |certificate: &&Certificate| {
            certificate.common_name().is_some_and(|name| name.contains(part))
        };
        let mut found = chain.iter().filter(has);
        match (found.next(), found.next()) {
            (Some(certificate), None) => Ok(certificate),
            (None, _) => Err(Fault::new(Item::PckChain, Problem::Missing(part))),
            _ => Err(Fault::malformed(Item::PckChain, "a certificate twice")),
        }
    };
    let leaf = named("SGX PCK Certificate")?;
    let intermediate = named("SGX PCK Platform CA").or_else(|_| named("SGX PCK Processor CA"))?;
    Ok([leaf, intermediate, named("SGX Root CA")?])
}

/// The signer of documents in a chain that ends in the trusted root.
pub(super) fn tcb_signer<'a>(
    chain: &'a [Certificate],
    root: &Anchor,
) -> Result<&'a Certificate, Fault> {
    let named = |certificate: &&Certificate| {
        certificate.common_name().is_some_and(|name| name.contains("SGX TCB Signing"))
    };
    let signer = chain.iter().find(named);
    let signer = signer.ok_or(Fault::new(Item::TcbSigner, Problem::Missing("SGX TCB Signing")))?;
    // Whatever else is there must be the root.
    let others = chain.iter().filter(|other| other.der != signer.der);
    match others.into_iter().all(|other| root.is(&other.sha256())) {
        true => Ok(signer),
        false => Err(Fault::new(Item::TcbSigner, Problem::Untrusted)),
    }
}

/// Serial numbers that an issuer took back.
pub(super) struct RevocationList {
    parsed: CertificateList,
    /// The bytes that its issuer signed.
    signed: Vec<u8>,
    /// Beginning and end, in seconds since 1970.
    pub(super) valid: [u64; 2],
}

impl RevocationList {
    pub(super) fn parse(der: &[u8], item: Item) -> Result<Self, Fault> {
        if der.len() > CRL_LEN_MAX {
            return Err(Fault::malformed(item, "more than 4 MiB"));
        }
        let parsed =
            CertificateList::from_der(der).map_err(|_| Fault::malformed(item, "no DER"))?;
        let list = &parsed.tbs_cert_list;
        let next = list.next_update.as_ref();
        let next = next.ok_or(Fault::new(item, Problem::Missing("nextUpdate")))?;
        let valid = [seconds(&list.this_update), seconds(next)];
        let signed = signed_part(der).ok_or(Fault::malformed(item, "no DER"))?.to_vec();
        Ok(Self { parsed, signed, valid })
    }

    pub(super) fn check(
        &self,
        issuer: &Certificate,
        root: &Anchor,
        now: u64,
        item: Item,
    ) -> Result<(), Fault> {
        let list = &self.parsed.tbs_cert_list;
        if &list.issuer != issuer.parsed.tbs_certificate().subject() {
            return Err(Fault::new(item, Problem::Mismatch("its issuer")));
        }
        let wrong = || Fault::new(item, Problem::Signature);
        let signature = self.parsed.signature.as_bytes().ok_or_else(wrong)?;
        if self.parsed.signature_algorithm.oid != ECDSA_WITH_SHA256 {
            return Err(wrong());
        }
        issuer.verify(root, Encoding::Asn1, &self.signed, signature, item)?;
        check_dates(self.valid, now, item)
    }

    /// Fails if the certificate is on the list.
    pub(super) fn refuse(&self, certificate: &Certificate, item: Item) -> Result<(), Fault> {
        let serial = certificate.parsed.tbs_certificate().serial_number();
        let revoked = self.parsed.tbs_cert_list.revoked_certificates.iter().flatten();
        match revoked.into_iter().any(|entry| entry.serial_number == *serial) {
            true => Err(Fault::new(item, Problem::Revoked)),
            false => Ok(()),
        }
    }
}

/// How far a clock may be behind: documents are published at once.
pub const LEEWAY: u64 = 300;

/// Valid from the first second, by a clock that may be a little behind, to the last.
pub(super) fn check_dates([start, end]: [u64; 2], now: u64, item: Item) -> Result<(), Fault> {
    if now.saturating_add(LEEWAY) < start {
        return Err(Fault::new(item, Problem::NotYetValid(start)));
    }
    if now > end {
        return Err(Fault::new(item, Problem::Expired(end)));
    }
    Ok(())
}

fn seconds(time: &Time) -> u64 {
    time.to_unix_duration().as_secs()
}
