//! `hfl luks header`: a backup of a volume's header, and its return.

use std::path::PathBuf;

use argh::FromArgs;
use luks::{Header, Policy, Source};

use super::opening::explained;
use crate::failure::Failure;
use crate::report::print;
use crate::trust::passphrase::KeySource;

/// Back up a header with its keyslots, or restore it. Both check that the volume key vouches for it.
#[derive(FromArgs, Debug)]
#[argh(
    subcommand,
    name = "header",
    example = "{command_name} backup model.luks header.bak --key-file key",
    note = "Whoever has a backup and a passphrase of that time opens the volume: keep it as the key is kept."
)]
pub(super) struct HeaderArgs {
    #[argh(subcommand)]
    command: Command,
}

#[derive(FromArgs, Debug)]
#[argh(subcommand)]
enum Command {
    Backup(BackupArgs),
    Restore(RestoreArgs),
}

/// Options of both; argh cannot share them.
macro_rules! copying {
    ($(#[$attribute:meta])* $name:ident, $(#[$about:meta])*) => {
        $(#[$attribute])*
        struct $name {
            /// file or block device
            #[argh(positional)]
            volume: PathBuf,
            $(#[$about])*
            #[argh(positional)]
            backup: PathBuf,
            /// file with a detached header
            #[argh(option)]
            header: Option<PathBuf>,
            /// tolerate one damaged copy of the header, sha512 checksums, sha1 splitters
            #[argh(switch)]
            compat: bool,
            /// try this keyslot only
            #[argh(option)]
            slot: Option<u8>,
            /// file whose bytes are the passphrase, - for stdin
            #[argh(option)]
            key_file: Option<PathBuf>,
            /// open file descriptor to read the passphrase from
            #[argh(option)]
            key_fd: Option<u32>,
        }

        impl $name {
            fn source(&self) -> (Source, KeySource) {
                let source = Source {
                    header: self.header.clone(),
                    policy: if self.compat { Policy::Compat } else { Policy::Strict },
                    slot: self.slot,
                    ..Source::new(&self.volume)
                };
                (source, KeySource { file: self.key_file.clone(), descriptor: self.key_fd })
            }
        }
    };
}

copying! {
    /// Write the header to a new file.
    #[derive(FromArgs, Debug)]
    #[argh(
        subcommand,
        name = "backup",
        example = "{command_name} model.luks model.header --key-file key"
    )]
    BackupArgs,
    /// file to create
}

copying! {
    /// Put a backup in the place of the volume's header.
    #[derive(FromArgs, Debug)]
    #[argh(
        subcommand,
        name = "restore",
        example = "{command_name} model.luks model.header --key-file key"
    )]
    RestoreArgs,
    /// file that `backup` (or cryptsetup luksHeaderBackup) made
}

pub(super) fn run(args: HeaderArgs) -> Result<(), Failure> {
    match args.command {
        Command::Backup(args) => {
            let (source, key) = args.source();
            let made = source.backup(&key.read()?, &args.backup);
            told("backed up to", &args.backup, &made.map_err(|e| explained(&args.volume, &e))?)
        }
        Command::Restore(args) => {
            let (source, key) = args.source();
            let restored = source.restore(&key.read()?, &args.backup);
            told("restored from", &args.backup, &restored.map_err(|e| explained(&args.volume, &e))?)
        }
    }
}

fn told(done: &str, backup: &std::path::Path, header: &Header) -> Result<(), Failure> {
    let slots = header.metadata().keyslots.len();
    print(&format!("{done} {}\nheader id {}\nkeyslots  {slots}", backup.display(), header.id()))
}
