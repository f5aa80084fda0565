//! The client against a service on this machine that has real collateral, and the store that asks it.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde_json::Value;

use super::*;
use crate::http::standin::{self, Reply, Service};
use crate::judge::dcap::{self, Anchor};
use crate::judge::verify::{Judged, Shown};
use crate::{CollateralStore, Policy, Quote, Rejection, Trust, Verifier};

/// What a service has, and in which shape it sends it.
#[derive(Clone)]
struct Shape {
    collateral: Collateral,
    chunked: bool,
    /// `der`, `pem` or `hex`.
    lists: &'static str,
    /// Status for everything.
    status: u16,
}

fn encoded(text: &[u8]) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
    text.iter()
        .map(|b| if plain(b) { char::from(*b).into() } else { format!("%{b:02X}") })
        .collect()
}

fn pem(der: &[u8]) -> String {
    let mut text = String::from("-----BEGIN X509 CRL-----\n");
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (index, three) in der.chunks(3).enumerate() {
        let word = three.iter().fold(0_u32, |word, &byte| word << 8 | u32::from(byte));
        let word = word << (8 * (3 - three.len()));
        for digit in 0..4 {
            let value = DIGITS[(word >> (18 - 6 * digit) & 63) as usize] as char;
            text.push(if digit > three.len() { '=' } else { value });
        }
        if index % 16 == 15 {
            text.push('\n');
        }
    }
    text + "\n-----END X509 CRL-----\n"
}

impl Shape {
    /// Headers and body for a path.
    fn answer(&self, path: &str) -> Option<(String, Vec<u8>)> {
        let own = &self.collateral;
        let list = |der: &[u8]| match self.lists {
            "der" => der.to_vec(),
            "pem" => pem(der).into_bytes(),
            _ => Hex(der).to_string().into_bytes(),
        };
        let document = |name: &str, body: &[u8], signature: &[u8]| {
            let head = format!("{{\"{name}\":").into_bytes();
            let tail = format!(",\"signature\":\"{}\"}}", Hex(signature)).into_bytes();
            [head, body.to_vec(), tail].concat()
        };
        let fmspc: Value = serde_json::from_slice(&own.tcb_info).expect("JSON");
        let fmspc = fmspc["fmspc"].as_str().expect("FMSPC").to_uppercase();
        let chain = |name: &str, chain: &[u8]| format!("{name}: {}\r\n", encoded(chain));
        if path == format!("/tdx/certification/v4/tcb?fmspc={fmspc}") {
            let header = chain("TCB-Info-Issuer-Chain", &own.tcb_info_issuer_chain);
            return Some((header, document("tcbInfo", &own.tcb_info, &own.tcb_info_signature)));
        }
        match path {
            "/tdx/certification/v4/qe/identity" => {
                let header =
                    chain("SGX-Enclave-Identity-Issuer-Chain", &own.qe_identity_issuer_chain);
                let body = &own.qe_identity;
                Some((header, document("enclaveIdentity", body, &own.qe_identity_signature)))
            }
            "/sgx/certification/v4/pckcrl?ca=platform&encoding=der" => {
                Some((String::new(), list(&own.pck_crl)))
            }
            "/sgx/certification/v4/rootcacrl" => {
                Some((String::new(), Hex(&own.root_ca_crl).to_string().into_bytes()))
            }
            _ => None,
        }
    }
}

/// A PCCS that has this.
fn serve(shape: Shape) -> Service {
    standin::serve(move |request| {
        let found = shape.answer(&request.path).filter(|_| shape.status == 200);
        let status = if found.is_none() && shape.status == 200 { 404 } else { shape.status };
        let (headers, body) = found.unwrap_or_default();
        Reply { status, headers, body, chunked: shape.chunked }
    })
}

