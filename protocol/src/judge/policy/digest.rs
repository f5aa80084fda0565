//! The digest of a policy: by it the parties of a job know that they judge one another by the same rules.
//!
//! It covers what a policy means, not how its file is written: order, white space and defaults that are spelled out
//! make no difference. `policies` is left out, for two policies that list one another could not be written else.

use std::fmt::Write as _;

use ring::digest::{SHA256, digest};

use super::{Accepted, Policy};
use crate::hex::Hex;

impl Policy {
    /// SHA-256 over the rules.
    pub fn digest(&self) -> [u8; 32] {
        let mut lines: Vec<String> = self.accepted.iter().map(Accepted::line).collect();
        let mut statuses: Vec<&str> = self.rules.accepted.iter().map(|s| s.name()).collect();
        statuses.sort_unstable();
        statuses.dedup();
        lines.push(format!("statuses {statuses:?}"));
        lines.push(format!(
            "attributes {} {} {} {}",
            self.rules.debug, self.rules.sept_ve, self.rules.migratable, self.rules.service_td
        ));
        lines.push(format!("grace {}", number(self.grace)));
        lines.push(format!("evaluation {}", self.min_evaluation_number));
        lines.push(format!("age {}", number(self.max_age)));
        if let Some(advisories) = &self.advisories {
            // Names come from a file: each is one word, whatever is in it.
            let mut names: Vec<String> =
                advisories.iter().map(|name| Hex(name.as_bytes()).to_string()).collect();
            names.sort_unstable();
            lines.push(format!("advisories {}", names.join(" ")));
        }
        lines.extend(self.platforms.iter().map(|(who, list)| listed("machines", who, list)));
        lines.extend(self.keys.iter().map(|(who, list)| listed("keys", who, list)));
        lines.push(format!("simulated {}", self.simulated));
        lines.sort_unstable();
        lines.dedup();
        let text = format!("hfl-policy-v1\n{}", lines.join("\n"));
        digest(&SHA256, text.as_bytes()).as_ref().try_into().expect("SHA-256 has 32 bytes")
    }
}

impl Accepted {
    fn line(&self) -> String {
        let mut line = String::from("set");
        for (register, value) in &self.values {
            let _ = write!(line, " {register} {}", Hex(value));
        }
        for (pcr, value) in &self.pcrs {
            let _ = write!(line, " PCR{pcr} {}", Hex(value));
        }
        if let Some(roles) = &self.roles {
            let mut names: Vec<&str> = roles.iter().map(|role| role.name()).collect();
            names.sort_unstable();
            names.dedup();
            let _ = write!(line, " roles {}", names.join(" "));
        }
        let _ = write!(line, " until {}", number(self.until));
        line
    }
}

fn number(value: Option<u64>) -> String {
    value.map_or("-".into(), |value| value.to_string())
}

fn listed<const N: usize>(what: &str, whose: &super::Whose, list: &[[u8; N]]) -> String {
    let mut values: Vec<String> = list.iter().map(|value| Hex(value).to_string()).collect();
    values.sort_unstable();
    values.dedup();
    format!("{what} {whose} {}", values.join(" "))
}
