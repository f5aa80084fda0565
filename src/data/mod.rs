//! What a worker learns from: pictures of several kinds of files, their order and their augmentation.

pub mod batch;
pub mod cifar;
pub mod dataset;
pub mod error;
pub mod feed;
mod folder;
pub mod hold_out;
pub mod loading;
pub mod merkle;
pub mod npz;
mod parallel;
pub mod picture;
mod pixels;
pub mod place;
pub mod record;
pub mod resize;
pub mod sampler;
pub mod source;
mod spans;
pub mod synthetic;
