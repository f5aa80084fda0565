//! Threads that share work: persistent, awake for a moment while they wait, then asleep.
//!
//! Work is a closure that each of them calls behind a door. Who comes by while it is open helps, and who opened
//! it waits for those inside, not for all: so a thread that sleeps, or is busy behind another door, holds
//! nobody up.
//!
//! The `unsafe` of this file erases lifetimes of what threads share with a caller, who returns only after all
//! of them have let go of it.

use std::any::Any;
use std::mem::transmute;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use super::denormals::FlushDenormals;
use super::sync::{
    Arc, AtomicBool, AtomicUsize, Builder, Condvar, JoinHandle, Mutex, MutexGuard, Ordering,
    UnsafeCell, fence, spin_loop,
};

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
                Builder::new()
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
        if is_alone || self.threads.is_empty() {
            return own();
        }
        let body = |who| {
            body(who);
            true
        };
        self.shared.open(&self.shared.region, &body, own).unwrap_or_else(|own| own());
    }

    /// Calls `main` here. Threads that come by meanwhile call `urgent` until there is no such piece, before they
    /// help; who would wait, also here, calls `spare` again and again. Where there is no thread, or another
    /// caller's are being called, nobody does either.
    pub(super) fn beside<R>(
        &self,
        urgent: impl Fn() -> bool + Sync,
        spare: impl Fn() -> bool + Sync,
        main: impl FnOnce() -> R,
    ) -> R {
        let _flush = FlushDenormals::enter();
        if self.threads.is_empty() {
            return main();
        }
        let Shared { beside, idle, .. } = &*self.shared;
        let hurry = |_| {
            let mut is_done = false;
            while urgent() {
                is_done = true;
            }
            is_done
        };
        let fill = |_| spare();
        let own = || self.shared.open(idle, &fill, main).unwrap_or_else(|main| main());
        self.shared.open(beside, &hurry, own).unwrap_or_else(|own| own())
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        // Relaxed: `announce` releases it.
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.announce();
        for thread in self.threads.drain(..) {
            // A panic of the thread was already reported by `run`.
            let _ = thread.join();
        }
    }
}

/// Stores past the caches that this thread made are seen by others before what it stores next. Without it, leaving a
/// door (an ordinary store) could be seen before them, and the caller would read what was there before.
fn publish_streams() {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: every x86-64 has the instruction.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}

/// What threads do behind a door, each with its own number, and whether there was anything to do; the caller's
/// number is 0.
type Body<'a> = &'a (dyn Fn(usize) -> bool + Sync);

struct Shared {
    /// Changes whenever there is something to look at.
    generation: AtomicUsize,
    stop: AtomicBool,
    beside: Door,
    region: Door,
    /// For who would wait.
    idle: Door,
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
            idle: Door::new(),
            workers: Bell::new(),
            callers: Bell::new(),
        }
    }

    fn announce(&self) {
        // Released by it: a door that was opened, or `stop`. Who saw the new generation without those would go to sleep
        // and miss them.
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.workers.ring();
    }

    /// Opens a door while `own` is called, and waits for those inside; gives `own` back if the door is taken.
    fn open<R, F: FnOnce() -> R>(&self, door: &Door, body: Body, own: F) -> Result<R, F> {
        // Acquires what the caller before released: else the body could be replaced while one of its threads reads it.
        if door.taken.swap(true, Ordering::Acquire) {
            return Err(own);
        }
        // SAFETY: only the lifetime is changed: below, the door is closed again, and nobody is inside, before
        // this returns.
        let erased = unsafe { transmute::<Body, Body<'static>>(body) };
        // SAFETY: this thread has taken the door, and who had it before left it closed and nobody inside.
        door.body.with_mut(|place| unsafe { *place = Some(erased) });
        // Releases the body: who enters with Acquire reads this one and no older, whose closure is gone.
        door.inside.fetch_and(!CLOSED, Ordering::Release);
        self.announce();
        let result = catch_unwind(AssertUnwindSafe(own));
        // Relaxed: who enters is told by the same word, whose changes have one order; nothing else is handed over here.
        door.inside.fetch_or(CLOSED, Ordering::Relaxed);
        // Acquires what those who left released: their results, which the caller reads next.
        let is_empty = || door.inside.load(Ordering::Acquire) == CLOSED;
        self.callers.wait_until(is_empty, || self.visit(&self.idle, 0));
        let panic = lock(&door.panic).take();
        // Releases what this caller read and wrote of the door to the next one that takes it.
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
            let is_changed = || self.generation.load(Ordering::Acquire) != seen;
            self.workers.wait_until(is_changed, || self.visit(&self.idle, who));
            seen = self.generation.load(Ordering::Acquire);
            // Written before the generation that this thread has just acquired.
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            for door in [&self.beside, &self.region] {
                self.visit(door, who);
            }
        }
    }

    /// Helps behind a door where it is open; says whether there was anything to do.
    fn visit(&self, door: &Door, who: usize) -> bool {
        let outcome = door.visit(who);
        if outcome.is_some() {
            self.callers.ring();
        }
        outcome == Some(true)
    }
}

/// Of [`Door::inside`]: nobody may enter.
const CLOSED: usize = 1 << (usize::BITS - 1);

