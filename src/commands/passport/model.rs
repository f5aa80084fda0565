//! Whether the model in the folder is the outcome of the rounds that its receipts are of.

use std::path::Path;

use kernels::{Isa, Pool};
use protocol::{Role, hex};

use super::found::{Checks, Fault, Passport, read};
use crate::job::receipt::Receipt;
use crate::job::state::Member;
use crate::model::network::Network;
use crate::model::params;
use crate::passport::ATTESTATION;
use crate::training::cell_hashes::CellHashes;
use crate::training::cells::{CELL, Cells};
use crate::training::checkpoint::{self, BEST_FILE, Checkpoint, DATA_FILE};
use crate::training::ledger::{self, Ledger};
use crate::training::rounds::{self, RoundLog};
use crate::training::store::Store;

/// Checks the model, and the heads of all receipts if they are signed too: these are returned.
pub(super) fn check(
    checks: &mut Checks,
    dir: &Path,
    passport: &Passport,
) -> Result<Option<Ledger>, Fault> {
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
    for (worker, member) in state.members.iter().enumerate() {
        let Some(Member { samples, data: Some(data), .. }) = member else { continue };
        let expected = (format!("data of worker{worker}"), hex(data), Some(*samples));
        if !said.dependencies.contains(&expected) {
            return Err(format!("{name}: worker{worker} had other data than the passport says"));
        }
        let role = Role::Worker(worker as u16);
        let entries = passport.attestation.roster.entries().iter().map(|entry| &entry.admission);
        let mut roots = entries.filter(|who| who.role == role).filter_map(|who| who.data);
        if roots.any(|root| root != *data) {
            return Err(format!("{ATTESTATION}: {role} came with other data than the model's"));
        }
    }
    let receipt = state.receipt.as_ref().ok_or(format!("{name}: it has no receipt"))?;
    check_outcome(name, &network, &found, receipt)?;
    check_contributors(passport, receipt)?;
    checks.say(
        "receipts",
        format!("head sha256:{}, of parameters as they are here", hex(&receipt.head())),
    );
    if !passport.files.contains_key(ledger::FILE) {
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
    check_rounds(checks, dir, passport, &ledger)?;
    Ok(Some(ledger))
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

/// Who contributed to how many rounds: the log of rounds is that of the receipts.
fn check_rounds(
    checks: &mut Checks,
    dir: &Path,
    passport: &Passport,
    ledger: &Ledger,
) -> Result<(), Fault> {
    let log = RoundLog::parse(&read(dir, rounds::FILE)?)
        .map_err(|why| format!("{}: {why}", rounds::FILE))?;
    let steps: u64 = log.runs().iter().map(|run| run.rounds).sum();
    let lines = ledger.lines().count() as u64;
    if steps != lines {
        return Err(format!("{}: {steps} rounds, {} has {lines}", rounds::FILE, ledger::FILE));
    }
    for worker in 0..passport.training.job.workers {
        let with =
            log.runs().iter().filter(|run| run.workers.iter().any(|part| part.worker == worker));
        let (rounds, samples) = with.fold((0, 0), |(rounds, samples), run| {
            let part = run.workers.iter().filter(|part| part.worker == worker);
            let each: u64 = part.map(|part| u64::from(part.samples)).sum();
            (rounds + run.rounds, samples + run.rounds * each)
        });
        checks.say(
            "contributed",
            format!("worker{worker} to {rounds} of {steps} rounds, {samples} samples"),
        );
    }
    Ok(())
}
