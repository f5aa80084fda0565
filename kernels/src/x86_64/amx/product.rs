//! Sums of products `a . b` over panels: forward, and the gradient by input.
//!
//! Rows of `a` are read as they lie, 16 images by 32 channels a tile; panels `[k/2][64][2]` are right tiles side by
//! side. A block of 32 by 32 sums stays in tiles from the first to the last term, as in AVX512-BF16. The deepest sums
//! of the networks here are over nine taps of 512 channels: a panel of 576 KiB, which stays in the second-level cache
//! (2 MiB where there are tiles) while the rows pass by, so that `k` need not be cut. 32 rows of all panels come before
//! the next ones: those of short sums stay in the first-level cache meanwhile.
//!
//! Sums leave their tiles for 8 KiB of that cache, where the epilogue takes them.

use super::Work;
use super::unit::{BLOCK, SIDE, Shape, Unit, VALUES};
use crate::base::isa::{Amx, Tier};
use crate::base::panel::{Matrix, PANEL, Position, Strided};
use crate::base::tile::Tile;
use crate::base::value::Bf16;
use crate::gemm::Products;
use crate::gemm::epilogue::Store;
use crate::x86_64::epilogue::RawStore;

impl Amx {
    /// See [`crate::gemm::multiply_bf16`].
    pub(crate) fn multiply_to(
        self,
        products: Products<Bf16>,
        store: &Store<Bf16>,
        tile: Tile<Bf16>,
    ) {
        let Products { terms, k, stride, .. } = products;
        let end = RawStore::new(store, tile);
        let rows = end.rows();
        assert!(k.is_multiple_of(VALUES), "whole tiles of k");
        products.assert_panels(end.columns() / PANEL);
        for term in terms {
            assert!(Matrix { data: term.a, rows, cols: k, stride }.fits());
        }
        self.work(Multiply { products, end: &end, vectors: self.vectors() });
    }
}

/// A block of sums by 64 columns, at a cache line.
#[repr(align(64))]
struct Sums([f32; BLOCK * PANEL]);

/// The products of a tile of an activation, and its end.
struct Multiply<'a> {
    products: Products<'a, Bf16>,
    end: &'a RawStore<Bf16>,
    vectors: Tier,
}

impl Work for Multiply<'_> {
    type Output = ();

    fn run<U: Unit>(self, unit: &mut U) {
        let (rows, columns) = (self.end.rows(), self.end.columns());
        let mut sums = Sums([0.0; BLOCK * PANEL]);
        for row in (0..rows).step_by(BLOCK) {
            let count = BLOCK.min(rows - row);
            let shape = Shape::new(count, SIDE);
            if shape != unit.shape() {
                unit.configure(shape);
            }
            for column in (0..columns).step_by(PANEL) {
                for half in (0..PANEL).step_by(BLOCK) {
                    self.sum(unit, row, column / PANEL, half);
                    unit.end(&mut sums.0[half..], PANEL);
                }
                self.vectors.write_part(
                    self.end,
                    Position { row, column },
                    &sums.0[..count * PANEL],
                );
            }
        }
    }
}

impl Multiply<'_> {
    /// Sums of all terms, of rows from one on and half a panel's columns.
    #[inline(always)]
    fn sum<U: Unit>(&self, unit: &mut U, row: usize, panel: usize, half: usize) {
        let Products { terms, k, stride, panel_stride } = self.products;
        unit.begin(None);
        for term in terms {
            let (a, b) = (&term.a[row * stride..], &term.b[panel * panel_stride + 2 * half..]);
            for depth in (0..k).step_by(VALUES) {
                let right = Strided { data: &b[depth * PANEL..], stride: 2 * PANEL };
                unit.add_products(Strided { data: &a[depth..], stride }, right);
            }
        }
    }
}
