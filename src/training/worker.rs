//! A worker's side of a job as a pure value: take parameters, say when to compute, hand over gradients.

use protocol::{Ended, Entry, Event, Message, Refusal, Role, Roster, Session};

use crate::job::Job;
use crate::job::state::Member;
use crate::model::gradients::Part;
use crate::training::round::cell_range;

/// A worker's view of its job.
pub struct Worker {
    cell: usize,
    /// The job, once known; it may not change when we connect again.
    job: Option<Job>,
    /// The step whose parameters are coming in, and how many bytes have come.
    incoming: Option<(u64, u64)>,
    steps: u64,
    /// The step whose parameters are to be evaluated before anything else is done with them.
    evaluate: Option<u64>,
    /// The step to compute now that its parameters are evaluated.
    next: Option<u64>,
    /// Everybody whom the server has admitted and we have judged too.
    roster: Roster,
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
    /// The job is done.
    Finish {
        /// Steps of the whole job.
        steps: u64,
        /// SHA-256 of the final parameters.
        parameters: [u8; 32],
    },
}

impl Worker {
    /// A worker that exchanges values in cells of `cell`.
    pub fn new(cell: usize) -> Self {
        Self {
            cell,
            job: None,
            incoming: None,
            steps: 0,
            evaluate: None,
            next: None,
            roster: Roster::default(),
        }
    }

    /// Forgets what a lost connection had begun.
    pub fn disconnected(&mut self) {
        (self.incoming, self.evaluate, self.next) = (None, None, None);
    }

    /// Whether parameters come in.
    pub fn is_receiving(&self) -> bool {
        self.incoming.is_some()
    }

    /// Works through the events of the session until there is something to do. Parameters go to
    /// `params`, which is empty before the first [`Work::Prepare`].
    ///
    /// # Errors
    /// When the session ends.
    pub fn pump(&mut self, session: &mut Session, params: &mut [f32]) -> Result<Work, Ended> {
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
                    match self.take(params, step, (offset, data)) {
                        None => return Err(session.close(Some(Refusal::Protocol))),
                        Some(true) => return Ok(self.complete(step)),
                        Some(false) => {}
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
    fn meet(&mut self, session: &mut Session, entry: Entry) -> Result<(), Ended> {
        if self.roster.has(&entry) {
            return Ok(());
        }
        // Where a service has to be asked first, the session brings the entry again.
        match !session.check_admission(&entry)? || self.roster.extend(entry) {
            true => Ok(()),
            false => Err(session.close(Some(Refusal::Protocol))),
        }
    }

    /// Tells the server about our data.
    ///
    /// # Errors
    /// When the session is over.
    pub fn join(&self, session: &mut Session, member: Member) -> Result<(), Ended> {
        let Member { samples, batches, data } = member;
        session.send(&Message::Join { data: data.unwrap_or_default(), samples, batches })
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
    ) -> Result<(), Ended> {
        session.send(&Message::Evaluated { step, confusion })
    }

    /// What to do with complete parameters.
    fn complete(&mut self, step: u64) -> Work {
        match self.evaluate.take() {
            None => Work::Compute { step, steps: self.steps },
            Some(_) => {
                self.next = (step < self.steps).then_some(step);
                Work::Evaluate { step }
            }
        }
    }

    /// Takes a chunk; `true` when the parameters are complete, `None` when it is not the next one.
    fn take(
        &mut self,
        params: &mut [f32],
        step: u64,
        (offset, data): (u64, &[u8]),
    ) -> Option<bool> {
        let (expected, received) = self.incoming.filter(|&(of, at)| of == step && at == offset)?;
        let start = usize::try_from(received).ok()? / size_of::<f32>();
        let (values, rest) = data.as_chunks::<4>();
        let target = params.get_mut(start..start.checked_add(values.len())?)?;
        if !rest.is_empty() || values.is_empty() {
            return None;
        }
        for (target, &value) in target.iter_mut().zip(values) {
            *target = f32::from_le_bytes(value);
        }
        let end = start + values.len();
        let complete = end == params.len();
        self.incoming = (!complete).then_some((expected, received + data.len() as u64));
        Some(complete)
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
                // Evidence is bound to a job's digest, so each has a roster of its own.
                if self.job.as_ref().is_some_and(|known| *known != job) {
                    self.roster = Roster::default();
                }
                self.job = Some(job.clone());
                Ok(Some(Work::Prepare(Box::new(job))))
            }
            Message::Evaluate { step } if self.job.is_some() => {
                self.evaluate = Some(step);
                Ok(None)
            }
            Message::Parameters { step, steps }
                if self.job.is_some() && self.evaluate.map_or(step < steps, |at| at == step) =>
            {
                self.incoming = Some((step, 0));
                self.steps = steps;
                Ok(None)
            }
            Message::Finished { steps, parameters } => Ok(Some(Work::Finish { steps, parameters })),
            _ => Err(Refusal::Protocol),
        }
    }
}

/// Hands over gradients from the end of the buffer to its start, a cell as soon as it is complete.
pub struct Push {
    step: u64,
    cell: usize,
    len: usize,
    /// Cells from this one on are sent.
    next: usize,
    announced: bool,
}

impl Push {
    /// The push of a step's gradients, a buffer of `len` values.
    pub fn new(worker: &Worker, step: u64, len: usize) -> Self {
        let cell = worker.cell;
        Self { step, cell, len, next: len.div_ceil(cell), announced: false }
    }

    /// Queues the cells that are complete now that this part is.
    ///
    /// # Errors
    /// When the session is over.
    pub fn advance(
        &mut self,
        session: &mut Session,
        samples: u32,
        Part { loss, range: done, gradients, .. }: &Part,
    ) -> Result<(), Ended> {
        if !self.announced {
            self.announced = true;
            session.send(&Message::Gradients { step: self.step, samples, loss: *loss })?;
        }
        while let Some(index) = self.next.checked_sub(1) {
            let range = cell_range(self.len, self.cell, index).expect("a cell");
            if range.start < done.start {
                break;
            }
            let offset = (range.start * size_of::<f32>()) as u64;
            let values = &gradients[range.start - done.start..range.end - done.start];
            session.send_chunk(self.step, offset, bytemuck::cast_slice(values))?;
            self.next = index;
        }
        Ok(())
    }
}
