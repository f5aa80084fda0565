//! `Policy`: which TDs are accepted, on which platforms, with which keys, and in which role.

mod digest;
mod file;

use std::fmt;

use crate::evidence::quote::TdReport;
use crate::evidence::sim;
use crate::evidence::tpm::Pcrs;
use crate::judge::dcap::{self, Rules, Status};
use crate::rejection::{Differing, Rejection};
use crate::role::{Role, RoleKind};

/// What the agent of a peer pod on Azure extends by the digest of its document (guest-components, `INIT_DATA_PCR`).
const INITDATA_PCR: u8 = 8;

/// What a peer's TD and its platform must be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Sets of accepted measurements; a TD must match one of them. Empty: any measurement, which
    /// is loud in the logs.
    pub accepted: Vec<Accepted>,
    /// Attributes of the TD and statuses of its platform.
    pub rules: Rules,
    /// Platforms that are out of date pass if their level is of this date or later, in seconds since
    /// 1970.
    pub grace: Option<u64>,
    /// The lowest evaluation number of collateral that counts.
    pub min_evaluation_number: u32,
    /// How old collateral may be, in seconds.
    pub max_age: Option<u64>,
    /// The only advisories that a platform may have against it.
    pub advisories: Option<Vec<String>>,
    /// The only machines of some roles, by PPID or platform instance id.
    pub platforms: Vec<(Whose, Vec<[u8; 16]>)>,
    /// The only keys of some roles, as SHA-256 of their SubjectPublicKeyInfos. For a secret service and a trusted
    /// node such a key may stand in the place of evidence.
    pub keys: Vec<(Whose, Vec<[u8; 32]>)>,
    /// Digests of policies that other participants may have beside this one.
    pub policies: Vec<[u8; 32]>,
    /// Whether the measurements are of simulated TDs.
    pub simulated: bool,
}

/// Whom a list of machines or keys is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// Every role.
    Everybody,
    /// Every role of a kind.
    Kind(RoleKind),
    /// One role.
    One(Role),
}

impl Whose {
    fn covers(self, role: Role) -> bool {
        match self {
            Self::Everybody => true,
            Self::Kind(kind) => role.kind() == kind,
            Self::One(one) => role == one,
        }
    }
}

impl fmt::Display for Whose {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Everybody => f.write_str("everybody"),
            Self::Kind(kind) => f.write_str(kind.name()),
            Self::One(role) => role.fmt(f),
        }
    }
}

/// One accepted set of measurements: those that matter, and what they must be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accepted {
    /// Which measurement, and its value.
    pub values: Vec<(Measurement, [u8; 48])>,
    /// PCRs of a virtual TPM, and what they must be: then the values above are of what runs below the guest.
    /// Empty: only TDs without one.
    pub pcrs: Vec<(u8, [u8; 32])>,
    /// Roles that such a TD may take; `None`: those of a job and a trusted node's, not the secret service's.
    pub roles: Option<Vec<RoleKind>>,
    /// The last second in which such a TD is accepted, since 1970. Who was admitted before stays admitted.
    pub until: Option<u64>,
}

/// The measurements of a TD and its module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measurement {
    /// The TDX module.
    MrSeam,
    /// Its signer.
    MrSignerSeam,
    /// The TD's first memory.
    MrTd,
    /// Chosen by the host.
    MrConfigId,
    /// Chosen by the host.
    MrOwner,
    /// Chosen by the host.
    MrOwnerConfig,
    /// Firmware, boot loader and kernel, command line and initrd, application.
    RtMr(u8),
}

impl fmt::Display for Measurement {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::MrSeam => f.write_str("MRSEAM"),
            Self::MrSignerSeam => f.write_str("MRSIGNERSEAM"),
            Self::MrTd => f.write_str("MRTD"),
            Self::MrConfigId => f.write_str("MRCONFIGID"),
            Self::MrOwner => f.write_str("MROWNER"),
            Self::MrOwnerConfig => f.write_str("MROWNERCONFIG"),
            Self::RtMr(index) => write!(f, "RTMR{index}"),
        }
    }
}

/// Why a file is no policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyError(String);

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for PolicyError {}

impl Measurement {
    const ALL: [Self; 10] = [
        Self::MrSeam,
        Self::MrSignerSeam,
        Self::MrTd,
        Self::MrConfigId,
        Self::MrOwner,
        Self::MrOwnerConfig,
        Self::RtMr(0),
        Self::RtMr(1),
        Self::RtMr(2),
        Self::RtMr(3),
    ];

