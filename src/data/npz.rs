//! NumPy's `.npz` as MedMNIST has them: `train_images`, `train_labels`, `test_images`, `test_labels`; grey
//! `[N][H][W]` or colour `[N][H][W][3]` bytes, one whole number a label.
//!
//! An `.npz` is a ZIP archive of `.npy` files (NumPy Enhancement Proposal 1), stored or deflated. Of ZIP (APPNOTE
//! 6.3.10) what `zipfile` writes is read: one disk, no encryption, archives of less than 4 GiB.

use std::path::Path;

use crate::data::dataset::Split;
use crate::data::error::DataError;
use crate::data::picture::SIDE_MAX;

/// Images and labels of a split.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Arrays {
    /// Rows, columns and channels (1 or 3) of each image.
    pub(super) size: [usize; 3],
    /// `[N][H][W][channels]`.
    pub(super) images: Vec<u8>,
    pub(super) labels: Vec<u8>,
}

/// Largest archive, and largest array in one: both are in memory.
pub(super) const LEN_MAX: u64 = 4 << 30;
/// Longest header of an array; NumPy pads a short dictionary to 128 bytes.
const HEADER_LEN_MAX: usize = 4096;

/// Reads a split's arrays.
///
/// # Errors
/// What is missing or wrong, with the member's name.
pub(super) fn parse(path: &Path, bytes: &[u8], split: Split) -> Result<Arrays, DataError> {
    let wrong = |why| DataError::Format(path.into(), why);
    let damaged = "no ZIP archive, which an .npz is, or a damaged one";
    let members = members(bytes).ok_or_else(|| wrong(damaged.into()))?;
    let part = part(split);
    let images = format!("{part}_images.npy");
    if !members.iter().any(|member| member.name == images.as_bytes()) {
        return Err(DataError::Empty(path.into(), format!("array {part}_images")));
    }
    read(bytes, &members, part).map_err(wrong)
}

fn part(split: Split) -> &'static str {
    match split {
        Split::Test => "test",
        Split::Train => "train",
    }
}

fn read(bytes: &[u8], members: &[Member], part: &str) -> Result<Arrays, String> {
    let array = |what: &str| {
        let name = format!("{part}_{what}.npy");
        let member = members.iter().find(|member| member.name == name.as_bytes());
        let member = member.ok_or_else(|| format!("no array {part}_{what} in it"))?;
        let data = member.unpack(bytes).map_err(|why| format!("{name}: {why}"))?;
        Array::parse(data).map_err(|why| format!("{name}: {why}"))
    };
    let images = array("images")?;
    let (count, size) = match *images.shape {
        [count, rows, columns] => (count, [rows, columns, 1]),
        [count, rows, columns, 3] => (count, [rows, columns, 3]),
        _ => {
            return Err(format!(
                "images of shape {:?}, expected [N, H, W] or [N, H, W, 3]",
                images.shape
            ));
        }
    };
    if images.kind != "|u1" {
        return Err(format!("images of type {}, expected bytes, |u1", images.kind));
    }
    if count == 0 || !size.iter().all(|side| (1..=SIDE_MAX).contains(side)) {
        return Err(format!("images of shape {:?}", images.shape));
    }
    let labels = array("labels")?;
    if !matches!(*labels.shape, [of] | [of, 1] if of == count) {
        let shape = &labels.shape;
        return Err(format!("labels of shape {shape:?} for {count} images, expected one each"));
    }
    let labels = labels.numbers()?;
    Ok(Arrays { size, images: images.data, labels })
}

/// A file in the archive.
struct Member<'a> {
    name: &'a [u8],
    is_deflated: bool,
    /// What is set where the content is encrypted, or packed in another way.
    is_readable: bool,
    checksum: u32,
    packed: usize,
    len: usize,
    /// Of its local header.
    offset: usize,
}

fn word(bytes: &[u8], at: usize) -> Option<usize> {
    Some(u16::from_le_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?).into())
}

fn double(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// The central directory, found from the archive's end.
fn members(bytes: &[u8]) -> Option<Vec<Member<'_>>> {
    const END: [u8; 4] = *b"PK\x05\x06";
    const ENTRY: u32 = u32::from_le_bytes(*b"PK\x01\x02");
    // The end has 22 bytes and a comment of at most 64 KiB.
    let tail = bytes.len().saturating_sub(22 + usize::from(u16::MAX));
    let end = tail + bytes[tail..].windows(4).rposition(|four| four == END)?;
    let count = word(bytes, end + 10)?;
    let mut at = double(bytes, end + 16)? as usize;
    let mut members = Vec::new();
    for _ in 0..count {
        if double(bytes, at)? != ENTRY {
            return None;
        }
        let (flags, method) = (word(bytes, at + 8)?, word(bytes, at + 10)?);
        let lens = [28, 30, 32].map(|part| word(bytes, at + part));
        let [name, extra, comment] = lens;
        let (name, rest) = (name?, extra? + comment?);
        members.push(Member {
            name: bytes.get(at + 46..at + 46 + name)?,
            is_deflated: method == 8,
            is_readable: flags & 1 == 0 && (method == 0 || method == 8),
            checksum: double(bytes, at + 16)?,
            packed: double(bytes, at + 20)? as usize,
            len: double(bytes, at + 24)? as usize,
            offset: double(bytes, at + 42)? as usize,
        });
        at += 46 + name + rest;
    }
    Some(members)
}

