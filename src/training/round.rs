//! One aggregation round as a pure value: the weighted sum of all workers' gradients.
//!
//! Additions of floating-point numbers do not commute once there are three of them, so each cell of
//! the buffer takes the workers in the order of their numbers, whatever the order of arrival: a chunk
//! that comes before its turn is left with its connection, which stops reading. A chunk that was
//! counted already (its worker died and computed the step again, to the same bits) is ignored.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::job::receipt::Share;
use crate::training::cell_hashes::CellHashes;
use crate::training::cells::Cells;

/// The state of a round.
pub struct Round {
    cells: Cells,
    sum: Vec<f32>,
    /// Values of a cell that do not travel as they are.
    scratch: Vec<f32>,
    /// For each cell, the worker below whose number it has all, but for those that are left out.
    counted: Vec<u16>,
    left_out: Vec<bool>,
    announced: Vec<Option<Announced>>,
    /// Of what each worker has in the sum.
    hashes: Vec<CellHashes>,
    /// A value that is not finite is in the sum.
    spoiled: bool,
}

/// What a worker says before its gradients.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Announced {
    /// Samples of its batch.
    pub samples: u32,
    /// What its gradients weigh.
    pub weight: f32,
    /// Mean loss of its batch.
    pub loss: f32,
    /// Nothing of earlier rounds is in its gradients, though something could be.
    pub fresh: bool,
}

/// What the head of a worker's gradients makes of a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// It goes on.
    Known,
    /// It begins anew, and the others have to send theirs again: the worker lost what it had carried over, so that
    /// its gradients are others than those that are in the sum already.
    Anew,
}

/// A worker's part in a closed round: with parameters and data, all that its gradients depended on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contributed {
    /// Its number.
    pub worker: u16,
    /// Its samples.
    pub samples: u32,
    /// See [`Announced::fresh`].
    pub fresh: bool,
}

/// What became of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    /// It is part of the sum.
    Counted,
    /// It was part of the sum already.
    Duplicate,
    /// Workers with lower numbers come first.
    TooEarly,
}

/// What a peer may not do in a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoundError {
    /// Gradients of a worker that did not announce them, or announced others before.
    Unannounced,
    /// The chunk is not exactly one cell.
    NotACell,
    /// A value is infinite or no number.
    NotFinite,
}

impl Round {
    /// A round over values that travel in such cells, with `workers` workers.
    pub fn new(cells: Cells, workers: u16) -> Self {
        assert!(workers > 0);
        Self {
            cells,
            sum: vec![0.0; cells.len()],
            scratch: Vec::new(),
            counted: vec![0; cells.count()],
            left_out: vec![false; usize::from(workers)],
            announced: vec![None; usize::from(workers)],
            hashes: vec![CellHashes::new(cells.count()); usize::from(workers)],
            spoiled: false,
        }
    }

    /// Takes the head of a worker's gradients.
    ///
    /// # Errors
    /// When the worker announced something else in this round before.
    pub fn announce(&mut self, worker: u16, announced: Announced) -> Result<Head, RoundError> {
        let slot = &mut self.announced[usize::from(worker)];
        if !announced.loss.is_finite() {
            return Err(RoundError::NotFinite);
        }
        if announced.samples == 0 || slot.is_some_and(|before| before.samples != announced.samples)
        {
            return Err(RoundError::Unannounced);
        }
        let differs = slot.replace(announced).is_some_and(|old| old.fresh != announced.fresh);
        if differs && self.counted.iter().any(|&counted| counted > worker) {
            self.begin_sum();
            return Ok(Head::Anew);
        }
        Ok(Head::Known)
    }

    /// Begins the sum anew: everybody has to send again.
    pub fn begin_sum(&mut self) {
        self.counted.fill(0);
        self.spoiled = false;
    }

    /// Goes on without a worker; says whether the sum begins anew, since something of it was in there.
    pub fn leave_out(&mut self, worker: u16) -> bool {
        let index = usize::from(worker);
        self.left_out[index] = true;
        self.announced[index] = None;
        let was_in = self.counted.iter().any(|&counted| counted > worker);
        if was_in {
            self.begin_sum();
        }
        was_in
    }

