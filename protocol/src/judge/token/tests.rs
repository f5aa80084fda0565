//! Tokens as services make them, and every way in which they are not.

use ring::rand::SystemRandom;
use ring::rsa::{KeyPair, PublicKeyComponents};
use ring::signature::{RSA_PKCS1_SHA256, RSA_PSS_SHA384, RsaEncoding};
use serde_json::json;

use super::*;
use crate::SimPlatform;

/// For tests only, as it is in everybody's hands.
const KEY: &[u8] = include_bytes!("test_key.der");
const NOW: u64 = 1_800_000_000;
const ISSUER: &str = "https://verifier.example";

fn key() -> KeyPair {
    KeyPair::from_pkcs8(KEY).expect("a key")
}

/// The set of keys that a service publishes.
pub(crate) fn published() -> Value {
    let key = PublicKeyComponents::<Vec<u8>>::from(key().public());
    let text = |bytes: &[u8]| Base64UrlUnpadded::encode_string(bytes);
    json!({"keys": [
        {"kty": "EC", "kid": "other", "crv": "P-256"},
        {"kty": "RSA", "kid": "ours", "n": text(&key.n), "e": text(&key.e), "use": "sig"},
    ]})
}

pub(crate) fn signed(header: &Value, claims: &Value) -> String {
    let padding: &dyn RsaEncoding = match header["alg"].as_str() {
        Some("PS384") => &RSA_PSS_SHA384,
        _ => &RSA_PKCS1_SHA256,
    };
    let part = |value: &Value| Base64UrlUnpadded::encode_string(value.to_string().as_bytes());
    let text = format!("{}.{}", part(header), part(claims));
    let key = key();
    let mut signature = vec![0; key.public().modulus_len()];
    key.sign(padding, &SystemRandom::new(), text.as_bytes(), &mut signature).expect("signed");
    format!("{text}.{}", Base64UrlUnpadded::encode_string(&signature))
}

/// What a service claims of a TD.
pub(crate) fn claims(report: &TdReport, issuer: &str, now: u64) -> Value {
    let text = |bytes: &[u8]| Hex(bytes).to_string();
    json!({
        "iss": issuer, "iat": now, "nbf": now, "exp": now + 300,
        "attester_tcb_status": "UpToDate",
        "tdx_mrtd": text(&report.mr_td),
        "tdx_rtmr0": text(&report.rt_mr[0]),
        "tdx_rtmr1": text(&report.rt_mr[1]),
        "tdx_rtmr2": text(&report.rt_mr[2]),
        "tdx_rtmr3": text(&report.rt_mr[3]),
        "tdx_mrseam": text(&report.mr_seam),
        "tdx_mrsignerseam": text(&report.mr_signer_seam),
        "tdx_td_attributes": text(&report.td_attributes),
        "tdx_xfam": text(&report.xfam),
        "tdx_report_data": text(&report.report_data),
    })
}

fn keys() -> Keys {
    Keys::parse(published().to_string().as_bytes()).expect("keys")
}

fn header(alg: &str) -> Value {
    json!({"alg": alg, "kid": "ours", "typ": "JWT"})
}

fn judge(token: &str, report: &TdReport, now: u64) -> Result<Status, &'static str> {
    Token::verify(token, &keys(), &[ISSUER], now)
        .and_then(|token| token.check_td(report))
        .map_err(|error| error.code())
}

#[test]
fn tokens_of_the_service_about_this_td_are_believed_in_their_time() {
    let report = *SimPlatform::new(NOW).report();
    let flat = claims(&report, ISSUER, NOW);
    for alg in ["RS256", "PS384"] {
        let token = signed(&header(alg), &flat);
        assert_eq!(judge(&token, &report, NOW), Ok(Status::UpToDate));
        assert_eq!(judge(&token, &report, NOW + 300 + LEEWAY), Ok(Status::UpToDate));
        assert_eq!(judge(&token, &report, NOW + 301 + LEEWAY), Err("token-time"));
        assert_eq!(judge(&token, &report, NOW - 1 - LEEWAY), Err("token-time"));
    }
    // As newer services write it: everything of the TD in an object, upper case, the old word.
    let mut nested = flat.clone();
    nested["tdx"] = flat.clone();
    nested["tdx"]["tdx_mrtd"] = Hex(&report.mr_td).to_string().to_uppercase().into();
    nested["tdx"]["attester_tcb_status"] = "OK".into();
    nested["tdx_mrtd"] = "00".into();
    assert_eq!(judge(&signed(&header("PS384"), &nested), &report, NOW), Ok(Status::UpToDate));
}

