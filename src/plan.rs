//! `Plan`: where each buffer of a training step is in the one arena, and views of it.

use std::ops::Range;

use kernels::{Arena, Value};

use crate::network::{Network, Unit};

/// Where things are in the arena, for the largest batch.
pub(crate) struct Plan {
    /// Output of each unit's convolution.
    pub(crate) z: Vec<Range<usize>>,
    /// Output of the stem, then of each block.
    pub(crate) y: Vec<Range<usize>>,
    /// An activation between two convolutions, computed again when needed.
    pub(crate) activation: Range<usize>,
    /// Gradient at a block's output, then at its input.
    pub(crate) outer: Range<usize>,
    /// Gradients inside a block.
    pub(crate) inner: [Range<usize>; 2],
    batch_max: usize,
}

impl Plan {
    pub(crate) fn new(network: &Network, n: usize) -> Self {
        let mut end = 0;
        let mut take = |len: usize| {
            // Pieces start at cache lines.
            let start = end;
            end = (start + len).next_multiple_of(32);
            start..start + len
        };
        let outputs: Vec<usize> =
            network.units.iter().map(|unit| unit.conv.output_len(n)).collect();
        let z = outputs.iter().map(|&len| take(len)).collect();
        let stem = network.max_pool.map_or(outputs[0], |pool| {
            pool.output * pool.output * n * network.units[0].conv.channels_out
        });
        let y: Vec<Range<usize>> = std::iter::once(stem)
            .chain(network.blocks.iter().map(|block| outputs[block.units[2]]))
            .map(&mut take)
            .collect();
        // The stem's activation is only computed again where it is pooled.
        let stem_activation = network.max_pool.map(|_| outputs[0]);
        let between =
            network.blocks.iter().flat_map(|b| [outputs[b.units[0]], outputs[b.units[1]]]);
        let activation = between.chain(stem_activation).max().unwrap_or(0);
        let outer = y.iter().map(Range::len).max().unwrap_or(0);
        Self {
            z,
            activation: take(activation),
            outer: take(outer),
            inner: [take(outer.max(activation)), take(outer.max(activation))],
            y,
            batch_max: n,
        }
    }

    pub(crate) fn end(&self) -> usize {
        self.inner[1].end
    }

    /// Output of the stem (0), then of each block, for `n` images.
    pub(crate) fn y(&self, index: usize, n: usize) -> Range<usize> {
        first(&self.y[index], self.y[index].len() / self.batch_max * n)
    }

    pub(crate) fn z(&self, u: usize, n: usize, unit: &Unit) -> Range<usize> {
        first(&self.z[u], unit.conv.output_len(n))
    }
}

/// The first `len` values of a range.
pub(crate) fn first(range: &Range<usize>, len: usize) -> Range<usize> {
    assert!(len <= range.len(), "{len} values in a buffer of {}", range.len());
    range.start..range.start + len
}

/// The arena but for one buffer, to read.
pub(crate) struct Rest<'a, T> {
    before: &'a [T],
    after: &'a [T],
    offset: usize,
}

impl<'a, T> Rest<'a, T> {
    /// A buffer that does not overlap the one left out.
    pub(crate) fn get(&self, range: Range<usize>) -> &'a [T] {
        if range.end <= self.before.len() {
            return &self.before[range];
        }
        assert!(range.start >= self.offset, "buffers are disjoint");
        &self.after[range.start - self.offset..range.end - self.offset]
    }
}

/// One buffer of the arena to write, and the others.
pub(crate) fn around<T: Value>(
    arena: &mut Arena<T>,
    hole: Range<usize>,
) -> (&mut [T], Rest<'_, T>) {
    let (before, rest) = arena.as_mut_slice().split_at_mut(hole.start);
    let (inside, after) = rest.split_at_mut(hole.len());
    (inside, Rest { before, after, offset: hole.end })
}
