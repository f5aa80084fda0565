//! The commands beside the roles, a file or folder each.

pub mod bench;
mod calibration;
mod core_latency;
pub mod demo;
pub mod doctor;
pub mod eval;
pub mod export;
pub mod identity;
pub mod initdata;
pub mod measure;
pub mod passport;
pub mod predict;
pub mod replay;
pub mod report;
pub mod roster;
pub(crate) mod saved;
pub mod secret;
pub(crate) mod tier;
pub mod transfer;
pub mod verify;
pub mod volumes;
