//! Threads that share work: persistent, awake for a moment while they wait, then asleep.
//!
//! Work is a closure that each of them calls behind a door. Who comes by while it is open helps, and who opened
//! it waits for those inside, not for all: so a thread that sleeps, or is busy behind another door, holds
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

    /// Calls `body` here and on every thread that comes by meanwhile; here alone where it has to be, or while
    /// another caller's is being called.
    pub(super) fn run(&self, is_alone: bool, body: impl Fn(usize) + Sync) {
        let _flush = FlushDenormals::enter();
        let own = || body(0);
        match is_alone || self.threads.is_empty() {
            true => own(),
            false => self.shared.open(&self.shared.region, &body, own).unwrap_or_else(|own| own()),
        }
    }

    /// Calls `main` here and then `body`, and that beside it on every thread that comes by, before they help
    /// `main`. Where there is no thread, or another caller's is being called, `body` is run before `main`.
    pub(super) fn beside<R>(&self, body: impl Fn(usize) + Sync, main: impl FnOnce() -> R) -> R {
        let _flush = FlushDenormals::enter();
        let own = || {
            let result = catch_unwind(AssertUnwindSafe(main));
            body(0);
            result.unwrap_or_else(|panic| resume_unwind(panic))
        };
        let outcome = match self.threads.is_empty() {
            true => Err(own),
            false => self.shared.open(&self.shared.beside, &body, own),
        };
        outcome.unwrap_or_else(|own| {
            self.run(false, &body);
            own()
        })
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

/// What threads do behind a door, each with its own number; the caller's is 0.
type Body<'a> = &'a (dyn Fn(usize) + Sync);

struct Shared {
    /// Changes whenever there is something to look at.
    generation: AtomicUsize,
    stop: AtomicBool,
    beside: Door,
    region: Door,
    /// Where these threads wait for work, and where callers wait for them.
    workers: Bell,
    callers: Bell,
}

impl Shared {
    fn new() -> Self {
        Self {
            generation: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            beside: Door::new(),
            region: Door::new(),
            workers: Bell::default(),
            callers: Bell::default(),
        }
    }

    fn announce(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.workers.ring();
    }

    /// Opens a door while `own` is called, and waits for those inside; gives `own` back if the door is taken.
    fn open<R, F: FnOnce() -> R>(&self, door: &Door, body: Body, own: F) -> Result<R, F> {
        if door.taken.swap(true, Ordering::Acquire) {
            return Err(own);
        }
        // SAFETY: only the lifetime is changed: below, the door is closed again, and nobody is inside, before
        // this returns.
        let erased = unsafe { transmute::<Body, Body<'static>>(body) };
        // SAFETY: this thread has taken the door, and who had it before left it closed and nobody inside.
        unsafe { *door.body.get() = Some(erased) };
        door.inside.fetch_and(!CLOSED, Ordering::Release);
        self.announce();
        let result = catch_unwind(AssertUnwindSafe(own));
        door.inside.fetch_or(CLOSED, Ordering::Relaxed);
        self.callers.wait_until(|| door.inside.load(Ordering::Acquire) == CLOSED);
        let panic = lock(&door.panic).take();
        door.taken.store(false, Ordering::Release);
        match (result, panic) {
            (Ok(result), None) => Ok(result),
            (Err(panic), _) | (_, Some(panic)) => resume_unwind(panic),
        }
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
            for door in [&self.beside, &self.region] {
                if door.visit(who) {
                    self.callers.ring();
                }
            }
        }
    }
}

/// Of [`Door::inside`]: nobody may enter.
const CLOSED: usize = 1 << (usize::BITS - 1);

/// What a closure is called behind.
struct Door {
    /// By a caller, who alone opens and closes it.
    taken: AtomicBool,
    /// How many threads are inside, and whether it is [`CLOSED`].
    inside: AtomicUsize,
    body: UnsafeCell<Option<Body<'static>>>,
    /// Of a thread inside.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `body` is written by who has taken the door while it is closed and nobody inside, and read by those
// who came in while it was open. All else may be shared.
unsafe impl Sync for Door {}

impl Door {
    fn new() -> Self {
        Self {
            taken: AtomicBool::new(false),
            inside: AtomicUsize::new(CLOSED),
            body: UnsafeCell::new(None),
            panic: Mutex::new(None),
        }
    }

    /// Helps where it is open.
    fn visit(&self, who: usize) -> bool {
        if self.inside.load(Ordering::Relaxed) & CLOSED != 0 {
            return false;
        }
        if self.inside.fetch_add(1, Ordering::Acquire) & CLOSED == 0 {
            // SAFETY: the door was open, and the body stays until this thread has left.
            let body = unsafe { *self.body.get() };
            let outcome = catch_unwind(AssertUnwindSafe(|| body.map(|body| body(who))));
            publish_streams();
            if let Err(panic) = outcome {
                *lock(&self.panic) = Some(panic);
            }
        }
        self.inside.fetch_sub(1, Ordering::Release);
        true
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
