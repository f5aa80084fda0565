//! What a worker is sent: parameters of before a round, and of the next one as far as they are final.
//!
//! The last layers' gradients are there first, so most parameters travel while the first layers' gradients are still
//! computed. Nothing of it is in the state before the round closes: who comes back meanwhile gets the parameters of
//! before, and so does a checkpoint. A worker uses none of them before it has the receipt of the round.

use kernels::{Exec, Sgd, finish_momentum_sgd};
use protocol::{CloseReason, Message, Session};

use super::ParameterServer;
use crate::job::state::State;
use crate::model::params;
use crate::training::cells::Cells;

impl ParameterServer {
    /// Queues the next piece of what this worker waits for; first of all, who else is there.
    pub(super) fn send(&mut self, id: usize, session: &mut Session) -> Result<(), CloseReason> {
        if let Some(link) = self.links.get_mut(&id) {
            for entry in &self.roster.entries()[link.told..self.kept] {
                session.send(&Message::Admitted(Box::new(entry.clone())))?;
            }
            link.told = self.kept;
        }
        if self.has_news() {
            return Ok(());
        }
        let is_evaluating = self.is_evaluating();
        let (Some(link), Some(steps)) = (self.links.get_mut(&id), self.state.steps) else {
            return Ok(());
        };
        let step = self.state.step;
        if std::mem::take(&mut link.skipped) {
            session.send(&Message::Skipped { step })?;
        }
        if std::mem::take(&mut link.repeat) {
            session.send(&Message::Repeat { step })?;
        }
        let Some(sent) = link.sending else { return self.send_early(id, session) };
        if session.wants_output() {
            return Ok(());
        }
        let is_asked = is_evaluating && self.tally.lacks(link.worker);
        if let Some(receipt) = self.state.receipt.as_ref().filter(|_| link.receipt != Some(step)) {
            link.receipt = Some(step);
            session.send(&Message::Receipt(receipt.encode()))?;
        }
        if self.state.is_finished() && !is_asked {
            // The end is told once all have said what they found.
            link.sending = None;
            if is_evaluating {
                return Ok(());
            }
            link.told_end = true;
            self.progress += 1;
            let parameters = params::hash(&self.state.params);
            return session.send(&Message::Finished { steps, parameters });
        }
        if sent == 0 {
            if is_asked {
                session.send(&Message::Evaluate { step })?;
            }
            session.send(&Message::Parameters { step, steps })?;
        }
        link.sending = (sent + 1 < self.order.len()).then_some(sent + 1);
        // All were sent before the receipt.
        let Some(&index) = self.order.get(sent) else { return Ok(()) };
        self.sent[1] += 1;
        let range = self.cells.range(index).expect("a cell");
        let values = &self.state.params[range.clone()];
        let bytes = self.cells.encode(&range, values, &mut self.scratch);
        session.send_chunk(step, Cells::offset(&range), bytes)
    }

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
        self.early.order.push(index);
        self.progress += 1;
    }

    /// Brings what was updated early into the state, with the rest; whether that was the round's way, and whether all
    /// of it is finite.
    pub(super) fn finish_early(&mut self, steps: u64) -> Option<bool> {
        if self.early.order.is_empty() {
            return None;
        }
        let mut is_in = vec![false; self.cells.count()];
        self.early.order.iter().for_each(|&index| is_in[index] = true);
        for index in (0..is_in.len()).filter(|&index| !is_in[index]) {
            self.update_cell(index, steps);
        }
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
        for (value, sum) in params.iter_mut().zip(self.round.sum()).skip(statistics) {
            *value = step.scale * sum;
            is_finite &= value.is_finite();
        }
        // Who was sent none of them gets all in this order too.
        self.order = std::mem::take(&mut self.early.order);
        Some(is_finite)
    }

    /// Queues the next cell that is final for a worker that has sent its part of the round.
    pub(super) fn send_early(
        &mut self,
        id: usize,
        session: &mut Session,
    ) -> Result<(), CloseReason> {
        let (Some(link), Some(steps)) = (self.links.get_mut(&id), self.state.steps) else {
            return Ok(());
        };
        if !link.has_pushed || session.wants_output() {
            return Ok(());
        }
        let Some(&index) = self.early.order.get(link.sent_early) else { return Ok(()) };
        let next = self.state.step + 1;
        if link.sent_early == 0 {
            session.send(&Message::Parameters { step: next, steps })?;
        }
        link.sent_early += 1;
        self.sent[0] += 1;
        let range = self.cells.range(index).expect("a cell");
        let (step, sum) = (self.sgd(steps), &self.round.sum()[range.clone()]);
        let values = self.early.parameters(self.isa, step, &self.state, sum, range.start);
        let bytes = self.cells.encode(&range, values, &mut self.scratch);
        session.send_chunk(next, Cells::offset(&range), bytes)
    }

    /// The update of the round at hand; the decay is each tensor's own.
    fn sgd(&self, steps: u64) -> Sgd {
        Sgd {
            rate: self.job.schedule.rate(self.state.step, steps),
            momentum: self.job.momentum,
            decay: 0.0,
            scale: 1.0 / self.round.weight(),
            nesterov: false,
        }
    }
}
