//! Policies and collateral from files.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use protocol::Policy;
use protocol::dcap::Collateral;

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
