//! The loop of a parameter server.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::{Config, LinkId, Net, Over, Roster};

use super::options::{CELL, Options};
use super::transfer;
use crate::failure::{Doing, Failure};
use crate::hosts::listen_address;
use crate::job::Job;
use crate::job::state::State;
use crate::model::init;
use crate::model::network::Network;
use crate::model::params;
use crate::report::Report;
use crate::termination;
use crate::training::checkpoint;
use crate::training::roster;
use crate::training::server::ParameterServer;
use crate::training::store::{Progress, Store};

/// How long a finished server waits for workers that do not know of it yet.
const FINISH_WAIT: Duration = Duration::from_secs(60);
/// Longest wait for an event.
const POLL: Duration = Duration::from_secs(1);

struct Running {
    server: ParameterServer,
    network: Network,
    store: Store,
    net: Net,
    report: Report,
    verified: BTreeSet<LinkId>,
    bytes: [u64; 2],
    last: Instant,
    /// Step of the checkpoint on the disk.
    saved: Option<u64>,
}

pub(super) fn run(options: &Options, index: usize, config: Arc<Config>) -> Result<(), Failure> {
    let host = options
        .ps_hosts
        .get(index)
        .filter(|_| index == 0 && options.ps_hosts.len() == 1)
        .ok_or_else(|| {
            Failure::new("one parameter server is supported: ps0 with one --ps-hosts")
        })?;
    let address = listen_address(host)?;
    let mut net = Net::new(Arc::clone(&config)).doing("network")?;
    let local = net.listen(address).map_err(|error| {
        Failure::new(format!("listen on {address}: {error}"))
            .hint("another port in --ps-hosts, or end the program that uses this one")
    })?;
    let report = Report::new(options.json);
    report.listening(local);
    let mut store = options.open_store(&config)?;
    let resumes = store.has(checkpoint::DATA_FILE).doing(store.name_of(checkpoint::DATA_FILE))?;
    if options.init.is_none() && !resumes {
        await_peer(&mut net, &options.job.digest())?;
    }
    let (network, job, state) = state(options, &store)?;
    options.place.check_step(state.step)?;
    let saved = resumes.then_some(state.step);
    log::info!("job {}, step {}", params::hex(&job.digest()), state.step);
    checkpoint::save_meta(&mut store, &job, &network, state.step).doing("write model.ckpt-meta")?;
    let known = store.read(roster::FILE).doing(store.name_of(roster::FILE))?;
    let known = known.map_or(Ok(Roster::default()), |bytes| roster::parse(&bytes));
    let known = known.doing(store.name_of(roster::FILE))?;
    let server = ParameterServer::new(job, network.layout.clone(), state, CELL, options.pool())
        .with_roster(known);
    let mut running = Running {
        server,
        network,
        store,
        net,
        report,
        verified: BTreeSet::new(),
        bytes: [0; 2],
        last: Instant::now(),
        saved,
    };
    if let Err(failure) = running.serve(options) {
        // The volume is whole as it is; a clean end only spares the next start a replay.
        let _ = running.store.close();
        return Err(failure);
    }
    running.report.finished();
    running.report.parameters(&params::hash(&running.server.state().params), running.bytes);
    let Running { server, store, mut net, .. } = running;
    store.close().doing("close the volume")?;
    transfer::linger(&mut net, &server.job().digest(), &options.place, options.linger)
}

/// Waits for the first connection: a server that nobody talks to needs no memory for a model.
fn await_peer(net: &mut Net, job: &[u8; 32]) -> Result<(), Failure> {
    while net.ids().is_empty() {
        net.poll(POLL, job).doing("network")?;
        if termination::requested() {
            return Err(Failure::new("stopped by a signal before anybody came"));
        }
    }
    Ok(())
}

impl Running {
    fn serve(&mut self, options: &Options) -> Result<(), Failure> {
        let digest = self.server.job().digest();
        let mut finished = None;
        loop {
            self.net.poll(POLL, &digest).doing("network")?;
            loop {
                let before = self.server.progress();
                self.pump();
                self.keep_roster()?;
                self.close_round(options)?;
                if self.server.progress() == before {
                    break;
                }
            }
            self.remove_ended();
            if termination::requested() {
                return self.stop();
            }
            if self.server.state().is_finished() {
                let since = *finished.get_or_insert_with(Instant::now);
                let told = self.server.all_told() && self.net.ids().is_empty();
                if told {
                    return Ok(());
                }
                if since.elapsed() > FINISH_WAIT {
                    log::warn!("not every worker came to hear of the end");
                    return Ok(());
                }
            }
        }
    }

