//! `Form`: what is kept of a picture, and the bytes of that.

use crate::data::batch::Image;
use crate::data::picture::Picture;
use crate::data::resize::{self, Cut};
use crate::job::shape::CHANNELS;
use crate::job::{Augment, Job};

/// What is kept of a picture. Its record begins with its label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A square of one size; its pixels follow, channel by channel and row by row.
    Square(Cut),
    /// All of it: height and width follow, then the pixels likewise.
    Whole,
}

/// Label, height and width.
const HEAD: usize = 1 + 4 + 4;

impl Form {
    /// What a job learns from.
    pub fn to_learn(job: &Job) -> Self {
        match job.augment {
            Augment::Parts => Self::Whole,
            Augment::None | Augment::Standard | Augment::Resized => {
                Self::Square(Cut::to_learn(job))
            }
        }
    }

    /// What it is evaluated on.
    pub fn to_evaluate(job: &Job) -> Self {
        Self::Square(Cut::to_evaluate(job))
    }

    /// Bytes of a record, where all have as many.
    pub(super) fn len(self) -> Option<usize> {
        match self {
            Self::Square(cut) => Some(1 + CHANNELS * cut.kept * cut.kept),
            Self::Whole => None,
        }
    }

    /// The record of a picture.
    pub(super) fn record(self, label: u8, picture: &Picture) -> Vec<u8> {
        let &Picture { width, height, ref rgb } = picture;
        let mut record = vec![label];
        match self {
            Self::Square(cut) => record.extend(resize::square(picture, cut)),
            Self::Whole => {
                record.reserve_exact(HEAD - 1 + rgb.len());
                record.extend([height, width].iter().flat_map(|&side| (side as u32).to_le_bytes()));
                let plane = |channel| rgb.iter().skip(channel).step_by(CHANNELS);
                (0..CHANNELS).for_each(|channel| record.extend(plane(channel)));
            }
        }
        record
    }

    /// The image in a record of ours.
    pub(super) fn image(self, record: &[u8]) -> Image<'_> {
        let label = record[0];
        match self {
            Self::Square(cut) => Image { label, size: [cut.kept; 2], pixels: &record[1..] },
            Self::Whole => {
                let (head, pixels) = record.split_at(HEAD);
                let side = |at: usize| {
                    let bytes = head[at..at + 4].try_into().expect("four bytes");
                    u32::from_le_bytes(bytes) as usize
                };
                Image { label, size: [side(1), side(5)], pixels }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_picture_comes_out_of_its_record() {
        let rgb = (0..3 * 5 * 2).collect();
        let record = Form::Whole.record(7, &Picture { width: 5, height: 2, rgb });
        let Image { label, size, pixels } = Form::Whole.image(&record);
        assert_eq!((label, size, record.len()), (7, [2, 5], HEAD + 30));
        let plane = |channel: u8| (0..10).map(move |pixel| 3 * pixel + channel);
        assert!(pixels.iter().copied().eq((0..3).flat_map(plane)));
    }
}