#[test]
fn a_busy_service_is_asked_again_a_few_times_and_no_more() {
    let (quote, collateral, now) = real_td();
    let quote = Quote::parse(&quote).expect("a quote");
    let origin = dcap::origin(&quote, &Anchor::default(), now).expect("genuine");
    for status in [429, 503] {
        let shape =
            Shape { collateral: collateral.clone(), chunked: false, lists: "der", status: 200 };
        let count = std::sync::atomic::AtomicUsize::new(0);
        // The first of its requests is turned away twice, and everything after it is answered.
        let service = standin::serve(move |request| {
            let is_busy = count.fetch_add(1, Ordering::Relaxed) < 2;
            let found = shape.answer(&request.path).filter(|_| !is_busy);
            let status = if is_busy { status } else { 200 };
            let (headers, body) = found.unwrap_or_default();
            Reply { status, headers, body, chunked: false }
        });
        let pccs = Pccs::new(&service.address, &Authority::Pinned(service.pin)).expect("client");
        assert_eq!(pccs.fetch(&origin).expect("in the end"), collateral);
        assert_eq!(service.requests.load(Ordering::Relaxed), 4 + 2);
        let shape = Shape { collateral: collateral.clone(), chunked: false, lists: "der", status };
        let service = serve(shape);
        let pccs = Pccs::new(&service.address, &Authority::Pinned(service.pin)).expect("client");
        let error = pccs.fetch(&origin).expect_err("busy for good");
        assert_eq!((error.code(), service.requests.load(Ordering::Relaxed)), ("pccs-status", 3));
    }
}

#[test]
fn which_documents_are_asked_for_is_part_of_the_address() {
    let (quote, collateral, now) = real_td();
    let quote = Quote::parse(&quote).expect("a quote");
    let origin = dcap::origin(&quote, &Anchor::default(), now).expect("genuine");
    for (edition, [info, identity]) in [
        ("", ["", ""]),
        ("?update=early", ["&update=early", "?update=early"]),
        ("?update=standard", ["&update=standard", "?update=standard"]),
        (
            "?tcbEvaluationDataNumber=19",
            ["&tcbEvaluationDataNumber=19", "?tcbEvaluationDataNumber=19"],
        ),
    ] {
        let shape =
            Shape { collateral: collateral.clone(), chunked: false, lists: "der", status: 200 };
        let service = standin::serve(move |request| {
            let path = &request.path;
            let asked = if path.contains("/tcb?") { info } else { identity };
            let is_dated = path.contains("/tcb?") || path.contains("/identity");
            let path = if is_dated { path.strip_suffix(asked) } else { Some(path.as_str()) };
            let found = path.and_then(|path| shape.answer(path));
            let status = if found.is_some() { 200 } else { 404 };
            let (headers, body) = found.unwrap_or_default();
            Reply { status, headers, body, chunked: false }
        });
        let address = format!("{}{edition}", service.address);
        let pccs = Pccs::new(&address, &Authority::Pinned(service.pin)).expect("client");
        assert_eq!(pccs.fetch(&origin).expect(edition), collateral);
    }
    for wrong in ["?update=late", "?", "?tcbEvaluationDataNumber=x", "?fmspc=1"] {
        assert!(Pccs::check(&format!("https://localhost{wrong}")).is_err(), "{wrong}");
    }
}

#[test]
fn age_and_numbers_of_a_policy_and_plain_age_are_causes_to_fetch() {
    let (bytes, collateral, now) = real_td();
    let quote = Quote::parse(&bytes).expect("a quote");
    let td = *quote.td().expect("a TD");
    let verdict = dcap::verify(&quote, &collateral, &Anchor::default(), now).expect("genuine");
    let judge = |policy: &str, now| {
        let pccs = Pccs::new("https://localhost:1", &Authority::Pinned([7; 32])).expect("client");
        let store = CollateralStore::new(vec![collateral.clone()]).with_service(pccs, None);
        let policy = Policy::parse(policy.as_bytes()).expect("a policy");
        let verifier = Verifier { trust: Trust::Hardware(Arc::new(store)), policy };
        let report_data = &td.report_data;
        let shown = Shown { bytes: &bytes, report_data, role: None, at: now, collateral: None };
        verifier.judge(&shown, None, now).expect("not refused yet")
    };
    let newer = format!("{{\"min_evaluation_number\":{}}}", verdict.evaluation_number + 1);
    assert!(verdict.issued + 8 * 86400 < now && now + 3 * 86400 < verdict.valid[1]);
    assert!(matches!(judge(&newer, now), Judged::Asks(_)), "its number is too low");
    assert!(
        matches!(judge("{\"max_age_days\":3}", now), Judged::Asks(_)),
        "too old for the policy"
    );
    // What still serves is not waited for.
    assert!(matches!(judge("{}", now), Judged::Accepted(_, Some(_))), "a week old");
}

