//! Strangers at every listener while a job of real processes runs: they say nothing, half a handshake, a byte at a
//! time or rubbish, and show stolen or giant evidence.
//!
//! Figures: `cargo test -p hfl --locked --test main flood::figures -- --ignored --nocapture`

use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hfl::events::Event;
use protocol::{Attester, Config, Net, Policy, Role, Session, SimPlatform, Trust, Verifier};

use crate::processes::{Cast, Dir, Process, free_port};
use crate::secrets::Serving;

/// Pause between two waves: the strangers of a test share its processors with the job.
const WAVE: Duration = Duration::from_millis(50);
/// Strangers of a kind in a wave.
const IN_WAVE: usize = 5;
/// Connections that strangers of a kind keep at one listener: more than it has places for one address.
const KEPT_MAX: usize = 100;
/// Kinds of strangers.
const KINDS: usize = 6;
/// Longest wait for anything; long before that something hangs.
const PATIENCE: Duration = Duration::from_secs(180);
/// What strangers may cost of memory: places for 64 of an address, each with a TLS state and a certificate.
const MORE_KIB: u64 = 48 << 10;

fn clock() -> u64 {
    hfl::trust::clock()
}

/// Shows what is no quote of its own: one that somebody else had made, or very much of nothing.
struct Thief(Vec<u8>);

impl Attester for Thief {
    fn quote(&self, _: &[u8; 64]) -> io::Result<Vec<u8>> {
        Ok(self.0.clone())
    }

    fn name(&self) -> &'static str {
        "thief"
    }
}

fn showing(evidence: Vec<u8>) -> Arc<Config> {
    let policy = Policy::same_as(SimPlatform::new(clock()).report());
    let verifier = Verifier { trust: Trust::Simulated, policy };
    let config = Config::new(Role::Worker(1), Arc::new(Thief(evidence)), verifier, clock);
    Arc::new(config.expect("config"))
}

/// The strangers at one listener.
struct Crowd {
    address: SocketAddr,
    /// Who keep their connections: silent ones, some after half a handshake, and those who drip.
    silent: Vec<TcpStream>,
    dripping: Vec<TcpStream>,
    /// Who show evidence.
    thieves: [Net; 2],
    /// The first words of a genuine handshake.
    hello: Vec<u8>,
}

impl Crowd {
    fn at(address: SocketAddr) -> Self {
        let stolen = SimPlatform::new(clock()).quote(&[7; 64]).expect("a quote");
        // As long as a message of a handshake may be.
        let configs = [stolen, vec![7; 60_000]].map(showing);
        let mut hello = Vec::new();
        let session = Session::client(Arc::clone(&configs[0]), "ps0", Duration::ZERO);
        session.expect("a client").output(&mut hello).expect("memory");
        let thieves = configs.map(|config| Net::new(config).expect("a network"));
        Self { address, silent: Vec::new(), dripping: Vec::new(), thieves, hello }
    }

    /// One of each kind comes; that a listener does not take it in is as good.
    fn come(&mut self) {
        let connect = || TcpStream::connect(self.address).ok();
        self.silent.extend(connect());
        self.dripping.extend(connect());
        if let Some(mut half) = connect() {
            let _ = half.write_all(&self.hello);
            self.silent.push(half);
        }
        if let Some(mut garbage) = connect() {
            let _ = garbage.write_all(&[9; 3000]);
            let _ = garbage.set_read_timeout(Some(Duration::from_millis(1)));
            let mut told = [0; 64];
            let len = garbage.read(&mut told).unwrap_or(0);
            assert!(
                len < 16 || told.starts_with(b"HTTP"),
                "who is no client of TLS is told no more"
            );
        }
        for thief in &mut self.thieves {
            let _ = thief.connect(&self.address.to_string());
        }
        for kept in [&mut self.silent, &mut self.dripping] {
            kept.drain(..kept.len().saturating_sub(KEPT_MAX));
        }
    }

    /// Those who came go on.
    fn go_on(&mut self) {
        for stream in &mut self.dripping {
            let _ = stream.write(&[22]);
        }
        for thief in &mut self.thieves {
            let _ = thief.poll(Some(Duration::ZERO), &[0; 32]);
            for id in thief.ids() {
                thief.drive(id, |session| session.next_event().map(drop));
            }
            thief.take_ended();
        }
    }
}

/// Strangers until they are told to end: `each` of every kind, and then those that are there.
fn flood(address: SocketAddr, each: usize, has_ended: &AtomicBool, came: &AtomicUsize) {
    let (mut crowd, mut count, start) = (Crowd::at(address), 0, Instant::now());
    while !has_ended.load(Ordering::Relaxed) && start.elapsed() < 3 * PATIENCE {
        let coming = IN_WAVE.min(each - count);
        for _ in 0..coming {
            crowd.come();
            came.fetch_add(KINDS, Ordering::Relaxed);
        }
        count += coming;
        crowd.go_on();
        thread::sleep(WAVE);
    }
}

/// Ends the strangers, whatever ends the test.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The most memory that a process ever had, in KiB.
fn peak(process: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).expect("a process");
    // Of one that has ended there is no memory to tell of.
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().trim_end_matches(" kB").parse().expect("a number"))
}

/// Whether the process behind a port of metrics lives, as a kubelet asks.
fn is_healthy(address: SocketAddr) -> bool {
    let mut stream = TcpStream::connect(address).expect("connect");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n").expect("a request");
    let mut answer = String::new();
    // Whoever has not read all of a request resets the connection behind the answer.
    let _ = stream.read_to_string(&mut answer);
    answer.starts_with("HTTP/1.1 200 ")
}

