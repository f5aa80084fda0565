//! Strangers by the hundred at every listener while a job runs: idle, dripping, garbage and stolen evidence.
//!
//! Figures: `cargo test -p hfl --locked --test main flood -- --ignored --nocapture`

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hfl::events::Event;
use protocol::{Attester, Config, Net, Policy, Role, SimPlatform, Trust, Verifier};

use crate::processes::{Cast, Dir, Process, free_port};
use crate::secrets::Serving;

/// Pause between two waves: the strangers of a test share its processors with the job.
const WAVE: Duration = Duration::from_millis(40);
/// Strangers of a kind in a wave.
const IN_WAVE: usize = 8;

fn clock() -> u64 {
    hfl::trust::clock()
}

/// Shows a quote that somebody else had made, over another key.
struct Thief {
    stolen: Vec<u8>,
}

impl Attester for Thief {
    fn quote(&self, _: &[u8; 64]) -> io::Result<Vec<u8>> {
        Ok(self.stolen.clone())
    }

    fn name(&self) -> &'static str {
        "thief"
    }
}

fn thief() -> Net {
    let platform = SimPlatform::new(clock());
    let policy = Policy::same_as(platform.report());
    let stolen = platform.quote(&[7; 64]).expect("a quote");
    let verifier = Verifier { trust: Trust::Simulated, policy };
    let config = Config::new(Role::Worker(1), Arc::new(Thief { stolen }), verifier, clock);
    Net::new(Arc::new(config.expect("config"))).expect("a network")
}

/// Strangers at a listener until they are told to end: `each` of every kind, then those that are kept drip on.
fn flood(address: SocketAddr, each: usize, has_ended: &AtomicBool, came: &AtomicUsize) {
    let (mut idle, mut dripping, mut thief) = (Vec::new(), Vec::new(), thief());
    let mut count = 0;
    while !has_ended.load(Ordering::Relaxed) {
        for number in count..each.min(count + IN_WAVE) {
            // One that is refused is as good.
            idle.extend(TcpStream::connect(address));
            dripping.extend(TcpStream::connect(address));
            if let Ok(mut garbage) = TcpStream::connect(address) {
                let _ = garbage.write_all(&[number as u8; 3000]);
                let _ = garbage.set_read_timeout(Some(Duration::from_millis(1)));
                let _ = garbage.read(&mut [0; 64]);
            }
            let _ = thief.connect(&address.to_string());
            came.fetch_add(4, Ordering::Relaxed);
            count = number + 1;
        }
        for stream in &mut dripping {
            let _ = stream.write(&[22]);
        }
        let _ = thief.poll(Some(Duration::ZERO), &[0; 32]);
        for id in thief.ids() {
            thief.drive(id, |session| session.next_event().map(drop));
        }
        thief.take_ended();
        thread::sleep(WAVE);
    }
}

/// What came of a job.
struct Outcome {
    /// From its first round to its last.
    seconds: f64,
    hash: String,
    /// Strangers that came while it ran.
    strangers: usize,
}

/// Runs a job with so many strangers of each kind at ps0, its metrics and a secret service, which all serve meanwhile.
fn run(dir: &Dir, model: &str, steps: &str, each: usize) -> Outcome {
    let service = Serving::start(dir, r#"{"app": {"secret": "word"}}"#);
    let cast = Cast::new(dir, model);
    let metrics = free_port();
    let metrics_at = metrics.to_string();
    let options = [("--json", ""), ("--steps", steps), ("--metrics", metrics_at.as_str())];
    let ps0 = Process::start(&cast.words("ps0", &options), "info");
    let slow = [("--pause-ms", "100")];
    let workers =
        ["worker0", "worker1"].map(|role| Process::start(&cast.words(role, &slow), "info"));
    let at = |text: &str| text.parse::<SocketAddr>().expect("an address");
    let ports = cast.server().replace("localhost", "127.0.0.1");
    let listeners = [at(&ports), at(&format!("127.0.0.1:{metrics}")), at(&service.address)];
    let (has_ended, came) = (AtomicBool::new(false), AtomicUsize::new(0));
    let (mut times, mut hash) = (Vec::new(), String::new());
    thread::scope(|scope| {
        let mut is_flooded = false;
        while let Some(line) = ps0.next_line() {
            match Event::parse(&line).expect(&line) {
                (time, Event::Round { .. }) => {
                    times.push(time);
                    if each > 0 && !std::mem::replace(&mut is_flooded, true) {
                        for address in listeners {
                            let (has_ended, came) = (&has_ended, &came);
                            scope.spawn(move || flood(address, each, has_ended, came));
                        }
                    }
                }
                (_, Event::Parameters { sha256, .. }) => hash = sha256,
                (_, Event::Left { worker, why, .. }) => panic!("{worker} left: {why}"),
                _ => {}
            }
        }
        has_ended.store(true, Ordering::Relaxed);
    });
    let strangers = came.load(Ordering::Relaxed);
    let start = Instant::now();
    // Who attests is served, by the service that was flooded too.
    service.has("app", "word");
    assert!(start.elapsed() < Duration::from_secs(60));
    let (code, log) = ps0.end();
    assert_eq!(code, 0, "{log}");
    if each > 0 {
        assert!(log.contains("not verified") && log.contains("[report-data]"), "thieves: {log}");
    }
    for worker in workers {
        let (code, log) = worker.end();
        assert!(code == 0 && !log.contains("trying again"), "{log}");
    }
    let seconds = times.last().zip(times.first()).map_or(0.0, |(last, first)| last - first);
    Outcome { seconds, hash, strangers }
}

#[test]
fn a_job_with_strangers_at_every_listener_ends_as_without_them() {
    let dir = Dir::new("flood");
    let calm = run(&dir, "calm", "12", 0);
    let flooded = run(&dir, "flooded", "12", 100);
    assert_eq!(flooded.hash, calm.hash);
    assert!(flooded.strangers >= 300, "{}", flooded.strangers);
}

/// Not a test: figures, in turns, of 1,000 strangers of each kind at each listener.
#[test]
#[ignore = "figures, which take minutes"]
fn figures() {
    let dir = Dir::new("floods");
    let mut pairs = Vec::new();
    for turn in 0..3 {
        let [calm, flooded] = [("calm", 0), ("flooded", 1000)].map(|(name, each)| {
            let outcome = run(&dir, &format!("{name}{turn}"), "120", each);
            println!("{name}: {:.2} s, {} strangers", outcome.seconds, outcome.strangers);
            outcome.seconds
        });
        pairs.push(flooded / calm);
    }
    pairs.sort_by(f64::total_cmp);
    println!("with strangers: {:.3} times as long (median of {})", pairs[1], pairs.len());
}
