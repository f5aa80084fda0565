//! Horizontal federated learning: the roles, the model, the data. No unsafe code.
//!
//! ```text
//!  worker   batch -> forward -> backward --gradients, cell by cell-->  ps   sum in order of workers
//!  cifar    resnet (kernels)               protocol::Session               round
//!           ^                                                              v  all workers are in
//!           '-----------------------<--parameters of step + 1--------  update (kernels::sgd), checkpoint
//! ```
//!
//! * The model is one flat `f32` buffer and a table ([`params::Layout`]).
//! * [`server::ParameterServer`] and [`worker::Worker`] are pure values: bytes move in `roles` (over
//!   mio) or in memory (tests).
//! * Equal job, equal binary, equal instruction-set tier: equal bits of the final parameters, for any
//!   number of threads, order of arrival, crash and restart.
//! * A worker never sees parameters of mixed steps; a peer's fault ends that peer's session only.

#![forbid(unsafe_code)]

pub mod backlog;
pub mod bench;
pub mod checkpoint;
pub mod cifar;
pub mod cli;
pub mod demo;
pub mod doctor;
pub mod drawing;
pub mod eval;
pub mod failure;
pub mod inference;
pub mod init;
pub mod job;
pub mod migrate;
pub mod model;
pub mod network;
pub mod params;
pub mod passphrase;
mod plan;
pub mod report;
pub mod resnet;
pub mod rng;
pub mod roles;
pub mod roster;
pub mod round;
mod round_trip;
pub mod schedule;
pub mod secret;
pub mod server;
pub mod state;
pub mod store;
pub mod termination;
pub mod trust;
pub mod verify;
pub mod volumes;
pub mod worker;
