//! What a worker has kept of its receipts against what a passport says: were all told the same, is all of it in?

use std::collections::BTreeMap;
use std::path::Path;

use super::found::{Checks, Fault, Passport, short};
use super::model::Told;
use crate::files::read_bounded;
use crate::training::ledger::Ledger;
use crate::training::round::Contributed;
use crate::training::rounds;

/// Checks one worker's file; `ours` are the heads that the passport has.
pub(super) fn check(
    checks: &mut Checks,
    path: &Path,
    passport: &Passport,
    ours: Option<&Told>,
) -> Result<(), Fault> {
    let name = path.display();
    let bytes = read_bounded(path).map_err(|error| format!("{name}: {error}"))?;
    let bytes = bytes.ok_or(format!("{name}: no such file"))?;
    let mut kept = Ledger::parse(&bytes).map_err(|why| format!("{name}: {why}"))?;
    let worker = kept.worker().ok_or(format!("{name}: it is no worker's"))?;
    let receipt = passport.training.receipt.as_ref().ok_or("the passport has no receipt")?;
    let mut compared = 0_u64;
    for (step, head_told) in kept.heads() {
        let known = ours.and_then(|ours| ours.ledger.head(step));
        let expected = if step == receipt.step { Some(receipt.head()) } else { known };
        compared += u64::from(expected.is_some());
        match expected {
            Some(head) if head != head_told => {
                return Err(format!(
                    "{name}: worker{worker} was told head {} for the round that ended after step {}, the passport \
                     has {}: EQUIVOCATION",
                    short(&head_told),
                    step,
                    short(&head)
                ));
            }
            None if ours.is_some() => {
                return Err(format!(
                    "{name}: worker{worker} was told of a round that ended after step {}, of which the passport \
                     knows nothing",
                    step
                ));
            }
            _ => {}
        }
    }
    if let Some(ours) = ours {
        check_log(&kept, worker, ours).map_err(|why| format!("{name}: {why}"))?;
    }
    // The passport of a best model is of an earlier step than the end.
    kept.cut(receipt.step);
    let (end, chain) = kept.end();
    let all = kept.lines().count();
    if end != receipt.step {
        let until = match compared {
            0 => format!(
                "none of them can be compared: the passport has the head of step {} alone",
                receipt.step
            ),
            _ => format!("{compared} compared, the same until step {end}"),
        };
        checks.say("worker kept", format!("worker{worker}: {all} heads, {until}"));
        return Ok(());
    }
    let told = receipt.parts.get(usize::from(worker)).map(|part| part.chain);
    if told != Some(chain) {
        return Err(format!(
            "{name}: the passport's last receipt has other contributions of worker{worker}"
        ));
    }
    let own = kept.lines().filter(|line| line.share.is_some()).count();
    let text = match kept.segments().len() {
        1 => format!("{all} heads, the same; its {own} contributions are all in"),
        _ => format!(
            "{all} heads, the same; its {own} contributions of these are in; others it does not know"
        ),
    };
    checks.say("worker kept", format!("worker{worker}: {text}"));
    Ok(())
}

/// What a worker contributed to the rounds that it knows, and those to which it did not, by the log of rounds.
fn check_log(kept: &Ledger, worker: u16, Told { log, .. }: &Told) -> Result<(), Fault> {
    let logged: BTreeMap<u64, &[Contributed]> =
        log.rounds().map(|round| (round.end(), round.workers)).collect();
    for line in kept.lines() {
        let Some(workers) = logged.get(&line.step) else { continue };
        let by_log = workers.iter().find(|part| part.worker == worker);
        let by_worker = line.share.map(|share| Contributed {
            worker,
            samples: share.samples,
            fresh: share.fresh,
        });
        if by_log != by_worker.as_ref() {
            return Err(format!(
                "by {} worker{worker} contributed otherwise to the round that ended after step {}",
                rounds::FILE,
                line.step
            ));
        }
    }
    Ok(())
}
