//! `Batch`: images and labels of a step, in the order of the kernels.

use std::borrow::Cow;

use crate::data::resize::Part;
use crate::job::Normalisation;
use crate::job::shape::Shape;

/// One batch: images `[side][side][n][channels]`, normalised, and their labels.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Pixels in the order of the kernels.
    pub images: Vec<f32>,
    /// One class an image.
    pub labels: Vec<u8>,
}

/// Pixels of padding around an image before a random crop.
const PADDING: usize = 4;

/// An image as data keeps it.
pub(super) struct Image<'a> {
    pub(super) label: u8,
    /// Its height and width: those of a network's images, unless that sees parts.
    pub(super) size: [usize; 2],
    /// `[channels][height][width]`.
    pub(super) pixels: &'a [u8],
}

/// What is seen of an image, as large as the network's images or larger, with what is still to be done to it.
pub(super) struct Seen<'a> {
    label: u8,
    size: [usize; 2],
    pixels: Cow<'a, [u8]>,
    view: View,
}

/// A crop of the padded image, or a part of it, perhaps mirrored, perhaps with a hole.
#[derive(Clone, Copy)]
pub(super) struct View {
    /// What is made as large as the network's images; else what there is, or its centre.
    part: Option<Part>,
    top: usize,
    left: usize,
    pub(super) flip: bool,
    hole: Hole,
}

/// A square of an image that is cut out: what is there becomes the mean.
#[derive(Clone, Copy, Default)]
struct Hole {
    /// Its centre, which may be near an edge.
    centre: [usize; 2],
    side: usize,
}

impl Hole {
    fn has(self, h: usize, w: usize) -> bool {
        let covers =
            |at: usize, centre: usize| (centre..centre + self.side).contains(&(at + self.side / 2));
        covers(h, self.centre[0]) && covers(w, self.centre[1])
    }
}

impl Default for View {
    fn default() -> Self {
        let (part, hole) = (None, Hole::default());
        Self { part, top: PADDING, left: PADDING, flip: false, hole }
    }
}

impl Seen<'_> {
    /// The same without the image.
    pub(super) fn into_owned(self) -> Seen<'static> {
        Seen { pixels: Cow::Owned(self.pixels.into_owned()), ..self }
    }
}

impl View {
    /// What this sees of an image, for a network of images of that side.
    pub(super) fn of<'a>(self, image: &Image<'a>, side: usize) -> Seen<'a> {
        let (size, pixels) = match self.part {
            None => (image.size, image.pixels.into()),
            Some(part) => ([side; 2], part.resize(image.pixels, image.size, side).into()),
        };
        Seen { label: image.label, size, pixels, view: self }
    }

    /// The whole image, mirrored.
    pub(super) fn mirrored() -> Self {
        Self { flip: true, ..Self::default() }
    }

    pub(super) fn random([a, b, c, _]: [u32; 4]) -> Self {
        let offsets = 2 * PADDING as u32 + 1;
        let [top, left] = [a, b].map(|word| (word % offsets) as usize);
        Self { part: None, top, left, flip: c & 1 == 1, hole: Hole::default() }
    }

    /// The same, mirrored or not.
    pub(super) fn mirrored_if(self, flip: bool) -> Self {
        Self { flip, ..self }
    }

    /// The same mirroring of a part.
    pub(super) fn of_part(self, part: Part) -> Self {
        Self { part: Some(part), flip: self.flip, ..Self::default() }
    }

    /// The same with a square of so many pixels cut out, somewhere in an image of that size.
    pub(super) fn cut_out(self, cutout: usize, side: usize, [a, b, ..]: [u32; 4]) -> Self {
        let centre = [a, b].map(|word| word as usize % side);
        Self { hole: Hole { centre, side: cutout }, ..self }
    }
}

impl Batch {
    /// Number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    pub(super) fn resize(&mut self, shape: Shape, n: usize) {
        self.labels.resize(n, 0);
        self.images.resize(n * shape.image_len(), 0.0);
    }

    /// Writes image `i`.
    pub(super) fn put(
        &mut self,
        shape: Shape,
        normalisation: Normalisation,
        i: usize,
        seen: &Seen,
    ) {
        let &Seen { label, size: [height, of], ref pixels, view } = seen;
        self.labels[i] = label;
        let n = self.len();
        let Shape { side, channels, .. } = shape;
        let [mean, deviation] = normalisation.constants();
        assert_eq!(height, of, "what is not square is seen in parts");
        let margin = (of - side) / 2;
        for h in 0..side {
            for w in 0..side {
                let column = if view.flip { side - 1 - w } else { w };
                let source = source(h + view.top, side).zip(source(column + view.left, side));
                let target = &mut self.images[((h * side + w) * n + i) * channels..][..channels];
                if view.hole.has(h, w) {
                    target.fill(0.0);
                    continue;
                }
                for (channel, target) in target.iter_mut().enumerate() {
                    // The padding is black, like PyTorch's RandomCrop before normalisation.
                    let value = source
                        .map_or(0, |(y, x)| pixels[(channel * of + y + margin) * of + x + margin]);
                    *target = (f32::from(value) / 255.0 - mean[channel]) / deviation[channel];
                }
            }
        }
    }
}

/// The image's row or column behind one of the padded image.
fn source(padded: usize, side: usize) -> Option<usize> {
    padded.checked_sub(PADDING).filter(|&at| at < side)
}
