//! AES-256-GCM around a secret on its way, under a key that the caller derived from the connection.

use std::io;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::{Zeroize, Zeroizing};

fn cipher(key: &[u8; 32]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).expect("32 bytes"))
}

/// A random nonce, then the encrypted secret with its tag.
///
/// # Errors
/// When there are no random numbers.
pub(crate) fn seal(key: &[u8; 32], secret: &[u8]) -> io::Result<Vec<u8>> {
    let mut nonce = [0; NONCE_LEN];
    let none = |_| io::Error::other("no random numbers");
    SystemRandom::new().fill(&mut nonce).map_err(none)?;
    let mut sealed = secret.to_vec();
    let tag = cipher(key).seal_in_place_separate_tag(
        Nonce::assume_unique_for_key(nonce),
        Aad::empty(),
        &mut sealed,
    );
    let Ok(tag) = tag else {
        sealed.zeroize();
        return Err(io::Error::other("a secret that is too long"));
    };
    Ok([&nonce, &sealed[..], tag.as_ref()].concat())
}

/// The secret, if it was sealed under this key.
pub(crate) fn unseal(key: &[u8; 32], sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let (nonce, body) = sealed.split_first_chunk::<NONCE_LEN>()?;
    let mut secret = Zeroizing::new(body.to_vec());
    let nonce = Nonce::assume_unique_for_key(*nonce);
    let len = cipher(key).open_in_place(nonce, Aad::empty(), &mut secret).ok()?.len();
    secret.truncate(len);
    Some(secret)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_key_opens_and_every_changed_byte_is_noticed() {
        let sealed = seal(&[1; 32], b"secret").expect("sealed");
        assert_eq!(unseal(&[1; 32], &sealed).as_deref().map(Vec::as_slice), Some(&b"secret"[..]));
        assert!(unseal(&[2; 32], &sealed).is_none());
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(unseal(&[1; 32], &changed).is_none(), "byte {at}");
            assert!(unseal(&[1; 32], &sealed[..at]).is_none(), "{at} bytes");
        }
        assert_ne!(sealed, seal(&[1; 32], b"secret").expect("sealed"), "nonces differ");
    }
}
