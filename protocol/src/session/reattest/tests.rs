//! Fresh evidence while a session is open: who has it stays, who has not leaves, and nobody waits for a quote.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::session::config::Config;
use crate::{Attester, Policy, Role, SimPlatform, Trust, Verifier};

const JOB: [u8; 32] = [9; 32];
const EVERY: Duration = Duration::from_secs(600);

fn clock() -> u64 {
    1_800_000_000
}

/// A platform whose TD runs something else once the switch is on.
struct Turning {
    before: SimPlatform,
    after: SimPlatform,
    has_turned: Arc<AtomicBool>,
}

impl Attester for Turning {
    fn quote(&self, report_data: &[u8; 64]) -> io::Result<Vec<u8>> {
        match self.has_turned.load(Ordering::SeqCst) {
            true => self.after.quote(report_data),
            false => self.before.quote(report_data),
        }
    }

    fn name(&self) -> &'static str {
        "turning"
    }
}

struct Pair {
    sides: [Session; 2],
    now: Duration,
    has_turned: Arc<AtomicBool>,
}

fn party(role: Role, has_turned: &Arc<AtomicBool>) -> Arc<Config> {
    let before = SimPlatform::new(clock());
    let policy = Policy::same_as(before.report());
    let after = SimPlatform::with_td(clock(), "evil", false);
    let platform = Turning { before, after, has_turned: Arc::clone(has_turned) };
    let verifier = Verifier { trust: Trust::Simulated, policy };
    let mut config = Config::new(role, Arc::new(platform), verifier, clock).expect("config");
    config.reattest = Some(EVERY);
    Arc::new(config)
}

impl Pair {
    /// A worker that turns, and its server.
    fn open() -> Self {
        let has_turned = Arc::new(AtomicBool::new(false));
        let worker = party(Role::Worker(0), &has_turned);
        let server = party(Role::ParameterServer(0), &Arc::default());
        let now = Duration::ZERO;
        let sides = [
            Session::client(worker, "ps0.example", now).expect("client"),
            Session::server(server, JOB, now).expect("server"),
        ];
        let mut pair = Self { sides, now, has_turned };
        pair.settle().expect("honest");
        assert_eq!(pair.sides.each_ref().map(Session::attested), [1, 1]);
        pair
    }

    /// Moves bytes until nothing moves.
    fn settle(&mut self) -> Result<(), CloseReason> {
        loop {
            let mut moved = false;
            for from in [0, 1] {
                let mut bytes = Vec::new();
                self.sides[from].output(&mut bytes).expect("memory");
                moved |= !bytes.is_empty();
                let to = &mut self.sides[1 - from];
                to.receive(&bytes)?;
                while to.next_event()?.is_some() {}
            }
            if !moved {
                return Ok(());
            }
        }
    }

    /// Lets time pass, in steps in which everybody looks at the clock.
    fn pass(&mut self, time: Duration) -> Result<(), CloseReason> {
        for _ in 0..20 {
            self.now += time / 20;
            for side in &mut self.sides {
                side.handle_timeout(self.now)?;
            }
            self.settle()?;
        }
        Ok(())
    }
}

#[test]
fn open_sessions_are_attested_anew_both_ways_and_at_times_that_differ() {
    let mut pair = Pair::open();
    pair.pass(EVERY / 2).expect("early");
    assert_eq!(pair.sides.each_ref().map(Session::attested), [1, 1], "not before it is time");
    (0..10).for_each(|_| pair.pass(EVERY).expect("honest"));
    for side in &pair.sides {
        assert!((8..=14).contains(&side.attested()), "{}", side.attested());
    }
    let times: Vec<Duration> = (0..50).map(|_| jittered(EVERY).expect("random")).collect();
    assert!(times.iter().all(|time| (EVERY * 3 / 4..=EVERY * 5 / 4).contains(time)));
    assert!(times.iter().any(|time| *time != times[0]));
}

