//! `Shape`: what a network's images and answers look like.

use serde::{Deserialize, Serialize};

/// The size of images, and how many classes they may be of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// Height and width of an image.
    pub side: usize,
    /// Values of a pixel.
    pub channels: usize,
    /// Classes.
    pub classes: usize,
}

/// Sides are multiples of this: five layers halve them.
pub const SIDE_STEP: usize = 32;
/// Largest side: tables of the convolutions grow with its square.
pub const SIDE_MAX: usize = 256;
/// Values of a pixel: red, green and blue. Grey pictures are read as three equal ones, as pretrained networks are
/// used to.
pub const CHANNELS: usize = 3;
/// Most classes: a label is one byte.
pub const CLASSES_MAX: usize = 256;

impl Shape {
    /// CIFAR-10's: the shape of a job that says none.
    pub const CIFAR: Self = Self { side: 32, channels: CHANNELS, classes: 10 };

    /// Values of an image.
    pub fn image_len(self) -> usize {
        self.side * self.side * self.channels
    }

    /// The name of the first number that no job has, and the number.
    pub(crate) fn out_of_range(self) -> Option<(&'static str, u64)> {
        let Self { side, channels, classes } = self;
        let parts = [
            ("side", side, (SIDE_STEP..=SIDE_MAX).contains(&side) && side % SIDE_STEP == 0),
            ("channels", channels, channels == CHANNELS),
            ("classes", classes, (1..=CLASSES_MAX).contains(&classes)),
        ];
        let wrong = parts.into_iter().find(|(_, _, is_right)| !is_right);
        wrong.map(|(name, value, _)| (name, value as u64))
    }
}

impl Default for Shape {
    fn default() -> Self {
        Self::CIFAR
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let Self { side, channels, classes } = self;
        write!(f, "{side}x{side} pixels of {channels} values, {classes} classes")
    }
}