impl Member<'_> {
    /// Its content; no more memory is taken than the length that the directory tells.
    fn unpack(&self, bytes: &[u8]) -> Result<Vec<u8>, String> {
        if !self.is_readable {
            return Err("encrypted, or packed otherwise than stored or deflated".into());
        }
        let packed = self.packed(bytes).ok_or("the archive ends inside it")?;
        let content = match self.is_deflated {
            false => packed.to_vec(),
            true => miniz_oxide::inflate::decompress_to_vec_with_limit(packed, self.len)
                .map_err(|error| format!("cannot be inflated: {error}"))?,
        };
        match content.len() == self.len && crc32fast::hash(&content) == self.checksum {
            true => Ok(content),
            false => Err("not what the archive's checksum says".into()),
        }
    }

    fn packed<'a>(&self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        const LOCAL: u32 = u32::from_le_bytes(*b"PK\x03\x04");
        if double(bytes, self.offset)? != LOCAL {
            return None;
        }
        let start =
            self.offset + 30 + word(bytes, self.offset + 26)? + word(bytes, self.offset + 28)?;
        bytes.get(start..start.checked_add(self.packed)?)
    }
}

/// An array as its file has it, row by row.
struct Array {
    kind: String,
    shape: Vec<usize>,
    data: Vec<u8>,
}

impl Array {
    fn parse(mut file: Vec<u8>) -> Result<Self, String> {
        const MAGIC: &[u8] = b"\x93NUMPY";
        let no_array = || "no NumPy array".to_owned();
        if !file.starts_with(MAGIC) {
            return Err(no_array());
        }
        // The length of the header has two bytes in version 1, four after that.
        let (header_len, start) = match file.get(6) {
            Some(1) => (word(&file, 8).ok_or_else(no_array)?, 10),
            Some(2 | 3) => (double(&file, 8).ok_or_else(no_array)? as usize, 12),
            _ => return Err(no_array()),
        };
        if header_len > HEADER_LEN_MAX {
            return Err(format!("a header of {header_len} bytes"));
        }
        let header = file.get(start..start + header_len).ok_or_else(no_array)?;
        let header = std::str::from_utf8(header).map_err(|_| no_array())?;
        let kind = entry(header, "descr").and_then(|text| text.split('\'').nth(1));
        let kind = kind.ok_or("no plain array: its type has fields")?.to_owned();
        let order = entry(header, "fortran_order").ok_or_else(no_array)?;
        if !order.trim_start().starts_with("False") {
            return Err("in Fortran's order; numpy.ascontiguousarray before it is saved".into());
        }
        let shape = entry(header, "shape").and_then(|text| text.split(['(', ')']).nth(1));
        let numbers =
            shape.ok_or_else(no_array)?.split(',').map(str::trim).filter(|n| !n.is_empty());
        let shape: Result<Vec<usize>, _> = numbers.map(str::parse).collect();
        let shape = shape.map_err(|_| no_array())?;
        let size: usize = kind.get(2..).and_then(|size| size.parse().ok()).ok_or_else(no_array)?;
        let len = shape.iter().try_fold(size, |len, side| len.checked_mul(*side));
        file.drain(..start + header_len);
        match len == Some(file.len()) {
            true => Ok(Self { kind, shape, data: file }),
            false => Err(format!("{} bytes of values for shape {shape:?}", file.len())),
        }
    }

    /// Whole numbers from 0 to 255.
    fn numbers(&self) -> Result<Vec<u8>, String> {
        let size = match self.kind.as_str() {
            "|u1" | "|i1" => 1,
            "<u2" | "<i2" => 2,
            "<u4" | "<i4" => 4,
            "<u8" | "<i8" => 8,
            kind => return Err(format!("labels of type {kind}, expected whole numbers")),
        };
        let is_signed = self.kind.as_bytes()[1] == b'i';
        let label = |(index, bytes): (usize, &[u8])| {
            let sign = size == 1 && is_signed && bytes[0] > 127;
            match bytes[1..].iter().all(|byte| *byte == 0) && !sign {
                true => Ok(bytes[0]),
                false => Err(format!("label {index} is not a number from 0 to 255")),
            }
        };
        self.data.chunks_exact(size).enumerate().map(label).collect()
    }
}

/// What follows a key of a header's dictionary.
fn entry<'a>(header: &'a str, key: &str) -> Option<&'a str> {
    let after = header.split(&format!("'{key}'")).nth(1)?;
    after.trim_start().strip_prefix(':')
}

/// Fuzzing entry: what parses has as many values as its sizes say.
#[cfg(any(test, fuzzing))]
pub fn fuzz(data: &[u8]) {
    if let Ok(Arrays { size, images, labels }) = parse(Path::new("fuzz"), data, Split::Train) {
        assert_eq!(images.len(), labels.len() * size.iter().product::<usize>());
    }
}
