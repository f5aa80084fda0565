//! `hfl identity`: keys of owners, by whose hashes policies say whose a secret service or a trusted node is.

use std::path::PathBuf;

use argh::FromArgs;
use protocol::{OwnerKey, hex};

use crate::failure::{Doing, Failure};
use crate::files::write_private;
use crate::report::print;
use crate::trust::read_key;

/// Make an owner's key, or show the hash by which policies name one.
#[derive(FromArgs, Debug)]
#[argh(
    subcommand,
    name = "identity",
    example = "{command_name} create --out owner.key",
    note = "The hash goes into service_keys and node_keys of policies, and behind # in --secret-service."
)]
pub struct IdentityArgs {
    #[argh(subcommand)]
    command: Command,
}

#[derive(FromArgs, Debug)]
#[argh(subcommand)]
enum Command {
    Create(CreateArgs),
    Show(ShowArgs),
}

/// Make a P-256 key in a new file that only its owner can read, and print its hash.
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "create", example = "{command_name} --out owner.key")]
struct CreateArgs {
    /// file to create [owner.key]
    #[argh(option, default = "\"owner.key\".into()")]
    out: PathBuf,
}

/// Print the hash of a key: SHA-256 of its SubjectPublicKeyInfo.
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "show", example = "{command_name} --key owner.key")]
struct ShowArgs {
    /// the key [owner.key]
    #[argh(option, default = "\"owner.key\".into()")]
    key: PathBuf,
}

/// Runs a command.
///
/// # Errors
/// When the key cannot be written or read.
pub fn run(args: IdentityArgs) -> Result<(), Failure> {
    let key = match args.command {
        Command::Create(CreateArgs { out }) => {
            let key = OwnerKey::generate().doing("a key")?;
            write_private(&out, key.pem().as_bytes()).doing(out.display())?;
            key
        }
        Command::Show(ShowArgs { key }) => read_key(&key)?,
    };
    print(&hex(&key.hash().doing("the key")?))
}
