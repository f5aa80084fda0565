//! The checks of a passport, one after the other; the first that fails ends them.

use std::path::{Path, PathBuf};

use protocol::dcap::{date, parse_timestamp};
use protocol::{Role, Verdict, Verifier, hex, is_simulated};

use super::found::{Checks, Fault, Passport, read};
use super::{model, receipts, words};
use crate::files::read_bounded;
use crate::passport::evaluation::{self, Tested};
use crate::passport::key::PublicKey;
use crate::passport::{
    ATTESTATION, EVALUATION, Files, PUBLIC_KEY, SIGNATURE, TRAINING, attestation, bundle, encode,
    sha256, signature, training,
};
use crate::training::roster;
use crate::trust::{Attestation, Source, TrustOptions};

/// What evidence is judged by.
#[derive(Clone, Copy)]
pub(super) struct By<'a> {
    pub(super) policy: Option<&'a Path>,
    pub(super) attestation: Attestation,
}

impl Checks {
    /// Everything.
    pub(super) fn all(&mut self, dir: &Path, by: By, kept: &[PathBuf]) -> Result<(), Fault> {
        let passport = self.signatures(dir)?;
        self.files(dir, &passport.files)?;
        self.evidence(dir, &passport, by)?;
        let ledger = model::check(self, dir, &passport)?;
        kept.iter().try_for_each(|path| receipts::check(self, path, &passport, ledger.as_ref()))
    }

    /// Each file of the passport is signed by the key that the attestation names, and they speak of one another.
    pub(super) fn signatures(&mut self, dir: &Path) -> Result<Passport, Fault> {
        let attested = read(dir, ATTESTATION)?;
        let peeked = bundle::peek(&attested).map_err(|why| format!("{ATTESTATION}: {why}"))?;
        let key = attestation::key_of_statement(&peeked);
        let key = key.ok_or(format!("{ATTESTATION}: it names no key"))?;
        if read(dir, PUBLIC_KEY)? != key.pem().as_bytes() {
            return Err(format!("{PUBLIC_KEY}: another key than that of {ATTESTATION}"));
        }
        let statement = |name: &str| signed(dir, name, &key);
        let [of_files, of_training] = [statement(SIGNATURE)?, statement(TRAINING)?];
        let tested = match dir.join(EVALUATION).exists() {
            true => Some(statement(EVALUATION)?),
            false => None,
        };
        let (files, _) =
            signature::read(&of_files).ok_or(format!("{SIGNATURE}: not as hfl makes it"))?;
        let said =
            training::read(&of_training).ok_or(format!("{TRAINING}: not as hfl makes it"))?;
        for (name, hash) in &said.files {
            if files.get(name) != Some(hash) {
                return Err(format!("{TRAINING}: it is about another {name} than {SIGNATURE}"));
            }
        }
        let others = [Some(&of_files), Some(&of_training), tested.as_ref()];
        let others = others.map(|statement| statement.map(|made| sha256(&encode(made))));
        let who = attestation::read(&statement(ATTESTATION)?, &said.files, others)
            .map_err(|why| format!("{ATTESTATION}: {why}"))?;
        let roster = (*who.roster.head(), who.roster.entries().len() as u64);
        if roster != said.roster {
            return Err(format!("{ATTESTATION}: other participants than those of {TRAINING}"));
        }
        self.say("key", format!("sha256:{} signed all of it", hex(&key.hash())));
        words::training(self, &said);
        self.evaluation(tested.as_ref(), &said)?;
        for entry in who.roster.entries() {
            words::participant(self, &entry.admission, None);
        }
        Ok(Passport { files, training: said, attestation: who })
    }

    fn evaluation(
        &mut self,
        found: Option<&serde_json::Value>,
        said: &training::Said,
    ) -> Result<(), Fault> {
        let Some(found) = found else {
            self.say("evaluation", "none was made of this model");
            return Ok(());
        };
        let tested = evaluation::read(found, &said.files, &said.job);
        let tested: Tested =
            tested.ok_or(format!("{EVALUATION}: not of this model as hfl makes it"))?;
        if tested.step != said.step {
            return Err(format!(
                "{EVALUATION}: of step {}, the model is of {}",
                tested.step, said.step
            ));
        }
        self.say("evaluation", tested.to_string());
        Ok(())
    }