/// A quote of a real TD, its collateral, and when both were valid.
pub(crate) fn real_td() -> (Vec<u8>, Collateral, u64) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/judge/dcap/vectors");
    let cases = std::fs::read_to_string(folder.join("cases.jsonl")).expect("cases");
    for line in cases.lines() {
        let case: Value = serde_json::from_str(line).expect("JSON");
        let (quote, collateral) = dcap::tests::real(&folder, &case);
        let parsed = Quote::parse(&quote).expect("a quote");
        let now = case["now_unix"].as_u64().expect("a time");
        let accepted = Policy::default();
        let verdict = dcap::verify(&parsed, &collateral, &Anchor::default(), now).expect("genuine");
        let fit = parsed.td().is_ok_and(|td| accepted.check(td, None, None, now).is_ok());
        if fit && accepted.check_platform(&verdict, None, now).is_ok() {
            return (quote, collateral, now);
        }
    }
    panic!("no case of a TD that is up to date");
}

#[test]
fn every_shape_of_a_service_gives_the_same_collateral() {
    let (quote, collateral, now) = real_td();
    let quote = Quote::parse(&quote).expect("a quote");
    let origin = dcap::origin(&quote, &Anchor::default(), now).expect("genuine");
    for (lists, chunked) in [("der", false), ("pem", true), ("hex", false)] {
        let shape = Shape { collateral: collateral.clone(), chunked, lists, status: 200 };
        let service = serve(shape);
        for suffix in ["", "/", "/sgx/certification/v4/"] {
            let address = format!("{}{suffix}", service.address);
            let pccs = Pccs::new(&address, &Authority::Pinned(service.pin)).expect("a client");
            let fetched = pccs.fetch(&origin).expect("collateral");
            assert_eq!(fetched, collateral, "{lists}");
            assert_eq!(Collateral::parse(fetched.encode().as_bytes()), Ok(fetched));
        }
    }
}

#[test]
fn refusals_say_what_to_do_and_another_certificate_is_not_believed() {
    let (quote, collateral, now) = real_td();
    let quote = Quote::parse(&quote).expect("a quote");
    let origin = dcap::origin(&quote, &Anchor::default(), now).expect("genuine");
    for (status, code, part) in [
        (404, "pccs-no-data", "fetch it first"),
        (461, "pccs-status", "security version"),
        (502, "pccs-status", "Intel"),
    ] {
        let shape = Shape { collateral: collateral.clone(), chunked: false, lists: "der", status };
        let service = serve(shape);
        let pccs = Pccs::new(&service.address, &Authority::Pinned(service.pin)).expect("client");
        let error = pccs.fetch(&origin).expect_err("refused");
        assert!(error.code() == code && error.to_string().contains(part), "{error}");
        let pccs = Pccs::new(&service.address, &Authority::Pinned([7; 32])).expect("client");
        let error = pccs.fetch(&origin).expect_err("another certificate");
        assert_eq!(error.code(), "pccs-unreachable", "{error}");
    }
    let nobody = Pccs::new("https://localhost:1", &Authority::Pinned([7; 32])).expect("client");
    assert_eq!(nobody.fetch(&origin).expect_err("nobody").code(), "pccs-unreachable");
}

