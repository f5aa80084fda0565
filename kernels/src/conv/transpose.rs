//! Weights transposed for the gradient by input: all before it, or a panel by the task that alone reads it.

use crate::base::exec::Exec;
use crate::base::isa::Isa;
use crate::base::panel::PANEL;
use crate::base::tile::view4;
use crate::gemm::product::Product;

/// Weights `[Cout/64][taps][Cin][64]`, to be read as panels `[Cin/64][taps][Cout][64]`.
#[derive(Clone, Copy)]
pub(super) struct Transposed<'a> {
    pub(super) weights: &'a [f32],
    pub(super) taps: usize,
    /// Channels in and out.
    pub(super) channels: [usize; 2],
    /// Bits of the taps that are read.
    pub(super) used: u64,
}

/// Weights (4 MiB) that are transposed past the caches: they would not all be there any more when they are read.
const STREAMED: usize = 1 << 20;

impl Transposed<'_> {
    /// Writes all panels but those of taps that are not used.
    pub(super) fn all<T: Product>(&self, Exec { pool, isa }: Exec, panels: &mut [T]) {
        let [channels, k] = self.channels;
        let streamed = self.weights.len() >= STREAMED;
        let panels = view4(panels, [channels / PANEL, self.taps, k, PANEL]);
        pool.for_each_block(panels, [1, 1, PANEL, PANEL], |[panel, tap, row, _], mut block| {
            if self.used >> tap & 1 == 1 {
                let rows = block.as_slice_mut().expect("64 whole rows are contiguous");
                self.rows(isa, [panel, tap, row], rows, streamed);
            }
        });
    }

    /// Writes the rows of one tap of a panel.
    pub(super) fn panel<T: Product>(&self, isa: Isa, [panel, tap]: [usize; 2], rows: &mut [T]) {
        for (block, rows) in rows.chunks_exact_mut(PANEL * PANEL).enumerate() {
            self.rows(isa, [panel, tap, block * PANEL], rows, false);
        }
    }

    /// Writes 64 rows of a panel, from one on.
    fn rows<T: Product>(
        &self,
        isa: Isa,
        [panel, tap, row]: [usize; 3],
        rows: &mut [T],
        streamed: bool,
    ) {
        let panel_stride = self.taps * self.channels[0];
        let at = (row / PANEL * panel_stride + tap * self.channels[0] + panel * PANEL) * PANEL;
        let next = self.weights.get(at + panel_stride * PANEL..).unwrap_or(&[]);
        T::transpose(isa, &self.weights[at..][..PANEL * PANEL], next, rows, streamed);
    }
}
