//! Where dm-integrity puts things on a device (the kernel's `dm-integrity.rst` and `dm-integrity.c`, versions
//! 1 to 5 without bitmap and journal MAC).
//!
//! ```text
//!  superblock 4 KiB | journal | tags of area 0 | data of area 0 | tags of area 1 | data of area 1 | ...
//! ```

use crate::Error;

/// Sectors count in this unit, whatever a block has.
pub(super) const SECTOR: u64 = 512;
/// Bytes of a tag.
pub(super) const TAG: usize = 32;
/// Sectors of the superblock.
pub(super) const SUPERBLOCK: u64 = 8;
/// Bytes of a sector of the journal before its commit id.
pub(super) const ENTRY_SPACE: u64 = SECTOR - 8;
const MAGIC: &[u8; 8] = b"integrt\0";
/// Sectors at the start of a journal section that hold its entries.
const ENTRY_SECTORS: u64 = 8;
/// The only flags that this reader understands: fixed padding, and a fix for HMACs of the journal.
const FLAGS_KNOWN: u32 = 0x08 | 0x10;
const FLAG_FIXED_PADDING: u32 = 0x08;
/// The part of a device that its journal takes. The kernel's choice is a 128th; each half of a journal costs two
/// waits for the medium, and a checkpoint of a third of the volume would then wait over 80 times.
const JOURNAL_SHARE: u64 = 32;
/// The kernel's largest choice: it holds the whole journal in memory, and so do we.
const JOURNAL_SECTORS_MAX: u64 = 131_072;

/// Byte offsets on the device of a data sector and of its block's tag.
pub(super) struct Place {
    pub(super) data: u64,
    pub(super) tag: u64,
    /// Sectors from this one to the end of its area.
    pub(super) left: u64,
}

/// Where things are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    log2_interleave: u32,
    /// Sections of the journal.
    pub(super) sections: u64,
    /// Sectors that are usable.
    pub(super) provided: u64,
    flags: u32,
    /// Sectors of a block: 1 or 8.
    pub(super) per_block: u64,
}

impl Layout {
    pub(super) fn parse(
        bytes: &[u8; SECTOR as usize],
        device: u64,
        per_block: u64,
    ) -> Result<Self, Error> {
        let wrong = |what: &str| Error::refused(format!("dm-integrity superblock: {what}"));
        if bytes[..8] != *MAGIC {
            return Err(Error::damaged("no dm-integrity superblock"));
        }
        let le32 = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four"));
        let le64 = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight"));
        let tag = u16::from_le_bytes([bytes[10], bytes[11]]);
        let layout = Self {
            log2_interleave: bytes[9].into(),
            sections: le32(12).into(),
            provided: le64(16),
            flags: le32(24),
            per_block: 1u64.checked_shl(bytes[28].into()).unwrap_or(0),
        };
        if !(1..=5).contains(&bytes[8]) || layout.flags & !FLAGS_KNOWN != 0 {
            return Err(wrong("a version or a flag that is not known"));
        }
        if usize::from(tag) != TAG || layout.per_block != per_block {
            return Err(wrong("tags or blocks of another length"));
        }
        if !(3..=31).contains(&layout.log2_interleave) || layout.sections == 0 {
            return Err(wrong("impossible areas or no journal"));
        }
        // Its blocks are in memory until they are in their places; a host could make it as large as the volume.
        if layout.sections.saturating_mul(layout.section_sectors()) > JOURNAL_SECTORS_MAX {
            return Err(wrong("a journal of more than 64 MiB"));
        }
        if layout.provided == 0 || !layout.provided.is_multiple_of(per_block) {
            return Err(wrong("an impossible number of sectors"));
        }
        match layout.fits(device) {
            true => Ok(layout),
            false => {
                Err(Error::truncated("more data in dm-integrity's superblock than on the device"))
            }
        }
    }

    /// A layout for a device of that many sectors: the kernel's, with a larger journal.
    pub(super) fn plan(device: u64, per_block: u64) -> Result<Self, Error> {
        let mut layout = Self {
            log2_interleave: 15,
            sections: 1,
            provided: 0,
            flags: FLAG_FIXED_PADDING,
            per_block,
        };
        let journal = (device / JOURNAL_SHARE).min(JOURNAL_SECTORS_MAX);
        layout.sections = (journal / layout.section_sectors()).max(1);
        let layout = layout.widened(device);
        match layout.provided {
            0 => Err(Error::refused("a device that is too small for tags and data")),
            _ => Ok(layout),
        }
    }

