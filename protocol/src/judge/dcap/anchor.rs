//! `Anchor`: the root certificate that is trusted, and the signatures below it that were right before. Asked
//! about again, such a one costs a hash: what authorities sign stays for weeks, quotes come by the minute.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use ring::digest::{Context, SHA256};
use ring::error::Unspecified;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_FIXED, UnparsedPublicKey, VerificationAlgorithm,
};

/// SHA-256 of Intel's SGX Root CA certificate.
pub const INTEL_ROOT: [u8; 32] = [
    0x44, 0xa0, 0x19, 0x6b, 0x2b, 0x99, 0xf8, 0x89, 0xb8, 0xe1, 0x49, 0xe9, 0x5b, 0x80, 0x7a, 0x35,
    0x0e, 0x74, 0x24, 0x96, 0x43, 0x99, 0xe8, 0x85, 0xa7, 0xcb, 0xb8, 0xcc, 0xfa, 0xb6, 0x74, 0xd3,
];

/// Most signatures that are remembered: six for a kind of platform, two for a machine.
const REMEMBERED_MAX: usize = 4096;

/// How a signature is written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    /// As a DER sequence, in certificates and lists.
    Asn1,
    /// As `r || s`, in documents and quotes.
    Fixed,
}

/// Whose certificates are believed.
#[derive(Debug)]
pub struct Anchor {
    root: [u8; 32],
    /// SHA-256 over encoding, key, signature and message of what was right. Nothing else gets in, so a
    /// peer without a genuine platform adds nothing.
    right: Mutex<BTreeSet<[u8; 32]>>,
}

impl Default for Anchor {
    fn default() -> Self {
        Self::new(INTEL_ROOT)
    }
}

impl Anchor {
    /// The root certificate whose SHA-256 is `root`; [`INTEL_ROOT`] by default.
    pub fn new(root: [u8; 32]) -> Self {
        Self { root, right: Mutex::default() }
    }

    pub(super) fn is(&self, certificate: &[u8; 32]) -> bool {
        self.root == *certificate
    }

    /// Checks a signature of P-256 over SHA-256; `key` is an uncompressed point.
    pub(super) fn verify(
        &self,
        encoding: Encoding,
        key: &[u8],
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), Unspecified> {
        let name = name(encoding, key, message, signature);
        if self.right.lock().unwrap_or_else(PoisonError::into_inner).contains(&name) {
            return Ok(());
        }
        let algorithm: &dyn VerificationAlgorithm = match encoding {
            Encoding::Asn1 => &ECDSA_P256_SHA256_ASN1,
            Encoding::Fixed => &ECDSA_P256_SHA256_FIXED,
        };
        UnparsedPublicKey::new(algorithm, key).verify(message, signature)?;
        let mut right = self.right.lock().unwrap_or_else(PoisonError::into_inner);
        if right.len() == REMEMBERED_MAX {
            right.clear();
        }
        right.insert(name);
        Ok(())
    }
}

/// Lengths go first, so that no two ways to cut the same bytes have one name.
fn name(encoding: Encoding, key: &[u8], message: &[u8], signature: &[u8]) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    context.update(&[encoding as u8]);
    for part in [key, signature, message] {
        context.update(&(part.len() as u64).to_le_bytes());
        context.update(part);
    }
    context.finish().as_ref().try_into().expect("32 bytes")
}

#[cfg(test)]
mod tests {
    use ring::rand::SystemRandom;
    use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};

    use super::{Anchor, Encoding, REMEMBERED_MAX};

    fn signed(message: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let random = SystemRandom::new();
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let document = EcdsaKeyPair::generate_pkcs8(algorithm, &random).expect("a key");
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, document.as_ref(), &random).expect("a key");
        let signature = pair.sign(&random, message).expect("a signature").as_ref().to_vec();
        (pair.public_key().as_ref().to_vec(), signature)
    }

    #[test]
    fn only_the_very_signature_that_was_right_is_remembered() {
        let anchor = Anchor::default();
        let (key, signature) = signed(b"levels");
        let (other_key, _) = signed(b"levels");
        let fixed = Encoding::Fixed;
        for _ in 0..2 {
            assert!(anchor.verify(fixed, &key, b"levels", &signature).is_ok());
            assert!(anchor.verify(fixed, &other_key, b"levels", &signature).is_err());
            assert!(anchor.verify(fixed, &key, b"level", &signature).is_err());
            assert!(anchor.verify(Encoding::Asn1, &key, b"levels", &signature).is_err());
            // The same bytes, cut elsewhere.
            let moved = [&signature[..], b"l"].concat();
            assert!(anchor.verify(fixed, &key, b"evels", &moved).is_err());
            for at in 0..signature.len() {
                let mut changed = signature.clone();
                changed[at] ^= 1;
                assert!(anchor.verify(fixed, &key, b"levels", &changed).is_err());
            }
            assert_eq!(anchor.right.lock().expect("lock").len(), 1);
        }
    }

    #[test]
    fn the_memory_is_bounded() {
        let anchor = Anchor::default();
        let (key, signature) = signed(b"levels");
        let filled = (0..REMEMBERED_MAX).map(|index| {
            let mut name = [0; 32];
            name[..8].copy_from_slice(&(index as u64).to_le_bytes());
            name
        });
        anchor.right.lock().expect("lock").extend(filled);
        assert!(anchor.verify(Encoding::Fixed, &key, b"levels", &signature).is_ok());
        assert_eq!(anchor.right.lock().expect("lock").len(), 1);
    }
}
