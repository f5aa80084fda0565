//! Threads that share the tasks of a region, and the parts of buffers that they write.

mod denormals;
mod disjoint;
mod pool;
mod retire;
mod sync;
mod team;

pub(crate) use denormals::FlushDenormals;
pub(crate) use disjoint::{DisjointBlocks, DisjointChunks};
pub use pool::Pool;
pub use retire::Retiring;
