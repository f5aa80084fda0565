//! `OwnerKey`: the key of somebody who owns a secret, a model or data. Its hash is what policies list; the key is kept
//! in a file.

use std::io;

use base64ct::{Base64, Encoding};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use ring::digest::{SHA256, digest};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use zeroize::Zeroizing;

/// A P-256 key in PKCS #8.
pub struct OwnerKey(Zeroizing<Vec<u8>>);

/// Columns of PEM (RFC 7468, section 2).
const COLUMNS: usize = 64;

impl OwnerKey {
    /// A fresh key.
    ///
    /// # Errors
    /// When there are no random numbers.
    pub fn generate() -> io::Result<Self> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(io::Error::other)?;
        Ok(Self(Zeroizing::new(key.serialize_der())))
    }

    /// Reads a key as [`OwnerKey::pem`] writes it, or OpenSSL.
    ///
    /// # Errors
    /// When it is none of P-256.
    pub fn parse(pem: &[u8]) -> io::Result<Self> {
        let none = || io::Error::other("no P-256 key in PEM (hfl identity create)");
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem).map_err(|_| none())?;
        let key = Self(Zeroizing::new(der.secret_pkcs8_der().to_vec()));
        key.pair().map_err(|_| none())?;
        Ok(key)
    }

    /// The key as PEM.
    pub fn pem(&self) -> Zeroizing<String> {
        let digits = Zeroizing::new(Base64::encode_string(&self.0));
        let mut pem = Zeroizing::new(String::with_capacity(digits.len() + 128));
        pem.push_str("-----BEGIN PRIVATE KEY-----\n");
        for line in digits.as_bytes().chunks(COLUMNS) {
            pem.extend(line.iter().map(|&byte| char::from(byte)));
            pem.push('\n');
        }
        pem.push_str("-----END PRIVATE KEY-----\n");
        pem
    }

    /// SHA-256 of its SubjectPublicKeyInfo: what `service_keys` and `node_keys` list.
    ///
    /// # Errors
    /// Never for a key that was read or made here.
    pub fn hash(&self) -> io::Result<[u8; 32]> {
        let hash = digest(&SHA256, &self.pair()?.subject_public_key_info());
        Ok(hash.as_ref().try_into().expect("SHA-256 has 32 bytes"))
    }

    pub(super) fn pair(&self) -> io::Result<KeyPair> {
        let der = PrivatePkcs8KeyDer::from(self.0.as_slice());
        KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ECDSA_P256_SHA256)
            .map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_reads_as_it_is_written_and_others_are_none() {
        let key = OwnerKey::generate().expect("a key");
        let pem = key.pem();
        let again = OwnerKey::parse(pem.as_bytes()).expect("its own file");
        assert_eq!(again.hash().expect("a hash"), key.hash().expect("a hash"));
        assert!(pem.lines().all(|line| line.len() <= COLUMNS));
        let other = OwnerKey::generate().expect("a key");
        assert_ne!(other.hash().expect("a hash"), key.hash().expect("a hash"));
        let cut = &pem[..100];
        let certificate = pem.replace("PRIVATE KEY", "CERTIFICATE");
        let damaged = pem.replacen("M", "N", 1);
        for bad in ["", cut, &certificate, &damaged, "-----BEGIN PRIVATE KEY-----"] {
            assert!(OwnerKey::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
