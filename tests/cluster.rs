//! Support: a parameter server and workers in memory, on virtual time, over a network that delays,
//! splits, drops and disconnects as a seed says.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hfl::job::receipt::Receipt;
use hfl::job::rng::Stream;
use hfl::job::state::{Member, State};
use hfl::job::{Job, Wire};
use hfl::model::gradients::Bucket;
use hfl::model::params::Layout;
use hfl::training::cells::Cells;
use hfl::training::contradiction::Kind;
use hfl::training::contribution::{Contribution, Tail};
use hfl::training::note::Note;
use hfl::training::rounds::RoundLog;
use hfl::training::server::ParameterServer;
use hfl::training::worker::{Work, Worker};
use kernels::{Isa, Pool};
use protocol::{
    Attester, Config, Link, Policy, Role, Roster, Session, SimPlatform, Trust, Verifier,
};

use crate::ahead::Ahead;
use crate::hostile::{End, Faults};
use crate::participants::{computed, job, layout, samples, start, table};
use crate::socket::Socket;
use crate::wire::Connection;

pub(crate) const WORKERS: u16 = 3;
pub(crate) const STEPS: u64 = 4;
/// Values in a chunk.
pub(crate) const CELL: usize = 64;
/// Virtual milliseconds after which a cluster that is not done has hung.
const TIME_MAX_MS: u64 = 3_000_000;
const CHECKPOINT_EVERY: u64 = 2;
/// Most bytes that a socket takes before it is full; a chunk has some 300.
const ROOM_MAX: u64 = 6000;

struct Node {
    worker: Worker,
    params: Vec<f32>,
    gradients: Vec<f32>,
    contribution: Option<Contribution>,
    ahead: Ahead,
    link: Option<usize>,
    /// When to connect again, or to come back from the dead.
    connect_at_ms: u64,
    /// The step that it computes, and until when.
    computing: Option<(u64, u64)>,
    finished: bool,
}

/// A whole job in one process.
pub(crate) struct Cluster {
    now_ms: u64,
    random: Stream,
    draws: u64,
    seed: u64,
    faults: Faults,
    job: Job,
    layout: Layout,
    server: ParameterServer,
    server_up_at_ms: u64,
    saved: State,
    /// A snapshot that is written while the server goes on, and when that is done.
    saving: Option<(State, u64)>,
    roster: Roster,
    nodes: Vec<Node>,
    wires: BTreeMap<usize, Connection>,
    next_wire: usize,
    evaluations: BTreeMap<u64, [u64; 2]>,
    deaths: u32,
    broken: u32,
    silent: u32,
    computed: u64,
    rounds: RoundLog,
    notes: Vec<String>,
    contradictions: Vec<Kind>,
    /// Since when the server waits for the round at hand.
    waits_since_ms: u64,
}

fn clock() -> u64 {
    1_800_000_000
}

/// One configuration a role: keys and quotes are made once, sessions are new each time.
fn config(role: Role) -> Arc<Config> {
    static CONFIGS: OnceLock<Vec<Arc<Config>>> = OnceLock::new();
    let configs = CONFIGS.get_or_init(|| {
        let roles = std::iter::once(Role::ParameterServer(0)).chain((0..WORKERS).map(Role::Worker));
        let platform = Arc::new(SimPlatform::new(clock()));
        let policy = Policy::same_as(platform.report());
        let verifier = Verifier { trust: Trust::Simulated, policy };
        let make = |role| {
            let attester = Arc::clone(&platform) as Arc<dyn Attester>;
            Arc::new(Config::new(role, attester, verifier.clone(), clock).expect("config"))
        };
        roles.map(make).collect()
    });
    let is_role = |config: &&Arc<Config>| config.role == role;
    Arc::clone(configs.iter().find(is_role).expect("a role of this cluster"))
}

impl Cluster {
    pub(crate) fn new(seed: u64, faults: Faults) -> Self {
        Self::of(job(), seed, faults)
    }

