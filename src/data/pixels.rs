//! `Pixels`: pictures of whatever files there are, each read by its number.

use std::path::{Path, PathBuf};

use crate::data::error::DataError;
use crate::data::folder;
use crate::data::picture::{self, Picture};
use crate::data::place::Place;
use crate::data::record::Form;
use crate::data::resize::Cut;
use crate::job::shape::Shape;

/// Where pictures are.
#[derive(Debug)]
pub(super) enum Pixels {
    /// CIFAR's: `[N][3][32][32]`.
    Planes(Vec<u8>),
    /// NumPy's: `[N][rows][columns][channels]`.
    Arrays([usize; 3], Vec<u8>),
    /// One file a picture.
    Files(Vec<PathBuf>),
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
                let (own, len) = (Shape::CIFAR.side, Shape::CIFAR.image_len());
                let planes = &planes[index * len..][..len];
                if form == Form::Square(Cut::plain(own)) {
                    return Ok([&[label], planes].concat());
                }
                let colours = |at| [0, 1, 2].map(|channel| planes[channel * own * own + at]);
                let rgb = (0..own * own).flat_map(colours).collect();
                Picture { width: own, height: own, rgb }
            }
            Self::Arrays([height, width, channels], bytes) => {
                let len = height * width * channels;
                let bytes = &bytes[index * len..][..len];
                let rgb = match channels {
                    1 => bytes.iter().flat_map(|&grey| [grey; 3]).collect(),
                    _ => bytes.to_vec(),
                };
                Picture { width: *width, height: *height, rgb }
            }
            Self::Files(files) => decode(place, &files[index])?,
        };
        Ok(form.record(label, &picture))
    }

    /// Only these, in this order.
    pub(super) fn only(&self, kept: impl Iterator<Item = usize> + Clone) -> Self {
        let of_bytes = |bytes: &[u8], len: usize| {
            kept.clone().flat_map(|at| &bytes[at * len..][..len]).copied().collect()
        };
        match self {
            Self::Planes(planes) => Self::Planes(of_bytes(planes, Shape::CIFAR.image_len())),
            Self::Arrays(size, bytes) => Self::Arrays(*size, of_bytes(bytes, size.iter().product())),
            Self::Files(files) => Self::Files(kept.map(|at| files[at].clone()).collect()),
        }
    }
}

/// Reads and decodes a picture file.
fn decode(place: &Place, path: &Path) -> Result<Picture, DataError> {
    let bytes = place.read(path, folder::FILE_LEN_MAX)?;
    picture::decode(&bytes).map_err(|why| DataError::Picture(path.into(), why))
}
