//! How a server begins: it listens, waits for the first peer, and reads what there is to go on from.

use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::{Admission, Config, Event, Net, OwnQuote, Refusal, Roster, Unready, hex};

use super::leaving::kept;
use super::missing::Missing;
use super::witness::Witness;
use crate::failure::{Doing, Failure};
use crate::hosts::listen_addresses;
use crate::job::Job;
use crate::job::state::State;
use crate::metrics::Metrics;
use crate::model::network::Network;
use crate::model::params::Layout;
use crate::report::Report;
use crate::termination;
use crate::training::checkpoint;
use crate::training::initial;
use crate::training::roles::options::Options;
use crate::training::room;
use crate::training::roster;
use crate::training::store::{Progress, Store};

/// How long a server that cannot begin waits for who has connected to attest, and so to hear why.
const TURN_AWAY_MAX: Duration = Duration::from_secs(30);

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

/// What a server goes on from.
pub(super) struct Begun {
    pub(super) network: Network,
    pub(super) job: Job,
    pub(super) state: State,
    /// Step of the checkpoint on the disk.
    pub(super) saved: Option<u64>,
    pub(super) store: Store,
    /// Who was admitted before.
    pub(super) known: Roster,
    /// Who is told of checkpoints.
    pub(super) witness: Option<Witness>,
    /// Two servers would overwrite each other's checkpoints. Workers may share the directory.
    pub(super) _lock: Option<File>,
}

/// Why a server cannot begin, and what those are told who have connected already.
pub(super) struct Refused {
    pub(super) why: Unready,
    pub(super) failure: Failure,
}

impl Refused {
    fn of(why: Unready) -> impl Fn(Failure) -> Self {
        move |failure| Self { why, failure }
    }
}

/// Opens the place of the model, and reads what there is to go on from.
pub(super) fn begin(
    options: &Options,
    config: &Arc<Config>,
    net: &mut Net,
) -> Result<Begun, Refused> {
    let [of_job, of_memory, of_place] =
        [Unready::Job, Unready::Memory, Unready::Place].map(Refused::of);
    let layout = Network::of(&options.job).doing("network").map_err(&of_job)?.layout;
    let (mut store, lock, resumes) = place(options, config, &layout).map_err(&of_place)?;
    room::check_server(&options.job, &layout, resumes).map_err(&of_memory)?;
    drop(layout);
    if options.init.is_none() && !resumes {
        await_peer(net, &options.job).map_err(&of_place)?;
    }
    let (network, job, state) = state(options, &store).map_err(&of_job)?;
    options.place.check_step(state.step).map_err(&of_job)?;
    let witness = Witness::ask(options, config, job.digest(), state.step).map_err(&of_place)?;
    log::info!("job {}, step {}", hex(&job.digest()), state.step);
    let saved = resumes.then_some(state.step);
    checkpoint::save_meta(&mut store, &job, &network, state.step)
        .map_err(|error| store.not_written(checkpoint::META_FILE, &error, &kept(saved)))
        .map_err(&of_place)?;
    let known = known_roster(&mut store, &job, state.step, saved).map_err(&of_place)?;
    Ok(Begun { network, job, state, saved, store, known, witness, _lock: lock })
}

/// The place of the model, locked, if there is room for what will be kept; and whether there is a checkpoint.
fn place(
    options: &Options,
    config: &Arc<Config>,
    layout: &Layout,
) -> Result<(Store, Option<File>, bool), Failure> {
    if let Some((path, size)) = options.place.new_volume()? {
        room::check_new_volume(path, size, &options.job, layout)?;
    }
    let store = options.open_store(config)?;
    let lock = store.lock()?;
    let resumes = store.has(checkpoint::DATA_FILE).doing(store.name_of(checkpoint::DATA_FILE))?;
    room::check_store(&store, &options.job, layout)?;
    Ok((store, lock, resumes))
}

/// Tells those who have connected why there is nothing to connect to: who knows no reason would come again for
/// minutes. Who attests slowly is waited for no longer than a session may take to open.
pub(super) fn turn_away(net: &mut Net, job: &[u8; 32], why: Unready) {
    let until = Instant::now() + TURN_AWAY_MAX;
    // Who has connected may not have been accepted yet.
    let mut polled = net.poll(Some(Duration::ZERO), job);
    while polled.is_ok() && !net.ids().is_empty() && !termination::requested() {
        for id in net.ids() {
            net.drive(id, |session| match session.next_event()? {
                Some(Event::Opened) => Err(session.close(Some(Refusal::Unready(why)))),
                _ => Ok(()),
            });
        }
        net.take_ended();
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() || net.ids().is_empty() {
            return;
        }
        polled = net.poll(Some(left), job);
    }
}

/// Our own evidence for a job. Meanwhile those who come are taken in, and strangers among them give way to others: what
/// the system holds of connections that nobody accepts is little.
pub(super) fn own_evidence(
    net: &mut Net,
    config: &Config,
    job: [u8; 32],
) -> Result<Admission, Failure> {
    let (admission, report_data) = config.own_claim(job).doing("our own evidence")?;
    net.ask_quote(report_data);
    loop {
        net.poll(None, &job).doing("network")?;
        if let Some(OwnQuote { made, .. }) = net.take_quote() {
            return Ok(Admission { quote: made.doing("our own evidence")?, ..admission });
        }
        if termination::requested() {
            return Err(Failure::new("stopped by a signal before there was a quote of this TD"));
        }
    }
}

/// Waits for the first connection: a server that nobody talks to needs no memory for a model.
fn await_peer(net: &mut Net, job: &Job) -> Result<(), Failure> {
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
fn known_roster(
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
fn state(options: &Options, store: &Store) -> Result<(Network, Job, State), Failure> {
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
    let state = state.averaging(job.recipe.averages());
    Ok((network, job, state))
}
