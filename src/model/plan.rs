//! `Plan`: where each buffer of a training step is in the one arena, and views of it.

use std::ops::{Range, RangeInclusive};

use kernels::{Arena, GROUPS, GroupNorm, Value};

use crate::model::network::{Block, Network, Unit};

/// Where things are in the arena, for the largest batch. Depth 0 is the stem, 1 the first block, and so
/// on to the head, which is the deepest: forward goes down, backward comes up again. So what forward keeps
/// is needed at its own depth and all below, and what a depth works with is needed there alone: the large
/// gradients of the first blocks lie where the activations of the last ones were.
pub(crate) struct Plan {
    /// Output of each unit's convolution.
    pub(crate) z: Vec<Range<usize>>,
    /// Output of the stem, then of each block.
    pub(crate) y: Vec<Range<usize>>,
    /// The gradient at each of these; blocks of one stage share theirs.
    pub(crate) outer: Vec<Range<usize>>,
    /// Of each depth: an activation between two convolutions, computed again when needed.
    pub(crate) activation: Vec<Range<usize>>,
    /// Of each depth: gradients inside a block.
    pub(crate) inner: Vec<[Range<usize>; 2]>,
    end: usize,
    batch_max: usize,
}

impl Plan {
    pub(crate) fn new(network: &Network, n: usize) -> Self {
        let outputs: Vec<usize> =
            network.units.iter().map(|unit| unit.conv.output_len(n)).collect();
        let blocks = &network.blocks;
        let head = blocks.len() + 1;
        let pooled = network
            .max_pool
            .map(|pool| pool.output * pool.output * n * network.units[0].conv.channels_out);
        let mut places = Places::default();
        let mut z = vec![places.take(0..=head, outputs[0])];
        let mut y = vec![places.take(0..=head, pooled.unwrap_or(outputs[0]))];
        for (index, block) in blocks.iter().enumerate() {
            let kept = index + 1..=head;
            z.extend(block.units().map(|u| places.take(kept.clone(), outputs[u])));
            y.push(places.take(kept, outputs[block.last]));
        }
        // Without a projection the gradient behind a block is added to the one before it, in one buffer: basic
        // blocks begin so.
        let begins_alone = blocks[0].projection.is_some();
        let mut outer = Vec::new();
        if begins_alone {
            outer.push(places.take(0..=1, y[0].len()));
        }
        let first_of_stage = |index: &usize| *index == 0 || blocks[*index].projection.is_some();
        let firsts: Vec<usize> = (0..blocks.len()).filter(first_of_stage).collect();
        for (stage, &first) in firsts.iter().enumerate() {
            let after = firsts.get(stage + 1).copied().unwrap_or(blocks.len());
            // The stem's is the first stage's too.
            let (start, count) = match first == 0 && !begins_alone {
                true => (0, after + 1),
                false => (first + 1, after - first),
            };
            let shared = places.take(start..=after + 1, y[first + 1].len());
            outer.extend(std::iter::repeat_n(shared, count));
        }
        // The stem's activation is only computed again where it is pooled.
        let stem = if pooled.is_some() { outputs[0] } else { 0 };
        let mut activation = vec![places.take(0..=0, stem)];
        let mut inner = vec![[0, 1].map(|_| places.take(0..=0, stem))];
        for (index, &Block { first, last, .. }) in blocks.iter().enumerate() {
            let here = index + 1..=index + 1;
            let between = outputs[first..last].iter().copied().max().unwrap_or(0);
            activation.push(places.take(here.clone(), between));
            inner.push([0, 1].map(|_| places.take(here.clone(), between.max(outputs[last]))));
        }
        Self { z, y, outer, activation, inner, end: places.end(), batch_max: n }
    }

    /// Values of the arena.
    pub(crate) fn end(&self) -> usize {
        self.end
    }

    /// Output of the stem (0), then of each block, for `n` images.
    pub(crate) fn y(&self, index: usize, n: usize) -> Range<usize> {
        first(&self.y[index], self.y[index].len() / self.batch_max * n)
    }

    pub(crate) fn z(&self, u: usize, n: usize, unit: &Unit) -> Range<usize> {
        first(&self.z[u], unit.conv.output_len(n))
    }
}

/// Values of the buffers that a training takes.
pub(crate) struct Sizes {
    pub(crate) arena: usize,
    pub(crate) panels: usize,
    pub(crate) scratch: usize,
    pub(crate) sums: usize,
    /// Of the layer that has most.
    pub(crate) channels: usize,
    pub(crate) features: usize,
    pub(crate) logits: usize,
    /// Columns of the widest layer, images times channels, where groups of these are normalised.
    pub(crate) columns: usize,
    /// One over the deviations of all groups.
    pub(crate) inverses: usize,
}

impl Sizes {
    pub(crate) fn new(network: &Network, plan: &Plan) -> Self {
        let n = plan.batch_max;
        let units = &network.units;
        let grouped = if network.is_grouped { n } else { 0 };
        let most = |of: &dyn Fn(&Unit) -> usize| units.iter().map(of).max().unwrap_or(0);
        Self {
            arena: plan.end,
            panels: most(&|unit| unit.conv.weights()),
            scratch: most(&|unit| unit.conv.scratch_len(n)),
            sums: most(&|unit| unit.conv.sums_len(n)),
            channels: most(&|unit| unit.conv.channels_in.max(unit.conv.channels_out)),
            features: 2 * n * network.features,
            logits: n * network.shape.classes,
            columns: grouped * most(&|unit| unit.conv.channels_out),
            inverses: grouped * GROUPS * units.len(),
        }
    }