    /// Whether a TD like this one is told from others by it: what the host chooses only where it chose something.
    fn tells(self, report: &TdReport) -> bool {
        match self {
            Self::MrTd | Self::RtMr(_) => true,
            Self::MrConfigId => report.mr_config_id != [0; 48],
            _ => false,
        }
    }

    fn of(self, report: &TdReport) -> &[u8; 48] {
        match self {
            Self::MrSeam => &report.mr_seam,
            Self::MrSignerSeam => &report.mr_signer_seam,
            Self::MrTd => &report.mr_td,
            Self::MrConfigId => &report.mr_config_id,
            Self::MrOwner => &report.mr_owner,
            Self::MrOwnerConfig => &report.mr_owner_config,
            Self::RtMr(index) => &report.rt_mr[usize::from(index)],
        }
    }
}

impl Policy {
    /// Accepts only TDs that run exactly what `own` runs: the default of a job whose parties all
    /// start the same image.
    pub fn same_as(own: &TdReport) -> Self {
        let counts = Measurement::ALL.into_iter().filter(|measurement| measurement.tells(own));
        let values = counts.map(|measurement| (measurement, *measurement.of(own))).collect();
        let roles = Some(RoleKind::ALL.into());
        let accepted = Accepted { values, roles, ..Accepted::default() };
        let simulated = sim::is_simulated_td(own);
        Self { accepted: vec![accepted], simulated, ..Self::default() }
    }

    /// Checks a TD, with the PCRs of its guest if it has a virtual TPM, that wants to be `role` at `at`, in seconds
    /// since 1970; `None` where no role is claimed yet.
    ///
    /// # Errors
    /// The first thing that is not as it must be.
    pub fn check(
        &self,
        report: &TdReport,
        pcrs: Option<&Pcrs>,
        role: Option<Role>,
        at: u64,
    ) -> Result<(), Rejection> {
        self.rules.check_td(report).map_err(Rejection::Rules)?;
        // Every role is the same program: who runs it with secrets of its own is told by a key or by its owner's word.
        let by_key = |role: Role| self.pins(role);
        if self.accepted.is_empty() {
            return match role {
                Some(role @ Role::SecretService) if !by_key(role) => {
                    Err(Rejection::RoleOfMeasurement(role))
                }
                _ => Ok(()),
            };
        }
        let matching = self.accepted.iter().filter(|accepted| accepted.matches(report));
        let judged: Vec<_> =
            matching.map(|accepted| (accepted, accepted.check_pcrs(pcrs))).collect();
        let Some((_, first)) = judged.first() else {
            return Err(Rejection::Measurement(self.differing(report)));
        };
        let mut matching = judged.iter().filter(|(_, judged)| judged.is_ok()).peekable();
        if matching.peek().is_none() {
            return first.clone();
        }
        let may = |accepted: &Accepted| {
            role.is_none_or(|role| {
                accepted.allows(role) || accepted.roles.is_none() && by_key(role)
            })
        };
        let allowing: Vec<_> = matching
            .filter(|(accepted, _)| may(accepted))
            .map(|(accepted, _)| accepted.until)
            .collect();
        let is_over = |until: &Option<u64>| until.is_some_and(|until| at > until);
        match (role, allowing.iter().all(is_over), allowing.iter().flatten().max()) {
            (Some(role), _, _) if allowing.is_empty() => Err(Rejection::RoleOfMeasurement(role)),
            (_, true, Some(until)) => Err(Rejection::Outlived(*until)),
            _ => Ok(()),
        }
    }

    /// What of a TD's measurements is not as a set has it; of several sets the one that comes closest says most.
    pub fn differing(&self, report: &TdReport) -> Vec<Differing> {
        let differing = self.accepted.iter().map(|accepted| accepted.differing(report));
        differing.min_by_key(Vec::len).unwrap_or_default()
    }

    /// When TDs that are measured like this one are no longer accepted, if they are not for good.
    pub fn ends(&self, report: &TdReport) -> Option<u64> {
        let ends = self.accepted.iter().filter(|set| set.matches(report)).map(|set| set.until);
        ends.collect::<Option<Vec<u64>>>()?.into_iter().max()
    }

