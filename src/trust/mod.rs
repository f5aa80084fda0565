//! What options say about attestation: where our evidence comes from, and whom we trust.

pub mod fetch;
pub(crate) mod flags;
pub(crate) mod gzip;
pub(crate) mod initdata;
pub mod passphrase;
pub mod policy;
pub(crate) mod strangers;
pub mod witness;

use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use luks::linux;
use protocol::{
    Attester, Authority, AzureVm, CollateralStore, Config, ConfigfsTsm, GuestComponents, Host,
    OwnerKey, Pccs, Policy, QuoteService, RemoteVerifier, Role, SimPlatform, Stream, Trust,
    Verifier, dcap,
};
use zeroize::Zeroizing;

use crate::failure::{Doing, Failure};
use crate::files::read_bounded;
use crate::trust::policy::{CONFIG_HINT, open_config, read_collateral, read_policy};
use protocol::{hex, unhex};

/// Where evidence comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attestation {
    /// What this machine has; never simulated.
    Auto,
    /// Quotes of this TD: from the kernel, or with the kernel's report from the host's quote service.
    Tdx,
    /// Quotes of this TD from the guest components of Confidential Containers.
    Coco,
    /// Quotes of this virtual machine of Azure, with those of its virtual TPM.
    Azure,
    /// Simulated TDs under a public test root.
    Sim,
    /// None: an owner's key stands in its place, for a secret service and a trusted node.
    None,
}

impl FromStr for Attestation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "sim" => Ok(Self::Sim),
            "tdx" => Ok(Self::Tdx),
            "coco" => Ok(Self::Coco),
            "azure" => Ok(Self::Azure),
            "none" => Ok(Self::None),
            _ => Err("expected auto, tdx, coco, azure, sim or none".into()),
        }
    }
}

/// The clock was never before this program was written (2026-11-01) or built (`HFL_BUILT` of the release), in seconds
/// since 1970.
pub(crate) const EARLIEST: u64 = {
    let built = match option_env!("HFL_BUILT") {
        None => 0,
        Some(text) => number(text.as_bytes()),
    };
    if built > WRITTEN { built } else { WRITTEN }
};
const WRITTEN: u64 = 1_793_491_200;

/// Decimal digits, when this is compiled.
const fn number(digits: &[u8]) -> u64 {
    let (mut value, mut at) = (0, 0);
    while at < digits.len() {
        assert!(digits[at].is_ascii_digit(), "HFL_BUILT: seconds since 1970");
        value = value * 10 + (digits[at] - b'0') as u64;
        at += 1;
    }
    value
}

/// The options of every command that talks to peers.
#[derive(Clone, Debug)]
pub struct TrustOptions {
    /// Source of evidence.
    pub attestation: Attestation,
    /// Where the collateral of peers' platforms is: files, services, a folder to keep it in. Or one file that
    /// configures a remote verifier.
    pub collateral: Vec<Source>,
    /// What peers must be; simulated TDs without it must be the same as this one.
    pub policy: Option<PathBuf>,
    /// The owner's key that we show; a fresh one without.
    pub identity: Option<PathBuf>,
    /// What the simulated TD runs: a name in the place of an image, for tests of who is refused.
    pub sim_image: String,
}

impl TrustOptions {
    /// The simulated TD's image unless options say otherwise.
    pub const SIM_IMAGE: &str = "hfl";

    /// Our identity of this run in a role, and the judge of our peers.
    ///
    /// # Errors
    /// When there is no evidence, no collateral, or no policy; when the clock is behind.
    pub fn config(&self, role: Role) -> Result<Arc<Config>, Failure> {
        self.config_at(role, clock())
    }

