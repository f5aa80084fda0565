//! `Signer`: who signs a model's passport in ps0's TD, and what of it never changes during a job.

use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;

use protocol::{Body, Config, Evidence, TdReport};
use ring::digest::{Context, SHA256};
use serde_json::Value;

use crate::failure::{Doing, Failure};
use crate::job::Job;
use crate::job::receipt::Hash;
use crate::model::network::Network;
use crate::model::{init, params};
use crate::passport::attestation::Collateral;
use crate::passport::key::{FILE, PassportKey};
use crate::training::roles::options::Options;
use crate::training::store::{Progress, Store};

/// This program.
const PROGRAM: &str = "/proc/self/exe";

/// The key, and what is known before the training ends.
pub(super) struct Signer {
    pub(super) key: PassportKey,
    pub(super) config: Arc<Config>,
    pub(super) binary: Option<Hash>,
    /// The container image, as ps0 was told.
    pub(super) image: Option<Hash>,
    pub(super) initial: Hash,
    pub(super) td: Option<TdReport>,
    /// Whether a bill of materials is written too.
    pub(super) bom: bool,
    /// A passport that waits for its quote.
    pub(super) unquoted: Option<Unquoted>,
}

/// A passport that lacks ps0's quote over it. On the disk there is nothing of it yet but what it is about.
pub(super) struct Unquoted {
    pub(super) step: u64,
    /// What the quote is to be over.
    pub(super) report_data: [u8; 64],
    pub(super) bare: Value,
    pub(super) others: [Option<Hash>; 3],
    /// What our own platform is judged by.
    pub(super) collateral: Option<Collateral>,
    /// The statement of the training, signed already.
    pub(super) training: Vec<u8>,
    /// The others, by the names of their files.
    pub(super) statements: Vec<(&'static str, Value)>,
}

impl Signer {
    /// Goes on with the job's key if a volume has it sealed; else makes one, and seals it if there is a volume.
    pub(super) fn open(
        store: &mut Store,
        config: Arc<Config>,
        job: &Job,
        step: u64,
        own_quote: &[u8],
        options: &Options,
    ) -> Result<Self, Failure> {
        let key = match sealed(store)? {
            Some(key) => key,
            None => made(store, Progress { job: job.digest(), step })?,
        };
        let network = Network::of(job).doing("network")?;
        let initial = job.init.unwrap_or_else(|| {
            params::hash(&init::initialise(&network.layout, job.seed, init::IDENTITY_BLOCKS))
        });
        let evidence = Evidence::parse(own_quote).map(|evidence| evidence.quote.body);
        let td = match evidence {
            Ok(Body::Td(report)) => Some(report),
            _ => None,
        };
        let binary = hash_of(PROGRAM);
        let binary = binary.inspect_err(|error| log::warn!("{PROGRAM}: {error}")).ok();
        let Options { image, bom, .. } = *options;
        Ok(Self { key, config, binary, image, initial, td, bom, unquoted: None })
    }

    /// The collateral of a quote's platform as a file, if there is any.
    pub(super) fn collateral(&self, quote: &[u8]) -> Option<(Collateral, Vec<u8>)> {
        let bytes = self.config.collateral_of(quote)?;
        Some((Collateral::of(&bytes), bytes))
    }
}

/// The key that a volume has sealed; an empty file is that of a job that is done.
fn sealed(store: &Store) -> Result<Option<PassportKey>, Failure> {
    let name = store.name_of(FILE);
    if store.manifest().is_none() {
        return Ok(None);
    }
    let bytes = store.read(FILE).doing(&name)?.filter(|bytes| !bytes.is_empty());
    let Some(bytes) = bytes else { return Ok(None) };
    let opened = store.unseal(&bytes).ok_or_else(|| {
        Failure::new(format!("{name}: not sealed by this volume's key"))
            .hint("the volume as it was: what this key would sign was not trained here")
    })?;
    PassportKey::parse(opened).doing(name).map(Some)
}

fn made(store: &mut Store, progress: Progress) -> Result<PassportKey, Failure> {
    let key = PassportKey::generate().doing("a key for the passport")?;
    if let Some(sealed) = store.seal(key.private()) {
        let sealed = sealed.doing("seal the passport's key")?;
        let saved = store.save(FILE, progress, &|out| out.write_all(&sealed));
        saved.map_err(|error| store.not_written(FILE, &error, "no training was begun"))?;
    }
    Ok(key)
}

/// SHA-256 of a file, read in parts.
fn hash_of(path: &str) -> io::Result<Hash> {
    let mut file = File::open(path)?;
    let (mut context, mut room) = (Context::new(&SHA256), vec![0; 1 << 20]);
    loop {
        match file.read(&mut room)? {
            0 => break,
            len => context.update(&room[..len]),
        }
    }
    Ok(context.finish().as_ref().try_into().expect("SHA-256 has 32 bytes"))
}
