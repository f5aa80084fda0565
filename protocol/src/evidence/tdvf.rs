//! `Firmware`: what a TDVF image (OVMF built for TDX) makes of MRTD and of the first events of RTMR0.
//!
//! After Intel's "TDX Virtual Firmware Design Guide": the image ends with a table of GUIDs that leads to the metadata,
//! whose sections say which pages are added to the TD before it runs, and which of them are measured.

use std::fmt;

use ring::digest::{Context, SHA384};

/// Largest image: OVMF has 2 to 16 MiB.
const IMAGE_LEN_MAX: usize = 64 << 20;
const SECTIONS_MAX: usize = 64;
/// Most pages of all sections: what a TD gets before it runs is some MiB.
const PAGES_MAX: u64 = 64 << 10;
const PAGE: u64 = 4096;
/// TDH.MR.EXTEND measures so many bytes.
const CHUNK: u64 = 256;

/// `96b582de-1fb2-45f7-baea-a366c55a082d`, the table's end, and `e47a6535-984a-4798-865e-4685a7bf8ec2`, the offset of
/// the metadata, as they lie in memory.
const TABLE: [u8; 16] = *b"\xde\x82\xb5\x96\xb2\x1f\xf7\x45\xba\xea\xa3\x66\xc5\x5a\x08\x2d";
const METADATA: [u8; 16] = *b"\x35\x65\x7a\xe4\x4a\x98\x98\x47\x86\x5e\x46\x85\xa7\xbf\x8e\xc2";
/// Bytes behind the table: the reset vector.
const RESET_LEN: usize = 32;

/// Attributes of sections.
const MEASURED: u32 = 1;
const ADDED_LATER: u32 = 2;
/// Types of sections.
const CONFIGURATION: u32 = 1;
const HAND_OFF: u32 = 2;
const TEMPORARY: u32 = 3;

/// Why measurements cannot be computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootError(pub(super) &'static str);

impl fmt::Display for BootError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for BootError {}

/// How QEMU adds the pages of a section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pages {
    /// Each is measured when it is added: QEMU 9 and newer.
    OneByOne,
    /// All are added, then all are measured: QEMU 8 with Intel's patches.
    AddedFirst,
}

/// An image.
#[derive(Debug)]
pub(crate) struct Firmware<'a> {
    image: &'a [u8],
    sections: Vec<Section>,
}

#[derive(Clone, Copy, Debug)]
struct Section {
    offset: u64,
    raw_len: u64,
    address: u64,
    len: u64,
    kind: u32,
    attributes: u32,
}

fn u16_at(bytes: &[u8], at: usize) -> Option<usize> {
    let two = bytes.get(at..at.checked_add(2)?)?;
    Some(usize::from(u16::from_le_bytes([two[0], two[1]])))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at.checked_add(8)?)?.try_into().ok().map(u64::from_le_bytes)
}

impl<'a> Firmware<'a> {
    /// An image with the metadata of TDX.
    ///
    /// # Errors
    /// When it has none, or they contradict the image.
    pub(crate) fn parse(image: &'a [u8]) -> Result<Self, BootError> {
        if image.len() > IMAGE_LEN_MAX {
            return Err(BootError("the firmware has more than 64 MiB"));
        }
        let none = BootError("the firmware has no metadata of TDX: is it OVMF built for it?");
        let at = metadata(image).ok_or(none)?;
        let wrong = BootError("the firmware's metadata of TDX are malformed");
        let is_known = image.get(at..at + 4) == Some(b"TDVF") && u32_at(image, at + 8) == Some(1);
        let count = u32_at(image, at + 12).filter(|_| is_known).ok_or(wrong)? as usize;
        if count > SECTIONS_MAX {
            return Err(wrong);
        }
        let sections = (0..count).map(|number| Section::parse(image, at + 16 + 32 * number));
        let sections: Vec<Section> = sections.collect::<Option<_>>().ok_or(wrong)?;
        let pages = sections.iter().map(|section| section.len / PAGE);
        if pages.fold(0_u64, u64::saturating_add) > PAGES_MAX {
            return Err(wrong);
        }
        Ok(Self { image, sections })
    }

