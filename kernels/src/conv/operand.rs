//! What a pass reads and works in.

use crate::base::isa::Isa;
use crate::base::value::Value;
use crate::norm::elementwise::Rows;
use crate::parallel::Pool;

/// Memory that a pass works with, whatever it holds.
pub struct Scratch<'a, T> {
    /// [`Conv::weights`] values: the weights as the pass reads them, where it does not as they are.
    pub panels: &'a mut [T],
    /// [`Conv::scratch_len`] values.
    pub parts: &'a mut [f32],
}

/// What a pass reads. A pointwise convolution makes rows just before it multiplies them, where it can.
pub enum Source<'a, T> {
    /// An activation, or a gradient by one.
    There(&'a [T]),
    /// One that is to be made before it is read, and stays there.
    Made(&'a mut [T], Rows<'a, T>),
}

impl<'a, T> From<&'a [T]> for Source<'a, T> {
    fn from(values: &'a [T]) -> Self {
        Self::There(values)
    }
}

impl<'a, T: Value> Source<'a, T> {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::There(values) => values.len(),
            Self::Made(values, _) => values.len(),
        }
    }

    /// Makes it now.
    pub(super) fn make(self, exec: (&Pool, Isa)) -> &'a [T] {
        match self {
            Self::There(values) => values,
            Self::Made(values, rows) => {
                rows.make(exec, values);
                values
            }
        }
    }
}
