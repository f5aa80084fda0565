//! How a map is cut, and the transforms between tiles and products.

use crate::base::isa::Isa;
use crate::base::value::Value;

/// Most products of a tile.
pub(crate) const PRODUCTS_MAX: usize = 36;
/// Taps of the filter.
pub(super) const TAPS: usize = 9;

/// How a map is cut into tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scheme {
    /// F(4x4, 3x3): 6x6 inputs to 4x4 outputs by 36 products.
    Four,
    /// A map of 2x2, whose border is known to be zero: a product of a Toeplitz matrix of 2 by 2 in either
    /// direction, with 3 multiplications each.
    Two,
}

impl Scheme {
    pub(super) fn of(size: [usize; 2]) -> Option<Self> {
        match size {
            [2, 2] => Some(Self::Two),
            _ => size.iter().all(|side| side.is_multiple_of(4)).then_some(Self::Four),
        }
    }

    /// Sides of a tile's inputs, products and outputs.
    pub(super) fn sides(self) -> [usize; 3] {
        match self {
            Self::Four => [6, 6, 4],
            Self::Two => [2, 3, 2],
        }
    }

    /// Side of a tile of outputs.
    pub(super) fn tile(self) -> usize {
        self.sides()[2]
    }

    /// Products of a tile.
    pub(super) fn products(self) -> usize {
        self.sides()[1].pow(2)
    }
}

/// One of the five transforms.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Transform {
    Input,
    Weights,
    Output,
    Gradient,
    Result,
}

impl Transform {
    /// Sides of the squares it reads and writes.
    pub(crate) fn sides(self, scheme: Scheme) -> [usize; 2] {
        let [inputs, products, outputs] = scheme.sides();
        match self {
            Self::Input => [inputs, products],
            Self::Weights => [3, products],
            Self::Output => [products, outputs],
            Self::Gradient => [outputs, products],
            Self::Result => [products, 3],
        }
    }

    pub(super) fn apply<S: Value, D: Value>(
        self,
        isa: Isa,
        scheme: Scheme,
        sources: &[&[S]; PRODUCTS_MAX],
        targets: &mut [&mut [D]; PRODUCTS_MAX],
    ) {
        match isa {
            Isa::Portable => unreachable!("only vector tiers choose this convolution"),
            #[cfg(target_arch = "x86_64")]
            Isa::Vector(tier) => tier.transform(scheme, self, sources, targets),
        }
    }
}
