//! The root of a Merkle tree over a worker's records: what its data is, in 32 bytes.
//!
//! The tree of RFC 6962, section 2.1, with SHA-256: leaves and inner nodes are hashed under different first
//! bytes, so that neither can be taken for the other, and the left part of a tree is the largest power of
//! two below its size. A single record can be shown to be part of the data by a path of a few hashes.

use ring::digest::{Context, SHA256};

const LEAF: [u8; 1] = [0];
const NODE: [u8; 1] = [1];

/// A tree that grows record by record; it keeps one hash a level.
#[derive(Default)]
pub struct Tree {
    /// Roots of complete subtrees, the largest first; the number of records tells which there are.
    roots: Vec<[u8; 32]>,
    len: u64,
}

impl Tree {
    /// Adds the next record, which may come in parts.
    pub fn push(&mut self, parts: &[&[u8]]) {
        self.push_leaf(leaf(parts));
    }

    /// Adds the next record, of which there is the hash.
    pub fn push_leaf(&mut self, mut hash: [u8; 32]) {
        // A trailing one of the length is a complete subtree of the size of the new one.
        for _ in 0..self.len.trailing_ones() {
            let left = self.roots.pop().expect("a root for each bit of the length");
            hash = node(&left, &hash);
        }
        self.roots.push(hash);
        self.len += 1;
    }

    /// The root; that of no records is the hash of nothing.
    pub fn root(&self) -> [u8; 32] {
        let mut rest = self.roots.iter().rev();
        let Some(last) = rest.next() else { return hash(&[], &[]) };
        rest.fold(*last, |right, left| node(left, &right))
    }
}

/// The hash of a record, which may come in parts.
pub fn leaf(parts: &[&[u8]]) -> [u8; 32] {
    hash(&LEAF, parts)
}

fn node(left: &[u8], right: &[u8]) -> [u8; 32] {
    hash(&NODE, &[left, right])
}

fn hash(kind: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    context.update(kind);
    parts.iter().for_each(|part| context.update(part));
    context.finish().as_ref().try_into().expect("SHA-256 has 32 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, by recursion.
    fn defined(records: &[Vec<u8>]) -> [u8; 32] {
        match records {
            [] => hash(&[], &[]),
            [only] => hash(&LEAF, &[only]),
            many => {
                let split = many.len().next_power_of_two() / 2;
                node(&defined(&many[..split]), &defined(&many[split..]))
            }
        }
    }

    #[test]
    fn the_root_is_the_standards() {
        // RFC 6962's test vectors of the empty tree and of one empty leaf.
        let hex = protocol::hex;
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let leaf = "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d";
        assert_eq!(hex(&Tree::default().root()), empty);
        let mut tree = Tree::default();
        tree.push(&[]);
        assert_eq!(hex(&tree.root()), leaf);
        for count in 0..70_u8 {
            let records: Vec<Vec<u8>> = (0..count).map(|number| vec![number; 3]).collect();
            let mut tree = Tree::default();
            records.iter().for_each(|record| tree.push(&[&record[..1], &record[1..]]));
            assert_eq!(tree.root(), defined(&records), "{count} records");
        }
    }
}
