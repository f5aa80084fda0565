//! Quotes of real platforms with Intel's collateral, and generated ones for what public data lacks.
//!
//! `vectors/` has the generated cases and a few real ones; `HFL_TDX_VECTORS` names a folder with more.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use serde_json::Value;

use super::*;
use crate::judge::verify::Shown;
use crate::{CollateralStore, Policy, Rejection, Trust, Verifier};

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).expect("a file")).expect("JSON")
}

fn unhex(text: &str) -> Vec<u8> {
    let byte = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).expect("hexadecimal");
    (0..text.trim().len()).step_by(2).map(byte).collect()
}

fn verify_bytes(
    quote: &[u8],
    collateral: &Collateral,
    root: &Anchor,
    now: u64,
) -> Result<Verdict, String> {
    let quote = Quote::parse(quote).map_err(|error| error.to_string())?;
    verify(&quote, collateral, root, now).map_err(|fault| fault.code())
}

/// The generated cases, unpacked for one test.
pub(crate) fn generated(test: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("hfl-tdx-{test}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("create");
    let archive = concat!(env!("CARGO_MANIFEST_DIR"), "/src/judge/dcap/vectors/synthetic.tar.xz");
    let status = Command::new("tar").arg("xJf").arg(archive).arg("-C").arg(&folder).status();
    assert!(status.expect("tar; apt-get install xz-utils").success());
    folder
}

#[test]
fn generated_cases_have_their_expected_outcome() {
    let folder = generated("outcome");
    let mut wrong = Vec::new();
    let mut count = 0;
    for entry in std::fs::read_dir(folder.join("synthetic")).expect("cases") {
        let path = entry.expect("entry").path();
        let case = json(&path.join("case.json"));
        let name = case["case"].as_str().expect("a name");
        let read = |file: &str| std::fs::read(path.join(file)).expect("a file");
        let root = digest(&SHA256, &read("root.der"));
        let root = Anchor::new(root.as_ref().try_into().expect("32 bytes"));
        let now = case["now_unix"].as_u64().expect("a time");
        let outcome = Collateral::parse(&read("collateral.json"))
            .map_err(|fault| fault.code())
            .and_then(|collateral| verify_bytes(&read("quote.bin"), &collateral, &root, now));
        // "UpToDate+debug": the verifier reports, the policy refuses.
        let expected = case["expected"].as_str().expect("an outcome");
        let expected = expected.split('+').next().expect("a status");
        let found = outcome.as_ref().map_or("ERR", |verdict| verdict.status.name());
        if expected != "ANY" && found != expected {
            wrong.push(format!("{name}: {found}, expected {expected}: {:?}", outcome.err()));
        } else if let Ok(verdict) = outcome {
            wrong.extend(differences(name, &verdict, &case["ref"]));
        }
        count += 1;
    }
    std::fs::remove_dir_all(&folder).expect("remove");
    assert!(wrong.is_empty(), "{} of {count}: {wrong:#?}", wrong.len());
    assert_eq!(count, 127);
}

/// What a verdict says otherwise than the reference.
fn differences(name: &str, verdict: &Verdict, reference: &Value) -> Vec<String> {
    let mut sorted = verdict.advisories.clone();
    sorted.sort();
    let mut advisories: Vec<String> =
        serde_json::from_value(reference["advisories"].clone()).unwrap_or_default();
    advisories.sort();
    let module = verdict.module.as_ref().map_or("UpToDate", |module| module.status.name());
    let found = [
        ("platform", verdict.platform.status.name().to_owned()),
        ("module", module.to_owned()),
        ("qe", verdict.qe.status.name().to_owned()),
        ("launch", verdict.launch.name().to_owned()),
        ("tcb_date", super::date(verdict.tcb_date)),
    ];
    let mut wrong: Vec<String> = found
        .into_iter()
        .filter(|(key, _)| reference[*key].is_string())
        .filter(|(key, value)| reference[*key] != **value)
        .map(|(key, value)| format!("{name}: {key} {value}, expected {}", reference[key]))
        .collect();
    if reference["advisories"].is_array() && sorted != advisories {
        wrong.push(format!("{name}: advisories {sorted:?}, expected {advisories:?}"));
    }
    wrong
}

/// Where the default rules refuse another TD than `dcap-qvl`, which has such rules built in.
fn rule_differences(
    name: &str,
    outcome: &Result<Verdict, String>,
    reference: &Value,
) -> Option<String> {
    let verdict = outcome.as_ref().ok()?;
    let any_status = Rules { accepted: Status::ALL.to_vec(), ..Rules::default() };
    let found = any_status.check(verdict).map_or_else(Shortcoming::code, |()| "accepted");
    let expected = match reference["error"].as_str() {
        None => "accepted",
        Some(text) if text.contains("Debug mode") => "debug-td",
        Some(text) if text.contains("SEPT_VE_DISABLE") => "sept-ve",
        Some(text) if text.contains("service TD") => "service-td",
        Some(_) => return None,
    };
    (found != expected).then(|| format!("{name}: {found}, dcap-qvl {reference}"))
}

/// A real case: its quote and its collateral, from a folder of cases.
pub(crate) fn real(folder: &Path, case: &Value) -> (Vec<u8>, Collateral) {
    let read = |key: &str| {
        let file = case[key].as_str().expect("a file");
        std::fs::read(folder.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
    };
    let signature = |key: &str| {
        let file = case[key].as_str().expect("a file").replace(".json", ".sig");
        unhex(std::fs::read_to_string(folder.join(file)).expect("a signature").trim())
    };
    let collateral = Collateral {
        tcb_info_issuer_chain: read("signing_chain"),
        tcb_info: read("tcb_info"),
        tcb_info_signature: signature("tcb_info"),
        qe_identity_issuer_chain: read("signing_chain"),
        qe_identity: read("qe_identity"),
        qe_identity_signature: signature("qe_identity"),
        root_ca_crl: read("root_ca_crl"),
        pck_crl: read("pck_crl"),
    };
    (read("quote"), collateral)
}

#[test]
fn quotes_of_real_platforms_are_judged_as_intel_does() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/judge/dcap/vectors");
    let folder = std::env::var_os("HFL_TDX_VECTORS").map_or(here, PathBuf::from);
    let cases = std::fs::read_to_string(folder.join("cases.jsonl")).expect("cases");
    let root = Anchor::default();
    let mut wrong = Vec::new();
    let mut count = 0;
    for line in cases.lines() {
        let case: Value = serde_json::from_str(line).expect("JSON");
        let name = case["case"].as_str().expect("a name").to_owned();
        if !case["tcb_info"].is_string() {
            continue;
        }
        let (quote, collateral) = real(&folder, &case);
        let now = case["now_unix"].as_u64().expect("a time");
        let outcome = verify_bytes(&quote, &collateral, &root, now);
        let reference = &case["ref_intel_qvl"];
        match (&outcome, reference["status"].as_str()) {
            (Ok(verdict), Some(status)) if verdict.status.name() == status => {
                wrong.extend(differences(&name, verdict, reference));
            }
            (Err(code), None) if reference["error"] == "TCB_NOT_SUPPORTED platform" => {
                assert_eq!(code, "tcb-info-unsupported", "{name}");
            }
            _ => wrong.push(format!("{name}: {outcome:?}, expected {reference}")),
        }
        wrong.extend(rule_differences(&name, &outcome, &case["dcap_qvl_0_7_0"]));
        count += 1;
        // Another time, another root: refused for that reason.
        let early = verify_bytes(&quote, &collateral, &root, now - 20 * 365 * 86400);
        assert!(early.expect_err("before everything").ends_with("not-yet-valid"), "{name}");
        let other = verify_bytes(&quote, &collateral, &Anchor::new([7; 32]), now);
        assert_eq!(other.err().as_deref(), Some("root-untrusted"), "{name}");
    }
    assert!(wrong.is_empty(), "{} of {count}: {wrong:#?}", wrong.len());
    println!("{count} real cases");
    assert!(count >= 4, "only {count} cases");
}

#[test]
fn a_change_anywhere_in_a_quote_is_refused_unless_its_content_stays_the_same() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/judge/dcap/vectors");
    let cases = std::fs::read_to_string(folder.join("cases.jsonl")).expect("cases");
    let case: Value = serde_json::from_str(cases.lines().next().expect("a case")).expect("JSON");
    let (quote, collateral) = real(&folder, &case);
    let now = case["now_unix"].as_u64().expect("a time");
    let original = Quote::parse(&quote).expect("a quote");
    let chain = |quote: &Quote| {
        let chain = Certificate::parse_chain(&quote.chain, Item::PckChain).expect("a chain");
        chain.iter().map(Certificate::sha256).collect::<Vec<_>>()
    };
    // It remembers the signatures of the unchanged one.
    let root = Anchor::default();
    assert!(verify_bytes(&quote, &collateral, &root, now).is_ok());
    let mut tolerated = 0;
    for at in 0..quote.len() {
        let mut changed = quote.clone();
        changed[at] ^= 0x20;
        if verify_bytes(&changed, &collateral, &root, now).is_ok() {
            // Only the text around the certificates is covered by nothing.
            let mut changed = Quote::parse(&changed).expect("accepted");
            assert_eq!(chain(&changed), chain(&original), "byte {at}");
            changed.chain.clone_from(&original.chain);
            assert_eq!(changed, original, "byte {at}");
            tolerated += 1;
        }
        let cut = verify_bytes(&quote[..at], &collateral, &root, now);
        assert!(cut.is_err() || quote[at..].iter().all(|&byte| byte == 0), "cut at {at}");
    }
    assert!(tolerated < 60, "{tolerated} changes were accepted");
}

