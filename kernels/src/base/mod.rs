//! What all kernels speak of: instruction sets, number formats, tiles of activations, memory.

#[allow(unsafe_code)]
pub(crate) mod arena;
pub(crate) mod exec;
pub(crate) mod isa;
pub(crate) mod panel;
pub(crate) mod tile;
pub(crate) mod value;
