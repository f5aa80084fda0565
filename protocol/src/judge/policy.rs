//! `Policy`: which TDs are accepted, on which platforms, and in which role; from a file or made up here.
//!
//! The file is JSON with the key names of the system that this one replaces: `verify_mr_td: "on"` says
//! that a measurement counts, `tdx_mrs` lists sets of which one must match. Unknown keys are errors.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::evidence::quote::TdReport;
use crate::evidence::tpm::Pcrs;
use crate::hex::{self, Hex};
use crate::judge::dcap::{self, Rules, Status};
use crate::rejection::{Differing, Rejection};
use crate::role::{Role, RoleKind};

/// Largest policy file, and most sets in it: each quote is compared with every set.
const FILE_LEN_MAX: usize = 1 << 20;
const SETS_MAX: usize = 64;
const SECONDS_OF_DAY: u64 = 86400;
/// PCRs that are the same wherever a guest's image runs: firmware, boot loader, Secure Boot, kernel with
/// command line and initrd, unified kernel image and its parts (UAPI Group's and systemd's registries).
const TEMPLATE_PCRS: [u8; 9] = [0, 4, 7, 8, 9, 11, 12, 13, 14];

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
    /// The only machines, by PPID or platform instance id.
    pub platforms: Option<Vec<[u8; 16]>>,
}

/// One accepted set of measurements: those that matter, and what they must be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accepted {
    /// Which measurement, and its value.
    pub values: Vec<(Measurement, [u8; 48])>,
    /// PCRs of a virtual TPM, and what they must be: then the values above are of what runs below the guest.
    /// Empty: only TDs without one.
    pub pcrs: Vec<(u8, [u8; 32])>,
    /// Roles that such a TD may take; `None`: every role.
    pub roles: Option<Vec<RoleKind>>,
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

