//! The parameter server's side of a job as a pure value: admit workers, run rounds, update.
//!
//! [`ParameterServer::pump`] works through one session's events and says what is due; the caller moves
//! the bytes (over mio in `roles`, in memory in the tests) and calls [`ParameterServer::close_round`]
//! after each pass.

mod classes;
mod early;
mod evaluating;
mod late;
mod link;
mod places;
mod receipts;
mod sending;
mod updating;

use std::collections::BTreeMap;
use std::fmt;

use kernels::{Exec, Isa, Pool};
use protocol::{Admission, CloseReason, Event, Message, Refusal, Role, Roster, Session};

use self::early::Early;
use self::link::{Averages, Link, Place};
use crate::job::Job;
use crate::job::state::{Member, State};
use crate::model::params::{self, Layout};
use crate::training::cell_hashes::CellHashes;
use crate::training::cells::Cells;
use crate::training::note::Note;
use crate::training::round::{Added, Contributed, Round, RoundError};
use crate::training::tally::Tally;
use crate::training::update::{average, update};

/// The server of one job.
pub struct ParameterServer {
    job: Job,
    layout: Layout,
    state: State,
    round: Round,
    tally: Tally,
    /// Whether it was looked at how much the workers' classes differ.
    has_judged_classes: bool,
    /// How parameters travel, and room for one cell.
    cells: Cells,
    scratch: Vec<u8>,
    /// The order in which cells of the parameters are sent: that of a forward pass.
    order: Vec<usize>,
    early: Early,
    /// Of the cells of the next parameters that were sent.
    hashes: CellHashes,
    /// Cells of parameters that were sent: before their round closed, and after.
    sent: [u64; 2],
    links: BTreeMap<usize, Link>,
    progress: u64,
    roster: Roster,
    /// Entries of the roster that survive us: only these are told.
    kept: usize,
    pool: Pool,
    isa: Isa,
    /// What is worth telling, since it was asked the last time.
    notes: Vec<Note>,
    /// Who was in the last round; what the rounds before a restart were is not known.
    counted_last: Vec<bool>,
    is_new: bool,
    /// A worker's values that cannot be part of a model; the job cannot go on.
    fault: Option<NotFinite>,
}

/// Values that are infinite or no numbers, by where they were met first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotFinite {
    /// In what a worker sent for a step.
    Contribution {
        /// Its number.
        worker: u16,
        /// The step.
        step: u64,
    },
    /// In the parameters after the update of a step.
    Update {
        /// The step.
        step: u64,
    },
}

impl fmt::Display for NotFinite {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Contribution { worker, step } => {
                write!(f, "step {step}: the gradients of worker{worker} are not finite")
            }
            Self::Update { step } => write!(f, "step {step}: the update is not finite"),
        }
    }
}

/// A closed round.
#[derive(Clone, Debug, PartialEq)]
pub struct Closed {
    /// Its last step, counted from 0.
    pub step: u64,
    /// How many steps it had.
    pub count: u64,
    /// Steps of the whole job.
    pub steps: u64,
    /// Mean loss over all samples.
    pub loss: f32,
    /// Samples of all workers.
    pub samples: u64,
    /// Who contributed, in the order of their numbers.
    pub contributed: Vec<Contributed>,
    /// [`params::check`] of the parameters after it.
    pub check: u32,
}

