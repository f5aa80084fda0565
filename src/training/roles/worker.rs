//! The loop of a worker.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kernels::Arena;
use protocol::{CloseReason, Config, LinkId, Message, Net, Refusal, Rejection, Session, hex};

use super::exchange::Exchange;
use super::options::Options;
use super::receipts::Keeper;
use super::stopwatch::{Phase, Stopwatch};
use crate::data::dataset::Split;
use crate::data::error::DataError;
use crate::data::loading::Loading;
use crate::data::place::Place;
use crate::data::source::Source;
use crate::failure::{Doing, Failure};
use crate::job::Job;
use crate::job::bounds::Exceeded;
use crate::job::state::Member;
use crate::metrics::Metrics;
use crate::model::network::Network;
use crate::report::Report;
use crate::termination;
use crate::training::cells::{CELL, Cells};
use crate::training::checkpoint;
use crate::training::contribution::Tail;
use crate::training::evaluator::Evaluator;
use crate::training::room;
use crate::training::steps::{Computed, Share, Steps};
use crate::training::store::Store;
use crate::training::worker::{Work, Worker};

/// First and longest pause between two tries. Nothing tells a worker that ps0 listens again; two seconds are a small
/// part of a start with attestation.
const PAUSES: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(2)];

struct Running<'a> {
    options: &'a Options,
    /// Where the images are.
    pictures: Place,
    index: u16,
    /// Where receipts are kept, and in the first worker's, or in a volume, the model's description.
    store: Option<Store>,
    keeper: Keeper,
    worker: Worker,
    /// Until the job is known, which says what becomes of the pictures.
    source: Option<Source>,
    report: Report,
    metrics: Arc<Metrics>,
    /// Present once the job is known.
    training: Option<Training>,
    params: Arena,
    /// Parameters that are coming in while those are in use.
    next_params: Arena,
    last: Option<Instant>,
    stopwatch: Stopwatch,
}

/// What a job needs to compute steps.
struct Training {
    steps: Steps,
    share: Share,
    /// Unless there are no test images, or none are asked for.
    evaluator: Option<Evaluator>,
    /// What the data is.
    digest: [u8; 32],
}

pub(super) fn run(
    options: &Options,
    index: u16,
    config: Arc<Config>,
    metrics: Arc<Metrics>,
) -> Result<(), Failure> {
    // For both volumes once: it may come from a pipe, or be given out so often only.
    let passphrase = options.data_volume.as_ref().map(|_| options.passphrase(&config));
    let passphrase = passphrase.transpose()?;
    let pictures = options.data(passphrase.as_ref())?;
    let source = Source::select_in(&pictures, options.selection(Split::Train))
        .map_err(|error| Failure::new(error).hint(DATA_HINT))?
        .skipping_broken(options.skip_broken);
    let shown = pictures.root().display();
    log::info!("{} samples in {shown}: {}", source.len(), source.format());
    let opened = match passphrase {
        Some(passphrase) => options.place.open(|| Ok(passphrase)),
        None => options.open_store(&config),
    };
    let store = match opened {
        Ok(store) => Some(store),
        Err(failure) if describes_model(options, index) => return Err(failure),
        Err(failure) => {
            log::warn!("{failure}; receipts are in memory alone");
            None
        }
    };
    let mut running = Running {
        options,
        pictures,
        index,
        store,
        keeper: Keeper::new(index),
        worker: Worker::new(index),
        source: Some(source),
        report: Report::new(options.json, Arc::clone(&metrics)),
        metrics,
        training: None,
        params: Arena::new(0).doing("memory")?,
        next_params: Arena::new(0).doing("memory")?,
        last: None,
        stopwatch: Stopwatch::default(),
    };
    let host =
        options.ps_hosts.first().ok_or_else(|| Failure::usage("--ps-hosts names no server"))?;
    let mut net = Net::new(config).doing("network")?;
    termination::wake(&mut net)?;
    let (mut pause, mut lost) = (PAUSES[0], Instant::now());
    loop {
        let end = match net.connect(host) {
            Ok(id) => running.converse(&mut net, id)?,
            // A name may come to be known while machines and pods start.
            Err(error) => Some(Lost { why: CloseReason::Io(error), was_open: false }),
        };
        running.keep_receipts(true);
        let Lost { why, was_open } = match end {
            None => return running.store.map_or(Ok(()), Store::close).doing("close the volume"),
            Some(lost) => lost,
        };
        if let Some(failure) = running.accuse() {
            return Err(failure);
        }
        if was_open {
            (pause, lost) = (PAUSES[0], Instant::now());
        }
        if termination::requested() {
            return running.stop();
        }
        if !why.is_transient() || lost.elapsed() > options.wait {
            return Err(Failure::new(format!("ps0 at {host}: {why}")).hint(hint(&why)));
        }
        log::info!("ps0 at {host}: {why}; trying again");
        termination::pause(pause);
        pause = (pause * 2).min(PAUSES[1]);
    }
}

