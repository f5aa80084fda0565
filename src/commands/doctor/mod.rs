//! `hfl doctor`: what a role will need, tried out on this host before the job begins.

mod args;
mod checks;
mod data;
mod finding;

use protocol::Role;

pub use args::DoctorArgs;

use finding::{Finding, Standing};

use crate::failure::{Doing, Failure};
use crate::report::print;

/// Looks at everything and prints it.
///
/// # Errors
/// When something that the role needs has failed.
pub fn run(args: &DoctorArgs) -> Result<(), Failure> {
    if !matches!(args.role, Role::ParameterServer(0) | Role::Worker(_)) {
        return Err(Failure::usage("--role: expected ps0, worker0, ..."));
    }
    let findings = checks::all(args);
    let failed = findings.iter().filter(|finding| finding.standing == Standing::Failed).count();
    if args.json {
        print(&serde_json::to_string(&findings).doing("report")?)?;
    } else {
        print(findings.iter().map(shown).collect::<Vec<_>>().join("\n").trim_end())?;
    }
    match failed {
        0 => Ok(()),
        _ => Err(Failure::new(format!("{failed} of {} checks failed", findings.len()))),
    }
}

fn shown(finding: &Finding) -> String {
    let standing = match finding.standing {
        Standing::Ok => "ok",
        Standing::Warning => "warning",
        Standing::Failed => "FAILED",
    };
    let advice = finding.advice.map_or(String::new(), |advice| format!("\n{:24}do: {advice}", ""));
    format!("{standing:<8} {:<14} {}{advice}", finding.item, finding.found)
}
