//! A worker's side of a job as a pure value: take parameters, say when to compute, hand over gradients.

use protocol::{CloseReason, Entry, Event, Message, Refusal, Role, Roster, Session};

use crate::job::Job;
use crate::job::receipt::{Receipt, Share};
use crate::job::state::Member;
use crate::training::cell_hashes::CellHashes;
use crate::training::cells::Cells;
use crate::training::contradiction::Contradiction;
use crate::training::ledger::Ledger;
use crate::training::witness::{Rounds, Witness};

/// A worker's view of its job.
pub struct Worker {
    /// The job, once known; it may not change when we connect again.
    job: Option<Job>,
    /// How parameters travel, once there is a place for them.
    cells: Option<Cells>,
    /// The parameters that are coming in.
    incoming: Option<Incoming>,
    /// Parameters came that were not asked for by [`Worker::take_new`].
    has_new: bool,
    steps: u64,
    /// The step whose parameters are to be evaluated before anything else is done with them.
    evaluate: Option<u64>,
    /// The step to compute now that its parameters are evaluated.
    next: Option<u64>,
    /// Everybody whom the server has admitted and we have judged too.
    roster: Roster,
    /// What rounds were made of.
    witness: Witness,
    /// Of the parameters that come in.
    hashes: CellHashes,
    /// What the server said that cannot be.
    contradiction: Option<Box<Contradiction>>,
}

/// Parameters on their way; cells come in any order, each once.
struct Incoming {
    step: u64,
    /// They are averages to be evaluated, of which no receipt says anything.
    is_average: bool,
    is_in: Vec<bool>,
    missing: usize,
    /// The step is computed with those that are there.
    is_begun: bool,
}

/// What the caller has to do next.
#[derive(Clone, Debug, PartialEq)]
pub enum Work {
    /// Nothing until more arrives.
    Wait,
    /// Make the model for this job and call [`Worker::join`].
    Prepare(Box<Job>),
    /// The parameters are complete: evaluate them and call [`Worker::evaluated`].
    Evaluate {
        /// Updates that they had.
        step: u64,
    },
    /// The parameters are complete: compute this step and push its gradients.
    Compute {
        /// The step.
        step: u64,
        /// Steps of the whole job.
        steps: u64,
    },
    /// The parameters that [`Worker::begin`] told of are complete, and those of their receipt: what is made of them may
    /// be told.
    Verified {
        /// The step.
        step: u64,
    },
    /// Send the gradients of this step once more.
    Repeat {
        /// The step.
        step: u64,
    },
    /// We were left out of a round: what was carried over is void.
    Skip {
        /// The step of the round, or the one after it.
        step: u64,
    },
    /// The job is done.
    Finish {
        /// Steps of the whole job.
        steps: u64,
        /// SHA-256 of the final parameters.
        parameters: [u8; 32],
    },
}

impl Worker {
    /// A worker of this number that knows nothing yet.
    pub fn new(worker: u16) -> Self {
        Self {
            job: None,
            cells: None,
            incoming: None,
            has_new: false,
            steps: 0,
            evaluate: None,
            next: None,
            roster: Roster::default(),
            witness: Witness::new(worker),
            hashes: CellHashes::new(0),
            contradiction: None,
        }
    }

    /// What it was told of rounds.
    pub fn ledger(&self) -> &Ledger {
        self.witness.ledger()
    }

    /// Goes on with what an earlier process was told of this job's rounds.
    pub fn remember(&mut self, ledger: Ledger) {
        self.witness.remember(ledger);
    }

    /// What the server said that cannot be: the session was ended because of it.
    pub fn contradiction(&self) -> Option<&Contradiction> {
        self.contradiction.as_deref()
    }

    /// What was sent to the round that began with a step, once that is all of it: its receipt has to say the same.
    pub fn sent(&mut self, contribution: Option<(u64, Share)>) {
        if let Some((step, share)) = contribution {
            self.witness.sent(step, share);
        }
    }

    /// What the last round had of ours, by its receipt: nothing else may be carried over into the next.
    pub fn contributed(&self) -> Option<(u64, Share)> {
        self.witness.told_share()
    }

    /// Forgets what a lost connection had begun.
    pub fn disconnected(&mut self) {
        (self.incoming, self.evaluate, self.next) = (None, None, None);
        self.witness.disconnected();
    }

    /// Whether complete parameters came since this was asked the last time: those in the buffer of
    /// [`Worker::pump`] are to be used from now on.
    pub fn take_new(&mut self) -> bool {
        std::mem::take(&mut self.has_new)
    }

    /// Whether parameters come in.
    pub fn is_receiving(&self) -> bool {
        self.incoming.is_some()
    }

