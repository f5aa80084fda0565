//! A virtual machine of Azure, played: `swtpm` is its TPM with a key and a report as the paravisor leaves
//! them, a thread is the metadata service, the simulated platform signs the quotes.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use super::*;
use crate::evidence::coco::GuestComponents;
use crate::evidence::tpm::{Fields, sized};
use crate::identity::certificate::Identity;
use crate::{
    Config, Evidence, Policy, Rejection, Role, Session, SimPlatform, TdReport, Trust, Verifier,
};

const NOW: u64 = 1_800_000_000;
const OWNER: u32 = 0x4000_0001;

/// A software TPM; ends with its only connection.
struct Machine {
    folder: PathBuf,
    process: Child,
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Machine {
    fn start(name: &str) -> (Self, Tpm) {
        let folder = std::env::temp_dir().join(format!("hfl-tpm-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).expect("create");
        let socket = folder.join("socket");
        let process = Command::new("swtpm")
            .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear"])
            .arg("--tpmstate")
            .arg(format!("dir={}", folder.display()))
            .arg("--server")
            .arg(format!("type=unixio,path={}", socket.display()))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("swtpm is needed: apt-get install swtpm");
        let machine = Self { folder, process };
        let start = Instant::now();
        loop {
            match UnixStream::connect(&socket) {
                Ok(stream) => {
                    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("socket");
                    return (machine, Tpm::new(stream));
                }
                Err(error) => assert!(start.elapsed().as_secs() < 60, "swtpm: {error}"),
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Makes the key that signs, and returns its modulus.
fn provide_key(tpm: &mut Tpm) -> Vec<u8> {
    // Restricted, for signatures with RSASSA and SHA-256, 2048 bits.
    let attributes = 1_u32 << 1 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 16 | 1 << 18;
    let public = [
        &[0, 1, 0, 0x0b][..],
        &attributes.to_be_bytes(),
        &[0, 0, 0, 0x10, 0, 0x14, 0, 0x0b],
        &2048_u16.to_be_bytes(),
        &[0; 6],
    ]
    .concat();
    let parameters = [&[0, 4, 0, 0, 0, 0][..], &sized(&public), &[0, 0], &[0; 4]].concat();
    let answer = tpm.exchange(0x131, &[OWNER], true, &parameters).expect("a primary key");
    let mut fields = Fields(&answer);
    let (handle, _) = (fields.u32().expect("handle"), fields.u32());
    let public = fields.sized().expect("public part");
    let modulus = public[public.len() - 256..].to_vec();
    let persistent = ATTESTATION_KEY.to_be_bytes();
    tpm.exchange(0x120, &[OWNER, handle], true, &persistent).expect("a persistent key");
    modulus
}

fn provide_report(tpm: &mut Tpm, report: &[u8]) {
    let attributes = 1_u32 << 1 | 1 << 17 | 1 << 25;
    let public = [
        &REPORT_INDEX.to_be_bytes()[..],
        &[0, 0x0b],
        &attributes.to_be_bytes(),
        &[0, 0],
        &(report.len() as u16).to_be_bytes(),
    ]
    .concat();
    let parameters = [&[0, 0][..], &sized(&public)].concat();
    tpm.exchange(0x12a, &[OWNER], true, &parameters).expect("an index");
    write_report(tpm, report);
}

fn write_report(tpm: &mut Tpm, report: &[u8]) {
    for (index, part) in report.chunks(512).enumerate() {
        let parameters = [&sized(part)[..], &(512 * index as u16).to_be_bytes()].concat();
        tpm.exchange(0x137, &[OWNER, REPORT_INDEX], true, &parameters).expect("written");
    }
}

fn extend(tpm: &mut Tpm, pcr: u32) {
    let parameters = [&[0, 0, 0, 1, 0, 0x0b][..], &[7; 32]].concat();
    tpm.exchange(0x182, &[pcr], true, &parameters).expect("extended");
}

/// Claims as a paravisor writes them.
fn claims(modulus: &[u8]) -> String {
    let n = Base64UrlUnpadded::encode_string(modulus);
    format!(
        r#"{{"keys":[{{"kid":"HCLAkPub","key_ops":["sign"],"kty":"RSA","e":"AQAB","n":"{n}"}},
        {{"kid":"HCLEkPub","key_ops":["encrypt"],"kty":"RSA","e":"AQAB","n":"xyz"}}],
        "vm-configuration":{{"console-enabled":true,"secure-boot":true,"tpm-enabled":true}},
        "user-data":"{}"}}"#,
        "0".repeat(128)
    )
}

/// A paravisor's report over claims. Azure's index has 2600 bytes, more than swtpm gives to one.
fn hcl_report(claims: &[u8]) -> Vec<u8> {
    let mut report = vec![0; 2048];
    report[..4].copy_from_slice(b"HCLA");
    report[4] = 2;
    report[12] = 2;
    report[32] = 0x81;
    report[32 + 128..32 + 160].copy_from_slice(digest(&SHA256, claims).as_ref());
    for (at, value) in [(1216, claims.len() + 20), (1220, 1), (1224, 4), (1228, 1)] {
        report[at..at + 4].copy_from_slice(&(value as u32).to_le_bytes());
    }
    report[1232..1236].copy_from_slice(&(claims.len() as u32).to_le_bytes());
    report[1236..1236 + claims.len()].copy_from_slice(claims);
    report
}

/// The metadata service: `answer` makes status and quote of a TDREPORT and the number of the request.
fn metadata(
    answer: impl Fn(&[u8], usize) -> (u16, Vec<u8>) + Send + 'static,
) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("address");
    let requests = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&requests);
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let mut socket = socket.expect("a client");
            let mut request = Vec::new();
            let report = loop {
                let mut part = [0; 4096];
                let len = socket.read(&mut part).expect("a request");
                assert!(len > 0, "half a request");
                request.extend_from_slice(&part[..len]);
                let text = String::from_utf8_lossy(&request);
                let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
                assert!(head.starts_with("POST /acc/tdquote HTTP/1.1\r\n"), "{head}");
                assert!(head.contains("\r\nMetadata: true\r\n"), "{head}");
                if let Ok(body) = serde_json::from_str::<serde_json::Value>(body) {
                    let text = body["report"].as_str().expect("a report");
                    break Base64UrlUnpadded::decode_vec(text).expect("base64url");
                }
            };
            assert_eq!(report.len(), 1024);
            let number = counter.fetch_add(1, Ordering::SeqCst);
            let (status, quote) = answer(&report, number);
            let body = format!(r#"{{"quote":"{}"}}"#, Base64UrlUnpadded::encode_string(&quote));
            let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n", body.len());
            socket.write_all((head + &body).as_bytes()).expect("an answer");
        }
    });
    (address, requests)
}