    /// The same by a clock that says this.
    fn config_at(&self, role: Role, now: u64) -> Result<Arc<Config>, Failure> {
        if now + dcap::LEEWAY < EARLIEST {
            let what = format!("this machine's clock is behind: it says {}", dcap::date(now));
            return Err(Failure::new(what).hint("set the time: no certificate would be valid"));
        }
        let attester = self.evidence(role)?;
        let verifier = self.verifier()?;
        verifier.check_clock(now).doing("collateral")?;
        let source = attester.as_ref().map(|from| from.name());
        if let Some(told) = open_config(&verifier.policy, source) {
            log::warn!("the policy: {told} ({CONFIG_HINT})");
        }
        if self.policy.is_some() {
            log::info!("we judge others by the policy sha256:{}", hex(&verifier.policy.digest()));
        }
        let config = match (&self.identity, attester) {
            (Some(path), attester) => {
                let key = read_key(path)?;
                log::info!("our key is sha256:{}", hex(&key.hash().doing(path.display())?));
                Config::of_owner(role, &key, attester, verifier, clock)
            }
            (None, Some(attester)) => Config::new(role, attester, verifier, clock),
            (None, None) => {
                return Err(Failure::usage("--attestation none: a key stands in its place")
                    .hint("--identity FILE (hfl identity create)"));
            }
        };
        config.map(Arc::new).doing("evidence of this TD")
    }

