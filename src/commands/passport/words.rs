//! A passport in plain words.

use protocol::dcap::date;
use protocol::{Admission, Verdict, hex};

use super::found::Checks;
use crate::passport::training::Said;

/// The line of who took part.
pub(super) const PARTICIPANT: &str = "took part";

/// What was trained, on what.
pub(super) fn training(checks: &mut Checks, said: &Said) {
    let Said { job, step, parameters, times, .. } = said;
    checks.say(
        "model",
        format!(
            "{}, {} classes, {step} steps, parameters sha256:{}",
            job.model,
            job.classes.len(),
            hex(parameters)
        ),
    );
    checks.say("job", format!("sha256:{}, {} workers", hex(&job.digest()), job.workers));
    checks.say("trained", format!("from {} to {}", times[0], times[1]));
    for (name, digest, samples) in &said.dependencies {
        let samples = samples.map_or(String::new(), |samples| format!("{samples} samples, "));
        checks.say("made of", format!("{}: {samples}{digest}", name.escape_default()));
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