/// What the platform quotes of a TDREPORT.
fn quoted(platform: &SimPlatform, report: &[u8]) -> Vec<u8> {
    platform.quote(report[128..192].try_into().expect("64 bytes")).expect("a quote")
}

/// A whole machine, what it is measured as, and how often its metadata service was asked.
fn azure(name: &str, image: &str) -> (Machine, AzureVm, TdReport, Arc<AtomicUsize>) {
    let (machine, mut tpm) = Machine::start(name);
    extend(&mut tpm, 4);
    let modulus = provide_key(&mut tpm);
    provide_report(&mut tpm, &hcl_report(claims(&modulus).as_bytes()));
    let platform = SimPlatform::with_td(NOW, image, false);
    let measured = *platform.report();
    let (address, requests) = metadata(move |report, _| (200, quoted(&platform, report)));
    (machine, AzureVm::with(tpm, address), measured, requests)
}

fn verifier(report: &TdReport, evidence: &[u8]) -> Verifier {
    let vtpm = Evidence::parse(evidence).expect("evidence").vtpm.expect("of a TPM");
    let text = Policy::template(report, Some(vtpm.pcrs()));
    let policy = Policy::parse(text.as_bytes()).expect("our own file");
    Verifier { trust: Trust::Simulated, policy }
}

