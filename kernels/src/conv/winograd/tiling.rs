//! A layer cut into tiles, and tiles into groups that go through the stages together.

use super::scheme::Scheme;
use crate::base::panel::PANEL;
use crate::base::tile::IMAGES;
use crate::gemm::ZEROS;

/// Values of one frequency of a shared group, about: 36 of them are 4.5 MiB, so that inputs and outputs of a group
/// stay in a last-level cache of 16 MiB and more; smaller groups read the weights more often. `cargo bench -p kernels
/// -- cifar avx512+fast 64 2 3x3` shows it.
const GROUP: usize = 1 << 15;
/// Values of one slice that one task transforms, about: 36 of them stay in the second-level cache.
pub(super) const SLICE: usize = ZEROS;

/// Values between two frequencies: five cache lines, so that 36 of them lie in different sets. Without it a slice of
/// 2048 values is 8 KiB, all frequencies of an element fall into the same set of a first-level cache (4 KiB apart, 8
/// or 12 ways), and a transform of 36 slices evicts what it is about to read.
const GAP: usize = 80;

/// Values from one frequency to the next in a stage.
pub(super) fn distance(rows: usize, channels: usize) -> usize {
    rows * channels + GAP
}

/// A 3x3 convolution with stride 1 and padding 1.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Winograd {
    pub(super) scheme: Scheme,
    /// Tiles along each side.
    pub(super) tiles: [usize; 2],
    pub(super) channels: [usize; 2],
}

/// Some tiles of one row of tiles, and some images.
#[derive(Clone, Copy)]
pub(super) struct Group {
    pub(super) row: usize,
    /// First tile and how many.
    pub(super) column: usize,
    pub(super) tiles: usize,
    /// First image and how many.
    pub(super) image: usize,
    pub(super) images: usize,
}

impl Group {
    pub(super) fn rows(&self) -> usize {
        self.tiles * self.images
    }
}

impl Winograd {
    /// For maps of `size` and channels in and out; `None` where it does not fit.
    pub(crate) fn new(size: [usize; 2], channels: [usize; 2]) -> Option<Self> {
        let scheme = Scheme::of(size)?;
        let fits = |channels: &usize| channels.is_multiple_of(PANEL) && *channels <= SLICE;
        let tiles = size.map(|side| side / scheme.tile());
        channels.iter().all(fits).then_some(Self { scheme, tiles, channels })
    }

    /// Whether it is faster than direct products of words of so many values.
    pub(crate) fn pays(&self, word: usize) -> bool {
        self.scheme == Scheme::Four || word == 1
    }

    /// Values of the transformed weights.
    pub(super) fn weights_len(&self) -> usize {
        self.scheme.products() * self.channels[0] * self.channels[1]
    }

    pub(super) fn size(&self) -> [usize; 2] {
        self.tiles.map(|tiles| tiles * self.scheme.tile())
    }

    pub(super) fn groups(&self, n: usize) -> impl Iterator<Item = Group> {
        let [rows, columns] = self.tiles;
        let widest = self.channels[0].max(self.channels[1]);
        (0..n).step_by(IMAGES).flat_map(move |image| {
            let images = IMAGES.min(n - image);
            let tiles = (GROUP / widest / images).clamp(1, columns);
            (0..rows).flat_map(move |row| {
                (0..columns).step_by(tiles).map(move |column| {
                    let tiles = tiles.min(columns - column);
                    Group { row, column, tiles, image, images }
                })
            })
        })
    }
}
