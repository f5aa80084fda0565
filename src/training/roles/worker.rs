//! The loop of a worker.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kernels::Arena;
use protocol::{Config, Ended, LinkId, Message, Net, Refusal, hex};

use super::options::{CELL, Options};
use super::stopwatch::{Phase, Stopwatch};
use crate::data::batch::Batch;
use crate::data::dataset::{Dataset, Split};
use crate::data::error::DataError;
use crate::data::sampler::Sampler;
use crate::data::source::Source;
use crate::failure::{Doing, Failure};
use crate::job::Job;
use crate::job::state::Member;
use crate::metrics::Metrics;
use crate::model::Model;
use crate::model::gradients::Pieces;
use crate::model::network::Network;
use crate::report::Report;
use crate::termination;
use crate::training::checkpoint;
use crate::training::evaluator::Evaluator;
use crate::training::room;
use crate::training::store::Store;
use crate::training::worker::{Push, Work, Worker};

/// First and longest pause between two tries. Nothing tells a worker that ps0 listens again; two seconds are a small
/// part of a start with attestation.
const PAUSES: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(2)];

struct Running<'a> {
    options: &'a Options,
    index: u16,
    /// Of the first worker, and of every worker that has a volume.
    store: Option<Store>,
    worker: Worker,
    /// Until the job is known, which says what becomes of the pictures.
    source: Option<Source>,
    report: Report,
    metrics: Arc<Metrics>,
    /// Present once the job is known.
    training: Option<Training>,
    params: Arena,
    last: Option<Instant>,
    stopwatch: Stopwatch,
}

/// What a job needs to compute steps.
struct Training {
    network: Model,
    job: Job,
    data: Dataset,
    /// Unless there are no test images, or none are asked for.
    evaluator: Option<Evaluator>,
    /// What the data is.
    digest: [u8; 32],
    sampler: Sampler,
    batch: Batch,
    gradients: Arena,
}

