//! Both services as stand-ins over TLS, honest ones and others.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;

use super::*;
use crate::http::standin::{Reply, Request, Service, serve};
use crate::judge::question::Answer;
use crate::judge::token::tests::{claims, published, signed};
use crate::judge::verify::{Judged, Shown};
use crate::services::pccs::tests::real_td;
use crate::{Attester, Policy, Quote, Rejection, SimPlatform, Trust, Verifier};

fn reply(status: u16, body: &Value) -> Reply {
    Reply { status, headers: String::new(), body: body.to_string().into_bytes(), chunked: true }
}

/// Judges what it is sent as a service does; `change` makes its claims other ones.
fn service(provider: &'static str, busy: usize, change: fn(&mut Value)) -> Service {
    let left = Arc::new(AtomicUsize::new(busy));
    let (.., now) = real_td();
    serve(move |request: &Request| {
        if request.path == "/certs" {
            return reply(200, &published());
        }
        if left.load(Ordering::Relaxed) > 0 {
            left.fetch_sub(1, Ordering::Relaxed);
            return reply(503, &json!({}));
        }
        let body: Value = serde_json::from_slice(&request.body).expect("JSON");
        let (quote, issuer) = match provider {
            "maa" => {
                assert!(request.path.starts_with("/attest/TdxVm?api-version="));
                let quote = Base64UrlUnpadded::decode_vec(body["quote"].as_str().expect("a quote"));
                let host = request.head.lines().find_map(|line| line.strip_prefix("Host: "));
                (quote, format!("https://{}", host.expect("a host")))
            }
            _ => {
                assert!(request.head.contains("x-api-key: the key\r\n"), "{}", request.head);
                let text = match provider {
                    "amber" => &body["quote"],
                    _ => &body["tdx"]["quote"],
                };
                (Base64::decode_vec(text.as_str().expect("a quote")), INTEL_ISSUERS[0].to_owned())
            }
        };
        let quote = Quote::parse(&quote.expect("base64")).expect("a quote");
        let mut claims = claims(quote.td().expect("a TD"), &issuer, now);
        claims["nonce"] = body["nonce"].clone();
        change(&mut claims);
        let alg = if provider == "maa" { "RS256" } else { "PS384" };
        let token = signed(&json!({"alg": alg, "kid": "ours"}), &claims);
        reply(200, &json!({ "token": token }))
    })
}

fn configuration(service: &Service, provider: &str) -> String {
    let path = if provider == "amber" { "/appraisal/v1/attest" } else { "" };
    json!({
        "attestation_url": format!("{}{path}", service.address),
        "attestation_provider": provider,
        "api_key": "the key",
        "certificate_sha256": Hex(&service.pin).to_string(),
    })
    .to_string()
}

fn judge(service: &Service, provider: &str) -> Result<(), String> {
    let (quote, _, now) = real_td();
    let report = *Quote::parse(&quote).expect("a quote").td().expect("a TD");
    let policy = Policy::same_as(&report);
    let text = configuration(service, provider);
    assert!(RemoteVerifier::is_configuration(text.as_bytes()));
    let remote = RemoteVerifier::parse(text.as_bytes()).expect("a configuration");
    assert!(!format!("{remote:?}").contains("the key"));
    let verifier = Verifier { trust: Trust::Remote(Arc::new(remote)), policy };
    // A quote that is not genuine makes nobody ask.
    let before = service.requests.load(Ordering::Relaxed);
    let simulated = SimPlatform::new(now).quote(&report.report_data).expect("a quote");
    assert!(verifier.verify(&simulated, &report.report_data, None, now).is_err());
    assert_eq!(service.requests.load(Ordering::Relaxed), before);
    let verdict = verifier.verify(&quote, &report.report_data, None, now);
    verdict.map(drop).map_err(|why| format!("{}: {why}", why.code()))
}

#[test]
fn quotes_are_judged_by_either_service_and_by_the_policy() {
    for provider in ["amber", "ita", "maa"] {
        assert_eq!(judge(&service(provider, 0, |_| ()), provider), Ok(()), "{provider}");
    }
    // Busy twice, then it answers.
    let busy = service("ita", 2, |_| ());
    assert_eq!(judge(&busy, "ita"), Ok(()));
    assert_eq!(busy.requests.load(Ordering::Relaxed), 4);
    let refused = |provider, change: fn(&mut Value)| {
        judge(&service(provider, 0, change), provider).expect_err("refused")
    };
    let old = refused("ita", |claims| claims["attester_tcb_status"] = "OutOfDate".into());
    assert!(old.starts_with("tcb-status"), "{old}");
    let other = refused("ita", |claims| claims["tdx_mrtd"] = "00".into());
    assert!(other.starts_with("token-claim"), "{other}");
    let replayed = refused("maa", |claims| claims["nonce"] = "before".into());
    assert!(replayed.starts_with("token-claim") && replayed.contains("nonce"), "{replayed}");
    let of_another = refused("ita", |claims| claims["verifier_nonce"] = json!({"val": "AA=="}));
    assert!(of_another.contains("verifier_nonce"), "{of_another}");
    let late = refused("ita", |claims| claims["exp"] = 1000.into());
    assert!(late.starts_with("token-time"), "{late}");
    let foreign = refused("maa", |claims| claims["iss"] = "https://other.example".into());
    assert!(foreign.starts_with("token-issuer"), "{foreign}");
}