    pub(crate) fn of(job: Job, seed: u64, faults: Faults) -> Self {
        let layout = layout();
        let saved = start(&job, &layout);
        let node = |index| Node {
            worker: Worker::new(index),
            params: Vec::new(),
            gradients: Vec::new(),
            contribution: None,
            ahead: Ahead::default(),
            link: None,
            connect_at_ms: 0,
            computing: None,
            finished: false,
        };
        Self {
            now_ms: 0,
            random: Stream::new(seed, "network"),
            draws: 0,
            seed,
            faults,
            server: server(&job, &layout, &saved),
            server_up_at_ms: 0,
            job,
            layout,
            saved,
            saving: None,
            roster: Roster::default(),
            nodes: (0..WORKERS).map(node).collect(),
            wires: BTreeMap::new(),
            next_wire: 1,
            evaluations: BTreeMap::new(),
            deaths: 0,
            broken: 0,
            silent: 0,
            computed: 0,
            rounds: RoundLog::default(),
            notes: Vec::new(),
            contradictions: Vec::new(),
            waits_since_ms: 0,
        }
    }

    /// Runs until every worker is done; panics when that takes too long.
    pub(crate) fn run(mut self) -> End {
        while !self.nodes.iter().all(|node| node.finished) {
            self.now_ms += 1;
            assert!(self.now_ms < TIME_MAX_MS, "seed {}: it hangs, {}", self.seed, self.standing());
            self.strike();
            self.connect();
            self.move_bytes();
            self.work();
        }
        let State { params, average, .. } = self.server.state();
        let params = params.iter().chain(average.iter().flat_map(|all| &**all));
        let params = params.map(|p| p.to_bits()).collect();
        let (deaths, broken, computed) = (self.deaths, self.broken, self.computed);
        let silent = self.silent;
        let State { step, found, .. } = *self.server.state();
        let (connections, evaluations) = (self.next_wire - 1, self.evaluations);
        let (rounds, notes, contradictions) = (self.rounds, self.notes, self.contradictions);
        let sent = self.server.cells_sent();
        let ahead = [0, 1].map(|of| self.nodes.iter().map(|node| node.ahead.counts[of]).sum());
        End {
            params,
            step,
            evaluations,
            found,
            deaths,
            broken,
            silent,
            connections,
            computed,
            rounds,
            notes,
            contradictions,
            sent,
            ahead,
        }
    }

    /// Where everybody stands, for who looks for what a hanging cluster waits for.
    fn standing(&self) -> String {
        let nodes = self.nodes.iter().map(|node| {
            let is_left = node.contribution.as_ref().is_some_and(Contribution::is_left);
            let (link, finished, waits) = (node.link, node.finished, node.worker.waits_for());
            format!("link {link:?}, finished {finished}, sends {is_left}, receives {waits:?}")
        });
        let nodes: Vec<String> = nodes.collect();
        let (step, missing) = (self.server.state().step, self.server.missing());
        let evaluates = self.server.is_evaluating();
        let found = &self.contradictions;
        let (all, server) = (nodes.join("; "), format!("step {step}, evaluates {evaluates}"));
        format!("{server}, without {missing:?}, contradictions {found:?}; {all}")
    }

    /// A snapshot that is complete takes the place of the one before; says whether one was.
    fn finish_saving(&mut self) -> bool {
        let done = self.saving.take_if(|(_, at)| *at <= self.now_ms);
        let is_done = done.is_some();
        if let Some((state, _)) = done {
            self.saved = own(&state);
        }
        is_done
    }

    fn draw(&mut self, below: u64) -> u64 {
        self.draws += 1;
        u64::from(self.random.words(self.draws)[0]) % below.max(1)
    }

    /// Starts the server again from a checkpoint that was changed.
    fn lie(&mut self) {
        let is_time = self.server.state().step == 3 && self.saved.step == 2;
        if let Some(lie) = self.faults.lie.take_if(|_| is_time) {
            lie(&mut self.saved);
            let roster = self.roster.clone();
            self.server = server(&self.job, &self.layout, &self.saved).with_roster(roster);
            self.wires.values_mut().for_each(|wire| wire.cut(1));
        }
    }

    /// Kills the server or a worker now and then.
    fn strike(&mut self) {
        self.lie();
        let chance = u64::from(self.faults.deaths_per_mille);
        // A draw each millisecond, of which a thousand seconds have a million.
        if chance == 0 || self.draw(1_000_000) >= chance {
            return;
        }
        let victim = self.draw(u64::from(WORKERS) + 1) as usize;
        self.deaths += 1;
        let back = self.now_ms + 1 + self.draw(200);
        if victim == usize::from(WORKERS) {
            // What was not written to its end is not there.
            self.saving = None;
            let roster = self.roster.clone();
            self.server = server(&self.job, &self.layout, &self.saved).with_roster(roster);
            // Its rounds since then are those of nobody.
            self.rounds.cut(self.saved.step);
            self.waits_since_ms = back;
            self.server_up_at_ms = back;
            self.wires.values_mut().for_each(|wire| wire.cut(1));
        } else if !self.nodes[victim].finished {
            let node = &mut self.nodes[victim];
            (node.worker, node.params, node.connect_at_ms) =
                (Worker::new(victim as u16), Vec::new(), back);
            (node.computing, node.contribution) = (None, None);
            node.ahead.give_up(&mut node.worker);
            if let Some(wire) = node.link.take().and_then(|link| self.wires.get_mut(&link)) {
                wire.cut(0);
            }
        }
    }

