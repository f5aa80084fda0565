//! ps0's part of a passport: the statements about the model that lies in its store, signed and quoted.

use std::collections::BTreeMap;

use super::Running;
use crate::failure::{Doing, Failure};
use crate::job::receipt::Hash;
use crate::model::params;
use crate::passport::attestation::{self, Collateral};
use crate::passport::training::Facts;
use crate::passport::{
    ATTESTATION, BOM, EVALUATION, Files, PUBLIC_KEY, SIGNATURE, TRAINING, bom, bundle, encode,
    evaluation, key, sha256, signature, training,
};
use crate::training::checkpoint::{BEST_FILE, DATA_FILE, META_FILE};
use crate::training::roles::signer::Unquoted;
use crate::training::store::Progress;
use crate::training::unsigned::{self, CHANGING};
use crate::trust::clock;
use protocol::{OwnQuote, Role};

/// What a passport is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    /// The best model so far, while the rest still changes.
    Best,
    /// Everything, at the end.
    Final,
}

fn no_passport(failure: Failure) {
    log::warn!("{failure}; the model has no passport");
}

impl Running {
    /// Writes the passport of a finished model. Without it the model is what it is: a disk that has no room for it, or
    /// a platform that gives no quote, ends no training.
    pub(super) fn sign_all(&mut self) {
        let unquoted = self.unquoted(Scope::Final);
        self.signer.unquoted = unquoted.map_err(no_passport).ok();
        self.await_quote();
    }

    /// Begins the passport of the best model so far; the quote is made while the training goes on.
    pub(super) fn sign_best(&mut self) {
        let unquoted = self.unquoted(Scope::Best);
        self.signer.unquoted = unquoted.map_err(no_passport).ok();
        self.signer.unquoted.iter().for_each(|unquoted| self.net.ask_quote(unquoted.report_data));
    }

    /// Writes the passport that waits for the quote that has come, if one does. What is being written may be the next
    /// best model, which has a passport of its own.
    pub(super) fn take_quote(&mut self) {
        if self.saver.is_busy() {
            return;
        }
        let Some(OwnQuote { report_data, made }) = self.net.take_quote() else { return };
        // Of an older best model otherwise.
        let waits = |unquoted: &mut Unquoted| unquoted.report_data == report_data;
        if let Some(unquoted) = self.signer.unquoted.take_if(waits) {
            self.write_passport(unquoted, made);
        }
    }

    /// Waits for the quote of a passport that lacks it. Nobody is served meanwhile: at the end, or when all were told
    /// why there is none.
    pub(super) fn await_quote(&mut self) {
        if let Some(unquoted) = self.signer.unquoted.take() {
            let made = self.signer.config.quote(&unquoted.report_data);
            self.write_passport(unquoted, made.map_err(|error| error.to_string()));
        }
    }

    fn write_passport(&mut self, unquoted: Unquoted, quote: Result<Vec<u8>, String>) {
        let step = unquoted.step;
        let quote = quote.doing("quote over the passport");
        match quote.and_then(|quote| self.write_quoted(unquoted, &quote)) {
            Ok(()) => log::info!("passport of step {step}"),
            Err(failure) => no_passport(failure),
        }
    }

    /// All of a passport but ps0's quote over it.
    fn unquoted(&mut self, scope: Scope) -> Result<Unquoted, Failure> {
        let names: &[&str] = match scope {
            Scope::Best => &[BEST_FILE, META_FILE],
            Scope::Final => &[DATA_FILE, BEST_FILE, META_FILE],
        };
        let model = self.digests(|name| names.contains(&name))?;
        let training = training::make(&model, &self.facts());
        let file = self.bundle(&training)?;
        if scope == Scope::Final {
            self.record.passport(&sha256(&file));
            self.keep_record();
        }
        let tested = self.record.tested(self.server.state().step);
        let evaluation = tested.map(|tested| evaluation::make(&model, self.server.job(), &tested));
        self.save_bytes(PUBLIC_KEY, self.signer.key.public().pem().as_bytes())?;
        if self.signer.bom {
            let parameters = self.network.layout.trained;
            let bytes = bom::make(&model, &self.facts(), parameters, tested.as_ref());
            self.save_bytes(BOM, &bytes)?;
        }
        let collateral = self.collateral()?;
        let is_signed = |name: &str| scope == Scope::Final || !CHANGING.contains(&name);
        // What the statements are about was read already, and is large.
        let mut all = self.digests(|name| is_signed(name) && !model.contains_key(name))?;
        all.extend(model.clone().into_iter().filter(|(name, _)| is_signed(name)));
        let signature = signature::make(&all, &self.ignored(scope));
        let [own, of_training] = [&signature, &training].map(|made| Some(sha256(&encode(made))));
        let others = [own, of_training, evaluation.as_ref().map(|made| sha256(&encode(made)))];
        let bare = attestation::make(&model, self.server.roster(), |entry| {
            collateral.get(&sha256(&entry.admission.quote)).cloned()
        });
        let public = self.signer.key.public();
        let report_data = attestation::to_be_quoted(&bare, &public, others);
        let collateral = collateral.get(&OWN).cloned();
        let step = self.server.state().step;
        let statements = [(EVALUATION, evaluation), (SIGNATURE, Some(signature))];
        let statements = statements.into_iter().filter_map(|(name, made)| Some((name, made?)));
        let statements = statements.collect();
        Ok(Unquoted { step, report_data, bare, others, collateral, training: file, statements })
    }

