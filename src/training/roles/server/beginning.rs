//! How a server begins: it listens, waits for the first peer, and reads what there is to go on from.

use std::sync::Arc;

use protocol::{Config, Net, Roster, hex};

use super::leaving::kept;
use super::missing::Missing;
use crate::failure::{Doing, Failure};
use crate::hosts::listen_addresses;
use crate::job::Job;
use crate::job::state::State;
use crate::metrics::Metrics;
use crate::model::network::Network;
use crate::report::Report;
use crate::termination;
use crate::training::checkpoint;
use crate::training::initial;
use crate::training::roles::options::Options;
use crate::training::roster;
use crate::training::store::{Progress, Store};

/// A network that listens where `--ps-hosts` says.
pub(super) fn listening(
    options: &Options,
    index: usize,
    config: &Arc<Config>,
    metrics: &Arc<Metrics>,
) -> Result<Net, Failure> {
    let host = options.ps_hosts.get(index).filter(|_| index == 0 && options.ps_hosts.len() == 1);
    let host = host.ok_or_else(|| {
        Failure::usage("one parameter server is supported: ps0 with one --ps-hosts")
    })?;
    let mut net = Net::new(Arc::clone(config)).doing("network")?;
    termination::wake(&mut net)?;
    let local = listen_addresses(host)?.listen(&mut net)?;
    Report::new(options.json, Arc::clone(metrics)).listening(local);
    metrics.set_ready();
    Ok(net)
}

/// Waits for the first connection: a server that nobody talks to needs no memory for a model.
pub(super) fn await_peer(net: &mut Net, job: &Job) -> Result<(), Failure> {
    let mut missing = Missing::default();
    let digest = job.digest();
    while net.ids().is_empty() {
        if missing.is_due() {
            log::warn!("waiting for all {} workers: nobody has connected yet", job.workers);
        }
        net.poll(missing.left(), &digest).doing("network")?;
        if termination::requested() {
            return Err(Failure::new("stopped by a signal before anybody came"));
        }
    }
    Ok(())
}

/// Who was admitted to this job before. Evidence is bound to a job's digest, so the roster of a job with another
/// (one that diverged, and goes on with a lower rate) is put aside under a name of its own.
pub(super) fn known_roster(
    store: &mut Store,
    job: &Job,
    step: u64,
    saved: Option<u64>,
) -> Result<Roster, Failure> {
    let name = store.name_of(roster::FILE);
    let Some(bytes) = store.read(roster::FILE).doing(&name)? else { return Ok(Roster::default()) };
    let known = roster::parse(&bytes).doing(&name)?;
    let digest = job.digest();
    let Some(other) = known.entries().iter().map(|e| e.admission.job).find(|job| *job != digest)
    else {
        return Ok(known);
    };
    let aside = format!("roster-{}.json", hex(&other[..8]));
    store
        .save(&aside, Progress { job: digest, step }, &|out| out.write_all(&bytes))
        .map_err(|error| store.not_written(&aside, &error, &kept(saved)))?;
    log::info!("who was admitted to job {} is in {}", hex(&other), store.name_of(&aside));
    Ok(Roster::default())
}

/// The checkpoint of the model directory, or a new training.
pub(super) fn state(options: &Options, store: &Store) -> Result<(Network, Job, State), Failure> {
    let network = Network::of(&options.job).doing("network")?;
    let mut job = options.job.clone();
    let of_file = |path| initial::of_file(&mut job, &network, path);
    let initial = options.init.as_deref().map(of_file).transpose()?;
    let found = checkpoint::load(store, checkpoint::DATA_FILE)
        .doing(store.name_of(checkpoint::DATA_FILE))?;
    if let Some((network, found)) = found {
        if !found.job.is_continued_by(&job) {
            return Err(Failure::new(format!(
                "{}: checkpoint of another job ({}, this one is {})",
                store.name_of(checkpoint::DATA_FILE),
                hex(&found.job.digest()),
                hex(&job.digest()),
            ))
            .hint("another --model-dir, or the options that the job was begun with"));
        }
        if found.job != job {
            log::warn!(
                "from step {} on with {}, before {}: the job's digest is {} now",
                found.state.step,
                job.schedule,
                found.job.schedule,
                hex(&job.digest())
            );
        }
        log::info!("resuming after step {}", found.state.step);
        return Ok((network, job, found.state));
    }
    let params = initial.unwrap_or_else(|| initial::by_seed(&job, &network));
    let state = State::new(params, network.layout.trained, job.workers);
    Ok((network, job, state))
}
