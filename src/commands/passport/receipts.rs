//! What a worker has kept of its receipts against what a passport says: were all told the same, is all of it in?

use std::path::Path;

use super::found::{Checks, Fault, Passport, short};
use crate::files::read_bounded;
use crate::training::ledger::Ledger;

/// Checks one worker's file; `ours` are the heads that the passport has.
pub(super) fn check(
    checks: &mut Checks,
    path: &Path,
    passport: &Passport,
    ours: Option<&Ledger>,
) -> Result<(), Fault> {
    let name = path.display();
    let bytes = read_bounded(path).map_err(|error| format!("{name}: {error}"))?;
    let bytes = bytes.ok_or(format!("{name}: no such file"))?;
    let mut kept = Ledger::parse(&bytes).map_err(|why| format!("{name}: {why}"))?;
    let worker = kept.worker().ok_or(format!("{name}: it is no worker's"))?;
    let receipt = passport.training.receipt.as_ref().ok_or("the passport has no receipt")?;
    for (step, head_told) in kept.heads() {
        let known = ours.and_then(|ours| ours.head(step));
        let expected = if step == receipt.step { Some(receipt.head()) } else { known };
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
    // The passport of a best model is of an earlier step than the end.
    kept.cut(receipt.step);
    let (end, chain) = kept.end();
    if end != receipt.step {
        checks.say(
            "worker kept",
            format!("worker{worker}: {} heads, the same until step {end}", kept.lines().count()),
        );
        return Ok(());
    }
    let told = receipt.parts.get(usize::from(worker)).map(|part| part.chain);
    if told != Some(chain) {
        return Err(format!(
            "{name}: the passport's last receipt has other contributions of worker{worker}"
        ));
    }
    let own = kept.lines().filter(|line| line.share.is_some()).count();
    let all = kept.lines().count();
    checks.say(
        "worker kept",
        format!("worker{worker}: {all} heads, the same; its {own} contributions are all in"),
    );
    Ok(())
}