    /// Bytes of what is in single precision whatever activations are.
    pub(crate) fn single_len(&self) -> usize {
        let values = self.scratch + self.sums + self.features + self.logits + self.inverses;
        values * size_of::<f32>() + GroupNorm::memory_len(self.columns)
    }
}

/// Buffers that were given a place, and the depths at which each is needed.
#[derive(Default)]
struct Places {
    taken: Vec<(RangeInclusive<usize>, Range<usize>)>,
}

impl Places {
    /// The lowest place that no other buffer needs at any of these depths.
    fn take(&mut self, depths: RangeInclusive<usize>, len: usize) -> Range<usize> {
        let meets = |other: &RangeInclusive<usize>| {
            other.start() <= depths.end() && depths.start() <= other.end()
        };
        let mut others: Vec<_> =
            self.taken.iter().filter(|(at, _)| meets(at)).map(|(_, place)| place).collect();
        others.sort_by_key(|place| place.start);
        let mut start = 0;
        for other in others {
            if start + len <= other.start {
                break;
            }
            // Pieces start at cache lines.
            start = start.max(other.end.next_multiple_of(32));
        }
        self.taken.push((depths, start..start + len));
        start..start + len
    }

    fn end(&self) -> usize {
        self.taken.iter().map(|(_, place)| place.end).max().unwrap_or(0)
    }
}

/// The first `len` values of a range.
pub(crate) fn first(range: &Range<usize>, len: usize) -> Range<usize> {
    assert!(len <= range.len(), "{len} values in a buffer of {}", range.len());
    range.start..range.start + len
}

/// The arena but for some buffers, to read.
pub(crate) struct Rest<'a, T> {
    /// What is left between them, and where it begins.
    pieces: [(usize, &'a [T]); 3],
}

impl<'a, T> Rest<'a, T> {
    /// A buffer that does not overlap those left out.
    pub(crate) fn get(&self, range: Range<usize>) -> &'a [T] {
        let inside = |&(start, piece): &(usize, &'a [T])| {
            piece.get(range.start.checked_sub(start)?..range.end - start)
        };
        self.pieces.iter().find_map(inside).expect("buffers are disjoint")
    }
}

/// One buffer of the arena to write, and the others.
pub(crate) fn around<T: Value>(
    arena: &mut Arena<T>,
    hole: Range<usize>,
) -> (&mut [T], Rest<'_, T>) {
    let end = hole.end;
    let ([inside, _], rest) = around2(arena, [hole, end..end]);
    (inside, rest)
}

/// Two buffers of the arena to write, and the others.
pub(crate) fn around2<T: Value>(
    arena: &mut Arena<T>,
    holes: [Range<usize>; 2],
) -> ([&mut [T]; 2], Rest<'_, T>) {
    let is_turned = holes[1].start < holes[0].start;
    let [low, high] = if is_turned { [&holes[1], &holes[0]] } else { [&holes[0], &holes[1]] };
    let (before, rest) = arena.as_mut_slice().split_at_mut(low.start);
    let (first, rest) = rest.split_at_mut(low.len());
    let (between, rest) = rest.split_at_mut(high.start - low.end);
    let (second, after) = rest.split_at_mut(high.len());
    let rest = Rest { pieces: [(0, before), (low.end, between), (high.end, after)] };
    (if is_turned { [second, first] } else { [first, second] }, rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::shape::Shape;
    use crate::job::{Arch, Stem};

    #[test]
    fn what_is_needed_at_the_same_depth_does_not_overlap() {
        let all =
            [Arch::Resnet18, Arch::Resnet34, Arch::Resnet50, Arch::Resnet101, Arch::Resnet152];
        let stems = [Stem::Imagenet, Stem::Cifar];
        for (model, stem) in all.into_iter().flat_map(|model| stems.map(|stem| (model, stem))) {
            let network = Network::new(model, stem, Shape::CIFAR).expect("shapes");
            let Plan { z, y, outer, activation, inner, end, .. } = Plan::new(&network, 3);
            let head = network.blocks.len() + 1;
            for depth in 0..=head {
                // A stem has one unit, a block two to four; the head has none.
                let units = |block: &Block| block.units().count();
                let above = depth.min(network.blocks.len());
                let count = 1 + network.blocks[..above].iter().map(units).sum::<usize>();
                let mut live: Vec<&Range<usize>> = z[..count].iter().chain(&y[..=above]).collect();
                live.push(&outer[above]);
                if depth < head {
                    live.push(&activation[depth]);
                    live.extend(&inner[depth]);
                    let before = depth.saturating_sub(1);
                    live.extend((outer[before] != outer[depth]).then_some(&outer[before]));
                }
                live.retain(|place| !place.is_empty());
                live.sort_by_key(|place| place.start);
                for pair in live.windows(2) {
                    assert!(pair[0].end <= pair[1].start, "depth {depth}: {pair:?}");
                }
                assert!(live.iter().all(|place| place.end <= end && place.start % 32 == 0));
            }
            assert_eq!((z.len(), y.len()), (network.units.len(), network.blocks.len() + 1));
            let kept: usize = z.iter().chain(&y).map(Range::len).sum();
            // Behind the wide maps of a stem, basic blocks keep little that could lie where these were.
            let most = if model == Arch::Resnet18 { kept / 10 } else { kept / 20 };
            assert!(end < kept + most, "{end} values for {kept} that are kept");
        }
    }
}
