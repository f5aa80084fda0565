//! Who a peer says it is: certificates, the evidence in them, what evidence is bound to, chains of others.

pub(crate) mod binding;
pub(crate) mod certificate;
pub(crate) mod chain;
pub(crate) mod evidence;
pub(crate) mod owner;