    /// Checks the key that a peer shows in a role.
    ///
    /// # Errors
    /// When there is a list of keys for the role that does not have it.
    pub fn check_key(&self, role: Role, key: &[u8; 32]) -> Result<(), Rejection> {
        let lists = |list: &&(Whose, Vec<[u8; 32]>)| list.0.covers(role) && !list.1.contains(key);
        match self.keys.iter().find(lists) {
            Some(_) => Err(Rejection::Key(role, *key)),
            None => Ok(()),
        }
    }

    /// Whether a role is known by its key.
    fn pins(&self, role: Role) -> bool {
        self.keys.iter().any(|(whose, _)| whose.covers(role))
    }

    /// Whether the keys of a role are listed, for others as well: nothing says which of them is whose.
    pub fn shares_keys(&self, role: Role) -> bool {
        is_shared(&self.keys, role)
    }

    /// The same of its machines.
    pub fn shares_machines(&self, role: Role) -> bool {
        is_shared(&self.platforms, role)
    }

    /// Whether a key may stand in the place of evidence in a role, or in any.
    pub fn vouches(&self, role: Option<Role>, key: &[u8; 32]) -> bool {
        [Role::SecretService, Role::TrustedNode]
            .into_iter()
            .filter(|owner| role.is_none_or(|role| role == *owner))
            .any(|owner| self.pins(owner) && self.check_key(owner, key).is_ok())
    }

    /// The same with the secret service known by this key alone.
    #[must_use]
    pub fn with_service_key(mut self, key: [u8; 32]) -> Self {
        let service = Whose::Kind(RoleKind::SecretService);
        self.keys.retain(|(whose, _)| *whose != service);
        self.keys.push((service, vec![key]));
        self
    }

    /// Checks the policy by which a fellow of a job judges others.
    ///
    /// # Errors
    /// When it is neither this one nor one that this one lists.
    pub fn check_policy(&self, role: Role, digest: &[u8; 32]) -> Result<(), Rejection> {
        match *digest == self.digest() || self.policies.contains(digest) {
            true => Ok(()),
            false => Err(Rejection::Policy(role, *digest)),
        }
    }

    /// Checks the platform of a quote that was verified at `now`, from a peer in `role`, if it claims one already.
    ///
    /// # Errors
    /// The first thing that is not as it must be.
    pub fn check_platform(
        &self,
        verdict: &dcap::Verdict,
        role: Option<Role>,
        now: u64,
    ) -> Result<(), Rejection> {
        let out_of_date =
            matches!(verdict.status, Status::OutOfDate | Status::OutOfDateConfigurationNeeded);
        let mut rules = self.rules.clone();
        if out_of_date && self.grace.is_some_and(|grace| verdict.tcb_date >= grace) {
            rules.accepted.push(verdict.status);
        }
        rules.check(verdict).map_err(Rejection::Rules)?;
        let refuse = |what: &'static str| Err(Rejection::Platform(what));
        if verdict.evaluation_number < self.min_evaluation_number {
            return refuse("older collateral than min_evaluation_number allows");
        }
        if self.max_age.is_some_and(|age| now.saturating_sub(verdict.issued) > age) {
            return refuse("collateral of more than max_age_days");
        }
        if let Some(allowed) = &self.advisories
            && verdict.advisories.iter().any(|advisory| !allowed.contains(advisory))
        {
            return refuse("an advisory that allowed_advisories does not list");
        }
        let machine = &verdict.machine;
        let is_it = |id: &[u8; 16]| *id == machine.ppid || Some(*id) == machine.instance_id;
        let counts = |whose: Whose| match role {
            Some(role) => whose.covers(role),
            None => whose == Whose::Everybody,
        };
        let mut lists = self.platforms.iter().filter(|(whose, _)| counts(*whose));
        match lists.all(|(_, list)| list.iter().any(is_it)) {
            true => Ok(()),
            false => refuse("a machine that platforms does not list for this role"),
        }
    }

    /// Whether a verdict is by older collateral than the policy takes: newer is worth a question.
    pub fn wants_newer(&self, verdict: &dcap::Verdict, now: u64) -> bool {
        verdict.evaluation_number < self.min_evaluation_number
            || self.max_age.is_some_and(|age| now.saturating_sub(verdict.issued) > age)
    }

