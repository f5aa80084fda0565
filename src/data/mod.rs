//! What a worker learns from: pictures of several kinds of files, their order and their augmentation.

pub mod batch;
pub mod cifar;
pub mod dataset;
pub mod error;
mod folder;
pub mod hold_out;
pub mod merkle;
pub mod npz;
pub mod picture;
pub mod place;
pub mod resize;
pub mod sampler;
pub mod source;
pub mod synthetic;
