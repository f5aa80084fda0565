//! The thread pool: persistent threads that share one list of tasks, and disjoint views for them.
//!
//! A region is `tasks` calls of one closure. Threads claim task numbers from a counter; since no task
//! reads what another one of its region writes, the order of claims cannot change a result. Waiting
//! threads spin for a moment, then sleep.
//!
//! The `unsafe` of this file is of two kinds: a closure's lifetime is erased while a region runs
//! (`run` returns only after every thread has left it), and one mutable buffer is handed to the tasks
//! as pieces that do not overlap.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

use ndarray::{ArrayViewMut4, ShapeBuilder};

/// A fixed set of threads for the kernels. The calling thread is one of them.
pub struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    /// A pool of `threads` threads, this one included.
    ///
    /// # Panics
    /// If `threads` is 0 or a thread cannot be started.
    pub fn new(threads: usize) -> Self {
        assert!(threads > 0, "a pool needs a thread");
        let shared = Arc::new(Shared::default());
        let threads = (1..threads)
            .map(|index| {
                let shared = Arc::clone(&shared);
                std::thread::Builder::new()
                    .name(format!("kernel{index}"))
                    .spawn(move || shared.serve())
                    .expect("start a kernel thread")
            })
            .collect();
        Self { shared, threads }
    }

    /// How many threads work in a region.
    pub fn threads(&self) -> usize {
        self.threads.len() + 1
    }

    /// Calls `task(0)` to `task(tasks - 1)`, each once, on the threads of the pool.
    pub fn run(&self, tasks: usize, task: impl Fn(usize) + Sync) {
        let _flush = FlushDenormals::enter();
        if self.threads.is_empty() || tasks < 2 {
            return (0..tasks).for_each(task);
        }
        let body: &(dyn Fn(usize) + Sync) = &task;
        // SAFETY: only the lifetime is changed, and `run` does not return before `busy` is 0, that is
        // before every thread has dropped its copy.
        let body: &'static (dyn Fn(usize) + Sync) = unsafe { std::mem::transmute(body) };
        let shared = &*self.shared;
        shared.next.store(0, Ordering::Relaxed);
        shared.busy.store(self.threads.len(), Ordering::Relaxed);
        shared.publish(|published| published.region = Some(Region { body, tasks }));
        let own = catch_unwind(AssertUnwindSafe(|| claim(&shared.next, tasks, body)));
        shared.wait_idle();
        if let Err(panic) = own {
            resume_unwind(panic);
        }
        assert!(!shared.failed.swap(false, Ordering::AcqRel), "a kernel thread panicked");
    }

    /// As [`Pool::run`], with a state that each thread makes once and its tasks share one after the other.
    fn run_with<S>(
        &self,
        tasks: usize,
        state: impl Fn() -> S + Sync,
        task: impl Fn(&mut S, usize) + Sync,
    ) {
        let next = AtomicUsize::new(0);
        self.run(self.threads().min(tasks), |_| {
            let mut state = state();
            claim(&next, tasks, |index| task(&mut state, index));
        });
    }

    /// Splits `data` into chunks of `len` (the last may be shorter) and calls `task(index, chunk)`.
    pub fn for_each_chunk<T: Send>(
        &self,
        data: &mut [T],
        len: usize,
        task: impl Fn(usize, &mut [T]) + Sync,
    ) {
        let chunks = Chunks::new(data, len);
        // SAFETY: `run` calls each index once, so each chunk is borrowed once.
        self.run(chunks.count(), |index| task(index, unsafe { chunks.piece(index) }));
    }

    /// As [`Pool::for_each_chunk`] over two buffers that split into the same number of chunks.
    pub fn for_each_chunk2<T: Send, U: Send>(
        &self,
        first: (&mut [T], usize),
        second: (&mut [U], usize),
        task: impl Fn(usize, &mut [T], &mut [U]) + Sync,
    ) {
        let (first, second) = (Chunks::new(first.0, first.1), Chunks::new(second.0, second.1));
        assert_eq!(first.count(), second.count(), "buffers split differently");
        self.run(first.count(), |index| {
            // SAFETY: `run` calls each index once, so each chunk is borrowed once.
            let (a, b) = unsafe { (first.piece(index), second.piece(index)) };
            task(index, a, b);
        });
    }

    /// Cuts `data` into blocks of shape `block` (smaller at the far edges) and calls
    /// `task(origin, block)` with the index of each block's first element.
    pub fn for_each_block<T: Send>(
        &self,
        data: ArrayViewMut4<T>,
        block: [usize; 4],
        task: impl Fn([usize; 4], ArrayViewMut4<T>) + Sync,
    ) {
        self.for_each_block_with((data, block), || (), |(), origin, block| task(origin, block));
    }

    /// As [`Pool::for_each_block`], with a state that each thread makes once.
    pub fn for_each_block_with<T: Send, S>(
        &self,
        (data, block): (ArrayViewMut4<T>, [usize; 4]),
        state: impl Fn() -> S + Sync,
        task: impl Fn(&mut S, [usize; 4], ArrayViewMut4<T>) + Sync,
    ) {
        let blocks = Blocks::new(data, block);
        self.run_with(blocks.count(), state, |state, index| {
            let origin = blocks.origin(index);
            // SAFETY: `run_with` calls each index once, so each block is borrowed once.
            task(state, origin, unsafe { blocks.piece(origin) });
        });
    }

    /// As [`Pool::for_each_block_with`], with a part of `scratch` besides for each task, of `len` values: as
    /// many tasks run at a time as there are parts.
    pub fn for_each_block_in<T: Send, U: Send, S>(
        &self,
        (data, block): (ArrayViewMut4<T>, [usize; 4]),
        scratch: (&mut [U], usize),
        state: impl Fn() -> S + Sync,
        task: impl Fn(&mut S, [usize; 4], ArrayViewMut4<T>, &mut [U]) + Sync,
    ) {
        let blocks = Blocks::new(data, block);
        self.run_in(blocks.count(), scratch, state, |state, index, scratch| {
            let origin = blocks.origin(index);
            // SAFETY: `run_in` calls each index once, so each block is borrowed once.
            task(state, origin, unsafe { blocks.piece(origin) }, scratch);
        });
    }

    /// As [`Pool::for_each_block_in`] over two arrays that are cut into the same grid; the origin is the
    /// first one's.
    pub fn for_each_block2_in<T: Send, U: Send, V: Send, S>(
        &self,
        first: (ArrayViewMut4<T>, [usize; 4]),
        second: (ArrayViewMut4<U>, [usize; 4]),
        scratch: (&mut [V], usize),
        state: impl Fn() -> S + Sync,
        task: impl Fn(&mut S, [usize; 4], ArrayViewMut4<T>, ArrayViewMut4<U>, &mut [V]) + Sync,
    ) {
        let (first, second) = (Blocks::new(first.0, first.1), Blocks::new(second.0, second.1));
        assert!((0..4).all(|axis| first.grid(axis) == second.grid(axis)), "grids differ");
        self.run_in(first.count(), scratch, state, |state, index, scratch| {
            let origin = first.origin(index);
            // SAFETY: `run_in` calls each index once, so each block is borrowed once.
            let (a, b) = unsafe { (first.piece(origin), second.piece(second.origin(index))) };
            task(state, origin, a, b, scratch);
        });
    }

    /// As [`Pool::run_with`], with a part of `scratch` for each task.
    fn run_in<U: Send, S>(
        &self,
        tasks: usize,
        (scratch, len): (&mut [U], usize),
        state: impl Fn() -> S + Sync,
        task: impl Fn(&mut S, usize, &mut [U]) + Sync,
    ) {
        let next = AtomicUsize::new(0);
        let parts = (scratch.len() / len).min(self.threads());
        assert!(parts > 0, "scratch of {} values, parts of {len}", scratch.len());
        self.for_each_chunk(&mut scratch[..parts * len], len, |_, scratch| {
            let mut state = state();
            claim(&next, tasks, |index| task(&mut state, index, scratch));
        });
    }

    /// As [`Pool::for_each_block`] over two arrays that are cut into the same grid; the origin is the
    /// first one's. Each thread makes a state for its tasks.
    pub fn for_each_block2<T: Send, U: Send, S>(
        &self,
        first: (ArrayViewMut4<T>, [usize; 4]),
        second: (ArrayViewMut4<U>, [usize; 4]),
        state: impl Fn() -> S + Sync,
        task: impl Fn(&mut S, [usize; 4], ArrayViewMut4<T>, ArrayViewMut4<U>) + Sync,
    ) {
        let (first, second) = (Blocks::new(first.0, first.1), Blocks::new(second.0, second.1));
        assert!((0..4).all(|axis| first.grid(axis) == second.grid(axis)), "grids differ");
        self.run_with(first.count(), state, |state, index| {
            let origin = first.origin(index);
            // SAFETY: `run_with` calls each index once, so each block is borrowed once.
            let (a, b) = unsafe { (first.piece(origin), second.piece(second.origin(index))) };
            task(state, origin, a, b);
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.publish(|published| published.stop = true);
        for thread in self.threads.drain(..) {
            // A panic of the thread was already reported by `run`.
            let _ = thread.join();
        }
    }
}

#[derive(Clone, Copy)]
struct Region {
    body: &'static (dyn Fn(usize) + Sync),
    tasks: usize,
}

#[derive(Default)]
struct Published {
    region: Option<Region>,
    stop: bool,
}

#[derive(Default)]
struct Shared {
    published: Mutex<Published>,
    wake: Condvar,
    idle: Condvar,
    /// Changes with each region; what waiting threads watch.
    generation: AtomicUsize,
    next: AtomicUsize,
    busy: AtomicUsize,
    failed: AtomicBool,
}

/// Looks at an atomic this often before going to sleep: some tens of microseconds.
const SPINS: usize = 4000;

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Published> {
        self.published.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Makes a change and wakes the threads. The generation moves under the lock: a thread that has just
    /// looked at it then waits before it is woken.
    fn publish(&self, change: impl FnOnce(&mut Published)) {
        let mut published = self.lock();
        change(&mut published);
        self.generation.fetch_add(1, Ordering::Release);
        drop(published);
        self.wake.notify_all();
    }

    fn serve(&self) {
        let _flush = FlushDenormals::enter();
        let mut seen = 0;
        while let Some(region) = self.await_region(&mut seen) {
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                claim(&self.next, region.tasks, region.body);
            }));
            if outcome.is_err() {
                self.failed.store(true, Ordering::Release);
            }
            if self.busy.fetch_sub(1, Ordering::AcqRel) == 1 {
                let _guard = self.lock();
                self.idle.notify_one();
            }
        }
    }

    fn await_region(&self, seen: &mut usize) -> Option<Region> {
        for _ in 0..SPINS {
            if self.generation.load(Ordering::Acquire) != *seen {
                break;
            }
            std::hint::spin_loop();
        }
        let mut published = self.lock();
        while self.generation.load(Ordering::Acquire) == *seen {
            published = self.wake.wait(published).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        *seen = self.generation.load(Ordering::Acquire);
        if published.stop { None } else { published.region }
    }

    fn wait_idle(&self) {
        for _ in 0..SPINS {
            if self.busy.load(Ordering::Acquire) == 0 {
                return;
            }
            std::hint::spin_loop();
        }
        let mut guard = self.lock();
        while self.busy.load(Ordering::Acquire) != 0 {
            guard = self.idle.wait(guard).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
    }
}

/// Calls `task` with the numbers below `tasks` that no other thread takes from `next`.
fn claim(next: &AtomicUsize, tasks: usize, mut task: impl FnMut(usize)) {
    loop {
        let index = next.fetch_add(1, Ordering::Relaxed);
        if index >= tasks {
            return publish_streams();
        }
        task(index);
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

/// A slice as equal chunks that tasks borrow by number.
struct Chunks<T> {
    start: *mut T,
    total: usize,
    len: usize,
}

// SAFETY: a `Chunks` only hands out disjoint `&mut [T]`, which may cross threads when `T: Send`.
unsafe impl<T: Send> Sync for Chunks<T> {}

impl<T> Chunks<T> {
    fn new(data: &mut [T], len: usize) -> Self {
        assert!(len > 0, "chunks of nothing");
        Self { start: data.as_mut_ptr(), total: data.len(), len }
    }

    fn count(&self) -> usize {
        self.total.div_ceil(self.len)
    }

    /// # Safety
    /// Each index at most once while the pieces live.
    #[allow(clippy::mut_from_ref)]
    unsafe fn piece(&self, index: usize) -> &mut [T] {
        assert!(index < self.count());
        let first = index * self.len;
        let len = self.len.min(self.total - first);
        // SAFETY: `first + len <= total`, and pieces of different indexes do not overlap.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(first), len) }
    }
}

/// A view as a grid of blocks that tasks borrow by origin.
struct Blocks<T> {
    start: *mut T,
    shape: [usize; 4],
    strides: [usize; 4],
    block: [usize; 4],
}

// SAFETY: a `Blocks` only hands out disjoint mutable views, which may cross threads when `T: Send`.
unsafe impl<T: Send> Sync for Blocks<T> {}

impl<T> Blocks<T> {
    fn new(mut data: ArrayViewMut4<T>, block: [usize; 4]) -> Self {
        assert!(block.iter().all(|&len| len > 0), "blocks of nothing");
        let strides = [0, 1, 2, 3]
            .map(|axis| usize::try_from(data.strides()[axis]).expect("strides are not negative"));
        Self { start: data.as_mut_ptr(), shape: data.dim().into(), strides, block }
    }

    fn grid(&self, axis: usize) -> usize {
        self.shape[axis].div_ceil(self.block[axis])
    }

    fn count(&self) -> usize {
        (0..4).map(|axis| self.grid(axis)).product()
    }

    fn origin(&self, index: usize) -> [usize; 4] {
        let mut rest = index;
        let mut origin = [0; 4];
        for axis in (0..4).rev() {
            origin[axis] = rest % self.grid(axis) * self.block[axis];
            rest /= self.grid(axis);
        }
        origin
    }

    /// # Safety
    /// Each origin at most once while the pieces live, and only origins of this grid.
    unsafe fn piece(&self, origin: [usize; 4]) -> ArrayViewMut4<'_, T> {
        let mut offset = 0;
        let mut shape = [0; 4];
        for axis in 0..4 {
            assert!(origin[axis] < self.shape[axis]);
            offset += origin[axis] * self.strides[axis];
            shape[axis] = self.block[axis].min(self.shape[axis] - origin[axis]);
        }
        // SAFETY: the block lies inside the view it was cut from (origin + shape <= its shape, same
        // strides), and blocks of different origins do not overlap.
        unsafe {
            ArrayViewMut4::from_shape_ptr(shape.strides(self.strides), self.start.add(offset))
        }
    }
}

/// Treats denormal numbers as zero on this thread while it runs kernels: they cost up to a hundred
/// times a normal operation, and gradients are full of them late in a training.
struct FlushDenormals {
    #[cfg(target_arch = "x86_64")]
    before: u32,
}

impl FlushDenormals {
    #[cfg(target_arch = "x86_64")]
    fn enter() -> Self {
        /// MXCSR bits 15 (flush to zero) and 6 (denormals are zero).
        const FLUSH: u32 = 0x8040;
        let mut before = 0_u32;
        // SAFETY: SSE is part of x86-64; stores the control register to a local.
        unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &raw mut before, options(nostack)) };
        let during = before | FLUSH;
        // SAFETY: only flush bits are added, and `drop` restores the register on this thread before
        // code outside the kernels runs.
        unsafe { std::arch::asm!("ldmxcsr [{}]", in(reg) &raw const during, options(nostack)) };
        Self { before }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn enter() -> Self {
        Self {}
    }
}

#[cfg(target_arch = "x86_64")]
impl Drop for FlushDenormals {
    fn drop(&mut self) {
        // SAFETY: restores what `enter` found.
        unsafe {
            std::arch::asm!("ldmxcsr [{}]", in(reg) &raw const self.before, options(nostack))
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array4;

    #[test]
    fn every_task_runs_once_for_any_number_of_threads() {
        for threads in [1, 2, 3, 7] {
            let pool = Pool::new(threads);
            for tasks in [0, 1, 2, 5, 1000] {
                let mut hits = vec![0_u8; tasks];
                pool.for_each_chunk(&mut hits, 1, |_, hit| hit[0] += 1);
                assert!(hits.iter().all(|&hit| hit == 1), "{threads} threads, {tasks} tasks");
            }
        }
    }

    #[test]
    fn blocks_cover_the_array_once_with_their_origins() {
        let pool = Pool::new(3);
        let mut array = Array4::<f32>::zeros((2, 3, 5, 7));
        pool.for_each_block(array.view_mut(), [1, 2, 2, 3], |origin, mut block| {
            for ((a, b, c, d), value) in block.indexed_iter_mut() {
                let [oa, ob, oc, od] = origin;
                *value += (1000 * (oa + a) + 100 * (ob + b) + 10 * (oc + c) + od + d) as f32;
            }
        });
        for ((a, b, c, d), &value) in array.indexed_iter() {
            assert_eq!(value, (1000 * a + 100 * b + 10 * c + d) as f32);
        }
    }

    #[test]
    fn no_two_tasks_have_the_same_part_of_the_scratch_at_once() {
        for (threads, parts) in [(1, 3), (3, 3), (4, 2), (2, 1)] {
            let pool = Pool::new(threads);
            let mut array = Array4::<u32>::zeros((3, 4, 5, 6));
            let mut scratch = vec![0; 8 * parts + 5];
            let target = (array.view_mut(), [1, 1, 2, 6]);
            pool.for_each_block_in(
                target,
                (&mut scratch, 8),
                || (),
                |(), [a, b, c, _], mut block, part| {
                    let mark = (100 * a + 10 * b + c) as u32;
                    part.fill(mark);
                    std::thread::yield_now();
                    assert!(part.len() == 8 && part.iter().all(|&value| value == mark));
                    block.mapv_inplace(|value| value + 1);
                },
            );
            assert!(array.iter().all(|&value| value == 1), "{threads} threads, {parts} parts");
        }
    }

    /// The pauses are about as long as threads look for a region before they sleep.
    #[test]
    fn no_thread_misses_a_region_while_it_goes_to_sleep() {
        let pool = Pool::new(2);
        let mut counts = [0_usize; 2];
        for round in 0..20_000 {
            for _ in 0..SPINS + round % 512 {
                std::hint::spin_loop();
            }
            pool.for_each_chunk(&mut counts, 1, |_, count| count[0] += 1);
        }
        assert_eq!(counts, [20_000; 2]);
    }

    #[test]
    fn a_panic_in_a_task_reaches_the_caller() {
        let pool = Pool::new(2);
        let caught = catch_unwind(AssertUnwindSafe(|| {
            pool.run(64, |index| assert!(index != 33, "task 33"));
        }));
        assert!(caught.is_err());
        let count = AtomicUsize::new(0);
        pool.run(8, |_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.into_inner(), 8);
    }

    #[test]
    fn denormals_are_flushed_inside_and_kept_outside() {
        let tiny = std::hint::black_box(f32::MIN_POSITIVE);
        let half = std::hint::black_box(0.5_f32);
        let mut inside = [1.0_f32; 4];
        Pool::new(2).for_each_chunk(&mut inside, 1, |_, value| value[0] = tiny * half);
        assert_eq!(inside, [0.0; 4]);
        assert!(tiny * half > 0.0);
    }
}
