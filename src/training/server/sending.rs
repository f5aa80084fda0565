//! What a worker is sent: parameters of before a round, and of the next one as far as they are final.
//!
//! The last layers' gradients are there first, so most parameters travel while the first layers' gradients are still
//! computed. Of what may be sent, the next forward pass needs first what comes first. Nothing that a worker makes of
//! them leaves it before it has the receipt of the round.

use protocol::{CloseReason, Message, Session};

use super::ParameterServer;
use super::link::Averages;
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
        if !link.is_sending {
            return self.send_early(id, session);
        }
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
            link.end_sending();
            if is_evaluating {
                return Ok(());
            }
            link.told_end = true;
            self.progress += 1;
            let parameters = params::hash(&self.state.params);
            return session.send(&Message::Finished { steps, parameters });
        }
        if link.sent.is_empty() {
            // A round with a quorum closes without who is silent: he learns nothing of it before he is attested.
            if session.owes_evidence() {
                return Ok(());
            }
            if is_asked && link.averages == Averages::Unsent {
                session.send(&Message::Evaluate { step })?;
                if self.state.average.is_some() {
                    link.averages = Averages::OnTheirWay;
                }
            }
            session.send(&Message::Parameters { step, steps })?;
        }
        let values = match link.averages {
            Averages::OnTheirWay => self.state.weights(),
            Averages::Unsent | Averages::Sent => &self.state.params,
        };
        let next = link.sent.take_next(&self.order, |_| true);
        if link.sent.is_all() {
            link.end_sending();
            if link.averages == Averages::OnTheirWay {
                link.averages = Averages::Sent;
                // The parameters themselves, unless nothing is computed with them any more.
                link.is_sending = !self.state.is_finished();
            }
        }
        // All were sent before the receipt.
        let Some(index) = next else { return Ok(()) };
        self.sent[1] += 1;
        let range = self.cells.range(index).expect("a cell");
        let bytes = self.cells.encode(&range, &values[range.clone()], &mut self.scratch);
        session.send_chunk(step, Cells::offset(&range), bytes)
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
        let is_first = link.sent.is_empty();
        let may_be = |index| self.early.has(index);
        let Some(index) = link.sent.take_next(&self.order, may_be) else { return Ok(()) };
        let next = self.state.step + 1;
        if is_first {
            session.send(&Message::Parameters { step: next, steps })?;
        }
        self.sent[0] += 1;
        let range = self.cells.range(index).expect("a cell");
        let (step, sum) = (self.sgd(steps), &self.round.sum()[range.clone()]);
        let values = self.early.parameters(self.isa, step, &self.state, sum, range.start);
        let bytes = self.cells.encode(&range, values, &mut self.scratch);
        if !self.hashes.has(index) {
            self.hashes.put(index, bytes);
        }
        session.send_chunk(next, Cells::offset(&range), bytes)
    }
}
