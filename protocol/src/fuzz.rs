//! Fuzzing entries: each asserts more than the absence of a panic.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ring::digest::{SHA256, digest};

use crate::RemoteVerifier;
use crate::evidence::quote::Quote;
use crate::evidence::tpm::Attest;
use crate::evidence::vtpm::Evidence;
use crate::evidence::{azure, qgs};
use crate::http;
use crate::identity::evidence::CertificateEvidence;
use crate::judge::token::{Keys, Token};
use crate::session::config::Config;
use crate::session::frame::{self, Frame};
use crate::session::message::Message;
use crate::session::{Event, Session};
use crate::{Policy, Role, SimPlatform, Trust, Verifier};

/// Every frame is inside the input, bounded, and its bytes are what it says.
pub fn frame(data: &[u8]) {
    let mut rest = data;
    while let Ok(Some((frame, len))) = frame::parse(rest) {
        assert!(len <= rest.len() && len <= frame::FRAME_LEN_MAX);
        let again = match frame {
            Frame::Chunk { step, offset, data } => {
                [&frame::chunk_head(step, offset, data.len())[..], data].concat()
            }
            Frame::Message(bytes) => [&frame::message_head(bytes.len())[..], bytes].concat(),
        };
        assert_eq!(again, rest[..len]);
        rest = &rest[len..];
    }
}

/// What parses encodes to a message that parses to the same.
pub fn message(data: &[u8]) {
    if let Some(message) = Message::parse(data) {
        let again = Message::parse(&message.encode()).expect("our own bytes");
        // Compared as bytes: a loss may be no number, which is not equal to itself.
        assert_eq!(again.encode(), message.encode());
    }
}

/// What parses encodes to the same bytes, less the padding.
pub fn quote(data: &[u8]) {
    if let Ok(quote) = Quote::parse(data) {
        let encoded = quote.encode();
        assert_eq!(encoded, data[..encoded.len()]);
        assert!(data[encoded.len()..].iter().all(|&byte| byte == 0));
    }
}

/// What a certificate of any form carries is inside it, and judged by a quote's rules next.
pub fn evidence(data: &[u8]) {
    if let Ok(evidence) = CertificateEvidence::parse(data) {
        assert!(evidence.quote.len() < data.len());
        quote(&evidence.quote);
    }
    if let Ok(Evidence { quote: found, vtpm: Some(vtpm) }) = Evidence::parse(data) {
        let bytes = Evidence::quote_bytes(data);
        assert_eq!(vtpm.encode(bytes), data);
        quote(bytes);
        // Nobody's key signed it, whatever the quote is over.
        let hash = digest(&SHA256, &vtpm.claims);
        let mut quoted = found.td().map_or([0; 64], |td| td.report_data);
        quoted[..32].copy_from_slice(hash.as_ref());
        assert!(vtpm.verify(&quoted).is_err());
    }
    if let Some(attest) = Attest::parse(data) {
        assert!(attest.extra.len() + attest.digest.len() < data.len());
    }
}

/// Answers of services: HTTP, keys and tokens, the quote service's messages. Nothing is longer than what
/// came.
pub fn answers(data: &[u8]) {
    for ended in [false, true] {
        if let Ok(Some(answer)) = http::parse(data, ended) {
            assert!(answer.body.len() <= data.len());
        }
    }
    // A token that these keys have not signed is never believed, whatever its form.
    let keys = Keys::parse(data).unwrap_or_default();
    if let Ok(text) = std::str::from_utf8(data) {
        assert!(Token::verify(text, &keys, &["issuer"], 1_800_000_000).is_err());
    }
    let _ = RemoteVerifier::is_configuration(data);
    if let Ok((report, claims)) = azure::parse_report(data) {
        assert!(report.len() + claims.len() < data.len());
    }
    if let Ok(quote) = qgs::parse(data) {
        assert!(quote.len() + 24 <= data.len() && data.ends_with(quote));
    }
}

