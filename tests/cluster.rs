//! Support: a parameter server and workers in memory, on virtual time, over a network that delays,
//! splits, drops and disconnects as a seed says.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hfl::job::classes::ClassNames;
use hfl::job::evaluation::Evaluation;
use hfl::job::rng::Stream;
use hfl::job::schedule::Schedule;
use hfl::job::shape::Shape;
use hfl::job::state::{Found, Member, State};
use hfl::job::{Algorithm, Arch, Augment, Job, Normalisation, Order, Precision, Stem, Weighting};
use hfl::model::gradients::Part;
use hfl::model::params::{Kind, Layout};
use hfl::training::server::ParameterServer;
use hfl::training::worker::{Push, Work, Worker};
use kernels::{Isa, Pool};
use protocol::{
    Attester, Config, Link, Policy, Role, Roster, Session, SimPlatform, Trust, Verifier,
};

use crate::socket::{self, Socket};

pub(crate) const WORKERS: u16 = 3;
pub(crate) const STEPS: u64 = 4;
/// Values in a chunk.
const CELL: usize = 64;
/// Virtual milliseconds after which a cluster that is not done has hung.
const TIME_MAX_MS: u64 = 600_000;
const CHECKPOINT_EVERY: u64 = 2;
/// Most bytes that a socket takes before it is full; a chunk has some 300.
const ROOM_MAX: u64 = 6000;

/// How hostile the network and the machines are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Faults {
    /// Longest delay of a packet.
    pub(crate) delay_ms_max: u64,
    /// In a thousand packets, how many connections break.
    pub(crate) broken_per_mille: u32,
    /// In a thousand virtual seconds, how often a worker or the server dies.
    pub(crate) deaths_per_mille: u32,
    /// How long worker 1 computes, and looks at nothing else meanwhile.
    pub(crate) late_ms: u64,
}

pub(crate) const QUIET: Faults =
    Faults { delay_ms_max: 1, broken_per_mille: 0, deaths_per_mille: 0, late_ms: 0 };

/// What a run ends with.
#[derive(Debug, PartialEq)]
pub(crate) struct End {
    pub(crate) params: Vec<u32>,
    /// Updates that were done.
    pub(crate) step: u64,
    /// Right and all images of each evaluation, by its step.
    pub(crate) evaluations: BTreeMap<u64, [u64; 2]>,
    pub(crate) found: Found,
    pub(crate) deaths: u32,
    pub(crate) broken: u32,
    /// Connections that were made.
    pub(crate) connections: usize,
    /// Steps that workers computed.
    pub(crate) computed: u64,
}

struct Node {
    worker: Worker,
    params: Vec<f32>,
    link: Option<usize>,
    /// When to connect again, or to come back from the dead.
    connect_at_ms: u64,
    /// The step that it computes, and until when.
    computing: Option<(u64, u64)>,
    finished: bool,
}

/// A connection: a link at each end, and what happened to them that nobody looked at yet.
struct Wire {
    client: Link<Socket>,
    server: Link<Socket>,
    worker: usize,
    /// Whether the client and the server have an edge that would end their wait.
    edges: [bool; 2],
    broken: bool,
}

/// A whole job in one process.
pub(crate) struct Cluster {
    now_ms: u64,
    random: Stream,
    draws: u64,
    faults: Faults,
    job: Job,
    layout: Layout,
    server: ParameterServer,
    server_up_at_ms: u64,
    saved: State,
    roster: Roster,
    nodes: Vec<Node>,
    wires: BTreeMap<usize, Wire>,
    next_wire: usize,
    evaluations: BTreeMap<u64, [u64; 2]>,
    deaths: u32,
    broken: u32,
    computed: u64,
}

fn layout() -> Layout {
    Layout::new([
        ("a.weight".into(), vec![150], Kind::Weight),
        ("a.bias".into(), vec![30], Kind::Affine),
        ("a.running_mean".into(), vec![37], Kind::Statistic),
    ])
}

