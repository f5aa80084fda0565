//! Where quotes come from, and how they read.

pub(crate) mod azure;
pub(crate) mod boot;
pub(crate) mod coco;
pub(crate) mod event_log;
pub(crate) mod qgs;
pub(crate) mod quote;
pub(crate) mod sim;
pub(crate) mod tdvf;
pub(crate) mod tpm;
pub(crate) mod tsm;
pub(crate) mod vtpm;
