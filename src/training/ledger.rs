//! `receipts.json`: the heads of a job's receipts, as ps0 has made them and as each worker was told them.
//!
//! A worker keeps beside each head what it contributed. From these alone the chain over its contributions can be made
//! again, which the last receipt names. Who was away knows nothing of the rounds meanwhile: a segment ends there.

use base64ct::{Base64, Encoding};
use serde::{Deserialize, Serialize};

use crate::job::receipt::{Hash, Receipt, Share};
use protocol::{hex, unhex};

/// The file of ps0.
pub const FILE: &str = "receipts.json";
/// Form of the file.
const VERSION: u32 = 1;
const HASH_LEN: usize = size_of::<Hash>();

/// The file of a worker for a job.
pub fn file_of(worker: u16, job: &Hash) -> String {
    format!("receipts-worker{worker}-{}.json", hex(&job[..4]))
}

/// Heads of receipts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    /// Whose: ps0's own, or that of the worker of this number.
    worker: Option<u16>,
    segments: Vec<Segment>,
    last: Option<Receipt>,
}

/// Rounds that follow one another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Updates before the first of them.
    step: u64,
    /// Head of the receipt before, and the chain over the worker's contributions until then.
    before: [Hash; 2],
    lines: Vec<Line>,
    /// The chain over the worker's contributions after the last of them.
    chain: Hash,
}

/// A round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// Updates done after it.
    pub step: u64,
    /// Its steps.
    pub count: u64,
    /// Head of its receipt.
    pub head: Hash,
    /// What the worker contributed; in ps0's own ledger nothing.
    pub share: Option<Share>,
}

impl Ledger {
    /// An empty one of a worker.
    pub fn of_worker(worker: u16) -> Self {
        Self { worker: Some(worker), ..Self::default() }
    }

    /// Whose it is, if it is a worker's.
    pub fn worker(&self) -> Option<u16> {
        self.worker
    }

    /// Rounds that follow one another, in their order.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The last receipt.
    pub fn last(&self) -> Option<&Receipt> {
        self.last.as_ref()
    }

    /// All rounds.
    pub fn lines(&self) -> impl DoubleEndedIterator<Item = &Line> {
        self.segments.iter().flat_map(|segment| &segment.lines)
    }

    /// Every head that is known, with the updates after its round: also those of which nothing before is known.
    pub fn heads(&self) -> impl Iterator<Item = (u64, Hash)> {
        self.segments.iter().flat_map(|segment| {
            let lines = segment.lines.iter().map(|line| (line.step, line.head));
            let anchor = (segment.step > 0).then_some((segment.step, segment.before[0]));
            anchor.into_iter().chain(lines)
        })
    }

    /// The head after so many updates, if it is known; before the first update it is zero.
    pub fn head(&self, step: u64) -> Option<Hash> {
        let known = self.segments.iter().rev().find_map(|segment| segment.head(step));
        known.or_else(|| (step == 0).then_some([0; 32]))
    }

    /// Whether all rounds around the one that ended after so many updates are known.
    pub fn spans(&self, step: u64) -> bool {
        self.segments.iter().any(|segment| segment.step < step && step < segment.end())
    }

    /// Whether the round that follows after so many updates is known.
    pub fn goes_on_after(&self, step: u64) -> bool {
        self.segments.iter().any(|segment| (segment.step..segment.end()).contains(&step))
    }

    /// Updates after the last round, and the chain over the worker's contributions then.
    pub fn end(&self) -> (u64, Hash) {
        self.segments.last().map_or((0, [0; 32]), |last| (last.end(), last.chain))
    }

    /// Adds a receipt. One that does not follow from the last begins a segment, after its round: what it adds to a
    /// chain of which nothing is known cannot be told from what was there before.
    pub fn push(&mut self, receipt: &Receipt) {
        let step = receipt.step - receipt.count;
        let follows = step == self.end().0 && self.head(step) == Some(receipt.previous);
        if !follows {
            let part = self.worker.and_then(|worker| receipt.parts.get(usize::from(worker)));
            let chain = part.map_or([0; 32], |part| part.chain);
            self.segments.push(Segment::new(receipt.step, [receipt.head(), chain]));
        } else {
            if self.segments.is_empty() {
                self.segments.push(Segment::new(0, [[0; 32]; 2]));
            }
            let share = self.worker.and_then(|worker| receipt.share(worker)).copied();
            let (step, count, head) = (receipt.step, receipt.count, receipt.head());
            let segment = self.segments.last_mut().expect("there is one");
            segment.push(Line { step, count, head, share });
        }
        self.last = Some(receipt.clone());
    }

    /// Drops what came after `step` updates: the training goes on from there.
    pub fn cut(&mut self, step: u64) {
        self.segments.retain(|segment| segment.step <= step);
        for segment in &mut self.segments {
            let lines = std::mem::take(&mut segment.lines);
            segment.chain = segment.before[1];
            lines.into_iter().filter(|line| line.step <= step).for_each(|line| segment.push(line));
        }
        self.last = self.last.take().filter(|last| last.step <= step);
    }