/// What a closure is called behind. Who waits at one does not slow down who passes another.
#[repr(align(128))]
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

    /// Helps where it is open; whether there was anything to do then.
    fn visit(&self, who: usize) -> Option<bool> {
        // Only a look, which leaves the cache line shared: most doors are closed when a thread comes by.
        if self.inside.load(Ordering::Relaxed) & CLOSED != 0 {
            return None;
        }
        let mut is_done = false;
        // Acquires the body that the opening released: with less, an older closure could be called.
        if self.inside.fetch_add(1, Ordering::Acquire) & CLOSED == 0 {
            // SAFETY: the door was open, and the body stays until this thread has left.
            let body = self.body.with(|place| unsafe { *place });
            let outcome = catch_unwind(AssertUnwindSafe(|| body.map(|body| body(who))));
            publish_streams();
            match outcome {
                Ok(outcome) => is_done = outcome == Some(true),
                Err(panic) => *lock(&self.panic) = Some(panic),
            }
        }
        // Releases what the body wrote: the caller waits for this and then reads the results.
        self.inside.fetch_sub(1, Ordering::Release);
        Some(is_done)
    }
}

/// Looks at what it waits for this often before going to sleep: some tens of microseconds, as long as sleeping and
/// being woken take (more in a virtual machine, where a halt leaves it). Regions of a step follow one another faster
/// than that: `hfl bench --scaling` falls where threads sleep between them.
pub(super) const SPINS: usize = if cfg!(all(test, loom)) { 1 } else { 4000 };

/// Where threads wait for what others change.
struct Bell {
    asleep: AtomicUsize,
    lock: Mutex<()>,
    rung: Condvar,
}

impl Bell {
    fn new() -> Self {
        Self { asleep: AtomicUsize::new(0), lock: Mutex::new(()), rung: Condvar::new() }
    }

    /// Calls `meanwhile` as long as that finds something to do.
    fn wait_until(&self, is_ready: impl Fn() -> bool, meanwhile: impl Fn() -> bool) {
        let mut spins = 0;
        while spins < SPINS {
            if is_ready() {
                return;
            }
            if meanwhile() {
                spins = 0;
            } else {
                spin_loop();
                spins += 1;
            }
        }
        let mut guard = lock(&self.lock);
        self.asleep.fetch_add(1, Ordering::Relaxed);
        // Either this thread sees the change now, or `ring` sees that it sleeps. Both write one word and then read the
        // other's: without a fence on both sides each could read what was there before, and nobody would wake this one.
        fence(Ordering::SeqCst);
        while !is_ready() {
            guard = self.rung.wait(guard).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        self.asleep.fetch_sub(1, Ordering::Relaxed);
    }

    /// Lets those who sleep look again, after a change.
    fn ring(&self) {
        // The other side of the fence in `wait_until`.
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

/// Every interleaving of a caller and a thread with at most three preemptions, of two callers with one (Musuvathi and
/// Qadeer, "Iterative context bounding for systematic testing of multithreaded programs", 2007), with the reorderings
/// that C11 allows.
#[cfg(all(test, loom))]
mod model {
    use super::*;

    fn explore(preemptions: usize, body: impl Fn() + Sync + Send + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(preemptions);
        builder.check(body);
    }

    /// A result of each thread, which loom watches: a read that nothing orders behind the write fails the model.
    struct Results([UnsafeCell<usize>; 2]);

    // SAFETY: each thread writes the cell of its own number, and the caller reads when all have left; loom checks it.
    unsafe impl Sync for Results {}

    impl Results {
        fn new() -> Self {
            Self([0, 0].map(UnsafeCell::new))
        }

        fn add(&self, who: usize) {
            // SAFETY: the cell of this thread.
            self.0[who].with_mut(|place| unsafe { *place += 1 });
        }

        fn get(&self, who: usize) -> usize {
            // SAFETY: nobody is inside any more.
            self.0[who].with(|place| unsafe { *place })
        }
    }

    #[test]
    fn a_caller_returns_when_all_inside_have_left_and_sees_what_they_wrote() {
        explore(3, || {
            let team = Team::new(1);
            for _ in 0..2 {
                region(&team);
            }
        });
    }

    /// A task, done by whoever comes first. Its place is new in each region: a thread that still calls the last one's
    /// closure is seen. One may come by twice, and finds nothing left then.
    fn region(team: &Team) {
        let (results, left) = (Results::new(), AtomicUsize::new(1));
        team.run(false, |who| {
            if left.swap(0, Ordering::Relaxed) == 1 {
                results.add(who);
            }
        });
        assert_eq!(results.get(0) + results.get(1), 1);
    }

    #[test]
    fn two_callers_do_not_meet_behind_one_door() {
        explore(1, || {
            let team = Arc::new(Team::new(1));
            let other = Arc::clone(&team);
            let caller = loom::thread::spawn(move || region(&other));
            region(&team);
            caller.join().expect("no panic");
        });
    }

    #[test]
    fn a_thread_that_goes_to_sleep_is_woken_to_end() {
        explore(3, || drop(Team::new(1)));
    }

    #[test]
    fn pieces_beside_a_region_end_with_it() {
        explore(3, || {
            let team = Team::new(1);
            let results = Results::new();
            let left = AtomicUsize::new(1);
            let urgent = || {
                let is_taken = left.swap(0, Ordering::Relaxed) == 1;
                if is_taken {
                    results.add(1);
                }
                is_taken
            };
            team.beside(urgent, || false, || ());
            assert_eq!(results.get(1) + left.load(Ordering::Relaxed), 1);
        });
    }
}
