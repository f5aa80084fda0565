//! What happened in a job so far: kept beside the model, shown as a report, as metrics and as event files.
//!
//! Sizes are bounded whatever the job's length: the curve is thinned to [`curve::POINTS_MAX`] points, the time line
//! keeps its first and its newest events. Nothing here is about a worker's pictures beyond counts.

pub mod chart;
pub mod curve;
mod format;
pub mod page;
mod style;
pub mod tensorboard;
pub mod timeline;

use serde::{Deserialize, Serialize};

use crate::history::curve::Curve;

/// The file in the model's directory.
pub const FILE: &str = "history.json";
/// The report beside it.
pub const REPORT: &str = "report.html";
/// The statement about the training beside it.
pub const PASSPORT: &str = "training.sigstore.json";

/// Most events on the time line: a peer that comes and goes all day must not fill the disk.
const EVENTS_MAX: usize = 512;
/// Most participants, as many as a roster has entries.
const PARTICIPANTS_MAX: usize = 4096;
/// Most evaluations: one an epoch, of a long job.
const EVALUATIONS_MAX: usize = 2048;
/// Most classes of a confusion matrix that is kept.
const CLASSES_MAX: usize = 1000;
/// Most workers, as in a job.
const WORKERS_MAX: usize = 64;
/// Largest file that is read.
const FILE_LEN_MAX: usize = 64 << 20;

/// The history of one job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct History {
    /// Form of this file.
    pub version: u32,
    /// Digest of the job, in hexadecimal.
    pub digest: String,
    /// Settings, as name and value, in the order in which they are shown.
    pub settings: Vec<(String, String)>,
    /// When the job began, in seconds since 1970.
    pub began: u64,
    /// When this was last written, in seconds since 1970.
    pub written: u64,
    /// Steps of the whole job, once they are known.
    pub steps: Option<u64>,
    /// SHA-256 of the parameters, in hexadecimal, once the job is done.
    pub parameters: Option<String>,
    /// SHA-256 of the passport's statement about the training, in hexadecimal, once it is signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passport: Option<String>,
    /// Loss, learning rate and time over steps.
    pub curve: Curve,
    /// Where the time of each worker's steps went, by its number.
    pub workers: Vec<Shares>,
    /// Seconds of ps0's updates, summed; each worker waits for them.
    #[serde(default)]
    pub updates: f64,
    /// Accuracy on test images, as it was found.
    pub evaluations: Vec<Evaluation>,
    /// What happened when.
    pub events: Vec<Event>,
    /// Events that no longer are in the list.
    pub events_dropped: u64,
    /// Who took part.
    pub participants: Vec<Participant>,
    /// Bytes received and sent.
    pub bytes: [u64; 2],
    /// Those of each worker, by its number.
    #[serde(default)]
    pub worker_bytes: Vec<[u64; 2]>,
}

/// Bytes that ps0 received and sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bytes {
    /// On all connections.
    pub all: [u64; 2],
    /// On those of each worker, by its number.
    pub by_worker: Vec<[u64; 2]>,
}

impl Bytes {
    /// Adds what a connection carried, and to a worker what was its.
    pub fn add(&mut self, carried: [u64; 2], worker: Option<u16>) {
        let more = |sum: &mut [u64; 2]| {
            sum.iter_mut().zip(carried).for_each(|(sum, more)| *sum = sum.saturating_add(more));
        };
        more(&mut self.all);
        let Some(worker) = worker.map(usize::from).filter(|worker| *worker < WORKERS_MAX) else {
            return;
        };
        if self.by_worker.len() <= worker {
            self.by_worker.resize(worker + 1, [0; 2]);
        }
        more(&mut self.by_worker[worker]);
    }

    /// Both together.
    pub fn plus(&self, other: &Self) -> Self {
        let mut sum = self.clone();
        (0..).zip(&other.by_worker).for_each(|(worker, carried)| sum.add(*carried, Some(worker)));
        sum.all = self.all;
        sum.add(other.all, None);
        sum
    }
}

/// Seconds of a worker's steps, summed, by what they were spent on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shares {
    /// Steps that are in the sums.
    pub steps: u64,
    /// Images of these steps.
    pub images: u64,
    /// Forward pass.
    pub forward: f64,
    /// Backward pass, with what it sends meanwhile.
    pub backward: f64,
    /// Sending what the backward pass left.
    pub push: f64,
    /// Waiting for the others and for the update.
    pub waiting: f64,
    /// Receiving parameters.
    pub pull: f64,
}