#[test]
fn a_store_fetches_what_it_lacks_keeps_it_and_asks_no_more() {
    let (bytes, collateral, now) = real_td();
    let td = *Quote::parse(&bytes).expect("a quote").td().expect("a TD");
    let shape = Shape { collateral, chunked: false, lists: "der", status: 200 };
    let service = serve(shape);
    let folder = std::env::temp_dir().join(format!("hfl-store-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("create");
    std::fs::write(folder.join("junk.json"), "junk").expect("write");
    let store = |address: &str| {
        let pccs = Pccs::new(address, &Authority::Pinned(service.pin)).expect("client");
        let store = CollateralStore::new(Vec::new()).with_service(pccs, Some(folder.clone()));
        Verifier { trust: Trust::Hardware(Arc::new(store)), policy: Policy::default() }
    };
    let asked = || service.requests.load(Ordering::Relaxed);
    let verifier = store(&service.address);
    let judge =
        |verifier: &Verifier, quote: &[u8], now| verifier.verify(quote, &td.report_data, None, now);
    judge(&verifier, &bytes, now).expect("fetched");
    let first = asked();
    assert_eq!(first, 4);
    judge(&verifier, &bytes, now).expect("at hand");
    // Long after: what is there is over, and was asked for a moment ago.
    assert!(judge(&verifier, &bytes, now + 400 * 86400).is_err());
    assert_eq!(asked(), first);
    // A forged quote makes nobody ask.
    let fresh = store(&service.address);
    let mut forged = bytes.clone();
    forged[60] ^= 1;
    let refused = judge(&fresh, &forged, now).expect_err("forged");
    assert!(matches!(refused, Rejection::QuoteSignature), "{refused}");
    assert_eq!(asked(), first);
    // The next process has it from the folder, with nobody to ask.
    judge(&store("https://localhost:1"), &bytes, now).expect("from the folder");
    std::fs::remove_dir_all(&folder).expect("remove");
}

#[test]
fn only_accepted_code_over_this_very_connection_makes_anybody_ask() {
    let (bytes, collateral, now) = real_td();
    let quote = Quote::parse(&bytes).expect("a quote");
    let td = *quote.td().expect("a TD");
    let service = serve(Shape { collateral, chunked: false, lists: "der", status: 200 });
    let verifier = |policy| {
        let pccs = Pccs::new(&service.address, &Authority::Pinned(service.pin)).expect("client");
        let store = CollateralStore::new(Vec::new()).with_service(pccs, None);
        Verifier { trust: Trust::Hardware(Arc::new(store)), policy }
    };
    let judge = |verifier: &Verifier, report_data: &[u8; 64], answer| {
        let shown = Shown { bytes: &bytes, report_data, role: None, at: now, collateral: None };
        verifier.judge(&shown, answer, now)
    };
    let code = |judged: Result<Judged, Rejection>| judged.expect_err("refused").code();
    let ours = verifier(Policy::default());
    // Anybody can have a genuine quote; it is bound to another key, or another connection.
    assert_eq!(code(judge(&ours, &[1; 64], None)), "report-data");
    let other = verifier(Policy::same_as(crate::SimPlatform::new(now).report()));
    assert_eq!(code(judge(&other, &td.report_data, None)), "measurement");
    // A certificate never does: it is judged with the fresh quote.
    ours.verify_first(&bytes, &td.report_data, now).expect("genuine");
    let question = match judge(&ours, &td.report_data, None).expect("not refused") {
        Judged::Asks(question) => question,
        Judged::Accepted(..) => panic!("accepted without collateral"),
    };
    assert_eq!(service.requests.load(Ordering::Relaxed), 0, "and judging itself asks nobody");
    let answer = question.ask();
    assert_eq!(service.requests.load(Ordering::Relaxed), 4);
    let judged = judge(&ours, &td.report_data, Some(answer)).expect("accepted");
    assert!(matches!(judged, Judged::Accepted(_, None)), "{judged:?}");
}

#[test]
fn a_service_with_a_certificate_of_its_own_is_led_to_a_pin() {
    let error = |said: &str| FetchError::Unreachable {
        service: "https://pccs:8081".into(),
        error: std::io::Error::other(said.to_owned()),
    };
    // As rustls says it of a certificate that no authority vouches for.
    let unknown = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
    let told = error(&unknown.to_string()).to_string();
    assert!(told.contains("https://HOST:PORT#SHA256"), "{told}");
    let other = error("connection refused").to_string();
    assert!(!other.contains('#'), "{other}");
}
