//! The parameter server's side of a job as a pure value: admit workers, run rounds, update.
//!
//! [`ParameterServer::pump`] works through one session's events and says what is due; the caller moves
//! the bytes (over mio in `roles`, in memory in the tests) and calls [`ParameterServer::close_round`]
//! after each pass.

use std::collections::BTreeMap;

use kernels::{Isa, Pool, Sgd, momentum_sgd};
use protocol::{Ended, Event, Message, Refusal, Role, Roster, Session};

use crate::job::Job;
use crate::job::state::{Member, State};
use crate::model::params::{self, Kind, Layout};
use crate::training::round::{Added, Announced, Round, cell_range};

/// The server of one job.
pub struct ParameterServer {
    job: Job,
    layout: Layout,
    state: State,
    round: Round,
    cell: usize,
    links: BTreeMap<usize, Link>,
    progress: u64,
    roster: Roster,
    /// Entries of the roster that survive us: only these are told.
    kept: usize,
    exec: (Pool, Isa),
}

/// A verified connection.
struct Link {
    worker: u16,
    /// Entries of the roster that it was sent.
    told: usize,
    /// Next cell of the parameters to send.
    sending: Option<usize>,
    /// Joined, and thus part of the rounds.
    joined: bool,
    told_end: bool,
    superseded: bool,
}

/// A closed round.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Closed {
    /// The step, counted from 0.
    pub step: u64,
    /// Steps of the whole job.
    pub steps: u64,
    /// Mean loss over all samples.
    pub loss: f32,
    /// Samples of all workers.
    pub samples: u64,
}

impl ParameterServer {
    /// A server that goes on from `state`; values travel in cells of `cell`.
    pub fn new(job: Job, layout: Layout, state: State, cell: usize, exec: (Pool, Isa)) -> Self {
        assert_eq!((state.params.len(), state.velocity.len()), (layout.len, layout.trained));
        let round = Round::new(layout.len, cell, job.workers);
        let (links, roster) = (BTreeMap::new(), Roster::default());
        Self { job, layout, state, round, cell, links, progress: 0, roster, kept: 0, exec }
    }

    /// Goes on with a roster of before.
    #[must_use]
    pub fn with_roster(mut self, roster: Roster) -> Self {
        self.kept = roster.entries().len();
        self.roster = roster;
        self
    }

    /// Who was admitted and is not kept yet; the caller keeps the roster and says so.
    pub fn has_news(&self) -> bool {
        self.kept < self.roster.entries().len()
    }

    /// The roster is where it survives us: workers may be told.
    pub fn roster_is_kept(&mut self) {
        self.kept = self.roster.entries().len();
        self.progress += 1;
    }

    /// Everybody who was admitted.
    pub fn roster(&self) -> &Roster {
        &self.roster
    }

    /// The training as it stands.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The job.
    pub fn job(&self) -> &Job {
        &self.job
    }

    /// Grows whenever something happened that may let another connection go on.
    pub fn progress(&self) -> u64 {
        self.progress
    }

    /// Workers that are connected and have joined.
    pub fn joined(&self) -> usize {
        self.links.values().filter(|link| link.joined && !link.superseded).count()
    }

    /// Whether every worker of the job knows that it is finished.
    pub fn all_told(&self) -> bool {
        let told = |worker| self.links.values().any(|l| l.worker == worker && l.told_end);
        (0..self.job.workers).all(told)
    }

    /// Works through the events of a session. Returns whether there is more to send once its output is
    /// gone.
    ///
    /// # Errors
    /// When the session ends; others are not touched.
    pub fn pump(&mut self, id: usize, session: &mut Session) -> Result<bool, Ended> {
        if self.links.get(&id).is_some_and(|link| link.superseded) {
            return Err(session.close(Some(Refusal::Role)));
        }
        loop {
            let step = self.state.step;
            let held = match session.next_event()? {
                None => break,
                Some(Event::Opened) => {
                    self.open(id, session)?;
                    false
                }
                Some(Event::Message(message)) => {
                    if let Err(refusal) = self.handle(id, &message) {
                        return Err(session.close(Some(refusal)));
                    }
                    false
                }
                Some(Event::Chunk { step: of, offset, data }) => {
                    let added = match self.links.get(&id) {
                        Some(link) if of == step && link.joined => {
                            self.round.add(link.worker, offset, data).ok()
                        }
                        _ => None,
                    };
                    match added {
                        None => return Err(session.close(Some(Refusal::Protocol))),
                        Some(added) => added == Added::TooEarly,
                    }
                }
            };
            if held {
                session.hold();
                break;
            }
            self.progress += 1;
        }
        self.send(id, session)
    }

    /// Applies the update if every worker's gradients are in.
    pub fn close_round(&mut self) -> Option<Closed> {
        let steps = self.state.steps?;
        if self.state.is_finished() || !self.round.is_closed() {
            return None;
        }
        let (loss, samples) = (self.round.loss(), self.round.samples());
        self.update(steps, samples);
        let closed = Closed { step: self.state.step, steps, loss, samples };
        self.round.reset();
        self.state.step += 1;
        self.progress += 1;
        for link in self.links.values_mut().filter(|link| link.joined) {
            link.sending = Some(0);
        }
        Some(closed)
    }

