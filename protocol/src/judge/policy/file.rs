//! Policies as files: JSON with the key names of the system that this one replaces, and some of our own.
//!
//! `verify_mr_td: "on"` says that a measurement counts, `tdx_mrs` lists sets of which one must match. Unknown keys are
//! errors. Each key is explained in `deploy/policy.md`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Accepted, Measurement, Policy, PolicyError, Whose};
use crate::evidence::quote::TdReport;
use crate::evidence::sim;
use crate::evidence::tpm::Pcrs;
use crate::hex::{self, Hex};
use crate::judge::dcap::{self, Rules, Status};
use crate::role::{Role, RoleKind};

/// Largest policy file, most sets in it (each quote is compared with every set), and most of any other list.
const FILE_LEN_MAX: usize = 1 << 20;
const SETS_MAX: usize = 64;
const LIST_MAX: usize = 1024;
const SECONDS_OF_DAY: u64 = 86400;
/// PCRs that are the same wherever a guest's image runs: firmware, boot loader, Secure Boot, kernel with
/// command line and initrd, unified kernel image and its parts (UAPI Group's and systemd's registries).
const TEMPLATE_PCRS: [u8; 9] = [0, 4, 7, 8, 9, 11, 12, 13, 14];

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
    platforms: Option<Platforms>,
    /// Of secret services and trusted nodes; of a job's participants by role.
    #[serde(skip_serializing_if = "Option::is_none")]
    service_keys: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_keys: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    participant_keys: Option<BTreeMap<String, Vec<String>>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    policies: Vec<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    simulated: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    allow_debug: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    allow_sept_ve: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    allow_migratable: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    allow_service_td: bool,
}

/// Machines of everybody, or by role.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(untagged, expecting = "platforms: a list of digits, or an object with such a list a role")]
enum Platforms {
    Everybody(Vec<String>),
    Roles(BTreeMap<String, Vec<String>>),
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
    /// `ps`, `worker`, `secret`, `node`; all but `secret` if it is not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    roles: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<String>,
}

/// What is listed, each for whom.
type Lists<const N: usize> = Vec<(Whose, Vec<[u8; N]>)>;

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

impl File {
    /// The only machines of some roles.
    fn machines(&self) -> Result<Lists<16>, PolicyError> {
        const WRONG: &str = "platforms: 32 digits each, at least one";
        match &self.platforms {
            None => Ok(Vec::new()),
            Some(Platforms::Everybody(list)) => Ok(vec![(Whose::Everybody, listed(list, WRONG)?)]),
            Some(Platforms::Roles(lists)) => by_role(lists, "platforms", WRONG),
        }
    }

    /// The only keys of some roles.
    fn keys(&self) -> Result<Lists<32>, PolicyError> {
        let none = BTreeMap::new();
        let participants = self.participant_keys.as_ref().unwrap_or(&none);
        let mut keys =
            by_role(participants, "participant_keys", "participant_keys: 64 digits each")?;
        if keys.iter().any(|(whose, _)| !is_participant(*whose)) {
            return Err(PolicyError("participant_keys: of ps and worker only".into()));
        }
        for (list, kind, name) in [
            (
                &self.service_keys,
                RoleKind::SecretService,
                "service_keys: 64 digits each, at least one",
            ),
            (&self.node_keys, RoleKind::TrustedNode, "node_keys: 64 digits each, at least one"),
        ] {
            if let Some(list) = list {
                keys.push((Whose::Kind(kind), listed(list, name)?));
            }
        }
        Ok(keys)
    }
}

fn is_participant(whose: Whose) -> bool {
    let kind = match whose {
        Whose::Everybody => return false,
        Whose::Kind(kind) => kind,
        Whose::One(role) => role.kind(),
    };
    matches!(kind, RoleKind::ParameterServer | RoleKind::Worker)
}

/// Lists by the name of a role or of a kind of roles.
fn by_role<const N: usize>(
    lists: &BTreeMap<String, Vec<String>>,
    key: &str,
    wrong: &str,
) -> Result<Lists<N>, PolicyError> {
    let one = |(name, list): (&String, &Vec<String>)| {
        let kind = RoleKind::ALL.into_iter().find(|kind| kind.name() == *name).map(Whose::Kind);
        let whose = kind.or_else(|| name.parse::<Role>().ok().map(Whose::One));
        let unknown = || PolicyError(format!("{key}: expected ps, worker, worker0, secret, ..."));
        Ok((whose.ok_or_else(unknown)?, listed(list, wrong)?))
    };
    lists.iter().map(one).collect()
}

/// A list with at least one value: an empty one would let nobody in.
fn listed<const N: usize>(list: &[String], wrong: &str) -> Result<Vec<[u8; N]>, PolicyError> {
    match list.is_empty() {
        true => Err(PolicyError(wrong.into())),
        false => digits(list, wrong),
    }
}

fn digits<const N: usize>(list: &[String], wrong: &str) -> Result<Vec<[u8; N]>, PolicyError> {
    if list.len() > LIST_MAX {
        return Err(PolicyError(format!("a list of more than {LIST_MAX} values")));
    }
    let one = |text: &String| array(text).ok_or_else(|| PolicyError(wrong.into()));
    list.iter().map(one).collect()
}

/// A day, or a moment.
fn date(text: &str) -> Option<u64> {
    dcap::parse_timestamp(text).or_else(|| dcap::parse_timestamp(&format!("{text}T00:00:00Z")))
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
        let grace = file.tcb_date_min.as_deref().map(|text| {
            date(text).ok_or_else(|| wrong("tcb_date_min is no date such as 2026-01-31"))
        });
        Ok(Self {
            accepted,
            rules,
            grace: grace.transpose()?,
            min_evaluation_number: file.min_evaluation_number.unwrap_or(0),
            max_age: file.max_age_days.map(|days| u64::from(days) * SECONDS_OF_DAY),
            platforms: file.machines()?,
            keys: file.keys()?,
            policies: digits(&file.policies, "policies: 64 digits each")?,
            simulated: file.simulated,
            advisories: file.allowed_advisories,
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
        file.simulated = sim::is_simulated_td(report);
        serde_json::to_string_pretty(&file).expect("plain text and numbers")
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
        let until = set.until.as_deref().map(|text| {
            let wrong = || PolicyError("until is no date such as 2026-01-31".into());
            date(text).ok_or_else(wrong)
        });
        Ok(Self { values, pcrs, roles, until: until.transpose()? })
    }
}

fn array<const N: usize>(text: &str) -> Option<[u8; N]> {
    hex::unhex(text)?.try_into().ok()
}
