//! Whether the model in the folder is the outcome of the rounds that its receipts are of.

use std::path::Path;

use kernels::{Isa, Pool};
use protocol::{Role, hex};

use super::found::{Checks, Fault, Passport, read};
use crate::job;
use crate::job::receipt::Receipt;
use crate::model::network::Network;
use crate::model::params;
use crate::passport::ATTESTATION;
use crate::training::cell_hashes::CellHashes;
use crate::training::cells::{CELL, Cells};
use crate::training::checkpoint::{self, BEST_FILE, Checkpoint, DATA_FILE};
use crate::training::ledger::{self, Ledger};
use crate::training::round::Contributed;
use crate::training::rounds::{self, RoundLog, Share};
use crate::training::store::Store;

/// What ps0 has told of the rounds of a whole job.
pub(super) struct Told {
    pub(super) ledger: Ledger,
    pub(super) log: RoundLog,
}

/// Checks the model, and the heads of all receipts if they are signed too: these are returned.
pub(super) fn check(
    checks: &mut Checks,
    dir: &Path,
    passport: &Passport,
) -> Result<Option<Told>, Fault> {
    let said = &passport.training;
    let name = [DATA_FILE, BEST_FILE].into_iter().find(|name| said.files.contains_key(*name));
    let name = name.ok_or("the passport is about no model")?;
    let (network, found) = load(dir, name)?;
    let Checkpoint { job, state } = &found;
    let is_said = *job == said.job
        && state.step == said.step
        && params::hash(&state.params) == said.parameters;
    if !is_said || state.receipt != said.receipt {
        return Err(format!(
            "{name}: another model than the one whose training the passport is of"
        ));
    }
    for (worker, (member, said)) in (0..).zip(state.members.iter().zip(&said.members)) {
        // Who comes when all is done is in the passport alone.
        let Some(member) = member else { continue };
        let role = Role::Worker(worker);
        if !said.as_ref().is_some_and(|said| said.is_as(member)) {
            return Err(format!("{name}: {role} had other data than the passport says"));
        }
        let Some(data) = member.data else { continue };
        let entries = passport.attestation.roster.entries().iter().map(|entry| &entry.admission);
        let mut roots = entries.filter(|who| who.role == role).filter_map(|who| who.data);
        if roots.any(|root| root != data) {
            return Err(format!("{ATTESTATION}: {role} came with other data than the model's"));
        }
    }
    let receipt = state.receipt.as_ref().ok_or(format!("{name}: it has no receipt"))?;
    check_outcome(name, &network, &found, receipt)?;
    check_contributors(passport, receipt)?;
    checks.say(
        "receipts",
        format!("head sha256:{}, of the parameters in {name}", hex(&receipt.head())),
    );
    if !passport.is_final() {
        return Ok(None);
    }
    let ledger = Ledger::parse(&read(dir, ledger::FILE)?)
        .map_err(|why| format!("{}: {why}", ledger::FILE))?;
    if ledger.last() != Some(receipt) || ledger.head(receipt.step) != Some(receipt.head()) {
        return Err(format!("{}: it ends with another receipt than the model's", ledger::FILE));
    }
    if passport.files.contains_key(BEST_FILE) && name != BEST_FILE {
        let (network, best) = load(dir, BEST_FILE)?;
        let own = best.state.receipt.clone().ok_or(format!("{BEST_FILE}: it has no receipt"))?;
        if ledger.head(own.step) != Some(own.head()) {
            return Err(format!("{BEST_FILE}: its receipt is none of this training"));
        }
        check_outcome(BEST_FILE, &network, &best, &own)?;
    }
    let log = RoundLog::parse(&read(dir, rounds::FILE)?)
        .map_err(|why| format!("{}: {why}", rounds::FILE))?;
    check_rounds(&log, &ledger, receipt)?;
    for worker in 0..said.job.workers {
        let Share { rounds, samples } = log.share_of(worker);
        let all = ledger.lines().count();
        checks.say(
            "contributed",
            format!("worker{worker} to {rounds} of {all} rounds, {samples} samples"),
        );
    }
    Ok(Some(Told { ledger, log }))
}

fn load(dir: &Path, name: &str) -> Result<(Network, Checkpoint), Fault> {
    let loaded = checkpoint::load(&Store::Directory(dir.into()), name);
    loaded.map_err(|error| format!("{name}: {error}"))?.ok_or(format!("{name}: no such file"))
}

/// Whoever has contributed is among those whose evidence is here.
fn check_contributors(passport: &Passport, receipt: &Receipt) -> Result<(), Fault> {
    let entries = passport.attestation.roster.entries();
    for (worker, part) in (0..).zip(&receipt.parts) {
        let role = Role::Worker(worker);
        if part.chain != [0; 32] && !entries.iter().any(|entry| entry.admission.role == role) {
            return Err(format!("{role} has contributed, and is not among the participants"));
        }
    }
    Ok(())
}

/// The parameters are those that the receipt names.
fn check_outcome(
    name: &str,
    network: &Network,
    found: &Checkpoint,
    receipt: &Receipt,
) -> Result<(), Fault> {
    let cells = Cells::of_parameters(&found.job, &network.layout, CELL, Isa::detect());
    let hashes = CellHashes::of(&cells, &found.state.params, &Pool::new(1));
    match hashes.root() == Some(receipt.parameters) && receipt.step == found.state.step {
        true => Ok(()),
        false => Err(format!("{name}: its parameters are not the outcome of the last round")),
    }
}

/// The log of rounds is that of the receipts: as many, the same steps, and in the last the same who contributed.
fn check_rounds(log: &RoundLog, ledger: &Ledger, last: &Receipt) -> Result<(), Fault> {
    let name = rounds::FILE;
    let rounds = log.runs().iter().try_fold(0, |sum: u64, run| sum.checked_add(run.rounds));
    let lines = ledger.lines().count() as u64;
    if rounds != Some(lines) {
        let rounds = rounds.map_or("too many".into(), |rounds| rounds.to_string());
        return Err(format!("{name}: {rounds} rounds, {} has {lines}", ledger::FILE));
    }
    let mut both = log.rounds().zip(ledger.lines());
    if let Some((_, line)) =
        both.find(|(one, line)| (one.end(), one.steps) != (line.step, line.count))
    {
        return Err(format!(
            "{name}: another round than that which ended after step {}",
            line.step
        ));
    }
    let contributed = (0..).zip(&last.parts).filter_map(|(worker, part)| {
        let job::receipt::Share { samples, fresh, .. } = part.share?;
        Some(Contributed { worker, samples, fresh })
    });
    match log.rounds().last().is_none_or(|round| contributed.eq(round.workers.iter().copied())) {
        true => Ok(()),
        false => Err(format!("{name}: others contributed to the last round than by its receipt")),
    }
}
