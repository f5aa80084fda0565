//! `Dataset`: labelled images in memory, whatever files they came from.

use crate::data::batch::{Batch, Image, View};
use crate::data::merkle::Tree;
use crate::job::Normalisation;
use crate::job::shape::Shape;

/// Labelled images in memory.
#[derive(Clone, Debug)]
pub struct Dataset {
    shape: Shape,
    normalisation: Normalisation,
    /// Side of the pictures here: larger than a network's images where it sees parts of them.
    side: usize,
    /// Records one after the other: a label, then the pixels, channel by channel and row by row.
    records: Vec<u8>,
}

/// Which images of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// Those to test with.
    Test,
    /// Those to learn from.
    Train,
}

/// Every `of`-th record, from `index` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Which one, from 0.
    pub index: usize,
    /// Of how many.
    pub of: usize,
}

impl std::str::FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (index, of) = text.split_once('/').ok_or("expected I/N, such as 0/2")?;
        let number = |text: &str| text.parse().map_err(|_| format!("'{text}' is no number"));
        let (index, of) = (number(index)?, number(of)?);
        if index >= of {
            return Err(format!("shard {index} of {of}: shards count from 0"));
        }
        Ok(Self { index, of })
    }
}

impl Dataset {
    /// Makes a data set of records.
    ///
    /// # Panics
    /// If a record is not whole or its label is no class.
    pub fn new(shape: Shape, normalisation: Normalisation, records: Vec<u8>) -> Self {
        Self::larger(shape, normalisation, shape.side, records)
    }

    /// The same of pictures of another side, at least that of the network's images.
    ///
    /// # Panics
    /// As [`Dataset::new`].
    pub fn larger(
        shape: Shape,
        normalisation: Normalisation,
        side: usize,
        records: Vec<u8>,
    ) -> Self {
        assert!(side >= shape.side, "{side} pixels for {}", shape.side);
        let set = Self { shape, normalisation, side, records };
        assert!(set.records.len().is_multiple_of(set.record_len()), "whole records");
        assert!((0..set.len()).all(|index| usize::from(set.label(index)) < shape.classes));
        set
    }

    /// Size of the images, and number of classes.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Side of the pictures here.
    pub fn side(&self) -> usize {
        self.side
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.records.len() / self.record_len()
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// The class of an image.
    pub fn label(&self, index: usize) -> u8 {
        self.records[index * self.record_len()]
    }

    /// Images of each class.
    pub fn class_counts(&self) -> Vec<u64> {
        let mut counts = vec![0; self.shape.classes];
        (0..self.len()).for_each(|index| counts[usize::from(self.label(index))] += 1);
        counts
    }

    /// All records.
    pub fn records(&self) -> &[u8] {
        &self.records
    }

    /// What these records are, in 32 bytes: the root of a Merkle tree over them in their order.
    pub fn digest(&self) -> [u8; 32] {
        let mut tree = Tree::default();
        self.records.chunks_exact(self.record_len()).for_each(|record| tree.push(&[record]));
        tree.root()
    }

    /// The shard's part of these images.
    pub fn shard(&self, shard: Shard) -> Self {
        let kept = self.records.chunks_exact(self.record_len()).skip(shard.index).step_by(shard.of);
        Self { records: kept.flatten().copied().collect(), ..*self }
    }

    /// The images `first..first + n`, as they are.
    pub fn batch(&self, first: usize, n: usize, batch: &mut Batch) {
        batch.resize(self.shape, n);
        (0..n).for_each(|i| self.put(first + i, View::default(), batch, i));
    }

    /// The images `first..first + n`, mirrored: left is right.
    pub fn mirrored_batch(&self, first: usize, n: usize, batch: &mut Batch) {
        batch.resize(self.shape, n);
        (0..n).for_each(|i| self.put(first + i, View::mirrored(), batch, i));
    }

    /// Writes an image to its place in a batch.
    pub(super) fn put(&self, index: usize, view: View, batch: &mut Batch, i: usize) {
        let record = &self.records[index * self.record_len()..][..self.record_len()];
        let image = Image { label: record[0], pixels: &record[1..], side: self.side };
        batch.put(self.shape, self.normalisation, i, &image, view);
    }

    fn record_len(&self) -> usize {
        1 + self.side * self.side * self.shape.channels
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::cifar::{RECORD_LEN, numbered};

    #[test]
    fn images_are_normalised_and_pixel_major() {
        let data = numbered(2);
        let mut batch = Batch::default();
        data.batch(0, 2, &mut batch);
        let [mean, deviation] = Normalisation::Cifar.constants();
        let (h, w, colour) = (5, 9, 2);
        for i in 0..2 {
            let byte = data.records()[i * RECORD_LEN + 1 + (colour * 32 + h) * 32 + w];
            let want = (f32::from(byte) / 255.0 - mean[colour]) / deviation[colour];
            assert_eq!(batch.images[((h * 32 + w) * 2 + i) * 3 + colour], want);
        }
    }

    #[test]
    fn a_mirrored_image_has_its_columns_the_other_way_round() {
        let data = numbered(3);
        let (mut plain, mut mirrored) = (Batch::default(), Batch::default());
        data.batch(1, 2, &mut plain);
        data.mirrored_batch(1, 2, &mut mirrored);
        assert_eq!(plain.labels, mirrored.labels);
        assert_ne!(plain.images, mirrored.images);
        let pixel = |batch: &Batch, h: usize, w: usize, i: usize| {
            batch.images[((h * 32 + w) * 2 + i) * 3..][..3].to_vec()
        };
        for (h, w, i) in [(0, 0, 0), (7, 30, 1), (31, 12, 0)] {
            assert_eq!(pixel(&plain, h, w, i), pixel(&mirrored, h, 31 - w, i));
        }
    }

    #[test]
    fn shards_part_the_data() {
        let data = numbered(7);
        let lens: Vec<usize> =
            (0..3).map(|index| data.shard(Shard { index, of: 3 }).len()).collect();
        assert_eq!(lens, [3, 2, 2]);
        assert_eq!(data.shard(Shard { index: 1, of: 3 }).label(1), 4);
        assert!("3/3".parse::<Shard>().is_err() && "1".parse::<Shard>().is_err());
    }
}
