//! `hfl luks key`: passphrases of a volume that is there.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use argh::FromArgs;
use luks::{Passphrase, Policy, Source};
use protocol::Role;
use rustix::termios::isatty;

use super::derivation::Derivation;
use super::opening::explained;
use crate::failure::Failure;
use crate::hosts::PinnedHost;
use crate::report::print;
use crate::termination;
use crate::trust::TrustOptions;
use crate::trust::fetch::{Keeper, Service, fetch};
use crate::trust::flags::attested;
use crate::trust::passphrase::KeySource;

/// Add, change or remove a passphrase of a volume. A kill at any moment leaves the volume openable.
#[derive(FromArgs, Debug)]
#[argh(
    subcommand,
    name = "key",
    example = "{command_name} change model.luks --key-file old --new-key-file new",
    example = "{command_name} add model.luks --key-file key --secret-service host:50051 --new-app-id next",
    note = "hfl luks dump lists the keyslots. A passphrase that is named nowhere is asked for."
)]
pub(super) struct KeyArgs {
    #[argh(subcommand)]
    command: Command,
}

#[derive(FromArgs, Debug)]
#[argh(subcommand)]
enum Command {
    Add(AddArgs),
    Change(ChangeArgs),
    Remove(RemoveArgs),
}

/// Options of all three, and those of their own; argh cannot share them.
macro_rules! opening {
    ($(#[$attribute:meta])* $name:ident { $($own:tt)* }) => {
        attested! { $(#[$attribute])* struct $name {
            /// file or block device
            #[argh(positional)]
            volume: PathBuf,
            $($own)*
            /// file with a detached header
            #[argh(option)]
            header: Option<PathBuf>,
            /// tolerate one damaged copy of the header, sha512 checksums, sha1 splitters
            #[argh(switch)]
            compat: bool,
            /// file whose bytes are a passphrase that opens the volume, - for stdin
            #[argh(option)]
            key_file: Option<PathBuf>,
            /// open file descriptor to read it from
            #[argh(option)]
            key_fd: Option<u32>,
            /// host:port[#SHA256 of its owner's key] of the service that has one of the passphrases, or both
            #[argh(option)]
            secret_service: Option<PinnedHost>,
            /// name there of the passphrase that opens the volume
            #[argh(option)]
            app_id: Option<String>,
            /// seconds to try for [120]
            #[argh(option, default = "Service::WAIT.as_secs()")]
            secret_wait: u64,
            /// role to ask in: node, ps0, worker0, ... [node]
            #[argh(option, default = "Role::TrustedNode")]
            role: Role,
        }}

        impl $name {
            /// The volume, and where what opens it comes from.
            fn opening(&self) -> (Source, Origin) {
                let source = Source {
                    header: self.header.clone(),
                    policy: if self.compat { Policy::Compat } else { Policy::Strict },
                    ..Source::new(&self.volume)
                };
                let key = KeySource { file: self.key_file.clone(), descriptor: self.key_fd };
                (source, Origin { key, app_id: self.app_id.clone() })
            }

            fn asking(&self) -> Asking {
                Asking {
                    at: self.secret_service.clone(),
                    wait: Duration::from_secs(self.secret_wait),
                    role: self.role,
                    trust: self.trust(),
                }
            }
        }
    };
}

/// What `add` and `change` share beside that.
macro_rules! setting {
    ($(#[$attribute:meta])* $name:ident { $($own:tt)* }) => {
        opening! {
            $(#[$attribute])*
            $name {
                $($own)*
                /// file whose bytes are the new passphrase, - for stdin
                #[argh(option)]
                new_key_file: Option<PathBuf>,
                /// open file descriptor to read the new passphrase from
                #[argh(option)]
                new_key_fd: Option<u32>,
                /// name at --secret-service of the new passphrase
                #[argh(option)]
                new_app_id: Option<String>,
                /// key derivation: argon2id, argon2i or pbkdf2 [argon2id]
                #[argh(option, default = "Derivation::Argon2id")]
                kdf: Derivation,
                /// memory of argon2 in KiB [65536]
                #[argh(option, default = "65536")]
                kdf_memory: u32,
                /// passes of argon2 [4], or iterations of pbkdf2 [600000]
                #[argh(option)]
                kdf_time: Option<u32>,
            }
        }

        impl $name {
            fn new_origin(&self) -> Origin {
                let key = KeySource { file: self.new_key_file.clone(), descriptor: self.new_key_fd };
                Origin { key, app_id: self.new_app_id.clone() }
            }
        }
    };
}

setting! {
    /// Add a keyslot with another passphrase.
    #[derive(FromArgs, Debug)]
    #[argh(
        subcommand,
        name = "add",
        example = "{command_name} model.luks --key-file key --new-key-file next"
    )]
    AddArgs {
        /// the keyslot that opens the volume [any]
        #[argh(option)]
        slot: Option<u8>,
    }
}

setting! {
    /// Change the passphrase of a keyslot; nothing is left of the old one.
    #[derive(FromArgs, Debug)]
    #[argh(
        subcommand,
        name = "change",
        example = "{command_name} model.luks --key-file key --new-key-file next"
    )]
    ChangeArgs {
        /// the keyslot to change [the one that opens]
        #[argh(option)]
        slot: Option<u8>,
    }
}

