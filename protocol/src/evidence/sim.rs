//! A simulated TDX platform: real quote structures, signed along a generated chain under a test root.
//!
//! The root's private key is part of this program, so anybody can make such quotes: they prove nothing.
//! They exist so that the same verifier, sessions and roles run on machines without TDX. The real
//! layout: root, intermediate "PCK Platform CA", PCK leaf, quoting enclave report, attestation key.

use std::sync::atomic::{AtomicU64, Ordering};

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use ring::digest::{SHA256, SHA384, digest};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::Attester;
use crate::evidence::quote::{Body, QE_REPORT_LEN, Quote, TdReport, encode_header};

/// Certificates of a chain that are looked at.
const CHAIN_MAX: usize = 4;
/// The test root, valid until 2056.
pub(crate) const ROOT_CERTIFICATE: &[u8] = include_bytes!("sim_root.der");
const ROOT_KEY: &[u8] = include_bytes!("sim_root_key.der");
const ROOT_NAME: &str = "hfl simulated TDX root, anybody can sign";

/// SEPT_VE_DISABLE: a TD that does not let its host surprise it with unmapped pages.
const TD_ATTRIBUTES: [u8; 8] = [0, 0, 0, 0x10, 0, 0, 0, 0];
const XFAM: [u8; 8] = [0xe7, 0x02, 0x06, 0, 0, 0, 0, 0];
/// What is measured as the module.
const MODULE: &str = "module";
/// Time that the platform's certificates are valid before and after it is made, in seconds.
const VALIDITY: i64 = 365 * 24 * 3600;

/// Whether a quote says of itself that it is simulated: its chain ends at the test root. Whether it was really
/// signed there does not matter to who asks.
pub fn is_simulated(quote: &Quote) -> bool {
    let name = ROOT_NAME.as_bytes();
    let pem = quote.chain.strip_suffix(&[0]).unwrap_or(&quote.chain);
    let certificates = CertificateDer::pem_slice_iter(pem).take(CHAIN_MAX);
    certificates.flatten().any(|der| der.windows(name.len()).any(|part| part == name))
}

/// Whether a TD's measurements are those of simulated TDs, by their module.
pub(crate) fn is_simulated_td(report: &TdReport) -> bool {
    report.mr_seam == measurement(MODULE)
}

/// A platform that makes quotes about one imaginary TD.
pub struct SimPlatform {
    attestation_key: EcdsaKeyPair,
    pck_key: EcdsaKeyPair,
    chain: Vec<u8>,
    report: TdReport,
    turning: Option<Turning>,
    random: SystemRandom,
}

/// What the TD runs after some quotes, and how many are left before.
struct Turning {
    mr_td: [u8; 48],
    left: AtomicU64,
}

impl SimPlatform {
    /// A new platform at `now` (seconds since 1970) with the usual TD on it.
    pub fn new(now: u64) -> Self {
        Self::with_td(now, "hfl", false)
    }

    /// A platform whose TD runs `image`, perhaps in debug mode.
    pub fn with_td(now: u64, image: &str, debug: bool) -> Self {
        let random = SystemRandom::new();
        let (pck_key, chain) = platform_chain(now, &random);
        let mut report = TdReport {
            tee_tcb_svn: [5, 1, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            mr_seam: measurement(MODULE),
            mr_signer_seam: [0; 48],
            seam_attributes: [0; 8],
            td_attributes: TD_ATTRIBUTES,
            xfam: XFAM,
            mr_td: measurement(image),
            mr_config_id: [0; 48],
            mr_owner: [0; 48],
            mr_owner_config: [0; 48],
            rt_mr: ["firmware", "kernel", "command line", "application"].map(measurement),
            report_data: [0; 64],
            v15: None,
        };
        report.td_attributes[0] |= u8::from(debug);
        let attestation_key = new_key(&random);
        Self { attestation_key, pck_key, chain, report, turning: None, random }
    }

    /// The same, whose TD turns to another image after so many quotes: for tests of who is attested anew.
    #[must_use]
    pub fn turning_to(mut self, image: &str, quotes: u64) -> Self {
        let (mr_td, left) = (measurement(image), AtomicU64::new(quotes));
        self.turning = Some(Turning { mr_td, left });
        self
    }

    /// What the TD runs now.
    fn mr_td(&self) -> [u8; 48] {
        let one_less = |left: u64| left.checked_sub(1);
        let turned = self.turning.as_ref().filter(|turning| {
            turning.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_err()
        });
        turned.map_or(self.report.mr_td, |turning| turning.mr_td)
    }

    /// The TD's measurements; the report data there is zero.
    pub fn report(&self) -> &TdReport {
        &self.report
    }

    fn sign(&self, key: &EcdsaKeyPair, message: &[u8]) -> [u8; 64] {
        let signature = key.sign(&self.random, message).expect("the system has random numbers");
        signature.as_ref().try_into().expect("a fixed-length signature has 64 bytes")
    }
}

impl Attester for SimPlatform {
    fn quote(&self, report_data: &[u8; 64]) -> std::io::Result<Vec<u8>> {
        let report = TdReport { report_data: *report_data, mr_td: self.mr_td(), ..self.report };
        let signed = [encode_header().as_slice(), &report.encode()].concat();
        // Without the byte that says "uncompressed".
        let attestation_key: [u8; 64] =
            self.attestation_key.public_key().as_ref()[1..].try_into().expect("a P-256 point");
        let auth: Vec<u8> = (0..32).collect();
        let mut qe_report = [0; QE_REPORT_LEN];
        let vouched = digest(&SHA256, &[attestation_key.as_slice(), &auth].concat());
        qe_report[320..352].copy_from_slice(vouched.as_ref());
        let quote = Quote {
            signature: self.sign(&self.attestation_key, &signed),
            version: 4,
            signed,
            body: Body::Td(report),
            attestation_key,
            qe_signature: self.sign(&self.pck_key, &qe_report),
            qe_report,
            auth,
            chain: self.chain.clone(),
        };
        Ok(quote.encode())
    }

