//! A worker's connection as the server knows it: its place, and what it waits for.

use protocol::Admission;

use crate::job::state::Member;

/// A verified connection.
pub(super) struct Link {
    pub(super) worker: u16,
    /// What the roster will say of it once it has joined.
    pub(super) admission: Option<Box<Admission>>,
    /// Entries of the roster that it was sent.
    pub(super) told: usize,
    /// It waits for the parameters as they stand, with what is told before them.
    pub(super) is_sending: bool,
    /// Those that it was sent of these or, while a round runs, of the next ones.
    pub(super) sent: SentCells,
    /// Where averages are evaluated: they are sent first.
    pub(super) averages: Averages,
    /// It has begun to send its part of the round at hand, and is told of what is final.
    pub(super) has_pushed: bool,
    /// It is to be asked for its gradients once more.
    pub(super) repeat: bool,
    /// It is to be told that a round closes, or closed, without it.
    pub(super) skipped: bool,
    /// The step whose receipt it was told last.
    pub(super) receipt: Option<u64>,
    pub(super) place: Place,
    /// It has no test images, and no place yet.
    pub(super) is_blind: bool,
    pub(super) told_end: bool,
    pub(super) challenge: Challenge,
}

/// Which cells of some parameters a worker was sent: none where it was not told of them.
#[derive(Debug, Default)]
pub(super) struct SentCells(Vec<bool>);

impl SentCells {
    /// Whether it was told of none.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The first cell by that order that may be sent and was not. It was sent then.
    pub(super) fn take_next(
        &mut self,
        order: &[usize],
        may_be: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let was_sent = |index: usize| self.0.get(index).is_some_and(|&is_sent| is_sent);
        let next = order.iter().copied().find(|&index| !was_sent(index) && may_be(index))?;
        self.0.resize(order.len(), false);
        self.0[next] = true;
        Some(next)
    }

    /// Whether nothing is left.
    pub(super) fn is_all(&self) -> bool {
        !self.0.is_empty() && self.0.iter().all(|&is_sent| is_sent)
    }

    /// Others are to be sent.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

impl Link {
    /// Of a worker that has neither joined nor been told anything.
    pub(super) fn new(worker: u16, admission: Option<Box<Admission>>) -> Self {
        Self {
            worker,
            admission,
            told: 0,
            is_sending: false,
            sent: SentCells::default(),
            averages: Averages::Unsent,
            has_pushed: false,
            repeat: false,
            skipped: false,
            receipt: None,
            place: Place::None,
            is_blind: false,
            told_end: false,
            challenge: Challenge::None,
        }
    }

    /// It is to be sent all of the parameters as they stand.
    pub(super) fn begin_sending(&mut self) {
        self.sent.clear();
        self.is_sending = true;
    }

    /// There is nothing more that it is to be sent.
    pub(super) fn end_sending(&mut self) {
        self.sent.clear();
        self.is_sending = false;
    }
}

/// What a connection has to do with the place of its worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// It did not join yet.
    None,
    /// It joined and is part of the rounds.
    Held,
    /// It could join, but another connection holds the place: one of the two is dead or a mistake.
    Wanted(Member),
    /// The other one turned out to be alive.
    Lost,
}

/// How far averages are that are sent to be evaluated, before the parameters of the same step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Averages {
    Unsent,
    OnTheirWay,
    Sent,
}

/// Whether the holder of a place was asked for a sign of life, because another wants the place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    None,
    /// To be asked when its connection is looked at.
    Due,
    /// Asked by the question of this number.
    Asked(u64),
}
