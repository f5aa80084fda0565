//! `Backlog`: parts of a step's gradients that are final, until they are handed on: beside the backward pass, in
//! their order, by one thread at a time.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// A part of the flat buffers that is done with in a step.
pub struct Part<'a> {
    /// The step's loss.
    pub loss: f32,
    /// Where it is.
    pub range: Range<usize>,
    /// Its parameters, which the step reads no more.
    pub params: &'a mut [f32],
    /// Its gradients, and all behind it: those of the parts before.
    pub gradients: &'a [f32],
}

/// How parts are handed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pieces {
    /// As they are, by a thread that does nothing else meanwhile: for what takes long.
    Whole,
    /// Cut small, also by threads that would wait for each other: for what is done in microseconds.
    Small,
}

impl Pieces {
    /// Values of a piece at most.
    fn len(self) -> usize {
        match self {
            Self::Whole => usize::MAX,
            Self::Small => 1 << 14,
        }
    }

    /// Pieces that can wait where so many blocks are still to come, each of which leaves threads time for about
    /// as many.
    fn patience(self, blocks: usize) -> usize {
        match self {
            Self::Whole => 0,
            Self::Small => 60 * blocks,
        }
    }
}

/// Parts that there is room for.
const PARTS: usize = 32;

/// Parts that are not handed on yet.
pub(crate) struct Backlog<'a, F> {
    pieces: Pieces,
    done: Mutex<F>,
    parts: Mutex<Parts<'a>>,
    /// Pieces that are left, and how many of them can wait.
    left: AtomicUsize,
    patience: AtomicUsize,
}

impl<'a, F: FnMut(Part) + Send> Backlog<'a, F> {
    /// An empty one, whose pieces are handed on to `done`.
    pub(crate) fn new(pieces: Pieces, done: F) -> Self {
        let parts = Parts { slots: [const { None }; PARTS], first: 0, count: 0 };
        let (done, parts) = (Mutex::new(done), Mutex::new(parts));
        let [left, patience] = [0, 0].map(AtomicUsize::new);
        Self { pieces, done, parts, left, patience }
    }

    /// Adds a part when so many blocks are still to come.
    pub(crate) fn push(&self, part: Part<'a>, blocks: usize) {
        self.patience.store(self.pieces.patience(blocks), Ordering::Relaxed);
        self.left.fetch_add(part.range.len().div_ceil(self.pieces.len()), Ordering::Relaxed);
        let pushed = self.parts().push(part);
        if let Err(part) = pushed {
            self.finish();
            let pushed = self.parts().push(part);
            assert!(pushed.is_ok(), "nothing is left");
        }
    }

    /// Hands on a piece if it cannot wait; says whether it did.
    pub(crate) fn hurry(&self) -> bool {
        self.left.load(Ordering::Relaxed) > self.patience.load(Ordering::Relaxed) && self.hand_on()
    }

    /// Hands on a piece if that takes a moment only; says whether it did.
    pub(crate) fn fill(&self) -> bool {
        self.pieces == Pieces::Small && self.left.load(Ordering::Relaxed) > 0 && self.hand_on()
    }

    /// Hands on all that is left.
    pub(crate) fn finish(&self) {
        // After a panic of `done` nothing is: the pool brings it to the caller.
        if let Ok(mut done) = self.done.lock() {
            while self.hand_on_to(&mut done) {}
        }
    }

    /// Where no other thread is at it.
    fn hand_on(&self) -> bool {
        self.done.try_lock().is_ok_and(|mut done| self.hand_on_to(&mut done))
    }

    fn hand_on_to(&self, done: &mut F) -> bool {
        let Some(piece) = self.parts().take(self.pieces.len()) else { return false };
        self.left.fetch_sub(1, Ordering::Relaxed);
        done(piece);
        true
    }

