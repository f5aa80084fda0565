//! `hfl model`: the encrypted volume with the finished model, from ps0 to a trusted node.
//!
//! What travels is the volume as it is on the disk: whoever fetches it needs the passphrase too, and what
//! is inside is vouched for by its manifest. Only LUKS2 volumes are ever sent.

mod args;
mod pull;

use std::time::Duration;

use protocol::{Net, Role};

pub use args::ModelArgs;

use args::Command;

use crate::failure::{Doing, Failure};
use crate::hosts::listen_addresses;
use crate::termination;
use crate::training::roles::transfer;
use crate::trust::Attestation;

/// Runs a command.
///
/// # Errors
/// Why it could not be done.
pub fn run(args: ModelArgs) -> Result<(), Failure> {
    match args.command {
        Command::Pull(args) => pull::run(args),
        Command::Serve(args) => {
            termination::catch()?;
            // A key alone makes nobody a participant of a job: an owner serves as the trusted node that it is.
            let role = match args.attestation {
                Attestation::None => Role::TrustedNode,
                _ => Role::ParameterServer(0),
            };
            let mut net = Net::new(args.trust().config(role)?).doing("network")?;
            termination::wake(&mut net)?;
            let local = listen_addresses(&args.ps_hosts)?.listen(&mut net)?;
            log::info!("listening on {local}");
            let until = args.linger.map(Duration::from_secs);
            transfer::serve(&mut net, &[0; 32], &args.volume, until.unwrap_or(Duration::MAX))
        }
    }
}
