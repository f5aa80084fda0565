//! Quotes of real platforms, as they are and changed, before two verifiers: hfl's and dcap-qvl's.
//!
//! usage: differential [FOLDER] [CASES]    (default: the repository's cases; all of them)
//!
//! Prints what each says of the unchanged quotes, every kind of difference over quotes with a byte flipped
//! at each offset, cut at each offset and with lengths at their extremes, and the times of a first
//! verification and of a later one, when hfl remembers what authorities signed.
//! Ends with 1 if a changed quote whose content is another is accepted by hfl, or if it panics.

use std::collections::BTreeMap;
use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::time::Instant;

use dcap_qvl::QuoteCollateralV3;
use protocol::Quote;
use protocol::dcap::{self, Anchor, Collateral};
use serde_json::Value;

#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

struct Case {
    name: String,
    quote: Vec<u8>,
    ours: Collateral,
    theirs: QuoteCollateralV3,
    now: u64,
}

/// A status, or why there is none; accepted is what has a status.
type Outcome = Result<String, String>;

fn main() {
    let mut words = std::env::args().skip(1);
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../protocol/src/judge/dcap/vectors");
    let folder = words.next().map_or(here, PathBuf::from);
    let count: usize = words.next().map_or(usize::MAX, |word| word.parse().expect("a number"));
    let lines = fs::read_to_string(folder.join("cases.jsonl")).expect("cases.jsonl");
    let cases: Vec<Case> =
        lines.lines().take(count).filter_map(|line| case(&folder, line)).collect();

    let root = Anchor::default();
    println!("unchanged quotes");
    let mut table = BTreeMap::new();
    for case in &cases {
        let said = (ours(case, &case.quote, &root), theirs(case, &case.quote));
        let differ = if said.0.is_ok() == said.1.is_ok() { "" } else { "  <- differ" };
        println!(
            "  {:28} hfl {:44} dcap-qvl {}{differ}",
            case.name,
            shown(&said.0),
            shown(&said.1)
        );
    }
    println!("changed quotes, where the two differ");
    let mut wrong = 0;
    let mut tried = 0_u64;
    for case in &cases {
        // What is refused as it is cannot become worse.
        if ours(case, &case.quote, &root).is_err() {
            continue;
        }
        for (region, changed) in mutants(&case.quote) {
            tried += 1;
            let said = catch_unwind(|| (ours(case, &changed, &root), theirs(case, &changed)));
            let Ok((ours, theirs)) = said else {
                println!("  {}: PANIC in {region}", case.name);
                wrong += 1;
                continue;
            };
            if ours.is_ok() && !same_content(&case.quote, &changed) {
                println!("  {}: hfl accepts another content in {region}", case.name);
                wrong += 1;
            }
            if ours.is_ok() != theirs.is_ok() {
                let key = (region, short(&ours), short(&theirs));
                *table.entry(key).or_insert(0_u64) += 1;
            }
        }
    }
    for ((region, ours, theirs), count) in &table {
        println!("  {region:24} hfl {ours:32} dcap-qvl {theirs:60} {count} times");
    }
    println!("{tried} changed quotes, {wrong} wrong");
    time(&cases);
    std::process::exit(i32::from(wrong > 0));
}

/// A case; `None` for one without collateral.
fn case(folder: &Path, line: &str) -> Option<Case> {
    let case: Value = serde_json::from_str(line).expect("JSON");
    case["signing_chain"].as_str().zip(case["tcb_info"].as_str())?;
    let file = |key: &str| folder.join(case[key].as_str().expect("a file"));
    let bytes = |key: &str| {
        fs::read(file(key)).unwrap_or_else(|error| panic!("{}: {error}", file(key).display()))
    };
    let text = |key: &str| String::from_utf8(bytes(key)).expect("text");
    let signature = |key: &str| {
        let path = file(key).with_extension("sig");
        let digits = fs::read_to_string(path).expect("a signature");
        let byte = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).expect("digits");
        (0..digits.trim().len()).step_by(2).map(byte).collect::<Vec<u8>>()
    };
    let chain = text("signing_chain");
    Some(Case {
        name: case["quote"].as_str().expect("a name").to_owned(),
        quote: bytes("quote"),
        now: case["now_unix"].as_u64().expect("a time"),
        ours: Collateral {
            tcb_info_issuer_chain: chain.clone().into_bytes(),
            tcb_info: bytes("tcb_info"),
            tcb_info_signature: signature("tcb_info"),
            qe_identity_issuer_chain: chain.clone().into_bytes(),
            qe_identity: bytes("qe_identity"),
            qe_identity_signature: signature("qe_identity"),
            root_ca_crl: bytes("root_ca_crl"),
            pck_crl: bytes("pck_crl"),
        },
        theirs: QuoteCollateralV3 {
            pck_crl_issuer_chain: chain.clone(),
            root_ca_crl: bytes("root_ca_crl"),
            pck_crl: bytes("pck_crl"),
            tcb_info_issuer_chain: chain.clone(),
            tcb_info: text("tcb_info"),
            tcb_info_signature: signature("tcb_info"),
            qe_identity_issuer_chain: chain,
            qe_identity: text("qe_identity"),
            qe_identity_signature: signature("qe_identity"),
            pck_certificate_chain: None,
        },
    })
}

