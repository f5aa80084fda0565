//! The thread that writes checkpoints beside the training.
//!
//! It has the store while it writes, and a snapshot whose values nobody changes until it was taken back
//! ([`State::is_shared`]): nothing is copied, and a round that would change them waits for the rest of the writing.
//! Who needs the store itself waits too; that is rare while a job goes on.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use protocol::Net;
use rustix::event::{EventfdFlags, eventfd};

use crate::failure::{Doing, Failure};
use crate::job::Job;
use crate::job::state::State;
use crate::model::params::Layout;
use crate::training::checkpoint;
use crate::training::roles::record::SoFar;
use crate::training::store::{Progress, Store};

/// What is written, in this order.
pub(super) struct Snapshot {
    pub(super) job: Job,
    pub(super) state: State,
    /// Files without which the checkpoint is worth less.
    pub(super) before: Vec<(&'static str, Vec<u8>)>,
    /// The checkpoint's own.
    pub(super) name: &'static str,
    /// What is for people.
    pub(super) after: Option<SoFar>,
}

/// A snapshot that was written, or could not be.
pub(super) struct Done {
    pub(super) snapshot: Snapshot,
    pub(super) result: Result<(), Unwritten>,
    pub(super) time: Duration,
}

/// What the disk refused.
pub(super) struct Unwritten {
    pub(super) name: &'static str,
    pub(super) error: io::Error,
}

/// The store, and who writes to it meanwhile.
pub(super) struct Saver {
    /// Unless the thread has it.
    store: Option<Store>,
    waiting: VecDeque<Snapshot>,
    done: VecDeque<Done>,
    to: Sender<(Store, Snapshot)>,
    from: Receiver<(Store, Done)>,
}

/// The thread ends with the last sender only.
const THREAD: &str = "the thread that saves";

impl Saver {
    /// A thread that ends the network's waits when it has written something.
    ///
    /// # Errors
    /// When the system has no thread or no descriptor to give.
    pub(super) fn new(store: Store, layout: Layout, net: &mut Net) -> Result<Self, Failure> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC).map_err(io::Error::from).doing(THREAD)?;
        bell.try_clone().and_then(|bell| net.watch(bell)).doing(THREAD)?;
        let ((to, jobs), (results, from)) = (channel(), channel());
        thread::Builder::new()
            .name("saver".into())
            .spawn(move || write_all(&jobs, &results, &layout, &bell))
            .doing(THREAD)?;
        let (waiting, done) = (VecDeque::new(), VecDeque::new());
        Ok(Self { store: Some(store), waiting, done, to, from })
    }

    /// Whether there is anything of which it is not told yet how it went.
    pub(super) fn is_busy(&self) -> bool {
        self.store.is_none() || !self.waiting.is_empty() || !self.done.is_empty()
    }

    /// Writes a snapshot, after those before it.
    pub(super) fn save(&mut self, snapshot: Snapshot) {
        self.waiting.push_back(snapshot);
        self.begin();
    }

    /// How the oldest one went, if it is written. The next one begins when this is asked again, so that in between
    /// the store is there and the values are those that were written.
    pub(super) fn take_done(&mut self) -> Option<Done> {
        if self.store.is_none()
            && let Ok((store, done)) = self.from.try_recv()
        {
            self.take_back(store, done);
        }
        let done = self.done.pop_front();
        if done.is_none() {
            self.begin();
        }
        done
    }

    /// Waits for what is being written.
    pub(super) fn wait(&mut self) {
        if self.store.is_none() {
            let (store, done) = self.from.recv().expect(THREAD);
            self.take_back(store, done);
        }
    }

    /// The store; who writes to it has to come to an end first.
    pub(super) fn store(&mut self) -> &mut Store {
        self.wait();
        self.store.as_mut().expect("it came back")
    }

    /// The store, once what is being written is written.
    pub(super) fn into_store(mut self) -> Store {
        self.wait();
        self.store.expect("it came back")
    }

    fn take_back(&mut self, store: Store, done: Done) {
        self.store = Some(store);
        self.done.push_back(done);
    }

    fn begin(&mut self) {
        if !self.done.is_empty() {
            return;
        }
        if let Some(store) = self.store.take_if(|_| !self.waiting.is_empty())
            && let Some(snapshot) = self.waiting.pop_front()
        {
            self.to.send((store, snapshot)).expect(THREAD);
        }
    }
}

/// Writes snapshots until no more can come.
fn write_all(
    jobs: &Receiver<(Store, Snapshot)>,
    results: &Sender<(Store, Done)>,
    layout: &Layout,
    bell: &OwnedFd,
) {
    while let Ok((mut store, snapshot)) = jobs.recv() {
        let start = Instant::now();
        let result = write(&mut store, layout, &snapshot);
        let time = start.elapsed();
        // Nobody is there any more: the process ends.
        let Ok(()) = results.send((store, Done { snapshot, result, time })) else { return };
        // It fails only where the counter is full, and then it has rung.
        let _ = rustix::io::write(bell, &1_u64.to_ne_bytes());
    }
}

fn write(store: &mut Store, layout: &Layout, snapshot: &Snapshot) -> Result<(), Unwritten> {
    let Snapshot { job, state, before, name, after } = snapshot;
    let progress = Progress { job: job.digest(), step: state.step };
    for (name, bytes) in before {
        let saved = store.save(name, progress, &|out| out.write_all(bytes));
        saved.map_err(|error| Unwritten { name, error })?;
    }
    let saved = checkpoint::save_as(name, store, layout, job, state);
    saved.map_err(|error| Unwritten { name, error })?;
    // A disk that has no room for it ends no training.
    if let Some(Err(failure)) = after.as_ref().map(|after| after.save(store, progress)) {
        log::warn!("{failure}; the training goes on without it");
    }
    Ok(())
}
