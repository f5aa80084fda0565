//! `roster.json`: everybody whom ps0 has admitted, for its restarts and for auditors; `hfl roster` judges it.

use std::path::PathBuf;

use argh::FromArgs;
use base64ct::{Base64, Encoding};
use protocol::dcap::date;
use protocol::{Admission, Entry, Roster, Verifier};
use serde::{Deserialize, Serialize};

use crate::failure::{Doing, Failure};
use crate::model::params::hex;
use crate::report::print;
use crate::training::store::{read_bounded, unhex};
use crate::trust::{Attestation, Source, TrustOptions};

/// The file in the model's directory.
pub const FILE: &str = "roster.json";

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

/// An entry, as the file has it: bytes in hexadecimal, the quote in base64.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    number: u64,
    role: String,
    server: String,
    time: u64,
    /// The peer's key and the server's, as hashes of their SubjectPublicKeyInfos.
    keys: [String; 2],
    nonces: [String; 2],
    exporter: String,
    job: String,
    quote: String,
    previous: String,
}

impl Written {
    fn new(entry: &Entry) -> Self {
        let Admission { role, server, time, keys, nonces, exporter, job, quote } = &entry.admission;
        Self {
            number: entry.number,
            role: role.to_string(),
            server: server.to_string(),
            time: *time,
            keys: [hex(&keys[0]), hex(&keys[1])],
            nonces: [hex(&nonces[0]), hex(&nonces[1])],
            exporter: hex(exporter),
            job: hex(job),
            quote: Base64::encode_string(quote),
            previous: hex(&entry.previous),
        }
    }

    fn read(&self) -> Option<Entry> {
        let bytes = |text: &str| unhex(text)?.try_into().ok();
        let pair = |[a, b]: &[String; 2]| Some([bytes(a)?, bytes(b)?]);
        Some(Entry {
            number: self.number,
            previous: bytes(&self.previous)?,
            admission: Admission {
                role: self.role.parse().ok()?,
                server: self.server.parse().ok()?,
                time: self.time,
                keys: pair(&self.keys)?,
                nonces: pair(&self.nonces)?,
                exporter: bytes(&self.exporter)?,
                job: bytes(&self.job)?,
                quote: Base64::decode_vec(&self.quote).ok()?,
            },
        })
    }
}

/// The file's bytes.
pub fn encode(roster: &Roster) -> Vec<u8> {
    let written: Vec<Written> = roster.entries().iter().map(Written::new).collect();
    serde_json::to_vec_pretty(&written).expect("plain text and numbers")
}

/// The chain in a file's bytes.
///
/// # Errors
/// When they are no roster, or an entry does not follow from the one before.
pub fn parse(bytes: &[u8]) -> Result<Roster, String> {
    let written: Vec<Written> = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let mut roster = Roster::default();
    for (number, entry) in written.iter().enumerate() {
        let entry = entry.read().ok_or_else(|| format!("entry {number} is malformed"))?;
        if !roster.extend(entry) {
            return Err(format!("entry {number} does not follow from the one before"));
        }
    }
    Ok(roster)
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
    let verifier = TrustOptions { attestation, collateral, policy, sim_image }.verifier()?;
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
            (format!("accepted, {status}"), hex(&verdict.report.mr_td))
        }
        Err(why) => (format!("REFUSED [{}] {why}", why.code()), "-".into()),
    };
    let line = format!(
        "{} {} key {} MRTD {mr_td} job {}: {said}",
        date(admission.time),
        admission.role,
        hex(&admission.keys[0]),
        hex(&admission.job),
    );
    print(&line).is_ok() && verdict.is_ok()
}
