//! Extents: which blocks of the disk are the content of a file, as a tree in its inode.

use std::collections::HashSet;

use super::blocks::Blocks;
use super::layout::{FLAG_EXTENTS, INODE_TREE, Inode, le16, le32, put16, put32};
use crate::Error;
use crate::disk::Disk;

const MAGIC: u16 = 0xf30a;
/// Bytes of the header of a node, and of each of its entries.
const ENTRY: usize = 12;
/// The kernel's EXT4_MAX_EXTENT_DEPTH; a tree that is deeper refers to itself.
const DEPTH_MAX: u16 = 5;
/// Longest initialised extent; longer ones are marked as not written yet.
pub(super) const LEN_MAX: u64 = 32768;
/// Entries that fit into an inode.
const IN_INODE: usize = 4;
/// More extents than a file of any use has.
const COUNT_MAX: usize = 1 << 20;

/// Blocks of a file that are consecutive on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// First block in the file.
    pub(super) logical: u64,
    /// First block on the disk.
    pub(super) physical: u64,
    /// Number of blocks.
    pub(super) len: u64,
    /// Whether the blocks hold content; else they read as zeros.
    pub(super) written: bool,
}

/// The extents of a file in the order of its blocks, and the blocks that hold their tree.
pub(super) fn read<D: Disk>(
    blocks: &Blocks<D>,
    inode: &Inode,
) -> Result<(Vec<Extent>, Vec<u64>), Error> {
    if inode.flags() & FLAG_EXTENTS == 0 {
        return Err(Error::refused("a file without extents (ext2, ext3 or inline data)"));
    }
    let mut walk = Walk { extents: Vec::new(), nodes: Vec::new(), seen: HashSet::new() };
    walk.node(blocks, inode.tree(), None)?;
    Ok((walk.extents, walk.nodes))
}

struct Walk {
    extents: Vec<Extent>,
    nodes: Vec<u64>,
    /// The nodes again: a tree that contains itself would be walked for ever.
    seen: HashSet<u64>,
}

impl Walk {
    fn node<D: Disk>(
        &mut self,
        blocks: &Blocks<D>,
        node: &[u8],
        depth: Option<u16>,
    ) -> Result<(), Error> {
        let damaged = || Error::file_system("a tree of extents");
        let [magic, entries, _, its_depth] = [0, 2, 4, 6].map(|at| le16(node, at));
        let depth_fits = depth.map_or(its_depth <= DEPTH_MAX, |depth| its_depth == depth);
        if magic != MAGIC || !depth_fits || (usize::from(entries) + 1) * ENTRY > node.len() {
            return Err(damaged());
        }
        for entry in node[ENTRY..].chunks_exact(ENTRY).take(entries.into()) {
            let logical = u64::from(le32(entry, 0));
            let end = self.extents.last().map_or(0, |last| last.logical + last.len);
            if its_depth == 0 {
                let len = u64::from(le16(entry, 4));
                let physical = u64::from(le16(entry, 6)) << 32 | u64::from(le32(entry, 8));
                let written = len <= LEN_MAX;
                let len = if written { len } else { len - LEN_MAX };
                if len == 0 || logical < end || self.extents.len() >= COUNT_MAX {
                    return Err(damaged());
                }
                blocks.check(physical, len)?;
                self.extents.push(Extent { logical, physical, len, written });
            } else {
                let child = u64::from(le16(entry, 8)) << 32 | u64::from(le32(entry, 4));
                blocks.check(child, 1)?;
                if logical < end || self.nodes.len() >= COUNT_MAX || !self.seen.insert(child) {
                    return Err(damaged());
                }
                self.nodes.push(child);
                self.node(blocks, &blocks.read(child)?, Some(its_depth - 1))?;
            }
        }
        Ok(())
    }
}

/// Adds blocks to the end of a file.
pub(super) fn push(extents: &mut Vec<Extent>, physical: u64, len: u64) {
    let logical = extents.last().map_or(0, |last| last.logical + last.len);
    if let Some(last) = extents.last_mut()
        && last.physical + last.len == physical
        && last.len + len <= LEN_MAX
    {
        last.len += len;
        return;
    }
    extents.push(Extent { logical, physical, len, written: true });
}

/// How many blocks the tree of that many extents needs besides the inode.
pub(super) fn nodes_needed(extents: usize, block: usize) -> Result<usize, Error> {
    let per_node = block / ENTRY - 1;
    match extents.div_ceil(per_node) {
        _ if extents <= IN_INODE => Ok(0),
        nodes if nodes <= IN_INODE => Ok(nodes),
        _ => Err(Error::Full),
    }
}

/// Writes the tree into the inode and, if they do not fit there, into `nodes`.
pub(super) fn write<D: Disk>(
    blocks: &mut Blocks<D>,
    inode: &mut Inode,
    extents: &[Extent],
    nodes: &[u64],
) {
    let root = &mut inode.bytes[INODE_TREE];
    root.fill(0);
    if nodes.is_empty() {
        write_leaf(root, extents);
        return;
    }
    let per_node = blocks.size() / ENTRY - 1;
    write_header(root, nodes.len(), 1);
    for (index, (&node, extents)) in nodes.iter().zip(extents.chunks(per_node)).enumerate() {
        let entry = &mut root[(index + 1) * ENTRY..][..ENTRY];
        put32(entry, 0, extents[0].logical as u32);
        put32(entry, 4, node as u32);
        put16(entry, 8, (node >> 32) as u16);
        let mut bytes = vec![0; blocks.size()];
        write_leaf(&mut bytes, extents);
        blocks.replace(node, bytes);
    }
}

fn write_leaf(node: &mut [u8], extents: &[Extent]) {
    write_header(node, extents.len(), 0);
    for (extent, entry) in extents.iter().zip(node[ENTRY..].chunks_exact_mut(ENTRY)) {
        let len = if extent.written { extent.len } else { extent.len + LEN_MAX };
        put32(entry, 0, extent.logical as u32);
        put16(entry, 4, len as u16);
        put16(entry, 6, (extent.physical >> 32) as u16);
        put32(entry, 8, extent.physical as u32);
    }
}

fn write_header(node: &mut [u8], entries: usize, depth: u16) {
    let max = node.len() / ENTRY - 1;
    put16(node, 0, MAGIC);
    put16(node, 2, entries as u16);
    put16(node, 4, max as u16);
    put16(node, 6, depth);
}
