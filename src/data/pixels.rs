//! `Pixels`: pictures of whatever files there are, each read by its number.

use std::path::{Path, PathBuf};

use crate::data::error::DataError;
use crate::data::picture::{self, Picture};
use crate::data::place::Place;
use crate::data::record::Form;
use crate::data::resize::Cut;
use crate::data::spans::Spans;
use crate::job::shape::Shape;

/// Largest picture file.
pub(super) const FILE_LEN_MAX: u64 = 256 << 20;

/// Where pictures are.
#[derive(Debug)]
pub(super) enum Pixels {
    /// CIFAR's: `[3][32][32]` each.
    Planes(Spans),
    /// NumPy's: `[rows][columns][channels]` each.
    Arrays([usize; 3], Images),
    /// One file a picture.
    Files(Vec<PathBuf>),
}

/// The images of an array.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Images {
    /// One after the other: they had to be unpacked.
    Memory(Vec<u8>),
    Stored(Spans),
}

impl Pixels {
    /// What a picture is called: its file, or its number.
    pub(super) fn title(&self, index: usize) -> String {
        match self {
            Self::Files(files) => files[index].display().to_string(),
            Self::Planes(_) | Self::Arrays(..) => index.to_string(),
        }
    }

    /// The record of a picture.
    pub(super) fn record(
        &self,
        place: &Place,
        index: usize,
        form: Form,
        label: u8,
    ) -> Result<Vec<u8>, DataError> {
        let picture = match self {
            Self::Planes(planes) => {
                let (own, planes) = (Shape::CIFAR.side, planes.read(place, index)?);
                if form == Form::Square(Cut::plain(own)) {
                    return Ok([&[label], &planes[..]].concat());
                }
                let colours = |at| [0, 1, 2].map(|channel| planes[channel * own * own + at]);
                let rgb = (0..own * own).flat_map(colours).collect();
                Picture { width: own, height: own, rgb }
            }
            Self::Arrays([height, width, channels], images) => {
                let len = height * width * channels;
                let bytes = match images {
                    Images::Memory(all) => all[index * len..][..len].to_vec(),
                    Images::Stored(spans) => spans.read(place, index)?,
                };
                let rgb = match channels {
                    1 => bytes.iter().flat_map(|&grey| [grey; 3]).collect(),
                    _ => bytes,
                };
                Picture { width: *width, height: *height, rgb }
            }
            Self::Files(files) => decode(place, &files[index])?,
        };
        Ok(form.record(label, &picture))
    }

    /// Only these, in this order.
    pub(super) fn only(&self, kept: impl Iterator<Item = usize>) -> Self {
        match self {
            Self::Planes(planes) => Self::Planes(planes.only(kept)),
            Self::Arrays(size, images) => {
                let len = size.iter().product();
                let images = match images {
                    Images::Stored(spans) => Images::Stored(spans.only(kept)),
                    Images::Memory(all) => Images::Memory(
                        kept.flat_map(|at| &all[at * len..][..len]).copied().collect(),
                    ),
                };
                Self::Arrays(*size, images)
            }
            Self::Files(files) => Self::Files(kept.map(|at| files[at].clone()).collect()),
        }
    }
}

/// Reads and decodes a picture file.
fn decode(place: &Place, path: &Path) -> Result<Picture, DataError> {
    let bytes = place.read(path, FILE_LEN_MAX)?;
    picture::decode(&bytes).map_err(|why| DataError::Picture(path.into(), why))
}
