//! `Strangers`: how much is written down of who was not verified. Anybody can come as often as he likes, so the first
//! ones are named, and then one in a while with the number of the others: neither a log's disk nor the pipe behind it
//! fills because of strangers.

use std::time::{Duration, Instant};

/// Strangers that are named one after the other, before it takes a while.
const NAMED_MAX: u32 = 20;
/// After so long one more is named.
const WHILE: Duration = Duration::from_secs(10);

/// Who came, as far as it was not written down.
#[derive(Debug, Default)]
pub(crate) struct Strangers {
    /// Named since the last quiet while, less those that time gave back.
    named: u32,
    /// Since when time gives back.
    since: Option<Instant>,
    others: u64,
}

impl Strangers {
    /// One more came. `None` where there is nothing to say of that one; else how many came unnamed before it.
    pub(crate) fn named(&mut self, now: Instant) -> Option<u64> {
        let since = *self.since.get_or_insert(now);
        let back = now.saturating_duration_since(since).as_secs() / WHILE.as_secs();
        let back = u32::try_from(back).unwrap_or(NAMED_MAX);
        self.named = self.named.saturating_sub(back);
        self.since = Some(since + WHILE * back);
        if self.named >= NAMED_MAX {
            self.others += 1;
            return None;
        }
        if self.named == 0 {
            self.since = Some(now);
        }
        self.named += 1;
        Some(std::mem::take(&mut self.others))
    }
}

/// What is said of others, after what is said of one.
pub(crate) fn and_others(count: u64) -> String {
    match count {
        0 => String::new(),
        count => format!(" ({count} others were not verified since the last that was named)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_are_named_then_one_in_a_while_and_nobody_is_forgotten() {
        let (mut strangers, start) = (Strangers::default(), Instant::now());
        let mut at = |seconds: u64| strangers.named(start + Duration::from_secs(seconds));
        let (mut named, mut others) = (0, 0);
        for _ in 0..1000 {
            if let Some(before) = at(0) {
                (named, others) = (named + 1, others + before);
            }
        }
        assert_eq!((named, others), (NAMED_MAX, 0));
        assert_eq!(at(9), None);
        assert_eq!(at(10), Some(981), "all that came between are counted");
        assert_eq!(at(11), None);
        assert_eq!(at(25), Some(1));
        // After a long quiet as many as at first, not more.
        let first = (0..1000).filter(|_| at(1_000_000).is_some()).count();
        assert_eq!(first, NAMED_MAX as usize);
    }

    #[test]
    fn others_are_told_where_there_are_any() {
        assert_eq!(and_others(0), "");
        assert!(and_others(7).contains("7 others"));
    }
}