    fn write_quoted(&mut self, unquoted: Unquoted, quote: &[u8]) -> Result<(), Failure> {
        let Unquoted { bare, others, collateral, training, statements, .. } = unquoted;
        let own = attestation::OwnQuote { quote, collateral, time: clock() };
        let public = self.signer.key.public();
        let attestation = attestation::quoted(bare, &public, others, own);
        self.save_bytes(TRAINING, &training)?;
        for (name, statement) in &statements {
            self.save_bytes(name, &self.bundle(statement)?)?;
        }
        self.save_bytes(ATTESTATION, &self.bundle(&attestation)?)
    }

    fn facts(&self) -> Facts<'_> {
        let state = self.server.state();
        Facts {
            job: self.server.job(),
            state,
            parameters: params::hash(&state.params),
            initial: self.signer.initial,
            tier: self.tier,
            binary: self.signer.binary,
            image: self.signer.image,
            td: self.signer.td,
            roster: self.server.roster(),
            times: [self.record.began(), clock()],
        }
    }

    /// Digests of the files that are to be signed.
    fn digests(&mut self, is_asked: impl Fn(&str) -> bool) -> Result<Files, Failure> {
        let names = self.saver.store().names().doing("the model's files")?;
        let names: Vec<String> =
            names.into_iter().filter(|name| is_asked(name) && !self.is_apart(name)).collect();
        let store = self.saver.store();
        names
            .into_iter()
            .map(|name| {
                let hash = store.digest(&name).doing(store.name_of(&name))?;
                Ok((name, hash))
            })
            .collect()
    }

    /// What may lie in the directory and is not signed: the passport itself, and files of workers that share it.
    fn is_apart(&self, name: &str) -> bool {
        [SIGNATURE, TRAINING, ATTESTATION, EVALUATION].contains(&name)
            || unsigned::beside(self.server.job()).iter().any(|own| own == name)
    }

    fn ignored(&self, scope: Scope) -> Vec<String> {
        let mut ignored = unsigned::beside(self.server.job());
        if scope == Scope::Best {
            ignored.extend(CHANGING.map(str::to_owned));
        }
        ignored
    }

    /// Writes the collateral of each platform beside the model; which is whose, by the digest of the quote, and ours.
    fn collateral(&mut self) -> Result<BTreeMap<Hash, Collateral>, Failure> {
        let entries = self.server.roster().entries().iter().map(|entry| &entry.admission);
        let is_ours: Vec<bool> =
            entries.clone().map(|who| matches!(who.role, Role::ParameterServer(_))).collect();
        let quotes: Vec<Vec<u8>> = entries.map(|who| who.quote.clone()).collect();
        let mut found = BTreeMap::new();
        for (number, quote) in quotes.iter().enumerate() {
            let Some((file, bytes)) = self.signer.collateral(quote) else { continue };
            self.save_bytes(&file.name, &bytes)?;
            // Ours is the newest of our role.
            if is_ours[number] {
                found.insert(OWN, file.clone());
            }
            found.insert(sha256(quote), file);
        }
        Ok(found)
    }

    fn bundle(&self, statement: &serde_json::Value) -> Result<Vec<u8>, Failure> {
        bundle::sign(statement, &self.signer.key).doing("sign the passport")
    }

    fn save_bytes(&mut self, name: &str, bytes: &[u8]) -> Result<(), Failure> {
        let progress = Progress { job: self.server.job().digest(), step: self.server.state().step };
        let store = self.saver.store();
        let saved = store.save(name, progress, &|out| out.write_all(bytes));
        saved.map_err(|error| store.not_written(name, &error, "the model is whole without it"))
    }

    /// The key of a job that is done is of no more use.
    pub(super) fn forget_key(&mut self) {
        if self.saver.store().manifest().is_some()
            && let Err(failure) = self.save_bytes(key::FILE, &[])
        {
            log::warn!("{failure}");
        }
    }
}

/// Where our own platform's collateral is found.
const OWN: Hash = [0; 32];
