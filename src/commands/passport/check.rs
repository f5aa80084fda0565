//! The checks of a passport, one after the other; the first that fails ends them.

use std::path::{Path, PathBuf};

use protocol::dcap::{date, parse_timestamp};
use protocol::{Admission, Role, Verdict, Verifier, hex, is_simulated};

use super::found::{Checks, Fault, Passport, read, read_statement};
use super::{model, receipts, words};
use crate::files::read_bounded;
use crate::job::Job;
use crate::job::receipt::Hash;
use crate::passport::evaluation::{self, Tested};
use crate::passport::key::PublicKey;
use crate::passport::{
    ATTESTATION, EVALUATION, PUBLIC_KEY, SIGNATURE, TRAINING, attestation, bundle, encode, sha256,
    signature, training,
};
use crate::training::unsigned::{self, CHANGING};
use crate::training::{ledger, roster, rounds};
use crate::trust::{Attestation, Source, TrustOptions};

/// The passport itself.
const OWN: [&str; 4] = [SIGNATURE, TRAINING, ATTESTATION, EVALUATION];

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
        self.files(dir, &passport)?;
        self.evidence(dir, &passport, by)?;
        let told = model::check(self, dir, &passport)?;
        kept.iter().try_for_each(|path| receipts::check(self, path, &passport, told.as_ref()))
    }

    /// Each file of the passport is signed by the key that the attestation names, and they speak of one another.
    pub(super) fn signatures(&mut self, dir: &Path) -> Result<Passport, Fault> {
        let attested = read_statement(dir, ATTESTATION)?;
        let peeked = bundle::peek(&attested).map_err(|why| format!("{ATTESTATION}: {why}"))?;
        let key = attestation::key_of_statement(&peeked);
        let key = key.ok_or(format!("{ATTESTATION}: it names no key"))?;
        if read_statement(dir, PUBLIC_KEY)? != key.pem().as_bytes() {
            return Err(format!("{PUBLIC_KEY}: another key than that of {ATTESTATION}"));
        }
        let statement = |name: &str| signed(dir, name, &key);
        let [of_files, of_training] = [statement(SIGNATURE)?, statement(TRAINING)?];
        let tested = match dir.join(EVALUATION).exists() {
            true => Some(statement(EVALUATION)?),
            false => None,
        };
        let (files, ignored) =
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
        let passport = Passport { files, ignored, training: said, attestation: who };
        scope(&passport)?;
        Ok(passport)
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
    fn files(&mut self, dir: &Path, passport: &Passport) -> Result<(), Fault> {
        let Passport { files, ignored, .. } = passport;
        let listed = std::fs::read_dir(dir).map_err(|error| error.to_string())?;
        let mut beside = Vec::new();
        for found in listed {
            let found = found.map_err(|error| error.to_string())?;
            let name = found.file_name().to_string_lossy().into_owned();
            if files.contains_key(&name) || OWN.contains(&&*name) {
                continue;
            }
            if !ignored.contains(&name) {
                return Err(format!("{}: nobody signed it", name.escape_default()));
            }
            beside.push(name);
        }
        // Small ones first: what is wrong is found before a model is read.
        let mut names: Vec<&String> = files.keys().collect();
        names.sort_by_key(|name| dir.join(name).metadata().map_or(0, |found| found.len()));
        for name in names {
            if sha256(&read(dir, name)?) != files[name] {
                return Err(format!("{name}: not the file that was signed"));
            }
        }
        self.say("files", format!("{} files, each as it was signed", files.len()));
        if !beside.is_empty() {
            beside.sort();
            self.say("not signed", format!("{}: nothing is said of these", beside.join(", ")));
        }
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
        let mut servers = Vec::new();
        for entry in who.roster.entries() {
            let admission = &entry.admission;
            let what = format!("{}, admitted at {}", admission.role, date(admission.time));
            placed(admission, &said.job, &mut servers).map_err(|why| format!("{what}: {why}"))?;
            let verdict = refused(admission.verify(&verifier, admission.time), &what)?;
            words::participant(self, admission, Some(&verdict));
        }
        Ok(())
    }
}

/// What a passport has to sign, and what it may leave out.
fn scope(passport: &Passport) -> Result<(), Fault> {
    let Passport { files, ignored, training, .. } = passport;
    if let Some(name) =
        files.keys().find(|name| name.contains(['/', '\\']) || name.starts_with('.'))
    {
        return Err(format!("{}: no name of a file here", name.escape_default()));
    }
    let known = unsigned::beside(&training.job);
    let is_known = |name: &str| {
        OWN.contains(&name)
            || known.iter().any(|known| known == name)
            || (!passport.is_final() && CHANGING.contains(&name))
    };
    if let Some(name) = ignored.iter().find(|name| !is_known(name)) {
        return Err(format!("{SIGNATURE}: it leaves out {}", name.escape_default()));
    }
    let needed: &[&str] =
        if passport.is_final() { &[ledger::FILE, rounds::FILE, roster::FILE] } else { &[] };
    match needed.iter().find(|name| !files.contains_key(**name)) {
        Some(name) => Err(format!("{SIGNATURE}: it is not over {name}")),
        None => Ok(()),
    }
}

/// Whether somebody's evidence was shown for this job, to a ps0 whose own is here; `servers` are the keys of these.
fn placed(admission: &Admission, job: &Job, servers: &mut Vec<Hash>) -> Result<(), Fault> {
    let Admission { role, server, keys: [own, servers_key], .. } = admission;
    if admission.job != job.digest() {
        return Err("its evidence is of another job".into());
    }
    match role {
        Role::ParameterServer(0) => servers.push(*own),
        Role::Worker(number) if *number < job.workers => {}
        _ => return Err("the job has no such role".into()),
    }
    match *server == Role::ParameterServer(0) && servers.contains(servers_key) {
        true => Ok(()),
        false => Err("it was admitted by somebody who is not among the participants".into()),
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
    bundle::verify(&read_statement(dir, name)?, key).map_err(|why| format!("{name}: {why}"))
}
