//! The flags of `hfl secret`.

use std::path::PathBuf;
use std::time::Duration;

use argh::FromArgs;
use protocol::Role;

use crate::trust::TrustOptions;
use crate::trust::fetch::{Keeper, Service};
use crate::trust::flags::attested;
use crate::trust::passphrase::KeySource;

/// Give out passphrases of volumes to attested peers, or ask for one.
#[derive(FromArgs, Debug)]
#[argh(
    subcommand,
    name = "secret",
    example = "{command_name} serve --secrets secrets.json --policy policy.json --collateral c.json",
    example = "{command_name} get --secret-service localhost:50051 --out key"
)]
pub struct SecretArgs {
    #[argh(subcommand)]
    pub(super) command: Command,
}

#[derive(FromArgs, Debug)]
#[argh(subcommand)]
pub(super) enum Command {
    Audit(AuditArgs),
    Get(GetArgs),
    Seal(SealArgs),
    Serve(ServeArgs),
}

attested! {
    /// Serve secrets until SIGTERM. Files that change are read again.
    #[derive(FromArgs, Debug)]
    #[argh(
        subcommand,
        name = "serve",
        example = "{command_name} --secrets secrets.json --policy policy.json --collateral c.json",
        note = "An entry of --secrets is a passphrase, for every peer that --policy accepts, or an object: \
                \"secret\", \"policy\" (as in --policy, for this secret), \"uses\" (releases in all), \
                \"until\" (a date)."
    )]
    pub(super) struct ServeArgs {
        /// JSON file with a secret an app id
        #[argh(option)]
        pub(super) secrets: Option<PathBuf>,
        /// encrypted volume with the secrets, instead of --secrets (hfl secret seal)
        #[argh(option)]
        pub(super) volume: Option<PathBuf>,
        /// file whose bytes are the volume's passphrase, - for stdin
        #[argh(option)]
        pub(super) key_file: Option<PathBuf>,
        /// open file descriptor to read the volume's passphrase from
        #[argh(option)]
        pub(super) key_fd: Option<u32>,
        /// address to listen on [0.0.0.0:50051]
        #[argh(option, default = "\"0.0.0.0:50051\".into()")]
        pub(super) listen: String,
        /// log of releases and refusals, each line with the hash of the one before [secret-audit.jsonl]
        #[argh(option, default = "PathBuf::from(\"secret-audit.jsonl\")")]
        pub(super) audit: PathBuf,
        /// connections a minute from one address that need not attest at once; more wait for few places [60]
        #[argh(option, default = "60")]
        pub(super) rate: u32,
    }
}

attested! {
    /// Ask a service for a secret: its bytes on stdout or in a file.
    #[derive(FromArgs, Debug)]
    #[argh(
        subcommand,
        name = "get",
        example = "{command_name} --secret-service localhost:50051 | cryptsetup open model.luks model --key-file -"
    )]
    pub(super) struct GetArgs {
        /// host:port[#SHA256 of its owner's key] of the service [localhost:50051], or in a confidential pod
        /// cdh:REPOSITORY/TYPE/TAG of its Trustee
        #[argh(option, default = "Keeper::of(\"localhost:50051\")")]
        pub(super) secret_service: Keeper,
        /// name of the secret [hfl-tdx-coco-app]
        #[argh(option, default = "Service::APP_ID.into()")]
        pub(super) app_id: String,
        /// seconds to try for [120]
        #[argh(option, default = "Service::WAIT.as_secs()")]
        pub(super) secret_wait: u64,
        /// role to ask in: node, ps0, worker0, ... [node]
        #[argh(option, default = "Role::TrustedNode")]
        pub(super) role: Role,
        /// file to create, readable by its owner only [stdout]
        #[argh(option)]
        pub(super) out: Option<PathBuf>,
    }
}

impl GetArgs {
    pub(super) fn options(self) -> (TrustOptions, Service) {
        let trust = self.trust();
        let wait = Duration::from_secs(self.secret_wait);
        (trust, Service { at: self.secret_service, app_id: self.app_id, wait })
    }
}

/// Put a file with secrets into an encrypted volume, from which `serve --volume` reads it.
#[derive(FromArgs, Debug)]
#[argh(
    subcommand,
    name = "seal",
    example = "{command_name} --secrets secrets.json --volume secrets.luks --key-file key"
)]
pub(super) struct SealArgs {
    /// JSON file with a secret an app id
    #[argh(option)]
    pub(super) secrets: PathBuf,
    /// encrypted volume (hfl luks create --size 32M)
    #[argh(option)]
    pub(super) volume: PathBuf,
    /// file whose bytes are the volume's passphrase, - for stdin
    #[argh(option)]
    pub(super) key_file: Option<PathBuf>,
    /// open file descriptor to read the volume's passphrase from
    #[argh(option)]
    pub(super) key_fd: Option<u32>,
}

impl SealArgs {
    pub(super) fn key(&self) -> KeySource {
        KeySource { file: self.key_file.clone(), descriptor: self.key_fd }
    }
}

/// Check that no line of a service's log was changed or taken out of its middle.
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "audit", example = "{command_name} --log secret-audit.jsonl")]
pub(super) struct AuditArgs {
    /// the log [secret-audit.jsonl]
    #[argh(option, default = "PathBuf::from(\"secret-audit.jsonl\")")]
    pub(super) log: PathBuf,
}
