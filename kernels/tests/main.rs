//! The one test binary of the kernels; see each module's first line.

mod bits;
mod bounds;
mod group;
mod operands;
mod oracle;
mod tiles;
