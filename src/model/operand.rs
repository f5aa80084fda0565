//! Where a pass finds its operands: in the arena, or recomputed from what is stored there.

use std::ops::Range;

use kernels::{
    Epilogue, Folded, GROUPS, Identity, Mask, Normalised, Product, Rows, Slope, Statistics,
};

use crate::model::network::{Block, Network, Unit};
use crate::model::plan::{Plan, Rest};

/// What a convolution reads.
pub(crate) enum Source<'a> {
    Images(&'a [f32]),
    /// A buffer of the arena.
    Stored(Range<usize>),
    /// One that is to be made of others.
    Recompute(Recomputed, Range<usize>),
}

/// What is made of what the passes before left.
pub(crate) enum Recomputed {
    /// A unit's activation.
    Unit(usize),
    /// The output of a block, or of a stem without pooling (0).
    Output(usize),
    /// The gradient by a unit's convolution, from the masked one behind it.
    Slope(usize, Range<usize>),
}

/// What a gradient by some convolution's input is the gradient of.
#[derive(Clone, Copy)]
pub(crate) enum Behind {
    /// Nothing that could be masked yet.
    Nothing,
    /// A unit's activation.
    Unit(usize),
    /// The output of the block before this one, or of the stem.
    Output(usize),
}

/// What a normalisation works with besides its parameters.
pub(crate) struct Norm {
    pub(crate) statistics: Statistics,
    pub(crate) fold: Folded,
    pub(crate) slope: Slope,
    /// One over the deviation of each image's groups, where those are normalised.
    pub(crate) inverse: Vec<f32>,
}

/// Everything but the arena.
pub(crate) struct View<'a> {
    pub(crate) network: &'a Network,
    pub(crate) plan: &'a Plan,
    pub(crate) norms: &'a [Norm],
    pub(crate) n: usize,
}

impl<'a> View<'a> {
    /// What makes it.
    pub(crate) fn rows<T: Product>(
        &self,
        recomputed: Recomputed,
        rest: &Rest<'a, T>,
    ) -> Rows<'a, T> {
        let (norms, network) = (self.norms, self.network);
        let z = |u: usize| rest.get(self.plan.z(u, self.n, &network.units[u]));
        match recomputed {
            Recomputed::Unit(u) => Rows::Activation(&norms[u].fold, z(u), Identity::None),
            Recomputed::Slope(u, g) => Rows::Slope(&norms[u].slope, [rest.get(g), z(u)]),
            Recomputed::Output(0) => Rows::Activation(&norms[0].fold, z(0), Identity::None),
            Recomputed::Output(depth) => {
                let Block { last: u, projection, .. } = network.blocks[depth - 1];
                let identity = match projection {
                    None => Identity::Plain(rest.get(self.plan.y(depth - 1, self.n))),
                    Some(p) => Identity::Projected(z(p), &norms[p].fold),
                };
                Rows::Activation(&norms[u].fold, z(u), identity)
            }
        }
    }

    /// How a gradient ends that is the gradient of this.
    pub(crate) fn behind<T: Product>(&self, behind: Behind, rest: &Rest<'a, T>) -> Epilogue<'a, T> {
        let norms = self.norms;
        let of = |u: usize| Normalised {
            z: rest.get(self.plan.z(u, self.n, &self.network.units[u])),
            mean: &norms[u].statistics.mean,
        };
        match behind {
            Behind::Nothing => Epilogue::Keep,
            Behind::Unit(u) => Epilogue::Mask(Mask::Folded(&norms[u].fold), of(u), None),
            Behind::Output(index) => {
                let (unit, projection) = match index.checked_sub(1) {
                    None => (0, None),
                    Some(index) => {
                        let Block { last, projection, .. } = self.network.blocks[index];
                        (last, projection)
                    }
                };
                let mask = Mask::Output(rest.get(self.plan.y(index, self.n)));
                Epilogue::Mask(mask, of(unit), projection.map(of))
            }
        }
    }
}

impl Norm {
    /// Room for a unit's channels, and for groups of so many images.
    pub(crate) fn new(unit: &Unit, grouped: usize) -> Self {
        let channels = unit.conv.channels_out;
        Self {
            statistics: Statistics::new(channels),
            fold: Folded::new(channels),
            slope: Slope::new(channels),
            inverse: vec![0.0; grouped * GROUPS],
        }
    }
}