/// Two honest sessions and a network that splits, drops and corrupts as the input says: nobody opens
/// without having verified the other, and nothing arrives that was not sent.
pub fn session(data: &[u8]) {
    let (client, server) = configs();
    let start = Duration::ZERO;
    let mut sides = [
        Session::client(client, "ps0", start).expect("client"),
        Session::server(server, [1; 32], start).expect("server"),
    ];
    let mut alive = [true; 2];
    let mut sent = 0_u64;
    for operation in data.chunks(3) {
        let &[kind, a, b] = operation else { break };
        let from = usize::from(kind & 1);
        match kind >> 1 & 7 {
            0 => {
                let data = vec![a; usize::from(b)];
                sent += u64::from(sides[from].send_chunk(u64::from(a), 0, &data).is_ok());
            }
            1 => {
                let classes = vec![b.into(); usize::from(a)];
                let message =
                    Message::Join { data: [a; 32], samples: a.into(), batches: b.into(), classes };
                let _ = sides[from].send(&message);
            }
            2 => {
                alive[from] &=
                    sides[from].handle_timeout(Duration::from_secs(u64::from(a))).is_ok();
            }
            _ => {
                let mut bytes = Vec::new();
                sides[from].output(&mut bytes).expect("memory");
                if kind & 0x80 != 0 && !bytes.is_empty() {
                    let at = usize::from(a) * 256 + usize::from(b);
                    let at = at % bytes.len();
                    bytes[at] ^= 1 | b;
                }
                let to = 1 - from;
                for piece in bytes.chunks(usize::from(a).max(1) * 16) {
                    alive[to] = alive[to] && deliver(&mut sides[to], piece, sent);
                }
            }
        }
        for side in &sides {
            assert!(!side.is_open() || side.peer().is_some());
        }
    }
}

/// Whether the session lives on after this input.
fn deliver(side: &mut Session, piece: &[u8], sent: u64) -> bool {
    if side.receive(piece).is_err() {
        return false;
    }
    let mut chunks = 0;
    loop {
        match side.next_event() {
            Err(_) => return false,
            Ok(None) => return true,
            Ok(Some(Event::Chunk { step, offset, data })) => {
                chunks += 1;
                assert!(chunks <= sent && offset == 0);
                assert!(data.iter().all(|&byte| u64::from(byte) == step));
            }
            Ok(Some(_)) => {}
        }
    }
}

fn configs() -> (Arc<Config>, Arc<Config>) {
    static CONFIGS: OnceLock<(Arc<Config>, Arc<Config>)> = OnceLock::new();
    let (client, server) = CONFIGS.get_or_init(|| {
        let clock = || 1_800_000_000;
        let platform = Arc::new(SimPlatform::new(clock()));
        let policy = Policy::same_as(platform.report());
        let verifier = Verifier { trust: Trust::Simulated, policy };
        let config = |role| {
            let attester = Arc::clone(&platform) as Arc<dyn crate::Attester>;
            Arc::new(Config::new(role, attester, verifier.clone(), clock).expect("config"))
        };
        (config(Role::Worker(0)), config(Role::ParameterServer(0)))
    });
    (Arc::clone(client), Arc::clone(server))
}

/// Collateral: bundles and the documents in them, whose signatures are taken for right.
pub fn collateral(data: &[u8]) {
    crate::judge::dcap::fuzz_documents(data);
}

/// Certificates of platforms with Intel's extension, and revocation lists.
pub fn certificates(data: &[u8]) {
    crate::judge::dcap::fuzz_certificates(data);
}