opening! {
    /// Remove a keyslot, given a passphrase that stays: the last one is never removed.
    #[derive(FromArgs, Debug)]
    #[argh(
        subcommand,
        name = "remove",
        example = "{command_name} model.luks --slot 0 --key-file next"
    )]
    RemoveArgs {
        /// the keyslot to remove
        #[argh(option)]
        slot: u8,
    }
}

/// Where a passphrase comes from.
struct Origin {
    key: KeySource,
    /// Its name at the secret service.
    app_id: Option<String>,
}

impl Origin {
    fn is_named(&self) -> bool {
        self.key.file.is_some() || self.key.descriptor.is_some()
    }
}

/// The secret service, and who asks it.
struct Asking {
    at: Option<PinnedHost>,
    wait: Duration,
    role: Role,
    trust: TrustOptions,
}

impl Asking {
    /// The passphrase; `None` where it is neither a file's nor the service's.
    fn named(&self, origin: &Origin) -> Result<Option<Passphrase>, Failure> {
        let Some(app_id) = &origin.app_id else {
            return if origin.is_named() { origin.key.read().map(Some) } else { Ok(None) };
        };
        if origin.is_named() {
            return Err(Failure::usage("a passphrase from a file and from the secret service"));
        }
        let at = self.at.clone();
        let at = at.ok_or_else(|| {
            Failure::usage("--app-id and --new-app-id name secrets of --secret-service HOST:PORT")
        })?;
        termination::catch()?;
        let at = Keeper::Service(at);
        let service = Service { at, app_id: app_id.clone(), wait: self.wait };
        let secret = fetch(&self.trust.config(self.role)?, &service)?;
        Ok(Some(Passphrase::from_bytes(&secret)))
    }

    /// What opens the volume.
    fn opening(&self, origin: &Origin) -> Result<Passphrase, Failure> {
        self.check([origin].into_iter())?;
        self.named(origin)?.map_or_else(|| origin.key.read(), Ok)
    }

    /// What opens the volume, and what shall.
    fn both(&self, old: &Origin, new: &Origin) -> Result<[Passphrase; 2], Failure> {
        self.check([old, new].into_iter())?;
        let unnamed = |origin: &Origin| !origin.is_named() && origin.app_id.is_none();
        if unnamed(old) && unnamed(new) && !isatty(io::stdin()) {
            return Err(Failure::usage("two passphrases, and one line on stdin")
                .hint("--key-file or --new-key-file for one of them"));
        }
        let first = self.named(old)?.map_or_else(|| old.key.read(), Ok)?;
        let second = self.named(new)?.map_or_else(|| new.key.read_new(), Ok)?;
        Ok([first, second])
    }

    /// A service that is asked for nothing is a mistake.
    fn check<'a>(&self, mut origins: impl Iterator<Item = &'a Origin>) -> Result<(), Failure> {
        match self.at.is_some() && origins.all(|origin| origin.app_id.is_none()) {
            true => Err(Failure::usage("--secret-service: of which passphrase?").hint(
                "--app-id NAME for what opens the volume, --new-app-id NAME for the new one",
            )),
            false => Ok(()),
        }
    }
}

pub(super) fn run(args: KeyArgs) -> Result<(), Failure> {
    match args.command {
        Command::Add(args) => add(&args),
        Command::Change(args) => change(&args),
        Command::Remove(args) => remove(&args),
    }
}

fn add(args: &AddArgs) -> Result<(), Failure> {
    let (mut source, old) = args.opening();
    source.slot = args.slot;
    let [passphrase, new] = args.asking().both(&old, &args.new_origin())?;
    let cost = args.kdf.cost(args.kdf_memory, args.kdf_time);
    let number = source.add_key(&passphrase, &new, cost);
    let number = number.map_err(|error| explained(&args.volume, &error))?;
    print(&format!("keyslot {number} added to {}", args.volume.display()))
}

fn change(args: &ChangeArgs) -> Result<(), Failure> {
    let (mut source, old) = args.opening();
    source.slot = args.slot;
    let [passphrase, new] = args.asking().both(&old, &args.new_origin())?;
    let cost = args.kdf.cost(args.kdf_memory, args.kdf_time);
    let number = source.change_key(&passphrase, &new, cost);
    let number = number.map_err(|error| explained(&args.volume, &error))?;
    print(&format!("keyslot {number} of {} changed", args.volume.display()))
}

fn remove(args: &RemoveArgs) -> Result<(), Failure> {
    let (source, remaining) = args.opening();
    let remaining = args.asking().opening(&remaining)?;
    let removed = source.remove_key(args.slot, &remaining);
    removed.map_err(|error| explained(&args.volume, &error))?;
    print(&format!("keyslot {} removed from {}", args.slot, args.volume.display()))
}