#[test]
fn what_a_tpm_signs_is_accepted_for_what_was_asked_and_what_is_measured() {
    let (_machine, vm, measured, requests) = azure("good", "hfl");
    let evidence = vm.quote(&[9; 64]).expect("evidence");
    let verifier = verifier(&measured, &evidence);
    let role = Some(Role::Worker(0));
    let verdict = verifier.verify(&evidence, &[9; 64], role, NOW).expect("accepted");
    assert_ne!(verdict.pcrs.expect("PCRs")[4], [0; 32]);
    assert_eq!(verifier.verify(&evidence, &[8; 64], role, NOW), Err(Rejection::ReportData));
    let again = vm.quote(&[8; 64]).expect("evidence");
    verifier.verify(&again, &[8; 64], role, NOW).expect("accepted");
    assert_eq!(requests.load(Ordering::SeqCst), 1, "one quote of the TD a process");

    extend(&mut vm.tpm.lock().expect("nobody panicked"), 9);
    let changed = vm.quote(&[9; 64]).expect("evidence");
    let refused = verifier.verify(&changed, &[9; 64], role, NOW);
    assert_eq!(refused, Err(Rejection::Pcr(Some(9))));
    // A policy without PCRs says nothing about such a guest.
    let without = Policy::parse(Policy::template(&measured, None).as_bytes()).expect("our file");
    let without = Verifier { trust: Trust::Simulated, policy: without };
    let refused = without.verify(&evidence, &[9; 64], role, NOW);
    assert_eq!(refused, Err(Rejection::Pcr(None)));
    // A TD of the same measurements without a TPM is not what such a policy means.
    let bare = SimPlatform::new(NOW).quote(&[9; 64]).expect("a quote");
    assert_eq!(verifier.verify(&bare, &[9; 64], role, NOW), Err(Rejection::Pcr(None)));
    without.verify(&bare, &[9; 64], role, NOW).expect("measured by the TD alone");
}

#[test]
fn certificate_and_session_carry_it() {
    let (_machine, vm, measured, _) = azure("session", "hfl");
    let verifier = verifier(&measured, &vm.quote(&[0; 64]).expect("evidence"));
    let vm: Arc<dyn Attester> = Arc::new(vm);
    let identity = Identity::new(&*vm, NOW).expect("identity");
    verifier.verify_certificate(identity.certificate(), NOW).expect("accepted");

    let config = |role| {
        Arc::new(Config::new(role, Arc::clone(&vm), verifier.clone(), || NOW).expect("config"))
    };
    let start = Duration::ZERO;
    let mut client = Session::client(config(Role::Worker(0)), "ps0", start).expect("client");
    let server = config(Role::ParameterServer(0));
    let mut server = Session::server(server, [1; 32], start).expect("server");
    for _ in 0..20 {
        for from_client in [true, false] {
            let (from, to) = match from_client {
                true => (&mut client, &mut server),
                false => (&mut server, &mut client),
            };
            let mut bytes = Vec::new();
            from.output(&mut bytes).expect("memory");
            to.receive(&bytes).expect("honest");
            while to.next_event().expect("honest").is_some() {}
        }
    }
    assert!(client.is_open() && server.is_open());
    let admission = server.admission().expect("a client");
    let verdict = admission.verify(&verifier, NOW).expect("as an auditor sees it");
    assert!(verdict.pcrs.is_some());
}

/// Behind the quote, whose own bytes other tests change.
#[test]
fn every_changed_byte_of_the_tpms_part_is_refused() {
    let (_machine, vm, measured, _) = azure("changed", "hfl");
    let evidence = vm.quote(&[9; 64]).expect("evidence");
    let verifier = verifier(&measured, &evidence);
    let behind = 8 + 4 + Evidence::quote_bytes(&evidence).len();
    for at in (0..12).chain(behind..evidence.len()) {
        let mut changed = evidence.clone();
        changed[at] ^= 1;
        assert!(verifier.verify(&changed, &[9; 64], None, NOW).is_err(), "{at}");
    }
    for len in (0..evidence.len()).step_by(7) {
        assert!(verifier.verify(&evidence[..len], &[9; 64], None, NOW).is_err(), "{len}");
    }
}

