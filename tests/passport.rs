//! A model's passport: a job leaves one that holds, and none of the ways to lie in it passes.
//!
//! The lying ps0 of these tests has a key and quotes of its own, over whatever it says: its TD is the right one, its
//! program is not. What it cannot have is what workers keep.

use std::fs;
use std::path::{Path, PathBuf};

use hfl::job::receipt::Receipt;
use hfl::passport::attestation::OwnQuote;
use hfl::passport::key::PassportKey;
use hfl::passport::{
    ATTESTATION, EVALUATION, PUBLIC_KEY, SIGNATURE, TRAINING, attestation, bundle, encode, sha256,
    signature,
};
use hfl::training::ledger::{self, Ledger};
use hfl::training::roster;
use protocol::{Attester, Roster, SimPlatform, hex};
use serde_json::{Value, json};

use crate::cli::hfl;
use crate::processes::{Cast, Dir};

/// A finished job's folder and what its workers kept.
struct Job {
    model: PathBuf,
    kept: [PathBuf; 2],
}

fn job(dir: &Dir) -> Job {
    let cast = Cast::new(dir, "model");
    let small = ("--model", "resnet18");
    let ps0 =
        cast.start("ps0", &[small, ("--evaluate-every", "1"), ("--bom", ""), ("--steps", "3")]);
    let places = [0, 1].map(|worker| dir.path(&format!("kept{worker}")));
    let texts = places.each_ref().map(|place| place.to_str().expect("UTF-8"));
    let workers = [0, 1]
        .map(|worker| cast.start(&format!("worker{worker}"), &[("--model-dir", texts[worker])]));
    cast.finish(&ps0, workers.into());
    let (code, stderr) = ps0.end();
    assert_eq!(code, 0, "{stderr}");
    let kept = places.map(|place| {
        let found = fs::read_dir(place).expect("a place").map(|entry| entry.expect("entry").path());
        let mut files = found.filter(|path| path.to_string_lossy().contains("receipts-worker"));
        files.next().expect("a worker keeps what it is told")
    });
    Job { model: dir.path("model"), kept }
}

impl Job {
    /// What `hfl passport verify` says, and the first thing that does not hold.
    fn verify(&self, kept: &[&Path]) -> Result<String, String> {
        let model = self.model.to_str().expect("UTF-8");
        let mut words = vec!["passport", "verify", model, "--attestation", "sim"];
        for path in kept {
            words.extend(["--receipts", path.to_str().expect("UTF-8")]);
        }
        let output = hfl(&words);
        let [out, err] =
            [output.stdout, output.stderr].map(|text| String::from_utf8(text).expect("UTF-8"));
        if output.status.success() { Ok(out) } else { Err(err) }
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.model.join(name)).expect("a file of the passport")
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.model.join(name), bytes).expect("write");
    }

    /// Runs `work` on the folder, and puts back what it changed.
    #[track_caller]
    fn with(&self, names: &[&str], work: impl FnOnce(&Self)) {
        let before: Vec<Vec<u8>> = names.iter().map(|name| self.read(name)).collect();
        work(self);
        names.iter().zip(before).for_each(|(name, bytes)| self.write(name, &bytes));
    }

    fn statement(&self, name: &str) -> Value {
        bundle::peek(&self.read(name)).expect("a statement")
    }

    /// Signs everything anew as a ps0 would that says this of the training and of who took part, with a key of
    /// its own and a quote of its TD over both.
    fn forge(&self, training: &Value, roster: &Roster) {
        self.forge_with(training, roster, None);
    }

    /// The same with a quote that it has from elsewhere.
    fn forge_with(&self, training: &Value, roster: &Roster, quote: Option<Vec<u8>>) {
        let key = PassportKey::generate().expect("a key");
        let sign = |statement: &Value| bundle::sign(statement, &key).expect("signed");
        self.write(PUBLIC_KEY, key.public().pem().as_bytes());
        let (mut files, ignored) =
            signature::read(&self.statement(SIGNATURE)).expect("as we make it");
        for (name, hash) in &mut files {
            *hash = sha256(&self.read(name));
        }
        let signed = signature::make(&files, &ignored[4..]);
        let mut training = training.clone();
        let mut tested = self.statement(EVALUATION);
        let names = ["model.best-data", "model.ckpt-data", "model.ckpt-meta"];
        let subject =
            names.map(|name| json!({"name": name, "digest": {"sha256": hex(&files[name])}}));
        (training["subject"], tested["subject"]) = (subject.clone().into(), subject.into());
        let byproducts = &mut training["predicate"]["runDetails"]["byproducts"];
        byproducts[0]["digest"]["sha256"] = hex(roster.head()).into();
        byproducts[0]["annotations"]["entries"] = roster.entries().len().into();
        let others = [&signed, &training, &tested].map(|made| Some(sha256(&encode(made))));
        let about = names.iter().map(|name| ((*name).to_owned(), files[*name])).collect();
        let bare = attestation::make(&about, roster, |_| None);
        let time = 1_800_000_000;
        let quoted = attestation::to_be_quoted(&bare, &key.public(), others);
        let own = || SimPlatform::new(time).quote(&quoted).expect("a quote");
        let quote = quote.unwrap_or_else(own);
        let attested = attestation::quoted(
            bare,
            &key.public(),
            others,
            OwnQuote { quote: &quote, collateral: None, time },
        );
        for (name, made) in [
            (SIGNATURE, &signed),
            (TRAINING, &training),
            (EVALUATION, &tested),
            (ATTESTATION, &attested),
        ] {
            self.write(name, &sign(made));
        }
    }

    fn roster(&self) -> Roster {
        roster::parse(&self.read(roster::FILE)).expect("a roster")
    }
}

