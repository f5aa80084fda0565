//! The roles over real sockets: `hfl --role ps0` and `hfl --role worker0`.

mod exchange;
mod options;
mod receipts;
mod record;
mod server;
mod signer;
mod stopwatch;
mod traffic;
pub mod transfer;
mod worker;

use std::sync::Arc;

use protocol::Role;

pub use options::Options;

use crate::failure::Failure;
use crate::metrics::{self, Metrics};
use crate::termination;

/// Runs the role until its job is done.
///
/// # Errors
/// What ended it before.
pub fn run(options: &Options) -> Result<(), Failure> {
    termination::catch()?;
    let mut config = options.trust.config(options.role)?;
    // Nobody else has it yet.
    if let Some(config) = Arc::get_mut(&mut config) {
        config.reattest = options.reattest;
    }
    let metrics = Arc::new(Metrics::default());
    if let Some(at) = &options.metrics {
        let local = metrics::serve(&metrics, at, options.role.to_string())?;
        log::info!("metrics at http://{local}/metrics");
    }
    match options.role {
        Role::ParameterServer(index) => server::run(options, usize::from(index), config, metrics),
        Role::Worker(index) => worker::run(options, index, config, metrics),
        Role::SecretService => Err(Failure::usage("no role of a job").hint("hfl secret serve")),
        Role::TrustedNode => {
            Err(Failure::usage("no role of a job").hint("hfl model pull, hfl secret get"))
        }
    }
}