    /// Whether a worker that comes back may send other values than before, so that the sum is made anew.
    pub fn may_begin_anew(&self) -> bool {
        self.cells.need_feedback()
    }

    /// Whether the round goes on without the worker.
    pub fn is_left_out(&self, worker: u16) -> bool {
        self.left_out[usize::from(worker)]
    }

    /// Those who are not left out.
    pub fn active(&self) -> impl Iterator<Item = u16> + '_ {
        (0_u16..).zip(&self.left_out).filter(|(_, is_out)| !**is_out).map(|(worker, _)| worker)
    }

    /// The first worker that a cell waits for.
    pub fn awaited(&self) -> Option<u16> {
        let counted = self.counted.iter().copied().min()?;
        self.active().find(|worker| *worker >= counted)
    }

    /// Whether the worker announced its gradients.
    pub fn has_announced(&self, worker: u16) -> bool {
        self.announced[usize::from(worker)].is_some()
    }

    /// Adds a worker's values at `offset` bytes of the flat buffer. They are looked at in the pass that adds them, so
    /// after [`RoundError::NotFinite`] the sum is spoiled: the round cannot be closed.
    ///
    /// # Errors
    /// When the bytes are not exactly one cell, nothing was announced, or a value is not finite.
    pub fn add(&mut self, worker: u16, offset: u64, data: &[u8]) -> Result<Added, RoundError> {
        let announced = self.announced[usize::from(worker)].ok_or(RoundError::Unannounced)?;
        let (index, range) = self.cells.find(offset, data.len()).ok_or(RoundError::NotACell)?;
        let turn = self.active().find(|worker| *worker >= self.counted[index]);
        if turn.is_none_or(|turn| worker < turn) {
            return Ok(Added::Duplicate);
        }
        if turn != Some(worker) {
            return Ok(Added::TooEarly);
        }
        let (weight, is_first) = (announced.weight, self.active().next() == Some(worker));
        let largest = if self.cells.are_plain() {
            let (values, _) = data.as_chunks::<4>();
            let values = values.iter().map(|&value| f32::from_le_bytes(value));
            add_to(&mut self.sum[range], values, is_first, weight)
        } else {
            self.scratch.resize(range.len(), 0.0);
            self.cells.decode(&range, data, &mut self.scratch);
            add_to(&mut self.sum[range], self.scratch.iter().copied(), is_first, weight)
        };
        if largest >= f32::INFINITY.to_bits() {
            self.spoiled = true;
            return Err(RoundError::NotFinite);
        }
        self.counted[index] = worker + 1;
        self.hashes[usize::from(worker)].put(index, data);
        Ok(Added::Counted)
    }

    /// The cell that begins at `offset` bytes, if everybody's gradients for it are in.
    pub fn completed_at(&self, offset: u64) -> Option<usize> {
        let index = usize::try_from(offset).ok()? / size_of::<f32>() / self.cells.range(0)?.len();
        let counted = *self.counted.get(index)?;
        let is_complete = !self.spoiled && self.active().all(|worker| worker < counted);
        is_complete.then_some(index)
    }

    /// Values of a sum that is complete, for who makes something else of them: nothing is added to them any more.
    pub fn completed_mut(&mut self, range: Range<usize>) -> &mut [f32] {
        &mut self.sum[range]
    }

    /// Whether every worker's gradients are in.
    pub fn is_closed(&self) -> bool {
        !self.spoiled && self.awaited().is_none()
    }

    /// The weighted sum, complete once the round is closed.
    pub fn sum(&self) -> &[f32] {
        &self.sum
    }

    /// Who is in the sum.
    pub fn contributed(&self) -> Vec<Contributed> {
        let announced = (0_u16..).zip(&self.announced);
        announced
            .filter_map(|(worker, announced)| {
                let Announced { samples, fresh, .. } = (*announced)?;
                Some(Contributed { worker, samples, fresh })
            })
            .collect()
    }

    /// What each worker has in the sum of a closed round, by its number.
    pub fn shares(&self) -> Vec<Option<Share>> {
        let announced = self.announced.iter().zip(&self.hashes);
        announced
            .map(|(announced, hashes)| {
                let Announced { samples, fresh, .. } = (*announced)?;
                Some(Share { samples, fresh, hash: hashes.root()? })
            })
            .collect()
    }

    /// Samples of all workers.
    pub fn samples(&self) -> u64 {
        self.announced.iter().flatten().map(|announced| u64::from(announced.samples)).sum()
    }

    /// Weight of all workers.
    pub fn weight(&self) -> f32 {
        let weights = self.announced.iter().flatten().map(|a| f64::from(a.weight));
        weights.sum::<f64>() as f32
    }

    /// Mean loss, weighted as the gradients are.
    pub fn loss(&self) -> f32 {
        let weighted = |a: &Announced| f64::from(a.loss) * f64::from(a.weight);
        let sum: f64 = self.announced.iter().flatten().map(weighted).sum();
        (sum / f64::from(self.weight())) as f32
    }

    /// Begins the next round.
    pub fn reset(&mut self) {
        self.counted.fill(0);
        self.announced.fill(None);
        self.left_out.fill(false);
        self.hashes.iter_mut().for_each(CellHashes::clear);
        self.spoiled = false;
    }
}

