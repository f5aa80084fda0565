//! The roles over real sockets: `hfl --role ps0` and `hfl --role worker0`.

mod options;
mod record;
mod server;
pub mod transfer;
mod worker;

use protocol::Role;

pub use options::Options;

use crate::failure::Failure;
use crate::termination;

/// Runs the role until its job is done.
///
/// # Errors
/// What ended it before.
pub fn run(options: &Options) -> Result<(), Failure> {
    termination::catch()?;
    let config = options.trust.config(options.role)?;
    match options.role {
        Role::ParameterServer(index) => server::run(options, usize::from(index), config),
        Role::Worker(index) => worker::run(options, index, config),
        Role::SecretService => Err(Failure::new("no role of a job").hint("hfl secret serve")),
        Role::TrustedNode => {
            Err(Failure::new("no role of a job").hint("hfl model pull, hfl secret get"))
        }
    }
}
