//! What options say about attestation: where our evidence comes from, and whom we trust.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use protocol::dcap::Collateral;
use protocol::{Attester, Config, ConfigfsTsm, Policy, Role, SimPlatform, Trust, Verifier};

use crate::failure::{Doing, Failure};
use crate::verify;

/// Where evidence comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attestation {
    /// What this machine has; never simulated.
    Auto,
    /// Quotes of this TD from the kernel.
    Tdx,
    /// Simulated TDs under a public test root.
    Sim,
}

impl FromStr for Attestation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "sim" => Ok(Self::Sim),
            "tdx" => Ok(Self::Tdx),
            _ => Err("expected auto, tdx or sim".into()),
        }
    }
}

/// The options of every command that talks to peers.
#[derive(Clone, Debug)]
pub struct TrustOptions {
    /// Source of evidence.
    pub attestation: Attestation,
    /// Bundles with the collateral of peers' platforms.
    pub collateral: Vec<PathBuf>,
    /// What peers must be; simulated TDs without it must be the same as this one.
    pub policy: Option<PathBuf>,
    /// What the simulated TD runs: a name in the place of an image, for tests of who is refused.
    pub sim_image: String,
}

impl TrustOptions {
    /// The simulated TD's image unless options say otherwise.
    pub const SIM_IMAGE: &str = "hfl";

    /// Our identity of this run in a role, and the judge of our peers.
    ///
    /// # Errors
    /// When there is no evidence, no collateral, or no policy.
    pub fn config(&self, role: Role) -> Result<Arc<Config>, Failure> {
        let attester = self.attester()?;
        let verifier = self.verifier()?;
        let config = Config::new(role, attester, verifier, clock);
        config.map(Arc::new).doing("evidence of this TD")
    }

    /// The source of our evidence.
    ///
    /// # Errors
    /// When this machine has none.
    pub fn attester(&self) -> Result<Arc<dyn Attester>, Failure> {
        match self.attestation {
            Attestation::Sim => {
                log::warn!("SIMULATED attestation: anybody can forge it; for tests and demos only");
                Ok(Arc::new(self.simulated()))
            }
            Attestation::Auto | Attestation::Tdx => match ConfigfsTsm::find() {
                Some(tsm) => Ok(Arc::new(tsm)),
                None => {
                    let what = "no source of TDX evidence on this machine (no configfs-tsm)";
                    Err(Failure::new(what).hint(
                        "--attestation sim trains with simulated evidence, which protects nothing",
                    ))
                }
            },
        }
    }

    fn verifier(&self) -> Result<Verifier, Failure> {
        let policy = self.policy.as_deref().map(verify::policy).transpose()?;
        if self.attestation == Attestation::Sim {
            let policy = policy.unwrap_or_else(|| Policy::same_as(self.simulated().report()));
            return Ok(Verifier { trust: Trust::Simulated, policy });
        }
        // Not from a quote of this TD: quotes pass through the host, which may answer with another
        // TD's and so choose whom this one would trust.
        let policy = policy.ok_or_else(|| {
            Failure::new("no policy to judge peers with")
                .hint("--policy FILE; hfl quote --policy-template makes one to be checked")
        })?;
        Ok(Verifier { trust: Trust::Hardware(self.collateral()?.into()), policy })
    }

    fn simulated(&self) -> SimPlatform {
        SimPlatform::with_td(clock(), &self.sim_image, false)
    }

    fn collateral(&self) -> Result<Vec<Collateral>, Failure> {
        if self.collateral.is_empty() {
            return Err(Failure::new("no collateral to judge peers with")
                .hint("--collateral FILE, once for each kind of platform"));
        }
        self.collateral.iter().map(|path| verify::collateral(path)).collect()
    }
}

/// Seconds since 1970.
pub fn clock() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