#[track_caller]
fn refused(result: Result<String, String>, part: &str) {
    let why = result.expect_err("a lie");
    assert!(why.contains(part), "'{part}' not in: {why}");
}

const PASSPORT: [&str; 5] = [SIGNATURE, TRAINING, EVALUATION, ATTESTATION, PUBLIC_KEY];

#[test]
fn a_passport_holds_and_no_change_of_it_or_of_the_model_does() {
    let dir = Dir::new("passport");
    let job = job(&dir);
    let kept = job.kept.each_ref().map(PathBuf::as_path);
    let said = job.verify(&kept).unwrap_or_else(|why| panic!("{why}"));
    for part in [
        "worker1 to 3 of 3 rounds",
        "worker0: 3 heads, the same; its 3 contributions are all in",
        "of 30 test images right after step 3",
        "accepted, SIMULATED",
    ] {
        assert!(said.contains(part), "{said}");
    }
    let page = String::from_utf8(job.read("report.html")).expect("a page");
    assert!(page.contains(&hex(&sha256(&job.read(TRAINING)))), "the report shows its digest");
    // Without the word `sim` simulated evidence is none.
    let output = hfl(&["passport", "verify", job.model.to_str().expect("UTF-8")]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("SIMULATED"));

    every_byte_counts(&job);
    refused_files(&job);
    lies(&job, &kept);
    let said = job.verify(&kept);
    assert!(said.is_ok(), "all was put back: {said:?}");
}

/// Each byte of what is signed, in this process; a byte of every file, as the command sees it.
fn every_byte_counts(job: &Job) {
    let key = attestation::key_of_statement(&job.statement(ATTESTATION)).expect("a key");
    for name in &PASSPORT[..4] {
        let mut bytes = job.read(name);
        assert!(bundle::verify(&bytes, &key).is_ok());
        for at in 0..bytes.len() {
            bytes[at] ^= 1;
            assert!(bundle::verify(&bytes, &key).is_err(), "{name}: byte {at}");
            bytes[at] ^= 1;
        }
    }
    for entry in fs::read_dir(&job.model).expect("the folder") {
        let name = entry.expect("entry").file_name().into_string().expect("UTF-8");
        job.with(&[&name], |job| {
            let mut bytes = job.read(&name);
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            job.write(&name, &bytes);
            assert!(job.verify(&[]).is_err(), "{name}: byte {middle}");
        });
    }
}

fn refused_files(job: &Job) {
    job.write("more.bin", b"x");
    refused(job.verify(&[]), "more.bin: nobody signed it");
    fs::remove_file(job.model.join("more.bin")).expect("remove");
    job.with(&["rounds.json"], |job| {
        fs::remove_file(job.model.join("rounds.json")).expect("remove");
        refused(job.verify(&[]), "rounds.json: no such file");
    });
}