#[test]
fn a_change_anywhere_in_signed_collateral_is_refused() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/judge/dcap/vectors");
    let cases = std::fs::read_to_string(folder.join("cases.jsonl")).expect("cases");
    let case: Value = serde_json::from_str(cases.lines().next().expect("a case")).expect("JSON");
    let (quote, collateral) = real(&folder, &case);
    let now = case["now_unix"].as_u64().expect("a time");
    let fields: [fn(&mut Collateral) -> &mut Vec<u8>; 6] = [
        |collateral| &mut collateral.tcb_info,
        |collateral| &mut collateral.tcb_info_signature,
        |collateral| &mut collateral.qe_identity,
        |collateral| &mut collateral.qe_identity_signature,
        |collateral| &mut collateral.root_ca_crl,
        |collateral| &mut collateral.pck_crl,
    ];
    let root = Anchor::default();
    assert!(verify_bytes(&quote, &collateral, &root, now).is_ok());
    for (index, field) in fields.into_iter().enumerate() {
        let len = field(&mut collateral.clone()).len();
        for at in (0..len).step_by(if len > 2000 { 37 } else { 1 }) {
            let mut changed = collateral.clone();
            field(&mut changed)[at] ^= 1;
            let outcome = verify_bytes(&quote, &changed, &root, now);
            assert!(outcome.is_err(), "field {index}, byte {at}");
        }
    }
}