/// Policy files: what is accepted keeps to its limits.
pub fn policy(data: &[u8]) {
    if let Ok(policy) = Policy::parse(data) {
        assert!(policy.accepted.len() <= 64);
        assert!(policy.accepted.iter().all(|set| !set.values.is_empty()));
        let mut pcrs = policy.accepted.iter().flat_map(|set| &set.pcrs);
        assert!(pcrs.all(|(number, _)| *number < 24));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evidence::vtpm::Vtpm;
    use crate::{Attester, Refusal};
    use base64ct::{Base64UrlUnpadded, Encoding};
    use std::path::PathBuf;

    fn seeds(target: &str) -> PathBuf {
        PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/seeds")).join(target)
    }

    #[track_caller]
    fn replay(target: &str, run: fn(&[u8])) {
        let mut count = 0;
        for entry in std::fs::read_dir(seeds(target)).expect("seeds") {
            run(&std::fs::read(entry.expect("entry").path()).expect("a seed"));
            count += 1;
        }
        assert!(count > 0, "{target} has no seeds");
    }

    #[test]
    fn seeds_of_the_fuzz_targets_replay() {
        replay("frame", frame);
        replay("answers", answers);
        replay("evidence", evidence);
        replay("message", message);
        replay("quote", quote);
        replay("session", session);
        replay("collateral", collateral);
        replay("certificates", certificates);
        replay("policy", policy);
    }

    #[test]
    #[ignore = "writes fuzz/seeds"]
    fn write_seeds() {
        let write = |target: &str, name: &str, bytes: &[u8]| {
            std::fs::write(seeds(target).join(name), bytes).expect("write");
        };
        let chunk = [&frame::chunk_head(3, 4096, 8)[..], &[1; 8]].concat();
        let selection = [0, 0, 0, 1, 0, 0x0b, 3, 0xff, 0xff, 0xff];
        let head = [0xff, 0x54, 0x43, 0x47, 0x80, 0x18, 0, 0, 0, 4, 1, 2, 3, 4];
        let attest = [&head[..], &[0; 25], &selection, &[0, 2, 5, 6]].concat();
        write("evidence", "attest", &attest);
        let n = Base64UrlUnpadded::encode_string(&[0xff; 256]);
        let key = format!(r#"{{"kid":"HCLAkPub","kty":"RSA","e":"AQAB","n":"{n}"}}"#);
        let claims = format!(r#"{{"keys":[{key}],"user-data":"00"}}"#).into_bytes();
        let mut quoted = [0; 64];
        quoted[..32].copy_from_slice(digest(&SHA256, &claims).as_ref());
        let quote = SimPlatform::new(1_800_000_000).quote(&quoted).expect("a quote");
        let pcrs = std::array::from_fn(|pcr| [pcr as u8; 32]);
        let vtpm = Vtpm { claims, message: attest, signature: vec![9; 256], pcrs };
        write("evidence", "vtpm", &vtpm.encode(&quote));
        let messages = [
            Message::Hello {
                version: 1,
                role: Role::Worker(1),
                nonce: [5; 32],
                job: [6; 32],
                policy: [7; 32],
            },
            Message::Evidence { quote: vec![1, 2, 3], collateral: vec![4] },
            Message::Refused(Refusal::Evidence),
            Message::Job(b"{}".to_vec()),
            Message::Join { data: [7; 32], samples: 300, batches: 3, classes: vec![299, 1] },
            Message::Parameters { step: 2, steps: 1000 },
            Message::Gradients { step: 2, samples: 128, loss: 1.5, fresh: false },
            Message::Finished { steps: 1000, parameters: [7; 32] },
        ];
        let mut stream = chunk;
        for message in messages {
            let bytes = message.encode();
            write("message", message.name(), &bytes);
            stream.extend(frame::message_head(bytes.len()));
            stream.extend(bytes);
        }
        write("frame", "all-kinds", &stream);
        write("frame", "cut", &stream[..30]);
        let bytes = SimPlatform::new(1_800_000_000).quote(&[7; 64]).expect("quote");
        write("quote", "simulated", &bytes);
        write("quote", "padded", &[&bytes[..], &[0; 64]].concat());
        // Operations: output of client (6) and server (7) in turn, then chunks, messages, a flipped bit.
        let open: Vec<u8> = (0..8).flat_map(|i| [6 | (i & 1), 255, 255]).collect();
        write("session", "open", &open);
        write("session", "talk", &[&open[..], &[0, 9, 4, 6, 1, 0, 2, 3, 4, 6, 255, 0]].concat());
        write("session", "flip", &[&open[..9], &[0x86, 0, 40], &open[9..]].concat());
        write("session", "late", &[&open[..6], &[4, 31, 0], &open[6..]].concat());
    }
}