/// Who owns a TD can have any claims quoted, with a key of his own: only its MRTD tells him apart.
#[test]
fn claims_of_somebody_elses_td_and_of_somebody_elses_key_are_refused() {
    let (_machine, vm, measured, _) = azure("genuine", "hfl");
    let evidence = vm.quote(&[9; 64]).expect("evidence");
    let verifier = verifier(&measured, &evidence);
    let (_machine, other, ..) = azure("evil", "evil");
    let evil = other.quote(&[9; 64]).expect("evidence");
    let refused = verifier.verify(&evil, &[9; 64], None, NOW);
    assert!(matches!(refused, Err(Rejection::Measurement(_))), "{refused:?}");

    let parts = |bytes: &[u8]| {
        let vtpm = Evidence::parse(bytes).expect("evidence").vtpm.expect("of a TPM");
        (Evidence::quote_bytes(bytes).to_vec(), vtpm)
    };
    let ((quote, genuine), (_, forged)) = (parts(&evidence), parts(&evil));
    let mixed = forged.encode(&quote);
    let refused = verifier.verify(&mixed, &[9; 64], None, NOW);
    assert_eq!(refused, Err(Rejection::Vtpm("the quote is over other claims")));
    let mixed = Vtpm { claims: genuine.claims.clone(), ..forged }.encode(&quote);
    let refused = verifier.verify(&mixed, &[9; 64], None, NOW);
    let why = "the key in the claims did not sign the TPM's quote";
    assert_eq!(refused, Err(Rejection::Vtpm(why)));
    // No policy can name PCRs without saying what runs below them.
    let text = r#"{"verify_rt_mr0":"on","tdx_mrs":[{"rt_mr0":"M","pcrs":{"4":"P"}}]}"#;
    let text = text.replace('M', &"0".repeat(96)).replace('P', &"0".repeat(64));
    assert!(Policy::parse(text.as_bytes()).is_err());
    let with_mr_td = text.replace("rt_mr0", "mr_td");
    assert!(Policy::parse(with_mr_td.as_bytes()).is_ok());
    assert!(Policy::parse(with_mr_td.replace("\"4\"", "\"24\"").as_bytes()).is_err());
}

#[test]
fn a_busy_service_is_asked_again_and_a_wrong_one_is_named() {
    let (_machine, mut tpm) = Machine::start("service");
    let none = AzureVm::with(Tpm::new(std::io::Cursor::new(Vec::new())), METADATA.into());
    assert!(none.quote(&[9; 64]).is_err(), "a device that is no TPM");
    let missing = tpm.nv_len(REPORT_INDEX).expect_err("no such index");
    assert_eq!(missing.kind(), io::ErrorKind::NotFound);

    let modulus = provide_key(&mut tpm);
    let claims = claims(&modulus);
    let report = hcl_report(claims.as_bytes());
    provide_report(&mut tpm, &report);
    let platform = SimPlatform::new(NOW);
    let (address, requests) = metadata(move |report, number| match number {
        0 => (429, Vec::new()),
        1 => (404, Vec::new()),
        2 => (200, b"no quote".to_vec()),
        3 => (200, platform.quote(&[3; 64]).expect("of something else")),
        _ => (200, quoted(&platform, report)),
    });
    let vm = AzureVm::with(tpm, address);
    for expected in ["status 404", "quote ends", "another report"] {
        let error = vm.quote(&[9; 64]).expect_err(expected).to_string();
        assert!(error.contains("metadata service") && error.contains(expected), "{error}");
    }
    vm.quote(&[9; 64]).expect("evidence");
    assert_eq!(requests.load(Ordering::SeqCst), 5);
}

