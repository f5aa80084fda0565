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
    /// How many cells of the parameters it was sent, while there are more to send.
    pub(super) sending: Option<usize>,
    /// Where averages are evaluated: they are sent first.
    pub(super) averages: Averages,
    /// It has begun to send its part of the round at hand, and is told of what is final.
    pub(super) has_pushed: bool,
    /// How many cells of the next parameters it was sent.
    pub(super) sent_early: usize,
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
