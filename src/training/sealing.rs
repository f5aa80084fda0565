//! A small secret as bytes that only the volume that they lie in can open: AES-256-GCM under a key of the volume's.
//!
//! Files of a volume are copied out of it, to be looked at; this keeps what must not be read then.

use std::io;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

/// What the key is derived for, and what is sealed.
pub(super) const LABEL: &[u8] = b"hfl-passport-key-v1";

/// Seals a secret: a nonce, then the ciphertext with its tag.
pub(super) fn seal(key: &[u8; 32], secret: &[u8]) -> io::Result<Vec<u8>> {
    let failed = |_| io::Error::other("no random numbers");
    let mut nonce = [0; NONCE_LEN];
    SystemRandom::new().fill(&mut nonce).map_err(failed)?;
    let mut sealed = secret.to_vec();
    let aead = Nonce::assume_unique_for_key(nonce);
    cipher(key).seal_in_place_append_tag(aead, Aad::from(LABEL), &mut sealed).map_err(failed)?;
    Ok([&nonce[..], &sealed].concat())
}

/// Opens what [`seal`] has sealed; `None` when it was not sealed with this key, or was changed.
pub(super) fn open(key: &[u8; 32], sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let (nonce, sealed) = sealed.split_first_chunk::<NONCE_LEN>()?;
    let mut secret = Zeroizing::new(sealed.to_vec());
    let nonce = Nonce::assume_unique_for_key(*nonce);
    let len = cipher(key).open_in_place(nonce, Aad::from(LABEL), &mut secret).ok()?.len();
    secret.truncate(len);
    Some(secret)
}

fn cipher(key: &[u8; 32]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).expect("a key of 32 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_with_its_key_alone() {
        let sealed = seal(&[1; 32], b"a key").expect("sealed");
        assert_eq!(open(&[1; 32], &sealed).as_deref(), Some(&b"a key".to_vec()));
        assert!(open(&[2; 32], &sealed).is_none());
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(open(&[1; 32], &changed).is_none(), "byte {at}");
            assert!(open(&[1; 32], &sealed[..at]).is_none());
        }
    }
}
