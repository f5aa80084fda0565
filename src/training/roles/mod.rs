//! The roles over real sockets: `hfl --role ps0` and `hfl --role worker0`.

mod server;
mod worker;

use std::net::{Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kernels::{Isa, Pool};
use luks::Passphrase;
use protocol::{CHUNK_LEN_MAX, Config, Role};

use crate::commands::secret::{Service, fetch};
use crate::data::cifar::Shard;
use crate::failure::{Doing, Failure};
use crate::job::Job;
use crate::termination;
use crate::training::store::{Place, Store};
use crate::trust::TrustOptions;

/// Values that travel in one chunk.
const CELL: usize = CHUNK_LEN_MAX / size_of::<f32>();

/// What a role is started with.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which role.
    pub role: Role,
    /// `host:port` of the parameter servers.
    pub ps_hosts: Vec<String>,
    /// The job as these options define it; a worker takes the server's.
    pub job: Job,
    /// CIFAR-10 binary files of a worker.
    pub data: PathBuf,
    /// Part of the data that a worker takes.
    pub shard: Option<Shard>,
    /// Where checkpoints are.
    pub place: Place,
    /// Initial parameters of a new job.
    pub init: Option<PathBuf>,
    /// Steps between checkpoints.
    pub checkpoint_every: u64,
    /// Threads of the kernels.
    pub threads: usize,
    /// Instruction-set tier.
    pub isa: Isa,
    /// Our evidence, and whom we trust.
    pub trust: TrustOptions,
    /// Who has the volume's passphrase, if that is a service.
    pub service: Option<Service>,
    /// How long a finished ps0 serves its volume to trusted nodes.
    pub linger: Duration,
    /// JSON on stdout.
    pub json: bool,
    /// A pause before each step of a worker, for tests of slow workers.
    pub pause: Duration,
}

/// Runs the role until its job is done.
///
/// # Errors
/// What ended it before.
pub fn run(options: &Options) -> Result<(), Failure> {
    termination::catch()?;
    let config = options.trust.config(options.role)?;
    match options.role {
        Role::ParameterServer(index) => server::run(options, usize::from(index), config),
        Role::Worker(index) => worker::run(options, index, config),
        Role::SecretService => Err(Failure::new("no role of a job").hint("hfl secret serve")),
        Role::TrustedNode => {
            Err(Failure::new("no role of a job").hint("hfl model pull, hfl secret get"))
        }
    }
}

/// Opens the place of the model, with a passphrase of the secret service where one is named.
fn open_store(options: &Options, config: &Arc<Config>) -> Result<Store, Failure> {
    match &options.service {
        None => options.place.open(true),
        Some(service) => options.place.open_with(true, || {
            fetch(config, service).map(|secret| Passphrase::from_bytes(&secret))
        }),
    }
}

fn pool(options: &Options) -> (Pool, Isa) {
    (Pool::new(options.threads), options.isa)
}

/// The address that a server binds for `host:port`: loopback if that is what the name means, else all.
pub(crate) fn listen_address(host_and_port: &str) -> Result<SocketAddr, Failure> {
    let named = host_and_port.to_socket_addrs().doing(format!("address '{host_and_port}'"))?;
    let named: Vec<SocketAddr> = named.collect();
    let port = named.first().map_or(0, SocketAddr::port);
    let loopback = named.iter().all(|address| address.ip().is_loopback());
    let ip = if loopback { Ipv4Addr::LOCALHOST } else { Ipv4Addr::UNSPECIFIED };
    Ok(SocketAddr::from((ip, port)))
}