    /// The first rule about platforms that only collateral can tell, and no remote verifier does.
    pub fn needs_collateral(&self) -> Option<&'static str> {
        let rules = [
            (self.grace.is_some(), "tcb_date_min"),
            (self.min_evaluation_number > 0, "min_evaluation_number"),
            (self.max_age.is_some(), "max_age_days"),
            (self.advisories.is_some(), "allowed_advisories"),
            (!self.platforms.is_empty(), "platforms"),
        ];
        rules.into_iter().find(|(is, _)| *is).map(|(_, name)| name)
    }

    /// Whether any code may run in the peer's TD.
    pub fn accepts_anything(&self) -> bool {
        self.accepted.is_empty()
    }

    /// Why any guest could meet this policy, if it could.
    pub fn weakness(&self) -> Option<&'static str> {
        match self.accepted.is_empty() {
            true => Some("every measurement is off: ANY code is accepted"),
            false => self.accepted.iter().find_map(Accepted::weakness),
        }
    }

    /// Whether a set leaves open what in confidential pods alone says what runs: MRCONFIGID, or of a TPM PCR 8.
    pub fn leaves_config_open(&self) -> bool {
        let pins = |set: &Accepted| match set.pcrs.is_empty() {
            true => set.values.iter().any(|(m, _)| *m == Measurement::MrConfigId),
            false => set.pcrs.iter().any(|(pcr, _)| *pcr == INITDATA_PCR),
        };
        !self.accepted.iter().all(pins)
    }
}

/// Whether lists cover a role, and none names it alone.
fn is_shared<T>(lists: &[(Whose, T)], role: Role) -> bool {
    let is_covered = lists.iter().any(|(whose, _)| whose.covers(role));
    is_covered && lists.iter().all(|(whose, _)| *whose != Whose::One(role))
}

impl Accepted {
    /// Whether the guest is measured as it must be: by a virtual TPM if there are PCRs here, else by the TD.
    fn check_pcrs(&self, pcrs: Option<&Pcrs>) -> Result<(), Rejection> {
        let Some(pcrs) = pcrs.filter(|_| !self.pcrs.is_empty()) else {
            return match pcrs.is_some() || !self.pcrs.is_empty() {
                true => Err(Rejection::Pcr(None)),
                false => Ok(()),
            };
        };
        let differs = |(number, value): &&(u8, [u8; 32])| pcrs[usize::from(*number)] != *value;
        let wrong = self.pcrs.iter().find(differs).map(|(number, _)| *number);
        wrong.map_or(Ok(()), |number| Err(Rejection::Pcr(Some(number))))
    }

    fn allows(&self, role: Role) -> bool {
        match &self.roles {
            Some(roles) => roles.contains(&role.kind()),
            None => role != Role::SecretService,
        }
    }

    fn matches(&self, report: &TdReport) -> bool {
        self.values.iter().all(|(measurement, value)| measurement.of(report) == value)
    }

    /// What is not as this set has it.
    fn differing(&self, report: &TdReport) -> Vec<Differing> {
        let differ = self.values.iter().filter(|(register, value)| register.of(report) != value);
        let named = differ.map(|&(register, expected)| Differing {
            register: register.to_string(),
            found: *register.of(report),
            expected,
        });
        named.collect()
    }

    /// Why any guest could meet this set. All but MRTD the host chooses (MRCONFIGID, MROWNER), every host has
    /// alike (the module), or firmware of the host's own extends as it likes (RTMRs); and genuine firmware boots
    /// whatever it is given, which RTMR1 and RTMR2 tell, or a virtual TPM.
    fn weakness(&self) -> Option<&'static str> {
        let counts = |wanted| self.values.iter().any(|(register, _)| *register == wanted);
        let has_pcr = |number| self.pcrs.iter().any(|(pcr, _)| *pcr == number);
        if !counts(Measurement::MrTd) {
            return Some("a set without mr_td: firmware of the host's own meets it with ANY guest");
        }
        let is_told = match self.pcrs.is_empty() {
            true => counts(Measurement::RtMr(1)) && counts(Measurement::RtMr(2)),
            false => has_pcr(11) || has_pcr(4) && has_pcr(9),
        };
        (!is_told).then_some(
            "a set without rt_mr1 and rt_mr2 (of a TPM: pcrs 4 and 9, or 11): ANY kernel, initrd or command \
             line meets it",
        )
    }
}

#[cfg(test)]
mod tests;
