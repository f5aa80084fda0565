//! Patch levels: how the parts of a platform are rated, and what they are worth together.

use std::fmt;

/// What Intel says of a patch level, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Everything is patched.
    UpToDate,
    /// Software must protect itself in addition.
    SWHardeningNeeded,
    /// The platform must be configured otherwise.
    ConfigurationNeeded,
    /// Both.
    ConfigurationAndSWHardeningNeeded,
    /// The platform is patched, but the TD was launched before: launch it again.
    TDRelaunchAdvised,
    /// The same, and the platform must be configured otherwise.
    TDRelaunchAdvisedConfigurationNeeded,
    /// Patches are missing.
    OutOfDate,
    /// Patches are missing, and the platform must be configured otherwise.
    OutOfDateConfigurationNeeded,
    /// Not to be trusted.
    Revoked,
}

impl Status {
    /// Every status.
    pub const ALL: [Self; 9] = [
        Self::UpToDate,
        Self::SWHardeningNeeded,
        Self::ConfigurationNeeded,
        Self::ConfigurationAndSWHardeningNeeded,
        Self::TDRelaunchAdvised,
        Self::TDRelaunchAdvisedConfigurationNeeded,
        Self::OutOfDate,
        Self::OutOfDateConfigurationNeeded,
        Self::Revoked,
    ];

    /// The name that Intel's documents use.
    pub fn name(self) -> &'static str {
        match self {
            Self::UpToDate => "UpToDate",
            Self::SWHardeningNeeded => "SWHardeningNeeded",
            Self::ConfigurationNeeded => "ConfigurationNeeded",
            Self::ConfigurationAndSWHardeningNeeded => "ConfigurationAndSWHardeningNeeded",
            Self::TDRelaunchAdvised => "TDRelaunchAdvised",
            Self::TDRelaunchAdvisedConfigurationNeeded => "TDRelaunchAdvisedConfigurationNeeded",
            Self::OutOfDate => "OutOfDate",
            Self::OutOfDateConfigurationNeeded => "OutOfDateConfigurationNeeded",
            Self::Revoked => "Revoked",
        }
    }

    /// The status of this name in a document; the advice to launch again is never in one.
    pub(super) fn of_document(name: &str) -> Option<Self> {
        let documented = Self::ALL.into_iter().filter(|status| !status.is_relaunch());
        documented.into_iter().find(|status| status.name() == name)
    }

    fn is_relaunch(self) -> bool {
        matches!(self, Self::TDRelaunchAdvised | Self::TDRelaunchAdvisedConfigurationNeeded)
    }

    fn needs_configuration(self) -> bool {
        matches!(
            self,
            Self::ConfigurationNeeded
                | Self::ConfigurationAndSWHardeningNeeded
                | Self::OutOfDateConfigurationNeeded
        )
    }

    fn is_out_of_date(self) -> bool {
        matches!(self, Self::OutOfDate | Self::OutOfDateConfigurationNeeded)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The level that a part of a platform has reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rating {
    /// What it is worth.
    pub status: Status,
    /// Date of the level, in seconds since 1970.
    pub date: u64,
    /// What is known against it.
    pub advisories: Vec<String>,
}

/// A part with a security version of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Component {
    /// One of the 16 components of the CPU and its firmware.
    Sgx(u8),
    /// The provisioning enclave.
    Pce,
    /// One of the 16 components of TDX.
    Tdx(u8),
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Sgx(index) => write!(f, "SGX component {}", index + 1),
            Self::Pce => write!(f, "PCE"),
            Self::Tdx(index) => write!(f, "TDX component {}", index + 1),
        }
    }
}

/// A component below the newest level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shortfall {
    /// Which.
    pub component: Component,
    /// What Intel calls it, such as "BIOS".
    pub category: String,
    /// The version that is there.
    pub has: u16,
    /// The version that is required.
    pub needs: u16,
}

/// The status of platform, module and quoting enclave together (Intel's QVL, convergence).
pub(super) fn converge(platform: &Rating, module: Option<&Rating>, qe: &Rating) -> Status {
    let others = [module.map(|module| module.status), Some(qe.status)];
    let any = |status| others.contains(&Some(status));
    match platform.status {
        _ if any(Status::Revoked) => Status::Revoked,
        status if !any(Status::OutOfDate) => status,
        Status::UpToDate | Status::SWHardeningNeeded => Status::OutOfDate,
        Status::ConfigurationNeeded | Status::ConfigurationAndSWHardeningNeeded => {
            Status::OutOfDateConfigurationNeeded
        }
        status => status,
    }
}

/// The status of a TD whose platform was patched after its launch.
pub(super) fn relaunch(launch: Status, current: Option<Status>) -> Status {
    let Some(current) = current else { return launch };
    let patched = !current.is_out_of_date() && current != Status::Revoked;
    match launch.is_out_of_date() && patched {
        false => launch,
        true if launch.needs_configuration() || current.needs_configuration() => {
            Status::TDRelaunchAdvisedConfigurationNeeded
        }
        true => Status::TDRelaunchAdvised,
    }
}
