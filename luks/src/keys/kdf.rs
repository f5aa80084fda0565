//! Key derivation of keyslots: PBKDF2 (RFC 8018) and Argon2 version 1.3 (RFC 9106), costs bounded.

use std::num::NonZeroU32;

use argon2::{Algorithm, Argon2, Block, Params, Version};
use base64ct::{Base64, Encoding};
use ring::pbkdf2;
use zeroize::Zeroize;

use crate::Error;
use crate::header::json::Value;
use crate::header::metadata::{Hash, Object, object};
use crate::keys::secret::Secret;

/// Most memory of Argon2, in KiB, whatever a machine has.
pub(crate) const MEMORY_KIB_MAX: u64 = 1 << 20;
/// cryptsetup's least and our most.
const ITERATIONS: [u64; 2] = [1000, 10_000_000];
const PASSES_MAX: u64 = 64;
const LANES_MAX: u64 = 16;

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
                    || !(32..=MEMORY_KIB_MAX).contains(&memory_kib.into())
                {
                    return Err(Error::refused(format!(
                        "argon2: 4 to {PASSES_MAX} passes, 32 to {MEMORY_KIB_MAX} KiB, 1 to 4 lanes"
                    )));
                }
            }
        }
        Ok(self)
    }
}

impl Kdf {
    pub(crate) fn parse(mut kdf: Object) -> Result<Self, Error> {
        let cost = match kdf.string("type")?.as_str() {
            "pbkdf2" => KdfCost::Pbkdf2 {
                hash: match kdf.string("hash")?.as_str() {
                    "sha256" => Hash::Sha256,
                    "sha512" => Hash::Sha512,
                    _ => return Err(kdf.error("hash", "sha256 or sha512")),
                },
                iterations: kdf.integer("iterations", ITERATIONS[0], ITERATIONS[1])? as u32,
            },
            kind @ ("argon2i" | "argon2id") => {
                let lanes = kdf.integer("cpus", 1, LANES_MAX)? as u32;
                let min = 8 * u64::from(lanes);
                KdfCost::Argon2 {
                    hybrid: kind == "argon2id",
                    time: kdf.integer("time", 1, PASSES_MAX)? as u32,
                    memory_kib: kdf.integer("memory", min, MEMORY_KIB_MAX)? as u32,
                    lanes,
                }
            }
            _ => return Err(kdf.error("type", "pbkdf2, argon2i or argon2id")),
        };
        let salt = kdf.base64("salt")?;
        let salt = salt.try_into().map_err(|_| kdf.error("salt", "32 bytes"))?;
        kdf.end()?;
        Ok(Self { cost, salt })
    }

    pub(crate) fn to_json(&self) -> Value {
        let mut members = vec![("type", self.cost.name().into())];
        match self.cost {
            KdfCost::Pbkdf2 { hash, iterations } => members.extend([
                ("hash", hash.name().into()),
                ("iterations", u64::from(iterations).into()),
            ]),
            KdfCost::Argon2 { time, memory_kib, lanes, .. } => members.extend([
                ("time", u64::from(time).into()),
                ("memory", u64::from(memory_kib).into()),
                ("cpus", u64::from(lanes).into()),
            ]),
        }
        members.push(("salt", Base64::encode_string(&self.salt).as_str().into()));
        object(members)
    }

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

/// Memory that the system could give now, in KiB, by its own estimate.
pub(crate) fn memory_available_kib() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().trim_end_matches("kB").trim().parse().ok()
}