    /// The same with as many sectors as a device of `device` sectors has room for: as the kernel counts them.
    pub(super) fn widened(&self, device: u64) -> Self {
        let mut layout = Self { provided: 0, ..self.clone() };
        for bit in (3..64 - device.leading_zeros()).rev() {
            layout.provided |= 1 << bit;
            if !layout.fits(device) {
                layout.provided &= !(1 << bit);
            }
        }
        layout
    }

    /// Lets a superblock say this layout's number of sectors, and nothing else.
    pub(super) fn write_provided(&self, superblock: &mut [u8; SECTOR as usize]) {
        superblock[16..24].copy_from_slice(&self.provided.to_le_bytes());
    }

    pub(super) fn to_bytes(&self) -> [u8; SECTOR as usize] {
        let mut bytes = [0; SECTOR as usize];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8] = 4;
        bytes[9] = self.log2_interleave as u8;
        bytes[10..12].copy_from_slice(&(TAG as u16).to_le_bytes());
        bytes[12..16].copy_from_slice(&(self.sections as u32).to_le_bytes());
        bytes[16..24].copy_from_slice(&self.provided.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.flags.to_le_bytes());
        bytes[28] = self.per_block.trailing_zeros() as u8;
        bytes
    }

    fn fits(&self, device: u64) -> bool {
        let journal = self.sections.checked_mul(self.section_sectors());
        let initial = journal.and_then(|journal| journal.checked_add(SUPERBLOCK));
        let areas = (self.provided.saturating_sub(1) >> self.log2_interleave) + 1;
        let tags = areas.checked_mul(self.tag_run());
        initial
            .zip(tags)
            .and_then(|(initial, tags)| initial.checked_add(tags)?.checked_add(self.provided))
            .is_some_and(|end| end <= device)
    }

    /// Bytes of a journal entry: sector number, the last bytes of each sector, the tag.
    pub(super) fn entry_len(&self) -> u64 {
        8 + 8 * self.per_block + TAG as u64
    }

    /// Where an entry is in its section.
    pub(super) fn entry_at(&self, entry: u64) -> usize {
        (entry % ENTRY_SECTORS * SECTOR + entry / ENTRY_SECTORS * self.entry_len()) as usize
    }

    /// Where the data of an entry is in its section.
    pub(super) fn data_at(&self, entry: u64) -> usize {
        ((ENTRY_SECTORS + entry * self.per_block) * SECTOR) as usize
    }

    /// Byte offset on the device of a section.
    pub(super) fn section_at(&self, section: u64) -> u64 {
        (SUPERBLOCK + section * self.section_sectors()) * SECTOR
    }

    /// Bytes of a section.
    pub(super) fn section_len(&self) -> usize {
        (self.section_sectors() * SECTOR) as usize
    }

    pub(super) fn section_entries(&self) -> u64 {
        ENTRY_SPACE / self.entry_len() * ENTRY_SECTORS
    }

    pub(super) fn section_sectors(&self) -> u64 {
        self.section_entries() * self.per_block + ENTRY_SECTORS
    }

    fn initial(&self) -> u64 {
        SUPERBLOCK + self.sections * self.section_sectors()
    }

    /// Sectors of the tags of an area.
    fn tag_run(&self) -> u64 {
        let bytes = (TAG as u64) << (self.log2_interleave - self.per_block.trailing_zeros());
        let unit = if self.flags & FLAG_FIXED_PADDING != 0 { 8 * SECTOR } else { SECTOR << 8 };
        bytes.next_multiple_of(unit) / SECTOR
    }

    /// Where a data sector is.
    pub(super) fn place(&self, sector: u64) -> Place {
        let interleave = 1 << self.log2_interleave;
        let (area, inside) = (sector / interleave, sector % interleave);
        let tags = self.initial() + area * (interleave + self.tag_run());
        let data = tags + self.tag_run() + inside;
        Place {
            data: data * SECTOR,
            tag: tags * SECTOR + inside / self.per_block * TAG as u64,
            left: interleave - inside,
        }
    }
}
