//! What `hfl doctor` finds: nothing wrong with a host that is ready, and each thing that is not.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::cli::hfl;
use crate::processes::{Cast, Dir};

/// What it says of an item.
#[track_caller]
fn standing<'a>(findings: &'a Value, item: &str) -> (&'a str, &'a str) {
    let all = findings.as_array().expect("a list");
    let found = all.iter().find(|finding| finding["item"] == item);
    let found = found.unwrap_or_else(|| panic!("nothing about {item}: {findings}"));
    (found["standing"].as_str().expect("text"), found["found"].as_str().expect("text"))
}

fn doctor(args: &[&str]) -> (i32, Value) {
    let output = hfl(&[&["doctor", "--json"], args].concat());
    let findings = serde_json::from_slice(&output.stdout).expect("JSON");
    (output.status.code().expect("an exit code"), findings)
}

#[test]
fn a_host_that_is_ready_and_one_that_lacks_everything() {
    let dir = Dir::new("doctor");
    let cast = Cast::new(&dir, "model");
    let ps0 = cast.start("ps0", &[("--json", "")]);
    ps0.wait_for("{\"address\"");
    let (data, from) = (dir.path("data"), cast.server());
    let data = data.to_str().expect("UTF-8");
    let hosts = ["--attestation", "sim", "--batch-size", "4", "--ps-hosts", &from];
    let sim = [&hosts[..], &["--data", data]].concat();
    let (code, findings) = doctor(&sim);
    assert_eq!(code, 0, "{findings}");
    for item in ["clock", "cpu", "memory", "quote", "data", "volumes", "ps0"] {
        assert_eq!(standing(&findings, item).0, "ok", "{findings}");
    }
    assert!(standing(&findings, "ps0").1.contains("attested"), "{findings}");
    assert_eq!(standing(&findings, "tdx").0, "warning");
    data_volumes(&dir, &hosts);
    // The port of the server that runs is taken.
    let (code, findings) = doctor(&[&sim[..], &["--role", "ps0"]].concat());
    assert_eq!((code, standing(&findings, "port").0), (1, "failed"));
    drop(ps0);

    let (code, findings) = doctor(&sim);
    assert_eq!((code, standing(&findings, "ps0").0), (0, "warning"), "{findings}");

    let (broken, garbage) = (dir.path("policy.json"), dir.path("volume"));
    fs::write(&broken, "{\"verify_mrtd\":\"on\"}").expect("write");
    fs::write(&garbage, [7; 9000]).expect("write");
    let text = |path: &std::path::PathBuf| path.to_str().expect("UTF-8").to_owned();
    let (broken, garbage) = (text(&broken), text(&garbage));
    let lacking = ["--data", "/nonexistent", "--policy", &broken, "--volume", &garbage];
    let nowhere =
        ["--ps-hosts", "no.such.host.invalid:1", "--batch-size", "4096", "--stem", "cifar"];
    let (code, findings) = doctor(&[&lacking[..], &nowhere].concat());
    assert_eq!(code, 1);
    for item in ["data", "policy", "volume", "ps0", "tdx", "quote", "collateral", "memory"] {
        assert_eq!(standing(&findings, item).0, "failed", "{item}: {findings}");
    }
    let named = [("policy", "verify_mrtd"), ("ps0", "no.such.host"), ("data", "/nonexistent")];
    for (item, part) in named {
        assert!(standing(&findings, item).1.contains(part), "{findings}");
    }
}

/// A data volume is opened as the worker will open it, and its data alone counts.
fn data_volumes(dir: &Dir, hosts: &[&str]) {
    let path = |name: &str| dir.path(name).to_str().expect("UTF-8").to_owned();
    let [data, volume, key, other] = ["data", "data.luks", "data.key", "other.key"].map(path);
    fs::write(&key, "a key").and_then(|()| fs::write(&other, "another")).expect("write");
    let create = ["luks", "create", &volume, "--size", "40M", "--integrity", "--key-file", &key];
    let fast = ["--kdf", "pbkdf2", "--kdf-time", "1000", "--files", &data];
    let made = hfl(&[&create[..], &fast].concat());
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let before = fs::read(&volume).expect("read");
    let expected = [
        (&volume[..], &["--key-file", key.as_str()][..], 0, "ok", "images"),
        (&volume, &["--key-file", &other], 1, "failed", "no keyslot opens"),
        (&volume, &[], 0, "warning", "not opened"),
        ("/no/volume", &["--key-file", &key], 1, "failed", "/no/volume"),
    ];
    for (volume, key, code, is, said) in expected {
        let instead = ["--data", "/nonexistent", "--data-volume", volume];
        let (ended, findings) = doctor(&[hosts, &instead, key].concat());
        let (standing, found) = standing(&findings, "data");
        assert_eq!((ended, standing), (code, is), "{findings}");
        assert!(found.contains(said), "{findings}");
    }
    assert!(fs::read(&volume).expect("read") == before, "written to");
}

