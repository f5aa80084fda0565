//! `Header`: both copies of the metadata and the key material, read once into memory.
//!
//! Everything after reading uses this copy, so a host that changes the disk between check and use
//! changes nothing. Reading never writes: a damaged copy is reported, not repaired. Where a change was
//! cut off between the two copies, the newer whole one counts, if it has a MAC that will vouch for it.

pub(crate) mod binary;
mod edit;
pub(crate) mod json;
pub(crate) mod mac;
pub(crate) mod metadata;

use crate::Error;
use crate::disk::Disk;
use crate::header::binary::{Binary, Copy};
use crate::header::mac::HeaderId;
use crate::header::metadata::{Metadata, Policy};
use crate::keys::keyslot::{self, Keyslot};
use crate::keys::secret::{Passphrase, Secret};
use crate::random::random;

/// A header that the policy accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    binary: Binary,
    metadata: Metadata,
    /// Encrypted material of each keyslot, in the order of the keyslots.
    material: Vec<Vec<u8>>,
    /// The copy on the disk that is damaged or older: written first, while the other is the only one.
    stale: Option<Copy>,
}

impl Header {
    /// Reads the header at the start of a disk.
    ///
    /// # Errors
    /// `NotLuks`, `Truncated`, `Damaged`, `NeedsCompat` or `Refused`: nothing outside of the allow-list passes.
    pub fn read(disk: &dyn Disk, policy: Policy) -> Result<Self, Error> {
        let (binary, metadata, stale) = read_copies(disk, policy)?;
        let read = |slot: &Keyslot| {
            let mut material = vec![0; keyslot::material_len(slot.key_len)];
            disk.read_at(&mut material, slot.area[0]).map(|()| material)
        };
        let material = metadata.keyslots.iter().map(read).collect::<Result<_, _>>()?;
        Ok(Self { binary, metadata, material, stale })
    }

    /// A new header with the key material of its slots.
    pub(crate) fn new(binary: Binary, metadata: Metadata, material: Vec<Vec<u8>>) -> Self {
        Self { binary, metadata, material, stale: None }
    }

    /// The metadata.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The UUID of the volume.
    pub fn uuid(&self) -> &str {
        &self.binary.uuid
    }

    /// The label, without control characters.
    pub fn label(&self) -> &str {
        &self.binary.label
    }

    /// The subsystem, without control characters.
    pub fn subsystem(&self) -> &str {
        &self.binary.subsystem
    }

    /// How often the header was written.
    pub fn sequence(&self) -> u64 {
        self.binary.sequence
    }

    /// Whether both copies on the disk said the same: if not, a change was cut off, or one is damaged.
    pub fn is_whole(&self) -> bool {
        self.stale.is_none()
    }

    /// Bytes of a metadata copy.
    pub fn size(&self) -> u64 {
        self.binary.size
    }

    /// What to pin: it changes with the segment, the digest and the UUID, not with keyslots.
    pub fn id(&self) -> HeaderId {
        HeaderId::of(&self.covered())
    }

    /// What the header MAC is over.
    pub(crate) fn covered(&self) -> String {
        mac::covered(&self.metadata, self.binary.size, &self.binary.uuid)
    }

    /// Whether a token claims to be the header MAC; [`Header::unlock`] checks it.
    pub fn has_mac(&self) -> bool {
        mac::is_in(&self.metadata)
    }

