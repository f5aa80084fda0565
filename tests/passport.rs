//! A model's passport: a job leaves one that holds, and none of the ways to lie in it passes.
//!
//! The lying ps0 of these tests has a key and quotes of its own, over whatever it says: its TD is the right one, its
//! program is not. What it cannot have is what workers keep.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use base64ct::{Base64, Encoding};
use hfl::commands::passport;
use hfl::job::receipt::Receipt;
use hfl::passport::attestation::OwnQuote;
use hfl::passport::key::PassportKey;
use hfl::passport::{
    ATTESTATION, EVALUATION, PUBLIC_KEY, SIGNATURE, TRAINING, attestation, bundle, encode, sha256,
    signature,
};
use hfl::training::ledger::{self, Ledger};
use hfl::training::{roster, rounds};
use hfl::trust::Attestation;
use protocol::{Admission, Attester, Binding, Role, Roster, SimPlatform, hex};
use serde_json::{Value, json};

use crate::cli::hfl;
use crate::processes::{Cast, Dir, Process};

/// A finished job's folder and what its workers kept.
struct Job {
    model: PathBuf,
    kept: [PathBuf; 2],
}

/// The container image that the jobs say they run from.
const IMAGE: &str = "00000000000000000000000000000000000000000000000000000000c0ffee00";

/// Starts the roles of a job; each worker keeps its receipts in a place of its own.
fn roles(cast: &Cast, dir: &Dir) -> [Process; 3] {
    let image = format!("registry.example/hfl@sha256:{IMAGE}");
    let ps0 = [
        ("--model", "resnet18"),
        ("--evaluate-every", "1"),
        ("--bom", ""),
        ("--steps", "3"),
        ("--image-digest", &image),
    ];
    let ps0 = cast.start("ps0", &ps0);
    let [worker0, worker1] = [0, 1].map(|worker| {
        let place = dir.path(&format!("kept{worker}"));
        cast.start(&format!("worker{worker}"), &[("--model-dir", place.to_str().expect("UTF-8"))])
    });
    [ps0, worker0, worker1]
}

fn job(dir: &Dir) -> Job {
    let cast = Cast::new(dir, "model");
    let [ps0, worker0, worker1] = roles(&cast, dir);
    cast.finish(&ps0, vec![worker0, worker1]);
    let (code, stderr) = ps0.end();
    assert_eq!(code, 0, "{stderr}");
    let kept = [0, 1].map(|worker| {
        let place = dir.path(&format!("kept{worker}"));
        let found = fs::read_dir(place).expect("a place").map(|entry| entry.expect("entry").path());
        let mut files = found.filter(|path| path.to_string_lossy().contains("receipts-worker"));
        files.next().expect("a worker keeps what it is told")
    });
    Job { model: dir.path("model"), kept }
}

/// What is said of a folder, in this process.
pub(crate) fn verify(model: &Path, kept: &[&Path]) -> Result<String, String> {
    let kept: Vec<PathBuf> = kept.iter().map(|path| path.to_path_buf()).collect();
    let (lines, found) = passport::verify(model, None, Attestation::Sim, &kept);
    let said = lines.iter().map(|(what, says)| format!("{what} {says}\n")).collect();
    found.map(|()| said)
}

impl Job {
    /// What `hfl passport verify` says, and the first thing that does not hold.
    fn verify(&self, kept: &[&Path]) -> Result<String, String> {
        verify(&self.model, kept)
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
        self.forge_with(training, roster, Forgery::default());
    }