/// A policy in which these measurements count.
fn write_policy(path: &Path, counting: &[&str], pcrs: &[&str]) {
    let mut set = serde_json::Map::new();
    let mut policy = serde_json::Map::new();
    for name in counting {
        policy.insert(format!("verify_{name}"), "on".into());
        set.insert((*name).into(), "ab".repeat(48).into());
    }
    if !pcrs.is_empty() {
        let pcrs = pcrs.iter().map(|number| ((*number).into(), "cd".repeat(32).into()));
        set.insert("pcrs".into(), Value::Object(pcrs.collect()));
    }
    policy.insert("tdx_mrs".into(), json!([set]));
    fs::write(path, Value::Object(policy).to_string()).expect("write");
}

#[test]
fn what_pins_nothing_that_matters_is_told_by_verify_doctor_and_every_start() {
    let dir = Dir::new("weak");
    let path = |name: &str| dir.path(name).to_str().expect("UTF-8").to_owned();
    let (file, quote, secrets) = (path("policy.json"), path("quote"), path("secrets.json"));
    fs::write(&secrets, "{\"a\":\"b\"}").expect("write");
    let made = hfl(&["quote", "--attestation", "sim", "--out", &quote]);
    assert!(made.status.success());
    let (data, audit) = (path("data"), path("audit.jsonl"));
    let commands: [&[&str]; 5] = [
        &["verify", "--quote", &quote, "--collateral", &quote],
        &["--role", "ps0", "--attestation", "sim"],
        &["--role", "worker0", "--attestation", "sim", "--data", &data],
        &["secret", "serve", "--attestation", "sim", "--secrets", &secrets, "--audit", &audit],
        &["model", "pull", "--attestation", "sim", "--from", "localhost:1", "--out", "/nowhere"],
    ];
    let everybody: [(&[&str], &[&str], &str); 7] = [
        (&["rt_mr3"], &[], "without mr_td"),
        (&["mrsigner_seam"], &[], "without mr_td"),
        (&["mr_config_id"], &[], "without mr_td"),
        (&["rt_mr1", "rt_mr2"], &[], "without mr_td"),
        (&["mr_td"], &[], "without rt_mr1 and rt_mr2"),
        (&["mr_td", "rt_mr0", "rt_mr3", "mr_config_id"], &[], "without rt_mr1 and rt_mr2"),
        (&["mr_td"], &["7"], "pcrs 4 and 9"),
    ];
    for (number, (counting, pcrs, told)) in everybody.iter().enumerate() {
        write_policy(Path::new(&file), counting, pcrs);
        // A command each in turn, and all of them for the first.
        for (at, command) in commands.iter().enumerate() {
            if number == 0 || number % commands.len() == at {
                let output = hfl(&[*command, &["--policy", &file]].concat());
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                assert!(said.contains(told) && said.contains("ANY"), "{command:?}: {said}");
                assert_eq!(output.status.code(), Some(1), "{command:?}: {said}");
            }
        }
    }
    // A host without a TD, and one whose evidence Intel's service judges: the file that the system before this one had.
    write_policy(Path::new(&file), &["rt_mr3"], &[]);
    let service = path("attest_config.json");
    let config = json!({
        "attestation_url": "https://localhost:1/appraisal/v1/attest",
        "attestation_provider": "ita",
        "api_key": "no key of anybody",
        "certificate_sha256": "7".repeat(64),
    });
    fs::write(&service, config.to_string()).expect("write");
    let args = ["--policy", &file, "--collateral", &service, "--batch-size", "2", "--data", &data];
    let (_, findings) = doctor(&args);
    let (standing_of, told) = standing(&findings, "policy");
    assert!(standing_of == "warning" && told.contains("ANY guest"), "{findings}");
    let (standing_of, told) = standing(&findings, "collateral");
    assert!(standing_of == "ok" && told.contains("judged by"), "{findings}");
    assert!(!findings.to_string().contains("no key of anybody"), "{findings}");
    // Rules that such a service tells nothing of are refused as a role refuses them; strong sets are fine.
    let strong = ["mr_td", "rt_mr1", "rt_mr2", "mr_config_id"];
    write_policy(Path::new(&file), &strong, &[]);
    let (_, findings) = doctor(&args);
    assert_eq!(standing(&findings, "policy").0, "ok", "{findings}");
    let mut policy: Value =
        serde_json::from_slice(&fs::read(&file).expect("a file")).expect("JSON");
    policy["max_age_days"] = 30.into();
    fs::write(&file, policy.to_string()).expect("write");
    let (_, findings) = doctor(&args);
    let (standing_of, told) = standing(&findings, "policy");
    assert!(standing_of == "failed" && told.contains("max_age_days"), "{findings}");
    fs::write(&service, "{\"attestation_provider\":\"ita\"}").expect("write");
    let (_, findings) = doctor(&args);
    assert_eq!(standing(&findings, "collateral").0, "failed", "{findings}");
}