    /// Until when the server waits for everybody.
    fn deadline_ms(&self) -> Option<u64> {
        let quorum = self.job.quorum?;
        Some(self.waits_since_ms + 1000 * u64::from(quorum.seconds))
    }

    fn connect(&mut self) {
        for index in 0..self.nodes.len() {
            let node = &mut self.nodes[index];
            if node.finished || node.link.is_some() || self.now_ms < node.connect_at_ms {
                continue;
            }
            node.connect_at_ms = self.now_ms + 20;
            if self.now_ms < self.server_up_at_ms {
                continue;
            }
            let room = [(); 2].map(|()| 1 + self.draw(ROOM_MAX) as usize);
            let now = Duration::from_millis(self.now_ms);
            let client = Session::client(config(Role::Worker(index as u16)), "ps0", now);
            let server = Session::server(config(Role::ParameterServer(0)), self.job.digest(), now);
            let sessions = [client.expect("client"), server.expect("server")];
            let wire = Connection::new(room, sessions, index);
            self.nodes[index].link = Some(self.next_wire);
            self.wires.insert(self.next_wire, wire);
            self.next_wire += 1;
        }
    }

    /// Carries bytes, in pieces, and tells each end of its edges: once.
    fn move_bytes(&mut self) {
        let ids: Vec<usize> = self.wires.keys().copied().collect();
        for id in ids {
            let draws = [(); 5].map(|()| self.draw(1 << 30));
            let (faults, now) = (self.faults, self.now_ms);
            let Some(wire) = self.wires.get_mut(&id) else { continue };
            let is_busy = wire.client.socket_mut().is_busy();
            if draws[0] % 1000 < u64::from(faults.broken_per_mille) && is_busy {
                wire.cut(0);
                self.broken += 1;
            }
            if draws[0] / 1000 % 1000 < u64::from(faults.silent_per_mille) && is_busy {
                self.silent += u32::from(wire.fall_silent(now));
            }
            let delays = [draws[1], draws[2]].map(|draw| 1 + draw % faults.delay_ms_max);
            let pieces = [draws[3], draws[4]].map(|draw| 1 + draw as usize % 5000);
            wire.carry(now, delays, pieces);
        }
    }

    /// Lets server and workers act, each only if something would have ended its wait.
    fn work(&mut self) {
        let now = Duration::from_millis(self.now_ms);
        let mut input = [0; 700];
        for wire in self.wires.values_mut() {
            let due = |link: &Link<Socket>| {
                link.wants_read()
                    || link.wants_turn()
                    || link.session().timeout().is_some_and(|at| at <= now)
            };
            wire.edges[0] |= due(&wire.client);
            wire.edges[1] |= due(&wire.server);
        }
        let changed = self.finish_saving()
            || self.deadline_ms() == Some(self.now_ms)
            || self.wires.values().any(|wire| wire.edges[1] || wire.is_over(0) && wire.is_over(1));
        if self.now_ms >= self.server_up_at_ms && changed {
            for wire in self.wires.values_mut() {
                wire.edges[1] = false;
                wire.server.read(&mut input);
                wire.server.handle_timeout(now);
            }
            self.serve();
        }
        for index in 0..self.nodes.len() {
            let Some(wire) = self.nodes[index].link.and_then(|link| self.wires.get_mut(&link))
            else {
                continue;
            };
            let node = &mut self.nodes[index];
            if let Some((step, until)) = node.computing {
                if self.now_ms >= until {
                    node.computing = None;
                    self.push(index, step);
                    self.compute(index);
                }
                continue;
            }
            if std::mem::take(&mut wire.edges[0]) {
                wire.client.read(&mut input);
                wire.client.handle_timeout(now);
                self.compute(index);
            }
        }
        self.forget();
    }