fn ours(case: &Case, quote: &[u8], root: &Anchor) -> Outcome {
    let quote = Quote::parse(quote).map_err(|error| error.to_string())?;
    let verdict = dcap::verify(&quote, &case.ours, root, case.now);
    verdict.map(|verdict| verdict.status.name().to_owned()).map_err(|fault| fault.code())
}

fn theirs(case: &Case, quote: &[u8]) -> Outcome {
    let report = dcap_qvl::verify::ring::verify(quote, &case.theirs, case.now);
    report.map(|report| report.status.to_string()).map_err(|error| format!("{error:#}"))
}

/// Quotes with a byte flipped at each offset, cut there, or with a length there at an extreme.
fn mutants(quote: &[u8]) -> impl Iterator<Item = (&'static str, Vec<u8>)> + '_ {
    let flipped = (0..quote.len()).map(|at| {
        let mut changed = quote.to_vec();
        changed[at] ^= 1 << (at % 8);
        (region(quote, at), changed)
    });
    let cut = (0..quote.len()).map(|at| ("cut short", quote[..at].to_vec()));
    let lengths = lengths(quote).into_iter().flat_map(move |(at, size)| {
        let extremes = [0, 1, 0x7fff, 0xffff, u32::MAX / 2, u32::MAX - 3, u32::MAX];
        extremes.into_iter().map(move |value: u32| {
            let mut changed = quote.to_vec();
            changed[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
            ("a length", changed)
        })
    });
    let padded = [&[0_u8; 100][..], &[1; 1]].map(|tail| ("after the end", [quote, tail].concat()));
    flipped.chain(cut).chain(lengths).chain(padded)
}

/// Where the signature data begins, by version and body.
fn signature_data(quote: &[u8]) -> usize {
    match quote[0] {
        3 => 432,
        4 => 632,
        _ => 54 + u32::from_le_bytes(quote[50..54].try_into().expect("4 bytes")) as usize,
    }
}

/// Offsets and sizes of the length fields.
fn lengths(quote: &[u8]) -> Vec<(usize, usize)> {
    let data = signature_data(quote);
    let qe = if quote[0] == 3 { data + 132 } else { data + 138 };
    let auth = qe + 448;
    let auth_len = usize::from(u16::from_le_bytes([quote[auth], quote[auth + 1]]));
    let mut found = vec![(data, 4), (auth, 2), (auth + 2 + auth_len + 2, 4)];
    if quote[0] != 3 {
        found.push((data + 134, 4));
    }
    found
}

fn region(quote: &[u8], at: usize) -> &'static str {
    let data = signature_data(quote);
    let qe = if quote[0] == 3 { data + 132 } else { data + 138 };
    match at {
        _ if at < 48 => "header",
        _ if at < data => "report",
        _ if at < data + 4 => "length",
        _ if at < data + 68 => "signature",
        _ if at < data + 132 => "attestation key",
        _ if at < qe => "certification head",
        _ if at < qe + 384 => "QE report",
        _ if at < qe + 448 => "QE signature",
        _ if at < qe + 448 + 40 => "QE authentication data",
        _ => "certificates or padding",
    }
}

/// Whether two quotes say the same: what is parsed is equal but for how certificates are written down.
fn same_content(one: &[u8], other: &[u8]) -> bool {
    let (Ok(one), Ok(other)) = (Quote::parse(one), Quote::parse(other)) else { return false };
    one.version == other.version && one.body == other.body && one.same_signatures(&other)
}

fn shown(outcome: &Outcome) -> String {
    match outcome {
        Ok(status) => status.clone(),
        Err(why) => format!("refused: {}", why.chars().take(60).collect::<String>()),
    }
}

fn short(outcome: &Outcome) -> String {
    match outcome {
        Ok(_) => "accepts".into(),
        Err(why) => why.split(" (").next().unwrap_or_default().chars().take(48).collect(),
    }
}

/// Medians of verifications in turns.
fn time(cases: &[Case]) {
    let kept = Anchor::default();
    let both = cases
        .iter()
        .find(|case| ours(case, &case.quote, &kept).is_ok() && theirs(case, &case.quote).is_ok());
    let Some(case) = both else { return };
    let mut times = [const { Vec::new() }; 3];
    let mut clocked = |index: usize, judge: &dyn Fn() -> Outcome| {
        let start = Instant::now();
        assert!(judge().is_ok());
        times[index].push(1e3 * start.elapsed().as_secs_f64());
    };
    for _ in 0..1001 {
        clocked(0, &|| ours(case, &case.quote, &Anchor::default()));
        clocked(1, &|| theirs(case, &case.quote));
        clocked(2, &|| ours(case, &case.quote, &kept));
    }
    let [first, theirs, later] = times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    });
    println!(
        "a verification of {}: dcap-qvl {theirs:.2} ms, hfl {first:.2} ms the first time ({:.2}), \
         {later:.2} ms later ({:.2})",
        case.name,
        theirs / first,
        theirs / later
    );
}