    /// The volume key and the slot that gave it: slots by priority, or only slot `number`.
    ///
    /// # Errors
    /// `WrongPassphrase`, `Untried`; `Memory` when a slot that may be the right one needs more than the limit;
    /// `Mac` when the header MAC is not of this header.
    pub fn unlock(
        &self,
        passphrase: &Passphrase,
        number: Option<u8>,
        memory_limit_kib: u64,
    ) -> Result<(u8, Secret), Error> {
        if passphrase.bytes().is_empty() {
            return Err(Error::refused("an empty passphrase"));
        }
        let digest = self.metadata.segment_digest();
        let bound = |slot: &&Keyslot| digest.keyslots.contains(&slot.number);
        let slots: Vec<&Keyslot> = match number {
            None => self.metadata.candidates(),
            Some(number) => {
                let slots = self.metadata.keyslots.iter();
                slots.filter(|slot| slot.number == number).filter(bound).collect()
            }
        };
        let skipped = |slot: &&Keyslot| number.is_none() && slot.priority == 0;
        let skipped = self.metadata.keyslots.iter().filter(skipped).filter(bound);
        let skipped: Vec<u8> = skipped.map(|slot| slot.number).collect();
        let mut failure =
            if skipped.is_empty() { Error::WrongPassphrase } else { Error::Untried(skipped) };
        for slot in slots {
            let at = self.metadata.keyslots.iter().position(|other| other == slot);
            let material = &self.material[at.expect("a slot of this header")];
            match keyslot::open(slot, material, passphrase, memory_limit_kib) {
                Ok(key) if keyslot::matches(digest, &key) => {
                    mac::verify(&self.metadata, &key, self.uuid(), &self.covered())?;
                    return Ok((slot.number, key));
                }
                Ok(_) => {}
                Err(error @ Error::Memory(..)) => failure = error,
                Err(error) => return Err(error),
            }
        }
        Err(failure)
    }

    /// Encrypted material of the keyslots, in their order.
    pub(crate) fn material(&self) -> &[Vec<u8>] {
        &self.material
    }

    /// Forgets the header MAC.
    pub(crate) fn remove_mac(&mut self) {
        self.metadata.tokens.retain(|(_, token)| !mac::is_token(token));
    }

    /// Puts a fresh header MAC in place of any other.
    pub(crate) fn seal(&mut self, key: &[u8]) -> Result<(), Error> {
        self.remove_mac();
        let used = |number: &u8| self.metadata.tokens.iter().all(|(other, _)| other != number);
        let number = (0..32).find(used).ok_or_else(|| Error::refused("no token number is free"))?;
        let token = mac::token(key, &self.binary.uuid, &self.covered());
        self.metadata.tokens.push((number, token));
        self.metadata.tokens.sort_by_key(|&(number, _)| number);
        self.binary.checksum = binary::Checksum::Sha256;
        let next = self.binary.sequence.checked_add(1);
        self.binary.sequence =
            next.ok_or_else(|| Error::refused("a header that counts no further"))?;
        Ok(())
    }

    /// Writes both copies: the first to the medium before the second is touched, and first the one that nobody
    /// needs.
    pub(crate) fn write(&self, disk: &mut dyn Disk) -> Result<(), Error> {
        self.write_from(self.stale.unwrap_or(Copy::Primary), disk)
    }

    /// As [`Header::write`], where there was no header: what stands in the place of the first copy stays until the
    /// second is whole.
    pub(crate) fn write_new(&self, disk: &mut dyn Disk) -> Result<(), Error> {
        self.write_from(Copy::Secondary, disk)
    }

    fn write_from(&self, first: Copy, disk: &mut dyn Disk) -> Result<(), Error> {
        let size = self.binary.size;
        let mut json = self.metadata.to_json(size).text().into_bytes();
        json.push(0);
        if json.len() > size as usize - binary::LEN {
            return Err(Error::refused("metadata that does not fit into its area"));
        }
        let mut copies = [(Copy::Primary, 0), (Copy::Secondary, size)];
        if first == Copy::Secondary {
            copies.reverse();
        }
        for (copy, offset) in copies {
            let mut salt = [0; 64];
            random(&mut salt)?;
            disk.write_at(&self.binary.write(copy, &salt, &json), offset)?;
            disk.flush()?;
        }
        Ok(())
    }

    /// The metadata as JSON text, for people.
    pub fn json(&self) -> String {
        self.metadata.to_json(self.binary.size).text()
    }
}

/// The metadata that both copies agree on. Where they do not, the newer one if a MAC vouches for it, or under
/// [`Policy::Compat`] the one that is whole; and which copy is not that one.
fn read_copies(disk: &dyn Disk, policy: Policy) -> Result<(Binary, Metadata, Option<Copy>), Error> {
    let primary = read_copy(disk, Copy::Primary, 0, policy);
    let secondary = match &primary {
        Ok((binary, ..)) => read_copy(disk, Copy::Secondary, binary.size, policy),
        Err(_) => binary::SIZES
            .into_iter()
            .map(|offset| read_copy(disk, Copy::Secondary, offset, policy))
            .find(Result::is_ok)
            .unwrap_or(Err(Error::NotLuks("no magic number"))),
    };
    match (primary, secondary) {
        (Ok(primary), Ok(secondary)) if primary == secondary => Ok((primary.0, primary.1, None)),
        (Ok(primary), Ok(secondary)) => newer(primary, secondary),
        (Ok(whole), Err(error)) => alone(whole, Copy::Secondary, &error, policy),
        (Err(error), Ok(whole)) => alone(whole, Copy::Primary, &error, policy),
        (Err(error), Err(_)) => Err(error),
    }
}

