//! The parts in a job, and their names.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A part in a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Role {
    /// Keeps parameters and optimiser state.
    ParameterServer(u16),
    /// Computes gradients on its own data.
    Worker(u16),
    /// Gives out passphrases of volumes.
    SecretService,
    /// Fetches a secret or the finished model, and takes no part in the training.
    TrustedNode,
}

/// What a role is, whichever of its kind: the unit of policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RoleKind {
    /// `ps`.
    ParameterServer,
    /// `worker`.
    Worker,
    /// `secret`.
    SecretService,
    /// `node`.
    TrustedNode,
}

impl RoleKind {
    /// Every kind.
    pub const ALL: [Self; 4] =
        [Self::ParameterServer, Self::Worker, Self::SecretService, Self::TrustedNode];

    /// Its name, as in policies.
    pub fn name(self) -> &'static str {
        match self {
            Self::ParameterServer => "ps",
            Self::Worker => "worker",
            Self::SecretService => "secret",
            Self::TrustedNode => "node",
        }
    }
}

impl Role {
    /// What it is.
    pub fn kind(self) -> RoleKind {
        match self {
            Self::ParameterServer(_) => RoleKind::ParameterServer,
            Self::Worker(_) => RoleKind::Worker,
            Self::SecretService => RoleKind::SecretService,
            Self::TrustedNode => RoleKind::TrustedNode,
        }
    }

    /// Four bytes, for digests.
    pub(crate) fn encode(self) -> [u8; 4] {
        let (kind, index) = match self {
            Self::ParameterServer(index) => (0, index),
            Self::Worker(index) => (1, index),
            Self::SecretService => (2, 0),
            Self::TrustedNode => (3, 0),
        };
        let [low, high] = index.to_le_bytes();
        [kind, 0, low, high]
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::ParameterServer(index) => write!(f, "ps{index}"),
            Self::Worker(index) => write!(f, "worker{index}"),
            Self::SecretService | Self::TrustedNode => f.write_str(self.kind().name()),
        }
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |digits: &str| digits.parse::<u16>().ok().filter(|n| n.to_string() == digits);
        let role = match (text.strip_prefix("ps"), text.strip_prefix("worker")) {
            (Some(digits), _) => number(digits).map(Self::ParameterServer),
            (_, Some(digits)) => number(digits).map(Self::Worker),
            _ => [Self::SecretService, Self::TrustedNode]
                .into_iter()
                .find(|r| r.kind().name() == text),
        };
        role.ok_or_else(|| "expected ps0, worker0, worker1, ...".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_read_as_they_print() {
        let others = [Role::SecretService, Role::TrustedNode];
        let numbered = [Role::ParameterServer(0), Role::Worker(0), Role::Worker(65_535)];
        for role in numbered.into_iter().chain(others) {
            assert_eq!(role.to_string().parse(), Ok(role));
        }
        for bad in ["", "ps", "worker-1", "worker01", "worker65536", "chief0", "node0"] {
            assert!(bad.parse::<Role>().is_err(), "{bad}");
        }
    }
}
