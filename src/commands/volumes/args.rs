//! The flags of `hfl luks`.

use std::path::PathBuf;

use argh::FromArgs;
use luks::{HeaderId, Policy, Source};

use super::derivation::Derivation;
use super::headers::HeaderArgs;
use super::keys::KeyArgs;
use crate::trust::passphrase::KeySource;

/// Encrypted volumes: LUKS2, readable and writable by cryptsetup.
#[derive(FromArgs, Debug)]
#[argh(
    subcommand,
    name = "luks",
    example = "{command_name} create model.luks --size 1G --key-file key",
    example = "{command_name} export model.luks --files out --key-file key",
    note = "open, close, mount, unmount and status use dm-crypt and need root; the others need no privileges.",
    note = "Without --key-file and --key-fd the passphrase is asked for, or the first line of stdin."
)]
pub struct LuksArgs {
    #[argh(subcommand)]
    pub(super) command: Command,
}

#[derive(FromArgs, Debug)]
#[argh(subcommand)]
pub(super) enum Command {
    Close(CloseArgs),
    Convert(ConvertArgs),
    Create(CreateArgs),
    Dump(DumpArgs),
    Export(ExportArgs),
    Header(HeaderArgs),
    Key(KeyArgs),
    Mount(MountArgs),
    Open(OpenArgs),
    Resize(ResizeArgs),
    Seal(SealArgs),
    Status(StatusArgs),
    Unmount(UnmountArgs),
}

/// Create a volume with an empty ext4 file system inside.
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "create", example = "{command_name} model.luks --size 1G --key-file key")]
pub(super) struct CreateArgs {
    /// file to create, or a block device, which is filled
    #[argh(positional)]
    pub(super) volume: PathBuf,
    /// bytes in all, with K, M, G or T for powers of 1024 [1G; a device's own]
    #[argh(option)]
    pub(super) size: Option<Size>,
    /// file whose bytes are a passphrase, - for stdin; each one given makes a keyslot
    #[argh(option)]
    pub(super) key_file: Vec<PathBuf>,
    /// open file descriptor to read a passphrase from
    #[argh(option)]
    pub(super) key_fd: Option<u32>,
    /// put the header into a file of its own
    #[argh(option)]
    pub(super) header: Option<PathBuf>,
    /// authenticate every sector (aes-xts and hmac-sha256)
    #[argh(switch)]
    pub(super) integrity: bool,
    /// label, up to 47 bytes
    #[argh(option, default = "String::new()")]
    pub(super) label: String,
    /// bytes of a sector, 512 or 4096 [4096]
    #[argh(option, default = "4096")]
    pub(super) sector: u32,
    /// key derivation: argon2id, argon2i or pbkdf2 [argon2id]
    #[argh(option, default = "Derivation::Argon2id")]
    pub(super) kdf: Derivation,
    /// memory of argon2 in KiB [65536]
    #[argh(option, default = "65536")]
    pub(super) kdf_memory: u32,
    /// passes of argon2 [4], or iterations of pbkdf2 [600000]
    #[argh(option)]
    pub(super) kdf_time: Option<u32>,
    /// take the space on disk now
    #[argh(switch)]
    pub(super) preallocate: bool,
    /// directory whose files it gets, such as a data set for --data-volume
    #[argh(option)]
    pub(super) files: Option<PathBuf>,
    /// leave the inside empty
    #[argh(switch)]
    pub(super) no_file_system: bool,
    /// overwrite what is there
    #[argh(switch)]
    pub(super) force: bool,
}

