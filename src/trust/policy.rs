//! Policies and collateral from files.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use protocol::dcap::Collateral;
use protocol::{GuestComponents, Policy};

use crate::failure::{Doing, Failure};

/// Largest file that is read: a policy is a few KB, a bundle of collateral up to some MiB.
const FILE_LEN_MAX: u64 = 8 << 20;

/// Reads a bundle of collateral.
///
/// # Errors
/// When it cannot be read, or is none.
pub fn read_collateral(path: &Path) -> Result<Collateral, Failure> {
    Collateral::parse(&read(path)?).doing(format!("collateral {}", path.display()))
}

/// Reads a policy file; says so if any guest could meet it.
///
/// # Errors
/// When it cannot be read, or is no policy.
pub fn read_policy(path: &Path) -> Result<Policy, Failure> {
    let policy = Policy::parse(&read(path)?).doing(format!("policy {}", path.display()))?;
    if let Some(weakness) = policy.weakness() {
        log::warn!("policy {}: {weakness}", path.display());
    }
    Ok(policy)
}

/// What to say of a policy that leaves open what a pod runs, where our own evidence comes from `source`: a pod meets
/// other pods, and an owner without evidence cannot know whom it meets.
pub(crate) fn open_config(policy: &Policy, source: Option<&str>) -> Option<&'static str> {
    let told = match source {
        Some(GuestComponents::NAME) => {
            "it leaves mr_config_id (of a TPM: PCR 8) open: ANY image in the same guest meets it, and peers are pods"
        }
        None => {
            "it leaves mr_config_id (of a TPM: PCR 8) open: where peers are pods, ANY image in the same guest meets it"
        }
        Some(_) => return None,
    };
    policy.leaves_config_open().then_some(told)
}

/// What to do about that.
pub(crate) const CONFIG_HINT: &str =
    "hfl initdata, and hfl quote --policy-template --init-data FILE";

/// Reads a file of at most 8 MiB.
///
/// # Errors
/// When it cannot be read, or is larger.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let file = File::open(path).doing(path.display())?;
    file.take(FILE_LEN_MAX + 1).read_to_end(&mut bytes).doing(path.display())?;
    match bytes.len() as u64 > FILE_LEN_MAX {
        true => Err(Failure::new(format!("{}: more than 8 MiB", path.display()))),
        false => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::SimPlatform;

    #[test]
    fn a_policy_that_leaves_open_what_a_pod_runs_is_told_where_that_may_matter() {
        let report = *SimPlatform::new(1_800_000_000).report();
        let mut pod = report;
        pod.mr_config_id = [7; 48];
        let [open, pinned] = [report, pod].map(|report| Policy::same_as(&report));
        let told = open_config(&open, Some(GuestComponents::NAME)).expect("in a pod");
        assert!(told.contains("ANY image") && told.ends_with(", and peers are pods"), "{told}");
        let told = open_config(&open, None).expect("an owner without evidence");
        assert!(told.contains("where peers are pods"), "{told}");
        assert_eq!(open_config(&open, Some("configfs-tsm")), None, "virtual machines have none");
        for source in [None, Some(GuestComponents::NAME)] {
            assert_eq!(open_config(&pinned, source), None);
            assert_eq!(open_config(&Policy::default(), source), None, "it is told as any guest's");
        }
    }
}