#[test]
fn an_answer_about_one_quote_says_nothing_about_another() {
    let (quote, _, now) = real_td();
    let report = *Quote::parse(&quote).expect("a quote").td().expect("a TD");
    let honest = service("ita", 0, |_| ());
    let remote = RemoteVerifier::parse(configuration(&honest, "ita").as_bytes());
    let trust = Trust::Remote(Arc::new(remote.expect("a configuration")));
    let verifier = Verifier { trust, policy: Policy::same_as(&report) };
    let report_data = &report.report_data;
    let shown = Shown { bytes: &quote, report_data, role: None, at: now, collateral: None };
    let judge = |answer| verifier.judge(&shown, answer, now).expect("not refused");
    let of_another = Answer::Appraisal([0; 32], Ok(Status::UpToDate));
    let Judged::Asks(question) = judge(Some(of_another)) else { panic!("believed") };
    assert_eq!(honest.requests.load(Ordering::Relaxed), 0);
    assert!(matches!(judge(Some(question.ask())), Judged::Accepted(_, None)));
}

#[test]
fn services_that_are_down_or_not_who_they_should_be_are_named() {
    let denied = serve(|_| reply(401, &json!({})));
    let error = judge(&denied, "ita").expect_err("denied");
    assert!(error.starts_with("remote-verifier") && error.contains("API key"), "{error}");
    assert_eq!(denied.requests.load(Ordering::Relaxed), 1, "that is not asked again");
    let empty = serve(|_| reply(200, &json!({})));
    assert!(judge(&empty, "ita").expect_err("no token").contains("no token"));
    let mut other = service("ita", 0, |_| ());
    other.pin[0] ^= 1;
    assert!(judge(&other, "ita").expect_err("another certificate").starts_with("remote-verifier"));
}

#[test]
fn configurations_are_read_strictly_and_show_no_key() {
    let text = |provider: &str, url: &str, more: &str| {
        format!(
            r#"{{"attestation_url":"{url}","attestation_provider":"{provider}","api_key":"hunter2"{more}}}"#
        )
    };
    let url = "https://localhost:1/x";
    let pin = format!(r#","certificate_sha256":"{}""#, "00".repeat(32));
    assert!(RemoteVerifier::parse(text("maa", url, &pin).as_bytes()).is_ok());
    for bad in [
        text("aws", url, &pin),
        text("ita", "http://localhost", &pin),
        text("ita", url, r#","certificate_sha256":"00""#),
        text("ita", url, r#","verify":false"#),
        "{}".into(),
    ] {
        let error = RemoteVerifier::parse(bad.as_bytes()).expect_err("refused");
        assert!(!error.contains("hunter2"), "{error}");
    }
    assert!(!RemoteVerifier::is_configuration(b"{\"tcb_info\":\"\"}"));
    let here = format!(r#","certificate_sha256":{{"localhost":"{}"}}"#, "00".repeat(32));
    assert!(RemoteVerifier::parse(text("maa", url, &here).as_bytes()).is_ok());
    let elsewhere = here.replace("localhost", "elsewhere");
    let error =
        RemoteVerifier::parse(text("maa", url, &elsewhere).as_bytes()).expect_err("no host");
    assert!(error.contains("localhost only"), "{error}");
    let kind = Rejection::Remote(RemoteError::Service("x".into()));
    assert_eq!(kind.code(), "remote-verifier");
}

#[test]
fn keys_of_a_region_are_at_its_portal_and_each_host_has_its_own_pin() {
    for (host, portal) in [
        ("api.trustauthority.intel.com", "portal.trustauthority.intel.com"),
        ("api.eu.trustauthority.intel.com", "portal.eu.trustauthority.intel.com"),
    ] {
        let config = json!({
            "attestation_url": format!("https://{host}"),
            "attestation_provider": "ita",
            "certificate_sha256": {host: "11".repeat(32), portal: "22".repeat(32)},
        });
        let remote = RemoteVerifier::parse(config.to_string().as_bytes()).expect("a configuration");
        assert_eq!(remote.url.host(), host);
        assert_eq!(remote.keys.to_string(), format!("https://{portal}:443/certs"));
        let of = |pins| Pins::authorities(Some(pins), &remote.url, &remote.keys).expect("pins");
        let hosts = [(host, "11"), (portal, "22")];
        let hosts = hosts.map(|(host, digits)| (host.to_owned(), digits.repeat(32)));
        let [own, of_keys] = of(Pins::Hosts(hosts.into()));
        assert!(matches!(own, Authority::Pinned(pin) if pin == [0x11; 32]), "{own:?}");
        assert!(matches!(of_keys, Authority::Pinned(pin) if pin == [0x22; 32]), "{of_keys:?}");
        // One alone is the address's: the portal does not show the same certificate.
        let [own, of_keys] = of(Pins::Own("11".repeat(32)));
        assert!(matches!((own, of_keys), (Authority::Pinned(_), Authority::System)));
    }
}