    /// Forgets connections that are over, at each end that knows.
    fn forget(&mut self) {
        let ids: Vec<usize> = self.wires.keys().copied().collect();
        for id in ids {
            let Some(wire) = self.wires.get(&id) else { continue };
            let [client, server] = [0, 1].map(|end| wire.is_over(end));
            let node = &mut self.nodes[wire.worker];
            if client && node.link == Some(id) {
                node.link = None;
                node.worker.disconnected();
                node.ahead.give_up(&mut node.worker);
                node.contribution.iter_mut().for_each(Contribution::hold);
            }
            let mut is_event = server && self.server.left(id).is_some();
            if client && server {
                is_event |= self.wires.remove(&id).is_some();
            }
            // The end of a connection is an event for the server: others may go on by it.
            self.wires.values_mut().for_each(|wire| wire.edges[1] |= is_event);
        }
    }

    /// Until nothing changes by it, as ps0 does.
    fn pump(&mut self) {
        loop {
            let before = self.server.progress();
            for (id, wire) in self.wires.iter_mut().filter(|(_, wire)| !wire.is_over(1)) {
                wire.server.drive(|session| self.server.pump(*id, session));
            }
            if self.server.progress() == before {
                return;
            }
        }
    }

    fn serve(&mut self) {
        loop {
            let before = self.server.progress();
            self.pump();
            if self.server.has_news() {
                self.roster = self.server.roster().clone();
                self.server.roster_is_kept();
            }
            let is_over = self.deadline_ms().is_some_and(|at| at <= self.now_ms);
            if is_over && self.server.leave_out_late() {
                self.waits_since_ms = self.now_ms;
            }
            let said = |note| match note {
                Note::Said(text) => Some(text),
                _ => None,
            };
            self.notes.extend(self.server.take_notes().into_iter().filter_map(said));
            if let Some((found, _)) = self.server.settle_evaluation() {
                let before = self.evaluations.insert(found.step, found.total());
                // Where neither deaths nor delays change the result, it is found again.
                let is_same = before.is_none_or(|before| before == found.total());
                let may_differ = self.job.wire == Wire::Int8 || self.job.quorum.is_some();
                assert!(is_same || may_differ, "step {}", found.step);
                if self.server.state().is_finished() {
                    self.saved = own(self.server.state());
                }
            }
            if let Some(closed) = self.server.close_round().expect("finite") {
                let first = closed.step + 1 - closed.count;
                self.rounds.push(&closed);
                self.waits_since_ms = self.now_ms;
                let state = self.server.state();
                let before = first / CHECKPOINT_EVERY;
                if state.is_finished() {
                    self.saved = own(state);
                } else if state.step / CHECKPOINT_EVERY > before {
                    let state = state.clone();
                    let done = self.now_ms + self.draw(2 * self.faults.delay_ms_max);
                    self.saving = Some((state, done));
                }
            }
            if self.server.progress() == before {
                return;
            }
        }
    }

    fn compute(&mut self, index: usize) {
        loop {
            let node = &mut self.nodes[index];
            let Some(wire) = node.link.and_then(|link| self.wires.get_mut(&link)) else { return };
            if wire.client.is_over() || node.finished {
                return;
            }
            let mut work = Work::Wait;
            wire.client.drive(|session| {
                if work == Work::Wait {
                    if let Some(contribution) = &mut node.contribution {
                        let gradients = Tail { start: 0, gradients: &node.gradients };
                        node.worker.sent(contribution.send(session, gradients)?);
                    }
                    work = node.worker.pump(session, &mut node.params)?;
                }
                Ok(())
            });
            match node.ahead.settle(work, &mut node.worker, &node.params) {
                Work::Wait => {
                    if let Some(found) = node.worker.contradiction() {
                        self.contradictions.push(found.kind);
                        node.finished = true;
                    } else if index > 0 && !node.is_busy() {
                        node.ahead.go_on(&mut node.worker, &node.params, self.layout.trained);
                    }
                    return;
                }
                Work::Prepare(job) => self.prepare(index, &job),
                Work::Evaluate { step } => {
                    let mut table = Some(table(index, &node.params));
                    wire.client.drive(|session| {
                        let told = |table| node.worker.evaluated(session, step, table);
                        table.take().map_or(Ok(()), told)
                    });
                }
                Work::Compute { step, .. } | Work::Repeat { step } if node.is_whole(step) => {
                    node.contribution.iter_mut().for_each(Contribution::send_again);
                }
                Work::Skip { .. } => {
                    node.contribution.iter_mut().for_each(Contribution::forget);
                }
                Work::Repeat { step } | Work::Verified { step } => panic!("{step}: never begun"),
                Work::Compute { step, .. }
                    if index == 2 && self.faults.leaves_step == Some(step) =>
                {
                    node.finished = true;
                    wire.cut(0);
                }
                Work::Compute { step, .. }
                    if index == 1
                        && self.faults.late_ms > 0
                        && step.is_multiple_of(self.faults.late_every) =>
                {
                    node.computing = Some((step, self.now_ms + self.faults.late_ms));
                    return;
                }
                Work::Compute { step, .. } => {
                    self.push(index, step);
                    return self.compute(index);
                }
                Work::Finish { parameters, .. } => {
                    node.finished = true;
                    let last = self.server.state().receipt.as_ref().map(Receipt::head);
                    let step = self.server.state().step;
                    assert_eq!(node.worker.ledger().head(step), last, "it has the last receipt");
                    let own = hfl::model::params::hash(&self.server.state().params);
                    assert_eq!(parameters, own, "the server says which parameters are final");
                }
            }
        }
    }

