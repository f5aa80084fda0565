//! Key derivation of keyslots: PBKDF2 (RFC 8018) and Argon2 version 1.3 (RFC 9106), costs bounded.

use std::num::NonZeroU32;

use argon2::{Algorithm, Argon2, Block, Params, Version};
use ring::pbkdf2;
use zeroize::Zeroize;

use crate::Error;
use crate::keys::hash::Hash;
use crate::keys::secret::Secret;
use crate::memory::LIMIT_KIB_MAX;

/// cryptsetup's least and our most.
pub(crate) const ITERATIONS: [u64; 2] = [1000, 10_000_000];
/// Most passes of Argon2 that a header may ask for: minutes, not hours.
pub(crate) const PASSES_MAX: u64 = 64;
/// Most lanes of Argon2 that a header may ask for.
pub(crate) const LANES_MAX: u64 = 16;

/// How the key of a keyslot's area comes from a passphrase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kdf {
    /// The function and its costs.
    pub cost: KdfCost,
    /// Its salt.
    pub salt: [u8; 32],
}

/// A function and its costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KdfCost {
    /// PBKDF2-HMAC.
    Pbkdf2 {
        /// HMAC's hash.
        hash: Hash,
        /// Iterations.
        iterations: u32,
    },
    /// Argon2.
    Argon2 {
        /// `argon2id` instead of `argon2i`.
        hybrid: bool,
        /// Passes.
        time: u32,
        /// Memory in KiB.
        memory_kib: u32,
        /// Lanes.
        lanes: u32,
    },
}

impl KdfCost {
    /// For keys of a key service, which are long and random: little memory, so that it opens in a small
    /// guest. A person's passphrase deserves more memory.
    pub const DEFAULT: Self =
        Self::Argon2 { hybrid: true, time: 4, memory_kib: 64 << 10, lanes: 1 };

    /// As LUKS2 writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pbkdf2 { .. } => "pbkdf2",
            Self::Argon2 { hybrid: true, .. } => "argon2id",
            Self::Argon2 { hybrid: false, .. } => "argon2i",
        }
    }

    /// Whether cryptsetup accepts these costs too.
    ///
    /// # Errors
    /// `Refused` with the limits.
    pub fn check(self) -> Result<Self, Error> {
        match self {
            Self::Pbkdf2 { iterations, .. } => {
                let [min, max] = ITERATIONS;
                if !(min..=max).contains(&iterations.into()) {
                    return Err(Error::refused(format!("pbkdf2: {min} to {max} iterations")));
                }
            }
            Self::Argon2 { time, memory_kib, lanes, .. } => {
                if !(4..=PASSES_MAX).contains(&time.into())
                    || !(1..=4).contains(&lanes)
                    || !(32..=LIMIT_KIB_MAX).contains(&memory_kib.into())
                {
                    return Err(Error::refused(format!(
                        "argon2: 4 to {PASSES_MAX} passes, 32 to {LIMIT_KIB_MAX} KiB, 1 to 4 lanes"
                    )));
                }
            }
        }
        Ok(self)
    }
}

impl Kdf {
    /// Derives `len` bytes, with at most `memory_limit_kib` of memory.
    pub(crate) fn derive(
        &self,
        passphrase: &[u8],
        len: usize,
        memory_limit_kib: u64,
    ) -> Result<Secret, Error> {
        let mut key = Secret::zeroed(len);
        match self.cost {
            KdfCost::Pbkdf2 { hash, iterations } => {
                pbkdf2(hash, iterations, &self.salt, passphrase, &mut key);
            }
            KdfCost::Argon2 { hybrid, time, memory_kib, lanes } => {
                let memory = u64::from(memory_kib);
                if memory > memory_limit_kib {
                    return Err(Error::Memory(memory, memory_limit_kib));
                }
                let kind = if hybrid { Algorithm::Argon2id } else { Algorithm::Argon2i };
                let params = Params::new(memory_kib, time, lanes, Some(len))
                    .map_err(|error| Error::refused(format!("argon2: {error}")))?;
                let mut blocks: Vec<Block> = Vec::new();
                let count = params.block_count();
                blocks.try_reserve_exact(count).map_err(|_| Error::Memory(memory, 0))?;
                blocks.resize(count, Block::default());
                let derived = Argon2::new(kind, Version::V0x13, params)
                    .hash_password_into_with_memory(passphrase, &self.salt, &mut key, &mut blocks);
                blocks.iter_mut().for_each(Zeroize::zeroize);
                derived.map_err(|error| Error::refused(format!("argon2: {error}")))?;
            }
        }
        Ok(key)
    }
}

/// PBKDF2 over the hashes that metadata may name.
pub(crate) fn pbkdf2(hash: Hash, iterations: u32, salt: &[u8], secret: &[u8], out: &mut [u8]) {
    let algorithm = match hash {
        Hash::Sha1 => pbkdf2::PBKDF2_HMAC_SHA1,
        Hash::Sha256 => pbkdf2::PBKDF2_HMAC_SHA256,
        Hash::Sha512 => pbkdf2::PBKDF2_HMAC_SHA512,
    };
    let iterations = NonZeroU32::new(iterations).expect("parsed as at least one");
    pbkdf2::derive(algorithm, iterations, salt, secret, out);
}
