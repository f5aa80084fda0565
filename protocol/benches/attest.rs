//! What attestation costs: a whole mutual opening between two sessions in memory, and its bytes.
//!
//! `cargo bench -p protocol`. Quotes are simulated ones, which take microseconds; a real one takes about a
//! second, once for each side of a connection.

use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::{Attester, Config, Policy, Role, Session, SimPlatform, Trust, Verifier};

const ROUNDS: usize = 101;

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
    let quote = SimPlatform::new(clock()).quote(&[0; 64]).expect("a quote");
    println!(
        "opening a session, both sides verified twice (certificate, fresh quote): median {:.2} ms of \
         one core for both",
        1e3 * times[ROUNDS / 2]
    );
    println!(
        "bytes: {} to the client, {} to the server, a quote {}",
        bytes[0],
        bytes[1],
        quote.len()
    );
}
