//! The thread pool: persistent threads that share the tasks of a region, and disjoint views for them.
//!
//! A region is `tasks` calls of one closure. Since no task reads what another one of its region writes, the
//! order in which threads take them cannot change a result.
//!
//! The `unsafe` of this file hands one mutable buffer to the tasks as pieces that do not overlap.

use std::sync::Arc;

use ndarray::ArrayViewMut4;

use super::disjoint::{DisjointBlocks, DisjointChunks};
use super::sync::{AtomicU64, Ordering};
use super::team::Team;

/// A fixed set of threads for the kernels. The calling thread is one of them; clones share the others.
///
/// ```
/// let pool = kernels::Pool::new(2);
/// let mut squares = [0; 100];
/// pool.for_each_chunk(&mut squares, 8, |index, chunk| {
///     for (offset, value) in chunk.iter_mut().enumerate() {
///         *value = (index * 8 + offset).pow(2);
///     }
/// });
/// assert_eq!(squares[99], 99 * 99);
/// ```
#[derive(Clone)]
pub struct Pool {
    team: Arc<Team>,
}

impl Pool {
    /// A pool of `threads` threads, this one included.
    ///
    /// # Panics
    /// If `threads` is 0 or a thread cannot be started.
    pub fn new(threads: usize) -> Self {
        assert!(threads > 0, "a pool needs a thread");
        Self { team: Arc::new(Team::new(threads - 1)) }
    }

    /// How many threads work in a region.
    pub fn threads(&self) -> usize {
        self.team.len() + 1
    }

    /// Calls `task(0)` to `task(tasks - 1)`, each once, on the threads of the pool.
    pub fn run(&self, tasks: usize, task: impl Fn(usize) + Sync) {
        self.run_with(tasks, || (), |(), index| task(index));
    }

    /// Runs `main`, and beside it pieces of other work, each by a call that says whether there was one. Other
    /// threads do what is `urgent` before they help in a region, which goes on without them; who would wait for
    /// others does what is `spare`. Whether anybody does is not certain: `main` has to see that all is done.
    pub fn beside<R>(
        &self,
        urgent: impl Fn() -> bool + Sync,
        spare: impl Fn() -> bool + Sync,
        main: impl FnOnce() -> R,
    ) -> R {
        self.team.beside(urgent, spare, main)
    }

    /// As [`Pool::run`], with a state that each thread makes once and its tasks share one after the other.
    fn run_with<S>(
        &self,
        tasks: usize,
        state: impl Fn() -> S + Sync,
        task: impl Fn(&mut S, usize) + Sync,
    ) {
        self.run_tasks(Tasks::new(tasks, self.threads()), state, task);
    }

    fn run_tasks<S>(
        &self,
        tasks: Tasks,
        state: impl Fn() -> S + Sync,
        task: impl Fn(&mut S, usize) + Sync,
    ) {
        self.team.run(tasks.is_single, |who| tasks.each(who, &state, &task));
    }

    /// Splits `data` into chunks of `len` (the last may be shorter) and calls `task(index, chunk)`.
    pub fn for_each_chunk<T: Send>(
        &self,
        data: &mut [T],
        len: usize,
        task: impl Fn(usize, &mut [T]) + Sync,
    ) {
        let chunks = DisjointChunks::new(data, len);
        // SAFETY: `run` calls each index once, so each chunk is borrowed once.
        self.run(chunks.count(), |index| task(index, unsafe { chunks.piece(index) }));
    }

    /// As [`Pool::for_each_chunk`] over two buffers that split into the same number of chunks.
    pub(crate) fn for_each_chunk2<T: Send, U: Send>(
        &self,
        first: DisjointChunks<T>,
        second: DisjointChunks<U>,
        task: impl Fn(usize, &mut [T], &mut [U]) + Sync,
    ) {
        assert_eq!(first.count(), second.count(), "buffers split differently");
        self.run(first.count(), |index| {
            // SAFETY: `run` calls each index once, so each chunk is borrowed once.
            let (a, b) = unsafe { (first.piece(index), second.piece(index)) };
            task(index, a, b);
        });
    }

