//! What ps0 keeps of a job for people: its history and the report made of it, beside the model.

use std::io;
use std::time::Duration;

use protocol::{Admission, Body, Evidence, Peer, Role, Spent, TdReport, hex, is_simulated};

use crate::failure::{Doing, Failure};
use crate::history::curve::Point;
use crate::history::page::page;
use crate::history::{self, Bytes, Evaluation, Event, EventKind, History, Participant, Shares};
use crate::job::receipt::{Hash, Receipt};
use crate::job::state::State;
use crate::job::{Job, Outer, Quorum, Wire};
use crate::passport::evaluation::Tested;
use crate::training::ledger::{self, Ledger};
use crate::training::rounds::{self, RoundLog, Share};
use crate::training::server::Closed;
use crate::training::store::{Progress, Store};
use crate::trust::clock;

/// The TCB status of a TD without a platform.
const SIMULATED: &str = "simulated";

/// The history of the job at hand.
pub(super) struct Record {
    history: History,
    /// Bytes of earlier runs of the job.
    before: Bytes,
    /// Whether the page is written.
    page: bool,
    rounds: RoundLog,
    receipts: Ledger,
}

/// What there is to write of a record, whoever writes it.
pub(super) struct SoFar {
    history: History,
    page: bool,
}

impl Record {
    /// Goes on with the history that is there, if it is this job's and can be read.
    pub(super) fn open(store: &Store, job: &Job, state: &State, page: bool) -> Self {
        let known = store.read(history::FILE).ok().flatten().and_then(|bytes| {
            let parsed = History::parse(&bytes);
            parsed.inspect_err(|error| log::warn!("{}: {error}", history::FILE)).ok()
        });
        let digest = hex(&job.digest());
        let begun = known.filter(|known| known.digest == digest && state.step > 0);
        let history = begun.unwrap_or_else(|| History::new(digest, settings(job), clock()));
        let (before, rounds) = (history.bytes(), known_rounds(store, state.step));
        let receipts = known_receipts(store, state);
        let mut record = Self { history, before, rounds, receipts, page };
        record.note(state.step, EventKind::Started, String::new());
        record
    }

    pub(super) fn note(&mut self, step: u64, kind: EventKind, detail: String) {
        self.history.note(Event { time: clock(), step, kind, detail });
    }

    pub(super) fn step(&mut self, job: &Job, closed: &Closed, seconds: f64) {
        self.history.steps = Some(closed.steps);
        let rate = job.schedule.rate(closed.step, closed.steps);
        let point = Point::step(closed.step, closed.loss, rate, seconds, closed.samples);
        self.history.curve.push(point);
        self.rounds.push(closed);
    }

    /// The receipt of a round.
    pub(super) fn receipt(&mut self, receipt: Option<&Receipt>) {
        receipt.into_iter().for_each(|receipt| self.receipts.push(receipt));
    }

    /// What a worker has contributed so far.
    pub(super) fn share_of(&self, role: Role) -> Share {
        match role {
            Role::Worker(index) => self.rounds.share_of(index),
            _ => Share::default(),
        }
    }

    /// Who contributed to the rounds so far, and the heads of their receipts, as files.
    pub(super) fn rounds(&self) -> Vec<(&'static str, Vec<u8>)> {
        vec![(rounds::FILE, self.rounds.encode()), (ledger::FILE, self.receipts.encode())]
    }

    /// What workers found on their test images.
    pub(super) fn evaluated(&mut self, evaluation: Evaluation) {
        self.history.evaluated(evaluation);
    }

    /// Where the time of a worker's step went, as it says.
    pub(super) fn spent(&mut self, worker: u16, spent: &Spent) {
        let seconds = |micros: u32| f64::from(micros) / 1e6;
        let step = Shares {
            steps: 1,
            images: u64::from(spent.samples),
            forward: seconds(spent.forward),
            backward: seconds(spent.backward),
            push: seconds(spent.push),
            waiting: seconds(spent.waiting),
            pull: seconds(spent.pull),
        };
        self.history.spend(worker, step);
    }

    /// How long an update took.
    pub(super) fn updated(&mut self, time: Duration) {
        self.history.updates += time.as_secs_f64();
    }

    /// Somebody's evidence was accepted.
    pub(super) fn admit(&mut self, peer: &Peer) {
        // Who takes part in a job shows evidence.
        let Some(verdict) = &peer.verdict else { return };
        let platform = verdict.platform.as_deref();
        self.history.admit(Participant {
            role: peer.role.to_string(),
            since: clock(),
            status: platform.map_or(SIMULATED, |platform| platform.status.name()).into(),
            measurements: measurements(&verdict.report),
            platform: platform.map_or(String::new(), |platform| hex(&platform.machine.fmspc)),
            key: hex(&peer.key),
        });
    }

    /// Our own evidence, which others judge.
    pub(super) fn admit_self(&mut self, own: &Admission) {
        let quote = Evidence::parse(&own.quote).map(|evidence| evidence.quote).ok();
        let simulated = quote.as_ref().is_some_and(is_simulated);
        let report = match quote.as_ref().map(|quote| &quote.body) {
            Some(Body::Td(report)) => measurements(report),
            _ => Vec::new(),
        };
        self.history.admit(Participant {
            role: own.role.to_string(),
            since: own.time,
            status: if simulated { SIMULATED } else { "judged by each worker" }.into(),
            measurements: report,
            platform: String::new(),
            key: hex(&own.keys[0]),
        });
    }