#[test]
fn every_other_token_is_refused_with_its_own_code() {
    let report = *SimPlatform::new(NOW).report();
    let good = claims(&report, ISSUER, NOW);
    let changed = |name: &str, value: Value| {
        let mut claims = good.clone();
        claims[name] = value;
        judge(&signed(&header("RS256"), &claims), &report, NOW)
    };
    assert_eq!(changed("iss", "https://other.example".into()), Err("token-issuer"));
    assert_eq!(changed("exp", Value::Null), Err("token-malformed"));
    assert_eq!(changed("exp", (NOW + 2 * LIFE_MAX).into()), Err("token-time"));
    assert_eq!(changed("attester_tcb_status", "Fine".into()), Err("token-claim"));
    assert_eq!(changed("attester_tcb_status", "OutOfDate".into()), Ok(Status::OutOfDate));
    for name in ["tdx_mrtd", "tdx_rtmr3", "tdx_mrseam", "tdx_td_attributes", "tdx_report_data"] {
        assert_eq!(changed(name, "00".into()), Err("token-claim"), "{name}");
        assert_eq!(changed(name, Value::Null), Err("token-claim"), "{name}");
    }
    for (alg, code) in
        [("none", "token-algorithm"), ("HS256", "token-algorithm"), ("RS512", "token-algorithm")]
    {
        assert_eq!(judge(&signed(&header(alg), &good), &report, NOW), Err(code));
    }
    // RS256 named, PS384 signed, and the other way round.
    let signed_one_way = signed(&header("PS384"), &good);
    let other_head = Base64UrlUnpadded::encode_string(header("RS256").to_string().as_bytes());
    let (_, rest) = signed_one_way.split_once('.').expect("parts");
    assert_eq!(judge(&format!("{other_head}.{rest}"), &report, NOW), Err("token-signature"));
    let unknown = json!({"alg": "RS256", "kid": "theirs"});
    assert_eq!(judge(&signed(&unknown, &good), &report, NOW), Err("token-key"));
    let token = signed(&header("RS256"), &good);
    let mut other = report;
    other.mr_td[0] ^= 1;
    assert_eq!(judge(&token, &other, NOW), Err("token-claim"));
    for at in (0..token.len()).step_by(7) {
        let mut bytes = token.clone().into_bytes();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        let text = String::from_utf8(bytes).expect("ASCII");
        if text != token {
            assert!(judge(&text, &report, NOW).is_err(), "byte {at}");
        }
    }
    for text in ["", "a.b", "a.b.c.d", &"x".repeat(TOKEN_LEN_MAX + 1), "!.!.!"] {
        assert_eq!(judge(text, &report, NOW), Err("token-malformed"));
    }
}

