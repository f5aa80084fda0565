//! `Receipt`: what a round was made of, chained to the round before: who contributed which bytes, and the parameters
//! that came of it.
//!
//! The head of a chain stands for all of it: who keeps heads notices a round that is told otherwise later. Each worker
//! has a chain of its own inside, over its contributions alone, so that the last receipt of a job proves to it that
//! all of them are in, whatever the others sent.

use ring::digest::{Context, SHA256};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use protocol::{hex, unhex};

/// A hash of 32 bytes.
pub type Hash = [u8; 32];

/// Most workers of a receipt: as many as a job has.
const WORKERS_MAX: usize = super::WORKERS_MAX as usize;
const HEAD_LABEL: &[u8] = b"hfl-receipt-v1";
const CHAIN_LABEL: &[u8] = b"hfl-receipt-worker-v1";
/// Bytes before the parts of workers, and of each.
const HEADER_LEN: usize = 32 + 32 + 8 + 8 + 32 + 2;
const PART_LEN: usize = 1 + 4 + 32 + 32;
/// Flags of a part.
const IS_IN: u8 = 1;
const IS_FRESH: u8 = 2;

/// The receipt of a round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Head of the receipt before, zeros for the first.
    pub previous: Hash,
    /// Digest of the job.
    pub job: Hash,
    /// Updates done after the round.
    pub step: u64,
    /// Steps of the round.
    pub count: u64,
    /// Hash of the parameters after it, as they travel.
    pub parameters: Hash,
    /// What each worker had to do with it, in the order of their numbers.
    pub parts: Vec<Part>,
}

/// What a worker had to do with a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// What it contributed, unless it was left out.
    pub share: Option<Share>,
    /// The chain over all that it contributed so far.
    pub chain: Hash,
}

/// What a worker contributed to a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Its samples.
    pub samples: u32,
    /// Nothing that rounding left in earlier rounds is in it.
    pub fresh: bool,
    /// Hash of its values, as they travel.
    pub hash: Hash,
}

impl Receipt {
    /// The receipt of the round after `before`, which ends with `step` updates.
    pub fn next(
        before: Option<&Self>,
        job: Hash,
        step: u64,
        count: u64,
        parameters: Hash,
        shares: Vec<Option<Share>>,
    ) -> Self {
        let chained = |(worker, share): (usize, Option<Share>)| {
            let chain = before.and_then(|before| Some(before.parts.get(worker)?.chain));
            let chain = chain.unwrap_or_default();
            Part { share, chain: share.map_or(chain, |share| share.chain(&chain, step, count)) }
        };
        Self {
            previous: before.map_or([0; 32], Self::head),
            job,
            step,
            count,
            parameters,
            parts: shares.into_iter().enumerate().map(chained).collect(),
        }
    }

    /// What stands for this receipt and all before it.
    pub fn head(&self) -> Hash {
        let mut context = Context::new(&SHA256);
        context.update(HEAD_LABEL);
        context.update(&self.encode());
        context.finish().as_ref().try_into().expect("SHA-256 has 32 bytes")
    }

    /// Whether it is of no round: it vouches for the parameters of a checkpoint from before there were receipts.
    pub fn is_of_before(&self) -> bool {
        let nobody = Part { share: None, chain: [0; 32] };
        self.previous == [0; 32]
            && self.count == self.step
            && self.parts.iter().all(|part| *part == nobody)
    }

    /// What a worker contributed.
    pub fn share(&self, worker: u16) -> Option<&Share> {
        self.parts.get(usize::from(worker))?.share.as_ref()
    }

    /// Samples of all workers.
    pub fn samples(&self) -> u64 {
        self.parts.iter().flat_map(|part| part.share).map(|share| u64::from(share.samples)).sum()
    }

    /// Its bytes: numbers little-endian, each field of a fixed length.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_LEN + self.parts.len() * PART_LEN);
        bytes.extend_from_slice(&self.previous);
        bytes.extend_from_slice(&self.job);
        bytes.extend_from_slice(&self.step.to_le_bytes());
        bytes.extend_from_slice(&self.count.to_le_bytes());
        bytes.extend_from_slice(&self.parameters);
        bytes.extend_from_slice(&(self.parts.len() as u16).to_le_bytes());
        for Part { share, chain } in &self.parts {
            let Share { samples, hash, .. } = share.unwrap_or(Share::NONE);
            bytes.push(share.map_or(0, Share::flags));
            bytes.extend_from_slice(&samples.to_le_bytes());
            bytes.extend_from_slice(&hash);
            bytes.extend_from_slice(chain);
        }
        bytes
    }

    /// The receipt of exactly these bytes; `None` when they are none, or not as [`Receipt::encode`] writes them.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (header, parts) = bytes.split_at_checked(HEADER_LEN)?;
        let hash = |at: usize| header[at..at + 32].try_into().ok();
        let number = |at: usize| Some(u64::from_le_bytes(header[at..at + 8].try_into().ok()?));
        let workers = usize::from(u16::from_le_bytes(header[HEADER_LEN - 2..].try_into().ok()?));
        if workers > WORKERS_MAX || parts.len() != workers * PART_LEN {
            return None;
        }
        let receipt = Self {
            previous: hash(0)?,
            job: hash(32)?,
            step: number(64)?,
            count: number(72)?,
            parameters: hash(80)?,
            parts: parts.chunks_exact(PART_LEN).map(Part::parse).collect::<Option<_>>()?,
        };
        let is_one = (1..=receipt.step).contains(&receipt.count) && receipt.encode() == bytes;
        is_one.then_some(receipt)
    }
}

