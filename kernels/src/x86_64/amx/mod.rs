//! The tier of AMX: products of bfloat16 on tiles, everything else on the vectors beside them.
//!
//! A driver is written once over [`Unit`](unit::Unit), and runs on the instructions or on their plain model with the
//! same bits; so any machine tests all but the instructions themselves. `unsafe` blocks say which of these they need:
//!
//! * (A) the CPU has AMX-TILE and AMX-BF16 and this process may use them, as a `TileProof` says;
//! * (M) the rows of a tile were asserted to lie inside the slice given with it;
//! * (B) as in the folder above.

mod instructions;
mod model;
mod probe;
mod product;
mod transposed;
mod unit;

use super::kernel::{Enter, Kernel};
use crate::base::isa::{Amx, Tiles};
use instructions::Instructions;
use model::Model;
use unit::{SIDE, Shape, Unit};

impl Enter<f32> for Amx {
    /// By its vectors.
    #[inline]
    fn enter<K: Kernel<f32>>(self, kernel: K) -> K::Output {
        match (self.avx512, self.avx2) {
            (Some(token), _) => token.enter(kernel),
            (None, token) => token.enter(kernel),
        }
    }
}

/// Work on tiles.
trait Work {
    type Output;

    fn run<U: Unit>(self, unit: &mut U) -> Self::Output;
}

impl Amx {
    fn work<W: Work>(self, work: W) -> W::Output {
        match self.tiles {
            Tiles::Instructions(proof) => work.run(&mut Instructions::new(proof)),
            Tiles::Model => work.run(&mut Model::new(self.vectors())),
        }
    }

    /// See [`crate::base::isa::Isa::chain`].
    pub(crate) fn chain(self, rounds: usize) -> usize {
        self.work(Chain(rounds))
    }
}

/// So many rounds of four products of full tiles, none of which waits for another: the peak of one core.
struct Chain(usize);

impl Work for Chain {
    type Output = usize;

    fn run<U: Unit>(self, unit: &mut U) -> usize {
        unit.configure(Shape::new(2 * SIDE, SIDE));
        unit.begin(None);
        for _ in 0..self.0 {
            unit.multiply::<0, 0>();
            unit.multiply::<0, 1>();
            unit.multiply::<1, 0>();
            unit.multiply::<1, 1>();
        }
        // Each of a tile's sums takes twice as many values as a row has pairs.
        self.0 * 4 * 2 * SIDE * SIDE * 2 * SIDE
    }
}
