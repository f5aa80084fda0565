//! What a worker learns from: pictures, their order and their augmentation.

pub mod batch;
pub mod cifar;
pub mod dataset;
pub mod merkle;
pub mod sampler;
pub mod synthetic;
