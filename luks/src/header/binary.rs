//! The 4096-byte binary header in front of each metadata copy (LUKS2 specification, section 2.1).

use ring::digest;

use crate::Error;

/// Bytes of the binary header.
pub(crate) const LEN: usize = 4096;
/// Metadata sizes that the format knows.
pub(crate) const SIZES: [u64; 9] =
    [16 << 10, 32 << 10, 64 << 10, 128 << 10, 256 << 10, 512 << 10, 1 << 20, 2 << 20, 4 << 20];
/// The largest metadata that is read.
pub(crate) const SIZE_MAX: u64 = 1 << 20;

const MAGIC: [[u8; 6]; 2] = [*b"LUKS\xba\xbe", *b"SKUL\xba\xbe"];
const VERSION: u16 = 2;
/// Bytes of a label's field, with the NUL at its end.
pub(crate) const LABEL_LEN: usize = 48;
const CHECKSUM_AT: usize = 448;
const CHECKSUM_LEN: usize = 64;

/// Which of the two copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Copy {
    /// At offset 0.
    Primary,
    /// Behind the primary.
    Secondary,
}

/// The hash of the checksum over a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Checksum {
    Sha256,
    Sha512,
}

impl Checksum {
    fn algorithm(self) -> &'static digest::Algorithm {
        match self {
            Self::Sha256 => &digest::SHA256,
            Self::Sha512 => &digest::SHA512,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }
}

/// The fields that are the same in both copies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Binary {
    /// Bytes of a copy, binary header and JSON area.
    pub(crate) size: u64,
    /// Counts updates.
    pub(crate) sequence: u64,
    pub(crate) label: String,
    pub(crate) checksum: Checksum,
    pub(crate) uuid: String,
    pub(crate) subsystem: String,
}

impl Binary {
    /// Reads the binary header of a copy whose offset is `offset`; the checksum is checked later.
    pub(crate) fn parse(bytes: &[u8; LEN], copy: Copy, offset: u64) -> Result<Self, Error> {
        if bytes[..6] != MAGIC[copy as usize] {
            return Err(Error::NotLuks("no magic number"));
        }
        if u16::from_be_bytes([bytes[6], bytes[7]]) != VERSION {
            return Err(Error::NotLuks("another version than LUKS2"));
        }
        let size = be64(bytes, 8);
        if !SIZES.contains(&size) {
            return Err(Error::damaged(format!(
                "metadata of {size} bytes, which LUKS2 does not have"
            )));
        }
        if be64(bytes, 256) != offset || (copy == Copy::Secondary && size != offset) {
            return Err(Error::damaged("the header is not where it says"));
        }
        let padding = bytes[264..CHECKSUM_AT].iter().chain(&bytes[512..]);
        if padding.copied().any(|byte| byte != 0) {
            return Err(Error::refused("bytes in the padding of the binary header"));
        }
        let checksum = match text(bytes, 72, 32, is_plain)?.as_str() {
            "sha256" => Checksum::Sha256,
            "sha512" => Checksum::Sha512,
            _ => {
                return Err(Error::refused("a header checksum other than sha256 or sha512"));
            }
        };
        let used = checksum.algorithm().output_len();
        if bytes[CHECKSUM_AT + used..512].iter().any(|&byte| byte != 0) {
            return Err(Error::refused("bytes behind the checksum"));
        }
        let uuid = text(bytes, 168, 40, is_plain)?;
        if !is_uuid(&uuid) {
            return Err(Error::damaged("the UUID is none"));
        }
        Ok(Self {
            size,
            sequence: be64(bytes, 16),
            label: text(bytes, 24, LABEL_LEN, is_printable)?,
            checksum,
            uuid,
            subsystem: text(bytes, 208, 48, is_printable)?,
        })
    }