/// What came of a job.
struct Outcome {
    /// From its first round to its last.
    seconds: f64,
    hash: String,
    /// Strangers that came before its last round.
    strangers: usize,
    /// Peak memory of ps0 and of the secret service, in KiB.
    peaks: [u64; 2],
}

/// Runs a job with so many strangers of each kind at ps0, at a secret service and at a worker's metrics. The strangers
/// come first: everybody else has to get in past them.
fn run(dir: &Dir, model: &str, steps: &'static str, each: usize) -> Outcome {
    let service = Serving::start(dir, r#"{"app": {"secret": "word"}}"#);
    service.has("app", "word");
    let cast = Cast::new(dir, model);
    let options = [("--json", ""), ("--steps", steps), ("--model", "resnet18")];
    let ps0 = Process::start(&cast.words("ps0", &options), "info");
    let listens = ps0.wait_for("{\"address\"");
    assert!(listens.contains("address"), "{listens}");
    let at = |text: &str| text.parse::<SocketAddr>().expect("an address");
    let (server, metrics) = (cast.server().replace("localhost", "127.0.0.1"), free_port());
    let metrics_at = at(&format!("127.0.0.1:{metrics}"));
    let listeners = [at(&server), at(&service.address), metrics_at];
    let (has_ended, came) = (AtomicBool::new(false), AtomicUsize::new(0));
    let start = Instant::now();
    let mut outcome = Outcome { seconds: 0.0, hash: String::new(), strangers: 0, peaks: [0; 2] };
    thread::scope(|scope| {
        let _ends = Ends(&has_ended);
        for address in listeners.into_iter().filter(|_| each > 0) {
            let (has_ended, came) = (&has_ended, &came);
            scope.spawn(move || flood(address, each, has_ended, came));
        }
        while came.load(Ordering::Relaxed) < each * KINDS {
            assert!(start.elapsed() < PATIENCE, "strangers do not come");
            thread::sleep(WAVE);
        }
        let port = metrics.to_string();
        let slow = [("--pause-ms", "100"), ("--metrics", port.as_str())];
        let workers = [cast.start("worker0", &slow), cast.start("worker1", &slow[..1])];
        let mut times = Vec::new();
        while let Some(line) = ps0.next_line() {
            match Event::parse(&line).expect(&line) {
                (time, Event::Round { step, .. }) => {
                    times.push(time);
                    if step == 2 {
                        // Who attests is served, and who asks for health hears of it.
                        service.has("app", "word");
                        assert!(is_healthy(metrics_at));
                    }
                    for (most, process) in outcome.peaks.iter_mut().zip([ps0.id(), service.id()]) {
                        *most = peak(process).unwrap_or(*most);
                    }
                    outcome.strangers = came.load(Ordering::Relaxed);
                }
                (_, Event::Parameters { sha256, .. }) => outcome.hash = sha256,
                (_, Event::Left { worker, why, .. }) => panic!("{worker} left: {why}"),
                _ => {}
            }
        }
        for worker in workers {
            let (code, log) = worker.end();
            assert!(code == 0, "{log}");
        }
        let ends = times.last().zip(times.first());
        outcome.seconds = ends.map_or(0.0, |(last, first)| last - first);
    });
    check_logs(ps0, service, each, start);
    outcome
}

/// The logs of ps0 and of the service name strangers, and are not filled by them.
fn check_logs(ps0: Process, service: Serving, each: usize, start: Instant) {
    let (code, log) = ps0.end();
    assert_eq!(code, 0, "{log}");
    let (served, audit) = service.end();
    let may_be = 20 + start.elapsed().as_secs() as usize / 10 + 1;
    let unverified = log.matches("not verified: ").count();
    let refused = audit.matches("\"event\":\"refused\"").count();
    assert!(unverified <= may_be && refused <= may_be, "{unverified}, {refused}: {log}{audit}");
    if each > 0 {
        for text in [&log, &audit] {
            assert!(text.contains("bound to another key"), "thieves: {text}");
        }
        assert!(served.contains("gave way to others") || each < 64, "{served}");
    }
}

#[test]
fn a_job_with_strangers_at_every_listener_ends_as_without_them() {
    let dir = Dir::new("flood");
    let calm = run(&dir, "calm", "8", 0);
    let flooded = run(&dir, "flooded", "8", 80);
    assert_eq!(flooded.hash, calm.hash);
    assert!(flooded.strangers >= 3 * 80 * KINDS / 2, "{} came", flooded.strangers);
    for (flooded, calm) in flooded.peaks.iter().zip(calm.peaks) {
        assert!(*flooded <= calm + MORE_KIB, "{flooded} KiB, without strangers {calm}");
    }
}

/// Not a test: figures, in turns, of 1,000 strangers of each kind at each listener.
#[test]
#[ignore = "figures, which take minutes"]
fn figures() {
    let mut pairs = Vec::new();
    for turn in 0..3 {
        let [calm, flooded] = [("calm", 0), ("flooded", 1000)].map(|(name, each)| {
            // A place of its own: an audit log goes on, and is checked for what one job's time allows.
            let dir = Dir::new(&format!("{name}{turn}"));
            let outcome = run(&dir, "model", "120", each);
            let Outcome { seconds, strangers, peaks: [ps0, service], .. } = outcome;
            println!(
                "{name}: {seconds:.2} s, {strangers} strangers, peak of ps0 {} MiB, of the service {} MiB",
                ps0 >> 10,
                service >> 10
            );
            seconds
        });
        pairs.push(flooded / calm);
    }
    pairs.sort_by(f64::total_cmp);
    println!("with strangers: {:.3} times as long (median of {})", pairs[1], pairs.len());
}
