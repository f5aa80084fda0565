//! Changing a header on its disk: keyslots that are added, changed and removed, each with a fresh header MAC.
//!
//! A change may be cut off at any write, and the volume then opens with what opened it before, or after:
//!
//! ```text
//!  add     material to a free area -> header
//!  change  material to a free area -> header (the slot's number stays) -> noise over the old area
//!  remove  noise over the area     -> header
//!  widen                              header (the segment's size)
//! ```
//!
//! "Header" is two copies, one on the medium before the other is touched. Last, every byte of the keyslots' area
//! that no slot uses is noise again: also what a change that was cut off before left there.

use super::Header;
use super::json::Value;
use super::metadata::KEYSLOTS_MAX;
use crate::Error;
use crate::disk::Disk;
use crate::keys::antiforensic::STRIPES;
use crate::keys::hash::Hash;
use crate::keys::kdf::{Kdf, KdfCost};
use crate::keys::keyslot::{self, Keyslot};
use crate::keys::secret::{Passphrase, Secret};
use crate::memory::limit_kib;
use crate::random::random;

/// Areas of keyslots begin and end at multiples of this.
const AREA_UNIT: u64 = 4096;
/// Bytes of noise that are written at once.
const CHUNK: usize = 1 << 20;

impl Header {
    /// Adds a keyslot in which this passphrase opens `key`; its number.
    ///
    /// # Errors
    /// `Refused` when there is no room, or the key is not the data's; what the disk refuses.
    pub fn add_key(
        &mut self,
        disk: &mut dyn Disk,
        key: &Secret,
        passphrase: &Passphrase,
        cost: KdfCost,
    ) -> Result<u8, Error> {
        let taken = |number: &u8| self.metadata.keyslots.iter().any(|slot| slot.number == *number);
        let number = (0..KEYSLOTS_MAX as u8).find(|number| !taken(number));
        let number = number.ok_or_else(|| Error::refused("a keyslot more than 32"))?;
        let slot = self.new_slot(disk, number, 1, cost)?;
        self.insert(disk, slot, key, passphrase)?;
        let digest = self.metadata.digests.iter_mut().find(|digest| digest.of_segment);
        let digest = digest.expect("checked when parsed");
        digest.keyslots.push(number);
        digest.keyslots.sort_unstable();
        self.store(disk, key).map(|()| number)
    }

    /// Gives a keyslot another passphrase, and a key derivation of this cost; number and priority stay.
    ///
    /// # Errors
    /// As [`Header::add_key`]; when there is no such keyslot of the data.
    pub fn change_key(
        &mut self,
        disk: &mut dyn Disk,
        key: &Secret,
        number: u8,
        passphrase: &Passphrase,
        cost: KdfCost,
    ) -> Result<(), Error> {
        let at = self.position(number)?;
        let slot = self.new_slot(disk, number, self.metadata.keyslots[at].priority, cost)?;
        self.metadata.keyslots.remove(at);
        self.material.remove(at);
        self.insert(disk, slot, key, passphrase)?;
        self.store(disk, key)
    }

    /// Removes a keyslot; `remaining` must open another one, so that the last one never goes.
    ///
    /// # Errors
    /// As [`Header::change_key`]; `WrongPassphrase` when `remaining` opens no other keyslot.
    pub fn remove_key(
        &mut self,
        disk: &mut dyn Disk,
        number: u8,
        remaining: &Passphrase,
    ) -> Result<(), Error> {
        let known = self.metadata.keyslots.iter().position(|slot| slot.number == number);
        let at = known.ok_or_else(|| no_such_slot(number))?;
        let others =
            self.metadata.segment_digest().keyslots.iter().filter(|other| **other != number);
        let others: Vec<u8> = others.copied().collect();
        if others.is_empty() {
            return Err(Error::refused("removing the last keyslot: nothing would open the volume"));
        }
        let mut opened = Err(Error::WrongPassphrase);
        for other in others {
            opened = self.unlock(remaining, Some(other), limit_kib());
            if !matches!(opened, Err(Error::WrongPassphrase)) {
                break;
            }
        }
        let (_, key) = opened?;
        let [offset, len] = self.metadata.keyslots[at].area;
        fill_with_noise(disk, offset, offset + len)?;
        disk.flush()?;
        self.metadata.keyslots.remove(at);
        self.material.remove(at);
        for digest in &mut self.metadata.digests {
            digest.keyslots.retain(|other| *other != number);
        }
        self.metadata.digests.retain(|digest| digest.of_segment || !digest.keyslots.is_empty());
        self.metadata.tokens.iter_mut().for_each(|(_, token)| forget_slot(token, number));
        self.store(disk, &key)
    }

    /// Lets a segment of a fixed size end where its device of `device` bytes does; whether it ended before. Most
    /// segments have no size of their own, and end there anyway.
    ///
    /// # Errors
    /// What the disk refuses.
    pub fn widen(&mut self, disk: &mut dyn Disk, key: &Secret, device: u64) -> Result<bool, Error> {
        let segment = &mut self.metadata.segment;
        let unit = u64::from(segment.sector);
        let available = device.saturating_sub(segment.offset) / unit * unit;
        if segment.size.is_none_or(|size| size >= available) {
            return Ok(false);
        }
        segment.size = Some(available);
        self.seal(key)?;
        self.write(disk)?;
        self.stale = None;
        Ok(true)
    }