/// Whether a worker writes down what the model is.
fn describes_model(options: &Options, index: u16) -> bool {
    index == 0 || options.place.volume.is_some()
}

/// A connection that is over before the job is.
struct Lost {
    why: CloseReason,
    was_open: bool,
}

impl Running<'_> {
    fn keep_receipts(&mut self, now: bool) {
        if let Some(training) = &self.training {
            let job = training.steps.job.digest();
            self.keeper.keep(self.store.as_mut(), &self.worker, &job, now);
        }
    }

    /// The end of a worker whose server contradicts itself, with the evidence kept.
    fn accuse(&mut self) -> Option<Failure> {
        let found = self.worker.contradiction()?;
        let job = self.training.as_ref()?.steps.job.digest();
        Some(self.keeper.accuse(self.store.as_mut(), &self.worker, found, &job))
    }

    /// Ends between two steps; the step that is lost is computed again to the same bits.
    fn stop(self) -> Result<(), Failure> {
        self.store.map_or(Ok(()), Store::close).doing("close the volume")?;
        Err(Failure::new("stopped by a signal").hint("the same command goes on"))
    }

    /// One connection's life; `None` when the job is done.
    fn converse(&mut self, net: &mut Net, id: LinkId) -> Result<Option<Lost>, Failure> {
        self.worker.disconnected();
        self.training.iter_mut().for_each(|model| model.share.contribution.hold());
        self.stopwatch = Stopwatch::default();
        let mut attested = 0;
        loop {
            net.poll(None, &[0; 32]).doing("network")?;
            let mut given = Work::Wait;
            loop {
                let mut work = std::mem::replace(&mut given, Work::Wait);
                net.drive(id, |session| {
                    // Work that was given is done before the session is asked again.
                    if work == Work::Wait {
                        work = self.pump(session)?;
                    }
                    Ok(())
                });
                if self.worker.take_new() {
                    std::mem::swap(&mut self.params, &mut self.next_params);
                }
                self.tell_evidence(net, id, &mut attested);
                match work {
                    Work::Wait => match self.begin(net, id) {
                        None => break,
                        Some((step, steps)) => {
                            self.bound(net, id, self.options.bounds.check_steps(steps))?;
                            given = self.compute(net, id, step, steps)?;
                            // It was given up: why is looked at below.
                            if given == Work::Wait && self.worker.waits_for() == Some(step) {
                                break;
                            }
                        }
                    },
                    Work::Prepare(job) => self.prepare(net, id, &job)?,
                    Work::Evaluate { step } => self.evaluate(net, id, step)?,
                    Work::Compute { step, .. } | Work::Repeat { step } if self.is_whole(step) => {
                        // It is sent from here on.
                        if let Some(model) = &mut self.training {
                            model.share.contribution.send_again();
                        }
                    }
                    Work::Compute { step, steps } => {
                        self.bound(net, id, self.options.bounds.check_steps(steps))?;
                        given = self.compute(net, id, step, steps)?;
                    }
                    Work::Skip { step } => self.skip(step),
                    // What was begun is waited for within its forward pass.
                    Work::Repeat { .. } | Work::Verified { .. } => {
                        net.drive(id, |session| Err(session.close(Some(Refusal::Protocol))));
                    }
                    Work::Finish { steps, parameters } => {
                        log::info!("{steps} steps, parameters sha256:{}", hex(&parameters));
                        self.report.finished();
                        return Ok(None);
                    }
                }
            }
            let was_open = attested > 0;
            if termination::requested() {
                return Ok(Some(Lost { why: CloseReason::ByUs, was_open }));
            }
            if let Some(over) = net.take_ended().pop() {
                return Ok(Some(Lost { why: over.why, was_open }));
            }
        }
    }

    /// Tells that the server's evidence was accepted, for the first time or anew.
    fn tell_evidence(&self, net: &mut Net, id: LinkId, attested: &mut u64) {
        let Some(session) = net.session(id) else { return };
        let (Some(peer), times) = (session.peer(), session.attested()) else { return };
        match std::mem::replace(attested, times) {
            0 => {
                self.report.verified(peer.role);
                self.metrics.set_ready();
            }
            before if before < times => self.report.reattested(peer.role, times),
            _ => {}
        }
    }

    fn samples(&self) -> usize {
        let loaded = self.training.as_ref().map(|training| training.share.feed.data().len());
        loaded.or(self.source.as_ref().map(Source::len)).unwrap_or(0)
    }

    /// Ends, and tells the server why, where a job is out of our bounds.
    fn bound(
        &self,
        net: &mut Net,
        id: LinkId,
        checked: Result<(), Exceeded>,
    ) -> Result<(), Failure> {
        let Err(exceeded) = checked else { return Ok(()) };
        let refusal = Refusal::Bounds(exceeded.bound);
        net.drive(id, |session| Err(session.close(Some(refusal))));
        Err(Failure::new(exceeded)
            .hint("another job at ps0; or, where this one is meant, --job with its digest"))
    }

    /// Makes the model for a job, and tells the server that we are ready.
    fn prepare(&mut self, net: &mut Net, id: LinkId, job: &Job) -> Result<(), Failure> {
        let samples = self.samples() as u64;
        self.bound(net, id, self.options.bounds.check(job, samples))?;
        if self.training.is_none() {
            log::info!("job {}", hex(&job.digest()));
            self.report.started(self.options.role, &job.digest());
            let Some(source) = self.source.take() else { return Ok(()) };
            self.training = Some(self.prepared(job, source)?);
        }
        let Some(model) = &mut self.training else { return Ok(()) };
        if let Some(store) = &self.store
            && let Some(ledger) = self.keeper.load(store, &job.digest())?
        {
            self.worker.remember(ledger);
        }
        if model.steps.job != *job {
            // With a lower rate it goes on from another place.
            model.steps.job = job.clone();
            model.share.contribution.forget();
        }
        let (data, sampler) = (model.share.feed.data(), model.share.feed.sampler());
        let layout = &model.steps.network().layout;
        let cells = Cells::of_parameters(job, layout, CELL, self.options.isa);
        let member = Member {
            samples: data.len() as u64,
            batches: sampler.batches(data.len()),
            data: Some(model.digest),
            classes: data.class_counts(),
        };
        let is_blind = model.evaluator.is_none();
        let mut member = Some(member);
        net.drive(id, |session| {
            let Some(member) = member.take() else { return Ok(()) };
            self.worker.join(session, member, cells)?;
            // It spares the server parameters that nobody evaluates.
            if is_blind { self.worker.evaluated(session, 0, Vec::new()) } else { Ok(()) }
        });
        Ok(())
    }

    /// Tries the parameters on our test images, and tells the server the counts.
    fn evaluate(&mut self, net: &mut Net, id: LinkId, step: u64) -> Result<(), Failure> {
        self.stopwatch.rest();
        let Some(Training { steps, evaluator, .. }) = &self.training else { return Ok(()) };
        let (pool, isa) = (self.options.pool(), self.options.isa);
        let table =
            |evaluator: &Evaluator| evaluator.table(&steps.job, self.params.as_slice(), pool, isa);
        let table = evaluator.as_ref().map(table).transpose().doing("memory for an evaluation")?;
        let mut table = Some(table.unwrap_or_default());
        net.drive(id, |session| {
            let Some(table) = table.take() else { return Ok(()) };
            self.worker.evaluated(session, step, table)
        });
        Ok(())
    }

    /// The test images beside the training data, if the job asks for them and there are any.
    fn evaluator(&self, job: &Job, loading: Loading) -> Result<Option<Evaluator>, Failure> {
        if job.evaluation.every == 0 {
            return Ok(None);
        }
        let Options { skip_broken, .. } = self.options;
        let selection = self.options.selection(Split::Test);
        let Some(source) = Source::select_if_any(&self.pictures, selection).map_err(refused)?
        else {
            let shown = self.pictures.root().display();
            log::info!("{shown}: no test images here, the others evaluate");
            return Ok(None);
        };
        log::info!("{} test images", source.len());
        let source = source.skipping_broken(*skip_broken);
        source.load(job, loading).map(|set| Some(Evaluator::new(set))).map_err(refused)
    }

    /// How pictures are loaded beside what a job takes: by what is left at this moment, or of what they may take beside
    /// those that take so many bytes already.
    fn loading(&self, job: &Job, network: &Network, samples: usize, taken: u64) -> Loading {
        let left = || room::for_pictures(job, network, samples);
        let room = self.options.data_memory.map_or_else(left, |most| most.saturating_sub(taken));
        Loading { threads: self.options.threads, room }
    }

    fn prepared(&mut self, job: &Job, source: Source) -> Result<Training, Failure> {
        let samples = source.len();
        self.check_enough(job, samples)?;
        let batch_max = (job.batch_max() as usize).min(samples);
        let network = Network::of(job).doing("network")?.computed(job.conv);
        room::check_worker(job, &network, samples)?;
        if let Some(store) =
            self.store.as_mut().filter(|_| describes_model(self.options, self.index))
        {
            checkpoint::save_meta(store, job, &network, 0).map_err(|error| {
                store.not_written(checkpoint::META_FILE, &error, "ps0 keeps the model")
            })?;
        }
        let loading = self.loading(job, &network, samples, 0);
        let data = source.load_to_learn(job, loading).map_err(refused)?;
        // Fewer than before, where broken ones were left out.
        self.check_enough(job, data.len())?;
        let beside = self.loading(job, &network, samples, data.memory_len());
        let evaluator = self.evaluator(job, beside)?;
        for params in [&mut self.params, &mut self.next_params] {
            *params = Arena::new(network.layout.len).doing("memory for the parameters")?;
        }
        let digest = data.digest();
        let (pool, isa) = (self.options.pool(), self.options.isa);
        let share = Share::new(job, self.index, data, &network.layout, isa);
        let steps = Steps::new(job, network, batch_max, pool, isa)?;
        Ok(Training { steps, share, evaluator, digest })
    }

    fn check_enough(&self, job: &Job, samples: usize) -> Result<(), Failure> {
        if samples != 1 || !job.needs_two() {
            return Ok(());
        }
        Err(Failure::new(format!(
            "{}: one image, which cannot be normalised over the one pixel of the last maps",
            self.pictures.root().display()
        ))
        .hint("more data, another --shard, or a job with --stem cifar"))
    }

    /// Whether what is asked for is the last that was computed.
    fn is_whole(&self, step: u64) -> bool {
        self.training.as_ref().is_some_and(|model| model.share.contribution.is_whole(step))
    }

    /// The next contribution begins with nothing carried over.
    fn skip(&mut self, step: u64) {
        log::warn!("step {step}: left out of a round; we take part again in the next");
        if let Some(model) = &mut self.training {
            model.share.contribution.forget();
        }
    }

    /// Queues what is next of what was computed, and works through what came.
    fn pump(&mut self, session: &mut Session) -> Result<Work, CloseReason> {
        let mut is_left = false;
        if let Some(Training { steps, share: Share { contribution, .. }, .. }) = &mut self.training
        {
            let gradients = Tail { start: 0, gradients: steps.gradients() };
            self.worker.sent(contribution.send(session, gradients)?);
            is_left = contribution.is_left();
        }
        let work = self.worker.pump(session, self.next_params.as_mut_slice())?;
        self.stopwatch.look(is_left || session.wants_output(), self.worker.is_receiving());
        Ok(work)
    }

    /// The step to begin though not all of its parameters are there: once what was computed before is sent, and unless
    /// it is this step already.
    fn begin(&mut self, net: &mut Net, id: LinkId) -> Option<(u64, u64)> {
        // A pause stands for slow arithmetic; with a full socket ps0 would take us for gone meanwhile.
        if !self.options.pause.is_zero() {
            return None;
        }
        let step = self.worker.waits_for()?;
        let is_left = self.training.as_ref()?.share.contribution.is_left();
        let is_sent = !is_left && net.session(id).is_some_and(|session| !session.wants_output());
        let is_over = net.is_over(id) || termination::requested();
        (is_sent && !is_over && !self.is_whole(step)).then(|| self.worker.begin()).flatten()
    }

    /// Computes a round and pushes what comes of it; returns what the server asked for meanwhile.
    fn compute(
        &mut self,
        net: &mut Net,
        id: LinkId,
        step: u64,
        steps: u64,
    ) -> Result<Work, Failure> {
        self.keep_receipts(false);
        let Some(model) = &mut self.training else { return Ok(Work::Wait) };
        std::thread::sleep(self.options.pause);
        let start = Instant::now();
        self.stopwatch.enter(Phase::Forward, start);
        let is_arriving = self.worker.has(0).is_some();
        let (mut params, mut next) = (&mut self.params, &mut self.next_params);
        if is_arriving {
            std::mem::swap(&mut params, &mut next);
        }
        let mut exchange = Exchange {
            net: &mut *net,
            id,
            worker: &mut self.worker,
            stopwatch: &mut self.stopwatch,
            is_arriving,
            next: next.as_mut_slice(),
            work: Work::Wait,
            backward: None,
        };
        let (share, params) = (&mut model.share, params.as_mut_slice());
        share.contribution.confirm(exchange.worker.contributed());
        let computed = model.steps.compute(share, params, step, steps, &mut exchange);
        let backward = exchange.backward.map_or(start, |(_, begun)| begun);
        let (work, is_left) = (exchange.work, exchange.is_arriving);
        if is_left {
            self.worker.abandon();
        } else if is_arriving {
            std::mem::swap(&mut self.params, &mut self.next_params);
        }
        // Nothing where it was stopped between two steps, or its parameters did not come to their end.
        let Some(Computed { last, loss, samples }) = computed.map_err(refused)? else {
            return Ok(work);
        };
        self.stopwatch.enter(Phase::Backward, backward);
        self.stopwatch.enter(Phase::Push, Instant::now());
        let mut spent = Some(Message::Spent(self.stopwatch.take(samples)));
        net.drive(id, |session| spent.take().map_or(Ok(()), |spent| session.send(&spent)));
        let since = self.last.replace(Instant::now()).unwrap_or(start);
        let seconds = since.elapsed().as_secs_f64();
        self.report.step(last, steps, loss, seconds, u64::from(samples));
        Ok(work)
    }
}

