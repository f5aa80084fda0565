//! The tile instructions of the CPU, by inline assembly: the intrinsics are not stable yet.
//!
//! What a tile holds lives on from one block of assembly to the next. The compiler knows tile registers as clobbers
//! only: no value of Rust is ever in one, and code compiled without AMX (all of it) neither reads nor writes them.
//! So they are state of the thread that these blocks alone touch; each names the tile that it writes.

use std::arch::asm;
use std::marker::PhantomData;

use super::unit::{SIDE, Shape, Unit, VALUES};
use crate::base::isa::TileProof;
use crate::base::value::Bf16;

/// The tiles of this thread; released when dropped, so that a switch of threads need not save 8 KiB.
pub(super) struct Instructions {
    shape: Shape,
    /// They are the thread's: not to be sent to another.
    _thread: PhantomData<*const ()>,
}

/// What `LDTILECFG` reads.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    /// Bytes of a row.
    columns: [u16; 16],
    rows: [u8; 16],
}

const _: () = assert!(size_of::<Config>() == 64);

impl Config {
    /// Tiles 0 to 3 are sums, 4 and 5 left, 6 and 7 right.
    fn new(shape: Shape) -> Self {
        let mut config =
            Self { palette: 1, start_row: 0, reserved: [0; 14], columns: [0; 16], rows: [0; 16] };
        let mut set = |tile: usize, rows: usize, bytes: usize| {
            // A tile without rows has no columns either.
            (config.rows[tile], config.columns[tile]) =
                (rows as u8, if rows > 0 { bytes as u16 } else { 0 });
        };
        for (i, rows) in shape.rows.into_iter().enumerate() {
            set(2 * i, rows, SIDE * size_of::<f32>());
            set(2 * i + 1, rows, SIDE * size_of::<f32>());
            set(4 + i, rows, 2 * shape.pairs * size_of::<Bf16>());
            set(6 + i, shape.pairs, VALUES * size_of::<Bf16>());
        }
        config
    }
}

impl Instructions {
    /// By the proof that they may be used.
    pub(super) fn new(_: TileProof) -> Self {
        // SAFETY: the proof.
        unsafe { Self::unproven() }
    }

    /// # Safety
    /// The CPU has AMX-TILE and AMX-BF16, and the kernel permits them to this process.
    pub(super) unsafe fn unproven() -> Self {
        let mut tiles = Self { shape: Shape::new(2 * SIDE, SIDE), _thread: PhantomData };
        tiles.configure(tiles.shape);
        tiles
    }
}

impl Drop for Instructions {
    fn drop(&mut self) {
        // SAFETY: (A); all tiles are named.
        unsafe {
            asm!(
                "tilerelease",
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, nomem, preserves_flags),
            );
        }
    }
}

/// One instruction that writes a tile, which is its clobber: of those named, the one of the index.
macro_rules! write_tile {
    ($index:expr, [$($number:literal $tile:tt),*], $text:literal, $operands:tt) => {
        // SAFETY: (A), and (M) for what is loaded.
        unsafe {
            match $index {
                $($number => write_tile!(@ $number $tile $text $operands),)*
                _ => unreachable!("there are so many tiles"),
            }
        }
    };
    (@ $number:literal $tile:tt $text:literal [$($operands:tt)*]) => {
        asm!(
            $text,
            $($operands)*
            tile = const $number,
            out($tile) _,
            options(nostack, preserves_flags),
        )
    };
}

/// Tile of the sums of a row and a column.
const fn sums(i: usize, j: usize) -> usize {
    2 * i + j
}

impl Unit for Instructions {
    fn configure(&mut self, shape: Shape) {
        self.shape = shape;
        let config = Config::new(shape);
        // SAFETY: (A); reads 64 bytes of a valid configuration, and leaves all tiles empty.
        unsafe {
            asm!(
                "ldtilecfg [{config}]",
                config = in(reg) &raw const config,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, preserves_flags, readonly),
            );
        }
    }

    #[inline(always)]
    fn shape(&self) -> Shape {
        self.shape
    }

    #[inline(always)]
    fn zero<const I: usize, const J: usize>(&mut self) {
        write_tile!(
            const { sums(I, J) },
            [0 "tmm0", 1 "tmm1", 2 "tmm2", 3 "tmm3"],
            "tilezero tmm{tile}",
            []
        );
    }

    #[inline(always)]
    fn load<const I: usize, const J: usize>(&mut self, rows: &[f32], stride: usize) {
        Shape::assert_inside(self.shape.rows[I], SIDE, stride, rows.len());
        write_tile!(
            const { sums(I, J) },
            [0 "tmm0", 1 "tmm1", 2 "tmm2", 3 "tmm3"],
            "tileloadd tmm{tile}, [{start} + {stride}*1]",
            [start = in(reg) rows.as_ptr(), stride = in(reg) stride * size_of::<f32>(),]
        );
    }

    #[inline(always)]
    fn load_left<const I: usize>(&mut self, rows: &[Bf16], stride: usize) {
        Shape::assert_inside(self.shape.rows[I], 2 * self.shape.pairs, stride, rows.len());
        write_tile!(
            const { 4 + I },
            [4 "tmm4", 5 "tmm5"],
            "tileloadd tmm{tile}, [{start} + {stride}*1]",
            [start = in(reg) rows.as_ptr(), stride = in(reg) stride * size_of::<Bf16>(),]
        );
    }

    #[inline(always)]
    fn load_right<const J: usize>(&mut self, pairs: &[Bf16], stride: usize) {
        Shape::assert_inside(self.shape.pairs, VALUES, stride, pairs.len());
        write_tile!(
            const { 6 + J },
            [6 "tmm6", 7 "tmm7"],
            "tileloadd tmm{tile}, [{start} + {stride}*1]",
            [start = in(reg) pairs.as_ptr(), stride = in(reg) stride * size_of::<Bf16>(),]
        );
    }

    #[inline(always)]
    fn multiply<const I: usize, const J: usize>(&mut self) {
        write_tile!(
            const { sums(I, J) },
            [0 "tmm0", 1 "tmm1", 2 "tmm2", 3 "tmm3"],
            "tdpbf16ps tmm{tile}, tmm{left}, tmm{right}",
            [left = const 4 + I, right = const 6 + J,]
        );
    }

    #[inline(always)]
    fn store<const I: usize, const J: usize>(&self, rows: &mut [f32], stride: usize) {
        Shape::assert_inside(self.shape.rows[I], SIDE, stride, rows.len());
        // SAFETY: (A), (M).
        unsafe {
            asm!(
                "tilestored [{start} + {stride}*1], tmm{tile}",
                start = in(reg) rows.as_mut_ptr(),
                stride = in(reg) stride * size_of::<f32>(),
                tile = const 2 * I + J,
                options(nostack, preserves_flags),
            );
        }
    }
}
