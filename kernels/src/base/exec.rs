//! `Exec`: on which threads an operation runs, and with which instructions.

use super::isa::Isa;
use crate::parallel::Pool;

/// What every operation is told: results do not depend on the threads, see the crate's rules.
#[derive(Clone, Copy)]
pub struct Exec<'a> {
    /// The threads.
    pub pool: &'a Pool,
    /// The instructions.
    pub isa: Isa,
}

impl<'a> Exec<'a> {
    /// Both.
    pub fn new(pool: &'a Pool, isa: Isa) -> Self {
        Self { pool, isa }
    }
}
