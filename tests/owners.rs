//! Owners without a TD: known by their keys where policies list them, in two roles, and nowhere else.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Output;

use hfl::training::volume::create_volume;
use luks::{Hash, KdfCost, Options, Passphrase};
use protocol::{Policy, SimPlatform};
use serde_json::{Value, json};

use crate::cli::hfl;
use crate::processes::{Cast, Dir, Process, free_port};

const NOW: u64 = 1_800_000_000;

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn refused(output: &Output, reason: &str) {
    let stderr = stderr(output);
    assert!(!output.status.success() && stderr.contains(reason), "{stderr}");
    assert!(output.stdout.is_empty() && !stderr.contains("--attestation sim"), "{stderr}");
}

/// A new key in a file; its hash.
fn identity(dir: &Dir, name: &str) -> String {
    let path = dir.path(name);
    let made = hfl(&["identity", "create", "--out", text(&path)]);
    let hash = String::from_utf8(made.stdout).expect("digits").trim().to_owned();
    assert_eq!((hash.len(), made.status.code()), (64, Some(0)), "{hash}");
    let mode = fs::metadata(&path).expect("a file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let shown = hfl(&["identity", "show", "--key", text(&path)]);
    assert_eq!(String::from_utf8_lossy(&shown.stdout).trim(), hash);
    // What is there is not overwritten.
    refused(&hfl(&["identity", "create", "--out", text(&path)]), name);
    hash
}

/// A policy of simulated TDs with more keys.
fn policy(path: &Path, more: &[(&str, Value)]) {
    let template = Policy::template(SimPlatform::new(NOW).report(), None);
    let mut policy: Value = serde_json::from_str(&template).expect("JSON");
    for (name, value) in more {
        policy[*name] = value.clone();
    }
    fs::write(path, policy.to_string()).expect("write");
}

#[test]
fn secrets_of_an_owner_without_a_td_go_to_tds_and_to_a_node_with_a_listed_key() {
    let dir = Dir::new("owners");
    let (owner, node) = (identity(&dir, "owner.key"), identity(&dir, "node.key"));
    let host = identity(&dir, "host.key");
    let (serves, asks) = (dir.path("serves.json"), dir.path("asks.json"));
    policy(&serves, &[("node_keys", json!([node]))]);
    policy(&asks, &[("service_keys", json!([owner]))]);
    fs::write(dir.path("secrets.json"), "{\"app\":\"word\"}").expect("secrets");
    let key = |name: &str| dir.path(name).to_str().expect("UTF-8").to_owned();
    let start = |identity: &str| {
        let address = format!("127.0.0.1:{}", free_port());
        let (secrets, audit) = (key("secrets.json"), key(&format!("{identity}.jsonl")));
        let flags = ["secret", "serve", "--attestation", "none", "--listen", &address];
        let files = ["--secrets", &secrets, "--audit", &audit, "--policy", text(&serves)];
        let who = ["--identity", &key(identity)];
        (Process::start(&[&flags[..], &files, &who].concat(), "info"), address)
    };
    let get = |at: &str, more: &[&str]| {
        let flags = ["secret", "get", "--app-id", "app", "--secret-wait", "20"];
        hfl(&[&flags[..], &["--secret-service", at], more].concat())
    };
    let (service, address) = start("owner.key");
    let sim = ["--attestation", "sim", "--role", "ps0"];
    // Known by the address's pin, or by the policy.
    let pinned = format!("{address}#{owner}");
    assert_eq!(get(&pinned, &sim).stdout, b"word");
    let by_policy = [&sim[..], &["--policy", text(&asks)]].concat();
    assert_eq!(get(&address, &by_policy).stdout, b"word");
    refused(&get(&format!("{address}#{host}"), &sim), "service_keys");
    refused(&get(&address, &sim), "service_keys");
    // A node without a TD; not with a key that nobody lists, and in no role of a job.
    let node_key = key("node.key");
    let as_node = ["--attestation", "none", "--identity", &node_key, "--policy", text(&asks)];
    assert_eq!(get(&address, &as_node).stdout, b"word");
    let host_key = key("host.key");
    let as_host = ["--attestation", "none", "--identity", &host_key, "--policy", text(&asks)];
    refused(&get(&address, &as_host), "refused");
    refused(&get(&address, &[&as_node[..], &["--role", "worker0"]].concat()), "needs evidence");
    refused(&get(&address, &["--attestation", "none", "--policy", text(&asks)]), "--identity");
    service.terminate();
    let (code, log) = service.end();
    assert_eq!(code, 0, "{log}");
    // The genuine program with the host's key and the host's secrets.
    let (other, address) = start("host.key");
    refused(&get(&address, &by_policy), "service_keys");
    refused(&get(&format!("{address}#{owner}"), &sim), "service_keys");
    drop(other);
}

#[test]
fn a_model_goes_from_one_owners_machine_to_anothers() {
    let dir = Dir::new("owners-model");
    let (from, to) = (identity(&dir, "from.key"), identity(&dir, "to.key"));
    let (serves, pulls) = (dir.path("serves.json"), dir.path("pulls.json"));
    policy(&serves, &[("node_keys", json!([to]))]);
    policy(&pulls, &[("node_keys", json!([from]))]);
    let (volume, out) = (dir.path("model.luks"), dir.path("out.luks"));
    let mut options = Options::new(48 << 20);
    options.cost = KdfCost::Pbkdf2 { hash: Hash::Sha256, iterations: 1000 };
    let word = Passphrase::from_bytes(b"word");
    create_volume(&volume, None, &options, &[word], false, true).expect("create");
    let address = format!("127.0.0.1:{}", free_port());
    let key = |name: &str| dir.path(name).to_str().expect("UTF-8").to_owned();
    let flags = ["model", "serve", "--attestation", "none", "--identity", &key("from.key")];
    let more = ["--volume", text(&volume), "--ps-hosts", &address, "--policy", text(&serves)];
    let serving = Process::start(&[&flags[..], &more].concat(), "info");
    let flags = ["model", "pull", "--attestation", "none", "--from", &address, "--wait", "30"];
    let more = ["--policy", text(&pulls), "--out", text(&out)];
    let pull = |name: &str| hfl(&[&flags[..], &more, &["--identity", &key(name)]].concat());
    refused(&pull("from.key"), "");
    let pulled = pull("to.key");
    assert!(pulled.status.success(), "{}", stderr(&pulled));
    assert!(fs::read(&out).expect("volume") == fs::read(&volume).expect("volume"));
    let (code, log) = serving.end();
    assert_eq!(code, 0, "{log}");
}

#[test]
fn simulated_evidence_and_policies_of_real_tds_do_not_meet() {
    let dir = Dir::new("kinds");
    let (real, simulated) = (dir.path("real.json"), dir.path("simulated.json"));
    let mut report = *SimPlatform::new(NOW).report();
    report.mr_seam = [1; 48];
    fs::write(&real, Policy::template(&report, None)).expect("write");
    policy(&simulated, &[]);
    let role = |attestation: &str, policy: &Path| {
        let flags = ["--role", "worker0", "--attestation", attestation, "--data"];
        hfl(&[&flags[..], &[text(&dir.path("data")), "--policy", text(policy)]].concat())
    };
    refused(&role("sim", &real), "of real TDs");
    // No TD here, and no word of simulated ones to who has a real policy.
    refused(&role("auto", &real), "");
    refused(&role("none", &real), "needs evidence");
    let doctor = hfl(&["doctor", "--role", "worker0", "--policy", text(&real)]);
    let said = String::from_utf8_lossy(&doctor.stdout).into_owned() + &stderr(&doctor);
    assert!(!said.contains("--attestation sim"), "{said}");
}

#[test]
fn a_workers_place_is_not_for_the_key_of_another_worker() {
    let dir = Dir::new("successor");
    let keys = ["a.key", "b.key"].map(|name| identity(&dir, name));
    let rules = dir.path("policy.json");
    policy(&rules, &[("participant_keys", json!({ "worker": keys }))]);
    let cast = Cast::new(&dir, "model");
    let rules = ("--policy", text(&rules));
    let ps0 = Process::start(&cast.words("ps0", &[rules, ("--json", "")]), "info");
    let worker = |role: &str, key: &str| {
        let [key, own] = [key, "own"].map(|name| dir.path(name));
        cast.start(role, &[rules, ("--identity", text(&key)), ("--model-dir", text(&own))])
    };
    let joined = || {
        let line = std::iter::from_fn(|| ps0.next_line()).find(|line| line.contains("joined"));
        assert!(line.expect("ended").contains("worker0"));
    };
    let first = worker("worker0", "a.key");
    joined();
    first.kill();
    // Both are listed for workers, and nothing says that either is worker0's but who was there first.
    let (code, said) = worker("worker0", "b.key").end();
    assert!(code == 1 && said.contains("our evidence was not accepted"), "{said}");
    let again = worker("worker0", "a.key");
    joined();
    let other = worker("worker1", "b.key");
    for process in [again, other] {
        let (code, said) = process.end();
        assert_eq!(code, 0, "{said}");
    }
    let (code, said) = ps0.end();
    assert!(code == 0 && said.contains("another key than of the one that had the role"), "{said}");
}
