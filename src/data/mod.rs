//! What a worker learns from: pictures, their order and their augmentation.

pub mod cifar;
pub mod merkle;
pub mod synthetic;