    fn pump(&mut self) {
        for id in self.net.ids() {
            self.net.drive(id, |session| self.server.pump(id.0, session));
            let peer = self.net.session(id).and_then(|session| session.peer());
            if let Some(peer) = peer
                && self.verified.insert(id)
            {
                self.report.verified(peer.role);
                log::info!("{} is verified, {} joined before", peer.role, self.server.joined());
            }
        }
    }

    /// Writes down who was admitted, before anybody is told.
    fn keep_roster(&mut self) -> Result<(), Failure> {
        if !self.server.has_news() {
            return Ok(());
        }
        let bytes = roster::encode(self.server.roster());
        let progress = Progress { job: self.server.job().digest(), step: self.server.state().step };
        let saved = self.store.save(roster::FILE, progress, &|out| out.write_all(&bytes));
        saved.doing(self.store.name_of(roster::FILE))?;
        self.server.roster_is_kept();
        Ok(())
    }

    fn close_round(&mut self, options: &Options) -> Result<(), Failure> {
        let Some(closed) = self.server.close_round() else { return Ok(()) };
        let seconds = self.last.elapsed().as_secs_f64();
        self.last = Instant::now();
        self.report.step((closed.step, closed.steps), closed.loss, seconds, closed.samples);
        if !closed.loss.is_finite() {
            return Err(Failure::new(format!("step {}: the loss is no number", closed.step))
                .hint("a lower --lr"));
        }
        let state = self.server.state();
        match state.step.is_multiple_of(options.checkpoint_every) || state.is_finished() {
            true => self.save(),
            false => Ok(()),
        }
    }

    fn save(&mut self) -> Result<(), Failure> {
        let start = Instant::now();
        let (job, state) = (self.server.job(), self.server.state());
        checkpoint::save(&mut self.store, &self.network.layout, job, state)
            .doing("write model.ckpt-data")?;
        self.saved = Some(state.step);
        log::info!("checkpoint of step {} in {:.2?}", state.step, start.elapsed());
        Ok(())
    }

    /// Leaves a checkpoint of everything that was done.
    fn stop(&mut self) -> Result<(), Failure> {
        let step = self.server.state().step;
        if self.saved != Some(step) {
            self.save()?;
        }
        Err(Failure::new(format!("stopped by a signal, the checkpoint is of step {step}"))
            .hint("the same command goes on from there"))
    }

    fn remove_ended(&mut self) {
        for Over { id, session, why, .. } in self.net.take_ended() {
            let [received, sent] = session.bytes();
            self.bytes = [self.bytes[0] + received, self.bytes[1] + sent];
            match self.server.left(id.0) {
                Some(role) => log::warn!("{role}: {why}"),
                None if session.peer().is_none() => log::warn!("unverified peer: {why}"),
                None => {}
            }
        }
    }
}

/// The checkpoint of the model directory, or a new training.
fn state(options: &Options, store: &Store) -> Result<(Network, Job, State), Failure> {
    let network = Network::resnet50(options.job.stem).doing("network")?;
    let mut job = options.job.clone();
    let initial = match &options.init {
        None => None,
        Some(path) => {
            let loaded = checkpoint::load_params(path, &network.layout);
            let params = loaded.doing(format!("--init {}", path.display()))?;
            job.init = Some(params::hash(&params));
            Some(params)
        }
    };
    let found = checkpoint::load(store).doing(store.name_of(checkpoint::DATA_FILE))?;
    if let Some((network, found)) = found {
        if found.job != job {
            return Err(Failure::new(format!(
                "{}: checkpoint of another job ({}, this one is {})",
                store.name_of(checkpoint::DATA_FILE),
                params::hex(&found.job.digest()),
                params::hex(&job.digest()),
            ))
            .hint("another --model-dir, or the options that the job was begun with"));
        }
        log::info!("resuming after step {}", found.state.step);
        return Ok((network, job, found.state));
    }
    let params = initial
        .unwrap_or_else(|| init::initialise(&network.layout, job.seed, init::IDENTITY_BLOCKS));
    let state = State::new(params, network.layout.trained, job.workers);
    Ok((network, job, state))
}