    /// The source of our evidence in a role; none for an owner's machine.
    fn evidence(&self, role: Role) -> Result<Option<Arc<dyn Attester>>, Failure> {
        match (self.attestation, role) {
            (Attestation::None, Role::SecretService | Role::TrustedNode) => Ok(None),
            _ => self.attester().map(Some),
        }
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
            Attestation::Tdx => td().ok_or_else(|| {
                Failure::new("no source of TDX evidence (no configfs-tsm, no /dev/tdx_guest)")
                    .hint("Linux 6.7 or newer in a TD; in a container --attestation coco")
            }),
            Attestation::Coco => guest_components().ok_or_else(|| {
                Failure::new("no attestation agent at 127.0.0.1:8006")
                    .hint("agent.guest_components_rest_api=attestation in the guest's kernel parameters")
            }),
            Attestation::Azure => azure().ok_or_else(|| {
                Failure::new("no TPM with a paravisor's report (/dev/tpmrm0, index 0x01400001)")
                    .hint("as root in a confidential virtual machine; in a container --attestation coco")
            }),
            Attestation::None => Err(Failure::usage("--attestation none: this needs evidence")
                .hint("an owner's key stands in its place for a secret service and a trusted node only")),
            // A kernel there may have configfs-tsm with nobody behind it: the more particular one first.
            Attestation::Auto => azure().or_else(td).or_else(guest_components).ok_or_else(|| {
                Failure::new(
                    "no source of TDX evidence on this machine (no configfs-tsm, no /dev/tdx_guest, no \
                     virtual TPM of Azure, no attestation agent of Confidential Containers)",
                )
                .hint(match self.policy {
                    // Who judges peers by a policy is not led to where anybody meets one.
                    Some(_) => {
                        "this has to run in a TD (hfl doctor says what is missing); an owner's secret service or \
                         trusted node without one: --attestation none --identity FILE"
                    }
                    None => "--attestation sim trains with simulated evidence, which protects nothing",
                })
            }),
        }
    }

    /// The judge of peers.
    ///
    /// # Errors
    /// When there is no policy or no collateral.
    pub fn verifier(&self) -> Result<Verifier, Failure> {
        let policy = self.policy()?;
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
        if policy.simulated {
            log::warn!("SIMULATED peers are accepted, as the policy says: anybody can be one");
            return Ok(Verifier { trust: Trust::Simulated, policy });
        }
        if let Some(service) = self.remote()? {
            return Ok(Verifier { trust: Trust::Remote(Arc::new(service)), policy });
        }
        Ok(Verifier { trust: Trust::Hardware(Arc::new(self.store()?)), policy })
    }

    /// The judge of evidence of which only measurements are not asked about: up to date, no debug mode.
    ///
    /// # Errors
    /// When there is no collateral.
    pub fn lenient_verifier(&self) -> Result<Verifier, Failure> {
        let trust = Trust::Hardware(Arc::new(self.store()?));
        Ok(Verifier { trust, policy: Policy::default() })
    }

    /// The policy that the options name, as the file is now.
    ///
    /// # Errors
    /// When it cannot be read, is none, or has rules that the other options leave nobody to check.
    pub fn policy(&self) -> Result<Option<Policy>, Failure> {
        let policy = self.policy.as_deref().map(read_policy).transpose()?;
        if let (Some(policy), Some(path)) = (&policy, &self.policy) {
            self.check_kind(policy).doing(format!("policy {}", path.display()))?;
        }
        let rule = policy.as_ref().and_then(Policy::needs_collateral);
        if let Some(rule) = rule
            && self.attestation != Attestation::Sim
            && self.remote()?.is_some()
        {
            let what = format!("the policy's {rule} is nothing that a remote verifier tells");
            return Err(Failure::new(what).hint("collateral instead, or a policy without it"));
        }
        Ok(policy)
    }

    /// Measurements of real TDs say nothing about simulated ones, which anybody can make to any measure; and the
    /// other way round.
    fn check_kind(&self, policy: &Policy) -> Result<(), String> {
        let is_real = !policy.accepts_anything() && !policy.simulated;
        match self.attestation {
            Attestation::Sim if is_real => Err("it is of real TDs, and simulated evidence would \
                 let anybody in (our own: --attestation auto in a TD, none with --identity)"
                .into()),
            Attestation::Sim | Attestation::None => Ok(()),
            _ if policy.simulated => Err("it is of simulated TDs, which anybody can make".into()),
            _ => Ok(()),
        }
    }

    /// The remote verifier that the only file configures, if it does.
    fn remote(&self) -> Result<Option<RemoteVerifier>, Failure> {
        let [Source::File(path)] = self.collateral.as_slice() else { return Ok(None) };
        let bytes = if path.is_file() { read_bounded(path).doing(path.display())? } else { None };
        let bytes = Zeroizing::new(bytes.unwrap_or_default());
        match RemoteVerifier::is_configuration(&bytes) {
            true => RemoteVerifier::parse(&bytes).doing(path.display()).map(Some),
            false => Ok(None),
        }
    }

    fn simulated(&self) -> SimPlatform {
        // IMAGE, or IMAGE+N+OTHER: the other one after N quotes.
        let mut parts = self.sim_image.splitn(3, '+');
        let first = parts.next().unwrap_or_default();
        let quotes = parts.next().and_then(|number| number.parse().ok());
        match (quotes, parts.next()) {
            (Some(quotes), Some(other)) => {
                SimPlatform::with_td(clock(), first, false).turning_to(other, quotes)
            }
            _ => SimPlatform::with_td(clock(), &self.sim_image, false),
        }
    }

    /// Everything that the options name.
    fn store(&self) -> Result<CollateralStore, Failure> {
        if self.collateral.is_empty() {
            return Err(Failure::new("no collateral to judge peers with")
                .hint("--collateral https://PCCS:8081 or a FILE, once for each kind of platform"));
        }
        let (mut bundles, mut service, mut cache) = (Vec::new(), None, None);
        for source in &self.collateral {
            match source {
                Source::File(path) if path.is_dir() => cache = Some(path.clone()),
                Source::File(path) => bundles.push(read_collateral(path)?),
                Source::Service(address, authority) => {
                    let pccs = Pccs::new(address, authority).doing(address)?;
                    if service.replace(pccs).is_some() {
                        return Err(Failure::usage("--collateral names two services"));
                    }
                }
            }
        }
        let store = CollateralStore::new(bundles).with_floor(EARLIEST);
        match (service, cache) {
            (Some(service), cache) => Ok(store.with_service(service, cache)),
            (None, None) => Ok(store),
            (None, Some(folder)) => Err(Failure::new(format!("{} is a folder", folder.display()))
                .hint("a folder keeps what a service gives: --collateral https://PCCS:8081 too")),
        }
    }
}

/// A place that collateral comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A bundle, or a folder of them.
    File(PathBuf),
    /// A PCCS, or Intel's PCS, and whose certificate it may show.
    Service(String, Authority),
}