/// What to try where there is no data that could be read.
const DATA_HINT: &str = "--data with CIFAR's binary files, train/CLASS/PICTURE or an .npz file";

/// Data that the job cannot have.
fn refused(error: DataError) -> Failure {
    let hint = match error {
        DataError::Classes { .. } => "--classes at ps0, or another --data here",
        DataError::Changed(_) => "the picture as it was, then the same command",
        _ => "mend or remove it, then the same command",
    };
    Failure::new(error).hint(hint)
}

/// What to try after a server could not be reached or did not want us.
fn hint(why: &CloseReason) -> &'static str {
    match why {
        CloseReason::RefusedByPeer(Refusal::Role) => {
            "a --role workerN with N below its --worker-hosts"
        }
        CloseReason::Refused(Refusal::Role) => "a parameter server's address in --ps-hosts",
        CloseReason::Fellow(..) => {
            "code of before an update? keep its set in the policy, with \"until\" (deploy/policy.md)"
        }
        CloseReason::RefusedByPeer(Refusal::Policy)
        | CloseReason::Rejected(Rejection::Policy(..)) => {
            "the same --policy for all; or each lists the other's digest in \"policies\""
        }
        CloseReason::RefusedByPeer(Refusal::Taken) => {
            "end the other process, or take another number"
        }
        CloseReason::RefusedByPeer(Refusal::Data) => {
            "the --data and --shard that the job was begun with"
        }
        CloseReason::Io(_) => "host:port of ps0 in --ps-hosts, and whether it runs",
        _ => "ps0's log says more",
    }
}