impl Part {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let (&flags, rest) = bytes.split_first()?;
        let (samples, rest) = rest.split_first_chunk::<4>()?;
        let (hash, chain) = rest.split_first_chunk::<32>()?;
        let share = Share {
            samples: u32::from_le_bytes(*samples),
            fresh: flags & IS_FRESH != 0,
            hash: *hash,
        };
        let share = (flags & IS_IN != 0).then_some(share);
        Some(Self { share, chain: chain.try_into().ok()? })
    }
}

impl Share {
    const NONE: Self = Self { samples: 0, fresh: false, hash: [0; 32] };

    /// The chain over a worker's contributions, with this one to the round that ended with `step` updates.
    pub fn chain(&self, before: &Hash, step: u64, count: u64) -> Hash {
        let mut context = Context::new(&SHA256);
        context.update(CHAIN_LABEL);
        context.update(before);
        context.update(&step.to_le_bytes());
        context.update(&count.to_le_bytes());
        context.update(&[self.flags()]);
        context.update(&self.samples.to_le_bytes());
        context.update(&self.hash);
        context.finish().as_ref().try_into().expect("SHA-256 has 32 bytes")
    }

    fn flags(self) -> u8 {
        IS_IN | if self.fresh { IS_FRESH } else { 0 }
    }
}

impl Serialize for Receipt {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        hex(&self.encode()).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Receipt {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let read = unhex(&text).and_then(|bytes| Self::parse(&bytes));
        // One spelling: what is signed as text stands for one receipt.
        read.filter(|receipt| hex(&receipt.encode()) == text)
            .ok_or_else(|| de::Error::custom("no receipt"))
    }
}

/// Fuzzing entry: what parses is the one spelling of a receipt, as bytes and as text.
#[cfg(any(test, fuzzing))]
pub fn fuzz(data: &[u8]) {
    if let Some(receipt) = Receipt::parse(data) {
        assert_eq!(receipt.encode(), data);
        let text = serde_json::to_string(&receipt).expect("text");
        assert_eq!(serde_json::from_str::<Receipt>(&text).expect("the same"), receipt);
        assert!(receipt.count <= receipt.step && receipt.parts.len() <= WORKERS_MAX);
        let next = Receipt::next(Some(&receipt), receipt.job, u64::MAX, 1, [0; 32], Vec::new());
        assert_eq!(next.previous, receipt.head());
    }
    if let Ok(receipt) = serde_json::from_slice::<Receipt>(data) {
        assert_eq!(Receipt::parse(&receipt.encode()), Some(receipt));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_of_the_fuzz_target_replay() {
        let seeds = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/receipts");
        for entry in std::fs::read_dir(seeds).expect("seeds") {
            fuzz(&std::fs::read(entry.expect("entry").path()).expect("a seed"));
        }
    }

    fn share(seed: u8) -> Share {
        Share { samples: u32::from(seed) + 1, fresh: seed == 2, hash: [seed; 32] }
    }

    fn two() -> [Receipt; 2] {
        let first = Receipt::next(None, [9; 32], 3, 3, [8; 32], vec![Some(share(1)), None]);
        let shares = vec![Some(share(2)), Some(share(3))];
        let second = Receipt::next(Some(&first), [9; 32], 5, 2, [7; 32], shares);
        [first, second]
    }

    #[test]
    fn every_byte_counts_and_nothing_else_is_one() {
        for receipt in two() {
            let bytes = receipt.encode();
            assert_eq!(Receipt::parse(&bytes).as_ref(), Some(&receipt));
            for at in 0..bytes.len() {
                for bit in 0..8 {
                    let mut changed = bytes.clone();
                    changed[at] ^= 1 << bit;
                    let read = Receipt::parse(&changed);
                    assert!(read.is_none_or(|read| read.head() != receipt.head()), "byte {at}");
                }
                assert_eq!(Receipt::parse(&bytes[..at]), None);
            }
            assert_eq!(Receipt::parse(&[&bytes[..], &[0]].concat()), None);
            let text = serde_json::to_string(&receipt).expect("text");
            assert_eq!(serde_json::from_str::<Receipt>(&text).expect("the same"), receipt);
        }
    }

    #[test]
    fn a_worker_follows_its_own_chain_through_rounds_that_it_knows_nothing_of() {
        let [first, second] = two();
        assert_eq!((first.previous, second.previous), ([0; 32], first.head()));
        let of_first = share(1).chain(&[0; 32], 3, 3);
        assert_eq!(first.parts[0].chain, of_first);
        assert_eq!(second.parts[0].chain, share(2).chain(&of_first, 5, 2));
        assert_eq!(first.parts[1].chain, [0; 32], "left out: nothing is added");
        assert_eq!(second.parts[1].chain, share(3).chain(&[0; 32], 5, 2));
        assert_eq!((first.samples(), second.samples()), (2, 7));
    }
}