pub(super) fn run(
    options: &Options,
    index: u16,
    config: Arc<Config>,
    metrics: Arc<Metrics>,
) -> Result<(), Failure> {
    let source = Source::select(&options.data, options.selection(Split::Train))
        .map_err(|error| Failure::new(error).hint(DATA_HINT))?
        .skipping_broken(options.skip_broken);
    let shown = options.data.display();
    log::info!("{} samples in {shown}: {}", source.len(), source.format());
    let keeps = index == 0 || options.place.volume.is_some();
    let store = keeps.then(|| options.open_store(&config)).transpose()?;
    let mut running = Running {
        options,
        index,
        store,
        worker: Worker::new(CELL),
        source: Some(source),
        report: Report::new(options.json, Arc::clone(&metrics)),
        metrics,
        training: None,
        params: Arena::new(0).doing("memory")?,
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
            Err(error) => Some(Lost { why: Ended::Io(error), was_open: false }),
        };
        let Lost { why, was_open } = match end {
            None => return running.store.map_or(Ok(()), Store::close).doing("close the volume"),
            Some(lost) => lost,
        };
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

/// A connection that is over before the job is.
struct Lost {
    why: Ended,
    was_open: bool,
}

impl Running<'_> {
    /// Ends between two steps; the step that is lost is computed again to the same bits.
    fn stop(self) -> Result<(), Failure> {
        self.store.map_or(Ok(()), Store::close).doing("close the volume")?;
        Err(Failure::new("stopped by a signal").hint("the same command goes on"))
    }

    /// One connection's life; `None` when the job is done.
    fn converse(&mut self, net: &mut Net, id: LinkId) -> Result<Option<Lost>, Failure> {
        self.worker.disconnected();
        self.stopwatch = Stopwatch::default();
        let mut was_open = false;
        loop {
            net.poll(None, &[0; 32]).doing("network")?;
            loop {
                let mut work = Work::Wait;
                net.drive(id, |session| {
                    // Work that was given is done before the session is asked again.
                    if work == Work::Wait {
                        work = self.worker.pump(session, self.params.as_mut_slice())?;
                    }
                    self.stopwatch.look((session.wants_output(), self.worker.is_receiving()));
                    Ok(())
                });
                if let Some(peer) = net.session(id).and_then(|session| session.peer())
                    && !was_open
                {
                    was_open = true;
                    self.report.verified(peer.role);
                    self.metrics.set_ready();
                }
                match work {
                    Work::Wait => break,
                    Work::Prepare(job) => self.prepare(net, id, &job)?,
                    Work::Evaluate { step } => self.evaluate(net, id, step)?,
                    Work::Compute { step, steps } => self.compute(net, id, (step, steps)),
                    Work::Finish { steps, parameters } => {
                        log::info!("{steps} steps, parameters sha256:{}", hex(&parameters));
                        self.report.finished();
                        return Ok(None);
                    }
                }
            }
            if termination::requested() {
                return Ok(Some(Lost { why: Ended::ByUs, was_open }));
            }
            if let Some(over) = net.take_ended().pop() {
                return Ok(Some(Lost { why: over.why, was_open }));
            }
        }
    }

    /// Makes the model for a job, and tells the server that we are ready.
    fn prepare(&mut self, net: &mut Net, id: LinkId, job: &Job) -> Result<(), Failure> {
        if self.training.is_none() {
            log::info!("job {}", hex(&job.digest()));
            self.report.started(self.options.role, &job.digest());
            let Some(source) = self.source.take() else { return Ok(()) };
            self.training = Some(self.prepared(job, source)?);
        }
        let Some(model) = &self.training else { return Ok(()) };
        let member = Member {
            samples: model.data.len() as u64,
            batches: model.sampler.batches(model.data.len()),
            data: Some(model.digest),
        };
        let is_blind = model.evaluator.is_none();
        let mut member = Some(member);
        net.drive(id, |session| {
            let Some(member) = member.take() else { return Ok(()) };
            self.worker.join(session, member)?;
            // It spares the server parameters that nobody evaluates.
            if is_blind { self.worker.evaluated(session, 0, Vec::new()) } else { Ok(()) }
        });
        Ok(())
    }

    /// Tries the parameters on our test images, and tells the server the counts.
    fn evaluate(&mut self, net: &mut Net, id: LinkId, step: u64) -> Result<(), Failure> {
        self.stopwatch.rest();
        let Some(Training { job, evaluator, .. }) = &self.training else { return Ok(()) };
        let exec = self.options.pool();
        let table = |evaluator: &Evaluator| evaluator.table(job, self.params.as_slice(), exec);
        let table = evaluator.as_ref().map(table).transpose().doing("memory for an evaluation")?;
        let mut table = Some(table.unwrap_or_default());
        net.drive(id, |session| {
            let Some(table) = table.take() else { return Ok(()) };
            self.worker.evaluated(session, step, table)
        });
        Ok(())
    }

    /// The test images beside the training data, if the job asks for them and there are any.
    fn evaluator(&self, job: &Job) -> Result<Option<Evaluator>, Failure> {
        if job.evaluation.every == 0 {
            return Ok(None);
        }
        let Options { data, threads, skip_broken, .. } = self.options;
        let selection = self.options.selection(Split::Test);
        let Some(source) = Source::select_if_any(data, selection).map_err(refused)? else {
            log::info!("{}: no test images here, the others evaluate", data.display());
            return Ok(None);
        };
        log::info!("{} test images", source.len());
        let source = source.skipping_broken(*skip_broken);
        source.load(job, *threads).map(|set| Some(Evaluator::new(set))).map_err(refused)
    }

    fn prepared(&mut self, job: &Job, source: Source) -> Result<Training, Failure> {
        let samples = source.len();
        self.check_enough(job, samples)?;
        let batch_max = (job.batch_max() as usize).min(samples);
        let network = Network::of(job).doing("network")?.computed(job.conv);
        room::check_worker(job, &network, samples)?;
        if let Some(store) = &mut self.store {
            checkpoint::save_meta(store, job, &network, 0).map_err(|error| {
                store.not_written(checkpoint::META_FILE, &error, "ps0 keeps the model")
            })?;
        }
        let data = source.load(job, self.options.threads).map_err(refused)?;
        // Fewer than before, where broken ones were left out.
        self.check_enough(job, data.len())?;
        let evaluator = self.evaluator(job)?;
        let len = network.layout.len;
        self.params = Arena::new(len).doing("memory for the parameters")?;
        Ok(Training {
            network: Model::new(network, (job.precision, job.conv), batch_max, self.options.pool())
                .doing("memory for a step")?,
            job: job.clone(),
            digest: data.digest(),
            data,
            evaluator,
            sampler: Sampler::of(job, self.index),
            batch: Batch::default(),
            gradients: Arena::new(len).doing("memory for the gradients")?,
        })
    }

    fn check_enough(&self, job: &Job, samples: usize) -> Result<(), Failure> {
        if samples != 1 || !job.needs_two() {
            return Ok(());
        }
        Err(Failure::new(format!(
            "{}: one image, which cannot be normalised over the one pixel of the last maps",
            self.options.data.display()
        ))
        .hint("more data, another --shard, or a job with --stem cifar"))
    }

    /// Computes a step and pushes gradients while the backward pass runs.
    fn compute(&mut self, net: &mut Net, id: LinkId, (step, steps): (u64, u64)) {
        let Some(model) = &mut self.training else { return };
        std::thread::sleep(self.options.pause);
        let start = Instant::now();
        self.stopwatch.enter(Phase::Forward, start);
        model.sampler.fill(&model.data, step, &mut model.batch);
        let samples = model.batch.len() as u32;
        let mut push = Push::new(&self.worker, step, self.params.as_slice().len());
        let (stopwatch, mut backward) = (&mut self.stopwatch, None);
        let loss = model.network.step(
            self.params.as_mut_slice(),
            &model.batch,
            model.gradients.as_mut_slice(),
            (Pieces::Whole, |part| {
                backward.get_or_insert_with(Instant::now);
                net.drive(id, |session| push.advance(session, samples, &part));
            }),
        );
        stopwatch.enter(Phase::Backward, backward.unwrap_or(start));
        stopwatch.enter(Phase::Push, Instant::now());
        let mut spent = Some(Message::Spent(stopwatch.take(samples)));
        net.drive(id, |session| spent.take().map_or(Ok(()), |spent| session.send(&spent)));
        let since = self.last.replace(Instant::now()).unwrap_or(start);
        let seconds = since.elapsed().as_secs_f64();
        self.report.step((step, steps), loss, seconds, u64::from(samples));
    }
}

/// What to try where there is no data that could be read.
const DATA_HINT: &str = "--data with CIFAR's binary files, train/CLASS/PICTURE or an .npz file";

/// Data that the job cannot have.
fn refused(error: DataError) -> Failure {
    let hint = match error {
        DataError::Classes { .. } => "--classes at ps0, or another --data here",
        _ => "mend or remove it, then the same command",
    };
    Failure::new(error).hint(hint)
}

/// What to try after a server could not be reached or did not want us.
fn hint(why: &Ended) -> &'static str {
    match why {
        Ended::RefusedByPeer(Refusal::Role) => "a --role workerN with N below its --worker-hosts",
        Ended::Refused(Refusal::Role) => "a parameter server's address in --ps-hosts",
        Ended::RefusedByPeer(Refusal::Taken) => "end the other process, or take another number",
        Ended::RefusedByPeer(Refusal::Data) => "the --data and --shard that the job was begun with",
        Ended::Io(_) => "host:port of ps0 in --ps-hosts, and whether it runs",
        _ => "ps0's log says more",
    }
}
