//! The loop of a parameter server.

mod beginning;
mod leaving;
mod missing;
mod passport;
mod saver;
mod saving;
mod witness;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::{Config, LinkId, Net, Over, Refusal, Role, Unready};

use self::beginning::{Begun, Refused, begin, listening, own_evidence, turn_away};
use self::leaving::{Leaving, kept};
use self::missing::Missing;
use self::saver::Saver;
use self::witness::Witness;
use super::options::Options;
use super::record::Record;
use super::signer::Signer;
use super::traffic::Traffic;
use super::transfer;
use crate::events::Event;
use crate::failure::{Doing, Failure};
use crate::history::{Bytes, EventKind};
use crate::metrics::{Metric, Metrics};
use crate::model::network::Network;
use crate::model::params;
use crate::report::Report;
use crate::termination;
use crate::training::cells::CELL;
use crate::training::note::Note;
use crate::training::rounds::Share;
use crate::training::server::{NotFinite, ParameterServer};
use crate::trust::strangers::{Strangers, and_others};

/// How long a finished server waits for workers that do not know of it yet: one that is away comes back within its own
/// longest pause, or is gone.
const FINISH_WAIT: Duration = Duration::from_secs(60);

struct Running {
    server: ParameterServer,
    network: Network,
    saver: Saver,
    net: Net,
    report: Report,
    metrics: Arc<Metrics>,
    record: Record,
    /// How often the evidence of each peer was accepted.
    attested: BTreeMap<LinkId, u64>,
    traffic: Traffic,
    last: Instant,
    /// Since when the round at hand waits, or whom it waits for changed.
    waits_since: Instant,
    /// Step of the checkpoint on the disk, and when it came there.
    saved: Option<u64>,
    saved_at: Instant,
    missing: Missing,
    strangers: Strangers,
    /// Who is told of checkpoints.
    witness: Option<Witness>,
    signer: Signer,
    /// Tier of instructions.
    tier: &'static str,
}

pub(super) fn run(
    options: &Options,
    index: usize,
    config: Arc<Config>,
    metrics: Arc<Metrics>,
) -> Result<(), Failure> {
    let mut net = listening(options, index, &config, &metrics)?;
    let begun = begin(options, &config, &mut net).map_err(|Refused { why, failure }| {
        turn_away(&mut net, &options.job.digest(), why);
        failure
    })?;
    let Begun { network, job, state, saved, mut store, known, witness, _lock } = begun;
    let mut record = Record::open(&store, &job, &state, options.page);
    let own = own_evidence(&mut net, &config, job.digest())?;
    record.admit_self(&own);
    let signer = Signer::open(&mut store, config, &job, state.step, &own.quote, options);
    let signer = signer.inspect_err(|_| {
        turn_away(&mut net, &job.digest(), Unready::Place);
    })?;
    let saver = Saver::new(store, network.layout.clone(), &mut net)?;
    let mut server =
        ParameterServer::new(job, network.layout.clone(), state, CELL, options.pool(), options.isa)
            .with_roster(known);
    server.admit_self(own);
    let mut running = Running {
        server,
        network,
        saver,
        net,
        report: Report::new(options.json, Arc::clone(&metrics)),
        metrics,
        record,
        attested: BTreeMap::new(),
        traffic: Traffic::default(),
        last: Instant::now(),
        waits_since: Instant::now(),
        saved,
        saved_at: Instant::now(),
        missing: Missing::default(),
        strangers: Strangers::default(),
        witness,
        signer,
        tier: options.isa.name(),
    };
    running.report.started(options.role, &running.server.job().digest());
    if let Err(Leaving { told, failure }) = running.serve(options) {
        running.dismiss(told);
        running.await_quote();
        // The volume is whole as it is; a clean end only spares the next start a replay.
        let _ = running.saver.into_store().close();
        running.witness.into_iter().for_each(Witness::finish);
        return Err(failure);
    }
    running.finish(options)
}

impl Running {
    fn serve(&mut self, options: &Options) -> Result<(), Leaving> {
        let digest = self.server.job().digest();
        let mut finished = None;
        if self.server.state().is_finished() {
            log::warn!(
                "the job is done already, all {} steps; workers that do not know are told for {} s \
                 (more --epochs or --steps make another job, in another --model-dir)",
                self.server.state().step,
                FINISH_WAIT.as_secs()
            );
        }
        // What came while we began was read then, and brings no event any more.
        let mut due = Some(Duration::ZERO);
        loop {
            self.net.poll(due, &digest).doing("network")?;
            // What ends a connection or a round may let another connection go on.
            loop {
                let before = self.server.progress();
                self.pump();
                self.take_saved()?;
                self.keep_roster()?;
                self.leave_out_late();
                self.evaluate()?;
                self.close_round(options)?;
                self.remove_ended();
                self.take_notes();
                self.take_quote();
                if self.server.progress() == before {
                    break;
                }
            }
            if termination::requested() {
                return self.stop();
            }
            self.say_who_is_missing();
            self.save_in_time(options);
            if self.server.state().is_finished() {
                let since = *finished.get_or_insert_with(Instant::now);
                if self.server.all_told() && self.net.ids().is_empty() {
                    return Ok(());
                }
                if since.elapsed() > FINISH_WAIT {
                    log::warn!("not every worker came to hear of the end");
                    return Ok(());
                }
            }
            due = self.due(options, finished);
        }
    }

