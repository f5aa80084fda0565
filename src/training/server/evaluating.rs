//! The server's part of an evaluation: what workers found is added up before the round of that step closes.

use protocol::Refusal;

use super::ParameterServer;
use super::link::Place;
use crate::history::Evaluation;
use crate::job::state::State;

impl ParameterServer {
    /// Whether the parameters as they stand are to be evaluated, and are not yet.
    pub fn is_evaluating(&self) -> bool {
        let State { step, found, .. } = &self.state;
        let batches = self.batches();
        let each = self.job.local_steps.map_or(1, u64::from);
        let due = |steps, batches| self.job.evaluation.is_due(*step, steps, [batches, each]);
        found.last != *step && self.state.steps.zip(batches).is_some_and(|(s, b)| due(s, b))
    }

    /// What all workers found on their test images with the parameters as they stand, once all have said so, and
    /// whether that is better than before. To be asked before [`ParameterServer::close_round`], which waits for it.
    pub fn settle_evaluation(&mut self) -> Option<(Evaluation, bool)> {
        if !self.is_evaluating() || !self.tally.is_complete() {
            return None;
        }
        let step = self.state.step;
        let evaluation = self.tally.settle(step, self.job.classes.names());
        let is_best = self.state.found.take(step, evaluation.total());
        let since = self.state.found.since;
        if self.job.evaluation.patience.is_some_and(|patience| since >= patience)
            && !self.state.is_finished()
        {
            let best = self.state.found.best;
            self.say(format!("{since} evaluations were no better than step {best}: the end"));
            self.state.steps = Some(step);
        }
        self.progress += 1;
        if self.state.is_finished() {
            for link in self.links.values_mut().filter(|link| link.place == Place::Held) {
                link.begin_sending();
            }
        }
        Some((evaluation, is_best))
    }

    /// Takes what a worker found. An empty table has no step: who has no test images may say so at once.
    pub(super) fn evaluated(
        &mut self,
        id: usize,
        step: u64,
        confusion: &[u32],
    ) -> Result<(), Refusal> {
        let link = self.links.get_mut(&id).ok_or(Refusal::Protocol)?;
        if link.place != Place::Held {
            // Who waits for a place that another holds has said it with its join: it counts once the place is free.
            let waits = matches!(link.place, Place::Wanted(_) | Place::Lost);
            link.is_blind = waits && confusion.is_empty();
            return link.is_blind.then_some(()).ok_or(Refusal::Protocol);
        }
        let worker = link.worker;
        let is_due = step == self.state.step && self.is_evaluating();
        // After a lost connection it may say again what has been settled.
        let is_late = step <= self.state.found.last;
        let taken = match confusion.is_empty() || is_due {
            true => self.tally.take(worker, confusion),
            false => is_late,
        };
        taken.then_some(()).ok_or(Refusal::Protocol)
    }
}
