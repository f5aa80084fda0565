//! `Derivation`: the function from passphrases to keys that options name, and what it costs.

use luks::{Hash, KdfCost};

/// A function from passphrases to keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Derivation {
    Argon2i,
    Argon2id,
    Pbkdf2,
}

impl Derivation {
    /// What it costs, with as much memory in KiB and as many passes or iterations as options say.
    pub(super) fn cost(self, memory_kib: u32, time: Option<u32>) -> KdfCost {
        match self {
            Self::Pbkdf2 => {
                KdfCost::Pbkdf2 { hash: Hash::Sha256, iterations: time.unwrap_or(600_000) }
            }
            Self::Argon2i | Self::Argon2id => KdfCost::Argon2 {
                hybrid: self == Self::Argon2id,
                time: time.unwrap_or(4),
                memory_kib,
                lanes: 1,
            },
        }
    }
}

impl std::str::FromStr for Derivation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "argon2i" => Ok(Self::Argon2i),
            "argon2id" => Ok(Self::Argon2id),
            "pbkdf2" => Ok(Self::Pbkdf2),
            _ => Err("expected argon2id, argon2i or pbkdf2".into()),
        }
    }
}