#[test]
fn dates_read_back() {
    for text in ["1970-01-01T00:00:00Z", "2000-02-29T23:59:59Z", "2026-11-22T10:03:21Z"] {
        assert_eq!(date(parse_timestamp(text).expect("a date")), text);
    }
    assert_eq!(parse_timestamp("2026-09-01T00:00:00Z"), Some(1_788_220_800));
    for text in ["", "2026-13-01T00:00:00Z", "2026-01-01T00:00:00+00", "2026-01-01 00:00:00Z"] {
        assert_eq!(parse_timestamp(text), None, "{text}");
    }
}

#[test]
fn the_verifier_of_sessions_takes_real_quotes_with_the_collateral_of_their_platform() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/judge/dcap/vectors");
    let cases = std::fs::read_to_string(folder.join("cases.jsonl")).expect("cases");
    let cases: Vec<Value> =
        cases.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let (bytes, own) = real(&folder, &cases[1]);
    let (_, other) = real(&folder, &cases[0]);
    let now = cases[1]["now_unix"].as_u64().expect("a time");
    let report = *Quote::parse(&bytes).expect("a quote").td().expect("a TD");
    let judge = |collateral: &[Collateral], policy: Policy, data: &[u8; 64], now| {
        let trust = Trust::Hardware(Arc::new(CollateralStore::new(collateral.to_vec())));
        Verifier { trust, policy }.verify(&bytes, data, None, now)
    };
    let policy = || Policy::same_as(&report);
    let both = [other.clone(), own.clone()];
    assert_eq!(judge(&both, policy(), &report.report_data, now).expect("genuine").report, report);
    let code =
        |verdict: Result<_, Rejection>| verdict.map(|_: crate::Verdict| ()).expect_err("refused");
    let stolen = code(judge(&both, policy(), &[1; 64], now));
    assert_eq!(stolen, Rejection::ReportData);
    assert!(matches!(
        code(judge(&[other], policy(), &report.report_data, now)),
        Rejection::Dcap(_)
    ));
    assert!(matches!(code(judge(&[], policy(), &report.report_data, now)), Rejection::Dcap(_)));
    let late = code(judge(&both, policy(), &report.report_data, now + 10 * 365 * 86400));
    assert!(matches!(late, Rejection::Dcap(_)), "{late}");
    let simulated = crate::SimPlatform::new(now);
    let forged = crate::Attester::quote(&simulated, &[1; 64]).expect("a simulated quote");
    let verifier = Verifier {
        trust: Trust::Hardware(Arc::new(CollateralStore::new(both.to_vec()))),
        policy: Policy::default(),
    };
    let forged = verifier.verify(&forged, &[1; 64], None, now).expect_err("another root");
    assert!(
        forged.to_string().contains("root-untrusted") || forged.to_string().contains("pck"),
        "{forged}"
    );
    // And a real one is nothing to who trusts simulated platforms.
    let verifier = Verifier { trust: Trust::Simulated, policy: Policy::default() };
    assert!(verifier.verify(&bytes, &report.report_data, None, now).is_err());
}

