//! `hfl roster`: judges everybody whom ps0 has admitted.

use std::path::PathBuf;

use argh::FromArgs;
use protocol::dcap::date;
use protocol::{Entry, Verifier};

use crate::failure::{Doing, Failure};
use crate::files::read_bounded;
use crate::report::print;
use crate::training::roster::parse;
use crate::trust::{Attestation, Source, TrustOptions};
use protocol::hex;

/// Judge everybody who took part in a job, from the roster that ps0 left.
#[derive(FromArgs, Debug)]
#[argh(
    subcommand,
    name = "roster",
    example = "{command_name} --file model/roster.json --policy policy.json --collateral c.json",
    note = "Exit code 1 when an entry does not follow from the one before, or somebody is refused."
)]
pub struct RosterArgs {
    /// the roster [model/roster.json]
    #[argh(option, default = "PathBuf::from(\"model/roster.json\")")]
    file: PathBuf,
    /// time to judge at, RFC 3339 in UTC or seconds since 1970 [when each was admitted]
    #[argh(option, from_str_fn(crate::commands::verify::instant))]
    at: Option<u64>,
    /// trust anchor: tdx (Intel) or sim [tdx]
    #[argh(option, default = "Attestation::Tdx")]
    attestation: Attestation,
    /// collateral: file, https://PCCS:8081[#SHA256], folder to keep it in; as often as needed
    #[argh(option)]
    collateral: Vec<Source>,
    /// policy file that everybody must satisfy
    #[argh(option)]
    policy: Option<PathBuf>,
}

/// Runs the command.
///
/// # Errors
/// When the file is no roster, or somebody in it is refused.
pub fn run(args: RosterArgs) -> Result<(), Failure> {
    let RosterArgs { file, at, attestation, collateral, policy } = args;
    let name = file.display();
    let bytes = read_bounded(&file).doing(&name)?;
    let roster = parse(&bytes.ok_or_else(|| Failure::new(format!("{name}: not there")))?);
    let roster = roster.doing(&name)?;
    let sim_image = TrustOptions::SIM_IMAGE.into();
    let verifier =
        TrustOptions { attestation, collateral, policy, identity: None, sim_image }.verifier()?;
    let refused = roster.entries().iter().filter(|entry| !shown(entry, &verifier, at)).count();
    print(&format!("{} entries, head sha256:{}", roster.entries().len(), hex(roster.head())))?;
    match refused {
        0 => Ok(()),
        _ => Err(Failure::new(format!("{name}: {refused} refused"))),
    }
}

/// Prints an entry with its verdict; whether it is accepted.
fn shown(entry: &Entry, verifier: &Verifier, at: Option<u64>) -> bool {
    let admission = &entry.admission;
    let verdict = admission.verify(verifier, at.unwrap_or(admission.time));
    let (said, mr_td) = match &verdict {
        Ok(verdict) => {
            let status = verdict.platform.as_ref().map_or("simulated", |p| p.status.name());
            // What is no longer accepted was when it came: the rule of that day.
            let ends = verifier.policy.ends(&verdict.report).map(date);
            let day = ends.map_or(String::new(), |end| format!(", by a set that ends {end}"));
            (format!("accepted, {status}{day}"), hex(&verdict.report.mr_td))
        }
        Err(why) => (format!("REFUSED [{}] {why}", why.code()), "-".into()),
    };
    let data = admission.data.map_or(String::new(), |data| format!(" data {}", hex(&data)));
    let line = format!(
        "{} {} key {} MRTD {mr_td} job {} policy {}{data}: {said}",
        date(admission.time),
        admission.role,
        hex(&admission.keys[0]),
        hex(&admission.job),
        hex(&admission.policies[0]),
    );
    print(&line).is_ok() && verdict.is_ok()
}