    /// When the job began, in seconds since 1970.
    pub(super) fn began(&self) -> u64 {
        self.history.began
    }

    /// The passport's statement about the training is signed.
    pub(super) fn passport(&mut self, digest: &Hash) {
        self.history.passport = Some(hex(digest));
    }

    /// What was found on test images, if the model is of that step.
    pub(super) fn tested(&self, step: u64) -> Option<Tested> {
        let mut found = self.history.evaluations.iter().rev();
        let [right, images] = found.find(|found| found.step == step)?.total();
        (images > 0).then_some(Tested { step, right, images })
    }

    pub(super) fn finished(&mut self, parameters: &[u8; 32]) {
        self.history.parameters = Some(hex(parameters));
    }

    /// History and report as they stand.
    pub(super) fn so_far(&mut self, bytes: &Bytes) -> SoFar {
        self.history.carried(self.before.plus(bytes));
        self.history.written = clock();
        SoFar { history: self.history.clone(), page: self.page }
    }
}

impl SoFar {
    /// Writes history and report.
    pub(super) fn save(&self, store: &mut Store, progress: Progress) -> Result<(), Failure> {
        let mut files = vec![(history::FILE, self.history.encode())];
        if self.page {
            files.push((history::REPORT, page(&self.history).into_bytes()));
        }
        for (name, bytes) in files {
            let saved: io::Result<()> = store.save(name, progress, &|out| out.write_all(&bytes));
            saved.doing(store.name_of(name))?;
        }
        Ok(())
    }
}

fn measurements(report: &TdReport) -> Vec<(String, String)> {
    let rtmrs = report.rt_mr.iter().enumerate();
    let mut all = vec![("MRTD".to_owned(), hex(&report.mr_td))];
    all.extend(rtmrs.map(|(number, value)| (format!("RTMR{number}"), hex(value))));
    all.push(("MRCONFIGID".into(), hex(&report.mr_config_id)));
    all
}

/// The rounds that led to a step, as far as they were kept.
fn known_rounds(store: &Store, step: u64) -> RoundLog {
    let Ok(Some(bytes)) = store.read(rounds::FILE) else { return RoundLog::default() };
    let mut rounds = RoundLog::parse(&bytes).unwrap_or_else(|why| {
        log::warn!("{}: {why}; rounds before step {step} are not known", rounds::FILE);
        RoundLog::default()
    });
    rounds.cut(step);
    rounds
}

/// The heads that led to a state, as far as they were kept.
fn known_receipts(store: &Store, state: &State) -> Ledger {
    let mut receipts = match store.read(ledger::FILE) {
        Ok(Some(bytes)) => Ledger::parse(&bytes).unwrap_or_else(|why| {
            log::warn!("{}: {why}; heads before step {} are not known", ledger::FILE, state.step);
            Ledger::default()
        }),
        _ => Ledger::default(),
    };
    receipts.cut(state.step);
    if let Some(last) = &state.receipt
        && receipts.head(state.step) != Some(last.head())
    {
        receipts.cut(last.step - last.count);
        receipts.push(last);
    }
    receipts
}

/// The job as the report shows it.
fn settings(job: &Job) -> Vec<(String, String)> {
    let mut settings: Vec<(String, String)> = [
        ("model", format!("{}, {} stem", job.model, job.stem)),
        ("workers", job.workers.to_string()),
        ("batch size of a worker", job.batch_size.to_string()),
        ("epochs", job.epochs.to_string()),
        ("learning rate", job.schedule.to_string()),
        ("momentum", job.momentum.to_string()),
        ("weight decay", job.weight_decay.to_string()),
        ("precision", job.precision.to_string()),
        ("convolutions", job.conv.to_string()),
        ("augmentation", job.augment.to_string()),
        ("order", job.order.to_string()),
        ("seed", job.seed.to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    if job.evaluation.every > 0 {
        let patience = job.evaluation.patience.map_or(String::new(), |patience| {
            format!(", ends after {patience} that are no better")
        });
        let every = job.evaluation.every;
        settings.push(("evaluation".into(), format!("every {every} epochs{patience}")));
    }
    if job.wire != Wire::Fp32 {
        settings.push(("wire format".into(), job.wire.to_string()));
    }
    settings.extend(job.local_steps.map(|steps| {
        let Outer { rate, momentum } = job.outer;
        let outer = format!("{steps}, then an outer step of rate {rate}, momentum {momentum}");
        ("local steps".into(), outer)
    }));
    settings.extend(job.quorum.map(|Quorum { workers, seconds }| {
        ("quorum".into(), format!("{workers} after {seconds} s"))
    }));
    settings.extend(job.steps.map(|steps| ("steps".into(), steps.to_string())));
    settings.extend(job.init.map(|init| ("initial parameters sha256".into(), hex(&init))));
    settings
}
