//! What a pass reads, writes and works in.

use crate::base::exec::Exec;
use crate::base::value::Value;
use crate::norm::elementwise::Rows;

/// Memory that a pass works with, whatever it holds.
pub struct Scratch<'a, T> {
    /// `Conv::weights` values: the weights as the pass reads them, where it does not as they are.
    pub panels: &'a mut [T],
    /// `Conv::scratch_len` values.
    pub parts: &'a mut [f32],
}

/// What a pass writes.
pub struct Results<'a, T> {
    /// The activation, or the gradient by one.
    pub values: &'a mut [T],
    /// [`Conv::sums_len`](crate::Conv::sums_len) values, for the epilogue's sums over tiles.
    pub sums: &'a mut [f32],
    /// What it works with.
    pub scratch: Scratch<'a, T>,
}

/// What a pass reads. A pointwise convolution makes rows just before it multiplies them, where it can.
pub enum Operand<'a, T> {
    /// An activation, or a gradient by one.
    Stored(&'a [T]),
    /// One that is to be made before it is read, and stays there.
    Recompute(&'a mut [T], Rows<'a, T>),
}

impl<'a, T> From<&'a [T]> for Operand<'a, T> {
    fn from(values: &'a [T]) -> Self {
        Self::Stored(values)
    }
}

impl<'a, T: Value> Operand<'a, T> {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Stored(values) => values.len(),
            Self::Recompute(values, _) => values.len(),
        }
    }

    /// Makes it now.
    pub(super) fn make(self, exec: Exec) -> &'a [T] {
        match self {
            Self::Stored(values) => values,
            Self::Recompute(values, rows) => {
                rows.make(exec, values);
                values
            }
        }
    }
}