/// What a lying ps0 may try, and who notices.
fn lies(job: &Job, kept: &[&Path; 2]) {
    let training = job.statement(TRAINING);
    let roster = job.roster();
    // A forger who changes nothing is told apart by nothing: what follows is refused for its lie.
    job.with(&PASSPORT, |job| {
        job.forge(&training, &roster);
        job.verify(kept).expect("the truth, signed by another key that is quoted");
    });
    // Another key, which no quote is over.
    job.with(&PASSPORT, |job| {
        let key = PassportKey::generate().expect("a key");
        job.write(TRAINING, &bundle::sign(&training, &key).expect("signed"));
        refused(job.verify(&[]), "not that of the passport's key");
        let said = job.statement(ATTESTATION);
        let all = said["predicate"]["attributes"].as_array().expect("attributes");
        let quote = &all.last().expect("ps0's own")["evidence"]["content"];
        let quote =
            <base64ct::Base64 as base64ct::Encoding>::decode_vec(quote.as_str().expect("text"));
        job.forge_with(&training, &roster, quote.ok());
        refused(job.verify(&[]), "ps0's quote over key and statements: [report-data]");
    });
    // A participant that is left out, or was another.
    let names = [&PASSPORT[..], &[roster::FILE]].concat();
    job.with(&names, |job| {
        let mut fewer = Roster::default();
        for entry in
            roster.entries().iter().filter(|entry| entry.admission.role.to_string() != "worker1")
        {
            assert!(fewer.admit(entry.admission.clone()));
        }
        job.write(roster::FILE, &roster::encode(&fewer));
        job.forge(&training, &fewer);
        refused(job.verify(&[]), "worker1 has contributed, and is not among the participants");
        let mut other = Roster::default();
        for entry in roster.entries() {
            let mut admission = entry.admission.clone();
            admission.keys[0][0] ^= u8::from(admission.role.to_string() == "worker1");
            assert!(other.admit(admission));
        }
        job.write(roster::FILE, &roster::encode(&other));
        job.forge(&training, &other);
        refused(job.verify(&[]), "worker1, admitted at");
    });
    swapped(job, &training, &roster);
    retold(job, (&training, &roster), kept);
}

/// Another checkpoint in the place of the model.
fn swapped(job: &Job, training: &Value, roster: &Roster) {
    let names = [&PASSPORT[..], &["model.ckpt-data"]].concat();
    job.with(&names, |job| {
        let text = job.read("model.ckpt-data");
        let mut other = text.clone();
        // A value at the end: a weight's momentum, which is no part of what the receipts name, but of the file.
        let last = other.len() - 4;
        other[last..].copy_from_slice(&1.0_f32.to_le_bytes());
        job.write("model.ckpt-data", &other);
        refused(job.verify(&[]), "model.ckpt-data: not the file that was signed");
        job.forge(training, roster);
        refused(job.verify(&[]), "model.ckpt-data");
    });
}

/// What a liar changes in a receipt, and how that is noticed.
type Lie = (fn(&mut Receipt), &'static str);

/// A last receipt that lacks a contribution, or is another than workers were told.
fn retold(job: &Job, (training, roster): (&Value, &Roster), kept: &[&Path; 2]) {
    let told = Ledger::parse(&fs::read(kept[1]).expect("kept")).expect("a ledger");
    let last: Receipt = told.last().expect("a receipt").clone();
    let lies: [Lie; 3] = [
        (|last| last.parts[1].share = None, "EQUIVOCATION"),
        (|last| last.parts[1].chain[0] ^= 1, "EQUIVOCATION"),
        // A chain of ps0's own that is broken: nobody else's receipts are needed.
        (|last| last.previous[0] ^= 1, "3 rounds, receipts.json has 2"),
    ];
    for (lie, noticed) in lies {
        let mut other = last.clone();
        lie(&mut other);
        let name = "receipts-of-a-liar.json";
        // What a worker would have kept that had been told so: against the truth in the passport.
        let mut ledger = told.clone();
        ledger.cut(last.step - last.count);
        ledger.push(&other);
        let path = job.model.parent().expect("a place").join(name);
        fs::write(&path, ledger.encode()).expect("write");
        refused(job.verify(&[&path]), "EQUIVOCATION");
        // And a passport of the lie against what workers were told.
        let names = [&PASSPORT[..], &[ledger::FILE, "model.ckpt-data", "model.best-data"]].concat();
        job.with(&names, |job| {
            let mut ours = Ledger::parse(&job.read(ledger::FILE)).expect("a ledger");
            ours.cut(last.step - last.count);
            ours.push(&other);
            job.write(ledger::FILE, &ours.encode());
            for name in ["model.ckpt-data", "model.best-data"] {
                let [from, to] = [&last, &other].map(|receipt| hex(&receipt.encode()));
                let file = job.read(name);
                job.write(name, &replaced(&file, from.as_bytes(), to.as_bytes()));
            }
            let mut forged = training.clone();
            let told = &mut forged["predicate"]["runDetails"]["byproducts"][1];
            told["digest"]["sha256"] = hex(&other.head()).into();
            told["content"] = base64(&other.encode()).into();
            job.forge(&forged, roster);
            refused(job.verify(&[kept[1]]), noticed);
        });
    }
}

fn base64(bytes: &[u8]) -> String {
    <base64ct::Base64 as base64ct::Encoding>::encode_string(bytes)
}

/// A file with other bytes of the same length in the one place where these are, if they are there.
fn replaced(file: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut file = file.to_vec();
    // It is in the header.
    let head = file.len().min(1 << 20);
    if let Some(at) = file[..head].windows(from.len()).position(|part| part == from) {
        file[at..at + to.len()].copy_from_slice(to);
    }
    file
}
