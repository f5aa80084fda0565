//! Horizontal federated learning: the roles, the model, the data. No unsafe code.
//!
//! ```text
//!  worker   batch -> forward -> backward --gradients, cell by cell-->  ps   sum in order of workers
//!  cifar    resnet (kernels)               protocol::Session               round
//!           ^                                                              v  all workers are in
//!           '-----------------------<--parameters of step + 1--------  update (kernels::sgd), checkpoint
//! ```
//!
//! * The model is one flat `f32` buffer and a table ([`model::params::Layout`]).
//! * [`training::server::ParameterServer`] and
//!   [`training::worker::Worker`] are pure values: bytes move in `roles` (over
//!   mio) or in memory (tests).
//! * Equal job, equal binary, equal instruction-set tier: equal bits of the final parameters, for any
//!   number of threads, order of arrival, crash and restart.
//! * A worker never sees parameters of mixed steps; a peer's fault ends that peer's session only.

#![forbid(unsafe_code)]

pub mod cli;
pub mod commands;
pub mod data;
pub mod events;
pub mod failure;
pub mod files;
pub mod history;
pub mod hosts;
pub mod job;
pub mod memory;
pub mod metrics;
pub mod model;
pub mod passport;
pub mod progress;
pub mod report;
pub mod termination;
pub mod training;
pub mod trust;
