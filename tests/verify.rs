//! `hfl verify` on a real quote: accepted, refused with a code, and explained.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use protocol::hex;
use protocol::{Identity, Policy, SimPlatform};
use serde_json::{Value, json};

use crate::cli::hfl;
use crate::processes::{Cast, Dir, Process, free_port};

/// A real case as a quote file and a bundle file.
fn case(index: usize, test: &str) -> (PathBuf, PathBuf, Value) {
    let vectors = Path::new(env!("CARGO_MANIFEST_DIR")).join("protocol/src/judge/dcap/vectors");
    let read = |file: &str| std::fs::read(vectors.join(file)).expect("a file");
    let cases = String::from_utf8(read("cases.jsonl")).expect("UTF-8");
    let case: Value =
        serde_json::from_str(cases.lines().nth(index).expect("a case")).expect("JSON");
    let file = |key: &str| case[key].as_str().expect("a file").to_owned();
    let text = |name: &str| String::from_utf8(read(name)).expect("UTF-8").trim().to_owned();
    let hex = |name: &str| hex(&read(name));
    let signature = |key: &str| text(&file(key).replace(".json", ".sig"));
    let document = |key: &str| String::from_utf8(read(&file(key))).expect("UTF-8");
    let bundle = json!({
        "tcb_info_issuer_chain": text(&file("signing_chain")),
        "tcb_info": document("tcb_info"),
        "tcb_info_signature": signature("tcb_info"),
        "qe_identity_issuer_chain": text(&file("signing_chain")),
        "qe_identity": document("qe_identity"),
        "qe_identity_signature": signature("qe_identity"),
        "root_ca_crl": hex(&file("root_ca_crl")),
        "pck_crl": hex(&file("pck_crl")),
    });
    let path =
        std::env::temp_dir().join(format!("hfl-bundle-{index}-{}-{}", std::process::id(), test));
    std::fs::write(&path, bundle.to_string()).expect("write");
    (vectors.join(file("quote")), path, case)
}

#[test]
fn a_real_quote_is_accepted_in_its_time_and_refused_outside() {
    let (quote, bundle, case) = case(1, "times");
    let at = case["now_unix"].to_string();
    let words = ["verify", "--quote", quote.to_str().expect("UTF-8"), "--collateral"];
    let run = |more: &[&str]| hfl(&[&words[..], &[bundle.to_str().expect("UTF-8")], more].concat());
    let report = |output: &std::process::Output| -> Value {
        serde_json::from_slice(&output.stdout).expect("JSON")
    };

    let accepted = run(&["--at", &at, "--json"]);
    let found = report(&accepted);
    assert_eq!((accepted.status.code(), &found["verdict"]), (Some(0), &json!("accepted")));
    assert_eq!(found["status"], "UpToDate");
    assert_eq!(found["fmspc"], "b0c06f000000");
    assert_eq!(found["measurements"]["mr_td"].as_str().map(str::len), Some(96));
    let text = run(&["--at", &at, "--explain"]);
    assert!(String::from_utf8_lossy(&text.stdout).contains("mr_config_id"));

    let late = run(&["--at", "2035-01-01T00:00:00Z", "--json"]);
    let found = report(&late);
    assert_eq!((late.status.code(), &found["verdict"]), (Some(1), &json!("refused")));
    assert!(found["code"].as_str().expect("a code").ends_with("-expired"), "{found}");
    assert!(found["advice"].is_string());

    // The host had no certificate of its platform: it is told what to do, and not that anybody forged anything.
    let mut bytes = std::fs::read(&quote).expect("a quote");
    let chain = bytes.windows(10).position(|part| part == b"-----BEGIN").expect("a chain");
    assert_eq!(bytes[chain - 6..chain - 4], [5, 0]);
    bytes[chain - 6] = 3;
    let bare = std::env::temp_dir().join(format!("hfl-bare-{}", std::process::id()));
    std::fs::write(&bare, bytes).expect("write");
    let bundle_text = bundle.to_str().expect("UTF-8");
    let words = ["verify", "--quote", bare.to_str().expect("UTF-8"), "--json", "--collateral"];
    let found = report(&hfl(&[&words[..], &[bundle_text]].concat()));
    assert_eq!(found["code"], "quote-without-pck");
    let advice = found["advice"].as_str().expect("advice");
    assert!(
        advice.contains("PCKIDRetrievalTool") && !found.to_string().contains("forged"),
        "{found}"
    );
    std::fs::remove_file(&bare).expect("remove");

    let wrong_root = run(&["--at", &at, "--json", "--root", quote.to_str().expect("UTF-8")]);
    assert_eq!(report(&wrong_root)["code"], "root-untrusted");
    let swapped =
        hfl(&["verify", "--quote", bundle.to_str().expect("UTF-8"), "--collateral", "/dev/null"]);
    assert_eq!(swapped.status.code(), Some(1));
    assert_eq!(run(&["--at", "yesterday"]).status.code(), Some(2));
    std::fs::remove_file(&bundle).expect("remove");
}