    /// The file's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let segments = self.segments.iter().map(|segment| self.written(segment)).collect();
        let (worker, last) = (self.worker, self.last.clone());
        let written = Written { version: VERSION, worker, segments, last };
        serde_json::to_vec(&written).expect("plain text and numbers")
    }

    /// The ledger in these bytes.
    ///
    /// # Errors
    /// When they are none.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let written: Written = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if written.version != VERSION {
            return Err(format!("form {} is unknown", written.version));
        }
        let Written { worker, segments, last, .. } = written;
        let read = |segment: &WrittenSegment| segment.read(worker.is_some());
        let segments = segments.iter().map(read).collect::<Option<_>>();
        let segments: Vec<Segment> =
            segments.ok_or("a segment whose runs and hashes do not fit")?;
        let follows = |pair: &[Segment]| pair[0].end() < pair[1].step;
        let begins = |segment: &Segment| segment.step > 0 || segment.before == [[0; 32]; 2];
        if !segments.windows(2).all(follows) || !segments.iter().all(begins) {
            return Err("segments that do not follow from one another".into());
        }
        let ledger = Self { worker, segments, last: None };
        let is_last = |last: &Receipt| {
            ledger.end().0 == last.step && ledger.head(last.step) == Some(last.head())
        };
        match last.as_ref().is_none_or(is_last) {
            true => Ok(Self { last, ..ledger }),
            false => Err("its last receipt is not that of its last round".into()),
        }
    }

    fn written(&self, segment: &Segment) -> WrittenSegment {
        let mut runs: Vec<Run> = Vec::new();
        let mut hashes = Vec::with_capacity(2 * HASH_LEN * segment.lines.len());
        for line in &segment.lines {
            let samples = line.share.map(|share| share.samples);
            let fresh = line.share.is_some_and(|share| share.fresh);
            let run = Run { count: line.count, rounds: 1, samples, fresh };
            match runs.last_mut().filter(|last| Run { rounds: 1, ..**last } == run) {
                Some(last) => last.rounds += 1,
                None => runs.push(run),
            }
            hashes.extend_from_slice(&line.head);
            hashes.extend(line.share.iter().flat_map(|share| share.hash));
        }
        WrittenSegment {
            step: segment.step,
            before: segment.before.map(|hash| hex(&hash)),
            runs,
            hashes: Base64::encode_string(&hashes),
        }
    }
}

impl Segment {
    fn new(step: u64, before: [Hash; 2]) -> Self {
        Self { step, before, lines: Vec::new(), chain: before[1] }
    }

    fn push(&mut self, line: Line) {
        if let Some(share) = line.share {
            self.chain = share.chain(&self.chain, line.step, line.count);
        }
        self.lines.push(line);
    }

    fn end(&self) -> u64 {
        self.lines.last().map_or(self.step, |line| line.step)
    }

    fn head(&self, step: u64) -> Option<Hash> {
        // Lines are in the order of their steps.
        let at = self.lines.binary_search_by_key(&step, |line| line.step);
        let line = at.ok().map(|at| self.lines[at].head);
        line.or_else(|| (self.step == step).then_some(self.before[0]))
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    worker: Option<u16>,
    segments: Vec<WrittenSegment>,
    last: Option<Receipt>,
}

/// Rounds as the file has them: those that are alike are one run, and hashes are in base64, one after the other.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenSegment {
    step: u64,
    before: [String; 2],
    runs: Vec<Run>,
    hashes: String,
}

#[derive(Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Run {
    count: u64,
    rounds: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    samples: Option<u32>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    fresh: bool,
}

impl WrittenSegment {
    fn read(&self, is_workers: bool) -> Option<Segment> {
        let hash = |text: &String| unhex(text)?.try_into().ok();
        let bytes = Base64::decode_vec(&self.hashes).ok()?;
        let (hashes, []) = bytes.as_chunks::<HASH_LEN>() else { return None };
        let mut hashes = hashes.iter();
        let before = [hash(&self.before[0])?, hash(&self.before[1])?];
        let (mut segment, mut step) = (Segment::new(self.step, before), self.step);
        for run in &self.runs {
            if run.count == 0 || (run.samples.is_some() && !is_workers) {
                return None;
            }
            for _ in 0..run.rounds {
                step = step.checked_add(run.count)?;
                let head = *hashes.next()?;
                let share = match run.samples {
                    None => None,
                    Some(samples) => {
                        Some(Share { samples, fresh: run.fresh, hash: *hashes.next()? })
                    }
                };
                segment.push(Line { step, count: run.count, head, share });
            }
        }
        hashes.next().is_none().then_some(segment)
    }
}

