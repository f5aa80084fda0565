//! One aggregation round as a pure value: the weighted sum of all workers' gradients.
//!
//! Additions of floating-point numbers do not commute once there are three of them, so each cell of
//! the buffer takes the workers in the order of their numbers, whatever the order of arrival: a chunk
//! that comes before its turn is left with its connection, which stops reading. A chunk that was
//! counted already (its worker died and computed the step again, to the same bits) is ignored.

use std::ops::Range;

/// The state of a round.
pub struct Round {
    sum: Vec<f32>,
    cell: usize,
    /// For each cell, how many workers it has: those with the lowest numbers.
    counted: Vec<u16>,
    announced: Vec<Option<Announced>>,
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
    /// A round over `len` values in cells of `cell` values with `workers` workers.
    pub fn new(len: usize, cell: usize, workers: u16) -> Self {
        assert!(len > 0 && cell > 0 && workers > 0);
        Self {
            sum: vec![0.0; len],
            cell,
            counted: vec![0; len.div_ceil(cell)],
            announced: vec![None; usize::from(workers)],
            spoiled: false,
        }
    }

    /// Takes the head of a worker's gradients.
    ///
    /// # Errors
    /// When the worker announced something else in this round before.
    pub fn announce(&mut self, worker: u16, announced: Announced) -> Result<(), RoundError> {
        let slot = &mut self.announced[usize::from(worker)];
        if !announced.loss.is_finite() {
            return Err(RoundError::NotFinite);
        }
        if announced.samples == 0 || slot.is_some_and(|before| before.samples != announced.samples)
        {
            return Err(RoundError::Unannounced);
        }
        *slot = Some(announced);
        Ok(())
    }

    /// Adds a worker's values (little-endian) at `offset` bytes. They are looked at in the pass that adds them, so
    /// after [`RoundError::NotFinite`] the sum is spoiled: the round cannot be closed.
    ///
    /// # Errors
    /// When the bytes are not exactly one cell, nothing was announced, or a value is not finite.
    pub fn add(&mut self, worker: u16, offset: u64, data: &[u8]) -> Result<Added, RoundError> {
        let announced = self.announced[usize::from(worker)].ok_or(RoundError::Unannounced)?;
        let (index, range) = self.cell_at(offset, data.len()).ok_or(RoundError::NotACell)?;
        let counted = self.counted[index];
        if worker < counted {
            return Ok(Added::Duplicate);
        }
        if worker > counted {
            return Ok(Added::TooEarly);
        }
        let weight = announced.weight;
        let (values, _) = data.as_chunks::<4>();
        let sum = &mut self.sum[range];
        // The largest exponent tells: a comparison a value would not be done on whole vectors.
        let mut largest = 0;
        if worker == 0 {
            for (sum, &value) in sum.iter_mut().zip(values) {
                let value = f32::from_le_bytes(value);
                largest = largest.max(value.abs().to_bits());
                *sum = weight * value;
            }
        } else {
            for (sum, &value) in sum.iter_mut().zip(values) {
                let value = f32::from_le_bytes(value);
                largest = largest.max(value.abs().to_bits());
                *sum += weight * value;
            }
        }
        if largest >= f32::INFINITY.to_bits() {
            self.spoiled = true;
            return Err(RoundError::NotFinite);
        }
        self.counted[index] += 1;
        Ok(Added::Counted)
    }

    /// Whether every worker's gradients are in.
    pub fn is_closed(&self) -> bool {
        let workers = self.announced.len();
        !self.spoiled && self.counted.iter().all(|&counted| usize::from(counted) == workers)
    }

    /// The weighted sum, complete once the round is closed.
    pub fn sum(&self) -> &[f32] {
        &self.sum
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
        self.spoiled = false;
    }

    fn cell_at(&self, offset: u64, len: usize) -> Option<(usize, Range<usize>)> {
        let start = usize::try_from(offset).ok().filter(|offset| offset.is_multiple_of(4))? / 4;
        let index = start / self.cell;
        let range = cell_range(self.sum.len(), self.cell, index)?;
        (range.start == start && range.len() * 4 == len).then_some((index, range))
    }
}

/// The values of cell `index` in a buffer of `len` values.
pub fn cell_range(len: usize, cell: usize, index: usize) -> Option<Range<usize>> {
    let start = index.checked_mul(cell)?;
    (start < len).then(|| start..len.min(start + cell))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    const ONE: Announced = Announced { samples: 1, weight: 1.0, loss: 1.0 };

    #[test]
    fn the_sum_has_the_same_bits_for_every_order_of_arrival() {
        let values = [[1e8, 1.0], [1.0, 1e-8], [-1e8, 0.1]];
        let sum = |order: [u16; 3]| {
            let mut round = Round::new(2, 2, 3);
            (0..3).for_each(|worker| round.announce(worker, ONE).expect("first"));
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
        let mut round = Round::new(5, 2, 2);
        round.announce(0, Announced { samples: 3, weight: 3.0, loss: 1.0 }).expect("first");
        round.announce(1, Announced { samples: 1, weight: 1.0, loss: 2.0 }).expect("first");
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
            let mut round = Round::new(5, 5, 2);
            let loss = round.announce(0, Announced { samples: 1, weight: 1.0, loss: value });
            assert_eq!(loss, Err(RoundError::NotFinite));
            (0..2).for_each(|worker| round.announce(worker, ONE).expect("first"));
            round.add(0, 0, &bytes(&[1.0; 5])).expect("finite");
            let mut values = [f32::MAX; 5];
            values[4] = value;
            assert_eq!(round.add(1, 0, &bytes(&values)), Err(RoundError::NotFinite), "{value}");
            // Not even with other values afterwards: what is in the sum stays there.
            round.add(1, 0, &bytes(&[1.0; 5])).expect("finite");
            assert!(!round.is_closed());
            round.reset();
            (0..2).for_each(|worker| round.announce(worker, ONE).expect("first"));
            (0..2).for_each(|worker| {
                round.add(worker, 0, &bytes(&[1.0; 5])).expect("finite");
            });
            assert!(round.is_closed());
        }
    }

    #[test]
    fn chunks_that_are_no_cell_are_refused() {
        let mut round = Round::new(5, 2, 1);
        round.announce(0, ONE).expect("first");
        let cases =
            [(0, 1), (0, 3), (4, 2), (1, 2), (16, 2), (24, 1), (u64::MAX, 2), (u64::MAX - 3, 1)];
        for (offset, len) in cases {
            let result = round.add(0, offset, &bytes(&vec![1.0; len]));
            assert_eq!(result, Err(RoundError::NotACell), "{len} values at byte {offset}");
        }
        assert_eq!(
            round.announce(0, Announced { samples: 2, weight: 2.0, loss: 1.0 }),
            Err(RoundError::Unannounced)
        );
    }
}