    /// Makes room for a job and joins it.
    fn prepare(&mut self, index: usize, job: &Job) {
        let node = &mut self.nodes[index];
        let Some(wire) = node.link.and_then(|link| self.wires.get_mut(&link)) else { return };
        node.params = vec![0.0; self.layout.len];
        let isa = Isa::detect();
        let cells = Cells::of_gradients(job, &self.layout, CELL, isa);
        let trained = self.layout.trained;
        node.contribution.get_or_insert_with(|| Contribution::new(cells, trained));
        let cells = Cells::of_parameters(job, &self.layout, CELL, isa);
        let (samples, data) = (samples(index), Some([index as u8; 32]));
        let classes = (0..job.classes.len()).map(|class| if class == 1 { samples } else { 0 });
        let mut member = Some(Member { samples, batches: 2, data, classes: classes.collect() });
        wire.client.drive(|session| {
            member.take().map_or(Ok(()), |member| node.worker.join(session, member, cells))
        });
    }

    /// Computes a round and sends what comes of it in two parts, as a backward pass gives them.
    fn push(&mut self, index: usize, step: u64) {
        let node = &mut self.nodes[index];
        let Some(wire) = node.link.and_then(|link| self.wires.get_mut(&link)) else { return };
        let Some(contribution) = &mut node.contribution else { return };
        let count = self.job.round_len(step, self.job.steps.unwrap_or(STEPS));
        contribution.confirm(node.worker.contributed());
        contribution.begin(step, count);
        self.computed += count;
        let (samples, loss, mut values) =
            computed(&self.job, index, (step, count), (&mut node.params, self.layout.trained));
        if index == 2 && self.faults.bad_step == Some(step) {
            values[10] = f32::NAN;
        }
        node.gradients = values;
        for range in [100..node.gradients.len(), 0..100] {
            let start = range.start;
            let gradients = &node.gradients[start..];
            contribution.take(samples, &Bucket { loss, range, params: &mut [], gradients });
            wire.client.drive(|session| {
                node.worker.sent(contribution.send(session, Tail { start, gradients })?);
                Ok(())
            });
        }
    }
}

impl Node {
    /// Whether something of the step that was computed last has to be sent before the next is begun.
    fn is_busy(&self) -> bool {
        let is_whole = self.worker.waits_for().is_some_and(|step| self.is_whole(step));
        is_whole || self.contribution.as_ref().is_some_and(Contribution::is_left)
    }

    fn is_whole(&self, step: u64) -> bool {
        self.contribution.as_ref().is_some_and(|contribution| contribution.is_whole(step))
    }
}

fn server(job: &Job, layout: &Layout, state: &State) -> ParameterServer {
    let (pool, isa) = (Pool::new(1), Isa::detect());
    ParameterServer::new(job.clone(), layout.clone(), own(state), CELL, pool, isa)
}

/// A state with values of its own, as one that was written and read is.
fn own(state: &State) -> State {
    let [params, velocity] =
        [&state.params, &state.velocity].map(|values| Arc::new(values.to_vec()));
    let average = state.average.as_ref().map(|values| Arc::new(values.to_vec()));
    State { params, velocity, average, ..state.clone() }
}
