//! A passport in plain words.

use protocol::dcap::date;
use protocol::{Admission, Verdict, hex};

use super::found::Checks;
use crate::job::state::Member;
use crate::passport::training::Said;
use crate::training::checkpoint::{BEST_FILE, DATA_FILE};

/// The line of who took part.
pub(super) const PARTICIPANT: &str = "took part";

/// What was trained, on what.
pub(super) fn training(checks: &mut Checks, said: &Said) {
    let Said { job, step, parameters, times, .. } = said;
    let name = [DATA_FILE, BEST_FILE].into_iter().find(|name| said.files.contains_key(*name));
    checks.say(
        "model",
        format!(
            "{}: {}, {} classes, {step} steps, parameters sha256:{}",
            name.unwrap_or("none"),
            job.model,
            job.classes.len(),
            hex(parameters)
        ),
    );
    checks.say("job", format!("sha256:{}, {} workers", hex(&job.digest()), job.workers));
    checks.say("trained", format!("from {} to {}", times[0], times[1]));
    let mut made_of = |what: &str, digest: &[u8]| {
        checks.say("made of", format!("{what}: {}", hex(digest)));
    };
    said.binary.iter().for_each(|hash| made_of("program", hash));
    said.image.iter().for_each(|hash| made_of("image", hash));
    said.config_id.iter().for_each(|id| made_of("initdata (MRCONFIGID)", id));
    made_of("initial parameters", &said.initial);
    for (worker, member) in said.members.iter().enumerate() {
        let Some(Member { samples, data, classes, .. }) = member else { continue };
        let root = data.map_or("of unknown digest".into(), |root| hex(&root));
        let counts: Vec<String> = classes.iter().map(u64::to_string).collect();
        let counts = match counts.is_empty() {
            true => String::new(),
            false => format!(", by class {}", counts.join(" ")),
        };
        checks.say("made of", format!("data of worker{worker}: {samples} samples{counts}, {root}"));
    }
}

/// Who took part; with the verdict, once there is one.
pub(super) fn participant(checks: &mut Checks, admission: &Admission, judged: Option<&Verdict>) {
    let Admission { role, time, keys, .. } = admission;
    let judged = judged.map_or("not judged".into(), verdict);
    checks
        .say(PARTICIPANT, format!("{role} since {}, key {}: {judged}", date(*time), hex(&keys[0])));
}

/// What accepted evidence is of.
pub(super) fn verdict(verdict: &Verdict) -> String {
    let status = verdict.platform.as_ref().map_or("SIMULATED", |platform| platform.status.name());
    format!("accepted, {status}, MRTD {}", hex(&verdict.report.mr_td))
}
