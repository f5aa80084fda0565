//! gzip (RFC 1952): read as annotations hold it, which other tools compressed, and written with stored blocks.

use miniz_oxide::inflate::decompress_to_vec_with_limit;

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
    let out = decompress_to_vec_with_limit(data, len_max).ok()?;
    let sum = crc32fast::hash(&out).to_le_bytes();
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
    out.extend(crc32fast::hash(bytes).to_le_bytes());
    out.extend((bytes.len() as u32).to_le_bytes());
    out
}
