//! `hfl secret`: passphrases of volumes for those who prove what they are, and nobody else.
//!
//! The service and whoever asks verify one another as in every session; then the entry of the secret
//! decides again, about this measurement in this role. What was given out and refused is in a log in
//! which each line holds the hash of the one before.

mod args;
mod audit;
mod entries;
mod serve;
mod watch;

use std::io::{self, IsTerminal, Write};

use protocol::Role;

pub use args::SecretArgs;

use args::{AuditArgs, Command, GetArgs, SealArgs};
use audit::Audit;
use entries::{FILE, Secrets};

use crate::failure::{Doing, Failure};
use crate::files::{read_bounded, write_private};
use crate::report::print;
use crate::training::store::{Access, Progress, Store};
use crate::training::volume;
use crate::trust::fetch::fetch;

/// Runs a command.
///
/// # Errors
/// Why it could not be done.
pub fn run(args: SecretArgs) -> Result<(), Failure> {
    match args.command {
        Command::Audit(args) => audit(&args),
        Command::Get(args) => get(args),
        Command::Seal(args) => seal(&args),
        Command::Serve(args) => serve::run(args),
    }
}

fn get(args: GetArgs) -> Result<(), Failure> {
    if args.out.is_none() && io::stdout().is_terminal() {
        return Err(
            Failure::new("a secret is not shown on a terminal").hint("--out FILE, or a pipe")
        );
    }
    let role = args.role;
    if !matches!(role, Role::ParameterServer(_) | Role::Worker(_) | Role::TrustedNode) {
        return Err(Failure::usage("--role: expected ps0, worker0, ... or node"));
    }
    let out = args.out.clone();
    let (trust, service) = args.options();
    let secret = fetch(&trust.config(role)?, &service)?;
    match out {
        None => io::stdout().write_all(&secret).and_then(|()| io::stdout().flush()).doing("stdout"),
        Some(path) => write_private(&path, &secret).doing(path.display()),
    }
}

fn seal(args: &SealArgs) -> Result<(), Failure> {
    let name = args.secrets.display();
    let bytes = read_bounded(&args.secrets).doing(&name)?;
    let bytes =
        zeroize::Zeroizing::new(bytes.ok_or_else(|| Failure::new(format!("{name}: not there")))?);
    let count = Secrets::parse(&bytes).doing(&name)?.len();
    let passphrase = args.key().read()?;
    let open = Store::volume(&args.volume, &passphrase, Access::Write);
    let mut store = open.map_err(|error| volume::explained(&args.volume, &error))?;
    let step = store.manifest().map_or(0, |manifest| manifest.step) + 1;
    store
        .save(FILE, Progress { job: [0; 32], step }, &|out| out.write_all(&bytes))
        .and_then(|()| store.close())
        .doing(args.volume.display())?;
    print(&format!("{count} secrets are in {}; {name} can be removed", args.volume.display()))
}

fn audit(args: &AuditArgs) -> Result<(), Failure> {
    let audit = Audit::read(&args.log).doing(args.log.display())?;
    print(&format!("{} entries in order, the last has sha256 {}", audit.len(), audit.head()))
}
