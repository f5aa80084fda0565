//! Rounds that close without somebody: quorum, deadline, refused contributions.
//!
//! Who is left out is decided before anything of it is in the sum, or the sum is made anew: a round's result depends
//! on who contributed and on nothing else, whenever they did.

use protocol::Refusal;

use super::ParameterServer;
use super::link::{Link, Place};
use crate::training::round::{Announced, Head};
use crate::training::update::weight;

impl ParameterServer {
    /// Whether a worker's gradients of that step come too late to count: a round closed without it, or the job gave
    /// up at this step.
    pub(super) fn is_void(&self, worker: u16, step: u64) -> bool {
        let is_over = step < self.state.step || self.round.is_left_out(worker);
        let closes_without = self.job.quorum.is_some() && is_over && step <= self.state.step;
        closes_without || (self.state.is_finished() && step == self.state.step)
    }

    /// Takes the head of a worker's gradients.
    pub(super) fn announce(
        &mut self,
        worker: u16,
        samples: u32,
        loss: f32,
        fresh: bool,
    ) -> Result<(), Refusal> {
        let step = self.state.step;
        let count = self.job.round_len(step, self.state.steps.unwrap_or_default());
        if u64::from(samples) > count * u64::from(self.job.batch_max()) {
            return Err(Refusal::Protocol);
        }
        // Where nothing is carried over, nobody begins anew: others have been told what came of the sum.
        if fresh && !self.round.may_begin_anew() {
            return Err(Refusal::Protocol);
        }
        let weight = weight(&self.job, &self.state.members, worker, samples);
        let announced = Announced { samples, weight, loss, fresh };
        let head = self.round.announce(worker, announced);
        if head.map_err(|why| self.refused(worker, why))? == Head::Anew {
            self.ask_again(worker);
            self.say(format!("step {step}: the sum is made anew, with worker{worker}"));
        }
        if fresh && step > 0 {
            self.say(format!(
                "step {step}: worker{worker} carries no rounding error over from before"
            ));
        }
        Ok(())
    }

    /// The time for a round is over: settles who is left out, if enough others are in. Who has begun to send is in;
    /// where all have, the one that the others wait for is left out. Says whether that changed anything; if not, it
    /// may when another worker begins to send.
    pub fn leave_out_late(&mut self) -> bool {
        let Some(quorum) = self.job.quorum else { return false };
        if self.state.is_finished() {
            return self.evaluate_without_late();
        }
        if self.round.is_closed() && !self.is_evaluating() {
            return false;
        }
        let enough = usize::from(quorum.workers);
        if self.state.steps.is_none() {
            let here = (0..self.job.workers).filter(|&worker| self.is_here(worker)).count();
            let begins = here >= enough;
            if begins {
                self.settle_steps();
            }
            return begins;
        }
        let (sending, late): (Vec<u16>, Vec<u16>) =
            self.round.active().partition(|&worker| self.round.has_announced(worker));
        let slowest = self.round.awaited().filter(|_| late.is_empty());
        if sending.len() - usize::from(slowest.is_some()) < enough {
            return false;
        }
        let out = slowest.map_or(late, |worker| vec![worker]);
        out.into_iter().for_each(|worker| self.leave_out(worker));
        true
    }

    /// After the last step only evaluations can be waited for.
    fn evaluate_without_late(&mut self) -> bool {
        let late: Vec<u16> = (0..self.job.workers).filter(|&w| self.tally.lacks(w)).collect();
        let is_late = self.is_evaluating() && !late.is_empty();
        if is_late {
            late.into_iter().for_each(|worker| self.evaluate_without(worker));
            self.progress += 1;
        }
        is_late
    }

    fn evaluate_without(&mut self, worker: u16) {
        let is_table = self.tally.take(worker, &[]);
        debug_assert!(is_table, "an empty one always is");
    }

    /// Leaves out a worker whose values are not finite, if enough others are there.
    pub(super) fn leave_out_refused(&mut self, worker: u16) -> bool {
        let Some(quorum) = self.job.quorum else { return false };
        let others = self.round.active().filter(|&other| other != worker).count();
        if others < usize::from(quorum.workers) {
            return false;
        }
        self.say(format!(
            "step {}: what worker{worker} sends is not finite; the round goes on without it",
            self.state.step
        ));
        self.leave_out(worker);
        // A part of it may be in the sum of the cell at hand too.
        self.round.begin_sum();
        self.ask_again(worker);
        true
    }

    /// Workers that were left out of the last round and are not there now are not waited for either.
    pub(super) fn expect_who_is_here(&mut self) {
        // Who comes after the end is told of it.
        let Some(quorum) = self.job.quorum.filter(|_| !self.state.is_finished()) else { return };
        let gone: Vec<u16> = (0..self.job.workers)
            .filter(|&worker| !self.counted_last[usize::from(worker)] && !self.is_here(worker))
            .collect();
        if usize::from(self.job.workers) - gone.len() >= usize::from(quorum.workers) {
            gone.into_iter().for_each(|worker| self.leave_out(worker));
        }
    }

    /// Notes who was in a round that closed; who returned and who stays away is worth a line.
    pub(super) fn note_who_contributed(&mut self) {
        for worker in 0..self.job.workers {
            let (index, step) = (usize::from(worker), self.state.step);
            let (was, is) = (self.counted_last[index], !self.round.is_left_out(worker));
            match (was, is) {
                (true, false) => self.say(format!("worker{worker}: left out since step {step}")),
                (false, true) if step > 0 => {
                    self.say(format!("worker{worker}: takes part from step {step} on"));
                    self.tally.forget(worker);
                }
                _ => {}
            }
            self.counted_last[index] = is;
        }
    }

    /// Asks everybody else whose gradients were in the sum for them.
    pub(super) fn ask_again(&mut self, but: u16) {
        let round = &self.round;
        let is_in = |link: &&mut Link| {
            link.worker != but && round.has_announced(link.worker) && link.place == Place::Held
        };
        for link in self.links.values_mut().filter(is_in) {
            link.repeat = !link.is_sending;
        }
    }

    fn leave_out(&mut self, worker: u16) {
        if self.round.leave_out(worker) {
            self.ask_again(worker);
        }
        self.evaluate_without(worker);
        self.progress += 1;
        let holds = |link: &&mut Link| link.worker == worker && link.place == Place::Held;
        if let Some(link) = self.links.values_mut().find(holds) {
            (link.skipped, link.repeat) = (true, false);
            link.end_sending();
        }
    }

    fn is_here(&self, worker: u16) -> bool {
        self.holder(worker).is_some()
    }
}
