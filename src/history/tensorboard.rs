//! Event files as TensorBoard reads them, scalars only.
//!
//! A record is its length (8 bytes), a masked CRC-32C of the length, the bytes, and a masked CRC-32C of
//! them, all little-endian (TensorFlow's `lib/io/record_writer`). The bytes are a protocol buffer
//! `Event { wall_time = 1 double, step = 2 int64, file_version = 3 string, summary = 5 }` with
//! `Summary { value = 1 { tag = 1 string, simple_value = 2 float } }`.

use std::io::{self, Write};

/// Writes events to a file.
pub struct Events<W> {
    out: W,
}

impl<W: Write> Events<W> {
    /// Begins a file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn new(out: W, now: f64) -> io::Result<Self> {
        let mut events = Self { out };
        let mut event = Vec::new();
        double(&mut event, 1, now);
        bytes(&mut event, 3, b"brain.Event:2");
        events.record(&event)?;
        Ok(events)
    }

    /// Adds named values of one step.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn scalars(&mut self, now: f64, step: u64, values: &[(&str, f32)]) -> io::Result<()> {
        let mut summary = Vec::new();
        for (tag, value) in values {
            let mut entry = Vec::new();
            bytes(&mut entry, 1, tag.as_bytes());
            // Field 2, wire type 5: four bytes.
            entry.push(2 << 3 | 5);
            entry.extend_from_slice(&value.to_le_bytes());
            bytes(&mut summary, 1, &entry);
        }
        let mut event = Vec::new();
        double(&mut event, 1, now);
        event.push(2 << 3);
        varint(&mut event, step);
        bytes(&mut event, 5, &summary);
        self.record(&event)?;
        self.out.flush()
    }

    fn record(&mut self, bytes: &[u8]) -> io::Result<()> {
        let length = (bytes.len() as u64).to_le_bytes();
        let mut record = Vec::with_capacity(bytes.len() + 16);
        record.extend_from_slice(&length);
        record.extend_from_slice(&masked(&length).to_le_bytes());
        record.extend_from_slice(bytes);
        record.extend_from_slice(&masked(bytes).to_le_bytes());
        // In one call: a reader that follows the file sees whole records.
        self.out.write_all(&record)
    }
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A field of 8 bytes (wire type 1).
fn double(out: &mut Vec<u8>, field: u8, value: f64) {
    out.push(field << 3 | 1);
    out.extend_from_slice(&value.to_le_bytes());
}

/// A field with a length (wire type 2).
fn bytes(out: &mut Vec<u8>, field: u8, value: &[u8]) {
    out.push(field << 3 | 2);
    varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

/// The checksum as records store it: rotated and shifted, so that the sum of data with sums inside is none
/// that occurs by chance.
fn masked(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli), reflected, as in RFC 3720 appendix B.4.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ 0x82f6_3b78 & (crc & 1).wrapping_neg();
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_standards() {
        // RFC 3720, B.4: 32 zeros, 32 ones, ascending bytes.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        let ascending: Vec<u8> = (0..32).collect();
        assert_eq!(crc32c(&ascending), 0x46dd_794e);
    }

    #[test]
    fn a_file_is_records_with_their_sums() {
        let mut out = Vec::new();
        let mut events = Events::new(&mut out, 1.5).expect("memory");
        events.scalars(2.5, 300, &[("loss", 0.5)]).expect("memory");
        let mut rest = &out[..];
        let mut records = Vec::new();
        while !rest.is_empty() {
            let len = u64::from_le_bytes(rest[..8].try_into().expect("8 bytes")) as usize;
            let sum = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().expect("4 bytes"));
            assert_eq!(sum(8), masked(&rest[..8]));
            assert_eq!(sum(12 + len), masked(&rest[12..12 + len]));
            records.push(&rest[12..12 + len]);
            rest = &rest[16 + len..];
        }
        assert_eq!(records.len(), 2);
        let expected = [
            &[9][..],
            &2.5f64.to_le_bytes(),
            &[16, 0xac, 2, 42, 13, 10, 11, 10, 4],
            b"loss",
            &[21],
            &0.5f32.to_le_bytes(),
        ]
        .concat();
        assert_eq!(records[1], expected);
    }
}
