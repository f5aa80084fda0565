//! Services that bring collateral.

pub(crate) mod cdh;
pub(crate) mod collateral_store;
pub(crate) mod pccs;
mod seen;