    /// MRTD of a TD that is started with it.
    pub(crate) fn mr_td(&self, order: Pages) -> [u8; 48] {
        let mut context = Context::new(&SHA384);
        for section in &self.sections {
            let pages = (0..section.len / PAGE).map(|page| page * PAGE);
            match order {
                Pages::OneByOne => pages.for_each(|page| {
                    section.add(&mut context, page);
                    section.measure(self.image, &mut context, page);
                }),
                Pages::AddedFirst => {
                    pages.clone().for_each(|page| section.add(&mut context, page));
                    pages.for_each(|page| section.measure(self.image, &mut context, page));
                }
            }
        }
        context.finish().as_ref().try_into().expect("SHA-384 has 48 bytes")
    }

    /// The volume of its variables, if it has one.
    pub(super) fn configuration(&self) -> Option<&'a [u8]> {
        let section = self.sections.iter().find(|section| section.kind == CONFIGURATION)?;
        self.image.get(section.offset as usize..(section.offset + section.raw_len) as usize)
    }

    /// Where the hand-off block lies, if there is one.
    pub(super) fn hand_off(&self) -> Option<u64> {
        self.sections.iter().find(|section| section.kind == HAND_OFF).map(|section| section.address)
    }

    /// Ranges of memory that are there before the TD runs, in their order: QEMU tells them from the rest.
    pub(super) fn accepted(&self) -> Vec<[u64; 2]> {
        let is_memory = |section: &&Section| matches!(section.kind, HAND_OFF | TEMPORARY);
        let ranges = self.sections.iter().filter(is_memory);
        let mut ranges: Vec<[u64; 2]> =
            ranges.map(|section| [section.address, section.address + section.len]).collect();
        ranges.sort_unstable();
        ranges
    }
}

/// Where the metadata begin.
fn metadata(image: &[u8]) -> Option<usize> {
    let end = image.len().checked_sub(RESET_LEN + 18)?;
    if image.get(end + 2..end + 18)? != TABLE {
        return None;
    }
    // From its end: entries of data, their length with this head, and a GUID.
    let table = image.get(end.checked_sub(u16_at(image, end)?.checked_sub(18)?)?..end)?;
    let mut at = table.len();
    while let Some(head) = at.checked_sub(18) {
        let len = u16_at(table, head)?;
        let start = at.checked_sub(len)?;
        if table.get(head + 2..at)? == METADATA {
            let back = u32_at(table, head.checked_sub(4)?)? as usize;
            return image.len().checked_sub(back);
        }
        if len < 18 {
            return None;
        }
        at = start;
    }
    None
}

impl Section {
    fn parse(image: &[u8], at: usize) -> Option<Self> {
        let section = Self {
            offset: u32_at(image, at)?.into(),
            raw_len: u32_at(image, at + 4)?.into(),
            address: u64_at(image, at + 8)?,
            len: u64_at(image, at + 16)?,
            kind: u32_at(image, at + 24)?,
            attributes: u32_at(image, at + 28)?,
        };
        let is_aligned = section.address.is_multiple_of(PAGE) && section.len.is_multiple_of(PAGE);
        let ends = section.address.checked_add(section.len).is_some();
        let is_there = section.offset + section.raw_len <= image.len() as u64;
        // What is measured is all in the image.
        let is_whole = section.attributes & MEASURED == 0 || section.raw_len == section.len;
        let fits = section.raw_len <= section.len;
        (is_aligned && ends && is_there && is_whole && fits).then_some(section)
    }

    /// TDH.MEM.PAGE.ADD.
    fn add(&self, context: &mut Context, page: u64) {
        if self.attributes & ADDED_LATER == 0 {
            context.update(&block(b"MEM.PAGE.ADD", self.address + page));
        }
    }

    /// TDH.MR.EXTEND of each part of a page.
    fn measure(&self, image: &[u8], context: &mut Context, page: u64) {
        if self.attributes & MEASURED == 0 {
            return;
        }
        for part in (page..page + PAGE).step_by(CHUNK as usize) {
            context.update(&block(b"MR.EXTEND", self.address + part));
            let at = (self.offset + part) as usize;
            context.update(&image[at..at + CHUNK as usize]);
        }
    }
}

