//! How long a cache line takes from one thread to another and back: what threads that share data wait for.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

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

/// A cache line that two players write in turns.
#[repr(align(128))]
#[derive(Default)]
pub(super) struct Line {
    turn: AtomicUsize,
}

impl Line {
    /// Player 0 or 1: the mean time of a round, if the other one plays too.
    pub(super) fn play(&self, who: usize) -> Option<Duration> {
        let mut start = Instant::now();
        for round in 0..ROUNDS {
            if round == WARM_UP {
                start = Instant::now();
            }
            let turn = 2 * round + who;
            self.wait_for(turn)?;
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
    use std::time::Duration;

    use super::super::Pool;
    use super::*;

    #[test]
    fn a_line_goes_to_and_fro_between_two_threads_and_never_with_one() {
        for threads in [2, 3] {
            let pool = Pool::new(threads);
            // Where others keep the cores busy, a thread may wait in vain.
            let trip = (0..100).find_map(|_| pool.round_trip()).expect("another thread comes");
            assert!(trip > Duration::ZERO, "{threads} threads");
        }
        assert_eq!(Pool::new(1).round_trip(), None);
        assert_eq!(Line::default().play(0), None);
    }
}