/// Counts over test images, of all workers together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluation {
    /// Updates that the model had.
    pub step: u64,
    /// Right and all images of each worker, by its number.
    pub by_worker: Vec<[u64; 2]>,
    /// Names of the classes.
    pub classes: Vec<String>,
    /// `confusion[actual * classes + predicted]`; empty where only totals are known.
    pub confusion: Vec<u64>,
}

/// A moment of the job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Event {
    /// In seconds since 1970.
    pub time: u64,
    /// Updates done by then.
    pub step: u64,
    /// What.
    pub kind: EventKind,
    /// Who, or why.
    pub detail: String,
}

/// What may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventKind {
    /// A checkpoint is on the disk.
    Checkpoint,
    /// The job is done.
    Finished,
    /// A worker joined for the first time.
    Joined,
    /// A worker's connection ended before the job did.
    Left,
    /// An open connection was attested anew.
    Reattested,
    /// A worker is back.
    Returned,
    /// ps0 began, or went on from a checkpoint.
    Started,
    /// A signal stopped ps0.
    Stopped,
}

impl EventKind {
    /// As the report says it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Checkpoint => "checkpoint",
            Self::Finished => "finished",
            Self::Joined => "joined",
            Self::Left => "left",
            Self::Reattested => "attested anew",
            Self::Returned => "returned",
            Self::Started => "started",
            Self::Stopped => "stopped",
        }
    }
}

/// Somebody whose evidence was accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Participant {
    /// Role, such as `worker0`.
    pub role: String,
    /// Since when, in seconds since 1970.
    pub since: u64,
    /// TCB status, or `simulated`.
    pub status: String,
    /// Name and value of each measurement, in hexadecimal.
    pub measurements: Vec<(String, String)>,
    /// The platform, as its certificate names it.
    pub platform: String,
    /// SHA-256 of its key, in hexadecimal.
    pub key: String,
}

impl History {
    /// A job that begins now.
    pub fn new(digest: String, settings: Vec<(String, String)>, now: u64) -> Self {
        Self {
            version: 1,
            digest,
            settings,
            began: now,
            written: now,
            steps: None,
            parameters: None,
            passport: None,
            curve: Curve::default(),
            workers: Vec::new(),
            updates: 0.0,
            evaluations: Vec::new(),
            events: Vec::new(),
            events_dropped: 0,
            participants: Vec::new(),
            bytes: [0; 2],
            worker_bytes: Vec::new(),
        }
    }

    /// Notes an event. Beyond the most that are kept, the older half of the checkpoints and of those in the
    /// middle goes first: how it began and what happened last are what one asks for.
    pub fn note(&mut self, event: Event) {
        self.written = self.written.max(event.time);
        self.events.push(event);
        if self.events.len() > EVENTS_MAX {
            let routine = self.events[EVENTS_MAX / 4..EVENTS_MAX / 2]
                .iter()
                .position(|event| event.kind == EventKind::Checkpoint)
                .unwrap_or_default();
            self.events.remove(EVENTS_MAX / 4 + routine);
            self.events_dropped += 1;
        }
    }

    /// Notes who was admitted.
    pub fn admit(&mut self, participant: Participant) {
        if self.participants.len() < PARTICIPANTS_MAX {
            self.participants.push(participant);
        }
    }

    /// The bytes so far.
    pub fn bytes(&self) -> Bytes {
        Bytes { all: self.bytes, by_worker: self.worker_bytes.clone() }
    }

    /// Notes the bytes so far.
    pub fn carried(&mut self, bytes: Bytes) {
        (self.bytes, self.worker_bytes) = (bytes.all, bytes.by_worker);
    }

    /// Adds the seconds of one step of a worker.
    pub fn spend(&mut self, worker: u16, step: Shares) {
        let worker = usize::from(worker);
        if worker >= WORKERS_MAX {
            return;
        }
        if self.workers.len() <= worker {
            self.workers.resize(worker + 1, Shares::default());
        }
        self.workers[worker].add(step);
    }

    /// Notes what an evaluation found. One that is made again after a restart replaces what it was.
    pub fn evaluated(&mut self, evaluation: Evaluation) {
        self.evaluations.retain(|before| before.step < evaluation.step);
        if self.evaluations.len() < EVALUATIONS_MAX {
            self.evaluations.push(evaluation);
        }
    }