impl ParameterServer {
    /// A server that goes on from `state`; values travel in cells of `cell`.
    pub fn new(job: Job, layout: Layout, state: State, cell: usize, pool: Pool, isa: Isa) -> Self {
        assert_eq!((state.params.len(), state.velocity.len()), (layout.len, layout.trained));
        let round = Round::new(Cells::of_gradients(&job, &layout, cell, isa), job.workers);
        let cells = Cells::of_parameters(&job, &layout, cell, isa);
        let tally = Tally::new(job.shape.classes, job.workers);
        let (links, roster, notes) = (BTreeMap::new(), Roster::default(), Vec::new());
        let counted_last = vec![true; usize::from(job.workers)];
        let early = Early::new(&layout, job.weight_decay, cells.count());
        let mut server = Self {
            job,
            layout,
            state,
            round,
            tally,
            has_judged_classes: false,
            cells,
            scratch: Vec::new(),
            order: cells.forward_order().collect(),
            early,
            hashes: CellHashes::new(cells.count()),
            sent: [0; 2],
            links,
            progress: 0,
            roster,
            kept: 0,
            pool,
            isa,
            notes,
            counted_last,
            is_new: true,
            fault: None,
        };
        server.begin_receipts();
        server
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

    /// Workers that have not joined, or are gone, in the order of their numbers.
    pub fn missing(&self) -> Vec<Role> {
        let held = |worker| self.holder(worker).is_some();
        (0..self.job.workers).filter(|worker| !held(*worker)).map(Role::Worker).collect()
    }

    /// Cells of parameters that were sent so far: while their round still ran, and after it.
    pub fn cells_sent(&self) -> [u64; 2] {
        self.sent
    }

    /// What is worth telling, since this was asked the last time.
    pub fn take_notes(&mut self) -> Vec<Note> {
        std::mem::take(&mut self.notes)
    }

    /// Admits ourselves, so that the roster has everybody's evidence.
    pub fn admit_self(&mut self, own: Admission) {
        self.roster.admit(own);
    }

    /// Whether every worker knows that the job is finished, but for those that were left out of its last round.
    pub fn all_told(&self) -> bool {
        let told = |worker| self.links.values().any(|l| l.worker == worker && l.told_end);
        (0_u16..).zip(&self.counted_last).all(|(worker, is_in)| !is_in || told(worker))
    }

    /// Works through the events of a session and queues the next piece of what it has to be sent; to be called
    /// again when that is out.
    ///
    /// # Errors
    /// When the session ends; others are not touched.
    pub fn pump(&mut self, id: usize, session: &mut Session) -> Result<(), CloseReason> {
        loop {
            let step = self.state.step;
            let held = match session.next_event()? {
                None => break,
                Some(Event::Opened) => {
                    self.open(id, session)?;
                    false
                }
                Some(Event::Message(message)) => {
                    if let Err(refusal) = self.handle(id, session, &message) {
                        return Err(session.close(Some(refusal)));
                    }
                    false
                }
                Some(Event::Chunk { step: of, offset, data }) => {
                    let link = self.links.get(&id).filter(|link| link.place == Place::Held);
                    let added = match link.map(|link| link.worker) {
                        None => Err(Refusal::Protocol),
                        Some(worker) if self.is_void(worker, of) => Ok(Added::Duplicate),
                        Some(worker) if of == step => {
                            let added = self.round.add(worker, offset, data);
                            if added == Ok(Added::Counted) {
                                self.update_early(offset);
                            }
                            added.map_err(|why| self.refused(worker, why))
                        }
                        Some(_) => Err(Refusal::Protocol),
                    };
                    match added {
                        Err(refusal) => return Err(session.close(Some(refusal))),
                        Ok(added) => added == Added::TooEarly,
                    }
                }
            };
            if held {
                session.hold();
                break;
            }
            self.progress += 1;
        }
        self.settle_place(id, session)?;
        self.send(id, session)
    }

    /// Applies the update if every worker's gradients are in, and no snapshot has the values: who writes one is
    /// nearly always done before, and a copy for the rest would be memory that nobody counted on.
    ///
    /// # Errors
    /// When something is not finite: the state is spoiled and must not be saved.
    pub fn close_round(&mut self) -> Result<Option<Closed>, NotFinite> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        let Some(steps) = self.state.steps else { return Ok(None) };
        if self.state.is_finished() || self.is_evaluating() || !self.round.is_closed() {
            return Ok(None);
        }
        if self.state.is_shared() {
            return Ok(None);
        }
        let (loss, samples) = (self.round.loss(), self.round.samples());
        let is_finite = self.finish_early(steps).unwrap_or_else(|| {
            let exec = Exec::new(&self.pool, self.isa);
            update(&self.job, &self.layout, &mut self.state, &self.round, exec, steps)
        });
        if !is_finite {
            let fault = NotFinite::Update { step: self.state.step };
            self.fault = Some(fault);
            return Err(fault);
        }
        let count = self.job.round_len(self.state.step, steps);
        let (contributed, shares) = (self.round.contributed(), self.round.shares());
        self.note_who_contributed();
        self.round.reset();
        self.is_new = false;
        average(&self.job, &mut self.state, Exec::new(&self.pool, self.isa), count);
        self.state.step += count;
        self.make_receipt(count, shares);
        self.expect_who_is_here();
        let check = params::check(&self.state.params);
        let step = self.state.step - 1;
        let closed = Closed { step, count, steps, loss, samples, contributed, check };
        self.progress += 1;
        for link in self.links.values_mut().filter(|link| link.place == Place::Held) {
            // What it has of the next parameters, which are now those as they stand, it is not sent again.
            if link.is_sending {
                link.sent.clear();
            }
            (link.is_sending, link.repeat, link.has_pushed) = (true, false, false);
            link.averages = Averages::Unsent;
        }
        Ok(Some(closed))
    }

