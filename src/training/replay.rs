//! Rounds of a job computed again from a checkpoint, the round log and everybody's data: no server, no network, no
//! time.

use kernels::{Arena, Exec, Isa, Pool};

use crate::data::dataset::Dataset;
use crate::data::error::DataError;
use crate::failure::{Doing, Failure};
use crate::job::Job;
use crate::job::state::State;
use crate::model::network::Network;
use crate::model::params;
use crate::training::cells::{CELL, Cells};
use crate::training::contribution::Tail;
use crate::training::round::{Added, Announced, Contributed, Round};
use crate::training::rounds::Logged;
use crate::training::steps::{Share, Steps};
use crate::training::update::{average, update, weight};

/// A training that goes on by what a log says.
pub struct Replay {
    job: Job,
    state: State,
    steps: Steps,
    shares: Vec<Share>,
    round: Round,
    /// How parameters travel, and those that arrived.
    cells: Cells,
    arrived: Arena,
    scratch: Vec<u8>,
    exec: (Pool, Isa),
}

/// What a round came to that was logged otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// A worker that the log names has no such data.
    Samples {
        /// Its number.
        worker: u16,
        /// Samples by the log.
        logged: u32,
        /// Samples of its data.
        found: u32,
    },
    /// Parameters with another checksum.
    Parameters,
    /// Nothing that a job could have gone on with.
    NotFinite,
}

impl Replay {
    /// A training that stands at `state`; `data` are those of each worker, in the order of their numbers.
    ///
    /// # Errors
    /// When there is not enough memory.
    pub fn new(
        job: &Job,
        network: Network,
        state: State,
        data: Vec<Dataset>,
        pool: Pool,
        isa: Isa,
    ) -> Result<Self, Failure> {
        let most = data.iter().map(Dataset::len).max().unwrap_or(1);
        let batch_max = (job.batch_max() as usize).min(most);
        let network = network.computed(job.conv);
        let numbered = (0_u16..).zip(data);
        let share = |(worker, data)| Share::new(job, worker, data, &network.layout, isa);
        let shares: Vec<Share> = numbered.map(share).collect();
        let round = Round::new(Cells::of_gradients(job, &network.layout, CELL, isa), job.workers);
        let cells = Cells::of_parameters(job, &network.layout, CELL, isa);
        let arrived = Arena::new(network.layout.len).doing("memory for the parameters")?;
        let steps = Steps::new(job, network, batch_max, pool.clone(), isa)?;
        let (job, exec) = (job.clone(), (pool, isa));
        Ok(Self { job, state, steps, shares, round, cells, arrived, scratch: Vec::new(), exec })
    }

    /// The training as it stands.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Computes the next round, which the log says to be this one; says what is different, if anything is.
    ///
    /// # Errors
    /// When pictures cannot be read any more, or are others than they were.
    pub fn advance(&mut self, logged: &Logged) -> Result<Option<Difference>, DataError> {
        let steps = self.state.steps.unwrap_or_default();
        for worker in 0..self.job.workers {
            if logged.workers.iter().all(|part| part.worker != worker) {
                self.round.leave_out(worker);
                self.shares[usize::from(worker)].contribution.forget();
            }
        }
        for part in logged.workers {
            if let Some(difference) = self.contribute(part, steps)? {
                return Ok(Some(difference));
            }
        }
        let exec = Exec::new(&self.exec.0, self.exec.1);
        let layout = &self.steps.network().layout;
        let is_finite = self.round.is_closed()
            && update(&self.job, layout, &mut self.state, &self.round, exec, steps);
        if !is_finite {
            return Ok(Some(Difference::NotFinite));
        }
        self.round.reset();
        average(&self.job, &mut self.state, exec, logged.steps);
        self.state.step += logged.steps;
        let is_same = logged.check.is_none_or(|check| check == params::check(&self.state.params));
        Ok((!is_same).then_some(Difference::Parameters))
    }

    /// Computes a worker's part of the round at hand.
    fn contribute(
        &mut self,
        part: &Contributed,
        steps: u64,
    ) -> Result<Option<Difference>, DataError> {
        let worker = part.worker;
        let share = &mut self.shares[usize::from(worker)];
        if part.fresh {
            share.contribution.forget();
        }
        let params = self.arrived.as_mut_slice();
        for index in 0..self.cells.count() {
            let range = self.cells.range(index).expect("a cell");
            let values = &self.state.params[range.clone()];
            let bytes = self.cells.encode(&range, values, &mut self.scratch);
            self.cells.decode(&range, bytes, &mut params[range.clone()]);
        }
        let computed = self.steps.compute(share, params, self.state.step, steps, &mut ())?;
        let computed = computed.expect("nobody stops it");
        if computed.samples != part.samples {
            let (logged, found) = (part.samples, computed.samples);
            return Ok(Some(Difference::Samples { worker, logged, found }));
        }
        let weight = weight(&self.job, &self.state.members, worker, part.samples);
        let of_round =
            Announced { samples: part.samples, weight, loss: computed.loss, fresh: part.fresh };
        if self.round.announce(worker, of_round).is_err() {
            return Ok(Some(Difference::NotFinite));
        }
        for index in (0..self.cells.count()).rev() {
            let gradients = Tail { start: 0, gradients: self.steps.gradients() };
            let (offset, bytes) = share.contribution.cell(index, gradients);
            if self.round.add(worker, offset, bytes) != Ok(Added::Counted) {
                return Ok(Some(Difference::NotFinite));
            }
        }
        Ok(None)
    }
}
