//! What a role is started with.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kernels::{Isa, Pool};
use luks::Passphrase;
use protocol::{Config, Role};

use crate::data::dataset::{Shard, Split};
use crate::data::hold_out::HoldOut;
use crate::data::place::Place as Pictures;
use crate::data::source::Selection;
use crate::failure::Failure;
use crate::job::Job;
use crate::job::bounds::Bounds;
use crate::job::receipt::Hash;
use crate::training::store::{Place, Store};
use crate::training::volume;
use crate::trust::TrustOptions;
use crate::trust::fetch::{Service, fetch};

/// What a role is started with.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which role.
    pub role: Role,
    /// `host:port` of the parameter servers.
    pub ps_hosts: Vec<String>,
    /// The job as these options define it; a worker takes the server's.
    pub job: Job,
    /// Which jobs a worker takes.
    pub bounds: Bounds,
    /// Pictures of a worker, unless they are in a volume.
    pub data: PathBuf,
    /// An encrypted volume with the pictures.
    pub data_volume: Option<PathBuf>,
    /// Part of the data that a worker takes.
    pub shard: Option<Shard>,
    /// What parts pictures that lie in `CLASS/*`.
    pub hold_out: Option<HoldOut>,
    /// Most bytes that pictures may take in memory, if that is said.
    pub data_memory: Option<u64>,
    /// Leave broken pictures out instead of ending with the first.
    pub skip_broken: bool,
    /// Where checkpoints are.
    pub place: Place,
    /// Initial parameters of a new job.
    pub init: Option<PathBuf>,
    /// Steps between checkpoints.
    pub checkpoint_every: u64,
    /// Time between checkpoints, where steps are long.
    pub checkpoint_after: Duration,
    /// Threads of the kernels.
    pub threads: usize,
    /// Instruction-set tier.
    pub isa: Isa,
    /// Our evidence, and whom we trust.
    pub trust: TrustOptions,
    /// How often peers of open connections show fresh evidence; `None` for never.
    pub reattest: Option<Duration>,
    /// Who has the volume's passphrase, if that is a service.
    pub service: Option<Service>,
    /// How long a finished ps0 serves its volume to trusted nodes.
    pub linger: Duration,
    /// JSON on stdout.
    pub json: bool,
    /// Where numbers and health are served, `HOST:PORT`, or a port of this machine's own.
    pub metrics: Option<String>,
    /// Whether ps0 writes the page about the job.
    pub page: bool,
    /// SHA-256 of the container image that ps0 runs from, for the passport.
    pub image: Option<Hash>,
    /// Whether ps0 writes a bill of materials beside the model.
    pub bom: bool,
    /// How long a worker tries to reach its server before it gives up.
    pub wait: Duration,
    /// A pause before each step of a worker, for tests of slow workers.
    pub pause: Duration,
}

impl Options {
    /// Opens the place of the model, with a passphrase of the secret service where one is named.
    pub(super) fn open_store(&self, config: &Arc<Config>) -> Result<Store, Failure> {
        self.place.open(|| self.passphrase(config))
    }

    /// The passphrase of the volumes.
    pub(super) fn passphrase(&self, config: &Arc<Config>) -> Result<Passphrase, Failure> {
        match &self.service {
            None => self.place.key.read(),
            Some(service) => fetch(config, service).map(|secret| Passphrase::from_bytes(&secret)),
        }
    }

    /// Where the pictures are; their volume opens with the passphrase.
    pub(super) fn data(&self, passphrase: Option<&Passphrase>) -> Result<Pictures, Failure> {
        match (&self.data_volume, passphrase) {
            (Some(path), Some(passphrase)) => {
                Pictures::volume(path, passphrase).map_err(|error| volume::explained(path, &error))
            }
            _ => Ok(Pictures::directory(&self.data)),
        }
    }

    /// Which pictures of the data a worker takes.
    pub(super) fn selection(&self, split: Split) -> Selection {
        Selection { split, shard: self.shard, hold_out: self.hold_out }
    }

    /// Threads of the kernels.
    pub(super) fn pool(&self) -> Pool {
        Pool::new(self.threads)
    }
}