#[test]
fn an_old_platform_is_refused_with_what_it_lacks_unless_its_status_is_accepted() {
    let (quote, bundle, case) = case(2, "old");
    let at = case["now_unix"].to_string();
    let [quote, path] = [&quote, &bundle].map(|path| path.to_str().expect("UTF-8"));
    let words = ["verify", "--quote", quote, "--collateral", path, "--at", &at];
    let refused = hfl(&words);
    let text = String::from_utf8_lossy(&refused.stdout).into_owned();
    assert_eq!(refused.status.code(), Some(1));
    assert!(text.contains("tcb-status") && text.contains("needs"), "{text}");
    assert!(text.contains("INTEL-SA-01192"), "{text}");
    let accepted = hfl(&[&words[..], &["--accept", "UpToDate", "--accept", "OutOfDate"]].concat());
    assert!(accepted.status.success());
    std::fs::remove_file(&bundle).expect("remove");
}

#[test]
fn a_policy_made_from_a_quote_accepts_it_and_a_changed_one_refuses_it() {
    let (quote, bundle, case) = case(1, "policy");
    let at = case["now_unix"].to_string();
    let [quote, path] = [&quote, &bundle].map(|path| path.to_str().expect("UTF-8"));
    let template = hfl(&["quote", "--quote", quote, "--policy-template"]);
    let template = String::from_utf8(template.stdout).expect("UTF-8");
    let policy = std::env::temp_dir().join(format!("hfl-policy-{}", std::process::id()));
    let policy_text = policy.to_str().expect("UTF-8");
    let words = [
        "verify",
        "--quote",
        quote,
        "--collateral",
        path,
        "--at",
        &at,
        "--policy",
        policy_text,
        "--json",
    ];
    let judge = |text: &str| {
        std::fs::write(&policy, text).expect("write");
        let output = hfl(&words);
        let found: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        (output.status.code(), found["code"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(judge(&template), (Some(0), String::new()));
    let mut changed: Value = serde_json::from_str(&template).expect("JSON");
    changed["tdx_mrs"][0]["mr_td"] = "0".repeat(96).into();
    assert_eq!(judge(&changed.to_string()), (Some(1), "measurement".into()));
    let mut listed: Value = serde_json::from_str(&template).expect("JSON");
    listed["platforms"] = json!(["00000000000000000000000000000000"]);
    assert_eq!(judge(&listed.to_string()), (Some(1), "platform".into()));
    let mut late: Value = serde_json::from_str(&template).expect("JSON");
    late["min_evaluation_number"] = 99.into();
    assert_eq!(judge(&late.to_string()), (Some(1), "platform".into()));
    assert_eq!(judge(r#"{"verify_mrtd":"on"}"#).0, Some(1));
    for file in [&policy, &bundle] {
        std::fs::remove_file(file).expect("remove");
    }
    let shown = hfl(&["quote", "--quote", quote, "--json"]);
    let shown: Value = serde_json::from_slice(&shown.stdout).expect("JSON");
    assert_eq!(shown["version"], 4);
}

#[test]
fn a_template_takes_the_document_of_a_pod_and_policies_that_any_guest_meets_are_told() {
    let (quote, bundle, case) = case(1, "pods");
    let dir = Dir::new("pods");
    let [document, policy] = ["initdata.toml", "policy.json"].map(|name| dir.path(name));
    std::fs::write(&document, "version = \"0.1.0\"\nalgorithm = \"sha384\"\n").expect("write");
    let [quote, path, document, file] =
        [&quote, &bundle, &document, &policy].map(|path| path.to_str().expect("UTF-8").to_owned());
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let digest = text(&hfl(&["quote", "--init-data", &document]).stdout);
    let digest = digest.trim().strip_prefix("mr_config_id ").expect("a value").to_owned();
    assert_eq!(digest.len(), 96);

    let made = hfl(&["quote", "--quote", &quote, "--policy-template"]);
    let template: Value = serde_json::from_slice(&made.stdout).expect("JSON");
    let set = &template["tdx_mrs"][0]["mr_config_id"];
    let is_zero = set.as_str().is_some_and(|digits| digits.bytes().all(|digit| digit == b'0'));
    assert_eq!(template["verify_mr_config_id"], if is_zero { "off" } else { "on" });
    assert_eq!(text(&made.stderr).contains("MRCONFIGID is zero"), is_zero);
    let made = hfl(&["quote", "--quote", &quote, "--policy-template", "--init-data", &document]);
    let template: Value = serde_json::from_slice(&made.stdout).expect("JSON");
    assert_eq!(template["verify_mr_config_id"], "on");
    assert_eq!(template["tdx_mrs"][0]["mr_config_id"], digest.as_str());

    // The quote is of a guest with another document, or none: the verdict names the register.
    let at = case["now_unix"].to_string();
    let words =
        ["verify", "--quote", &quote, "--collateral", &path, "--at", &at, "--policy", &file];
    std::fs::write(&policy, made.stdout).expect("write");
    let refused = hfl(&words);
    let found = text(&refused.stdout);
    assert_eq!(refused.status.code(), Some(1), "{found}");
    let named = found.contains("MRCONFIGID is ") && found.contains(&format!("expected {digest}"));
    assert!(named && !found.contains("RTMR2 is"), "{found}");
    let weak = r#"{"verify_rt_mr3":"on","tdx_mrs":[{"rt_mr3":"#;
    std::fs::write(&policy, format!("{weak}\"{}\"}}]}}", "0".repeat(96))).expect("write");
    let told = text(&hfl(&words).stderr);
    assert!(told.contains("without mr_td") && told.contains("ANY guest"), "{told}");
    std::fs::remove_file(&bundle).expect("remove");
}

#[test]
fn a_role_refuses_peers_that_its_policy_does_not_list() {
    let dir = Dir::new("refusing");
    let report = *SimPlatform::new(1_800_000_000).report();
    let mut other = report;
    other.mr_td[0] ^= 1;
    std::fs::write(dir.path("other"), Policy::template(&other, None)).expect("write");
    let policy = dir.path("other");
    let policy = policy.to_str().expect("UTF-8");
    let cast = Cast::new(&dir, "model");
    let _ps0 = cast.start("ps0", &[("--policy", policy)]);
    let (code, stderr) = cast.start("worker0", &[]).end();
    assert_eq!(code, 1);
    assert!(stderr.contains("refused"), "{stderr}");

    let none = cast.start("worker0", &[("--attestation", "tdx")]);
    let (code, stderr) = none.end();
    assert!(code == 1 && stderr.contains("configfs-tsm"), "{stderr}");
    std::fs::write(dir.path("broken"), r#"{"verify_mrtd":"on"}"#).expect("write");
    let broken = dir.path("broken");
    let (code, stderr) =
        cast.start("worker0", &[("--policy", broken.to_str().expect("UTF-8"))]).end();
    assert!(code == 1 && stderr.contains("verify_mrtd"), "{stderr}");
}

#[test]
fn services_of_collateral_are_named_when_they_do_not_answer() {
    let dir = std::env::temp_dir().join(format!("hfl-quote-{}", std::process::id()));
    let out = dir.to_str().expect("UTF-8");
    let made = hfl(&["quote", "--attestation", "sim", "--out", out]);
    assert!(made.status.success() && std::fs::metadata(&dir).is_ok_and(|file| file.len() > 1000));
    for (service, code, part) in [
        ("https://localhost:1#00", 2, "64 digits"),
        ("ftp://localhost", 2, "https://HOST"),
        // A simulated quote is not worth asking anybody about.
        ("https://localhost:1", 1, "no collateral is asked for"),
    ] {
        let output = hfl(&["verify", "--quote", out, "--collateral", service]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{stderr}");
        assert!(stderr.contains(part), "{stderr}");
    }
    std::fs::remove_file(&dir).expect("remove");
}

#[test]
fn certificates_of_other_implementations_are_judged_by_their_quote_and_its_bond() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/protocol/src/identity");
    let (_, bundle, case) = case(1, "certificates");
    let at = case["now_unix"].to_string();
    // How far each gets with the collateral of another platform shows what was found in it.
    for (name, reason) in [("gramine", "id"), ("rats-tls", "id"), ("dstack", "FMSPC")] {
        let path = format!("{root}/{name}.der");
        let words = ["verify", "--certificate", &path, "--json", "--at", &at, "--collateral"];
        let output = hfl(&[&words[..], &[bundle.to_str().expect("UTF-8")]].concat());
        let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(report["code"], "tcb-info-mismatch", "{name}: {report}");
        let found = report["reason"].as_str().expect("a reason");
        assert!(found.contains(&format!("{reason} differs")), "{name}: {report}");
    }
    std::fs::remove_file(&bundle).expect("remove");
}

/// Another reading of the same text accepts ours, and those that others made.
#[test]
fn an_independent_checker_accepts_our_certificates() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/protocol/src/identity");
    let checker = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/ra_tls.py");
    let own = std::env::temp_dir().join(format!("hfl-own-{}.der", std::process::id()));
    let now = 1_800_000_000;
    let identity = Identity::new(&SimPlatform::new(now), now).expect("identity");
    let check = |path: &Path| {
        let output = Command::new("python3").arg(checker).arg(path).output().expect("python3");
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    std::fs::write(&own, identity.certificate()).expect("write");
    for path in [
        own.clone(),
        format!("{folder}/gramine.der").into(),
        format!("{folder}/rats-tls.der").into(),
    ] {
        let (accepted, said) = check(&path);
        assert!(accepted, "{}: {said}", path.display());
    }
    // It does not accept everything: here the key's hash in the claims is another.
    let mut changed = identity.certificate().to_vec();
    let at = changed.windows(11).position(|bytes| bytes == b"pubkey-hash").expect("claims");
    changed[at + 20] ^= 1;
    std::fs::write(&own, changed).expect("write");
    assert!(!check(&own).0);
    std::fs::remove_file(&own).expect("remove");
}

/// Behind a paravisor the guest is measured by a virtual TPM, and a policy is about both.
#[test]
fn evidence_with_a_virtual_tpm_is_shown_with_its_pcrs_and_judged_with_them() {
    let seed = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/evidence/vtpm");
    let shown = hfl(&["quote", "--quote", seed, "--json"]);
    let shown: Value = serde_json::from_slice(&shown.stdout).expect("JSON");
    assert_eq!(shown["pcr11"], "0b".repeat(32));
    let template = hfl(&["quote", "--quote", seed, "--policy-template"]);
    Policy::parse(&template.stdout).expect("a policy");
    let template: Value = serde_json::from_slice(&template.stdout).expect("JSON");
    assert_eq!(template["verify_mr_td"], "on");
    assert_eq!(template["tdx_mrs"][0]["pcrs"]["4"], "04".repeat(32));
    assert!(template["tdx_mrs"][0]["pcrs"]["10"].is_null(), "of what runs, not of the image");
    // The seed is of a simulated platform: none of its certificates has a name of Intel's.
    let (_, bundle, _) = case(1, "vtpm");
    let bundle = bundle.to_str().expect("UTF-8");
    let judged = hfl(&["verify", "--quote", seed, "--collateral", bundle, "--json"]);
    let judged: Value = serde_json::from_slice(&judged.stdout).expect("JSON");
    assert_eq!(
        (&judged["verdict"], &judged["code"]),
        (&json!("refused"), &json!("pck-chain-missing"))
    );
}

/// Policies that accept these images in every role.
fn accepting(path: &Path, images: &[&str]) {
    let one = |image: &&str| -> Value {
        let template =
            Policy::template(SimPlatform::with_td(1_800_000_000, image, false).report(), None);
        serde_json::from_str(&template).expect("JSON")
    };
    let mut policy = one(&images[0]);
    let sets = images.iter().map(|image| one(image)["tdx_mrs"][0].clone());
    policy["tdx_mrs"] = sets.collect();
    std::fs::write(path, policy.to_string()).expect("write");
}

/// Lets who has the first policy take part with those who have the others.
fn listing(path: &Path, others: &[&Path]) {
    let digest = |path: &&Path| {
        let bytes = std::fs::read(path).expect("a file");
        hex(&Policy::parse(&bytes).expect("a policy").digest())
    };
    let others: Vec<String> = others.iter().map(digest).collect();
    let mut policy: Value =
        serde_json::from_slice(&std::fs::read(path).expect("a file")).expect("JSON");
    policy["policies"] = json!(others);
    std::fs::write(path, policy.to_string()).expect("write");
}

#[test]
fn an_update_of_all_images_goes_on_with_a_job_that_was_begun_before_it() {
    let dir = Dir::new("rolling");
    let cast = Cast::new(&dir, "model");
    let [before, after, both] =
        ["before", "after", "both"].map(|name| dir.path(name).to_str().expect("UTF-8").to_owned());
    accepting(Path::new(&before), &["hfl"]);
    accepting(Path::new(&after), &["patched"]);
    accepting(Path::new(&both), &["hfl", "patched"]);
    let old = |role| cast.start(role, &[("--policy", &*before), ("--pause-ms", "300")]);
    let (ps0, workers) = (old("ps0"), [old("worker0"), old("worker1")]);
    ps0.wait_for("step: 1,");
    ps0.terminate();
    assert_eq!(ps0.end().0, 1);
    drop(workers);
    let new =
        |role, policy: &str| cast.start(role, &[("--policy", policy), ("--sim-image", "patched")]);
    // By the new policy alone who was admitted before is nobody, and the error leads to the way.
    let ps0 = new("ps0", &after);
    let (code, stderr) = new("worker0", &after).end();
    assert!(
        code == 1 && stderr.contains("it admitted ps0") && stderr.contains("until"),
        "{stderr}"
    );
    ps0.terminate();
    assert_eq!(ps0.end().0, 1);
    // Both sets, and the policies of everybody so far among those that may be met.
    listing(Path::new(&both), &[Path::new(&before), Path::new(&after)]);
    let ps0 = new("ps0", &both);
    let workers = vec![new("worker0", &both), new("worker1", &both)];
    cast.finish(&ps0, workers);
    assert_eq!(ps0.end().0, 0);
}

#[test]
fn workers_judge_one_another_and_an_auditor_judges_all_of_them() {
    let dir = Dir::new("roster");
    let cast = Cast::new(&dir, "model");
    let (both, ours) = (dir.path("both.json"), dir.path("ours.json"));
    accepting(&both, &["hfl", "patched"]);
    accepting(&ours, &["hfl"]);
    listing(&both, &[&ours]);
    listing(&ours, &[&both]);
    let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    let (open, strict) = (text(&both), text(&ours));
    // ps0 takes part with both images; worker0 does not want to train with the other one.
    let ps0 = cast.start("ps0", &[("--policy", &open)]);
    let other = cast.start("worker1", &[("--policy", &open), ("--sim-image", "patched")]);
    other.wait_for("Info: App: Verification completed successfully.");
    let (code, stderr) = cast.start("worker0", &[("--policy", &strict)]).end();
    assert_eq!(code, 1, "{stderr}");
    assert!(
        stderr.contains("it admitted worker1, whose evidence we refuse [measurement]"),
        "{stderr}"
    );
    // With a policy that allows both, the job goes on and ends.
    let worker0 = cast.start("worker0", &[("--policy", &open)]);
    cast.finish(&ps0, vec![worker0, other]);
    assert_eq!(ps0.end().0, 0);

    let file = text(&dir.path("model/roster.json"));
    let judge = |policy: &str| {
        let output = hfl(&["roster", "--file", &file, "--attestation", "sim", "--policy", policy]);
        let out =
            [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        (output.status.code(), out.concat())
    };
    let (code, said) = judge(&open);
    assert!(code == Some(0) && said.contains("4 entries"), "{said}");
    let (code, said) = judge(&strict);
    assert!(
        code == Some(1) && said.contains("worker1") && said.contains("[measurement]"),
        "{said}"
    );
    // Somebody taken out, or put in the place of another.
    let entries: Vec<Value> =
        serde_json::from_slice(&std::fs::read(&file).expect("roster")).expect("JSON");
    let mut renamed = entries.clone();
    renamed[3]["role"] = "worker7".into();
    for changed in [&entries[1..], &[entries[0].clone(), entries[2].clone()]] {
        std::fs::write(&file, json!(changed).to_string()).expect("write");
        let (code, said) = judge(&open);
        assert!(code == Some(1) && said.contains("does not follow"), "{said}");
    }
    std::fs::write(&file, json!(renamed).to_string()).expect("write");
    let (code, said) = judge(&open);
    assert!(code == Some(1) && said.contains("[report-data]"), "{said}");
}

#[test]
fn older_tls_and_servers_of_another_role_are_refused() {
    let dir = Dir::new("older");
    let cast = Cast::new(&dir, "model");
    let ps0 = cast.start("ps0", &[("--json", "")]);
    ps0.wait_for("{\"address\"");
    let server = cast.server();
    let openssl = |version: &str| {
        let flags = ["s_client", "-connect", &server, version, "-servername", "ps0"];
        let output = Command::new("openssl").args(flags).stdin(Stdio::null()).output();
        let output = output.expect("openssl");
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    let older = openssl("-tls1_2");
    assert!(older.contains("protocol version") && !older.contains("BEGIN CERTIFICATE"), "{older}");
    // The right version without evidence: a certificate is asked for, no ticket is ever given.
    let bare = openssl("-tls1_3");
    assert!(bare.contains("BEGIN CERTIFICATE") && bare.contains("CN = hfl"), "{bare}");
    assert!(!bare.contains("TLS session ticket"), "{bare}");
    drop(ps0);

    // A service that is verified, but is no parameter server: nothing it says is listened to.
    let secrets = dir.path("secrets.json");
    std::fs::write(&secrets, "{\"a\":\"b\"}").expect("write");
    let audit = dir.path("audit.jsonl");
    let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    let address = format!("127.0.0.1:{}", free_port());
    let flags = ["secret", "serve", "--attestation", "sim", "--listen", &address, "--secrets"];
    let files = [text(&secrets), "--audit".into(), text(&audit)];
    let words: Vec<String> = flags.iter().map(|word| (*word).to_owned()).chain(files).collect();
    let _service = Process::start(&words, "warn");
    let (code, stderr) = cast.start("worker0", &[("--ps-hosts", &address)]).end();
    assert!(code == 1 && stderr.contains("for a role that has no place here"), "{stderr}");
    assert!(stderr.contains("a parameter server's address in --ps-hosts"), "{stderr}");
}
