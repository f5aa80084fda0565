//! The journal of dm-integrity: a ring of sections, encoded and replayed as the kernel does it.
//!
//! ```text
//!  section: 8 sectors of entries (sector number, last bytes of each data sector, tag) | data of entry 0 | ...
//! ```
//!
//! The last eight bytes of every sector, also of those with data, are a commit id: position in the journal and one
//! of four sequence numbers, which goes up with each pass through the ring. A section with two ids was torn by a
//! crash and ends the log. Replaying starts behind the newest section and goes around once: what is replayed is
//! always a run of commits up to the newest whole one, so replaying what is already in its place changes nothing.

use std::collections::BTreeMap;

use super::layout::{ENTRY_SPACE, Layout, SECTOR, TAG};
use crate::Error;

/// Sector number of an entry that holds nothing.
const UNUSED: u64 = 0xffff_ffff << 32;
/// Numbers from here on are no sectors: unused, or being written.
const NO_SECTOR: u64 = 0xffff_fffe << 32;
const COMMIT_IDS: [u64; 4] =
    [0x1111_1111_1111_1111, 0x2222_2222_2222_2222, 0x3333_3333_3333_3333, 0x4444_4444_4444_4444];

/// Ciphertext and tag of a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) data: Vec<u8>,
    pub(super) tag: [u8; TAG],
}

/// Blocks by their first sector.
pub(super) type Blocks = BTreeMap<u64, Block>;

/// The number of a pass through the ring, modulo four.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sequence(u8);

impl Sequence {
    /// Of a fresh journal.
    pub(super) const FIRST: Self = Self(0);

    pub(super) fn next(self) -> Self {
        Self((self.0 + 1) % 4)
    }

    fn before(self) -> Self {
        Self((self.0 + 3) % 4)
    }

    /// The id in a sector of the journal.
    fn commit_id(self, section: u64, sector: u64) -> u64 {
        COMMIT_IDS[usize::from(self.0)] ^ (section << 32) ^ sector
    }
}

/// Which sequence numbers occur in a section, a bit each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found(u8);

impl Found {
    fn has(self, sequence: Sequence) -> bool {
        self.0 >> sequence.0 & 1 == 1
    }

    fn is_only(self, sequence: Sequence) -> bool {
        self.0 == 1 << sequence.0
    }
}

/// What a journal holds, and how writing goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Replay {
    /// Sections to replay, oldest first.
    pub(super) order: Vec<u64>,
    /// What to do then.
    pub(super) after: After,
}

/// How a journal that was replayed can be written again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum After {
    /// Every section was whole: the next one is written with this number.
    Continue(u64, Sequence),
    /// A crash tore it: empty all sections from this one on with this number, then begin at the first.
    Clear(u64, Sequence),
}

impl Replay {
    /// Follows the kernel's `replay_journal`: `found` says what each section has.
    pub(super) fn plan(found: &[Found]) -> Result<Self, Error> {
        let all = Found(found.iter().fold(0, |all, found| all | found.0));
        let unused = match all.has(Sequence(3)) {
            false => u8::BITS as u8 - all.0.leading_zeros() as u8,
            true => (0..4)
                .find(|&number| !all.has(Sequence(number)))
                .ok_or_else(|| Error::damaged("a journal of dm-integrity with all commit ids"))?,
        };
        let newest = Sequence(unused).before();
        let older = newest.before();
        let last = found.iter().rposition(|found| found.has(newest)).unwrap_or_default();
        let (start, mut wanted) = match last + 1 {
            end if end == found.len() => (0, newest),
            start => (start, older),
        };
        let clear = After::Clear(start as u64, older.before());
        if !all.has(older) && all.has(older.before()) {
            // Clearing was cut off: whatever it left is in its place already.
            return Ok(Self { order: Vec::new(), after: clear });
        }
        let mut order = Vec::new();
        for at in (start..found.len()).chain(0..start) {
            if !found[at].is_only(wanted) {
                return Ok(Self { order, after: clear });
            }
            order.push(at as u64);
            if at + 1 == found.len() {
                wanted = wanted.next();
            }
        }
        Ok(Self { order, after: After::Continue(start as u64, wanted) })
    }
}

/// The sections to empty after a crash, in three steps with a barrier after each, so that a crash in between is
/// known by its ids: the first one ends the log, the last one still says where it ended.
pub(super) fn clearing_steps(sections: u64, start: u64) -> [Vec<u64>; 3] {
    let mut ring = (0..sections).map(|step| (start + step) % sections);
    let first = ring.next().into_iter().collect();
    let last = ring.next_back().into_iter().collect();
    [first, ring.collect(), last]
}

/// Fills `bytes` with a section of these blocks, as many as fit at most.
pub(super) fn encode<'a>(
    layout: &Layout,
    section: u64,
    sequence: Sequence,
    blocks: impl IntoIterator<Item = (&'a u64, &'a Block)>,
    bytes: &mut [u8],
) {
    bytes.fill(0);
    let mut blocks = blocks.into_iter();
    for entry in 0..layout.section_entries() {
        let at = layout.entry_at(entry);
        let fields = &mut bytes[at..][..layout.entry_len() as usize];
        let Some((sector, block)) = blocks.next() else {
            fields[..8].copy_from_slice(&UNUSED.to_le_bytes());
            continue;
        };
        fields[..8].copy_from_slice(&sector.to_le_bytes());
        for (index, sector) in block.data.chunks(SECTOR as usize).enumerate() {
            fields[8 + 8 * index..][..8].copy_from_slice(&sector[ENTRY_SPACE as usize..]);
        }
        let tag_at = fields.len() - TAG;
        fields[tag_at..].copy_from_slice(&block.tag);
        bytes[layout.data_at(entry)..][..block.data.len()].copy_from_slice(&block.data);
    }
    assert!(blocks.next().is_none(), "more blocks than a section holds");
    for (index, sector) in bytes.chunks_mut(SECTOR as usize).enumerate() {
        let id = sequence.commit_id(section, index as u64);
        sector[ENTRY_SPACE as usize..].copy_from_slice(&id.to_le_bytes());
    }
}

