//! Gradient buckets, as DDP has them (Li et al., "PyTorch Distributed", 2020): ranges of a step's gradients that are
//! final wait here until they are handed on, beside the backward pass, in their order, by one thread at a time.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// A bucket of the flat buffers that is done with in a step.
pub struct Bucket<'a> {
    /// The step's loss.
    pub loss: f32,
    /// Where it is.
    pub range: Range<usize>,
    /// Its parameters, which the step reads no more.
    pub params: &'a mut [f32],
    /// Its gradients, and all behind it: those of the buckets before.
    pub gradients: &'a [f32],
}

/// How buckets are handed on.
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
    fn deferrable(self, blocks: usize) -> usize {
        match self {
            Self::Whole => 0,
            Self::Small => 60 * blocks,
        }
    }
}

/// Buckets that there is room for: more than ResNet-50 has (16 blocks, stem, classifier, statistics), so that only
/// deeper networks ever hand on in between.
const BUCKETS: usize = 32;

/// Buckets that are not handed on yet.
pub(crate) struct ReadyBuckets<'a, F> {
    pieces: Pieces,
    done: Mutex<F>,
    buckets: Mutex<Queue<'a>>,
    /// Pieces that are left, and how many of them can wait. Relaxed: a look at them only tells whether to try; what is
    /// handed on is behind the locks.
    left: AtomicUsize,
    deferrable: AtomicUsize,
}

impl<'a, F: FnMut(Bucket) + Send> ReadyBuckets<'a, F> {
    /// An empty one, whose pieces are handed on to `done`.
    pub(crate) fn new(pieces: Pieces, done: F) -> Self {
        let buckets = Queue { slots: [const { None }; BUCKETS], first: 0, count: 0 };
        let (done, buckets) = (Mutex::new(done), Mutex::new(buckets));
        let [left, deferrable] = [0, 0].map(AtomicUsize::new);
        Self { pieces, done, buckets, left, deferrable }
    }

    /// Adds a bucket when so many blocks are still to come.
    pub(crate) fn push(&self, bucket: Bucket<'a>, blocks: usize) {
        self.deferrable.store(self.pieces.deferrable(blocks), Ordering::Relaxed);
        self.left.fetch_add(bucket.range.len().div_ceil(self.pieces.len()), Ordering::Relaxed);
        let pushed = self.buckets().push(bucket);
        if let Err(bucket) = pushed {
            self.flush();
            let pushed = self.buckets().push(bucket);
            assert!(pushed.is_ok(), "nothing is left");
        }
    }

    /// Hands on a piece if it cannot wait; says whether it did.
    pub(crate) fn hand_on_overdue(&self) -> bool {
        self.left.load(Ordering::Relaxed) > self.deferrable.load(Ordering::Relaxed)
            && self.hand_on()
    }

    /// Hands on a piece if that takes a moment only; says whether it did.
    pub(crate) fn hand_on_brief(&self) -> bool {
        self.pieces == Pieces::Small && self.left.load(Ordering::Relaxed) > 0 && self.hand_on()
    }

    /// Hands on all that is left.
    pub(crate) fn flush(&self) {
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
        let Some(piece) = self.buckets().take(self.pieces.len()) else { return false };
        self.left.fetch_sub(1, Ordering::Relaxed);
        done(piece);
        true
    }

    fn buckets(&self) -> impl std::ops::DerefMut<Target = Queue<'a>> {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The first that came is the first to go.
struct Queue<'a> {
    slots: [Option<Bucket<'a>>; BUCKETS],
    first: usize,
    count: usize,
}

impl<'a> Queue<'a> {
    /// Gives it back where there is no room.
    fn push(&mut self, bucket: Bucket<'a>) -> Result<(), Bucket<'a>> {
        if self.count == BUCKETS {
            return Err(bucket);
        }
        self.slots[(self.first + self.count) % BUCKETS] = Some(bucket);
        self.count += 1;
        Ok(())
    }

    /// The last values of the first bucket: so many, or what is left of such pieces.
    fn take(&mut self, len: usize) -> Option<Bucket<'a>> {
        let slot = &mut self.slots[self.first];
        let Bucket { loss, range, params, gradients } = slot.take()?;
        let cut = range.len().saturating_sub(1) / len * len;
        let (before, params) = params.split_at_mut(cut);
        if cut > 0 {
            *slot = Some(Bucket {
                loss,
                range: range.start..range.start + cut,
                params: before,
                gradients,
            });
        } else {
            self.first = (self.first + 1) % BUCKETS;
            self.count -= 1;
        }
        Some(Bucket {
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

    /// Queue of such lengths are pushed from the end of a buffer on, `hand_on` is called after each; what was
    /// handed on then.
    fn handed_on(
        pieces: Pieces,
        lens: &[usize],
        hand_on: impl Fn(&ReadyBuckets<'_, &mut (dyn FnMut(Bucket) + Send)>),
    ) -> Vec<Range<usize>> {
        let mut ranges = Vec::new();
        let mut end = lens.iter().sum();
        let (mut params, gradients) = (vec![0.0; end], vec![1.0; end]);
        let mut done = |bucket: Bucket| {
            assert_eq!(bucket.params.len(), bucket.range.len());
            assert_eq!(bucket.gradients.len(), gradients.len() - bucket.range.start);
            ranges.push(bucket.range);
        };
        let ready = ReadyBuckets::new(pieces, &mut done as &mut (dyn FnMut(Bucket) + Send));
        let mut left = &mut *params;
        for &len in lens {
            let range = end - len..end;
            let (before, params) = left.split_at_mut(range.start);
            (left, end) = (before, range.start);
            let gradients = &gradients[range.start..];
            ready.push(Bucket { loss: 0.5, range, params, gradients }, 0);
            hand_on(&ready);
        }
        ready.flush();
        assert_eq!(ready.left.load(Ordering::Relaxed), 0);
        ranges
    }

    #[test]
    fn pieces_go_from_the_end_to_the_start_without_a_gap() {
        let small = Pieces::Small.len();
        let lens = [1, small, 3 * small + 7, 2 * small, 5];
        let all: usize = lens.iter().sum();
        for pieces in [Pieces::Whole, Pieces::Small] {
            for steps in 0..4 {
                let ranges = handed_on(pieces, &lens, |ready| {
                    for _ in 0..steps {
                        ready.hand_on_overdue();
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
        let ranges = handed_on(Pieces::Whole, &[3; BUCKETS + 5], |_| {});
        assert_eq!(ranges.len(), BUCKETS + 5);
    }

    #[test]
    fn who_would_wait_hands_on_small_pieces_alone_and_what_is_overdue_goes() {
        let len = 100 * Pieces::Small.len();
        for (pieces, fills) in [(Pieces::Whole, false), (Pieces::Small, true)] {
            let (mut params, gradients) = (vec![0.0; len], vec![0.0; len]);
            let mut count = 0;
            let ready = ReadyBuckets::new(pieces, |_| count += 1);
            let bucket =
                Bucket { loss: 0.0, range: 0..len, params: &mut params, gradients: &gradients };
            ready.push(bucket, 1);
            assert_eq!(ready.hand_on_brief(), fills);
            while ready.hand_on_overdue() {}
            let left = ready.left.load(Ordering::Relaxed);
            assert_eq!(left, pieces.deferrable(1));
            assert_eq!(count, if fills { 40 } else { 1 });
        }
    }
}