/// Options that say which volume is opened and with what; argh cannot share them between commands.
macro_rules! opening {
    ($(#[$attribute:meta])* $name:ident { $($own:tt)* }) => {
        $(#[$attribute])*
        pub(super) struct $name {
            /// file or block device
            #[argh(positional)]
            pub(super) volume: PathBuf,
            $($own)*
            /// tolerate one damaged copy of the header, sha512 checksums, sha1 splitters
            #[argh(switch)]
            pub(super) compat: bool,
            /// file with a detached header
            #[argh(option)]
            pub(super) header: Option<PathBuf>,
            /// header id that it must have
            #[argh(option)]
            pub(super) expect: Option<HeaderId>,
            /// refuse a header without MAC
            #[argh(switch)]
            pub(super) require_mac: bool,
            /// file whose bytes are the passphrase, - for stdin
            #[argh(option)]
            pub(super) key_file: Option<PathBuf>,
            /// open file descriptor to read the passphrase from
            #[argh(option)]
            pub(super) key_fd: Option<u32>,
            /// try this keyslot only
            #[argh(option)]
            pub(super) slot: Option<u8>,
        }

        impl $name {
            /// The volume, and where its passphrase comes from.
            pub(super) fn source(&self) -> (Source, KeySource) {
                let source = Source {
                    header: self.header.clone(),
                    policy: if self.compat { Policy::Compat } else { Policy::Strict },
                    expect: self.expect,
                    require_mac: self.require_mac,
                    slot: self.slot,
                    ..Source::new(&self.volume)
                };
                (source, KeySource { file: self.key_file.clone(), descriptor: self.key_fd })
            }
        }
    };
}

opening! {
    /// Show what a header says; with --volume-key, the key.
    #[derive(FromArgs, Debug)]
    #[argh(subcommand, name = "dump", example = "{command_name} model.luks")]
    DumpArgs {
        /// one JSON object on stdout
        #[argh(switch)]
        pub(super) json: bool,
        /// print the volume key in hexadecimal
        #[argh(switch)]
        pub(super) volume_key: bool,
    }
}

opening! {
    /// Copy a volume's files into a new one that hfl also writes: from luksFormat and mkfs.ext4, or to another size.
    #[derive(FromArgs, Debug)]
    #[argh(
        subcommand,
        name = "convert",
        example = "{command_name} old.img model.luks --key-file key",
        note = "The same passphrase opens the new volume (hfl luks key change). Names and contents are copied; \
                owners, modes and times are new."
    )]
    ConvertArgs {
        /// file to create
        #[argh(positional)]
        pub(super) new: PathBuf,
        /// bytes of the new volume, with K, M, G or T [as the old one has]
        #[argh(option)]
        pub(super) size: Option<Size>,
        /// authenticate every sector (aes-xts and hmac-sha256)
        #[argh(switch)]
        pub(super) integrity: bool,
    }
}

opening! {
    /// Decrypt without privileges: the whole inside, or its files.
    #[derive(FromArgs, Debug)]
    #[argh(subcommand, name = "export", example = "{command_name} model.luks --files out")]
    ExportArgs {
        /// file for the whole plaintext, - for stdout
        #[argh(option)]
        pub(super) raw: Option<PathBuf>,
        /// directory for the files of the ext4 file system inside
        #[argh(option)]
        pub(super) files: Option<PathBuf>,
    }
}

opening! {
    /// Open a volume as /dev/mapper/NAME.
    #[derive(FromArgs, Debug)]
    #[argh(subcommand, name = "open", example = "{command_name} model.luks model --key-file key")]
    OpenArgs {
        /// name of the mapping
        #[argh(positional)]
        pub(super) name: String,
        /// without writing
        #[argh(switch)]
        pub(super) read_only: bool,
    }
}

opening! {
    /// Open a volume and mount the ext4 file system inside.
    #[derive(FromArgs, Debug)]
    #[argh(subcommand, name = "mount", example = "{command_name} model.luks /mnt --key-file key")]
    MountArgs {
        /// directory, made if it is not there
        #[argh(positional)]
        pub(super) directory: PathBuf,
        /// name of the mapping [hfl-UUID]
        #[argh(option)]
        pub(super) name: Option<String>,
        /// without writing
        #[argh(switch)]
        pub(super) read_only: bool,
    }
}

/// Remove the mapping /dev/mapper/NAME.
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "close", example = "{command_name} model")]
pub(super) struct CloseArgs {
    /// name of the mapping
    #[argh(positional)]
    pub(super) name: String,
}

/// Unmount a directory and close the mapping under it.
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "unmount", example = "{command_name} /mnt")]
pub(super) struct UnmountArgs {
    /// where the volume is mounted
    #[argh(positional)]
    pub(super) directory: PathBuf,
}

/// Show a mapping.
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "status", example = "{command_name} model")]
pub(super) struct StatusArgs {
    /// name of the mapping
    #[argh(positional)]
    pub(super) name: String,
    /// one JSON object on stdout
    #[argh(switch)]
    pub(super) json: bool,
}

opening! {
    /// Let a volume and the file system inside reach to the end of their file or device, once that is larger.
    #[derive(FromArgs, Debug)]
    #[argh(
        subcommand,
        name = "resize",
        example = "truncate -s 4G model.luks && {command_name} model.luks --key-file key",
        note = "A kill at any moment leaves the old size or the new one; the same command goes on."
    )]
    ResizeArgs {}
}

opening! {
    /// Put a header MAC into a volume made elsewhere, or a fresh one, and write both copies of the header.
    #[derive(FromArgs, Debug)]
    #[argh(subcommand, name = "seal", example = "{command_name} model.luks --key-file key")]
    SealArgs {}
}

/// A number of bytes.
#[derive(Clone, Copy, Debug)]
pub struct Size(
    /// The number.
    pub u64,
);

impl std::str::FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
            "" => 0,
            "K" => 10,
            "M" => 20,
            "G" => 30,
            "T" => 40,
            _ => return Err("expected a number with K, M, G or T".into()),
        };
        let number: u64 = digits.parse().map_err(|_| "expected a number of bytes")?;
        number.checked_mul(1 << shift).map(Self).ok_or_else(|| "too many bytes".into())
    }
}