    /// Forgets a connection that is over.
    pub fn left(&mut self, id: usize) -> Option<Role> {
        // Who was told the end stays in the books, to be counted.
        if self.links.get(&id).is_some_and(|link| link.told_end) {
            return None;
        }
        self.links.remove(&id).map(|link| Role::Worker(link.worker))
    }

    fn open(&mut self, id: usize, session: &mut Session) -> Result<(), Ended> {
        let worker = match session.peer().map(|peer| peer.role) {
            Some(Role::Worker(index)) if index < self.job.workers => index,
            // The model is not there yet.
            Some(Role::TrustedNode) => return Err(session.close(Some(Refusal::Later))),
            _ => return Err(session.close(Some(Refusal::Role))),
        };
        let admitted = session.admission().cloned().is_some_and(|who| self.roster.admit(who));
        if !admitted {
            return Err(session.close(Some(Refusal::Later)));
        }
        self.progress += 1;
        // The newest connection wins: the old one may be dead without our knowing.
        for link in self.links.values_mut().filter(|link| link.worker == worker) {
            link.superseded = true;
        }
        let link = Link {
            worker,
            told: 0,
            sending: None,
            joined: false,
            told_end: false,
            superseded: false,
        };
        self.links.insert(id, link);
        session.send(&Message::Job(self.job.encode()))
    }

    fn handle(&mut self, id: usize, message: &Message) -> Result<(), Refusal> {
        let link = self.links.get_mut(&id).ok_or(Refusal::Protocol)?;
        match *message {
            Message::Join { samples, batches } => {
                let member = Member { samples, batches };
                let slot = &mut self.state.members[usize::from(link.worker)];
                let changed = slot.is_some_and(|before| before != member);
                let expected = samples.div_ceil(u64::from(self.job.batch_size));
                if changed || samples == 0 || batches != expected {
                    return Err(Refusal::Data);
                }
                *slot = Some(member);
                link.joined = true;
                link.sending = Some(0);
                self.settle_steps();
                Ok(())
            }
            Message::Gradients { step, samples, loss } => {
                let largest = self.job.batch_size;
                if step != self.state.step || !link.joined || samples > largest {
                    return Err(Refusal::Protocol);
                }
                let announced = Announced { samples, loss };
                self.round.announce(link.worker, announced).map_err(|_| Refusal::Protocol)
            }
            _ => Err(Refusal::Protocol),
        }
    }

    /// The number of steps is known once every worker has said how many batches it has.
    fn settle_steps(&mut self) {
        let longest = self.state.members.iter().copied().collect::<Option<Vec<_>>>();
        let Some(longest) = longest.map(|all| all.iter().map(|m| m.batches).max().unwrap_or(1))
        else {
            return;
        };
        let epochs = u64::from(self.job.epochs).saturating_mul(longest);
        self.state.steps.get_or_insert(self.job.steps.unwrap_or(epochs));
    }

    /// Queues the next piece of what this worker waits for; first of all, who else is there.
    fn send(&mut self, id: usize, session: &mut Session) -> Result<bool, Ended> {
        if let Some(link) = self.links.get_mut(&id) {
            for entry in &self.roster.entries()[link.told..self.kept] {
                session.send(&Message::Admitted(Box::new(entry.clone())))?;
            }
            link.told = self.kept;
        }
        if self.has_news() {
            return Ok(false);
        }
        let (Some(link), Some(steps)) = (self.links.get_mut(&id), self.state.steps) else {
            return Ok(false);
        };
        let Some(index) = link.sending else { return Ok(false) };
        if session.wants_output() {
            return Ok(false);
        }
        let step = self.state.step;
        if self.state.is_finished() {
            link.sending = None;
            link.told_end = true;
            self.progress += 1;
            let parameters = params::hash(&self.state.params);
            session.send(&Message::Finished { steps, parameters })?;
            return Ok(false);
        }
        if index == 0 {
            session.send(&Message::Parameters { step, steps })?;
        }
        let range = cell_range(self.state.params.len(), self.cell, index).expect("a cell");
        link.sending = (range.end < self.state.params.len()).then_some(index + 1);
        let offset = (range.start * size_of::<f32>()) as u64;
        session.send_chunk(step, offset, bytemuck::cast_slice(&self.state.params[range]))?;
        Ok(link.sending.is_some())
    }

    /// One SGD step with the mean gradient; statistics become the workers' mean.
    fn update(&mut self, steps: u64, samples: u64) {
        let State { params, velocity, step, .. } = &mut self.state;
        let scale = 1.0 / samples as f32;
        let rate = self.job.schedule.rate(*step, steps);
        let exec = (&self.exec.0, self.exec.1);
        for tensor in &self.layout.tensors {
            let range = tensor.range.clone();
            let sum = &self.round.sum()[range.clone()];
            let decay = match tensor.kind {
                Kind::Affine => 0.0,
                Kind::Weight => self.job.weight_decay,
                Kind::Statistic => {
                    for (value, sum) in params[range].iter_mut().zip(sum) {
                        *value = scale * sum;
                    }
                    continue;
                }
            };
            let sgd = Sgd { rate, momentum: self.job.momentum, decay, scale };
            momentum_sgd(exec, sgd, &mut params[range.clone()], &mut velocity[range], sum);
        }
    }
}