/// Fuzzing entry: what parses is written again to what parses to the same, is in order, and takes the next receipt.
#[cfg(any(test, fuzzing))]
pub fn fuzz(data: &[u8]) {
    let Ok(mut ledger) = Ledger::parse(data) else { return };
    assert_eq!(Ledger::parse(&ledger.encode()).as_ref(), Ok(&ledger));
    let steps: Vec<u64> = ledger.lines().map(|line| line.step).collect();
    assert!(steps.is_sorted_by(|a, b| a < b), "in order, each once");
    for (step, head) in ledger.heads() {
        assert_eq!(ledger.head(step), Some(head));
    }
    let (end, _) = ledger.end();
    let all = ledger.lines().count();
    if end < u64::MAX {
        let shares = vec![None; usize::from(ledger.worker().unwrap_or(0)) + 1];
        let next =
            Receipt::next(ledger.last().cloned().as_ref(), [1; 32], end + 1, 1, [2; 32], shares);
        ledger.push(&next);
        assert_eq!((ledger.end().0, ledger.last()), (end + 1, Some(&next)));
    }
    ledger.cut(end);
    assert!(ledger.lines().count() == all && ledger.end().0 <= end);
    ledger.cut(0);
    assert_eq!(ledger.lines().count(), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_of_the_fuzz_target_replay() {
        let seeds = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/ledger");
        for entry in std::fs::read_dir(seeds).expect("seeds") {
            fuzz(&std::fs::read(entry.expect("entry").path()).expect("a seed"));
        }
    }

    /// Receipts of so many rounds of two steps, in whose third worker 1 is left out.
    fn receipts(rounds: u64) -> Vec<Receipt> {
        let mut made: Vec<Receipt> = Vec::new();
        for round in 0..rounds {
            let share = |worker: u8| Share {
                samples: 8,
                fresh: round == 4,
                hash: [worker ^ (round as u8); 32],
            };
            let shares = vec![Some(share(0)), (round != 2).then(|| share(1))];
            let next = Receipt::next(made.last(), [1; 32], 2 * round + 2, 2, [2; 32], shares);
            made.push(next);
        }
        made
    }

    #[test]
    fn a_ledger_reads_as_it_is_written_and_goes_on_where_it_was_cut() {
        let receipts = receipts(9);
        for worker in [None, Some(0), Some(1)] {
            let mut ledger = Ledger { worker, ..Ledger::default() };
            receipts.iter().for_each(|receipt| ledger.push(receipt));
            assert_eq!(ledger.segments.len(), 1);
            assert_eq!(Ledger::parse(&ledger.encode()).as_ref(), Ok(&ledger));
            assert_eq!(ledger.head(18), Some(receipts[8].head()));
            assert_eq!((ledger.head(0), ledger.head(3)), (Some([0; 32]), None));
            let whole = ledger.clone();
            ledger.cut(6);
            assert_eq!(ledger.lines().count(), 3);
            receipts[3..].iter().for_each(|receipt| ledger.push(receipt));
            assert_eq!(ledger, whole);
            // Away for two rounds.
            ledger.cut(6);
            receipts[5..].iter().for_each(|receipt| ledger.push(receipt));
            assert_eq!((ledger.segments.len(), ledger.lines().count()), (2, 6));
            assert_eq!(ledger.head(12), Some(receipts[5].head()));
            let chain =
                worker.map_or([0; 32], |worker: u16| receipts[8].parts[usize::from(worker)].chain);
            assert_eq!(ledger.end(), (18, chain));
            assert_eq!(Ledger::parse(&ledger.encode()).as_ref(), Ok(&ledger));
        }
    }

    #[test]
    fn a_thousand_rounds_are_below_the_promised_size() {
        for worker in [None, Some(1)] {
            let mut ledger = Ledger { worker, ..Ledger::default() };
            receipts(1000).iter().for_each(|receipt| ledger.push(receipt));
            let len = ledger.encode().len();
            assert!(len < 100_000, "{len} bytes");
        }
    }

    #[test]
    fn what_does_not_fit_is_no_ledger() {
        let mut ledger = Ledger::of_worker(0);
        receipts(3).iter().for_each(|receipt| ledger.push(receipt));
        let text = String::from_utf8(ledger.encode()).expect("text");
        for (from, to) in [
            ("\"version\":1", "\"version\":2"),
            ("\"rounds\":3", "\"rounds\":2"),
            ("\"rounds\":3", "\"rounds\":4"),
            ("\"rounds\":3", "\"rounds\":18446744073709551615"),
            ("\"count\":2", "\"count\":0"),
            ("\"count\":2", "\"count\":18446744073709551615"),
            ("\"worker\":0,", ""),
            ("\"samples\":8", "\"samples\":-1"),
            ("\"step\":0", "\"step\":2"),
        ] {
            let changed = text.replacen(from, to, 1);
            assert_ne!(changed, text, "{from}");
            assert!(Ledger::parse(changed.as_bytes()).is_err(), "{to}");
        }
        let receipts = receipts(3);
        let other = Receipt { parameters: [3; 32], ..receipts[2].clone() };
        for last in [receipts[1].clone(), other] {
            let changed = Ledger { last: Some(last), ..ledger.clone() };
            assert!(Ledger::parse(&changed.encode()).is_err());
        }
        for step in [0, 5, 6] {
            let mut more = ledger.clone();
            more.segments.push(Segment::new(step, [[1; 32]; 2]));
            more.last = None;
            assert!(Ledger::parse(&more.encode()).is_err(), "a segment from step {step}");
        }
    }
}
