//! How long an honest peer takes to open a session while strangers come in numbers, against without them, in turns.
//!
//! `cargo bench -p protocol --bench flood`. All run in one process on this machine's processors: what strangers make
//! the server compute is in the figures, and so is what they compute themselves.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use protocol::{
    Attester, Config, LinkId, Net, Policy, Role, Session, SimPlatform, Trust, Verifier,
};

/// As in the program.
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

/// Openings in a turn, and pairs of turns.
const OPENINGS: usize = 40;
const PAIRS: usize = 9;
/// Connections that strangers keep: more than there are places for one address.
const KEPT: usize = 200;
/// Pause between two waves of strangers, one of each kind.
const WAVE: Duration = Duration::from_millis(5);
const JOB: [u8; 32] = [1; 32];
/// Longest wait for an opening; long before that something is wrong.
const PATIENCE: Duration = Duration::from_secs(60);

fn clock() -> u64 {
    1_800_000_000
}

/// Shows a quote that somebody else had made.
struct Thief(Vec<u8>);

impl Attester for Thief {
    fn quote(&self, _: &[u8; 64]) -> io::Result<Vec<u8>> {
        Ok(self.0.clone())
    }

    fn name(&self) -> &'static str {
        "thief"
    }
}

fn config(role: Role, attester: Option<Arc<dyn Attester>>) -> Arc<Config> {
    let platform = SimPlatform::new(clock());
    let policy = Policy::same_as(platform.report());
    let verifier = Verifier { trust: Trust::Simulated, policy };
    let attester = attester.unwrap_or_else(|| Arc::new(platform));
    Arc::new(Config::new(role, attester, verifier, clock).expect("config"))
}

/// Serves until it is told to end.
fn serve(mut net: Net, has_ended: &AtomicBool) {
    while !has_ended.load(Ordering::Relaxed) {
        net.poll(Some(Duration::from_millis(20)), &JOB).expect("poll");
        drive_all(&mut net);
    }
}

fn drive_all(net: &mut Net) {
    for id in net.ids() {
        net.drive(id, |session| {
            while session.next_event()?.is_some() {}
            Ok(())
        });
    }
    net.take_ended();
}

/// Strangers of every kind, while they are wanted.
fn flood(to: SocketAddr, is_on: &AtomicBool, has_ended: &AtomicBool, came: &AtomicUsize) {
    let stolen = SimPlatform::new(clock()).quote(&[7; 64]).expect("a quote");
    let thieving = config(Role::Worker(1), Some(Arc::new(Thief(stolen))));
    let mut hello = Vec::new();
    let session = Session::client(Arc::clone(&thieving), "ps0", Duration::ZERO);
    session.expect("a client").output(&mut hello).expect("memory");
    let (mut thief, mut kept) = (Net::new(Arc::clone(&thieving)).expect("network"), Vec::new());
    while !has_ended.load(Ordering::Relaxed) {
        if !is_on.load(Ordering::Relaxed) {
            kept.clear();
            thief = Net::new(Arc::clone(&thieving)).expect("network");
            thread::sleep(Duration::from_millis(5));
            continue;
        }
        for bytes in [&[][..], &[22], &[9; 3000], &hello] {
            if let Ok(mut stream) = TcpStream::connect(to) {
                let _ = stream.write_all(bytes);
                kept.push(stream);
            }
        }
        kept.drain(..kept.len().saturating_sub(KEPT));
        let _ = thief.connect(&to.to_string());
        thief.poll(Some(Duration::ZERO), &JOB).expect("poll");
        drive_all(&mut thief);
        came.fetch_add(5, Ordering::Relaxed);
        thread::sleep(WAVE);
    }
}

/// Seconds of an opening, from the first packet to both sides verified. Who comes from the strangers' own address may
/// give way to them, and comes again at once: `tries` counts that.
fn opening(net: &mut Net, to: &str, tries: &mut usize) -> f64 {
    let start = Instant::now();
    loop {
        *tries += 1;
        let id = net.connect(to).expect("connect");
        if is_opened(net, id) {
            let seconds = start.elapsed().as_secs_f64();
            net.drive(id, |session| Err(session.close(None)));
            net.take_ended();
            return seconds;
        }
        assert!(start.elapsed() < PATIENCE, "an honest peer is kept out");
    }
}

/// Whether a connection comes to be open before it ends.
fn is_opened(net: &mut Net, id: LinkId) -> bool {
    loop {
        net.poll(Some(Duration::from_secs(10)), &JOB).expect("poll");
        net.drive(id, |session| {
            while session.next_event()?.is_some() {}
            Ok(())
        });
        if net.session(id).is_some_and(|session| session.is_open()) {
            return true;
        }
        if !net.take_ended().is_empty() {
            return false;
        }
    }
}

/// Ends the other threads, whatever ends the measuring.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Median and ninth decile, in milliseconds.
fn shown(times: &mut [f64]) -> [f64; 2] {
    times.sort_by(f64::total_cmp);
    [times.len() / 2, times.len() * 9 / 10].map(|at| 1e3 * times[at])
}

fn main() {
    let mut server = Net::new(config(Role::ParameterServer(0), None)).expect("network");
    let address = server.listen("127.0.0.1:0".parse().expect("an address")).expect("listen");
    let mut honest = Net::new(config(Role::Worker(0), None)).expect("network");
    let (is_on, has_ended) = (AtomicBool::new(false), AtomicBool::new(false));
    let came = AtomicUsize::new(0);
    let (mut times, mut ratios) = ([Vec::new(), Vec::new()], Vec::new());
    let (mut flooded_for, mut tries) = (0.0, [0; 2]);
    thread::scope(|scope| {
        let _ends = Ends(&has_ended);
        scope.spawn(|| serve(server, &has_ended));
        scope.spawn(|| flood(address, &is_on, &has_ended, &came));
        let to = address.to_string();
        for _ in 0..PAIRS {
            let mut medians = [0.0; 2];
            for (turn, all) in times.iter_mut().enumerate() {
                is_on.store(turn == 1, Ordering::Relaxed);
                // Until the others have come, or gone.
                thread::sleep(Duration::from_millis(500));
                let start = Instant::now();
                let mut found: Vec<f64> =
                    (0..OPENINGS).map(|_| opening(&mut honest, &to, &mut tries[turn])).collect();
                flooded_for += if turn == 1 { start.elapsed().as_secs_f64() + 0.5 } else { 0.0 };
                [medians[turn], _] = shown(&mut found);
                all.extend(found);
            }
            ratios.push(medians[1] / medians[0]);
        }
    });
    let rate = came.load(Ordering::Relaxed) as f64 / flooded_for;
    ratios.sort_by(f64::total_cmp);
    let [calm, flooded] = times.each_mut().map(|times| shown(times));
    println!("| an honest opening over loopback | median | ninth decile |\n|---|---|---|");
    println!("| without strangers | {:.2} ms | {:.2} ms |", calm[0], calm[1]);
    println!("| {rate:.0} strangers a second | {:.2} ms | {:.2} ms |", flooded[0], flooded[1]);
    println!(
        "\ntries of {} openings: {} without strangers, {} with",
        PAIRS * OPENINGS,
        tries[0],
        tries[1]
    );
    let (least, most) = (ratios[0], ratios[PAIRS - 1]);
    println!(
        "with strangers: {:.2} times as long, median of {PAIRS} pairs ({least:.2} to {most:.2})",
        ratios[PAIRS / 2]
    );
}
