//! Where the time of a worker's step goes. It costs two readings of the clock at each change, five in a step.

use std::time::{Duration, Instant};

use protocol::Spent;

/// What a worker does, in the order of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The step before is sent; nothing of the next came yet.
    Waiting,
    /// Parameters come in.
    Pull,
    /// The forward pass.
    Forward,
    /// The backward pass, with what it sends meanwhile.
    Backward,
    /// Sending what the backward pass left.
    Push,
}

/// Times of the phases since they were last taken.
#[derive(Debug, Default)]
pub(super) struct Stopwatch {
    /// Not before the first parameters come: waiting for others to join is no part of a step.
    now: Option<(Phase, Instant)>,
    spent: [Duration; 5],
}

impl Stopwatch {
    /// What is done from `at` on.
    pub(super) fn enter(&mut self, phase: Phase, at: Instant) {
        if let Some((before, since)) = self.now.replace((phase, at)) {
            self.spent[before as usize] += at.saturating_duration_since(since);
        }
    }

    /// What follows is no part of a step, until parameters come.
    pub(super) fn rest(&mut self) {
        if let Some((before, since)) = self.now.take() {
            self.spent[before as usize] += since.elapsed();
        }
    }

    /// Looks at a connection: whether something still goes out, and whether parameters come in.
    pub(super) fn look(&mut self, sends: bool, receives: bool) {
        let next = match self.now {
            _ if receives => Phase::Pull,
            Some((Phase::Push, _)) if !sends => Phase::Waiting,
            _ => return,
        };
        if self.now.is_none_or(|(now, _)| now != next) {
            self.enter(next, Instant::now());
        }
    }

    /// The times since the last call, for a step of so many samples.
    pub(super) fn take(&mut self, samples: u32) -> Spent {
        let micros = |phase| {
            let time: Duration = self.spent[phase as usize];
            u32::try_from(time.as_micros()).unwrap_or(u32::MAX)
        };
        let spent = Spent {
            samples,
            pull: micros(Phase::Pull),
            forward: micros(Phase::Forward),
            backward: micros(Phase::Backward),
            push: micros(Phase::Push),
            waiting: micros(Phase::Waiting),
        };
        self.spent = Default::default();
        spent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_moment_of_a_step_belongs_to_one_phase() {
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        let mut watch = Stopwatch::default();
        watch.look(false, false);
        assert!(watch.now.is_none(), "waiting for the others to join is no step");
        for (phase, ms) in [(Phase::Pull, 0), (Phase::Forward, 1), (Phase::Backward, 3)] {
            watch.enter(phase, at(ms));
        }
        watch.enter(Phase::Push, at(7));
        let first =
            Spent { samples: 8, pull: 1000, forward: 2000, backward: 4000, push: 0, waiting: 0 };
        assert_eq!(watch.take(8), first);
        watch.enter(Phase::Waiting, at(15));
        watch.enter(Phase::Pull, at(31));
        watch.enter(Phase::Forward, at(31));
        assert_eq!(watch.take(0), Spent { push: 8000, waiting: 16_000, ..Spent::default() });
    }

    #[test]
    fn what_a_connection_does_says_the_phase() {
        let phase = |watch: &Stopwatch| watch.now.map(|(phase, _)| phase);
        let mut watch = Stopwatch::default();
        watch.look(false, true);
        assert_eq!(phase(&watch), Some(Phase::Pull));
        watch.enter(Phase::Push, Instant::now());
        watch.look(true, false);
        assert_eq!(phase(&watch), Some(Phase::Push));
        watch.look(false, false);
        assert_eq!(phase(&watch), Some(Phase::Waiting));
        watch.look(true, true);
        assert_eq!(phase(&watch), Some(Phase::Pull));
        watch.rest();
        watch.look(true, false);
        assert_eq!(phase(&watch), None);
    }
}
