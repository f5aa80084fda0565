//! Sectors: their cipher, their tags, and the journal that keeps both together.

pub mod cipher;
pub mod encrypted;
pub mod integrity;
mod journal;
mod layout;