    /// The step whose parameters come in, and the steps of the whole job, if its forward pass may begin with those that
    /// are there: nothing else is to be done with them first. Whatever [`Worker::pump`] says next but
    /// [`Work::Verified`], nothing may come of it, and [`Worker::abandon`] has to be called.
    pub fn begin(&mut self) -> Option<(u64, u64)> {
        // In a round of several steps all parameters are kept before the first.
        let is_single = self.job.as_ref().is_some_and(|job| !job.is_local());
        let incoming = self.incoming.as_mut().filter(|_| is_single && self.evaluate.is_none())?;
        incoming.is_begun = true;
        Some((incoming.step, self.steps))
    }

    /// The step whose parameters come in, unless [`Worker::begin`] told of them.
    pub fn waits_for(&self) -> Option<u64> {
        self.incoming.as_ref().filter(|incoming| !incoming.is_begun).map(|incoming| incoming.step)
    }

    /// Whether what [`Worker::begin`] told of still comes in, and the first `end` values and the running statistics are
    /// there.
    pub fn has(&self, end: usize) -> Option<bool> {
        let incoming = self.incoming.as_ref().filter(|incoming| incoming.is_begun)?;
        Some(self.cells?.needed(end).all(|index| incoming.is_in[index]))
    }

    /// What [`Worker::begin`] told of is not computed after all.
    pub fn abandon(&mut self) {
        self.incoming.iter_mut().for_each(|incoming| incoming.is_begun = false);
    }

    /// Works through the events of the session until there is something to do. Parameters go to
    /// `params`, which is empty before the first [`Work::Prepare`].
    ///
    /// # Errors
    /// When the session ends.
    pub fn pump(&mut self, session: &mut Session, params: &mut [f32]) -> Result<Work, CloseReason> {
        if let Some(step) = self.next.take() {
            return Ok(Work::Compute { step, steps: self.steps });
        }
        loop {
            match session.next_event()? {
                None => return Ok(Work::Wait),
                Some(Event::Opened) => {
                    let role = session.peer().map(|peer| peer.role);
                    if !matches!(role, Some(Role::ParameterServer(_))) {
                        return Err(session.close(Some(Refusal::Role)));
                    }
                }
                Some(Event::Message(Message::Admitted(entry))) => self.meet(session, *entry)?,
                Some(Event::Message(message)) => match self.handle(session.job(), message) {
                    Err(refusal) => return Err(session.close(Some(refusal))),
                    Ok(Some(work)) => return Ok(work),
                    Ok(None) => {}
                },
                Some(Event::Chunk { step, offset, data }) => {
                    let taken = self.take(params, step, offset, data).ok_or(Refusal::Protocol);
                    match taken.and_then(|()| self.completed()) {
                        Err(refusal) => return Err(session.close(Some(refusal))),
                        Ok(Some(work)) => return Ok(work),
                        Ok(None) => {}
                    }
                }
            }
        }
    }

    /// Everybody whom the server has admitted and we have judged too.
    pub fn roster(&self) -> &Roster {
        &self.roster
    }

    /// Judges a fellow by our own policy; the server can neither change nor leave out whom it has named.
    fn meet(&mut self, session: &mut Session, entry: Entry) -> Result<(), CloseReason> {
        if self.roster.has(&entry) {
            return Ok(());
        }
        // Where a service has to be asked first, the session brings the entry again.
        match !session.check_admission(&entry)? || self.roster.extend(entry) {
            true => Ok(()),
            false => Err(session.close(Some(Refusal::Protocol))),
        }
    }

    /// Tells the server about our data; parameters come in such cells from now on.
    ///
    /// # Errors
    /// When the session is over.
    pub fn join(
        &mut self,
        session: &mut Session,
        member: Member,
        cells: Cells,
    ) -> Result<(), CloseReason> {
        (self.cells, self.hashes) = (Some(cells), CellHashes::new(cells.count()));
        let Member { samples, batches, data, classes } = member;
        session.send(&Message::Join { data: data.unwrap_or_default(), samples, batches, classes })
    }

    /// Tells the server what was found on our test images: a table by `class * classes + found`, empty where we
    /// have none.
    ///
    /// # Errors
    /// When the session is over.
    pub fn evaluated(
        &self,
        session: &mut Session,
        step: u64,
        confusion: Vec<u32>,
    ) -> Result<(), CloseReason> {
        session.send(&Message::Evaluated { step, confusion })
    }

