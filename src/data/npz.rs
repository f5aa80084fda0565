//! NumPy's `.npz` as MedMNIST has them: `train_images`, `train_labels`, `test_images`, `test_labels`; grey
//! `[N][H][W]` or colour `[N][H][W][3]` bytes, one whole number a label.
//!
//! An `.npz` is a ZIP archive of `.npy` files (NumPy Enhancement Proposal 1), stored or deflated. Of ZIP (APPNOTE
//! 6.3.10) what `zipfile` writes is read: one disk, no encryption, archives of less than 4 GiB.

use std::ops::Range;
use std::path::Path;

use crate::data::dataset::Split;
use crate::data::error::DataError;
use crate::data::picture::SIDE_MAX;
use crate::data::pixels::Images;
use crate::data::place::Place;
use crate::data::spans::Spans;

/// Images and labels of a split.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Arrays {
    /// Rows, columns and channels (1 or 3) of each image.
    pub(super) size: [usize; 3],
    /// `[H][W][channels]` each.
    pub(super) images: Images,
    pub(super) labels: Vec<u8>,
}

/// Largest archive, and largest array in one; of a deflated one all is in memory.
const LEN_MAX: u64 = 4 << 30;
/// Most images: where each lies is in memory.
const COUNT_MAX: usize = 10_000_000;
/// Longest directory of an archive.
const DIRECTORY_LEN_MAX: u64 = 16 << 20;
/// Bytes that are read together.
const PART: usize = 1 << 20;
/// Longest header of an array; NumPy pads a short dictionary to 128 bytes.
const HEADER_LEN_MAX: usize = 4096;

/// An archive whose bytes are read where they are needed.
pub(super) struct Archive<'a> {
    pub(super) path: &'a Path,
    pub(super) len: u64,
    /// Reads bytes from an offset on; nothing beyond the end is asked for.
    pub(super) read: &'a Read<'a>,
}

/// Fills a buffer with the bytes from an offset on.
type Read<'a> = dyn Fn(u64, &mut [u8]) -> Result<(), DataError> + 'a;

/// Why an array cannot be used.
enum Fault {
    /// The file was not read.
    Read(DataError),
    /// What is in it.
    Content(String),
}

impl From<DataError> for Fault {
    fn from(error: DataError) -> Self {
        Self::Read(error)
    }
}

impl From<&str> for Fault {
    fn from(why: &str) -> Self {
        Self::Content(why.into())
    }
}

impl From<String> for Fault {
    fn from(why: String) -> Self {
        Self::Content(why)
    }
}

impl Fault {
    /// The same with the name of what it is in.
    fn of(self, name: &str) -> Self {
        match self {
            Self::Content(why) => Self::Content(format!("{name}: {why}")),
            read @ Self::Read(_) => read,
        }
    }
}

/// Lists a split's arrays in an archive.
///
/// # Errors
/// As [`parse`], and when it cannot be read.
pub(super) fn list(place: &Place, path: &Path, split: Split) -> Result<Arrays, DataError> {
    let read = |offset: u64, part: &mut [u8]| place.read_part(path, offset, part);
    parse(&Archive { path, len: place.len(path)?, read: &read }, split)
}

/// Reads a split's arrays; of images that are stored as they are, only where they begin.
///
/// # Errors
/// What is missing or wrong, with the member's name.
pub(super) fn parse(archive: &Archive, split: Split) -> Result<Arrays, DataError> {
    let wrong = |why| DataError::Format(archive.path.into(), why);
    if archive.len > LEN_MAX {
        return Err(wrong(format!("{} bytes, more than {LEN_MAX}", archive.len)));
    }
    let damaged = "no ZIP archive, which an .npz is, or a damaged one";
    let members = archive.members()?.ok_or_else(|| wrong(damaged.into()))?;
    let part = part(split);
    let images = format!("{part}_images.npy");
    if !members.iter().any(|member| member.name == images.as_bytes()) {
        return Err(DataError::Empty(archive.path.into(), format!("array {part}_images")));
    }
    read(archive, &members, part).map_err(|fault| match fault {
        Fault::Read(error) => error,
        Fault::Content(why) => wrong(why),
    })
}

fn part(split: Split) -> &'static str {
    match split {
        Split::Test => "test",
        Split::Train => "train",
    }
}