#[test]
fn keys_and_their_certificates_belong_together() {
    for bad in [
        "",
        "[]",
        r#"{"keys":[{"kty":"RSA","kid":"a"}]}"#,
        r#"{"keys":[{"kty":"RSA","n":"AQAB","e":"AQAB"}]}"#,
    ] {
        assert!(Keys::parse(bad.as_bytes()).is_err(), "{bad}");
    }
    // A certificate of the key, in its time and out of it.
    let folder = std::env::temp_dir().join(format!("hfl-token-{}", std::process::id()));
    std::fs::write(&folder, KEY).expect("write");
    let made = std::process::Command::new("openssl")
        .args(["req", "-x509", "-keyform", "DER", "-subj", "/CN=verifier", "-days", "3650"])
        .args(["-outform", "DER", "-key"])
        .arg(&folder)
        .output()
        .expect("openssl");
    std::fs::remove_file(&folder).expect("remove");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let mut set = published();
    set["keys"][1]["x5c"] = json!([Base64::encode_string(&made.stdout)]);
    let keys = Keys::parse(set.to_string().as_bytes()).expect("of one another");
    let report = *SimPlatform::new(NOW).report();
    let judge = |now| {
        let token = signed(&header("RS256"), &claims(&report, ISSUER, now));
        Token::verify(&token, &keys, &[ISSUER], now).map(drop).map_err(|error| error.code())
    };
    let now = std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_secs();
    assert_eq!(judge(now + 60), Ok(()));
    assert_eq!(judge(now + 20 * 365 * 86400), Err("token-key"));
    // A certificate on P-256 beside an RSA key.
    let identity = crate::Identity::new(&SimPlatform::new(NOW), NOW).expect("identity");
    let mut set = published();
    set["keys"][1]["x5c"] = json!([Base64::encode_string(identity.certificate())]);
    assert!(Keys::parse(set.to_string().as_bytes()).is_err());
}

/// A service's key under an intermediate and a root, as Intel's publishes it.
#[test]
fn a_chain_of_certificates_leads_to_its_root_and_to_the_one_that_is_meant() {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, PKCS_RSA_SHA256};
    let authority = |name: &str| {
        let mut params = CertificateParams::new(Vec::new()).expect("name");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        (params, rcgen::KeyPair::generate().expect("key"))
    };
    let ((root, root_key), (signing, signing_key)) = (authority("root"), authority("signing"));
    let root_der = root.self_signed(&root_key).expect("root").der().to_vec();
    let by_root = Issuer::new(root, root_key);
    let signing_der = signing.signed_by(&signing_key, &by_root).expect("CA").der().to_vec();
    let by_signing = Issuer::new(signing, signing_key);
    let own = rcgen::KeyPair::from_pkcs8_der_and_sign_algo(
        &rustls::pki_types::PrivatePkcs8KeyDer::from(KEY),
        &PKCS_RSA_SHA256,
    )
    .expect("the key");
    let leaf = CertificateParams::new(Vec::new()).expect("name");
    let leaf = leaf.signed_by(&own, &by_signing).expect("leaf").der().to_vec();
    let hash = |der: &[u8]| digest(&SHA256, der).as_ref().try_into().expect("32 bytes");
    let report = *SimPlatform::new(NOW).report();
    let judge = |chain: &[&Vec<u8>], root: Option<[u8; 32]>| {
        let mut set = published();
        set["keys"][1]["x5c"] = chain.iter().map(|der| Base64::encode_string(der)).collect();
        let keys = Keys::parse(set.to_string().as_bytes())?.with_root(root);
        let token = signed(&header("PS384"), &claims(&report, ISSUER, NOW));
        Token::verify(&token, &keys, &[ISSUER], NOW).map(drop)
    };
    let whole = [&leaf, &signing_der, &root_der];
    assert_eq!(judge(&whole, None), Ok(()));
    assert_eq!(judge(&whole, Some(hash(&root_der))), Ok(()));
    assert_eq!(judge(&[&leaf], None), Ok(()), "who published it vouches for it");
    let other = authority("root");
    let other = other.0.self_signed(&other.1).expect("root").der().to_vec();
    for (chain, root) in [
        (&whole[..], Some(hash(&other))),
        (&[&leaf, &signing_der, &other], None),
        (&[&leaf, &other, &root_der], None),
        (&[&leaf, &root_der], None),
        (&[&leaf], Some(hash(&root_der))),
        (&[], Some(hash(&root_der))),
    ] {
        assert_eq!(judge(chain, root), Err(TokenError::Chain), "{} certificates", chain.len());
    }
    let five = [&leaf, &signing_der, &signing_der, &signing_der, &root_der];
    assert!(matches!(judge(&five, None), Err(TokenError::Malformed(_))));
}