    /// What to do with parameters once all of them are there, and their receipt too: they may come before it, while
    /// the round that it is about still runs.
    fn completed(&mut self) -> Result<Option<Work>, Refusal> {
        let is_whole = |incoming: &mut Incoming| incoming.missing == 0;
        let Some(step) = self.incoming.as_ref().map(|incoming| incoming.step) else {
            return Ok(None);
        };
        if !self.witness.knows(step) {
            return Ok(None);
        }
        let Some(incoming) = self.incoming.take_if(is_whole) else { return Ok(None) };
        if incoming.is_average {
            // The parameters follow.
            (self.has_new, self.evaluate) = (true, None);
            return Ok(Some(Work::Evaluate { step }));
        }
        let hash = self.hashes.root().ok_or(Refusal::Protocol)?;
        let checked = self.witness.check_parameters(step, hash);
        checked.map_err(|contradiction| self.contradicted(contradiction))?;
        if incoming.is_begun {
            return Ok(Some(Work::Verified { step }));
        }
        self.has_new = true;
        Ok(Some(match self.evaluate.take() {
            None => Work::Compute { step, steps: self.steps },
            Some(_) => {
                self.next = (step < self.steps).then_some(step);
                Work::Evaluate { step }
            }
        }))
    }

    /// Takes a cell of the parameters; `None` when it is none, or was there already.
    fn take(&mut self, params: &mut [f32], of: u64, offset: u64, data: &[u8]) -> Option<()> {
        let cells = self.cells?;
        let incoming = self.incoming.as_mut().filter(|incoming| incoming.step == of)?;
        let (index, range) = cells.find(offset, data.len())?;
        if std::mem::replace(incoming.is_in.get_mut(index)?, true) {
            return None;
        }
        incoming.missing -= 1;
        self.hashes.put(index, data);
        cells.decode(&range, data, params.get_mut(range.clone())?);
        Some(())
    }

    /// Takes a receipt of this job, or of the one that it goes on from.
    fn take_receipt(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        let job = self.job.as_ref().ok_or(Refusal::Protocol)?;
        let receipt = Receipt::parse(bytes).ok_or(Refusal::Protocol)?;
        // A job that goes on with another rate begins with the last receipt of before.
        if receipt.job != job.digest() && self.witness.is_told() {
            return Err(Refusal::Protocol);
        }
        if receipt.parts.len() != usize::from(job.workers) {
            return Err(Refusal::Protocol);
        }
        let taken = self.witness.take(receipt, Rounds::of(job));
        taken.map_err(|contradiction| self.contradicted(contradiction))
    }

    fn contradicted(&mut self, contradiction: Box<Contradiction>) -> Refusal {
        self.contradiction = Some(contradiction);
        Refusal::Receipt
    }

    fn handle(&mut self, bound: &[u8; 32], message: Message) -> Result<Option<Work>, Refusal> {
        match message {
            Message::Job(bytes) => {
                let job = Job::parse(&bytes).map_err(|_| Refusal::Protocol)?;
                // The digest is what the server's evidence was bound to.
                let changed = |known: &Job| !known.is_continued_by(&job);
                if job.digest() != *bound || self.job.as_ref().is_some_and(changed) {
                    return Err(Refusal::Protocol);
                }
                // Evidence is bound to a job's digest, so each has a roster of its own; so have receipts.
                if self.job.as_ref().is_some_and(|known| *known != job) {
                    self.roster = Roster::default();
                    self.witness = Witness::new(self.witness.worker());
                }
                self.job = Some(job.clone());
                Ok(Some(Work::Prepare(Box::new(job))))
            }
            Message::Evaluate { step } if self.job.is_some() => {
                // What still came in is of before.
                (self.evaluate, self.incoming) = (Some(step), None);
                Ok(None)
            }
            Message::Parameters { step, steps }
                if self.evaluate.map_or(step < steps, |at| at == step) =>
            {
                let cells = self.cells.ok_or(Refusal::Protocol)?;
                let (is_in, missing) = (vec![false; cells.count()], cells.count());
                let averages = self.job.as_ref().is_some_and(|job| job.recipe.averages());
                let is_average = averages && self.evaluate.is_some();
                let is_begun = false;
                self.incoming = Some(Incoming { step, is_average, is_in, missing, is_begun });
                self.steps = steps;
                Ok(None)
            }
            Message::Repeat { step } if self.job.is_some() => Ok(Some(Work::Repeat { step })),
            Message::Skipped { step }
                if self.job.as_ref().is_some_and(|job| job.quorum.is_some()) =>
            {
                self.witness.left_out();
                // What was on its way ends here.
                (self.evaluate, self.incoming) = (None, None);
                Ok(Some(Work::Skip { step }))
            }
            Message::Receipt(bytes) => {
                self.take_receipt(&bytes)?;
                self.completed()
            }
            Message::Finished { steps, parameters } => Ok(Some(Work::Finish { steps, parameters })),
            _ => Err(Refusal::Protocol),
        }
    }
}
