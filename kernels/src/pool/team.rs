//! Threads that share work: persistent, awake for a moment while they wait, then asleep.
//!
//! A region is a closure that each of them calls. It has a door: who comes by while it is open helps, and who
//! opened it waits for those inside, not for all. So a thread that sleeps, or does a job beside, holds
//! nobody up.
//!
//! The `unsafe` of this file erases lifetimes of what threads share with a caller, who returns only after all
//! of them have let go of it.

use std::any::Any;
use std::cell::UnsafeCell;
use std::mem::transmute;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;

use super::denormals::FlushDenormals;

/// The threads beside the calling one.
pub(super) struct Team {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Team {
    /// So many threads.
    ///
    /// # Panics
    /// If a thread cannot be started.
    pub(super) fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared::new());
        let threads = (1..=threads)
            .map(|index| {
                let shared = Arc::clone(&shared);
                std::thread::Builder::new()
                    .name(format!("kernel{index}"))
                    .spawn(move || shared.serve(index))
                    .expect("start a kernel thread")
            })
            .collect();
        Self { shared, threads }
    }

    pub(super) fn len(&self) -> usize {
        self.threads.len()
    }

    /// Calls `body` here and on every thread that comes by meanwhile; here alone while another region is open,
    /// or where it has to be.
    pub(super) fn run(&self, is_alone: bool, body: impl Fn(usize) + Sync) {
        let _flush = FlushDenormals::enter();
        let shared = &*self.shared;
        if is_alone || self.threads.is_empty() || shared.taken.swap(true, Ordering::Acquire) {
            return body(0);
        }
        // SAFETY: only the lifetime is changed; `close` returns after every thread has left the region, and
        // no other one enters it.
        let region = unsafe { transmute::<Body, Body<'static>>(&body) };
        shared.open(region);
        let own = catch_unwind(AssertUnwindSafe(|| body(0)));
        shared.close();
        let failed = shared.failed.swap(false, Ordering::Relaxed);
        shared.taken.store(false, Ordering::Release);
        if let Err(panic) = own {
            resume_unwind(panic);
        }
        assert!(!failed, "a kernel thread panicked");
    }

    /// Runs `main` here and `job` on the first thread that is free meanwhile; or here: after `main` if none
    /// was, before it if there is none.
    pub(super) fn beside<R>(&self, job: impl FnOnce() + Send, main: impl FnOnce() -> R) -> R {
        let (job, panic) = (Mutex::new(Some(job)), Mutex::new(None));
        let body = || {
            let _flush = FlushDenormals::enter();
            let Some(job) = lock(&job).take() else { return };
            *lock(&panic) = catch_unwind(AssertUnwindSafe(job)).err();
            publish_streams();
        };
        let finished = AtomicBool::new(false);
        // SAFETY: only lifetimes are changed; the job is taken back, or finished, before this returns.
        let posted = !self.threads.is_empty()
            && self.shared.post(unsafe {
                Job {
                    body: transmute::<Erased, Erased<'static>>(&body),
                    finished: transmute::<&AtomicBool, &'static AtomicBool>(&finished),
                }
            });
        if !posted {
            body();
            resume_if_some(&panic);
            return main();
        }
        let result = catch_unwind(AssertUnwindSafe(main));
        match self.shared.take_job(|job| std::ptr::eq(job.finished, &raw const finished)) {
            Some(_) => body(),
            None => self.shared.callers.wait_until(|| finished.load(Ordering::Acquire)),
        }
        let result = result.unwrap_or_else(|panic| resume_unwind(panic));
        resume_if_some(&panic);
        result
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.announce();
        for thread in self.threads.drain(..) {
            // A panic of the thread was already reported by `run`.
            let _ = thread.join();
        }
    }
}

/// Stores past the caches that this thread made are seen by others before what it stores next.
fn publish_streams() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 has the instruction.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}

/// What threads do in a region, each with its own number; the caller's is 0.
type Body<'a> = &'a (dyn Fn(usize) + Sync);

type Erased<'a> = &'a (dyn Fn() + Sync);

#[derive(Clone, Copy)]
struct Job {
    body: Erased<'static>,
    finished: &'static AtomicBool,
}

/// Of `door`: nobody may enter the region.
const CLOSED: usize = 1 << (usize::BITS - 1);

