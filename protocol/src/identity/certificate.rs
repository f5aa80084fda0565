//! RA-TLS certificates: a self-signed certificate over a fresh key, with a quote over the key's hash.
//!
//! Ours have the interoperable form; [`evidence`] reads others too.

use rcgen::{
    CertificateParams, CustomExtension, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData,
};
use ring::digest::{SHA256, digest};
use x509_cert::der::{Decode, Encode};
use zeroize::Zeroizing;

use crate::identity::evidence::{CERTIFICATE_LEN_MAX, TAGGED_PAIR, TAGGED_VTPM_PAIR, bytes_head};
use crate::identity::owner::OwnerKey;

use crate::Attester;
use crate::evidence::sim::time_of;
use crate::evidence::vtpm::Evidence;
use crate::rejection::Rejection;

/// Our key and certificate of this run. The key was generated in memory and is never written.
pub struct Identity {
    /// The certificate, DER.
    pub(crate) certificate: Vec<u8>,
    /// The private key, PKCS #8.
    pub(crate) key: Zeroizing<Vec<u8>>,
    /// SHA-256 of our SubjectPublicKeyInfo.
    pub(crate) spki_hash: [u8; 32],
}

/// The extension, [`evidence::CCC`].
const EVIDENCE_OID: &[u64] = &[2, 23, 133, 5, 4, 9];
/// `{"pubkey-hash": bytes(36)`, in which `[1, bytes(32)`.
const CLAIMS_HEAD: &[u8] = b"\xa1\x6bpubkey-hash\x58\x24\x82\x01\x58\x20";
/// Validity before and after now: clocks differ, and the quote is what counts.
const VALIDITY: i64 = 7 * 24 * 3600;

impl Identity {
    /// A new key with evidence from `attester`, at `now` in seconds since 1970.
    ///
    /// # Errors
    /// When the platform gives no quote.
    pub fn new(attester: &dyn Attester, now: u64) -> std::io::Result<Self> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(std::io::Error::other)?;
        Self::over(key, Some(attester), now)
    }

    /// An owner's key, with evidence where there is a source of it.
    ///
    /// # Errors
    /// When the platform gives no quote.
    pub fn of_owner(
        key: &OwnerKey,
        attester: Option<&dyn Attester>,
        now: u64,
    ) -> std::io::Result<Self> {
        Self::over(key.pair()?, attester, now)
    }

    fn over(key: KeyPair, attester: Option<&dyn Attester>, now: u64) -> std::io::Result<Self> {
        let claims = claims(&sha256(&key.subject_public_key_info()));
        let quote = attester.map(|attester| attester.quote(&report_data(&claims))).transpose()?;
        let evidence = quote.map(|quote| encode_evidence(&quote, &claims));
        Self::with_evidence(key, now, evidence.as_deref())
    }

    /// The certificate, DER.
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// A certificate with any extension content, or with none: for tests of what is refused.
    pub(crate) fn with_evidence(
        key: KeyPair,
        now: u64,
        evidence: Option<&[u8]>,
    ) -> std::io::Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "hfl");
        let now = i64::try_from(now).map_err(std::io::Error::other)?;
        params.not_before = time_of(now - VALIDITY);
        params.not_after = time_of(now + VALIDITY);
        let extension =
            |content: &[u8]| CustomExtension::from_oid_content(EVIDENCE_OID, content.to_vec());
        params.custom_extensions.extend(evidence.map(extension));
        let certificate = params.self_signed(&key).map_err(std::io::Error::other)?;
        Ok(Self {
            spki_hash: sha256(&key.subject_public_key_info()),
            certificate: certificate.der().to_vec(),
            key: Zeroizing::new(key.serialize_der()),
        })
    }
}

/// SHA-256 of a certificate's SubjectPublicKeyInfo.
pub(crate) fn spki_hash(certificate: &[u8]) -> Result<[u8; 32], Rejection> {
    let certificate = parse(certificate)?;
    let spki = certificate.tbs_certificate().subject_public_key_info();
    let der = spki.to_der().map_err(|_| Rejection::Certificate("public key"))?;
    Ok(sha256(&der))
}

fn parse(certificate: &[u8]) -> Result<x509_cert::Certificate, Rejection> {
    if certificate.len() > CERTIFICATE_LEN_MAX {
        return Err(Rejection::Certificate("too large"));
    }
    x509_cert::Certificate::from_der(certificate).map_err(|_| Rejection::Certificate("not DER"))
}

fn claims(spki_hash: &[u8; 32]) -> Vec<u8> {
    [CLAIMS_HEAD, spki_hash].concat()
}

fn report_data(claims: &[u8]) -> [u8; 64] {
    let mut data = [0; 64];
    data[..32].copy_from_slice(&sha256(claims));
    data
}

fn encode_evidence(quote: &[u8], claims: &[u8]) -> Vec<u8> {
    let tagged = if Evidence::is_vtpm(quote) { TAGGED_VTPM_PAIR } else { TAGGED_PAIR };
    let mut content = tagged.to_vec();
    for item in [quote, claims] {
        content.extend(bytes_head(item.len()));
        content.extend(item);
    }
    content
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    digest(&SHA256, bytes).as_ref().try_into().expect("SHA-256 has 32 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::evidence::Form;
    use crate::{CertificateEvidence, Verifier};
    use crate::{Policy, SimPlatform, Trust};

    const NOW: u64 = 1_800_000_000;

    fn check(platform: &SimPlatform, identity: &Identity) -> Result<(), Rejection> {
        let policy = Policy::same_as(platform.report());
        Verifier { trust: Trust::Simulated, policy }.verify_certificate(&identity.certificate, NOW)
    }

    #[test]
    fn a_certificate_of_ours_is_accepted_and_every_changed_claim_is_refused() {
        let platform = SimPlatform::new(NOW);
        let identity = Identity::new(&platform, NOW).expect("identity");
        assert!(check(&platform, &identity).is_ok());

        let key = || KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("key");
        let evidence = CertificateEvidence::parse(&identity.certificate).expect("evidence");
        assert_eq!(evidence.form, Form::Interoperable);
        let (quote, claims) = (evidence.quote, super::claims(&identity.spki_hash));
        let stolen = encode_evidence(&quote, &claims);
        let thief = Identity::with_evidence(key(), NOW, Some(&stolen)).expect("certificate");
        assert_eq!(check(&platform, &thief), Err(Rejection::ReportData), "evidence of another key");

        let own = key();
        let own_claims = super::claims(&sha256(&own.subject_public_key_info()));
        let mixed = encode_evidence(&quote, &own_claims);
        let mixed = Identity::with_evidence(own, NOW, Some(&mixed)).expect("certificate");
        assert_eq!(check(&platform, &mixed), Err(Rejection::ReportData), "claims without a quote");

        let bare = Identity::with_evidence(key(), NOW, None).expect("certificate");
        assert_eq!(check(&platform, &bare), Err(Rejection::MissingEvidence));
        for content in [&b""[..], b"\xd9\xea\x60\x82", b"\xd9\xea\x61\x82\x40\x40", &[0x5f; 9]] {
            let odd = Identity::with_evidence(key(), NOW, Some(content)).expect("certificate");
            assert!(matches!(check(&platform, &odd), Err(Rejection::Certificate(_))));
        }
    }
}