/// What the TDX module hashes of an operation on an address.
fn block(operation: &[u8], address: u64) -> [u8; 128] {
    let mut block = [0; 128];
    block[..operation.len()].copy_from_slice(operation);
    block[16..24].copy_from_slice(&address.to_le_bytes());
    block
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::hex::hex;

    /// Address, length and kind of a section that is nowhere in the image.
    pub(crate) type Memory = (u64, u64, u32);

    /// An image with sections of variables, code, a hand-off block and temporary memory, at the addresses of OVMF.
    pub(crate) fn image() -> Vec<u8> {
        with_memory(&[(0x81_0000, 0x1_0000, TEMPORARY), (0x80_9000, 0x2000, HAND_OFF)])
    }

    /// The same with other memory.
    pub(crate) fn with_memory(memory: &[Memory]) -> Vec<u8> {
        let mut image: Vec<u8> = (0..0x6000_u32).map(|at| (at / 7) as u8).collect();
        let mut sections: Vec<(u32, u32, u64, u64, u32, u32)> = vec![
            (0x1000, 0x2000, 0xffc0_1000, 0x2000, 0, MEASURED),
            (0, 0x1000, 0xffc0_0000, 0x1000, CONFIGURATION, 0),
        ];
        sections.extend(memory.iter().map(|&(address, len, kind)| (0, 0, address, len, kind, 0)));
        let mut metadata = b"TDVF".to_vec();
        metadata.extend((16 + 32 * sections.len() as u32).to_le_bytes());
        metadata.extend(1_u32.to_le_bytes());
        metadata.extend((sections.len() as u32).to_le_bytes());
        for (offset, raw, address, len, kind, attributes) in sections {
            metadata.extend(offset.to_le_bytes());
            metadata.extend(raw.to_le_bytes());
            metadata.extend(address.to_le_bytes());
            metadata.extend(len.to_le_bytes());
            metadata.extend(kind.to_le_bytes());
            metadata.extend(attributes.to_le_bytes());
        }
        image[0x4000..0x4000 + metadata.len()].copy_from_slice(&metadata);
        let back = 0x2000_u32;
        let other = [&[9; 4][..], &22_u16.to_le_bytes(), &[7; 16]].concat();
        let entry = [&back.to_le_bytes()[..], &22_u16.to_le_bytes(), &METADATA].concat();
        let len = (entry.len() + other.len() + 18) as u16;
        let table = [&entry[..], &other, &len.to_le_bytes(), &TABLE].concat();
        let end = image.len() - RESET_LEN;
        image[end - table.len()..end].copy_from_slice(&table);
        image
    }

    #[test]
    fn mr_td_is_over_added_and_measured_pages_in_the_order_of_qemu() {
        let image = image();
        let firmware = Firmware::parse(&image).expect("an image");
        let [one, first] = [Pages::OneByOne, Pages::AddedFirst].map(|order| firmware.mr_td(order));
        assert_ne!(one, first);
        // The same by hand: two pages measured, one, sixteen and two added.
        let mut context = Context::new(&SHA384);
        for (address, count, measured) in [
            (0xffc0_1000_u64, 2, true),
            (0xffc0_0000, 1, false),
            (0x81_0000, 16, false),
            (0x80_9000, 2, false),
        ] {
            for page in 0..count {
                let page = page * PAGE;
                context.update(&block(b"MEM.PAGE.ADD", address + page));
                for part in (0..PAGE / CHUNK).filter(|_| measured) {
                    let at = page + part * CHUNK;
                    context.update(&block(b"MR.EXTEND", address + at));
                    let at = 0x1000 + at as usize;
                    context.update(&image[at..at + CHUNK as usize]);
                }
            }
        }
        assert_eq!(hex(&one), hex(context.finish().as_ref()));
        let mut changed = image.clone();
        changed[0x2fff] ^= 1;
        let changed = Firmware::parse(&changed).expect("an image").mr_td(Pages::OneByOne);
        assert_ne!(changed, one);
        let mut variables = image.clone();
        variables[10] ^= 1;
        let variables = Firmware::parse(&variables).expect("an image").mr_td(Pages::OneByOne);
        assert_eq!(variables, one, "variables are measured into RTMR0");
    }

    #[test]
    fn what_is_no_firmware_of_tdx_is_an_error() {
        let image = image();
        for len in (0..image.len()).step_by(61) {
            assert!(Firmware::parse(&image[..len]).is_err(), "{len}");
        }
        for at in 0x4000..0x4000 + 16 + 4 * 32 {
            for value in [0xff, 0x80] {
                let mut wrong = image.clone();
                wrong[at] = value;
                // Whatever it is, nothing is read beyond it.
                if let Ok(firmware) = Firmware::parse(&wrong) {
                    firmware.mr_td(Pages::OneByOne);
                    firmware.configuration();
                }
            }
        }
    }
}