    /// Batches of the worker that has most, which make an epoch.
    fn batches(&self) -> Option<u64> {
        let members = &self.state.members;
        let is_known = self.job.quorum.is_some() || members.iter().all(Option::is_some);
        members.iter().flatten().map(|member| member.batches).max().filter(|_| is_known)
    }

    /// What a worker is told whose part of a round is refused.
    fn refused(&mut self, worker: u16, why: RoundError) -> Refusal {
        match why {
            RoundError::Unannounced | RoundError::NotACell => Refusal::Protocol,
            RoundError::NotFinite => {
                if self.leave_out_refused(worker) {
                    return Refusal::NotFinite;
                }
                let step = self.state.step;
                self.fault.get_or_insert(NotFinite::Contribution { worker, step });
                self.progress += 1;
                Refusal::NotFinite
            }
        }
    }

    fn handle(&mut self, id: usize, session: &Session, message: &Message) -> Result<(), Refusal> {
        let link = self.links.get(&id).ok_or(Refusal::Protocol)?;
        match *message {
            Message::Join { data, samples, batches, ref classes } => {
                let (worker, classes) = (link.worker, classes.clone());
                self.check_return(worker, session)?;
                self.join(id, Member { samples, batches, data: Some(data), classes })
            }
            Message::Gradients { step, samples, loss, fresh } => {
                if link.place == Place::Held && self.is_void(link.worker, step) {
                    return Ok(());
                }
                if step != self.state.step || link.place != Place::Held {
                    return Err(Refusal::Protocol);
                }
                let worker = link.worker;
                self.announce(worker, samples, loss, fresh)?;
                if let Some(link) = self.links.get_mut(&id) {
                    link.has_pushed = true;
                }
                Ok(())
            }
            Message::Evaluated { step, ref confusion } => self.evaluated(id, step, confusion),
            // Of a step that may be closed by now.
            Message::Spent(spent) if link.place == Place::Held => {
                self.notes.push(Note::Spent { worker: link.worker, spent });
                Ok(())
            }
            _ => Err(Refusal::Protocol),
        }
    }

    fn say(&mut self, text: String) {
        self.notes.push(Note::Said(text));
    }

    /// The number of steps is known once the workers have said how many batches they have.
    fn settle_steps(&mut self) {
        let Some(longest) = self.batches() else { return };
        let epochs = u64::from(self.job.epochs).saturating_mul(longest);
        self.state.steps.get_or_insert(self.job.steps.unwrap_or(epochs));
        self.progress += 1;
    }
}

#[cfg(test)]
mod tests;
