//! Opening and filling a keyslot: passphrase to volume key, and back (LUKS2 specification, section 3.2).

use ring::pbkdf2;

use crate::Error;
use crate::data::cipher::Xts;
use crate::header::metadata::{Digest, Hash, Keyslot, STRIPES};
use crate::keys::antiforensic;
use crate::keys::secret::{Passphrase, Secret};

/// Sectors of keyslot areas, whatever the data's are.
const SECTOR: u32 = 512;

/// Bytes of a slot's encrypted material: whole sectors.
pub(crate) fn material_len(key_len: usize) -> usize {
    (key_len * STRIPES).next_multiple_of(SECTOR as usize)
}

/// What is in the slot under this passphrase: the volume key, or noise.
pub(crate) fn open(
    slot: &Keyslot,
    material: &[u8],
    passphrase: &Passphrase,
    memory_limit_kib: u64,
) -> Result<Secret, Error> {
    let key = slot.kdf.derive(passphrase.bytes(), slot.area_key_len, memory_limit_kib)?;
    let mut plain = Secret::copy(material);
    Xts::new(&key, SECTOR).decrypt(&mut plain, 0);
    Ok(antiforensic::merge(slot.af_hash, &plain, slot.key_len))
}

/// The encrypted material of a slot that gives `key` under this passphrase.
pub(crate) fn seal(
    slot: &Keyslot,
    key: &[u8],
    passphrase: &Passphrase,
    memory_limit_kib: u64,
) -> Result<Vec<u8>, Error> {
    let area_key = slot.kdf.derive(passphrase.bytes(), slot.area_key_len, memory_limit_kib)?;
    let split = antiforensic::split(slot.af_hash, key)?;
    let mut material = Secret::zeroed(material_len(slot.key_len));
    material[..split.len()].copy_from_slice(&split);
    Xts::new(&area_key, SECTOR).encrypt(&mut material, 0);
    Ok(material.to_vec())
}

/// Whether the key is the one of the digest: compared in full length, in constant time.
pub(crate) fn matches(digest: &Digest, key: &[u8]) -> bool {
    let algorithm = match digest.hash {
        Hash::Sha1 => return false,
        Hash::Sha256 => pbkdf2::PBKDF2_HMAC_SHA256,
        Hash::Sha512 => pbkdf2::PBKDF2_HMAC_SHA512,
    };
    let Some(iterations) = std::num::NonZeroU32::new(digest.iterations) else { return false };
    pbkdf2::verify(algorithm, iterations, &digest.salt, key, &digest.digest).is_ok()
}