fn read(archive: &Archive, members: &[Member], part: &str) -> Result<Arrays, Fault> {
    let array = |what: &str| {
        let name = format!("{part}_{what}.npy");
        let member = members.iter().find(|member| member.name == name.as_bytes());
        let member = member.ok_or_else(|| format!("no array {part}_{what} in it"))?;
        Array::open(archive, member).map_err(|fault| fault.of(&name))
    };
    let images = array("images")?;
    let (count, size) = match *images.shape {
        [count, rows, columns] => (count, [rows, columns, 1]),
        [count, rows, columns, 3] => (count, [rows, columns, 3]),
        _ => {
            let shape = &images.shape;
            let why = format!("images of shape {shape:?}, expected [N, H, W] or [N, H, W, 3]");
            return Err(why.into());
        }
    };
    if images.kind != "|u1" {
        return Err(format!("images of type {}, expected bytes, |u1", images.kind).into());
    }
    if count > COUNT_MAX {
        return Err(format!("{count} images, more than {COUNT_MAX}").into());
    }
    if count == 0 || !size.iter().all(|side| (1..=SIDE_MAX).contains(side)) {
        return Err(format!("images of shape {:?}", images.shape).into());
    }
    let labels = array("labels")?;
    if !matches!(*labels.shape, [of] | [of, 1] if of == count) {
        let shape = &labels.shape;
        let why = format!("labels of shape {shape:?} for {count} images, expected one each");
        return Err(why.into());
    }
    let labels = numbers(&labels.kind, &labels.data.whole(archive)?)?;
    let images = match images.data {
        Data::Memory(all) => Images::Memory(all),
        Data::Stored(range) => {
            let len: usize = size.iter().product();
            let mut spans = Spans::new(len);
            range.step_by(len).for_each(|offset| spans.push(archive.path, offset));
            Images::Stored(spans)
        }
    };
    Ok(Arrays { size, images, labels })
}

/// A file in the archive.
struct Member {
    name: Vec<u8>,
    is_deflated: bool,
    /// What is set where the content is encrypted, or packed in another way.
    is_readable: bool,
    checksum: u32,
    packed: u32,
    len: u32,
    /// Of its local header.
    offset: u32,
}

fn word(bytes: &[u8], at: usize) -> Option<usize> {
    Some(u16::from_le_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?).into())
}

fn double(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

impl Archive<'_> {
    /// So many bytes from `offset` on, if the archive has them.
    fn bytes(&self, offset: u64, len: u64) -> Result<Option<Vec<u8>>, DataError> {
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            return Ok(None);
        }
        let mut bytes = vec![0; len as usize];
        (self.read)(offset, &mut bytes)?;
        Ok(Some(bytes))
    }

    /// The central directory, found from the archive's end; `None` where there is none.
    fn members(&self) -> Result<Option<Vec<Member>>, DataError> {
        const END: [u8; 4] = *b"PK\x05\x06";
        // The end has 22 bytes and a comment of at most 64 KiB.
        let start = self.len.saturating_sub(22 + u64::from(u16::MAX));
        let Some(tail) = self.bytes(start, self.len - start)? else { return Ok(None) };
        let Some(end) = tail.windows(4).rposition(|four| four == END) else { return Ok(None) };
        let known = word(&tail, end + 10).zip(double(&tail, end + 16));
        let Some((count, first)) = known else { return Ok(None) };
        let len = (start + end as u64).checked_sub(first.into());
        let Some(len) = len.filter(|len| *len <= DIRECTORY_LEN_MAX) else { return Ok(None) };
        let directory = self.bytes(first.into(), len)?;
        Ok(directory.and_then(|bytes| directory_of(&bytes, count)))
    }

    /// Where a member's content is.
    fn packed(&self, member: &Member) -> Result<Option<Range<u64>>, DataError> {
        const LOCAL: u32 = u32::from_le_bytes(*b"PK\x03\x04");
        let Some(head) = self.bytes(member.offset.into(), 30)? else { return Ok(None) };
        let (name, extra) = (word(&head, 26).unwrap_or(0), word(&head, 28).unwrap_or(0));
        let start = u64::from(member.offset) + 30 + (name + extra) as u64;
        let end = start + u64::from(member.packed);
        Ok((double(&head, 0) == Some(LOCAL) && end <= self.len).then_some(start..end))
    }

    /// Whether the bytes there have that checksum.
    fn has_checksum(&self, range: Range<u64>, checksum: u32) -> Result<bool, DataError> {
        let mut hasher = crc32fast::Hasher::new();
        for start in range.clone().step_by(PART) {
            let len = (PART as u64).min(range.end - start);
            hasher.update(&self.bytes(start, len)?.unwrap_or_default());
        }
        Ok(hasher.finalize() == checksum)
    }
}

/// The entries of a central directory.
fn directory_of(bytes: &[u8], count: usize) -> Option<Vec<Member>> {
    const ENTRY: u32 = u32::from_le_bytes(*b"PK\x01\x02");
    let mut at = 0;
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
            name: bytes.get(at + 46..at + 46 + name)?.to_vec(),
            is_deflated: method == 8,
            is_readable: flags & 1 == 0 && (method == 0 || method == 8),
            checksum: double(bytes, at + 16)?,
            packed: double(bytes, at + 20)?,
            len: double(bytes, at + 24)?,
            offset: double(bytes, at + 42)?,
        });
        at += 46 + name + rest;
    }
    Some(members)
}

/// The values of an array.
enum Data {
    Memory(Vec<u8>),
    /// In the archive, as they are.
    Stored(Range<u64>),
}

impl Data {
    fn len(&self) -> u64 {
        match self {
            Self::Memory(all) => all.len() as u64,
            Self::Stored(range) => range.end - range.start,
        }
    }

    fn whole(self, archive: &Archive) -> Result<Vec<u8>, DataError> {
        match self {
            Self::Memory(all) => Ok(all),
            Self::Stored(range) => {
                Ok(archive.bytes(range.start, range.end - range.start)?.unwrap_or_default())
            }
        }
    }
}