    fn forge_with(&self, training: &Value, roster: &Roster, forgery: Forgery) {
        let Forgery { quote, is_not_over, leaves_out } = forgery;
        let key = PassportKey::generate().expect("a key");
        let sign = |statement: &Value| bundle::sign(statement, &key).expect("signed");
        self.write(PUBLIC_KEY, key.public().pem().as_bytes());
        let (mut files, mut ignored) =
            signature::read(&self.statement(SIGNATURE)).expect("as we make it");
        is_not_over.iter().for_each(|name| {
            files.remove(*name);
        });
        ignored.extend(leaves_out.map(str::to_owned));
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

/// What a liar does beside another story.
#[derive(Default)]
struct Forgery {
    /// A quote that it has from elsewhere.
    quote: Option<Vec<u8>>,
    /// A file that it does not sign.
    is_not_over: Option<&'static str>,
    /// A file that it says need not be signed.
    leaves_out: Option<&'static str>,
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
    for digest in [IMAGE, "by class "] {
        assert!(said.contains(digest), "{digest} in {said}");
    }

    commands(&job, &dir);
    every_byte_counts(&job);
    refused_files(&job);
    lies(&job, &kept);
    rounds_of_a_liar(&job, &kept);
    let said = job.verify(&kept);
    assert!(said.is_ok(), "all was put back: {said:?}");
    accused(&job, &dir);
}

/// The command: in words and in JSON, by a policy, and how it ends.
fn commands(job: &Job, dir: &Dir) {
    let model = job.model.to_str().expect("UTF-8");
    let run = |more: &[&str]| hfl(&[&["passport", "verify", model], more].concat());
    // Without the word `sim` simulated evidence is none.
    let output = run(&[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("SIMULATED"));
    let sim = ["--attestation", "sim"];
    let json = |more: &[&str]| {
        let output = run(&[&sim[..], &["--json"], more].concat());
        let said: Value = serde_json::from_slice(&output.stdout).expect("one object");
        let is_refused = output.status.code() == Some(1);
        assert_eq!(said["verdict"], if is_refused { "refused" } else { "holds" });
        assert_eq!(said["reason"].is_string(), is_refused);
        said
    };
    let kept = job.kept[1].to_str().expect("UTF-8");
    let said = json(&["--receipts", kept]);
    let words = String::from_utf8(run(&[&sim[..], &["--receipts", kept]].concat()).stdout);
    let words = words.expect("UTF-8");
    let checks = said["checks"].as_array().expect("checks");
    assert_eq!(checks.len(), words.lines().count());
    for (check, line) in checks.iter().zip(words.lines()) {
        let [what, says] = ["what", "says"].map(|field| check[field].as_str().expect("text"));
        assert!(line.starts_with(what) && line.ends_with(says), "{check} is not: {line}");
    }
    let shown = hfl(&["passport", "show", model, "--json"]);
    let shown: Value = serde_json::from_slice(&shown.stdout).expect("one object");
    assert_eq!(shown["verdict"], "holds");
    let of_sim = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/overlays/sim/policy.json");
    assert_eq!(json(&["--policy", of_sim])["verdict"], "holds");
    let text = fs::read_to_string(of_sim).expect("a policy");
    let other = text.replacen("\"1fb70ca4", "\"0fb70ca4", 1);
    assert_ne!(other, text);
    let path = dir.path("other.json");
    fs::write(&path, other).expect("write");
    let said = json(&["--policy", path.to_str().expect("UTF-8")]);
    let reason = said["reason"].as_str().expect("a reason");
    assert!(reason.starts_with("ps0's quote") && reason.contains("[measurement]"), "{reason}");
    job.with(&["rounds.json"], |job| {
        job.write("rounds.json", b"{}");
        let reason = json(&[])["reason"].clone();
        assert_eq!(reason, "rounds.json: not the file that was signed");
    });
}

/// Bytes of a file that are tried: all of a small one.
const TRIED: usize = 250;

/// Every file of the folder with one byte changed, here and there and at both ends.
fn every_byte_counts(job: &Job) {
    for entry in fs::read_dir(&job.model).expect("the folder") {
        let path = entry.expect("entry").path();
        let bytes = fs::read(&path).expect("a file");
        // For each byte of a model that is tried, all of it is read.
        let tried = if bytes.len() > 1 << 20 { 2 } else { TRIED };
        let places = (0..bytes.len()).step_by(bytes.len().div_ceil(tried).max(1));
        let file = File::options().write(true).open(&path).expect("a file");
        for at in places.chain([bytes.len() - 1]) {
            file.write_all_at(&[bytes[at] ^ 1], at as u64).expect("write");
            assert!(job.verify(&[]).is_err(), "{}: byte {at}", path.display());
            file.write_all_at(&[bytes[at]], at as u64).expect("write");
        }
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
        let quote = Base64::decode_vec(quote.as_str().expect("text"));
        job.forge_with(&training, &roster, Forgery { quote: quote.ok(), ..Forgery::default() });
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
        elsewhere(job, &training, &roster);
    });
    // What a passport has to be over.
    job.with(&PASSPORT, |job| {
        let is_not_over = Some(ledger::FILE);
        let forgery = Forgery { is_not_over, ..Forgery::default() };
        job.forge_with(&training, &roster, forgery);
        refused(job.verify(&[]), "it is not over receipts.json");
        let forgery = Forgery { is_not_over, leaves_out: is_not_over, ..Forgery::default() };
        job.forge_with(&training, &roster, forgery);
        refused(job.verify(&[]), "it leaves out receipts.json");
    });
    job.with(&PASSPORT, |job| {
        let mut more = training.clone();
        more["predicate"]["runDetails"]["metadata"]["note"] = "trust me".into();
        job.forge(&more, &roster);
        refused(job.verify(&[]), "training.sigstore.json: not as hfl makes it");
        let mut other = training.clone();
        let all = &mut other["predicate"]["buildDefinition"]["resolvedDependencies"];
        let data = all.as_array_mut().and_then(|all| all.last_mut()).expect("data of worker1");
        data["annotations"]["samples"] = 33.into();
        job.forge(&other, &roster);
        refused(job.verify(&[]), "worker1 had other data than the passport says");
    });
    swapped(job, &training, &roster);
    retold(job, (&training, &roster), kept);
}

/// Evidence of a worker that is genuine, but was shown in another job, or to another server.
fn elsewhere(job: &Job, training: &Value, roster: &Roster) {
    type Change = fn(&mut Admission);
    let changes: [(Change, &str); 2] = [
        (|shown| shown.job[0] ^= 1, "its evidence is of another job"),
        (|shown| shown.keys[1][0] ^= 1, "somebody who is not among the participants"),
    ];
    for (change, noticed) in changes {
        let mut other = Roster::default();
        for entry in roster.entries() {
            let mut shown = entry.admission.clone();
            if shown.role == Role::Worker(1) {
                change(&mut shown);
                let Admission { role, server, time, keys, nonces, exporter, job, policies, .. } =
                    &shown;
                let binding = Binding {
                    prover: *role,
                    verifier: *server,
                    from_client: true,
                    keys: [&keys[0], &keys[1]],
                    nonces: [&nonces[0], &nonces[1]],
                    exporter,
                    job,
                    policies: [&policies[0], &policies[1]],
                };
                shown.quote =
                    SimPlatform::new(*time).quote(&binding.report_data()).expect("a quote");
            }
            assert!(other.admit(shown));
        }
        job.write(roster::FILE, &roster::encode(&other));
        job.forge(training, &other);
        refused(job.verify(&[]), noticed);
    }
}

/// A log of rounds that says of a contribution what its receipts do not.
fn rounds_of_a_liar(job: &Job, kept: &[&Path; 2]) {
    let (training, roster) = (job.statement(TRAINING), job.roster());
    let names = [&PASSPORT[..], &[rounds::FILE]].concat();
    job.with(&names, |job| {
        let log: Value = serde_json::from_slice(&job.read(rounds::FILE)).expect("a log");
        let [run] = &log["runs"].as_array().expect("runs")[..] else { panic!("all are alike") };
        let rounds_of = |step: u64, rounds: u64, samples: u64| {
            let mut run = run.clone();
            run["workers"][1]["samples"] = samples.into();
            (run["step"], run["rounds"], run["checks"]) = (step.into(), rounds.into(), json!([]));
            run
        };
        let samples = run["workers"][1]["samples"].as_u64().expect("samples");
        let sign = |runs: &[Value]| {
            job.write(rounds::FILE, json!({"version": 1, "runs": runs}).to_string().as_bytes());
            job.forge(&training, &roster);
        };
        sign(&[rounds_of(0, 3, samples)]);
        job.verify(kept).expect("the truth");
        sign(&[rounds_of(0, 3, samples + 1)]);
        refused(job.verify(&[]), "others contributed to the last round");
        // Of rounds before the last, the worker that contributed knows.
        sign(&[rounds_of(0, 2, samples + 1), rounds_of(2, 1, samples)]);
        refused(job.verify(kept), "worker1 contributed otherwise to the round");
        sign(&[rounds_of(0, 2, samples), rounds_of(3, 1, samples)]);
        refused(job.verify(&[]), "another round than that which ended after step 3");
        sign(&[rounds_of(0, u64::MAX, samples), rounds_of(2, 4, samples)]);
        refused(job.verify(&[]), "too many rounds");
    });
}

/// A worker that was told another head before ends, and what it was told lies in a file.
fn accused(job: &Job, dir: &Dir) {
    let mut kept: Value =
        serde_json::from_slice(&fs::read(&job.kept[1]).expect("kept")).expect("a ledger");
    let hashes = kept["segments"][0]["hashes"].as_str().expect("heads");
    let mut hashes = Base64::decode_vec(hashes).expect("base64");
    let truth = hex(&hashes[..32]);
    hashes[0] ^= 1;
    kept["segments"][0]["hashes"] = base64(&hashes).into();
    fs::write(&job.kept[1], kept.to_string()).expect("write");
    let cast = Cast::new(dir, "again");
    let [ps0, worker0, worker1] = roles(&cast, dir);
    let (code, stderr) = worker1.end();
    let place = job.kept[1].parent().expect("a place");
    let file = format!(
        "contradiction-{}",
        &job.kept[1].file_name().expect("a name").to_string_lossy()[9..]
    );
    let file = place.join(file);
    let said =
        "EQUIVOCATION: two receipts of one round, which ended after step 1; the evidence is in";
    assert!(code == 1 && stderr.contains(&format!("{said} {}", file.display())), "{stderr}");
    let evidence: Value =
        serde_json::from_slice(&fs::read(file).expect("evidence")).expect("an object");
    assert_eq!((&evidence["worker"], &evidence["step"]), (&json!(1), &json!(1)));
    assert_eq!(
        (&evidence["ours"], &evidence["told_head"]),
        (&hex(&hashes[..32]).into(), &truth.into())
    );
    let told: Receipt = serde_json::from_value(evidence["told"].clone()).expect("a receipt");
    assert_eq!((told.step, Value::from(hex(&told.head()))), (1, evidence["told_head"].clone()));
    let roster = roster::parse(&fs::read(dir.path("again").join(roster::FILE)).expect("kept"));
    let roster = roster.expect("a roster");
    let key = evidence["server_key"].as_str().expect("a key");
    assert!(roster.entries().iter().any(|entry| hex(&entry.admission.keys[0]) == key));
    for role in [ps0, worker0] {
        role.terminate();
        role.end();
    }
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
        (|last| last.parts[1].share = None, "others contributed to the last round"),
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
    Base64::encode_string(bytes)
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
