//! gzip (RFC 1952), written with stored blocks, and DEFLATE (RFC 1951), read in full: annotations hold what other
//! tools compressed. The plain algorithm of zlib's `puff`: a code's symbols in order of length, one bit at a time. A few KiB need nothing faster.

/// Base lengths and distances of their symbols, and how many more bits say the rest (RFC 1951, 3.2.5).
const LENGTHS: [(u16, u8); 29] = [
    (3, 0),
    (4, 0),
    (5, 0),
    (6, 0),
    (7, 0),
    (8, 0),
    (9, 0),
    (10, 0),
    (11, 1),
    (13, 1),
    (15, 1),
    (17, 1),
    (19, 2),
    (23, 2),
    (27, 2),
    (31, 2),
    (35, 3),
    (43, 3),
    (51, 3),
    (59, 3),
    (67, 4),
    (83, 4),
    (99, 4),
    (115, 4),
    (131, 5),
    (163, 5),
    (195, 5),
    (227, 5),
    (258, 0),
];
const DISTANCES: u16 = 30;
/// In which order lengths of the code for lengths come.
const ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];
/// Longest code, in bits.
const CODE_LEN_MAX: usize = 15;

/// What a gzip file of one member holds, if it is whole and of at most `len_max` bytes.
pub(crate) fn gunzip(bytes: &[u8], len_max: usize) -> Option<Vec<u8>> {
    let (head, mut rest) = bytes.split_at_checked(10)?;
    let flags = head[3];
    // Extra field, name, comment, checksum of the head; the bits above have no meaning.
    if head[..3] != [0x1f, 0x8b, 8] || flags & 0xe0 != 0 {
        return None;
    }
    if flags & 4 != 0 {
        let (len, after) = rest.split_first_chunk()?;
        rest = after.get(usize::from(u16::from_le_bytes(*len))..)?;
    }
    for _ in 0..(flags >> 3 & 1) + (flags >> 4 & 1) {
        rest = &rest[rest.iter().position(|&byte| byte == 0)? + 1..];
    }
    if flags & 2 != 0 {
        rest = rest.get(2..)?;
    }
    let (data, tail) = rest.split_at_checked(rest.len().checked_sub(8)?)?;
    let out = inflate(data, len_max)?;
    let sum = crc32(&out).to_le_bytes();
    let len = u32::try_from(out.len()).ok()?.to_le_bytes();
    (tail[..4] == sum && tail[4..] == len).then_some(out)
}

/// RFC 1952 with stored blocks: a few KiB need no compressor in an attested program.
pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    const STORED_LEN_MAX: usize = 65535;
    let mut out = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    let mut blocks = bytes.chunks(STORED_LEN_MAX).peekable();
    while let Some(block) = blocks.next() {
        // At most STORED_LEN_MAX bytes by the line above.
        let len = block.len() as u16;
        out.push(u8::from(blocks.peek().is_none()));
        out.extend(len.to_le_bytes());
        out.extend((!len).to_le_bytes());
        out.extend(block);
    }
    out.extend(crc32(bytes).to_le_bytes());
    out.extend((bytes.len() as u32).to_le_bytes());
    out
}

/// The bytes that blocks stand for, all of them.
fn inflate(bytes: &[u8], len_max: usize) -> Option<Vec<u8>> {
    let mut bits = Bits { rest: bytes, held: 0, count: 0 };
    let mut out = Vec::new();
    loop {
        let is_last = bits.take(1)? == 1;
        match bits.take(2)? {
            0 => stored(&mut bits, &mut out, len_max)?,
            1 => {
                let mut lengths = [8; 288];
                lengths[144..256].fill(9);
                lengths[256..280].fill(7);
                let codes = (Code::new(&lengths)?, Code::new(&[5; DISTANCES as usize])?);
                coded(&mut bits, &codes, &mut out, len_max)?;
            }
            2 => {
                let codes = described(&mut bits)?;
                coded(&mut bits, &codes, &mut out, len_max)?;
            }
            _ => return None,
        }
        if is_last {
            return bits.rest.is_empty().then_some(out);
        }
    }
}

fn stored(bits: &mut Bits, out: &mut Vec<u8>, len_max: usize) -> Option<()> {
    (bits.held, bits.count) = (0, 0);
    let (head, rest) = bits.rest.split_first_chunk::<4>()?;
    let len = u16::from_le_bytes([head[0], head[1]]);
    if len != !u16::from_le_bytes([head[2], head[3]]) || out.len() + usize::from(len) > len_max {
        return None;
    }
    let (data, rest) = rest.split_at_checked(len.into())?;
    out.extend(data);
    bits.rest = rest;
    Some(())
}

