//! Where quotes come from, and how they read.

pub(crate) mod azure;
pub(crate) mod coco;
pub(crate) mod qgs;
pub(crate) mod quote;
pub(crate) mod sim;
pub(crate) mod tpm;
pub(crate) mod tsm;
pub(crate) mod vtpm;