#[test]
fn who_runs_something_else_by_now_leaves_with_the_reason() {
    let mut pair = Pair::open();
    pair.has_turned.store(true, Ordering::SeqCst);
    let why = pair.pass(2 * EVERY).expect_err("another image");
    assert!(matches!(&why, CloseReason::Rejected(Rejection::Measurement(_))), "{why}");
    assert!(!pair.sides[1].is_open());
}

#[test]
fn who_speaks_again_without_fresh_evidence_leaves_and_who_is_silent_computes() {
    let mut pair = Pair::open();
    // It is asked, and looks at nothing.
    pair.sides[1].handle_timeout(pair.now).expect("open");
    pair.now += 2 * EVERY;
    pair.sides[1].handle_timeout(pair.now).expect("asked");
    pair.now += 50 * EVERY;
    pair.sides[1].handle_timeout(pair.now).expect("a long step");
    // It pushes, and does not answer.
    let [worker, server] = &mut pair.sides;
    let mut bytes = Vec::new();
    worker
        .send(&Message::Gradients { step: 0, samples: 1, loss: 0.0, fresh: false })
        .expect("open");
    worker.output(&mut bytes).expect("memory");
    server.receive(&bytes).expect("valid");
    while server.next_event().expect("valid").is_some() {}
    server.handle_timeout(pair.now).expect("it may still answer");
    let why = server.handle_timeout(pair.now + EVERY).expect_err("late");
    assert!(matches!(why, CloseReason::Unattested), "{why}");
}

#[test]
fn fresh_evidence_is_of_this_question_and_only_where_it_was_asked() {
    let mut pair = Pair::open();
    let first = pair.sides[1].admission().expect("a client").quote.clone();
    let [worker, server] = &mut pair.sides;
    let shown = Message::Attested { quote: first, collateral: Vec::new() };
    let say = |worker: &mut Session, server: &mut Session| {
        let mut bytes = Vec::new();
        worker.send(&shown).expect("open");
        worker.output(&mut bytes).expect("memory");
        server.receive(&bytes).expect("TLS");
        server.next_event().map(drop)
    };
    let why = say(worker, server).expect_err("nobody asked");
    assert!(matches!(why, CloseReason::NotAllowed(_)), "{why}");

    let mut pair = Pair::open();
    let quote = pair.sides[1].admission().expect("a client").quote.clone();
    let [worker, server] = &mut pair.sides;
    server.handle_timeout(Duration::ZERO).expect("open");
    server.handle_timeout(2 * EVERY).expect("asked");
    let mut bytes = Vec::new();
    worker.send(&Message::Attested { quote, collateral: Vec::new() }).expect("open");
    worker.output(&mut bytes).expect("memory");
    server.receive(&bytes).expect("TLS");
    let why = server.next_event().map(drop).expect_err("the quote of before");
    assert!(matches!(why, CloseReason::Rejected(Rejection::ReportData)), "{why}");
}

#[test]
fn a_quote_that_takes_its_time_holds_up_nothing_else() {
    let mut pair = Pair::open();
    let [worker, server] = &mut pair.sides;
    worker.defer_quotes();
    server.handle_timeout(Duration::ZERO).expect("open");
    server.handle_timeout(2 * EVERY).expect("asked");
    let mut bytes = Vec::new();
    server.output(&mut bytes).expect("memory");
    worker.receive(&bytes).expect("TLS");
    assert!(worker.next_event().expect("a question").is_none());
    let question = worker.take_question().expect("a quote is to be made elsewhere");
    assert!(question.is_own() && worker.take_question().is_none());
    // Meanwhile it talks and listens.
    for step in 0..3 {
        let said = Message::Gradients { step, samples: 1, loss: 0.0, fresh: false };
        worker.send(&said).expect("open");
        let mut bytes = Vec::new();
        worker.output(&mut bytes).expect("memory");
        server.receive(&bytes).expect("TLS");
        let heard = server.next_event().expect("valid");
        assert!(matches!(heard, Some(crate::Event::Message(heard)) if heard == said));
    }
    worker.answer(&question.ask());
    assert!(worker.next_event().expect("valid").is_none());
    pair.settle().expect("honest");
    assert_eq!(pair.sides[1].attested(), 2);
}