/// A block in two codes: of bytes and lengths, and of distances.
fn coded(
    bits: &mut Bits,
    (symbols, distances): &(Code, Code),
    out: &mut Vec<u8>,
    len_max: usize,
) -> Option<()> {
    loop {
        match symbols.next(bits)? {
            symbol @ 0..256 => out.push(symbol as u8),
            256 => return Some(()),
            symbol => {
                let (base, more) = *LENGTHS.get(usize::from(symbol) - 257)?;
                let len = usize::from(base) + bits.take(more)? as usize;
                let symbol = distances.next(bits).filter(|&symbol| symbol < DISTANCES)?;
                // 1 to 4, then two symbols for each number of further bits.
                let more = (symbol / 2).saturating_sub(1) as u8;
                let base = if symbol < 2 { symbol } else { (2 + symbol % 2) << more };
                let distance = usize::from(base) + 1 + bits.take(more)? as usize;
                let from = out.len().checked_sub(distance)?;
                // It may overlap what it makes.
                for at in from..from + len {
                    out.push(out[at]);
                }
            }
        }
        if out.len() > len_max {
            return None;
        }
    }
}

/// The codes that a block describes itself.
fn described(bits: &mut Bits) -> Option<(Code, Code)> {
    let [symbols, distances, described] =
        [bits.take(5)? as usize + 257, bits.take(5)? as usize + 1, bits.take(4)? as usize + 4];
    let mut lengths = [0; 19];
    for &at in &ORDER[..described] {
        lengths[at] = bits.take(3)? as u8;
    }
    let code = Code::new(&lengths)?;
    let mut lengths = Vec::new();
    while lengths.len() < symbols + distances {
        let (value, count) = match code.next(bits)? {
            16 => (*lengths.last()?, 3 + bits.take(2)?),
            17 => (0, 3 + bits.take(3)?),
            18 => (0, 11 + bits.take(7)?),
            length => (length as u8, 1),
        };
        lengths.extend(std::iter::repeat_n(value, count as usize));
    }
    let (of_symbols, of_distances) = lengths.split_at(symbols);
    (of_distances.len() == distances).then_some(())?;
    Some((Code::new(of_symbols)?, Code::new(of_distances)?))
}

/// CRC-32 as gzip wants it (reflected polynomial 0xedb88320).
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            (sum >> 1) ^ (0xedb8_8320 & (sum & 1).wrapping_neg())
        })
    })
}

struct Bits<'a> {
    rest: &'a [u8],
    held: u32,
    count: u8,
}

impl Bits<'_> {
    /// The next few bits, at most 13, the first the lowest.
    fn take(&mut self, count: u8) -> Option<u32> {
        while self.count < count {
            let (byte, rest) = self.rest.split_first()?;
            self.held |= u32::from(*byte) << self.count;
            (self.rest, self.count) = (rest, self.count + 8);
        }
        let taken = self.held & ((1 << count) - 1);
        (self.held, self.count) = (self.held >> count, self.count - count);
        Some(taken)
    }
}

/// A prefix code: how many codes have each length, and the symbols in their order.
struct Code {
    counts: [u16; CODE_LEN_MAX + 1],
    symbols: Vec<u16>,
}

impl Code {
    /// The code of symbols with these lengths; none if more are named than fit.
    fn new(lengths: &[u8]) -> Option<Self> {
        let mut counts = [0; CODE_LEN_MAX + 1];
        for &length in lengths {
            *counts.get_mut(usize::from(length))? += 1;
        }
        counts[0] = 0;
        let mut left = 1_i32;
        for &count in &counts[1..] {
            left = 2 * left - i32::from(count);
            if left < 0 {
                return None;
            }
        }
        let mut symbols: Vec<u16> = (0..).take(lengths.len()).collect();
        symbols.retain(|&symbol| lengths[usize::from(symbol)] != 0);
        symbols.sort_by_key(|&symbol| lengths[usize::from(symbol)]);
        Some(Self { counts, symbols })
    }

    fn next(&self, bits: &mut Bits) -> Option<u16> {
        let (mut code, mut first, mut index) = (0, 0, 0);
        for &count in &self.counts[1..] {
            code |= bits.take(1)?;
            let count = u32::from(count);
            if code < first + count {
                return self.symbols.get((index + code - first) as usize).copied();
            }
            index += count;
            first = (first + count) << 1;
            code <<= 1;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_check_value_of_crc32_is_right() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }
}