impl Source {
    /// Intel's own service.
    pub fn intel() -> Self {
        Self::Service("https://api.trustedservices.intel.com".into(), Authority::System)
    }
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if !text.starts_with("https://") {
            return match text.contains("://") {
                true => Err("expected https://HOST[:PORT][#SHA256 of its certificate]".into()),
                false => Ok(Self::File(text.into())),
            };
        }
        let (address, pin) = match text.split_once('#') {
            None => (text, None),
            Some((address, pin)) => (address, Some(pin)),
        };
        Pccs::check(address)?;
        let pinned = |pin: &str| {
            let bytes = unhex(&pin.replace(':', "")).and_then(|bytes| bytes.try_into().ok());
            bytes.map(Authority::Pinned).ok_or("after '#': the certificate's SHA-256, 64 digits")
        };
        let authority = pin.map_or(Ok(Authority::System), pinned)?;
        Ok(Self::Service(address.into(), authority))
    }
}

/// The kernel's interface for quotes, else its interface for reports and the host's service.
fn td() -> Option<Arc<dyn Attester>> {
    match ConfigfsTsm::find() {
        Some(tsm) => Some(Arc::new(tsm)),
        None => linux::has_tdx_device().then(|| Arc::new(QuoteService::new(TdxDevice)) as _),
    }
}

fn azure() -> Option<Arc<dyn Attester>> {
    AzureVm::find().map(|machine| Arc::new(machine) as _)
}

fn guest_components() -> Option<Arc<dyn Attester>> {
    GuestComponents::find().map(|agent| Arc::new(agent) as _)
}

/// Where the quote service of a host listens (Intel's default), and how long it may take: as long as the kernel's own
/// interface waits.
const QGS_PORT: u32 = 4050;
const QGS_WAIT: Duration = Duration::from_secs(30);

/// `/dev/tdx_guest`, and vsock to the host.
struct TdxDevice;

impl Host for TdxDevice {
    fn report(&self, report_data: &[u8; 64]) -> io::Result<Vec<u8>> {
        linux::tdx_report(report_data)
    }

    fn connect(&self) -> io::Result<Box<dyn Stream>> {
        Ok(Box::new(linux::vsock_to_host(QGS_PORT, QGS_WAIT)?))
    }
}

/// Reads an owner's key, in memory that is wiped.
pub(crate) fn read_key(path: &Path) -> Result<OwnerKey, Failure> {
    let bytes = read_bounded(path).doing(path.display())?;
    let bytes = bytes.ok_or_else(|| {
        Failure::new(format!("{}: not there", path.display())).hint("hfl identity create")
    })?;
    OwnerKey::parse(&Zeroizing::new(bytes)).doing(path.display())
}

/// Seconds since 1970.
pub fn clock() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(attestation: Attestation, collateral: Vec<Source>) -> TrustOptions {
        let sim_image = TrustOptions::SIM_IMAGE.into();
        TrustOptions { attestation, collateral, policy: None, identity: None, sim_image }
    }

    /// The last second that is too early.
    const EARLY: u64 = EARLIEST - dcap::LEEWAY - 1;

    #[test]
    fn a_clock_before_the_build_starts_no_role_and_makes_no_certificate() {
        let sim = options(Attestation::Sim, Vec::new());
        sim.config_at(Role::Worker(0), EARLY + 1).expect("a few minutes are nothing");
        for role in [Role::ParameterServer(0), Role::Worker(0), Role::SecretService] {
            let failure = sim.config_at(role, EARLY).err().expect("before the build");
            let said = failure.to_string();
            assert!(said.contains("clock is behind") && said.contains("set the time"), "{said}");
        }
    }

    /// The clock may be set back while a role runs: whoever comes then is judged by no collateral.
    #[test]
    fn a_clock_that_is_set_before_the_build_later_lets_collateral_decide_nothing() {
        let nowhere = Source::Service("https://localhost:1".into(), Authority::Pinned([7; 32]));
        let verifier = options(Attestation::Tdx, vec![nowhere]).lenient_verifier();
        let verifier = verifier.expect("a verifier");
        verifier.check_clock(EARLY + 1).expect("a few minutes are nothing");
        let why = verifier.check_clock(EARLY).expect_err("before the build");
        assert_eq!(why, protocol::Rejection::Clock(EARLIEST));
        assert!(why.to_string().contains("built"), "{why}");
    }
}
