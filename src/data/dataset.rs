//! `Dataset`: labelled images, whatever files they came from, in memory or read when they are needed.

use crate::data::batch::{Batch, Image, View};
use crate::data::error::DataError;
use crate::data::loading::Kept;
use crate::data::merkle::Tree;
use crate::data::parallel::on_threads;
use crate::data::record::Form;
use crate::data::resize::Cut;
use crate::job::Normalisation;
use crate::job::shape::Shape;

/// Labelled images.
#[derive(Clone, Debug)]
pub struct Dataset {
    shape: Shape,
    normalisation: Normalisation,
    form: Form,
    kept: Kept,
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
        let form = Form::Square(Cut::plain(side));
        let len = form.len().expect("squares are alike");
        assert!(records.len().is_multiple_of(len), "whole records");
        let records = records.chunks_exact(len).map(Into::into).collect();
        Self::of(shape, normalisation, form, Kept::Memory(records))
    }

    /// A data set of records that were loaded.
    pub(super) fn of(shape: Shape, normalisation: Normalisation, form: Form, kept: Kept) -> Self {
        let set = Self { shape, normalisation, form, kept };
        assert!((0..set.len()).all(|index| usize::from(set.label(index)) < shape.classes));
        set
    }

    /// Size of the images, and number of classes.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        match &self.kept {
            Kept::Memory(records) => records.len(),
            Kept::Away(away) => away.len(),
        }
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether images are read when they are needed.
    pub fn is_away(&self) -> bool {
        matches!(self.kept, Kept::Away(_))
    }

    /// Bytes of the images that are in memory.
    pub fn memory_len(&self) -> u64 {
        match &self.kept {
            Kept::Memory(records) => records.iter().map(|record| record.len() as u64).sum(),
            Kept::Away(_) => 0,
        }
    }

    /// The class of an image.
    pub fn label(&self, index: usize) -> u8 {
        match &self.kept {
            Kept::Memory(records) => records[index][0],
            Kept::Away(away) => away.label(index),
        }
    }

    /// Images of each class.
    pub fn class_counts(&self) -> Vec<u64> {
        let mut counts = vec![0; self.shape.classes];
        (0..self.len()).for_each(|index| counts[usize::from(self.label(index))] += 1);
        counts
    }

    /// All records, one after the other.
    ///
    /// # Panics
    /// When they are not in memory.
    pub fn records(&self) -> Vec<u8> {
        match &self.kept {
            Kept::Memory(records) => records.concat(),
            Kept::Away(_) => panic!("records that are not in memory"),
        }
    }

    /// What these records are, in 32 bytes: the root of a Merkle tree over them in their order.
    pub fn digest(&self) -> [u8; 32] {
        let mut tree = Tree::default();
        match &self.kept {
            Kept::Memory(records) => records.iter().for_each(|record| tree.push(&[record])),
            Kept::Away(away) => away.leaves().for_each(|leaf| tree.push_leaf(leaf)),
        }
        tree.root()
    }

    /// The images `first..first + n`, as they are.
    ///
    /// # Errors
    /// When pictures that are not in memory cannot be read, or are others than they were.
    pub fn batch(&self, first: usize, n: usize, batch: &mut Batch) -> Result<(), DataError> {
        self.put_all(&numbers(first, n), |_, _| View::default(), batch)
    }

    /// The images `first..first + n`, mirrored: left is right.
    ///
    /// # Errors
    /// As [`Dataset::batch`].
    pub fn mirrored_batch(
        &self,
        first: usize,
        n: usize,
        batch: &mut Batch,
    ) -> Result<(), DataError> {
        self.put_all(&numbers(first, n), |_, _| View::mirrored(), batch)
    }

    /// Makes a batch of these images, each seen as `view` says. What is not in memory is read by several threads, and
    /// only what is seen of it is kept meanwhile.
    pub(super) fn put_all(
        &self,
        indexes: &[u32],
        view: impl Fn(u32, &Image) -> View + Sync,
        batch: &mut Batch,
    ) -> Result<(), DataError> {
        let &Self { shape, normalisation, form, .. } = self;
        batch.resize(shape, indexes.len());
        match &self.kept {
            Kept::Memory(records) => {
                for (i, &index) in indexes.iter().enumerate() {
                    let image = form.image(&records[index as usize]);
                    let seen = view(index, &image).of(&image, shape.side);
                    batch.put(shape, normalisation, i, &seen);
                }
            }
            Kept::Away(away) => {
                let seen = on_threads(away.threads(), indexes.len(), |i| {
                    let record = away.read(indexes[i] as usize)?;
                    let image = form.image(&record);
                    let seen = view(indexes[i], &image).of(&image, shape.side);
                    Ok::<_, DataError>(seen.into_owned())
                })?;
                for (i, seen) in seen.iter().enumerate() {
                    batch.put(shape, normalisation, i, seen);
                }
            }
        }
        Ok(())
    }
}

/// `first..first + n`, as samplers count.
fn numbers(first: usize, n: usize) -> Vec<u32> {
    let number = |index| u32::try_from(index).expect("no more images than samplers count");
    (first..first + n).map(number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::cifar::{RECORD_LEN, numbered};

    #[test]
    fn images_are_normalised_and_pixel_major() {
        let data = numbered(2);
        let mut batch = Batch::default();
        data.batch(0, 2, &mut batch).expect("in memory");
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
        data.batch(1, 2, &mut plain).expect("in memory");
        data.mirrored_batch(1, 2, &mut mirrored).expect("in memory");
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
    fn shards_count_from_zero() {
        assert_eq!("1/3".parse(), Ok(Shard { index: 1, of: 3 }));
        assert!("3/3".parse::<Shard>().is_err() && "1".parse::<Shard>().is_err());
    }
}
