//! `PassportKey`: the P-256 key of a job, made in ps0's TD; and what its signatures are checked with.

use std::io;

use base64ct::{Base64, Encoding};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair,
    UnparsedPublicKey,
};
use zeroize::Zeroizing;

use crate::job::receipt::Hash;
use crate::passport::sha256;

/// The file in a volume that keeps the key from one start of ps0 to the next; nowhere else is it written.
pub const FILE: &str = "passport.key";

/// A SubjectPublicKeyInfo of P-256 up to its point (RFC 5480): id-ecPublicKey, prime256v1, a bit string.
const SPKI_PREFIX: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
/// An uncompressed point.
const POINT_LEN: usize = 65;

/// A signing key.
pub struct PassportKey {
    pair: EcdsaKeyPair,
    /// PKCS #8.
    private: Zeroizing<Vec<u8>>,
    random: SystemRandom,
}

/// A verifying key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey(Vec<u8>);

impl PassportKey {
    /// A fresh key.
    ///
    /// # Errors
    /// When there are no random numbers.
    pub fn generate() -> io::Result<Self> {
        let document =
            EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &SystemRandom::new());
        let document = document.map_err(|_| io::Error::other("no random numbers"))?;
        Self::parse(Zeroizing::new(document.as_ref().to_vec()))
    }

    /// The key of these bytes.
    ///
    /// # Errors
    /// When they are none.
    pub fn parse(private: Zeroizing<Vec<u8>>) -> io::Result<Self> {
        let random = SystemRandom::new();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &private, &random);
        let pair = pair.map_err(|_| io::Error::other("no P-256 key"))?;
        Ok(Self { pair, private, random })
    }

    /// Its bytes, for a sealed place.
    pub fn private(&self) -> &[u8] {
        &self.private
    }

    /// Its public half.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.pair.public_key().as_ref().to_vec())
    }

    /// An ECDSA signature in DER.
    ///
    /// # Errors
    /// When there are no random numbers.
    pub fn sign(&self, message: &[u8]) -> io::Result<Vec<u8>> {
        let signature = self.pair.sign(&self.random, message);
        let signature = signature.map_err(|_| io::Error::other("no random numbers"))?;
        Ok(signature.as_ref().to_vec())
    }
}

impl PublicKey {
    /// The key of a SubjectPublicKeyInfo.
    pub fn parse(spki: &[u8]) -> Option<Self> {
        let point = spki.strip_prefix(&SPKI_PREFIX)?;
        (point.len() == POINT_LEN && point[0] == 4).then(|| Self(point.to_vec()))
    }

    /// Its SubjectPublicKeyInfo.
    pub fn spki(&self) -> Vec<u8> {
        [&SPKI_PREFIX[..], &self.0].concat()
    }

    /// SHA-256 of that.
    pub fn hash(&self) -> Hash {
        sha256(&self.spki())
    }

    /// The same as PEM, as OpenSSL writes it.
    pub fn pem(&self) -> String {
        let digits = Base64::encode_string(&self.spki());
        let (first, second) = digits.split_at(64);
        format!("-----BEGIN PUBLIC KEY-----\n{first}\n{second}\n-----END PUBLIC KEY-----\n")
    }

    /// Whether a signature is this key's.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &self.0).verify(message, signature).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_signs_and_reads_as_it_is_written() {
        let key = PassportKey::generate().expect("a key");
        let again = PassportKey::parse(Zeroizing::new(key.private().to_vec())).expect("its bytes");
        let signature = again.sign(b"statement").expect("a signature");
        let public = PublicKey::parse(&key.public().spki()).expect("its own");
        assert_eq!(public, key.public());
        assert!(public.verify(b"statement", &signature));
        assert!(!public.verify(b"Statement", &signature));
        let other = PassportKey::generate().expect("a key");
        assert!(!other.public().verify(b"statement", &signature));
        assert!(PublicKey::parse(&public.spki()[..90]).is_none());
        assert!(PassportKey::parse(Zeroizing::new(vec![0; 138])).is_err());
    }
}
