//! The update of a round, cell by cell as soon as everybody's gradients for it are in.
//!
//! Nothing of it is in the state before the round closes: who comes back meanwhile gets the parameters of before, and
//! so does a checkpoint.

use kernels::{Exec, Sgd, finish_momentum_sgd};

use super::ParameterServer;
use crate::job::state::State;
use crate::training::update::replace;

impl ParameterServer {
    /// Updates the cell at `offset` bytes if everybody's gradients for it are in, and nothing can change the sum any
    /// more: with a quorum or a rest of rounding it may be made anew. Before an evaluation, and at the end, there is
    /// more to say first.
    pub(super) fn update_early(&mut self, offset: u64) {
        let (State { step, .. }, Some(steps)) = (&self.state, self.state.steps) else { return };
        let next = step + 1;
        let is_plain = self.job.has_plain_updates() && !self.job.is_local();
        let is_settled = is_plain && self.job.quorum.is_none();
        if !is_settled || self.round.may_begin_anew() || next >= steps || self.is_evaluating() {
            return;
        }
        let is_due = |batches| self.job.evaluation.is_due(next, steps, [batches, 1]);
        if self.batches().is_none_or(is_due) {
            return;
        }
        if let Some(index) = self.round.completed_at(offset) {
            self.update_cell(index, steps);
        }
    }

    fn update_cell(&mut self, index: usize, steps: u64) {
        let (range, step) = (self.cells.range(index).expect("a cell"), self.sgd(steps));
        let sum = self.round.completed_mut(range.clone());
        self.early.update(self.isa, step, &self.state, sum, range.start);
        self.early.add(index);
        self.progress += 1;
    }

    /// Brings what was updated early into the state, with the rest; whether that was the round's way, and whether all
    /// of it is finite.
    pub(super) fn finish_early(&mut self, steps: u64) -> Option<bool> {
        if self.early.is_empty() {
            return None;
        }
        for index in 0..self.cells.count() {
            if !self.early.has(index) {
                self.update_cell(index, steps);
            }
        }
        self.early.clear();
        let step = self.sgd(steps);
        let exec = Exec::new(&self.pool, self.isa);
        let (params, velocity) = self.state.values_mut();
        let mut is_finite = true;
        for range in self.early.tensors() {
            let [params, velocity] = [&mut params[range.clone()], &mut velocity[range.clone()]];
            let next = &self.round.sum()[range.clone()];
            is_finite &= finish_momentum_sgd(exec, step, params, velocity, next);
        }
        let statistics = velocity.len();
        is_finite &=
            replace(&mut params[statistics..], &self.round.sum()[statistics..], step.scale);
        Some(is_finite)
    }

    /// The update of the round at hand; the decay is each tensor's own.
    pub(super) fn sgd(&self, steps: u64) -> Sgd {
        Sgd {
            rate: self.job.schedule.rate(self.state.step, steps),
            momentum: self.job.momentum,
            decay: 0.0,
            scale: 1.0 / self.round.weight(),
            nesterov: false,
        }
    }
}
