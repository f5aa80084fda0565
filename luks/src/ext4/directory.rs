//! Directory blocks: names and inode numbers, one after the other.

use super::layout::{le16, le32, put16, put32};
use crate::Error;

/// Bytes of an entry before its name.
const HEAD: usize = 8;
/// Longest name.
pub(super) const NAME_LEN_MAX: usize = 255;
/// File types of entries.
pub(super) const TYPE_FILE: u8 = 1;
pub(super) const TYPE_DIRECTORY: u8 = 2;

/// An entry and where it is in its block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) at: usize,
    pub(super) len: usize,
    pub(super) inode: u32,
    pub(super) kind: u8,
    pub(super) name: Vec<u8>,
}

impl Entry {
    /// Bytes that the entry needs of its `len`.
    fn used(&self) -> usize {
        if self.inode == 0 { 0 } else { needed(self.name.len()) }
    }
}

/// Every entry of a block, the unused ones too.
pub(super) fn entries(block: &[u8]) -> Result<Vec<Entry>, Error> {
    let mut entries = Vec::new();
    let mut at = 0;
    while at < block.len() {
        let rest = &block[at..];
        if rest.len() < HEAD {
            return Err(Error::file_system("a directory block"));
        }
        let len = usize::from(le16(rest, 4));
        let name_len = usize::from(rest[6]);
        if len < HEAD || len % 4 != 0 || len > rest.len() || HEAD + name_len > len {
            return Err(Error::file_system("a directory entry"));
        }
        let name = rest[HEAD..][..name_len].to_vec();
        entries.push(Entry { at, len, inode: le32(rest, 0), kind: rest[7], name });
        at += len;
    }
    Ok(entries)
}

/// Puts an entry where there is room; false if there is none.
pub(super) fn insert(block: &mut [u8], name: &[u8], inode: u32, kind: u8) -> Result<bool, Error> {
    let entries = entries(block)?;
    let room = entries.iter().find(|entry| entry.len - entry.used() >= needed(name.len()));
    let Some(entry) = room else { return Ok(false) };
    let used = entry.used();
    if used > 0 {
        put16(block, entry.at + 4, used as u16);
    }
    write(&mut block[entry.at + used..][..entry.len - used], name, inode, kind);
    Ok(true)
}

/// Takes an entry out: its bytes go to the one before it.
pub(super) fn remove(block: &mut [u8], name: &[u8]) -> Result<bool, Error> {
    let entries = entries(block)?;
    let found = entries.iter().position(|entry| entry.inode != 0 && entry.name == name);
    let Some(index) = found else { return Ok(false) };
    let entry = &entries[index];
    match index.checked_sub(1).map(|before| &entries[before]) {
        Some(before) => put16(block, before.at + 4, (before.len + entry.len) as u16),
        None => put32(block, entry.at, 0),
    }
    Ok(true)
}

/// A block of a directory: with `.` and `..`, or without any entry.
pub(super) fn new_block(len: usize, own_and_parent: Option<[u32; 2]>) -> Vec<u8> {
    let mut block = vec![0; len];
    match own_and_parent {
        None => put16(&mut block, 4, len as u16),
        Some([own, parent]) => {
            write(&mut block[..needed(1)], b".", own, TYPE_DIRECTORY);
            write(&mut block[needed(1)..], b"..", parent, TYPE_DIRECTORY);
        }
    }
    block
}

fn write(space: &mut [u8], name: &[u8], inode: u32, kind: u8) {
    let len = space.len();
    put32(space, 0, inode);
    put16(space, 4, len as u16);
    space[6] = name.len() as u8;
    space[7] = kind;
    space[HEAD..][..name.len()].copy_from_slice(name);
}

fn needed(name_len: usize) -> usize {
    (HEAD + name_len).next_multiple_of(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_and_go() {
        let mut block = new_block(1024, Some([11, 2]));
        let mut names = Vec::new();
        for index in 0.. {
            let name = format!("file-{index}");
            if !insert(&mut block, name.as_bytes(), 20 + index, TYPE_FILE).expect("valid") {
                break;
            }
            names.push(name);
        }
        assert!(names.len() > 40, "{}", names.len());
        assert!(remove(&mut block, b"file-7").expect("valid"));
        assert!(!remove(&mut block, b"file-7").expect("valid"));
        assert!(insert(&mut block, b"again", 9, TYPE_FILE).expect("valid"));
        let live = entries(&block).expect("valid").into_iter().filter(|entry| entry.inode != 0);
        assert_eq!(live.count(), names.len() + 2);
    }
}
