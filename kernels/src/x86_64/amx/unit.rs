//! `Unit`: the tile instructions as the drivers use them, whether the CPU runs them or the model does.
//!
//! Eight tiles are laid out once: four of sums, in two rows and two columns, and the two of each side that are
//! multiplied into them. So every tile loaded is multiplied twice, four loads for four products, which is as few as
//! eight tiles allow.
//!
//! ```text
//!                    right 0   right 1        pairs rows of 16 columns by 2 values
//!   left 0           sums 0 0  sums 0 1       16 rows by 16 columns of f32
//!   left 1           sums 1 0  sums 1 1
//!   16 rows by pairs of 2 values
//! ```

use crate::base::panel::Strided;
use crate::base::value::Bf16;

/// Rows, and columns of sums, that a tile has at most; also the pairs of values of a row.
pub(super) const SIDE: usize = 16;

/// Rows and columns of two tiles.
pub(super) const BLOCK: usize = 2 * SIDE;

/// Values of a row of a tile of bfloat16.
pub(super) const VALUES: usize = 2 * SIDE;

/// How large the tiles are: short ones at the edges of a matrix, so that nothing is copied to fill them up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// Rows of both left tiles and their sums; the second has none where a matrix ends.
    pub(super) rows: [usize; 2],
    /// Pairs of values of a left row, and rows of a right tile.
    pub(super) pairs: usize,
}

impl Shape {
    /// The tiles of so many rows, at most those of a block, and so many pairs.
    pub(super) fn new(rows: usize, pairs: usize) -> Self {
        assert!((1..=BLOCK).contains(&rows) && (1..=SIDE).contains(&pairs));
        Self { rows: [rows.min(SIDE), rows.saturating_sub(SIDE)], pairs }
    }

    /// Whether there are second rows of tiles.
    pub(super) fn has_second(self) -> bool {
        self.rows[1] > 0
    }

    /// Asserts that rows of so many values, `stride` apart, lie inside.
    #[inline(always)]
    pub(super) fn assert_inside(rows: usize, values: usize, stride: usize, len: usize) {
        assert!(rows > 0 && (rows - 1) * stride + values <= len, "a tile inside its matrix");
    }
}

/// Tiles that multiply. `I` is the row of tiles, `J` the column, each 0 or 1; strides count values.
///
/// Whoever calls has configured a shape that has the tiles named. A slice begins with the tile's first value, and
/// implementations assert that it ends no sooner than the last.
pub(super) trait Unit {
    /// Gives all tiles their shapes. They hold nothing yet.
    fn configure(&mut self, shape: Shape);
    /// The shapes.
    fn shape(&self) -> Shape;
    /// Begins sums.
    fn zero<const I: usize, const J: usize>(&mut self);
    /// Goes on with sums.
    fn load<const I: usize, const J: usize>(&mut self, sums: &[f32], stride: usize);
    /// Loads rows of pairs.
    fn load_left<const I: usize>(&mut self, rows: &[Bf16], stride: usize);
    /// Loads pairs of rows of 16 columns, interleaved.
    fn load_right<const J: usize>(&mut self, pairs: &[Bf16], stride: usize);
    /// `sums[I][J] += left[I] . right[J]`.
    fn multiply<const I: usize, const J: usize>(&mut self);
    /// Writes sums.
    fn store<const I: usize, const J: usize>(&self, sums: &mut [f32], stride: usize);

    /// Begins all sums of the shape, by zeros or with those of rows of 32.
    #[inline(always)]
    fn begin(&mut self, before: Option<(&[f32], usize)>) {
        let second = self.shape().has_second();
        let Some((sums, stride)) = before else {
            self.zero::<0, 0>();
            self.zero::<0, 1>();
            if second {
                self.zero::<1, 0>();
                self.zero::<1, 1>();
            }
            return;
        };
        self.load::<0, 0>(sums, stride);
        self.load::<0, 1>(&sums[SIDE..], stride);
        if second {
            let sums = &sums[SIDE * stride..];
            self.load::<1, 0>(sums, stride);
            self.load::<1, 1>(&sums[SIDE..], stride);
        }
    }

    /// Adds the products of two left tiles, one below the other, and two right ones side by side.
    #[inline(always)]
    fn add_products(&mut self, left: Strided<Bf16>, right: Strided<Bf16>) {
        let second = self.shape().has_second();
        self.load_left::<0>(left.data, left.stride);
        self.load_right::<0>(right.data, right.stride);
        self.multiply::<0, 0>();
        self.load_right::<1>(&right.data[VALUES..], right.stride);
        self.multiply::<0, 1>();
        if second {
            self.load_left::<1>(&left.data[SIDE * left.stride..], left.stride);
            self.multiply::<1, 0>();
            self.multiply::<1, 1>();
        }
    }

    /// Writes all sums of the shape as rows of 32.
    #[inline(always)]
    fn end(&self, sums: &mut [f32], stride: usize) {
        self.store::<0, 0>(sums, stride);
        self.store::<0, 1>(&mut sums[SIDE..], stride);
        if self.shape().has_second() {
            let sums = &mut sums[SIDE * stride..];
            self.store::<1, 0>(sums, stride);
            self.store::<1, 1>(&mut sums[SIDE..], stride);
        }
    }
}