/// The verdict on a real quote, with what a policy's numbers are compared with set to known values.
fn known_verdict(status: Status) -> Verdict {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/judge/dcap/vectors");
    let cases = std::fs::read_to_string(folder.join("cases.jsonl")).expect("cases");
    let case: Value = serde_json::from_str(cases.lines().nth(1).expect("a case")).expect("JSON");
    let (bytes, collateral) = real(&folder, &case);
    let now = case["now_unix"].as_u64().expect("a time");
    let quote = Quote::parse(&bytes).expect("a quote");
    let verdict = verify(&quote, &collateral, &Anchor::default(), now).expect("genuine");
    let tcb_date = parse_timestamp("2025-08-13T00:00:00Z").expect("a date");
    Verdict { status, tcb_date, evaluation_number: 18, issued: NOW - 10 * 86400, ..verdict }
}

const NOW: u64 = 1_790_000_000;

fn platform_code(policy: &str, verdict: &Verdict) -> Result<(), String> {
    let policy = Policy::parse(policy.as_bytes()).expect("a policy");
    policy.check_platform(verdict, None, NOW).map_err(|why| format!("{}: {why}", why.code()))
}

#[test]
fn a_policy_bounds_the_age_of_the_collateral_and_its_evaluation_number() {
    let verdict = known_verdict(Status::UpToDate);
    for (policy, refused) in [
        (r#"{"max_age_days":10}"#, None),
        (r#"{"max_age_days":9}"#, Some("max_age_days")),
        (r#"{"min_evaluation_number":18}"#, None),
        (r#"{"min_evaluation_number":19}"#, Some("min_evaluation_number")),
    ] {
        match (platform_code(policy, &verdict), refused) {
            (Ok(()), None) => {}
            (Err(why), Some(text)) if why.contains(text) => {}
            (outcome, _) => panic!("{policy}: {outcome:?}"),
        }
    }
}

#[test]
fn grace_excuses_an_old_patch_level_of_that_date_and_nothing_else() {
    let old = known_verdict(Status::OutOfDate);
    assert!(platform_code("{}", &old).expect_err("out of date").starts_with("tcb-status"));
    assert_eq!(platform_code(r#"{"tcb_date_min":"2025-08-13"}"#, &old), Ok(()));
    let too_old = platform_code(r#"{"tcb_date_min":"2025-08-14"}"#, &old);
    assert!(too_old.expect_err("before the date").starts_with("tcb-status"));
    for other in [Status::Revoked, Status::ConfigurationNeeded] {
        let verdict = known_verdict(other);
        let outcome = platform_code(r#"{"tcb_date_min":"2025-08-13"}"#, &verdict);
        assert!(outcome.expect_err("another status").starts_with("tcb-status"), "{other}");
    }
    // Grace is about the patch level, not about what else the policy wants.
    let aged = platform_code(r#"{"tcb_date_min":"2025-08-13","max_age_days":9}"#, &old);
    assert!(aged.expect_err("old collateral").contains("max_age_days"));
}

#[test]
fn gigantic_and_deep_documents_are_refused_before_they_cost_anything() {
    let large = [b"{\"tcb_info\":\"".as_slice(), &vec![b'x'; 9 << 20], b"\"}"].concat();
    let deep = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
    let bundle = format!("{{\"tcb_info\":{}}}", deep(100_000));
    for bytes in [&large[..], bundle.as_bytes(), deep(100_000).as_bytes()] {
        let refused = Collateral::parse(bytes).expect_err("refused").code();
        assert_eq!(refused, "collateral-malformed");
    }
    // A signed document of such a form would have to be signed by Intel; without that it is not read.
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/judge/dcap/vectors");
    let cases = std::fs::read_to_string(folder.join("cases.jsonl")).expect("cases");
    let case: Value = serde_json::from_str(cases.lines().nth(1).expect("a case")).expect("JSON");
    let (quote, mut collateral) = real(&folder, &case);
    let now = case["now_unix"].as_u64().expect("a time");
    collateral.tcb_info = deep(100_000).into_bytes();
    let refused = verify_bytes(&quote, &collateral, &Anchor::default(), now).expect_err("unsigned");
    assert_eq!(refused, "tcb-info-signature");
}

#[test]
fn collateral_that_a_peer_brings_serves_where_there_is_none_and_is_checked_like_any_other() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/judge/dcap/vectors");
    let cases = std::fs::read_to_string(folder.join("cases.jsonl")).expect("cases");
    let cases: Vec<Value> =
        cases.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let (bytes, own) = real(&folder, &cases[1]);
    let (_, other) = real(&folder, &cases[0]);
    let now = cases[1]["now_unix"].as_u64().expect("a time");
    let data = Quote::parse(&bytes).expect("a quote").td().expect("a TD").report_data;
    let judge = |here: &[Collateral], shown: Option<&Collateral>, policy: Policy, now| {
        let trust = Trust::Hardware(Arc::new(CollateralStore::new(here.to_vec())));
        let verifier = Verifier { trust, policy };
        let shown =
            Shown { bytes: &bytes, report_data: &data, role: None, at: NOW, collateral: shown };
        let verdict = verifier.verify_shown(&shown, now);
        verdict.map(drop).map_err(|why| why.code())
    };
    let policy = Policy::default;
    assert_eq!(judge(&[], Some(&own), policy(), now), Ok(()));
    assert_eq!(judge(&[], None, policy(), now), Err("platform-evidence"));
    assert_eq!(judge(&[], Some(&other), policy(), now), Err("platform-evidence"));
    assert_eq!(judge(std::slice::from_ref(&other), Some(&own), policy(), now), Ok(()));
    // Changed, or over, or older than the policy wants.
    let mut forged = own.clone();
    forged.tcb_info_signature[5] ^= 1;
    assert_eq!(judge(&[], Some(&forged), policy(), now), Err("platform-evidence"));
    assert_eq!(judge(&[], Some(&own), policy(), now + 400 * 86400), Err("platform-evidence"));
    let newer = Policy { min_evaluation_number: 99, ..policy() };
    assert_eq!(judge(&[], Some(&own), newer, now), Err("platform"));
    // Before the fresh quote a platform has to be genuine, even where its collateral is still missing.
    let first = |quote: &[u8], data: &[u8; 64]| {
        let trust = Trust::Hardware(Arc::new(CollateralStore::default()));
        let verifier = Verifier { trust, policy: policy() };
        verifier.verify_first(quote, data, now).map_err(|why| why.code())
    };
    assert_eq!(first(&bytes, &data), Ok(()));
    assert_eq!(first(&bytes, &[1; 64]), Err("report-data"));
    let mut changed = bytes.clone();
    changed[200] ^= 1;
    assert_eq!(first(&changed, &data), Err("quote-signature"));
    let simulated = crate::SimPlatform::new(now);
    let quote = crate::Attester::quote(&simulated, &data).expect("a quote");
    assert_eq!(first(&quote, &data), Err("platform-evidence"));
    // What is shown to peers is what is there for our own platform.
    let quote = Quote::parse(&bytes).expect("a quote");
    let store = CollateralStore::new(vec![other, own.clone()]);
    let shown = store.of_platform(&quote, now).expect("a bundle");
    assert_eq!(Collateral::parse(&shown), Ok(own));
    assert!(CollateralStore::default().of_platform(&quote, now).is_none());
}