    /// As [`Pool::for_each_chunk`] over three buffers, with a state that each thread makes once.
    pub(crate) fn for_each_chunk3_with<T: Send, U: Send, V: Send, S>(
        &self,
        first: DisjointChunks<T>,
        second: DisjointChunks<U>,
        third: DisjointChunks<V>,
        state: impl Fn() -> S + Sync,
        task: impl Fn(&mut S, usize, &mut [T], &mut [U], &mut [V]) + Sync,
    ) {
        assert_eq!(
            [first.count(); 2],
            [second.count(), third.count()],
            "buffers split differently"
        );
        self.run_with(first.count(), state, |state, index| {
            // SAFETY: `run_with` calls each index once, so each chunk is borrowed once.
            let (a, b, c) =
                unsafe { (first.piece(index), second.piece(index), third.piece(index)) };
            task(state, index, a, b, c);
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
        let blocks = DisjointBlocks::new(data, block);
        self.for_each_block_with(blocks, || (), |(), origin, block| task(origin, block));
    }

    /// As [`Pool::for_each_block`], with a state that each thread makes once.
    pub(crate) fn for_each_block_with<T: Send, S>(
        &self,
        blocks: DisjointBlocks<T>,
        state: impl Fn() -> S + Sync,
        task: impl Fn(&mut S, [usize; 4], ArrayViewMut4<T>) + Sync,
    ) {
        self.run_with(blocks.count(), state, |state, index| {
            let origin = blocks.origin(index);
            // SAFETY: `run_with` calls each index once, so each block is borrowed once.
            task(state, origin, unsafe { blocks.piece(origin) });
        });
    }

    /// As [`Pool::for_each_block_with`], with a part of `scratch` besides for each task: as
    /// many tasks run at a time as there are parts.
    pub(crate) fn for_each_block_in<T: Send, U: Send, S>(
        &self,
        blocks: DisjointBlocks<T>,
        scratch: DisjointChunks<U>,
        state: impl Fn() -> S + Sync,
        task: impl Fn(&mut S, [usize; 4], ArrayViewMut4<T>, &mut [U]) + Sync,
    ) {
        let tasks = |threads| Tasks::new(blocks.count(), threads);
        self.run_in(tasks, scratch, state, |state, index, scratch| {
            let origin = blocks.origin(index);
            // SAFETY: `run_in` calls each index once, so each block is borrowed once.
            task(state, origin, unsafe { blocks.piece(origin) }, scratch);
        });
    }

    /// As [`Pool::for_each_block2`], with a part of `scratch` besides for each task, as
    /// [`Pool::for_each_block_in`].
    pub(crate) fn for_each_block2_in<T: Send, U: Send, V: Send, S>(
        &self,
        first: DisjointBlocks<T>,
        second: DisjointBlocks<U>,
        scratch: DisjointChunks<V>,
        cost: impl Fn([usize; 4]) -> usize,
        state: impl Fn() -> S + Sync,
        task: impl Fn(&mut S, [usize; 4], ArrayViewMut4<T>, ArrayViewMut4<U>, &mut [V]) + Sync,
    ) {
        assert!((0..4).all(|axis| first.grid(axis) == second.grid(axis)), "grids differ");
        let cost = |index| cost(first.origin(index));
        let tasks = |threads| Tasks::weighted(first.count(), threads, cost);
        self.run_in(tasks, scratch, state, |state, index, scratch| {
            let origin = first.origin(index);
            // SAFETY: `run_in` calls each index once, so each block is borrowed once.
            let (a, b) = unsafe { (first.piece(origin), second.piece(second.origin(index))) };
            task(state, origin, a, b, scratch);
        });
    }

    /// As [`Pool::run_with`], with a part of `scratch` for each task.
    fn run_in<U: Send, S>(
        &self,
        tasks: impl Fn(usize) -> Tasks,
        scratch: DisjointChunks<U>,
        state: impl Fn() -> S + Sync,
        task: impl Fn(&mut S, usize, &mut [U]) + Sync,
    ) {
        let parts = scratch.whole().min(self.threads());
        assert!(parts > 0, "no part of the scratch is whole");
        let tasks = tasks(parts);
        self.team.run(parts < 2 || tasks.is_single, |who| {
            if who < parts {
                // SAFETY: in a region each thread has its own number, so each part is borrowed once at a time.
                let scratch = unsafe { scratch.piece(who) };
                tasks.each(who, &state, |state, index| task(state, index, scratch));
            }
        });
    }

    /// As [`Pool::for_each_block`] over two arrays that are cut into the same grid; the origin is the
    /// first one's. Threads begin with blocks of about the same `cost` each, and make a state for their tasks.
    pub(crate) fn for_each_block2<T: Send, U: Send, S>(
        &self,
        first: DisjointBlocks<T>,
        second: DisjointBlocks<U>,
        cost: impl Fn([usize; 4]) -> usize,
        state: impl Fn() -> S + Sync,
        task: impl Fn(&mut S, [usize; 4], ArrayViewMut4<T>, ArrayViewMut4<U>) + Sync,
    ) {
        assert!((0..4).all(|axis| first.grid(axis) == second.grid(axis)), "grids differ");
        let cost = |index| cost(first.origin(index));
        let tasks = Tasks::weighted(first.count(), self.threads(), cost);
        self.run_tasks(tasks, state, |state, index| {
            let origin = first.origin(index);
            // SAFETY: `run_tasks` calls each index once, so each block is borrowed once.
            let (a, b) = unsafe { (first.piece(origin), second.piece(second.origin(index))) };
            task(state, origin, a, b);
        });
    }
}

/// Ranges of tasks that threads begin with; of more threads, some share one. They lie on the caller's stack: 512 bytes.
const RANGES: usize = 64;

/// The numbers of a region's tasks. Each thread works through a range of its own, the same in all regions of as
/// many tasks: so it meets in its caches what it left there. Then it takes what is last in the ranges of
/// others.
struct Tasks {
    /// Begin (in the low half) and end of what is left of each.
    ranges: [AtomicU64; RANGES],
    used: usize,
    /// Whether there is one at most.
    is_single: bool,
}

impl Tasks {
    /// As many for each thread.
    fn new(tasks: usize, threads: usize) -> Self {
        let used = threads.min(RANGES);
        let at = |range: usize| (range as u64 * tasks as u64 / used as u64) as usize;
        Self::between(tasks, used, at)
    }

    /// For each thread about the same cost.
    fn weighted(tasks: usize, threads: usize, cost: impl Fn(usize) -> usize) -> Self {
        let used = threads.min(RANGES);
        let all: usize = (0..tasks).map(&cost).sum();
        let mut begins = [0; RANGES + 1];
        let (mut task, mut spent) = (0, 0);
        for (range, begin) in begins.iter_mut().enumerate().take(used).skip(1) {
            // It belongs to the range in which most of it is.
            while task < tasks && (2 * spent + cost(task)) * used < 2 * all * range {
                spent += cost(task);
                task += 1;
            }
            *begin = task;
        }
        begins[used] = tasks;
        Self::between(tasks, used, |range| begins[range])
    }

    /// Ranges that begin, and end, at these.
    fn between(tasks: usize, used: usize, at: impl Fn(usize) -> usize) -> Self {
        assert!(u32::try_from(tasks).is_ok(), "fewer tasks than 2^32");
        let range = |i: usize| if i < used { at(i) as u64 | (at(i + 1) as u64) << 32 } else { 0 };
        let is_single = tasks < 2;
        Self { ranges: std::array::from_fn(|i| AtomicU64::new(range(i))), used, is_single }
    }

    /// Calls `task` with each number that no other thread takes, and a state if there is any.
    fn each<S>(&self, who: usize, state: impl Fn() -> S, mut task: impl FnMut(&mut S, usize)) {
        let Some(first) = self.take(who) else { return };
        let mut state = state();
        task(&mut state, first);
        while let Some(index) = self.take(who) {
            task(&mut state, index);
        }
    }

    fn take(&self, who: usize) -> Option<usize> {
        let mut ranges = (0..self.used).map(|other| &self.ranges[(who + other) % self.used]);
        let own = ranges.next().and_then(|range| split(range, |[begin, end]| [begin + 1, end]));
        let [index, _] = own.or_else(|| {
            let [_, end] =
                ranges.find_map(|range| split(range, |[begin, end]| [begin, end - 1]))?;
            Some([end - 1, end])
        })?;
        Some(index as usize)
    }
}

/// What was left of a range, of which something is taken.
///
/// Relaxed: both ends are one word, so each number is taken once whatever the order; that what a task wrote is seen
/// by the caller is the door's part ([`Team::run`]).
fn split(range: &AtomicU64, rest: impl Fn([u64; 2]) -> [u64; 2]) -> Option<[u64; 2]> {
    let parts = |range: u64| [range & u64::from(u32::MAX), range >> 32];
    let less = |range: u64| {
        let [begin, end] = parts(range);
        let [rest_begin, rest_end] = (begin < end).then(|| rest([begin, end]))?;
        Some(rest_begin | rest_end << 32)
    };
    range.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).ok().map(parts)
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::{AtomicBool, AtomicUsize};
    use std::thread::yield_now;
    use std::time::{Duration, Instant};

    use ndarray::Array4;

    use super::*;
    use crate::parallel::team::SPINS;

    /// As many, or a few for miri, which interprets.
    fn rounds(many: usize) -> usize {
        if cfg!(miri) { 3 } else { many }
    }

    #[test]
    fn every_task_runs_once_for_any_number_of_threads() {
        for threads in [1, 2, 3, 7] {
            let pool = Pool::new(threads);
            for tasks in [0, 1, 2, 5, rounds(1000)] {
                let mut hits = vec![0_u8; tasks];
                pool.for_each_chunk(&mut hits, 1, |_, hit| hit[0] += 1);
                assert!(hits.iter().all(|&hit| hit == 1), "{threads} threads, {tasks} tasks");
            }
        }
    }

    #[test]
    fn threads_begin_with_shares_that_differ_by_a_task_at_most() {
        let costs = [1, 1, 4, 4, 6, 6, 6, 9, 9, 9, 0, 0, 2];
        for (tasks, threads) in (0..=costs.len()).flat_map(|tasks| (1..6).map(move |t| (tasks, t)))
        {
            let Tasks { ranges, used, .. } = Tasks::weighted(tasks, threads, |task| costs[task]);
            let ranges = ranges[..used].iter().map(|range| range.load(Ordering::Relaxed));
            let all: usize = costs[..tasks].iter().sum();
            let mut end = 0;
            for range in ranges {
                let begin = (range & u64::from(u32::MAX)) as usize;
                assert_eq!(begin, end, "{tasks} tasks, {threads} threads");
                end = (range >> 32) as usize;
                let cost: usize = costs[begin..end].iter().sum();
                assert!(cost.abs_diff(all / used) <= 9, "{cost} of {all} for one of {used}");
            }
            assert_eq!(end, tasks);
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
            let target = DisjointBlocks::new(array.view_mut(), [1, 1, 2, 6]);
            pool.for_each_block_in(
                target,
                DisjointChunks::new(&mut scratch, 8),
                || (),
                |(), [a, b, c, _], mut block, part| {
                    let mark = (100 * a + 10 * b + c) as u32;
                    part.fill(mark);
                    yield_now();
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
        for round in 0..rounds(20_000) {
            for _ in 0..SPINS + round % 512 {
                std::hint::spin_loop();
            }
            pool.for_each_chunk(&mut counts, 1, |_, count| count[0] += 1);
        }
        assert_eq!(counts, [rounds(20_000); 2]);
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

    /// Takes one of what is left.
    fn take(left: &AtomicUsize) -> bool {
        left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
    }

    fn until(is_so: impl Fn() -> bool) {
        let start = Instant::now();
        while !is_so() {
            assert!(start.elapsed() < Duration::from_secs(60), "waited in vain");
            yield_now();
        }
    }

    #[test]
    fn no_piece_beside_regions_goes_on_after_them() {
        for threads in [1, 2, 3] {
            let pool = Pool::new(threads);
            let (mut hits, mut regions) = ([0; 64], 0);
            for round in 0..rounds(2000) {
                let [urgent, spare, done] = [5, 20, 0].map(AtomicUsize::new);
                let piece = |left: &AtomicUsize| {
                    let is_taken = take(left);
                    done.fetch_add(usize::from(is_taken), Ordering::SeqCst);
                    is_taken
                };
                let main = || {
                    for _ in 0..round % 4 {
                        pool.for_each_chunk(&mut hits, 1, |_, hit| hit[0] += 1);
                        regions += 1;
                    }
                };
                pool.beside(|| piece(&urgent), || piece(&spare), main);
                let left = [urgent, spare].map(AtomicUsize::into_inner);
                assert_eq!(left[0] + left[1] + done.into_inner(), 25);
                assert!(threads > 1 || left == [5, 20], "a thread alone waits for nobody");
            }
            assert_eq!(hits, [regions; 64]);
        }
    }

    #[test]
    fn threads_do_urgent_pieces_first_and_spare_ones_where_they_would_wait() {
        let pool = Pool::new(2);
        let [urgent, spare] = [3, 5].map(AtomicUsize::new);
        let is_done = |left: &AtomicUsize| left.load(Ordering::SeqCst) == 0;
        let main = || {
            until(|| is_done(&urgent));
            // Who has the other task, or none, would wait.
            pool.run(2, |index| {
                if index == 0 {
                    until(|| is_done(&spare));
                }
            });
        };
        pool.beside(|| take(&urgent), || is_done(&urgent) && take(&spare), main);
    }

    /// It is ended by a region that begins after it did: were it waited for, it would give up.
    #[test]
    fn regions_go_on_while_a_thread_is_at_an_urgent_piece() {
        let pool = Pool::new(2);
        let [begun, ended] = [0, 1].map(|_| AtomicBool::new(false));
        let urgent = || {
            let is_first = !begun.swap(true, Ordering::SeqCst);
            until(|| ended.load(Ordering::SeqCst));
            is_first
        };
        let main = || {
            until(|| begun.load(Ordering::SeqCst));
            let mut counts = [0; 100];
            pool.for_each_chunk(&mut counts, 1, |_, count| count[0] += 1);
            assert_eq!(counts, [1; 100]);
            ended.store(true, Ordering::SeqCst);
        };
        pool.beside(urgent, || false, main);
    }

    #[test]
    fn regions_of_several_callers_and_inside_each_other_are_whole() {
        let pool = Pool::new(3);
        let add = |counts: &[AtomicUsize]| {
            pool.run(counts.len(), |index| {
                counts[index].fetch_add(1, Ordering::Relaxed);
            });
        };
        let counts: [AtomicUsize; 32] = std::array::from_fn(|_| AtomicUsize::new(0));
        let both = || {
            let left = AtomicUsize::new(2);
            let piece = || {
                let is_taken = take(&left);
                if is_taken {
                    add(&counts);
                }
                is_taken
            };
            pool.beside(piece, piece, || {
                add(&counts);
                while piece() {}
            });
        };
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| (0..rounds(1000)).for_each(|_| both()));
            }
        });
        pool.run(5, |_| add(&counts));
        assert!(counts.into_iter().all(|count| count.into_inner() == 9 * rounds(1000) + 5));
    }

    #[test]
    fn a_panic_of_a_piece_or_beside_one_reaches_the_caller() {
        let pool = Pool::new(2);
        let begun = AtomicBool::new(false);
        let urgent = || {
            assert!(begun.swap(true, Ordering::SeqCst), "the first piece");
            false
        };
        let main = || until(|| begun.load(Ordering::SeqCst));
        let piece = catch_unwind(AssertUnwindSafe(|| pool.beside(urgent, || false, main)));
        let main =
            catch_unwind(AssertUnwindSafe(|| pool.beside(|| false, || false, || panic!("main"))));
        assert!(piece.is_err() && main.is_err());
        let mut counts = [0; 8];
        pool.for_each_chunk(&mut counts, 1, |_, count| count[0] += 1);
        assert_eq!(counts, [1; 8]);
    }

    #[test]
    #[cfg_attr(miri, ignore = "it has no control register of SSE")]
    fn denormals_are_flushed_inside_and_kept_outside() {
        let tiny = std::hint::black_box(f32::MIN_POSITIVE);
        let half = std::hint::black_box(0.5_f32);
        let mut inside = [1.0_f32; 4];
        Pool::new(2).for_each_chunk(&mut inside, 1, |_, value| value[0] = tiny * half);
        assert_eq!(inside, [0.0; 4]);
        assert!(tiny * half > 0.0);
    }
}
