//! Command line of `hfl model`.

use std::path::PathBuf;

use argh::FromArgs;

use crate::trust::flags::attested;

/// Move the encrypted volume with a finished model.
#[derive(FromArgs, Debug)]
#[argh(
    subcommand,
    name = "model",
    example = "{command_name} serve --volume model.luks --policy policy.json --collateral c.json",
    example = "{command_name} pull --from ps0.example:60002 --out model.luks"
)]
pub struct ModelArgs {
    #[argh(subcommand)]
    pub(super) command: Command,
}

#[derive(FromArgs, Debug)]
#[argh(subcommand)]
pub(super) enum Command {
    Pull(PullArgs),
    Serve(ServeArgs),
}

attested! {
    /// Fetch the volume from ps0 (hfl --role ps0 --linger, or hfl model serve).
    #[derive(FromArgs, Debug)]
    #[argh(
        subcommand,
        name = "pull",
        example = "{command_name} --from ps0.example:60002 --out model.luks --policy policy.json --collateral c.json"
    )]
    pub(super) struct PullArgs {
        /// host:port of ps0 [localhost:60002]
        #[argh(option, default = "\"localhost:60002\".into()")]
        pub(super) from: String,
        /// file to create
        #[argh(option)]
        pub(super) out: PathBuf,
        /// seconds to try for while the training runs or nobody answers [600]
        #[argh(option, default = "600")]
        pub(super) wait: u64,
    }
}

attested! {
    /// Serve a volume that nobody writes to trusted nodes, as ps0.
    #[derive(FromArgs, Debug)]
    #[argh(
        subcommand,
        name = "serve",
        example = "{command_name} --volume model.luks --policy policy.json --collateral c.json"
    )]
    pub(super) struct ServeArgs {
        /// the volume
        #[argh(option)]
        pub(super) volume: PathBuf,
        /// host:port to listen on [localhost:60002]
        #[argh(option, default = "\"localhost:60002\".into()")]
        pub(super) ps_hosts: String,
        /// seconds to serve for [until it was fetched once]
        #[argh(option)]
        pub(super) linger: Option<u64>,
    }
}