/// An array as its file has it, row by row.
struct Array {
    kind: String,
    shape: Vec<usize>,
    data: Data,
}

impl Array {
    /// The array of a member whose checksum is right. Of a deflated one no more memory is taken than the length that
    /// the directory tells.
    fn open(archive: &Archive, member: &Member) -> Result<Self, Fault> {
        if !member.is_readable {
            return Err("encrypted, or packed otherwise than stored or deflated".into());
        }
        let packed = archive.packed(member)?.ok_or("the archive ends inside it")?;
        let other = "not what the archive's checksum says";
        if !member.is_deflated {
            let is_whole = member.packed == member.len
                && archive.has_checksum(packed.clone(), member.checksum)?;
            let head_len = (HEADER_LEN_MAX as u64 + 12).min(packed.end - packed.start);
            let head = archive.bytes(packed.start, head_len)?.filter(|_| is_whole).ok_or(other)?;
            let header = Header::parse(&head)?;
            let values = packed.start + header.len as u64..packed.end;
            return header.array(Data::Stored(values));
        }
        let bytes = archive.bytes(packed.start, packed.end - packed.start)?.unwrap_or_default();
        let len = member.len as usize;
        let mut content = miniz_oxide::inflate::decompress_to_vec_with_limit(&bytes, len)
            .map_err(|error| format!("cannot be inflated: {error}"))?;
        if content.len() != len || crc32fast::hash(&content) != member.checksum {
            return Err(other.into());
        }
        let header = Header::parse(&content)?;
        content.drain(..header.len);
        header.array(Data::Memory(content))
    }
}

/// What stands before an array's values.
struct Header {
    /// Its bytes.
    len: usize,
    kind: String,
    shape: Vec<usize>,
    /// Bytes of a value.
    size: usize,
}

impl Header {
    fn parse(file: &[u8]) -> Result<Self, String> {
        const MAGIC: &[u8] = b"\x93NUMPY";
        let no_array = || "no NumPy array".to_owned();
        if !file.starts_with(MAGIC) {
            return Err(no_array());
        }
        // The length of the header has two bytes in version 1, four after that.
        let (header_len, start) = match file.get(6) {
            Some(1) => (word(file, 8).ok_or_else(no_array)?, 10),
            Some(2 | 3) => (double(file, 8).ok_or_else(no_array)? as usize, 12),
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
        Ok(Self { len: start + header_len, kind, shape, size })
    }

    /// The array of these values, if they are as many as it says.
    fn array(self, data: Data) -> Result<Array, Fault> {
        let Self { kind, shape, size, .. } = self;
        let len = shape.iter().try_fold(size, |len, side| len.checked_mul(*side));
        match len.is_some_and(|len| len as u64 == data.len()) {
            true => Ok(Array { kind, shape, data }),
            false => Err(format!("{} bytes of values for shape {shape:?}", data.len()).into()),
        }
    }
}

/// Whole numbers from 0 to 255.
fn numbers(kind: &str, data: &[u8]) -> Result<Vec<u8>, String> {
    let size = match kind {
        "|u1" | "|i1" => 1,
        "<u2" | "<i2" => 2,
        "<u4" | "<i4" => 4,
        "<u8" | "<i8" => 8,
        kind => return Err(format!("labels of type {kind}, expected whole numbers")),
    };
    let is_signed = kind.as_bytes()[1] == b'i';
    let label = |(index, bytes): (usize, &[u8])| {
        let sign = size == 1 && is_signed && bytes[0] > 127;
        match bytes[1..].iter().all(|byte| *byte == 0) && !sign {
            true => Ok(bytes[0]),
            false => Err(format!("label {index} is not a number from 0 to 255")),
        }
    };
    data.chunks_exact(size).enumerate().map(label).collect()
}

/// What follows a key of a header's dictionary.
fn entry<'a>(header: &'a str, key: &str) -> Option<&'a str> {
    let after = header.split(&format!("'{key}'")).nth(1)?;
    after.trim_start().strip_prefix(':')
}

/// [`parse`] of an archive in memory.
#[cfg(any(test, fuzzing))]
pub(super) fn parse_bytes(path: &Path, bytes: &[u8], split: Split) -> Result<Arrays, DataError> {
    let read = |offset: u64, part: &mut [u8]| {
        part.copy_from_slice(&bytes[offset as usize..][..part.len()]);
        Ok(())
    };
    parse(&Archive { path, len: bytes.len() as u64, read: &read }, split)
}

/// Fuzzing entry: what parses has as many values as its sizes say.
#[cfg(any(test, fuzzing))]
pub fn fuzz(data: &[u8]) {
    let parsed = parse_bytes(Path::new("fuzz"), data, Split::Train);
    if let Ok(Arrays { size, images, labels }) = parsed {
        let count = match images {
            Images::Memory(all) => all.len() / size.iter().product::<usize>(),
            Images::Stored(spans) => spans.count(),
        };
        assert_eq!(count, labels.len());
    }
}
