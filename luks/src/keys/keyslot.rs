//! Opening and filling a keyslot: passphrase to volume key, and back (LUKS2 specification, section 3.2).

use ring::pbkdf2;

use crate::Error;
use crate::data::cipher::Xts;
use crate::keys::antiforensic::{self, STRIPES};
use crate::keys::hash::Hash;
use crate::keys::kdf::Kdf;
use crate::keys::secret::{Passphrase, Secret};

/// Sectors of keyslot areas, whatever the data's are.
const SECTOR: u32 = 512;

/// A keyslot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keyslot {
    /// Its number.
    pub number: u8,
    /// Bytes of the volume key in it: 32, 64, or 96 with integrity.
    pub key_len: usize,
    /// 0 only when asked for by number, 1 normal, 2 first.
    pub priority: u8,
    /// Where its encrypted key material is, in bytes from the start of the header.
    pub area: [u64; 2],
    /// Bytes of the key of the area's cipher: 32 or 64.
    pub area_key_len: usize,
    /// Hash of the anti-forensic splitter.
    pub af_hash: Hash,
    /// From passphrase to the key of the area.
    pub kdf: Kdf,
}

/// What a volume key must match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digest {
    /// Its number.
    pub number: u8,
    /// Numbers of the keyslots that hold this key.
    pub keyslots: Vec<u8>,
    /// Whether the data is encrypted with this key.
    pub of_segment: bool,
    /// PBKDF2's hash.
    pub hash: Hash,
    /// PBKDF2's iterations.
    pub iterations: u32,
    /// PBKDF2's salt.
    pub salt: [u8; 32],
    /// The expected result, as long as the hash.
    pub digest: Vec<u8>,
}

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