/// Of two whole copies the later one: a change of keyslots, texts or the segment's size was cut off between them.
fn newer(primary: Parsed, secondary: Parsed) -> Result<(Binary, Metadata, Option<Copy>), Error> {
    let (newer, older, stale) = match primary.0.sequence > secondary.0.sequence {
        true => (primary, secondary, Copy::Secondary),
        false => (secondary, primary, Copy::Primary),
    };
    let covered = |(binary, metadata, _): &Parsed| {
        let mut of_any_size = metadata.clone();
        of_any_size.segment.size = None;
        mac::covered(&of_any_size, binary.size, &binary.uuid)
    };
    let same_volume = covered(&newer) == covered(&older);
    match newer.0.sequence > older.0.sequence && same_volume && mac::is_in(&newer.1) {
        true => Ok((newer.0, newer.1, Some(stale))),
        false => Err(Error::refused("two copies of the header that differ")),
    }
}

/// The only whole copy.
fn alone(
    whole: Parsed,
    stale: Copy,
    other: &Error,
    policy: Policy,
) -> Result<(Binary, Metadata, Option<Copy>), Error> {
    let accepted = policy == Policy::Compat || mac::is_in(&whole.1);
    match other {
        // A whole copy with other content is not damage.
        Error::Refused(_) | Error::NeedsCompat(_) => {
            Err(Error::refused(format!("two copies of the header that differ: {other}")))
        }
        _ if accepted => Ok((whole.0, whole.1, Some(stale))),
        _ => Err(Error::NeedsCompat(format!(
            "a header with one whole copy and no MAC; the other: {other}"
        ))),
    }
}

type Parsed = (Binary, Metadata, Vec<u8>);

fn read_copy(disk: &dyn Disk, copy: Copy, offset: u64, policy: Policy) -> Result<Parsed, Error> {
    if disk.len() < offset.saturating_add(binary::LEN as u64) {
        return Err(Error::NotLuks("shorter than a header"));
    }
    let mut head = [0; binary::LEN];
    disk.read_at(&mut head, offset)?;
    let binary = Binary::parse(&head, copy, offset).map_err(|error| match error {
        // Before its checksum is known to be right, a copy that makes no sense is a damaged one.
        Error::Refused(what) if policy == Policy::Compat => Error::Damaged(what),
        error => error,
    })?;
    if binary.size > binary::SIZE_MAX {
        return Err(Error::refused(format!(
            "metadata of {} MiB, up to 1 MiB is read",
            binary.size >> 20
        )));
    }
    if policy == Policy::Strict && binary.checksum != binary::Checksum::Sha256 {
        return Err(Error::NeedsCompat("a header checksum with sha512".into()));
    }
    if disk.len() < offset.saturating_add(binary.size) {
        return Err(Error::truncated("the file ends within its header"));
    }
    let mut bytes = vec![0; binary.size as usize];
    disk.read_at(&mut bytes, offset)?;
    // Between the two reads the disk may have changed.
    if bytes[..binary::LEN] != head || !binary.checksum_matches(&bytes) {
        return Err(Error::damaged("the checksum of the header does not match"));
    }
    let area = &bytes[binary::LEN..];
    let end = area.iter().position(|&byte| byte == 0);
    let end = end.ok_or_else(|| Error::damaged("the JSON fills its area"))?;
    if area[0] != b'{' || area[end..].iter().any(|&byte| byte != 0) {
        return Err(Error::damaged("the JSON area has more than one text"));
    }
    let metadata = Metadata::parse(&area[..end], binary.size, policy)?;
    Ok((binary, metadata, area[..end].to_vec()))
}