    /// Writes everything that this header has: noise and key material, then both copies. What was on the disk before
    /// counts no more once they are.
    pub(crate) fn write_whole(&self, disk: &mut dyn Disk) -> Result<(), Error> {
        self.write_keyslots(disk)?;
        self.write(disk)
    }

    /// Writes noise and key material.
    pub(crate) fn write_keyslots(&self, disk: &mut dyn Disk) -> Result<(), Error> {
        let [start, end] = self.keyslots_area(disk);
        fill_with_noise(disk, start, end)?;
        for (slot, material) in self.metadata.keyslots.iter().zip(&self.material) {
            disk.write_at(material, slot.area[0])?;
        }
        disk.flush()
    }

    /// Counts on from a header that this one is to replace.
    pub(crate) fn count_from(&mut self, sequence: u64) {
        self.binary.sequence = self.binary.sequence.max(sequence);
    }

    /// A fresh MAC, both copies, and noise wherever no keyslot is.
    fn store(&mut self, disk: &mut dyn Disk, key: &[u8]) -> Result<(), Error> {
        self.seal(key)?;
        self.write(disk)?;
        self.stale = None;
        let [mut at, end] = self.keyslots_area(disk);
        let used = |slot: &Keyslot| [slot.area[0], keyslot::material_len(slot.key_len) as u64];
        let mut areas: Vec<[u64; 2]> = self.metadata.keyslots.iter().map(used).collect();
        areas.sort_unstable();
        for [offset, len] in areas {
            fill_with_noise(disk, at, offset)?;
            at = offset + len;
        }
        fill_with_noise(disk, at, end)?;
        disk.flush()
    }

    /// A keyslot of this header's volume key in an area that no other one names.
    fn new_slot(
        &self,
        disk: &dyn Disk,
        number: u8,
        priority: u8,
        cost: KdfCost,
    ) -> Result<Keyslot, Error> {
        let key_len = self.metadata.key_len()?;
        let len = ((key_len * STRIPES) as u64).next_multiple_of(AREA_UNIT);
        let mut salt = [0; 32];
        random(&mut salt)?;
        Ok(Keyslot {
            number,
            key_len,
            priority,
            area: [self.free_area(disk, len)?, len],
            area_key_len: 64,
            af_hash: Hash::Sha256,
            kdf: Kdf { cost: cost.check()?, salt },
        })
    }

    /// The first place for an area of `len` bytes.
    fn free_area(&self, disk: &dyn Disk, len: u64) -> Result<u64, Error> {
        let [mut at, end] = self.keyslots_area(disk);
        let mut areas: Vec<[u64; 2]> =
            self.metadata.keyslots.iter().map(|slot| slot.area).collect();
        areas.sort_unstable();
        for [offset, taken] in areas {
            if at + len <= offset {
                break;
            }
            at = (offset + taken).next_multiple_of(AREA_UNIT);
        }
        match at + len <= end {
            true => Ok(at),
            false => Err(Error::refused("another key: the keyslots' area is full")),
        }
    }

    /// Seals a slot and puts it, and its material, where they belong.
    fn insert(
        &mut self,
        disk: &mut dyn Disk,
        slot: Keyslot,
        key: &Secret,
        passphrase: &Passphrase,
    ) -> Result<(), Error> {
        if passphrase.bytes().is_empty() {
            return Err(Error::refused("an empty passphrase"));
        }
        if !keyslot::matches(self.metadata.segment_digest(), key) {
            return Err(Error::refused("a key that is not this volume's"));
        }
        let material = keyslot::seal(&slot, key, passphrase, limit_kib())?;
        disk.write_at(&material, slot.area[0])?;
        disk.flush()?;
        let at = self.metadata.keyslots.partition_point(|other| other.number < slot.number);
        self.metadata.keyslots.insert(at, slot);
        self.material.insert(at, material);
        Ok(())
    }

    /// Where the data's keyslot of this number is.
    fn position(&self, number: u8) -> Result<usize, Error> {
        let bound = self.metadata.segment_digest().keyslots.contains(&number);
        let at = self.metadata.keyslots.iter().position(|slot| slot.number == number && bound);
        at.ok_or_else(|| no_such_slot(number))
    }

    /// First byte of the keyslots' area and the one behind it; a detached header's file may end before.
    fn keyslots_area(&self, disk: &dyn Disk) -> [u64; 2] {
        let start = 2 * self.size();
        [start, (start + self.metadata.keyslots_len).min(disk.len())]
    }
}

fn no_such_slot(number: u8) -> Error {
    Error::refused(format!("keyslot {number}: there is none, or it opens no data"))
}

/// Takes a keyslot out of the list that a token may have.
fn forget_slot(token: &mut Value, number: u8) {
    let Value::Object(members) = token else { return };
    for (name, value) in members {
        if let Value::Array(items) = value
            && name == "keyslots"
        {
            items.retain(|item| *item != number.to_string().as_str().into());
        }
    }
}

fn fill_with_noise(disk: &mut dyn Disk, start: u64, end: u64) -> Result<(), Error> {
    let mut noise = vec![0; CHUNK.min(end.saturating_sub(start) as usize)];
    for at in (start..end).step_by(CHUNK) {
        let len = CHUNK.min((end - at) as usize);
        random(&mut noise[..len])?;
        disk.write_at(&noise[..len], at)?;
    }
    Ok(())
}
