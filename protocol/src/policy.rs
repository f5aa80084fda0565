//! `Policy`: which TDs are accepted, and in which role.

use crate::message::Role;
use crate::quote::TdReport;
use crate::verify::Rejection;

/// What a peer's TD must be. Debug TDs are always refused.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Sets of accepted measurements; a TD must match one of them. Empty: any measurement, which
    /// is loud in the logs.
    pub accepted: Vec<Accepted>,
}

/// One accepted set of measurements.
#[derive(Clone, Debug, Default)]
pub struct Accepted {
    /// Measurement of the TD's first memory, if it matters.
    pub mr_td: Option<[u8; 48]>,
    /// Run-time measurements, those that matter.
    pub rt_mr: [Option<[u8; 48]>; 4],
    /// Roles that such a TD may take.
    pub roles: Roles,
}

/// A set of roles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Roles {
    /// Every role.
    #[default]
    Any,
    /// Parameter servers only.
    ParameterServers,
    /// Workers only.
    Workers,
}

impl Policy {
    /// Accepts only TDs that run exactly what `own` runs: the default of a job whose parties all
    /// start the same image.
    pub fn same_as(own: &TdReport) -> Self {
        let rt_mr = own.rt_mr.map(Some);
        Self { accepted: vec![Accepted { mr_td: Some(own.mr_td), rt_mr, roles: Roles::Any }] }
    }

    /// Checks a TD that wants to be `role`; `None` where no role is claimed yet.
    ///
    /// # Errors
    /// The first thing that is not as it must be.
    pub fn check(&self, report: &TdReport, role: Option<Role>) -> Result<(), Rejection> {
        if report.is_debug() {
            return Err(Rejection::DebugTd);
        }
        if self.accepted.is_empty() {
            return Ok(());
        }
        let matching = self.accepted.iter().filter(|accepted| accepted.matches(report));
        let mut matching = matching.peekable();
        if matching.peek().is_none() {
            return Err(Rejection::Measurement {
                mr_td: report.mr_td,
                expected: self.accepted.first().and_then(|accepted| accepted.mr_td),
            });
        }
        match role {
            Some(role) if !matching.any(|accepted| accepted.roles.allow(role)) => {
                Err(Rejection::RoleOfMeasurement(role))
            }
            _ => Ok(()),
        }
    }
}

impl Accepted {
    fn matches(&self, report: &TdReport) -> bool {
        let same = |wanted: &Option<[u8; 48]>, is: &[u8; 48]| wanted.is_none_or(|w| w == *is);
        same(&self.mr_td, &report.mr_td)
            && self.rt_mr.iter().zip(&report.rt_mr).all(|(wanted, is)| same(wanted, is))
    }
}

impl Roles {
    fn allow(self, role: Role) -> bool {
        match (self, role) {
            (Self::Any, _)
            | (Self::ParameterServers, Role::ParameterServer(_))
            | (Self::Workers, Role::Worker(_)) => true,
            (Self::ParameterServers, Role::Worker(_))
            | (Self::Workers, Role::ParameterServer(_)) => false,
        }
    }
}