    fn parts(&self) -> impl std::ops::DerefMut<Target = Parts<'a>> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The first that came is the first to go.
struct Parts<'a> {
    slots: [Option<Part<'a>>; PARTS],
    first: usize,
    count: usize,
}

impl<'a> Parts<'a> {
    /// Gives it back where there is no room.
    fn push(&mut self, part: Part<'a>) -> Result<(), Part<'a>> {
        if self.count == PARTS {
            return Err(part);
        }
        self.slots[(self.first + self.count) % PARTS] = Some(part);
        self.count += 1;
        Ok(())
    }

    /// The last values of the first part: so many, or what is left of such pieces.
    fn take(&mut self, len: usize) -> Option<Part<'a>> {
        let slot = &mut self.slots[self.first];
        let Part { loss, range, params, gradients } = slot.take()?;
        let cut = range.len().saturating_sub(1) / len * len;
        let (before, params) = params.split_at_mut(cut);
        if cut > 0 {
            *slot = Some(Part {
                loss,
                range: range.start..range.start + cut,
                params: before,
                gradients,
            });
        } else {
            self.first = (self.first + 1) % PARTS;
            self.count -= 1;
        }
        Some(Part {
            loss,
            range: range.start + cut..range.end,
            params,
            gradients: &gradients[cut..],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parts of such lengths are pushed from the end of a buffer on, `hand_on` is called after each; what was
    /// handed on then.
    fn handed_on(
        pieces: Pieces,
        lens: &[usize],
        hand_on: impl Fn(&Backlog<'_, &mut (dyn FnMut(Part) + Send)>),
    ) -> Vec<Range<usize>> {
        let mut ranges = Vec::new();
        let mut end = lens.iter().sum();
        let (mut params, gradients) = (vec![0.0; end], vec![1.0; end]);
        let mut done = |part: Part| {
            assert_eq!(part.params.len(), part.range.len());
            assert_eq!(part.gradients.len(), gradients.len() - part.range.start);
            ranges.push(part.range);
        };
        let backlog = Backlog::new(pieces, &mut done as &mut (dyn FnMut(Part) + Send));
        let mut left = &mut *params;
        for &len in lens {
            let range = end - len..end;
            let (before, params) = left.split_at_mut(range.start);
            (left, end) = (before, range.start);
            let gradients = &gradients[range.start..];
            backlog.push(Part { loss: 0.5, range, params, gradients }, 0);
            hand_on(&backlog);
        }
        backlog.finish();
        assert_eq!(backlog.left.load(Ordering::Relaxed), 0);
        ranges
    }

    #[test]
    fn pieces_go_from_the_end_to_the_start_without_a_gap() {
        let small = Pieces::Small.len();
        let lens = [1, small, 3 * small + 7, 2 * small, 5];
        let all: usize = lens.iter().sum();
        for pieces in [Pieces::Whole, Pieces::Small] {
            for steps in 0..4 {
                let ranges = handed_on(pieces, &lens, |backlog| {
                    for _ in 0..steps {
                        backlog.hurry();
                    }
                });
                let ends = ranges.iter().map(|range| range.end);
                assert!(ends.eq(
                    std::iter::once(all).chain(ranges.iter().map(|r| r.start)).take(ranges.len())
                ));
                assert_eq!(ranges.last().map(|range| range.start), Some(0));
                assert!(ranges.iter().all(|range| range.len() <= pieces.len()));
                assert_eq!(ranges.len(), if pieces == Pieces::Whole { 5 } else { 9 });
            }
        }
    }

    #[test]
    fn more_parts_than_there_is_room_for_are_handed_on_at_once() {
        let ranges = handed_on(Pieces::Whole, &[3; PARTS + 5], |_| {});
        assert_eq!(ranges.len(), PARTS + 5);
    }

    #[test]
    fn who_would_wait_hands_on_small_pieces_alone_and_who_hurries_what_cannot_wait() {
        let len = 100 * Pieces::Small.len();
        for (pieces, fills) in [(Pieces::Whole, false), (Pieces::Small, true)] {
            let (mut params, gradients) = (vec![0.0; len], vec![0.0; len]);
            let mut count = 0;
            let backlog = Backlog::new(pieces, |_| count += 1);
            let part =
                Part { loss: 0.0, range: 0..len, params: &mut params, gradients: &gradients };
            backlog.push(part, 1);
            assert_eq!(backlog.fill(), fills);
            while backlog.hurry() {}
            let left = backlog.left.load(Ordering::Relaxed);
            assert_eq!(left, pieces.patience(1));
            assert_eq!(count, if fills { 40 } else { 1 });
        }
    }
}