    /// How long until there is something to do though nothing happens.
    fn due(&self, options: &Options, finished: Option<Instant>) -> Option<Duration> {
        let unsaved = self.has_unsaved();
        // Once it is over, only what a worker sends can change anything.
        let deadline = self.deadline().filter(|at| *at > Instant::now());
        let at = [
            deadline,
            finished.map(|since| since + FINISH_WAIT),
            self.missing.next(),
            unsaved.then(|| self.saved_at + options.checkpoint_after),
        ];
        let next = at.into_iter().flatten().min()?;
        Some(next.saturating_duration_since(Instant::now()) + Duration::from_millis(1))
    }

    /// Until nothing changes by it: what the last that came in made final goes out to everybody before the books of
    /// its round are made.
    fn pump(&mut self) {
        loop {
            let before = self.server.progress();
            for id in self.net.ids() {
                self.net.drive(id, |session| self.server.pump(id.0, session));
                self.tell_evidence(id);
            }
            if self.server.progress() == before {
                return;
            }
        }
    }

    /// Tells that a peer's evidence was accepted, for the first time or anew.
    fn tell_evidence(&mut self, id: LinkId) {
        let Some(address) = self.net.address(id) else { return };
        let Some(session) = self.net.session(id) else { return };
        let (Some(peer), times) = (session.peer(), session.attested()) else { return };
        let before = self.attested.insert(id, times).unwrap_or(0);
        if before == times {
            return;
        }
        let role = peer.role;
        if before == 0 {
            self.report.verified(role);
            self.record.admit(peer);
            log::info!("{role} at {address}: its evidence is accepted");
        } else {
            self.report.reattested(role, times);
            log::info!("{role} at {address}: its fresh evidence is accepted");
            self.note(EventKind::Reattested, role.to_string());
        }
    }

    fn count_bytes(&mut self) -> Bytes {
        let bytes = self.traffic.so_far(&mut self.net);
        self.metrics.set(Metric::Received, bytes.all[0] as f64);
        self.metrics.set(Metric::Sent, bytes.all[1] as f64);
        bytes
    }

    fn take_notes(&mut self) {
        for note in self.server.take_notes() {
            match &note {
                Note::Spent { worker, spent } => {
                    self.record.spent(*worker, spent);
                    continue;
                }
                Note::Joined { worker, returns, samples, .. } => {
                    let kind = if *returns { EventKind::Returned } else { EventKind::Joined };
                    let (worker, returns) = (Role::Worker(*worker).to_string(), *returns);
                    self.note(kind, format!("{worker}, {samples} samples"));
                    self.report.tell(|| Event::Joined { worker, returns, samples: *samples });
                }
                Note::Advised(_) => {
                    log::warn!("{note}");
                    continue;
                }
                Note::Said(_) => {}
            }
            log::info!("{note}");
        }
    }

    fn say_who_is_missing(&mut self) {
        let missing = self.server.missing();
        let here = usize::from(self.server.job().workers).saturating_sub(missing.len());
        self.metrics.set(Metric::Workers, here as f64);
        if missing.is_empty() || self.server.state().is_finished() {
            self.missing = Missing::default();
        } else if self.missing.is_due() {
            let names: Vec<String> = missing.iter().map(ToString::to_string).collect();
            let all = self.server.job().workers;
            log::warn!("waiting for {} of {all} workers: {}", names.len(), names.join(", "));
        }
    }

    /// Until when a round waits for everybody, if it may close without somebody.
    fn deadline(&self) -> Option<Instant> {
        let quorum = self.server.job().quorum?;
        Some(self.waits_since + Duration::from_secs(quorum.seconds.into()))
    }

    fn leave_out_late(&mut self) {
        let is_over = self.deadline().is_some_and(|at| at <= Instant::now());
        if is_over && self.server.leave_out_late() {
            self.waits_since = Instant::now();
        }
    }

