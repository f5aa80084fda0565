//! Sectors: their cipher, and their tags.

pub mod cipher;
pub mod integrity;
