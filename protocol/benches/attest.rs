//! What attestation and encryption cost: a whole mutual opening between two sessions in memory, its bytes,
//! and a model through such a session; as rows of a table.
//!
//! `cargo bench -p protocol`. Quotes are simulated ones, which take microseconds; a real one takes about a
//! second, once for each side of a connection.

use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::{
    Attester, CHUNK_LEN_MAX, Config, Identity, Policy, Role, Session, SimPlatform, Trust, Verifier,
};

/// As in the program.
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

const ROUNDS: usize = 101;
const ROUNDS_OF_MODEL: usize = 11;
/// ResNet-50 in f32.
const MODEL_LEN: usize = 94_000_000;

fn clock() -> u64 {
    1_800_000_000
}

fn config(role: Role) -> Arc<Config> {
    let platform = SimPlatform::new(clock());
    let policy = Policy::same_as(platform.report());
    let verifier = Verifier { trust: Trust::Simulated, policy };
    Arc::new(Config::new(role, Arc::new(platform), verifier, clock).expect("config"))
}

/// Moves what one says to the other.
fn deliver(from: &mut Session, to: &mut Session) {
    let mut bytes = Vec::new();
    from.output(&mut bytes).expect("memory");
    to.receive(&bytes).expect("accepted");
    while to.next_event().expect("accepted").is_some() {}
}

fn main() {
    let (client, server) = (config(Role::Worker(0)), config(Role::ParameterServer(0)));
    let mut times = Vec::new();
    let mut bytes = [0; 2];
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let mut a = Session::client(Arc::clone(&client), "ps0", Duration::ZERO).expect("client");
        let mut b = Session::server(Arc::clone(&server), [1; 32], Duration::ZERO).expect("server");
        while !(a.is_open() && b.is_open()) {
            deliver(&mut a, &mut b);
            deliver(&mut b, &mut a);
        }
        times.push(start.elapsed().as_secs_f64());
        bytes = a.bytes();
    }
    times.sort_by(f64::total_cmp);
    let model = encryption(&client, &server);
    let platform = SimPlatform::new(clock());
    let quote = platform.quote(&[0; 64]).expect("a quote");
    let identity = Identity::new(&platform, clock()).expect("identity");
    let client_certificate = identity.certificate().len();
    let ms = |seconds: f64| format!("{:.2} ms", 1e3 * seconds);
    let rows = [
        ("opening a session, both sides verified twice, a core for both", ms(times[ROUNDS / 2])),
        ("its ninth decile", ms(times[ROUNDS * 9 / 10])),
        ("its bytes to the client", bytes[0].to_string()),
        ("its bytes to the server", bytes[1].to_string()),
        ("a quote, of those", format!("{}, twice a side", quote.len())),
        ("a certificate, of those", client_certificate.to_string()),
        ("a model of 94 MB sealed, of one core", ms(model[0])),
        ("a model of 94 MB opened, of one core", ms(model[1])),
    ];
    println!("| what | measured |\n|---|---|");
    rows.iter().for_each(|(what, measured)| println!("| {what} | {measured} |"));
}

/// Seconds to encrypt and to decrypt a model, frames and copies included.
fn encryption(client: &Arc<Config>, server: &Arc<Config>) -> [f64; 2] {
    let mut a = Session::client(Arc::clone(client), "ps0", Duration::ZERO).expect("client");
    let mut b = Session::server(Arc::clone(server), [1; 32], Duration::ZERO).expect("server");
    while !(a.is_open() && b.is_open()) {
        deliver(&mut a, &mut b);
        deliver(&mut b, &mut a);
    }
    let (chunk, mut wire) = (vec![7; CHUNK_LEN_MAX], Vec::new());
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS_OF_MODEL {
        let mut seconds = [0.0; 2];
        for offset in (0..MODEL_LEN).step_by(CHUNK_LEN_MAX) {
            let start = Instant::now();
            wire.clear();
            a.send_chunk(1, offset as u64, &chunk).expect("open");
            a.output(&mut wire).expect("memory");
            seconds[0] += start.elapsed().as_secs_f64();
            let start = Instant::now();
            // As much at a time as a read of a socket gives.
            for part in wire.chunks(64 << 10) {
                b.receive(part).expect("accepted");
                while b.next_event().expect("accepted").is_some() {}
            }
            seconds[1] += start.elapsed().as_secs_f64();
        }
        rounds.push(seconds);
    }
    [0, 1].map(|side| {
        rounds.sort_by(|a, b| a[side].total_cmp(&b[side]));
        rounds[ROUNDS_OF_MODEL / 2][side]
    })
}