#[test]
fn reports_of_others_are_named() {
    let claims = claims(&[7; 256]);
    let good = hcl_report(claims.as_bytes());
    let (report, found) = parse_report(&good).expect("a report");
    assert_eq!((report.len(), found), (1024, claims.as_bytes()));
    let cases: [(usize, u8, &str); 5] = [
        (0, 1, "HCLA"),
        (1224, 6, "another kind"),
        (1228, 3, "something else"),
        (1234, 1, "longer"),
        (1240, 1, "other claims"),
    ];
    for (at, change, expected) in cases {
        let mut changed = good.clone();
        changed[at] ^= change;
        let why = parse_report(&changed).expect_err(expected);
        assert!(why.contains(expected), "{why}");
    }
    assert_eq!(parse_report(&good[..1235]), Err("too short"));
}

/// A report, and a quote with its key, as machines of Azure made them (test data of the crate az-cvm-vtpm).
#[test]
fn what_real_machines_have_recorded_is_read_and_verified() {
    let recorded = include_bytes!("hcl-report.bin");
    let (report, found) = parse_report(recorded).expect("a report of a TD");
    assert_eq!((report[0], found.len()), (0x81, 1202));
    assert!(crate::evidence::vtpm::attestation_key(found).is_some());

    let mut rest = &include_bytes!("tpm-quote.bin")[..];
    let [signature, message] = [0, 1].map(|_| {
        let (len, after) = rest.split_first_chunk().expect("a length");
        let (part, after) = after.split_at(u64::from_le_bytes(*len) as usize);
        rest = after;
        part.to_vec()
    });
    let mut pcrs = [[0; 32]; 24];
    pcrs.as_flattened_mut().copy_from_slice(&rest[8..]);
    let key = include_bytes!("tpm-key.der");
    let at = key.windows(5).position(|head| head == [2, 0x82, 1, 1, 0]).expect("a modulus") + 5;
    let claims = claims(&key[at..at + 256]).into_bytes();
    let mut quoted = [0; 64];
    quoted[..32].copy_from_slice(digest(&SHA256, &claims).as_ref());
    let mut vtpm = Vtpm { claims, message, signature, pcrs };
    assert_eq!(vtpm.verify(&quoted), Ok(&b"challenge"[..]));
    vtpm.pcrs[7][0] ^= 1;
    assert_eq!(vtpm.verify(&quoted), Err(Rejection::Vtpm("the TPM's quote is over other PCRs")));
}

/// Pods there are machines of their own; their agent answers with all of it, in two encodings.
#[test]
fn an_agents_answer_becomes_the_same_evidence() {
    let (_machine, vm, measured, _) = azure("agent", "hfl");
    let report = hcl_report(&vm.certified(&mut vm.tpm.lock().expect("TPM")).expect("quote").1);
    let vm = Arc::new(vm);
    for numbers in [true, false] {
        let (vm, report) = (Arc::clone(&vm), report.clone());
        let agent = GuestComponents::answering(200, move |text| {
            // What a TPM signs is the text itself.
            let mut tpm = vm.tpm.lock().expect("TPM");
            let pcrs = tpm.pcrs().expect("PCRs");
            let (message, signature) = tpm.quote(ATTESTATION_KEY, text.as_bytes()).expect("quote");
            let quote = vm.certified(&mut tpm).expect("quote").0;
            let plain = |bytes: &[u8]| match numbers {
                true => json!(bytes),
                false => json!(Base64UrlUnpadded::encode_string(bytes)),
            };
            let digits = |bytes: &[u8]| match numbers {
                true => json!(bytes),
                false => json!(crate::hex::Hex(bytes).to_string()),
            };
            json!({
                "version": 1,
                "td_quote": plain(&quote),
                "hcl_report": plain(&report),
                "tpm_quote": {
                    "signature": digits(&signature),
                    "message": digits(&message),
                    "pcrs": pcrs.iter().map(|pcr| digits(pcr)).collect::<Vec<_>>(),
                },
            })
            .to_string()
        });
        let evidence = agent.quote(&[9; 64]).expect("evidence");
        let verifier = verifier(&measured, &evidence);
        verifier.verify(&evidence, &[9; 64], None, NOW).expect("accepted");
        let other = verifier.verify(&evidence, &[8; 64], None, NOW);
        assert_eq!(other, Err(Rejection::ReportData));
    }
}
