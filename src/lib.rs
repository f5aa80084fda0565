//! Horizontal federated learning: roles, model, data.

#![forbid(unsafe_code)]

pub mod bench;
pub mod cifar;
pub mod init;
pub mod job;
pub mod network;
pub mod params;
pub mod resnet;
pub mod rng;
pub mod schedule;
