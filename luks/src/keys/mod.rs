//! From a passphrase to the volume key.

pub(crate) mod antiforensic;
pub(crate) mod hash;
pub(crate) mod kdf;
pub(crate) mod keyslot;
pub(crate) mod secret;