/// The sequence numbers in a section.
///
/// # Errors
/// `Damaged` when a sector has none.
pub(super) fn sequences(section: u64, bytes: &[u8]) -> Result<Found, Error> {
    let mut found = 0;
    for (index, sector) in bytes.chunks(SECTOR as usize).enumerate() {
        let id = u64::from_le_bytes(sector[ENTRY_SPACE as usize..].try_into().expect("eight"));
        let known = (0..4).find(|&it| Sequence(it).commit_id(section, index as u64) == id);
        found |= 1 << known.ok_or_else(|| Error::damaged("the journal of dm-integrity"))?;
    }
    Ok(Found(found))
}

/// Puts the blocks of a section into `blocks`, over older ones.
///
/// # Errors
/// `Damaged` for a block that cannot be on this device.
pub(super) fn decode(layout: &Layout, bytes: &[u8], blocks: &mut Blocks) -> Result<(), Error> {
    for entry in 0..layout.section_entries() {
        let fields = &bytes[layout.entry_at(entry)..][..layout.entry_len() as usize];
        let sector = u64::from_le_bytes(fields[..8].try_into().expect("eight"));
        if sector >= NO_SECTOR {
            continue;
        }
        if sector >= layout.provided || !sector.is_multiple_of(layout.per_block) {
            return Err(Error::damaged("a journal entry of a sector that is not there"));
        }
        let len = (layout.per_block * SECTOR) as usize;
        let mut data = bytes[layout.data_at(entry)..][..len].to_vec();
        for (index, sector) in data.chunks_mut(SECTOR as usize).enumerate() {
            sector[ENTRY_SPACE as usize..].copy_from_slice(&fields[8 + 8 * index..][..8]);
        }
        let tag = fields[fields.len() - TAG..].try_into().expect("a tag");
        blocks.insert(sector, Block { data, tag });
    }
    Ok(())
}

/// Gives every sector of a section a commit id, for the fuzzer; which, says the first bit of the one that it has.
pub(super) fn fix_section(section: u64, bytes: &mut [u8]) {
    for (index, sector) in bytes.chunks_mut(SECTOR as usize).enumerate() {
        let id = &mut sector[ENTRY_SPACE as usize..];
        let sequence = Sequence(id[7] & 1);
        id.copy_from_slice(&sequence.commit_id(section, index as u64).to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(found: &[u8]) -> Replay {
        let found: Vec<Found> = found.iter().map(|&bits| Found(bits)).collect();
        Replay::plan(&found).expect("not all four")
    }

    #[test]
    fn the_order_of_replay_follows_the_commit_ids() {
        let whole = |numbers: &[u32]| plan(&numbers.iter().map(|n| 1 << n).collect::<Vec<u8>>());
        let goes_on = |order: &[u64], number| Replay {
            order: order.to_vec(),
            after: After::Continue(order[0], Sequence(number)),
        };
        // Section 2 was written last (number 1); sections 3 and 4 still carry number 0.
        assert_eq!(whole(&[1, 1, 1, 0, 0]), goes_on(&[3, 4, 0, 1, 2], 1));
        assert_eq!(whole(&[0, 0, 0]), goes_on(&[0, 1, 2], 1));
        assert_eq!(whole(&[3, 3]), goes_on(&[0, 1], 0));
        assert_eq!(whole(&[2, 1]), goes_on(&[1, 0], 2));
        assert_eq!(whole(&[0, 3]), goes_on(&[1, 0], 0));
        assert_eq!(whole(&[2]), goes_on(&[0], 3));
        assert!(Replay::plan(&[0, 1, 2, 3].map(|number| Found(1 << number))).is_err());
        // Section 1 is torn: half of it has the number of the last pass.
        let torn = plan(&[0b10, 0b11, 0b01]);
        assert_eq!(torn, Replay { order: vec![2, 0], after: After::Clear(2, Sequence(3)) });
        // Clearing with number 3 was cut off in the middle, and in the last section.
        for found in [[0b1000, 0b0001, 0b0010], [0b1000, 0b1000, 0b1010]] {
            assert!(plan(&found).order.is_empty());
            assert!(matches!(plan(&found).after, After::Clear(..)));
        }
    }

    #[test]
    fn every_state_of_the_ids_is_cleared_to_one_that_goes_on() {
        // All that three sections can have after a crash, torn ones too.
        for bits in 0..15u32.pow(3) {
            let found = [bits % 15 + 1, bits / 15 % 15 + 1, bits / 225 + 1].map(|it| it as u8);
            if found.iter().fold(0, |all, found| all | found) == 15 {
                continue;
            }
            let After::Clear(start, number) = plan(&found).after else { continue };
            let mut cleared = found;
            for section in clearing_steps(3, start).into_iter().flatten() {
                cleared[section as usize] = 1 << number.0;
            }
            let after = plan(&cleared).after;
            assert_eq!(after, After::Continue(0, number.next()), "{found:?}");
        }
    }
}