struct Shared {
    /// Changes whenever there is something to look at.
    generation: AtomicUsize,
    stop: AtomicBool,
    /// Held by who runs a region.
    taken: AtomicBool,
    /// How many threads are inside the region, and whether it is [`CLOSED`].
    door: AtomicUsize,
    region: UnsafeCell<Option<Body<'static>>>,
    failed: AtomicBool,
    /// Whether there may be a job.
    has_job: AtomicBool,
    job: Mutex<Option<Job>>,
    /// Where these threads wait for work, and where callers wait for them.
    workers: Bell,
    callers: Bell,
}

// SAFETY: `region` is written by who holds `taken` while the door is closed and nobody inside, and read by
// those who came in while it was open. All else may be shared.
unsafe impl Sync for Shared {}

impl Shared {
    fn new() -> Self {
        Self {
            generation: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            taken: AtomicBool::new(false),
            door: AtomicUsize::new(CLOSED),
            region: UnsafeCell::new(None),
            failed: AtomicBool::new(false),
            has_job: AtomicBool::new(false),
            job: Mutex::new(None),
            workers: Bell::default(),
            callers: Bell::default(),
        }
    }

    fn announce(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.workers.ring();
    }

    fn open(&self, region: Body<'static>) {
        // SAFETY: `taken` is held, and `close` left the door closed and nobody inside.
        unsafe { *self.region.get() = Some(region) };
        self.door.fetch_and(!CLOSED, Ordering::Release);
        self.announce();
    }

    /// Closes the region and waits for those inside.
    fn close(&self) {
        self.door.fetch_or(CLOSED, Ordering::Relaxed);
        self.callers.wait_until(|| self.door.load(Ordering::Acquire) == CLOSED);
    }

    /// Helps where the door is open.
    fn visit(&self, who: usize) {
        if self.door.fetch_add(1, Ordering::Acquire) & CLOSED == 0 {
            // SAFETY: the door was open, and the region stays until this thread has left.
            let region = unsafe { *self.region.get() };
            let outcome = catch_unwind(AssertUnwindSafe(|| region.map(|body| body(who))));
            publish_streams();
            if outcome.is_err() {
                self.failed.store(true, Ordering::Relaxed);
            }
        }
        self.door.fetch_sub(1, Ordering::Release);
        self.callers.ring();
    }

    /// Leaves a job for a thread to find, unless there is one already.
    fn post(&self, job: Job) -> bool {
        let mut slot = lock(&self.job);
        if slot.is_some() {
            return false;
        }
        *slot = Some(job);
        self.has_job.store(true, Ordering::Relaxed);
        drop(slot);
        self.announce();
        true
    }

    /// The job that waits, if it is such.
    fn take_job(&self, is_such: impl Fn(&Job) -> bool) -> Option<Job> {
        let mut slot = lock(&self.job);
        let job = slot.take_if(|job| is_such(job));
        self.has_job.store(slot.is_some(), Ordering::Relaxed);
        job
    }

    fn serve(&self, who: usize) {
        let _flush = FlushDenormals::enter();
        let mut seen = 0;
        loop {
            self.workers.wait_until(|| self.generation.load(Ordering::Acquire) != seen);
            seen = self.generation.load(Ordering::Acquire);
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            if self.has_job.load(Ordering::Relaxed)
                && let Some(job) = self.take_job(|_| true)
            {
                (job.body)();
                job.finished.store(true, Ordering::Release);
                self.callers.ring();
            }
            self.visit(who);
        }
    }
}

/// Looks at what it waits for this often before going to sleep: some tens of microseconds.
pub(super) const SPINS: usize = 4000;

/// Where threads wait for what others change.
#[derive(Default)]
struct Bell {
    asleep: AtomicUsize,
    lock: Mutex<()>,
    rung: Condvar,
}

impl Bell {
    fn wait_until(&self, is_ready: impl Fn() -> bool) {
        for _ in 0..SPINS {
            if is_ready() {
                return;
            }
            std::hint::spin_loop();
        }
        let mut guard = lock(&self.lock);
        self.asleep.fetch_add(1, Ordering::Relaxed);
        // Either this thread sees the change now, or `ring` sees that it sleeps.
        fence(Ordering::SeqCst);
        while !is_ready() {
            guard = self.rung.wait(guard).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        self.asleep.fetch_sub(1, Ordering::Relaxed);
    }

    /// Lets those who sleep look again, after a change.
    fn ring(&self) {
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) > 0 {
            // Who is about to sleep does so first.
            drop(lock(&self.lock));
            self.rung.notify_all();
        }
    }
}

fn resume_if_some(panic: &Mutex<Option<Box<dyn Any + Send>>>) {
    if let Some(panic) = lock(panic).take() {
        resume_unwind(panic);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
