//! Hashes of values as they travel: one a cell, and one of these.
//!
//! Cells come in any order, some twice, and are hashed while they are in a cache anyway. BLAKE3, since each step hashes
//! all gradients and all parameters: SHA-256, which everything else here is hashed with, takes four times as long.

use kernels::Pool;

use crate::job::receipt::Hash;
use crate::training::cells::Cells;

/// Separates this from other uses of the hash.
const LABEL: &str = "hfl 2026-11 receipt: values in cells";

/// The hashes of a buffer's cells.
#[derive(Clone, Debug)]
pub struct CellHashes(Vec<Option<Hash>>);

impl CellHashes {
    /// None yet, of a buffer in so many cells.
    pub fn new(count: usize) -> Self {
        Self(vec![None; count])
    }

    /// All of a buffer, on the threads of a pool.
    pub fn of(cells: &Cells, values: &[f32], pool: &Pool) -> Self {
        let mut hashes = Self::new(cells.count());
        hashes.complete(cells, values, pool);
        hashes
    }

    /// Adds those of a buffer's cells that it has not yet, on the threads of a pool.
    pub fn complete(&mut self, cells: &Cells, values: &[f32], pool: &Pool) {
        pool.for_each_chunk(&mut self.0, 1, |index, hash| {
            if hash[0].is_some() {
                return;
            }
            let range = cells.range(index).expect("a cell");
            let mut room = Vec::new();
            let bytes = cells.encode(&range, &values[range.clone()], &mut room);
            hash[0] = Some(hash_of(bytes));
        });
    }

    /// Whether it has a cell's.
    pub fn has(&self, index: usize) -> bool {
        self.0[index].is_some()
    }

    /// Takes a cell's bytes, instead of what it had before.
    pub fn put(&mut self, index: usize, bytes: &[u8]) {
        self.0[index] = Some(hash_of(bytes));
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.0.fill(None);
    }

    /// The hash of all cells, once it has each.
    pub fn root(&self) -> Option<Hash> {
        let mut hasher = blake3::Hasher::new_derive_key(LABEL);
        for hash in &self.0 {
            hasher.update(hash.as_ref()?);
        }
        Some(*hasher.finalize().as_bytes())
    }
}

fn hash_of(bytes: &[u8]) -> Hash {
    *blake3::hash(bytes).as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_arrival_does_not_count_and_each_cell_does() {
        let values: Vec<f32> = (0..1000).map(|index| index as f32).collect();
        let cells = Cells::plain(1000, 96);
        let whole = CellHashes::of(&cells, &values, &Pool::new(2)).root();
        let mut hashes = CellHashes::new(cells.count());
        for index in (0..cells.count()).rev() {
            assert_eq!(hashes.root(), None);
            let range = cells.range(index).expect("a cell");
            hashes.put(index, bytemuck::cast_slice(&values[range]));
        }
        assert_eq!(hashes.root(), whole);
        assert!(whole.is_some());
        let mut half = CellHashes::new(cells.count());
        for index in (0..cells.count()).step_by(2) {
            let range = cells.range(index).expect("a cell");
            half.put(index, bytemuck::cast_slice(&values[range]));
        }
        assert!(half.has(2) && !half.has(3));
        half.complete(&cells, &values, &Pool::new(2));
        assert_eq!(half.root(), whole);
        let mut changed = values.clone();
        changed[999] += 1.0;
        assert_ne!(CellHashes::of(&cells, &changed, &Pool::new(1)).root(), whole);
        hashes.put(3, &[1]);
        assert_ne!(hashes.root(), whole);
        hashes.clear();
        assert_eq!(hashes.root(), None);
    }
}