pub(crate) fn job() -> Job {
    Job {
        stem: Stem::Imagenet,
        precision: Precision::Fp32,
        conv: Algorithm::Direct,
        workers: WORKERS,
        batch_size: 8,
        epochs: 1,
        steps: Some(STEPS),
        schedule: Schedule::Cosine { rate: 0.1, warm_up: None },
        momentum: 0.9,
        weight_decay: 5e-4,
        seed: 1,
        augment: Augment::None,
        order: Order::Sequential,
        init: None,
        weighting: Weighting::Data,
        model: Arch::Resnet50,
        shape: Shape::CIFAR,
        classes: ClassNames::default(),
        normalisation: Normalisation::Cifar,
        evaluation: Evaluation::default(),
    }
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

/// Gradients as a pure function of parameters, worker and step, like a real model's.
fn gradients(worker: usize, step: u64, params: &[f32]) -> (u32, f32, Vec<f32>) {
    let stream = Stream::new(worker as u64, "gradient");
    let values =
        params.iter().enumerate().map(|(i, &p)| 0.3 * p + stream.normal(step << 20 | i as u64));
    (3 + worker as u32, 1.0 + worker as f32 / (1.0 + step as f32), values.collect())
}

/// What a worker finds on its test images, a pure function of the parameters too; the second has none.
fn table(worker: usize, params: &[f32]) -> Vec<u32> {
    let bits =
        params.iter().fold(worker as u64, |sum, p| sum.rotate_left(7) ^ u64::from(p.to_bits()));
    let stream = Stream::new(bits, "table");
    let counts = (0..100).map(|at| stream.words(at)[0] % 5);
    if worker == 1 { Vec::new() } else { counts.collect() }
}

impl Cluster {
    pub(crate) fn new(seed: u64, faults: Faults) -> Self {
        Self::of(job(), seed, faults)
    }

    pub(crate) fn of(job: Job, seed: u64, faults: Faults) -> Self {
        let layout = layout();
        let stream = Stream::new(7, "start");
        let params = (0..layout.len as u64).map(|i| stream.normal(i)).collect();
        let saved = State::new(params, layout.trained, WORKERS);
        let node = |_| Node {
            worker: Worker::new(CELL),
            params: Vec::new(),
            link: None,
            connect_at_ms: 0,
            computing: None,
            finished: false,
        };
        Self {
            now_ms: 0,
            random: Stream::new(seed, "network"),
            draws: 0,
            faults,
            server: server(&job, &layout, &saved),
            server_up_at_ms: 0,
            job,
            layout,
            saved,
            roster: Roster::default(),
            nodes: (0..WORKERS).map(node).collect(),
            wires: BTreeMap::new(),
            next_wire: 1,
            evaluations: BTreeMap::new(),
            deaths: 0,
            broken: 0,
            computed: 0,
        }
    }

    /// Runs until every worker is done; panics when that takes too long.
    pub(crate) fn run(mut self) -> End {
        while !self.nodes.iter().all(|node| node.finished) {
            self.now_ms += 1;
            assert!(
                self.now_ms < TIME_MAX_MS,
                "the cluster hangs at step {}",
                self.server.state().step
            );
            self.strike();
            self.connect();
            self.move_bytes();
            self.work();
        }
        let params = self.server.state().params.iter().map(|p| p.to_bits()).collect();
        let (deaths, broken, computed) = (self.deaths, self.broken, self.computed);
        let State { step, found, .. } = *self.server.state();
        let (connections, evaluations) = (self.next_wire - 1, self.evaluations);
        End { params, step, evaluations, found, deaths, broken, connections, computed }
    }

    fn draw(&mut self, below: u64) -> u64 {
        self.draws += 1;
        u64::from(self.random.words(self.draws)[0]) % below.max(1)
    }

    /// Kills the server or a worker now and then.
    fn strike(&mut self) {
        let chance = u64::from(self.faults.deaths_per_mille);
        // A draw each millisecond, of which a thousand seconds have a million.
        if chance == 0 || self.draw(1_000_000) >= chance {
            return;
        }
        let victim = self.draw(u64::from(WORKERS) + 1) as usize;
        self.deaths += 1;
        let back = self.now_ms + 1 + self.draw(200);
        if victim == usize::from(WORKERS) {
            let roster = self.roster.clone();
            self.server = server(&self.job, &self.layout, &self.saved).with_roster(roster);
            self.server_up_at_ms = back;
            self.wires.values_mut().for_each(|wire| wire.broken = true);
        } else if !self.nodes[victim].finished {
            let node = &mut self.nodes[victim];
            (node.worker, node.params, node.connect_at_ms) = (Worker::new(CELL), Vec::new(), back);
            node.computing = None;
            if let Some(wire) = node.link.take().and_then(|link| self.wires.get_mut(&link)) {
                wire.broken = true;
            }
        }
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
            let [near, far] = socket::pair(room);
            let wire = Wire {
                client: Link::new(near, client.expect("client")),
                server: Link::new(far, server.expect("server")),
                worker: index,
                // A new connection is an event for both.
                edges: [true; 2],
                broken: false,
            };
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
            let [client, server] =
                [&mut wire.client, &mut wire.server].map(|link| link.socket_mut().clone());
            if draws[0] % 1000 < u64::from(faults.broken_per_mille) && client.is_busy() {
                wire.broken = true;
                self.broken += 1;
            }
            for (from, to, end) in [(&client, &server, 0), (&server, &client, 1)] {
                let delay = 1 + draws[1 + end] % faults.delay_ms_max;
                let piece = 1 + draws[3 + end] as usize % 5000;
                let moved = from.carry(to, now, delay, piece);
                wire.edges[1 - end] |= moved.readable;
                wire.edges[end] |= moved.writable;
                let reader = if end == 0 { &mut wire.server } else { &mut wire.client };
                if moved.readable {
                    reader.set_readable();
                }
            }
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
        let changed = self.wires.values().any(|wire| wire.edges[1] || wire.is_over());
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

    /// Connections that are over for one end are so for the other.
    fn forget(&mut self) {
        let over: Vec<usize> =
            self.wires.iter().filter(|(_, wire)| wire.is_over()).map(|(id, _)| *id).collect();
        for id in over {
            let Some(wire) = self.wires.remove(&id) else { continue };
            self.server.left(id);
            let node = &mut self.nodes[wire.worker];
            if node.link == Some(id) {
                node.link = None;
                node.worker.disconnected();
            }
            // The end of a connection is an event for the server: others may go on by it.
            self.wires.values_mut().for_each(|wire| wire.edges[1] = true);
        }
    }

    fn serve(&mut self) {
        loop {
            let before = self.server.progress();
            for (id, wire) in &mut self.wires {
                wire.server.drive(|session| self.server.pump(*id, session));
            }
            if self.server.has_news() {
                self.roster = self.server.roster().clone();
                self.server.roster_is_kept();
            }
            if let Some((found, _)) = self.server.settle_evaluation() {
                let before = self.evaluations.insert(found.step, found.total());
                assert!(before.is_none_or(|before| before == found.total()), "step {}", found.step);
                if self.server.state().is_finished() {
                    self.saved = self.server.state().clone();
                }
            }
            if let Some(closed) = self.server.close_round().expect("finite")
                && ((closed.step + 1).is_multiple_of(CHECKPOINT_EVERY)
                    || self.server.state().is_finished())
            {
                self.saved = self.server.state().clone();
            }
            if self.server.progress() == before {
                return;
            }
        }
    }

    fn compute(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        let Some(wire) = node.link.and_then(|link| self.wires.get_mut(&link)) else { return };
        while !wire.client.is_over() && !node.finished {
            let mut work = Work::Wait;
            wire.client.drive(|session| {
                if work == Work::Wait {
                    work = node.worker.pump(session, &mut node.params)?;
                }
                Ok(())
            });
            match work {
                Work::Wait => return,
                Work::Prepare(_) => {
                    node.params = vec![0.0; self.layout.len];
                    let (samples, data) = (14 + index as u64, Some([index as u8; 32]));
                    let mut member = Some(Member { samples, batches: 2, data });
                    wire.client.drive(|session| {
                        member.take().map_or(Ok(()), |member| node.worker.join(session, member))
                    });
                }
                Work::Evaluate { step } => {
                    let mut table = Some(table(index, &node.params));
                    wire.client.drive(|session| {
                        let told = |table| node.worker.evaluated(session, step, table);
                        table.take().map_or(Ok(()), told)
                    });
                }
                Work::Compute { step, .. } if index == 1 && self.faults.late_ms > 0 => {
                    node.computing = Some((step, self.now_ms + self.faults.late_ms));
                    return;
                }
                Work::Compute { step, .. } => {
                    self.push(index, step);
                    return self.compute(index);
                }
                Work::Finish { parameters, .. } => {
                    node.finished = true;
                    let own = hfl::model::params::hash(&self.server.state().params);
                    assert_eq!(parameters, own, "the server says which parameters are final");
                }
            }
        }
    }

    /// Computes a step and sends its gradients in two parts, as a backward pass gives them.
    fn push(&mut self, index: usize, step: u64) {
        let node = &mut self.nodes[index];
        let Some(wire) = node.link.and_then(|link| self.wires.get_mut(&link)) else { return };
        self.computed += 1;
        let (samples, loss, values) = gradients(index, step, &node.params);
        let mut push = Push::new(&node.worker, step, values.len());
        for range in [100..values.len(), 0..100] {
            let gradients = &values[range.start..];
            let part = Part { loss, range, params: &mut [], gradients };
            wire.client.drive(|session| push.advance(session, samples, &part));
        }
    }
}

impl Wire {
    fn is_over(&self) -> bool {
        self.broken || self.client.is_over() || self.server.is_over()
    }
}

fn server(job: &Job, layout: &Layout, state: &State) -> ParameterServer {
    let exec = (Pool::new(1), Isa::detect());
    ParameterServer::new(job.clone(), layout.clone(), state.clone(), CELL, exec)
}