    /// The file's bytes.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("plain text and numbers")
    }

    /// What a file says.
    ///
    /// # Errors
    /// When the bytes are no history, or one that no job leaves.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() > FILE_LEN_MAX {
            return Err(format!("{} bytes, more than {FILE_LEN_MAX}", bytes.len()));
        }
        let history: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        let bounded = history.version == 1
            && history.events.len() <= EVENTS_MAX
            && history.participants.len() <= PARTICIPANTS_MAX
            && history.workers.len() <= WORKERS_MAX
            && history.worker_bytes.len() <= WORKERS_MAX
            && history.evaluations.len() <= EVALUATIONS_MAX
            && history.curve.is_bounded()
            && history.evaluations.iter().all(Evaluation::is_whole);
        bounded
            .then_some(history)
            .ok_or_else(|| "a history of another form, or out of bounds".into())
    }
}

impl Shares {
    fn add(&mut self, step: Self) {
        self.steps += step.steps;
        self.images += step.images;
        self.forward += step.forward;
        self.backward += step.backward;
        self.push += step.push;
        self.waiting += step.waiting;
        self.pull += step.pull;
    }

    /// Names and seconds, in the order of a step; `updates` are the seconds of ps0's updates, which a worker
    /// waits for.
    pub fn parts(&self, updates: f64) -> [(&'static str, f64); 6] {
        let update = updates.clamp(0.0, self.waiting.max(0.0));
        [
            ("forward", self.forward),
            ("backward", self.backward),
            ("push", self.push),
            ("waiting for others", self.waiting - update),
            ("update", update),
            ("pull", self.pull),
        ]
    }
}

impl Evaluation {
    /// Right and all images together.
    pub fn total(&self) -> [u64; 2] {
        self.by_worker.iter().fold([0; 2], |[right, all], worker| {
            [right.saturating_add(worker[0]), all.saturating_add(worker[1])]
        })
    }

    /// Whether the matrix has the size that the classes say.
    fn is_whole(&self) -> bool {
        let classes = self.classes.len();
        classes <= CLASSES_MAX
            && self.by_worker.len() <= WORKERS_MAX
            && (self.confusion.is_empty() || self.confusion.len() == classes * classes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: EventKind, time: u64) -> Event {
        Event { time, step: time, kind, detail: String::new() }
    }

    #[test]
    fn a_long_job_keeps_its_beginning_and_its_end() {
        let mut history = History::new("00".into(), Vec::new(), 0);
        history.note(event(EventKind::Started, 0));
        for time in 1..3000 {
            let kind = if time % 3 == 0 { EventKind::Left } else { EventKind::Checkpoint };
            history.note(event(kind, time));
        }
        assert_eq!(history.events.len(), EVENTS_MAX);
        assert_eq!(history.events_dropped, 3000 - EVENTS_MAX as u64);
        assert_eq!(history.events[0].kind, EventKind::Started);
        let times: Vec<u64> = history.events.iter().map(|event| event.time).collect();
        assert!(times.is_sorted());
        assert_eq!(times.last(), Some(&2999));
        assert_eq!(History::parse(&history.encode()), Ok(history));
    }

    #[test]
    fn bytes_go_on_where_a_job_was_stopped() {
        let mut before = Bytes::default();
        before.add([10, 1], Some(1));
        before.add([5, 5], None);
        let mut after = Bytes::default();
        after.add([100, 2], Some(1));
        after.add([1, u64::MAX], Some(0));
        after.add([1, 1], Some(64));
        let mut history = History::new("00".into(), Vec::new(), 7);
        history.carried(before.plus(&after));
        let expected = Bytes { all: [117, u64::MAX], by_worker: vec![[1, u64::MAX], [110, 3]] };
        assert_eq!(history.bytes(), expected);
        assert_eq!(History::parse(&history.encode()), Ok(history));
    }

    #[test]
    fn what_is_out_of_bounds_is_refused() {
        let good = History::new("00".into(), Vec::new(), 7);
        let change = |edit: &dyn Fn(&mut History)| {
            let mut history = good.clone();
            edit(&mut history);
            History::parse(&history.encode())
        };
        assert!(change(&|_| ()).is_ok());
        assert!(change(&|history| history.version = 2).is_err());
        assert!(change(&|history| history.workers = vec![Shares::default(); 65]).is_err());
        assert!(change(&|history| history.worker_bytes = vec![[0; 2]; 65]).is_err());
        let lame = Evaluation {
            step: 1,
            by_worker: vec![[1, 2]],
            classes: vec!["a".into(), "b".into()],
            confusion: vec![1, 0, 0],
        };
        assert!(change(&|history| history.evaluations = vec![lame.clone()]).is_err());
        assert!(
            change(&|history| {
                history.events = vec![event(EventKind::Left, 1); EVENTS_MAX + 1];
            })
            .is_err()
        );
        assert!(History::parse(b"{}").is_err());
    }
}
