//! Whether a quote is genuine, and whether we accept what it says.

pub mod dcap;
pub(crate) mod policy;
pub(crate) mod question;
pub(crate) mod remote;
pub(crate) mod token;
pub(crate) mod verify;