    /// Takes in what all workers found on their test images, before the parameters change.
    fn evaluate(&mut self) -> Result<(), Leaving> {
        let Some((evaluation, is_best)) = self.server.settle_evaluation() else { return Ok(()) };
        if evaluation.total()[1] > 0 {
            self.report.evaluated(&evaluation, is_best);
            self.record.evaluated(evaluation);
        }
        if is_best {
            self.save_best();
        }
        match self.server.state().is_finished() {
            true => self.save_now(),
            false => Ok(()),
        }
    }

    fn close_round(&mut self, options: &Options) -> Result<(), Leaving> {
        let start = Instant::now();
        let closed = self.server.close_round().map_err(|fault| self.diverged(fault))?;
        let Some(closed) = closed else { return Ok(()) };
        let update = start.elapsed();
        self.record.updated(update);
        let seconds = self.last.elapsed().as_secs_f64();
        self.last = Instant::now();
        self.waits_since = self.last;
        self.report.step(closed.step, closed.steps, closed.loss, seconds, closed.samples);
        self.record.step(self.server.job(), &closed, seconds);
        self.record.receipt(self.server.state().receipt.as_ref());
        let [bytes_received, bytes_sent] = self.count_bytes().all;
        let job = self.server.job();
        self.report.tell(|| Event::Round {
            step: closed.step,
            rate: f64::from(job.schedule.rate(closed.step, closed.steps)),
            workers: job.workers,
            update_seconds: update.as_secs_f64(),
            bytes_received,
            bytes_sent,
        });
        let state = self.server.state();
        let every = options.checkpoint_every;
        let is_due = state.step / every > (state.step - closed.count) / every;
        // Nobody may be told of the end before it is on the disk.
        if state.is_finished() {
            return self.save_now();
        }
        if is_due {
            self.save();
        }
        Ok(())
    }

    /// Nothing of a step that is not finite is kept; what is on the disk is of before.
    fn diverged(&self, fault: NotFinite) -> Leaving {
        let failure = Failure::new(format!("{fault}; {}", kept(self.saved)))
            .hint("a lower --lr, or --lr-schedule: the same command with it goes on from there");
        Leaving { told: Refusal::Diverged, failure }
    }

    fn note(&mut self, kind: EventKind, detail: String) {
        self.record.note(self.server.state().step, kind, detail);
    }

    /// Leaves a checkpoint of everything that was done.
    fn stop(&mut self) -> Result<(), Leaving> {
        self.settle_saves()?;
        let step = self.server.state().step;
        self.note(EventKind::Stopped, String::new());
        if self.saved != Some(step) {
            self.save_now()?;
        }
        self.keep_record();
        let failure = format!("stopped by a signal, the checkpoint is of step {step}");
        let failure = Failure::new(failure).hint("the same command goes on from there");
        Err(Leaving { told: Refusal::Stopped, failure })
    }

    /// Tells everybody why the server ends, as far as their sockets take it.
    fn dismiss(&mut self, why: Refusal) {
        for id in self.net.ids() {
            self.net.drive(id, |session| Err(session.close(Some(why))));
        }
    }

    fn remove_ended(&mut self) {
        for Over { id, session, why, address } in self.net.take_ended() {
            self.attested.remove(&id);
            self.traffic.ended(&session);
            if let Some(role) = self.server.left(id.0) {
                let Share { rounds, samples } = self.record.share_of(role);
                let why =
                    format!("{why}; it contributed {samples} samples to {rounds} rounds so far");
                log::warn!("{role} at {address}: {why}");
                self.note(EventKind::Left, format!("{role}: {why}"));
                let worker = role.to_string();
                self.report.tell(|| Event::Left { worker, why, rounds, samples });
            } else if let Some(peer) = session.peer() {
                log::info!("{} at {address}: {why}", peer.role);
            } else if let Some(others) = self.strangers.named(Instant::now()) {
                let claimed = session.claimed().map_or(String::new(), |role| format!(" as {role}"));
                log::warn!("{address}{claimed}, not verified: {why}{}", and_others(others));
            }
        }
    }

    fn finish(mut self, options: &Options) -> Result<(), Failure> {
        let hash = params::hash(&self.server.state().params);
        self.record.finished(&hash);
        self.note(EventKind::Finished, String::new());
        self.keep_record();
        self.sign_all();
        self.forget_key();
        self.report.finished();
        let bytes = self.count_bytes();
        self.report.parameters(&hash, bytes.all);
        let [early, late] = self.server.cells_sent();
        log::debug!(
            "{early} of {} cells of parameters went out while their round ran",
            early + late
        );
        let Running { server, saver, mut net, witness, .. } = self;
        witness.into_iter().for_each(Witness::finish);
        saver.into_store().close().doing("close the volume")?;
        transfer::linger(&mut net, &server.job().digest(), &options.place, options.linger)
    }
}