    fn name(&self) -> &'static str {
        "sim"
    }
}

fn measurement(what: &str) -> [u8; 48] {
    let hash = digest(&SHA384, format!("hfl simulated TD: {what}").as_bytes());
    hash.as_ref().try_into().expect("SHA-384 has 48 bytes")
}

fn new_key(random: &SystemRandom) -> EcdsaKeyPair {
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, random)
        .expect("the system has random numbers");
    EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref(), random)
        .expect("a key that was just made")
}

/// The platform's key and its chain in PEM: leaf, intermediate, root.
fn platform_chain(now: u64, random: &SystemRandom) -> (EcdsaKeyPair, Vec<u8>) {
    let root_key = KeyPair::try_from(ROOT_KEY).expect("the embedded key");
    let root = Issuer::new(authority(ROOT_NAME, now), root_key);
    let generate =
        || KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("the system has random numbers");
    let intermediate_key = generate();
    let name = "hfl simulated SGX PCK Platform CA";
    let intermediate_params = authority(name, now);
    let intermediate =
        intermediate_params.signed_by(&intermediate_key, &root).expect("a valid certificate");
    let issuer = Issuer::new(intermediate_params, intermediate_key);
    let leaf_key = generate();
    let mut params = named("hfl simulated SGX PCK Certificate", now);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::ContentCommitment];
    params.custom_extensions.push(CustomExtension::from_oid_content(SGX_OID, sgx_extension()));
    let leaf = params.signed_by(&leaf_key, &issuer).expect("a valid certificate");
    let chain = [leaf.der(), intermediate.der(), ROOT_CERTIFICATE].map(pem).concat().into_bytes();
    let pck_key = EcdsaKeyPair::from_pkcs8(
        &ECDSA_P256_SHA256_FIXED_SIGNING,
        &leaf_key.serialize_der(),
        random,
    )
    .expect("a key that was just made");
    (pck_key, chain)
}

fn named(name: &str, now: u64) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let now = i64::try_from(now).expect("a date of this era");
    let date = |at: i64| time_of(at);
    params.not_before = date(now - VALIDITY);
    params.not_after = date(now + VALIDITY);
    params
}

/// A certificate date from seconds since 1970.
pub(crate) fn time_of(seconds: i64) -> time::OffsetDateTime {
    time::OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(time::OffsetDateTime::UNIX_EPOCH)
}

fn authority(name: &str, now: u64) -> CertificateParams {
    let mut params = named(name, now);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// Intel's extension of PCK certificates.
const SGX_OID: &[u64] = &[1, 2, 840, 113_741, 1, 13, 1];

/// The extension's first entry, the platform provisioning id, as
/// `SEQUENCE { SEQUENCE { OID 1.2.840.113741.1.13.1.1, OCTET STRING (16) } }`.
fn sgx_extension() -> Vec<u8> {
    let oid = [0x06, 0x0a, 0x2a, 0x86, 0x48, 0x86, 0xf8, 0x4d, 0x01, 0x0d, 0x01, 0x01];
    let id = [&[0x04, 0x10], [0x51; 16].as_slice()].concat();
    let entry = [&[0x30, (oid.len() + id.len()) as u8], oid.as_slice(), &id].concat();
    [&[0x30, entry.len() as u8], entry.as_slice()].concat()
}

fn pem(der: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in der.chunks(3) {
        let word = chunk.iter().fold(0_u32, |word, &byte| (word << 8) | u32::from(byte))
            << (8 * (3 - chunk.len()));
        for digit in 0..4 {
            let index = (word >> (18 - 6 * digit)) & 63;
            text.push(if digit > chunk.len() { '=' } else { ALPHABET[index as usize] as char });
        }
    }
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    let body = lines.join("\n");
    format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n")
}
