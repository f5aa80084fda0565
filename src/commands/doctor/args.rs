//! Command line of `hfl doctor`.

use std::path::PathBuf;

use argh::FromArgs;
use protocol::Role;

use crate::data::dataset::Shard;
use crate::hosts::HostList;
use crate::job::{Precision, Stem};
use crate::trust::fetch::Keeper;
use crate::trust::flags::attested;

attested! {
    /// Check this host for a role before its job: each thing is ok, a warning or failed, with what to do.
    #[derive(FromArgs, Debug)]
    #[argh(
        subcommand,
        name = "doctor",
        example = "{command_name} --role worker0 --data cifar-10 --policy policy.json --collateral c.json",
        note = "Exit code 1 if something that the role needs has failed."
    )]
    pub struct DoctorArgs {
        /// role to check for: ps0, worker0, ... [worker0]
        #[argh(option, default = "Role::Worker(0)")]
        pub(crate) role: Role,
        /// host:port of ps0 [localhost:60002]
        #[argh(option, default = "HostList::one(\"localhost:60002\")")]
        pub(crate) ps_hosts: HostList,
        /// directory with CIFAR-10 binary files [data]
        #[argh(option, default = "PathBuf::from(\"data\")")]
        pub(crate) data: PathBuf,
        /// encrypted volume whose inside is the data, instead of --data; opened with a key below, read only
        #[argh(option)]
        pub(crate) data_volume: Option<PathBuf>,
        /// file whose bytes are the passphrase of --data-volume, - for stdin
        #[argh(option)]
        pub(crate) key_file: Option<PathBuf>,
        /// open file descriptor to read that passphrase from
        #[argh(option)]
        pub(crate) key_fd: Option<u32>,
        /// part I of N of the data, from 0, such as 0/2 [all]
        #[argh(option)]
        pub(crate) shard: Option<Shard>,
        /// encrypted volume of the role
        #[argh(option)]
        pub(crate) volume: Option<PathBuf>,
        /// who has the volumes' passphrase: host:port of a service, or cdh:REPOSITORY/TYPE/TAG
        #[argh(option)]
        pub(crate) secret_service: Option<Keeper>,
        /// images of one worker in a step [128]
        #[argh(option, default = "128")]
        pub(crate) batch_size: u32,
        /// first layers: imagenet or cifar [imagenet]
        #[argh(option, default = "Stem::Imagenet")]
        pub(crate) stem: Stem,
        /// number format: fp32 or bf16 [fp32]
        #[argh(option, default = "Precision::Fp32")]
        pub(crate) precision: Precision,
        /// one JSON object on stdout
        #[argh(switch)]
        pub(crate) json: bool,
    }
}
