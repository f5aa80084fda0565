//! The roles over real sockets: `hfl --role ps0` and `hfl --role worker0`.

mod server;
mod worker;

use std::net::{Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use kernels::{Isa, Pool};
use protocol::dcap::Collateral;
use protocol::{
    Attester, CHUNK_LEN_MAX, Config, ConfigfsTsm, Policy, Role, SimPlatform, Trust, Verifier,
};

use crate::cifar::Shard;
use crate::failure::{Doing, Failure};
use crate::job::Job;
use crate::store::Place;
use crate::verify;

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
    /// Source of evidence.
    pub attestation: Attestation,
    /// Bundles with the collateral of peers' platforms.
    pub collateral: Vec<PathBuf>,
    /// What peers must be; simulated TDs without it must be the same as this one.
    pub policy: Option<PathBuf>,
    /// JSON on stdout.
    pub json: bool,
    /// A pause before each step of a worker, for tests of slow workers.
    pub pause: std::time::Duration,
}

/// Where evidence comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attestation {
    /// What this machine has; never simulated.
    Auto,
    /// Quotes of this TD from the kernel.
    Tdx,
    /// Simulated TDs under a public test root.
    Sim,
}

/// Runs the role until its job is done.
///
/// # Errors
/// What ended it before.
pub fn run(options: &Options) -> Result<(), Failure> {
    let config = config(options)?;
    match options.role {
        Role::ParameterServer(index) => server::run(options, usize::from(index), config),
        Role::Worker(index) => worker::run(options, index, config),
    }
}

fn config(options: &Options) -> Result<Arc<Config>, Failure> {
    let (attester, verifier): (Arc<dyn Attester>, Verifier) = match options.attestation {
        Attestation::Sim => {
            log::warn!("SIMULATED attestation: anybody can forge it; for tests and demos only");
            let platform = SimPlatform::new(clock());
            let policy = match &options.policy {
                Some(path) => verify::policy(path)?,
                None => Policy::same_as(platform.report()),
            };
            (Arc::new(platform), Verifier { trust: Trust::Simulated, policy })
        }
        Attestation::Auto | Attestation::Tdx => {
            let tsm = ConfigfsTsm::find().ok_or_else(|| {
                Failure::new("no source of TDX evidence on this machine (no configfs-tsm)").hint(
                    "--attestation sim trains with simulated evidence, which protects nothing",
                )
            })?;
            // Not from a quote of this TD: quotes pass through the host, which may answer with another
            // TD's and so choose whom this one would trust.
            let policy = options.policy.as_ref().ok_or_else(|| {
                Failure::new("no policy to judge peers with")
                    .hint("--policy FILE; hfl quote --policy-template makes one to be checked")
            })?;
            let trust = Trust::Hardware(collateral(&options.collateral)?.into());
            (Arc::new(tsm), Verifier { trust, policy: verify::policy(policy)? })
        }
    };
    Config::new(options.role, attester, verifier, clock).map(Arc::new).doing("evidence of this TD")
}

fn collateral(paths: &[PathBuf]) -> Result<Vec<Collateral>, Failure> {
    if paths.is_empty() {
        return Err(Failure::new("no collateral to judge peers with")
            .hint("--collateral FILE, once for each kind of platform"));
    }
    paths.iter().map(|path| verify::collateral(path)).collect()
}

/// Seconds since 1970.
fn clock() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn pool(options: &Options) -> (Pool, Isa) {
    (Pool::new(options.threads), options.isa)
}

/// The address that a server binds for `host:port`: loopback if that is what the name means, else all.
fn listen_address(host_and_port: &str) -> Result<SocketAddr, Failure> {
    let named = host_and_port.to_socket_addrs().doing(format!("address '{host_and_port}'"))?;
    let named: Vec<SocketAddr> = named.collect();
    let port = named.first().map_or(0, SocketAddr::port);
    let loopback = named.iter().all(|address| address.ip().is_loopback());
    let ip = if loopback { Ipv4Addr::LOCALHOST } else { Ipv4Addr::UNSPECIFIED };
    Ok(SocketAddr::from((ip, port)))
}