/// The file, as it is written.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    verify_mr_seam: Switch,
    verify_mrsigner_seam: Switch,
    verify_mr_td: Switch,
    verify_mr_config_id: Switch,
    verify_mr_owner: Switch,
    verify_mr_owner_config: Switch,
    verify_rt_mr0: Switch,
    verify_rt_mr1: Switch,
    verify_rt_mr2: Switch,
    verify_rt_mr3: Switch,
    tdx_mrs: Vec<Set>,
    /// Names such as `UpToDate`.
    #[serde(skip_serializing_if = "Option::is_none")]
    tcb_statuses: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tcb_date_min: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    min_evaluation_number: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_age_days: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    allowed_advisories: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    platforms: Option<Vec<String>>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    allow_debug: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    allow_sept_ve: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    allow_migratable: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    allow_service_td: bool,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Switch {
    #[default]
    Off,
    On,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
struct Set {
    mr_seam: String,
    mrsigner_seam: String,
    mr_td: String,
    mr_config_id: String,
    mr_owner: String,
    mr_owner_config: String,
    rt_mr0: String,
    rt_mr1: String,
    rt_mr2: String,
    rt_mr3: String,
    /// Digits by number.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pcrs: BTreeMap<u8, String>,
    /// `ps`, `worker`, `secret`, `node`; every role if it is not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    roles: Option<Vec<String>>,
}

impl File {
    /// Every measurement with its switch, in the order of [`Measurement::ALL`].
    fn switches(&mut self) -> [&mut Switch; 10] {
        [
            &mut self.verify_mr_seam,
            &mut self.verify_mrsigner_seam,
            &mut self.verify_mr_td,
            &mut self.verify_mr_config_id,
            &mut self.verify_mr_owner,
            &mut self.verify_mr_owner_config,
            &mut self.verify_rt_mr0,
            &mut self.verify_rt_mr1,
            &mut self.verify_rt_mr2,
            &mut self.verify_rt_mr3,
        ]
    }
}

impl Set {
    /// Every measurement's text, in the order of [`Measurement::ALL`].
    fn texts(&mut self) -> [&mut String; 10] {
        [
            &mut self.mr_seam,
            &mut self.mrsigner_seam,
            &mut self.mr_td,
            &mut self.mr_config_id,
            &mut self.mr_owner,
            &mut self.mr_owner_config,
            &mut self.rt_mr0,
            &mut self.rt_mr1,
            &mut self.rt_mr2,
            &mut self.rt_mr3,
        ]
    }
}

impl Policy {
    /// Reads a policy file.
    ///
    /// # Errors
    /// Unknown keys, measurements that are switched on and missing in a set, impossible values.
    pub fn parse(bytes: &[u8]) -> Result<Self, PolicyError> {
        let wrong = |what: &str| PolicyError(what.to_owned());
        if bytes.len() > FILE_LEN_MAX {
            return Err(wrong("more than 1 MiB"));
        }
        // An array would be taken for the object's values in their order.
        if bytes.trim_ascii_start().first() != Some(&b'{') {
            return Err(wrong("no JSON object"));
        }
        let mut file: File =
            serde_json::from_slice(bytes).map_err(|error| PolicyError(error.to_string()))?;
        let mut on = Vec::new();
        for (measurement, switch) in Measurement::ALL.into_iter().zip(file.switches()) {
            on.extend((*switch == Switch::On).then_some(measurement));
        }
        if file.tdx_mrs.len() > SETS_MAX || (on.is_empty() != file.tdx_mrs.is_empty()) {
            return Err(wrong("tdx_mrs lists no set, too many, or sets of which nothing counts"));
        }
        let sets = file.tdx_mrs.iter_mut().map(|set| Accepted::parse(set, &on));
        let accepted = sets.collect::<Result<_, _>>()?;
        let status = |name: &String| {
            Status::ALL
                .into_iter()
                .find(|status| status.name() == *name)
                .ok_or_else(|| wrong("tcb_statuses names a status that is not known"))
        };
        let mut rules = Rules {
            debug: file.allow_debug,
            sept_ve: file.allow_sept_ve,
            migratable: file.allow_migratable,
            service_td: file.allow_service_td,
            ..Rules::default()
        };
        if let Some(names) = &file.tcb_statuses {
            rules.accepted = names.iter().map(status).collect::<Result<_, _>>()?;
        }
        let grace = file.tcb_date_min.map(|text| {
            let day = format!("{text}T00:00:00Z");
            dcap::parse_timestamp(&text)
                .or_else(|| dcap::parse_timestamp(&day))
                .ok_or_else(|| wrong("tcb_date_min is no date such as 2026-01-31"))
        });
        let platform =
            |text: &String| array(text).ok_or_else(|| wrong("platforms: 32 digits each"));
        let platforms = file.platforms.as_ref();
        let platforms = platforms.map(|list| list.iter().map(platform).collect::<Result<_, _>>());
        Ok(Self {
            accepted,
            rules,
            grace: grace.transpose()?,
            min_evaluation_number: file.min_evaluation_number.unwrap_or(0),
            max_age: file.max_age_days.map(|days| u64::from(days) * SECONDS_OF_DAY),
            advisories: file.allowed_advisories,
            platforms: platforms.transpose()?,
        })
    }

    /// A policy file that accepts TDs that are measured like this one, and guests like this one where a
    /// virtual TPM measures them. MRCONFIGID counts if it is set: in confidential pods it alone says which image
    /// runs, with which arguments. The module, which is patched, and the owner are switched off.
    pub fn template(report: &TdReport, pcrs: Option<&Pcrs>) -> String {
        let (mut file, mut set) = (File::default(), Set::default());
        for (measurement, text) in Measurement::ALL.into_iter().zip(set.texts()) {
            *text = Hex(measurement.of(report)).to_string();
        }
        for (measurement, switch) in Measurement::ALL.into_iter().zip(file.switches()) {
            if measurement.tells(report) {
                *switch = Switch::On;
            }
        }
        for pcr in pcrs.iter().flat_map(|_| TEMPLATE_PCRS) {
            let value = pcrs.map(|pcrs| Hex(&pcrs[usize::from(pcr)]).to_string());
            set.pcrs.extend(value.map(|value| (pcr, value)));
        }
        file.tdx_mrs.push(set);
        file.tcb_statuses = Some(vec![Status::UpToDate.name().into()]);
        serde_json::to_string_pretty(&file).expect("plain text and numbers")
    }

    /// Accepts only TDs that run exactly what `own` runs: the default of a job whose parties all
    /// start the same image.
    pub fn same_as(own: &TdReport) -> Self {
        let counts = Measurement::ALL.into_iter().filter(|measurement| measurement.tells(own));
        let values = counts.map(|measurement| (measurement, *measurement.of(own))).collect();
        let accepted = Accepted { values, ..Accepted::default() };
        Self { accepted: vec![accepted], ..Self::default() }
    }

    /// Checks a TD, with the PCRs of its guest if it has a virtual TPM, that wants to be `role`; `None` where
    /// no role is claimed yet.
    ///
    /// # Errors
    /// The first thing that is not as it must be.
    pub fn check(
        &self,
        report: &TdReport,
        pcrs: Option<&Pcrs>,
        role: Option<Role>,
    ) -> Result<(), Rejection> {
        self.rules.check_td(report).map_err(Rejection::Rules)?;
        if self.accepted.is_empty() {
            return Ok(());
        }
        let matching = self.accepted.iter().filter(|accepted| accepted.matches(report));
        let judged: Vec<_> =
            matching.map(|accepted| (accepted, accepted.check_pcrs(pcrs))).collect();
        let Some((_, first)) = judged.first() else {
            // Of several sets the one that comes closest says most.
            let differing = self.accepted.iter().map(|accepted| accepted.differing(report));
            return Err(Rejection::Measurement(differing.min_by_key(Vec::len).unwrap_or_default()));
        };
        let mut matching = judged.iter().filter(|(_, judged)| judged.is_ok()).peekable();
        if matching.peek().is_none() {
            return first.clone();
        }
        match role {
            Some(role) if !matching.any(|(accepted, _)| accepted.allows(role)) => {
                Err(Rejection::RoleOfMeasurement(role))
            }
            _ => Ok(()),
        }
    }

    /// Checks the platform of a quote that was verified at `now`.
    ///
    /// # Errors
    /// The first thing that is not as it must be.
    pub fn check_platform(&self, verdict: &dcap::Verdict, now: u64) -> Result<(), Rejection> {
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
        if let Some(platforms) = &self.platforms
            && !platforms.iter().any(|id| *id == machine.ppid || Some(*id) == machine.instance_id)
        {
            return refuse("a machine that platforms does not list");
        }
        Ok(())
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
            (self.platforms.is_some(), "platforms"),
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

    /// Whether a set leaves MRCONFIGID open, which in confidential pods alone says what runs.
    pub fn leaves_config_open(&self) -> bool {
        let pins = |set: &Accepted| set.values.iter().any(|(m, _)| *m == Measurement::MrConfigId);
        !self.accepted.iter().all(pins)
    }
}

impl Accepted {
    fn parse(set: &mut Set, on: &[Measurement]) -> Result<Self, PolicyError> {
        let kind = |name: &String| {
            let wrong = || PolicyError("roles: expected ps, worker, secret, node".into());
            RoleKind::ALL.into_iter().find(|kind| kind.name() == *name).ok_or_else(wrong)
        };
        let roles = set.roles.as_ref().map(|names| names.iter().map(kind).collect());
        let roles: Option<Vec<RoleKind>> = roles.transpose()?;
        if roles.as_ref().is_some_and(Vec::is_empty) {
            return Err(PolicyError("roles: an empty list lets nobody in".into()));
        }
        let mut values = Vec::new();
        for (measurement, text) in Measurement::ALL.into_iter().zip(set.texts()) {
            if on.contains(&measurement) {
                let value = array(text).ok_or_else(|| {
                    PolicyError(format!("{measurement:?} is switched on: 96 digits in each set"))
                })?;
                values.push((measurement, value));
            }
        }
        // Whoever owns a TD writes the claims about its TPM: what runs there must be known first.
        if !set.pcrs.is_empty() && !on.contains(&Measurement::MrTd) {
            return Err(PolicyError("pcrs say nothing unless verify_mr_td is on".into()));
        }
        let pcr = |(number, text): (&u8, &String)| {
            let wrong = || PolicyError("pcrs: numbers from 0 to 23, 64 digits each".into());
            let value = array(text).filter(|_| *number < 24).ok_or_else(wrong)?;
            Ok((*number, value))
        };
        let pcrs = set.pcrs.iter().map(pcr).collect::<Result<_, _>>()?;
        Ok(Self { values, pcrs, roles })
    }

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
        self.roles.as_ref().is_none_or(|roles| roles.contains(&role.kind()))
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

fn array<const N: usize>(text: &str) -> Option<[u8; N]> {
    hex::unhex(text)?.try_into().ok()
}

#[cfg(test)]
mod tests;