    /// Every file is there as it was signed, and no other.
    fn files(&mut self, dir: &Path, files: &Files) -> Result<(), Fault> {
        let (_, ignored) = signature::read(&bundle::peek(&read(dir, SIGNATURE)?)?)
            .ok_or(format!("{SIGNATURE}: not as hfl makes it"))?;
        let listed = std::fs::read_dir(dir).map_err(|error| error.to_string())?;
        for found in listed {
            let found = found.map_err(|error| error.to_string())?;
            let name = found.file_name().to_string_lossy().into_owned();
            if !files.contains_key(&name) && !ignored.contains(&name) {
                return Err(format!("{}: nobody signed it", name.escape_default()));
            }
        }
        for (name, hash) in files {
            if name.contains(['/', '\\']) || name.starts_with('.') {
                return Err(format!("{}: no name of a file here", name.escape_default()));
            }
            if sha256(&read(dir, name)?) != *hash {
                return Err(format!("{name}: not the file that was signed"));
            }
        }
        self.say("files", format!("{} files, each as it was signed", files.len()));
        Ok(())
    }

    /// The hardware: ps0's quote over key and statements, and everybody's at the time when it was shown.
    fn evidence(&mut self, dir: &Path, passport: &Passport, by: By) -> Result<(), Fault> {
        let Passport { attestation: who, training: said, .. } = passport;
        let verifier = verifier(dir, passport, by)?;
        let time = parse_timestamp(&who.time).ok_or("the quote over the key has no time")?;
        let role = Some(Role::ParameterServer(0));
        let verdict = verifier.verify(&who.quote, &who.report_data, role, time);
        let verdict = refused(verdict, "ps0's quote over key and statements")?;
        if hex(&verdict.report.mr_td) != said.td {
            return Err(format!("{TRAINING}: made by another TD than the one that signed"));
        }
        self.say("signed in", words::verdict(&verdict));
        let kept = dir.join(roster::FILE);
        if passport.files.contains_key(roster::FILE)
            && roster::encode(&who.roster) != read_bounded(&kept).ok().flatten().unwrap_or_default()
        {
            return Err(format!(
                "{}: other participants than those of {ATTESTATION}",
                roster::FILE
            ));
        }
        // What the passport says of them is said again, with the verdict.
        self.lines.retain(|(what, _)| *what != words::PARTICIPANT);
        for entry in who.roster.entries() {
            let admission = &entry.admission;
            let what = format!("{}, admitted at {}", admission.role, date(admission.time));
            let verdict = refused(admission.verify(&verifier, admission.time), &what)?;
            let is_one = match admission.role {
                Role::ParameterServer(0) => true,
                Role::Worker(number) => number < said.job.workers,
                _ => false,
            };
            if !is_one {
                return Err(format!("{what}: the job has no such role"));
            }
            words::participant(self, admission, Some(&verdict));
        }
        Ok(())
    }
}

fn refused(verdict: Result<Verdict, protocol::Rejection>, what: &str) -> Result<Verdict, Fault> {
    verdict.map_err(|why| format!("{what}: [{}] {why}", why.code()))
}

/// The judge of everybody, by the collateral in the folder.
fn verifier(
    dir: &Path,
    passport: &Passport,
    By { policy, attestation }: By,
) -> Result<Verifier, Fault> {
    let mut collateral = Vec::new();
    for file in passport.attestation.collateral.iter().flatten() {
        if passport.files.get(&file.name) != Some(&file.hash) {
            return Err(format!(
                "{}: not the collateral that was judged by",
                file.name.escape_default()
            ));
        }
        collateral.push(Source::File(dir.join(&file.name)));
    }
    let quotes = passport.attestation.roster.entries().iter().map(|entry| &entry.admission.quote);
    let simulated = quotes.chain([&passport.attestation.quote]).any(|quote| {
        protocol::Evidence::parse(quote).is_ok_and(|evidence| is_simulated(&evidence.quote))
    });
    if simulated && attestation != Attestation::Sim && policy.is_none() {
        return Err(
            "the evidence is SIMULATED, anybody can make it (--attestation sim judges it so)"
                .into(),
        );
    }
    let is_judged = policy.is_some() || attestation == Attestation::Sim;
    let sim_image = TrustOptions::SIM_IMAGE.into();
    let policy = policy.map(Path::to_path_buf);
    let options = TrustOptions { attestation, collateral, policy, identity: None, sim_image };
    let verifier = if is_judged { options.verifier() } else { options.lenient_verifier() };
    verifier.map_err(|failure| failure.to_string())
}

fn signed(dir: &Path, name: &str, key: &PublicKey) -> Result<serde_json::Value, Fault> {
    bundle::verify(&read(dir, name)?, key).map_err(|why| format!("{name}: {why}"))
}
