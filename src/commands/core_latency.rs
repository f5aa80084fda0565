//! How long a cache line takes from one thread to another and back: what threads that share data wait for.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kernels::Pool;

/// Times that it goes there and back.
const ROUNDS: usize = 2000;
/// The first of them, in which the other thread has to come, are not timed.
const WARM_UP: usize = ROUNDS / 10;
/// Who waits longer than this is alone.
const PATIENCE: Duration = Duration::from_millis(100);
/// Looks at the line between looks at the clock.
const SPINS: usize = 4096;
/// Of [`Line::turn`]: somebody waited in vain.
const GIVEN_UP: usize = usize::MAX;

/// The time in which a cache line goes from one thread of a pool to another and back, now: it tells whether they
/// share a last-level cache. `None` where there is no other thread, or it does not come.
pub(crate) fn round_trip(pool: &Pool) -> Option<Duration> {
    let (line, trip) = (Line::default(), AtomicU64::new(0));
    if pool.threads() > 1 {
        pool.run(2, |who| {
            let taken = line.play(who).map_or(0, |taken| taken.as_nanos() as u64);
            trip.fetch_max(taken, Ordering::Relaxed);
        });
    }
    Some(trip.into_inner()).filter(|&trip| trip > 0).map(Duration::from_nanos)
}

/// A cache line that two players write in turns.
#[repr(align(128))]
#[derive(Default)]
struct Line {
    turn: AtomicUsize,
}

impl Line {
    /// Player 0 or 1: the mean time of a round, if the other one plays too.
    fn play(&self, who: usize) -> Option<Duration> {
        let mut start = Instant::now();
        for round in 0..ROUNDS {
            if round == WARM_UP {
                start = Instant::now();
            }
            let turn = 2 * round + who;
            self.wait_for(turn)?;
            // Release and Acquire, as any data handed over would need: that is what is timed.
            self.turn.store(turn + 1, Ordering::Release);
        }
        Some(start.elapsed() / (ROUNDS - WARM_UP) as u32)
    }

    fn wait_for(&self, turn: usize) -> Option<()> {
        let mut since = None;
        loop {
            for _ in 0..SPINS {
                match self.turn.load(Ordering::Acquire) {
                    now if now == turn => return Some(()),
                    GIVEN_UP => return None,
                    _ => std::hint::spin_loop(),
                }
            }
            if since.get_or_insert_with(Instant::now).elapsed() > PATIENCE {
                self.turn.store(GIVEN_UP, Ordering::Release);
                return None;
            }
            // Both may be on one core.
            std::thread::yield_now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where others keep the cores busy, a player may wait in vain.
    fn in_time<T>(go: impl Fn() -> Option<T>) -> T {
        (0..100).find_map(|_| go()).expect("another thread comes")
    }

    #[test]
    fn the_line_goes_there_and_back_in_every_round() {
        let turns = in_time(|| {
            let line = Line::default();
            let other = || line.play(1);
            let trips = std::thread::scope(|scope| {
                let other = scope.spawn(other);
                [line.play(0), other.join().expect("no panic")]
            });
            trips.iter().all(Option::is_some).then(|| line.turn.into_inner())
        });
        assert_eq!(turns, 2 * ROUNDS);
    }

    #[test]
    fn who_plays_alone_gives_up_and_so_does_who_comes_later() {
        let line = Line::default();
        assert_eq!([line.play(0), line.play(1)], [None, None]);
        assert_eq!(line.turn.into_inner(), GIVEN_UP);
    }

    #[test]
    fn threads_of_a_pool_play_unless_there_is_one() {
        for threads in [2, 3] {
            in_time(|| round_trip(&Pool::new(threads)));
        }
        assert_eq!(round_trip(&Pool::new(1)), None);
    }
}
