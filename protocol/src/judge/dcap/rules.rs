//! `Rules`: which genuine platforms and TDs are good enough. The defaults are strict.

use std::fmt;

use super::Verdict;
use super::tcb::Status;
use crate::evidence::quote::{Body, TdReport};

/// Attribute bits of a TD that mean something; bit 0 is DEBUG.
const SEPT_VE_DISABLE: u64 = 1 << 28;
const MIGRATABLE: u64 = 1 << 29;
const KNOWN: u64 = 1 | SEPT_VE_DISABLE | MIGRATABLE | 1 << 30 | 1 << 31 | 1 << 63;

/// What is accepted of a quote that was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Statuses that are good enough.
    pub accepted: Vec<Status>,
    /// TDs whose host can read their memory.
    pub debug: bool,
    /// TDs whose host may inject exceptions into their memory accesses (SEPT_VE_DISABLE is 0).
    pub sept_ve: bool,
    /// TDs that may be moved to another machine.
    pub migratable: bool,
    /// TDs with a service TD bound to them.
    pub service_td: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            accepted: vec![Status::UpToDate],
            debug: false,
            sept_ve: false,
            migratable: false,
            service_td: false,
        }
    }
}

/// Why a genuine quote is not good enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shortcoming {
    /// The TD or the enclave is in debug mode.
    Debug,
    /// The TD may be moved.
    Migratable,
    /// Attribute bits without a meaning are set.
    ReservedAttributes,
    /// Exceptions may be injected.
    SeptVe,
    /// A service TD is bound to it.
    ServiceTd,
    /// The platform's status is not accepted.
    Status(Status),
}

impl Shortcoming {
    /// A stable name for logs and scripts.
    pub fn code(self) -> &'static str {
        match self {
            Self::Debug => "debug-td",
            Self::Migratable => "migratable-td",
            Self::ReservedAttributes => "reserved-attributes",
            Self::SeptVe => "sept-ve",
            Self::ServiceTd => "service-td",
            Self::Status(_) => "tcb-status",
        }
    }
}

impl fmt::Display for Shortcoming {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Debug => write!(f, "debug mode: the host can read its memory"),
            Self::Migratable => write!(f, "the TD may be moved to another machine"),
            Self::ReservedAttributes => write!(f, "attribute bits that have no meaning are set"),
            Self::SeptVe => {
                write!(f, "SEPT_VE_DISABLE is 0: the host can inject exceptions into the TD")
            }
            Self::ServiceTd => write!(f, "a service TD is bound to the TD"),
            Self::Status(status) => write!(f, "the platform's status is {status}"),
        }
    }
}

impl Rules {
    /// Judges what was found out.
    ///
    /// # Errors
    /// The first thing that is not good enough.
    pub fn check(&self, verdict: &Verdict) -> Result<(), Shortcoming> {
        match &verdict.body {
            // Bit 1 of an enclave's attributes.
            Body::Enclave(report) if report[48] & 2 != 0 && !self.debug => {
                return Err(Shortcoming::Debug);
            }
            Body::Enclave(_) => {}
            Body::Td(report) => self.check_td(report)?,
        }
        match self.accepted.contains(&verdict.status) {
            true => Ok(()),
            false => Err(Shortcoming::Status(verdict.status)),
        }
    }

    /// Judges the attributes of a TD.
    ///
    /// # Errors
    /// The first that is not good enough.
    pub fn check_td(&self, report: &TdReport) -> Result<(), Shortcoming> {
        let attributes = u64::from_le_bytes(report.td_attributes);
        let service = report.v15.is_some_and(|v15| v15.mr_service_td != [0; 48]);
        let refused = [
            (report.is_debug() && !self.debug, Shortcoming::Debug),
            (attributes & SEPT_VE_DISABLE == 0 && !self.sept_ve, Shortcoming::SeptVe),
            (attributes & MIGRATABLE != 0 && !self.migratable, Shortcoming::Migratable),
            (attributes & !KNOWN != 0, Shortcoming::ReservedAttributes),
            (service && !self.service_td, Shortcoming::ServiceTd),
        ];
        refused.into_iter().find(|(is, _)| *is).map_or(Ok(()), |(_, why)| Err(why))
    }
}