/// Adds weighted values to a sum, or begins it with them. Returns the bits of the largest magnitude: the exponent
/// tells whether all are finite, where a comparison a value would not be done on whole vectors.
#[inline(always)]
fn add_to(sum: &mut [f32], values: impl Iterator<Item = f32>, is_first: bool, weight: f32) -> u32 {
    let mut largest = 0;
    if is_first {
        for (sum, value) in sum.iter_mut().zip(values) {
            largest = largest.max(value.abs().to_bits());
            *sum = weight * value;
        }
    } else {
        for (sum, value) in sum.iter_mut().zip(values) {
            largest = largest.max(value.abs().to_bits());
            *sum += weight * value;
        }
    }
    largest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    const ONE: Announced = Announced { samples: 1, weight: 1.0, loss: 1.0, fresh: false };

    #[test]
    fn the_sum_has_the_same_bits_for_every_order_of_arrival() {
        let values = [[1e8, 1.0], [1.0, 1e-8], [-1e8, 0.1]];
        let sum = |order: [u16; 3]| {
            let mut round = Round::new(Cells::plain(2, 2), 3);
            (0..3).for_each(|worker| {
                round.announce(worker, ONE).expect("first");
            });
            let mut waiting: Vec<u16> = order.to_vec();
            while !waiting.is_empty() {
                waiting.retain(|&worker| {
                    let added = round.add(worker, 0, &bytes(&values[usize::from(worker)]));
                    added.expect("a cell") == Added::TooEarly
                });
            }
            assert!(round.is_closed());
            round.sum().iter().map(|v| v.to_bits()).collect::<Vec<u32>>()
        };
        let orders = [[0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
        assert!(orders.iter().all(|&order| sum(order) == sum([0, 1, 2])));
    }

    #[test]
    fn each_worker_counts_once_with_its_samples_as_weight() {
        let mut round = Round::new(Cells::plain(5, 2), 2);
        round
            .announce(0, Announced { samples: 3, weight: 3.0, loss: 1.0, fresh: false })
            .expect("first");
        round
            .announce(1, Announced { samples: 1, weight: 1.0, loss: 2.0, fresh: false })
            .expect("first");
        for (worker, value) in [(0, 2.0), (1, 10.0)] {
            for (offset, len) in [(16, 1), (8, 2), (0, 2)] {
                let data = bytes(&vec![value; len]);
                assert_eq!(round.add(worker, offset, &data), Ok(Added::Counted));
                assert_eq!(round.add(worker, offset, &data), Ok(Added::Duplicate));
            }
        }
        assert!(round.is_closed());
        assert_eq!(round.sum(), [16.0; 5]);
        assert_eq!((round.samples(), round.loss()), (4, 1.25));
        round.reset();
        assert!(!round.is_closed());
        assert_eq!(round.add(0, 0, &bytes(&[1.0; 2])), Err(RoundError::Unannounced));
    }

    #[test]
    fn what_is_not_finite_never_closes_a_round() {
        for value in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut round = Round::new(Cells::plain(5, 5), 2);
            let loss =
                round.announce(0, Announced { samples: 1, weight: 1.0, loss: value, fresh: false });
            assert_eq!(loss, Err(RoundError::NotFinite));
            (0..2).for_each(|worker| {
                round.announce(worker, ONE).expect("first");
            });
            round.add(0, 0, &bytes(&[1.0; 5])).expect("finite");
            let mut values = [f32::MAX; 5];
            values[4] = value;
            assert_eq!(round.add(1, 0, &bytes(&values)), Err(RoundError::NotFinite), "{value}");
            // Not even with other values afterwards: what is in the sum stays there.
            round.add(1, 0, &bytes(&[1.0; 5])).expect("finite");
            assert!(!round.is_closed());
            round.reset();
            (0..2).for_each(|worker| {
                round.announce(worker, ONE).expect("first");
            });
            (0..2).for_each(|worker| {
                round.add(worker, 0, &bytes(&[1.0; 5])).expect("finite");
            });
            assert!(round.is_closed());
        }
    }

    #[test]
    fn who_begins_anew_makes_the_others_send_again_if_it_is_in_the_sum() {
        let mut round = Round::new(Cells::plain(4, 2), 2);
        let fresh = Announced { fresh: true, ..ONE };
        assert_eq!(round.announce(0, ONE), Ok(Head::Known));
        assert_eq!(round.announce(1, ONE), Ok(Head::Known));
        assert_eq!(round.add(0, 8, &bytes(&[1.0; 2])), Ok(Added::Counted));
        assert_eq!(round.announce(1, fresh), Ok(Head::Known), "none of it was in the sum");
        assert_eq!(round.announce(0, ONE), Ok(Head::Known), "the same as before");
        assert_eq!(round.announce(0, fresh), Ok(Head::Anew));
        for worker in 0..2 {
            for offset in [8, 0] {
                assert_eq!(round.add(worker, offset, &bytes(&[2.0; 2])), Ok(Added::Counted));
            }
        }
        assert!(round.is_closed());
        assert_eq!(round.sum(), [4.0; 4]);
    }

    #[test]
    fn a_round_goes_on_without_who_is_left_out_and_its_sum_has_nothing_of_them() {
        for out in 0..3_u16 {
            for was_in in [false, true] {
                let mut round = Round::new(Cells::plain(2, 1), 3);
                for worker in 0..3 {
                    round.announce(worker, ONE).expect("first");
                }
                for worker in (0..3).take_while(|worker| was_in && *worker <= out) {
                    let part = bytes(&[100.0]);
                    assert_eq!(round.add(worker, 4, &part), Ok(Added::Counted));
                }
                assert_eq!(round.leave_out(out), was_in, "worker {out}");
                assert_eq!(round.awaited(), (0..3).find(|worker| *worker != out));
                for (worker, offset) in [(0, 0), (1, 0), (2, 0), (0, 4), (1, 4), (2, 4)] {
                    if worker != out {
                        let part = bytes(&[f32::from(worker) + 1.0]);
                        assert_eq!(round.add(worker, offset, &part), Ok(Added::Counted));
                    }
                }
                assert!(round.is_closed());
                assert_eq!(round.sum(), [5.0 - f32::from(out); 2]);
                let contributed: Vec<u16> = round.contributed().iter().map(|c| c.worker).collect();
                assert_eq!(contributed, round.active().collect::<Vec<u16>>());
            }
        }
    }

    #[test]
    fn chunks_that_are_no_cell_are_refused() {
        let mut round = Round::new(Cells::plain(5, 2), 1);
        round.announce(0, ONE).expect("first");
        let cases =
            [(0, 1), (0, 3), (4, 2), (1, 2), (16, 2), (24, 1), (u64::MAX, 2), (u64::MAX - 3, 1)];
        for (offset, len) in cases {
            let result = round.add(0, offset, &bytes(&vec![1.0; len]));
            assert_eq!(result, Err(RoundError::NotACell), "{len} values at byte {offset}");
        }
        assert_eq!(
            round.announce(0, Announced { samples: 2, weight: 2.0, loss: 1.0, fresh: false }),
            Err(RoundError::Unannounced)
        );
    }
}
