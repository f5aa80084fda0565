//! A job under way: server and worker as pure values, the files they keep, and the roles that drive them.

pub mod cell_hashes;
pub mod cells;
pub mod checkpoint;
pub mod classifier;
pub mod contradiction;
pub mod contribution;
pub mod evaluator;
pub mod initial;
pub mod ledger;
pub mod note;
pub mod replay;
pub mod roles;
pub mod room;
pub mod roster;
pub mod round;
pub mod rounds;
mod sealing;
pub mod server;
pub mod steps;
pub mod store;
pub mod tally;
pub(crate) mod tensors;
pub mod unsigned;
pub mod update;
pub mod volume;
pub mod witness;
pub mod worker;