    /// The bytes of a copy: this header with its checksum, and the JSON area.
    pub(crate) fn write(&self, copy: Copy, salt: &[u8; 64], json: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; self.size as usize];
        bytes[..6].copy_from_slice(&MAGIC[copy as usize]);
        bytes[6..8].copy_from_slice(&VERSION.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.size.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.sequence.to_be_bytes());
        let mut put =
            |at: usize, text: &str| bytes[at..][..text.len()].copy_from_slice(text.as_bytes());
        put(24, &self.label);
        put(72, self.checksum.name());
        put(168, &self.uuid);
        put(208, &self.subsystem);
        bytes[104..168].copy_from_slice(salt);
        let offset = if copy == Copy::Primary { 0 } else { self.size };
        bytes[256..264].copy_from_slice(&offset.to_be_bytes());
        bytes[LEN..][..json.len()].copy_from_slice(json);
        let sum = digest::digest(self.checksum.algorithm(), &bytes);
        bytes[CHECKSUM_AT..][..sum.as_ref().len()].copy_from_slice(sum.as_ref());
        bytes
    }

    /// Whether the checksum of a whole copy is right.
    pub(crate) fn checksum_matches(&self, copy: &[u8]) -> bool {
        let mut context = digest::Context::new(self.checksum.algorithm());
        context.update(&copy[..CHECKSUM_AT]);
        context.update(&[0; CHECKSUM_LEN]);
        context.update(&copy[CHECKSUM_AT + CHECKSUM_LEN..]);
        let sum = context.finish();
        copy[CHECKSUM_AT..].starts_with(sum.as_ref())
    }
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// A NUL-terminated field of UTF-8 with such characters; only NULs follow the first.
fn text(
    bytes: &[u8],
    at: usize,
    len: usize,
    allowed: impl Fn(char) -> bool,
) -> Result<String, Error> {
    let field = &bytes[at..at + len];
    let end = field.iter().position(|&byte| byte == 0).unwrap_or(len);
    let text = std::str::from_utf8(&field[..end]).ok().filter(|text| text.chars().all(allowed));
    match text {
        Some(text) if end < len && field[end..].iter().all(|&byte| byte == 0) => Ok(text.into()),
        _ => Err(Error::refused(format!("a text field at byte {at} that is no plain text"))),
    }
}

/// What names of algorithms and a UUID consist of.
fn is_plain(c: char) -> bool {
    (' '..='~').contains(&c)
}

/// What may be in a text that people chose.
pub(crate) fn is_printable(c: char) -> bool {
    !c.is_control()
}

/// Whether this is a UUID in lower case.
fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte),
        })
}

/// Makes the checksums of both copies right, for the fuzzer.
pub(crate) fn fix_checksums(disk: &mut [u8]) {
    for copy in [Copy::Primary, Copy::Secondary] {
        let offset = if copy == Copy::Primary { 0 } else { be64(disk, 8) };
        let Some(bytes) = disk.get_mut(offset as usize..) else { return };
        let Some(head) = bytes.first_chunk::<LEN>() else { return };
        let Ok(binary) = Binary::parse(head, copy, offset) else { return };
        let Some(bytes) = bytes.get_mut(..binary.size as usize) else { return };
        bytes[CHECKSUM_AT..][..CHECKSUM_LEN].fill(0);
        let sum = digest::digest(binary.checksum.algorithm(), bytes);
        bytes[CHECKSUM_AT..][..sum.as_ref().len()].copy_from_slice(sum.as_ref());
    }
}

/// Fuzzing entry, see `fuzz_binary`.
pub(crate) fn fuzz(data: &[u8]) {
    let Some(head) = data.first_chunk::<LEN>() else { return };
    for (copy, offset) in [(Copy::Primary, 0), (Copy::Secondary, SIZES[0])] {
        if let Ok(binary) = Binary::parse(head, copy, offset) {
            let written = binary.write(copy, &[0; 64], b"{}");
            let head = written.first_chunk::<LEN>().expect("a header");
            assert_eq!(Binary::parse(head, copy, offset).expect("our own header"), binary);
            assert!(binary.checksum_matches(&written));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_reads_back_and_every_flip_in_it_is_noticed() {
        let binary = Binary {
            size: 16 << 10,
            sequence: 3,
            label: "modèle".into(),
            checksum: Checksum::Sha256,
            uuid: "4410f1bd-f4c0-421c-8ec4-bba9bd80bffa".into(),
            subsystem: "hfl".into(),
        };
        let mut copy = binary.write(Copy::Secondary, &[9; 64], b"{}");
        let head = |copy: &[u8]| *copy.first_chunk::<LEN>().expect("a header");
        assert_eq!(Binary::parse(&head(&copy), Copy::Secondary, 16 << 10).expect("valid"), binary);
        assert!(binary.checksum_matches(&copy));
        for at in 0..copy.len() {
            copy[at] ^= 1;
            let parsed = Binary::parse(&head(&copy), Copy::Secondary, 16 << 10);
            assert!(parsed.is_err() || !binary.checksum_matches(&copy), "byte {at}");
            copy[at] ^= 1;
        }
    }
}
