//! The layers of a ResNet v1.5: shapes, names and places in the flat buffer. No values.
//!
//! He et al., "Deep Residual Learning" (2015), with the stride in the 3x3 convolution of a bottleneck
//! as in torchvision.

use std::ops::{Range, RangeInclusive};

use kernels::{Conv, Extent, MaxPool, ShapeError};

use crate::job::shape::Shape;
use crate::job::{Algorithm, Arch, Job, Stem};
use crate::model::params::{Kind, Layout};

/// The whole network.
pub struct Network {
    /// Which one of the family.
    pub model: Arch,
    /// Its first layers.
    pub stem: Stem,
    /// Whether groups of channels are normalised, image by image: there are no running statistics then.
    pub is_grouped: bool,
    /// What it is made for.
    pub shape: Shape,
    /// Every convolution with its normalisation, in the order of the forward pass.
    pub units: Vec<Unit>,
    /// Pooling after the first unit.
    pub max_pool: Option<MaxPool>,
    /// Residual blocks, in order.
    pub blocks: Vec<Block>,
    /// Where the classifier's weight and bias are.
    pub classifier: [Range<usize>; 2],
    /// Channels of the last block.
    pub features: usize,
    /// The table of tensors.
    pub layout: Layout,
}

/// A convolution and the normalisation after it.
pub struct Unit {
    /// Name of the convolution in torchvision.
    pub name: String,
    /// The convolution.
    pub conv: Conv,
    /// Its stride and padding, for the description of the model.
    pub window: [usize; 2],
    /// Where its weights are.
    pub weight: Range<usize>,
    /// Where gamma and beta are.
    pub affine: [Range<usize>; 2],
    /// Where running mean and variance are; nowhere where groups of channels are normalised.
    pub running: [Range<usize>; 2],
}

impl Unit {
    /// The size of its output for so many images.
    pub(crate) fn extent(&self, n: usize) -> Extent {
        let [height, width] = self.conv.output;
        Extent::new(height * width, n, self.conv.channels_out)
    }
}

/// A residual block, as indexes into the units: 3x3, 3x3 in a basic block, 1x1, 3x3, 1x1 in a bottleneck.
#[derive(Clone, Copy, Debug)]
pub struct Block {
    /// Its first unit.
    pub first: usize,
    /// Its last unit, to whose output the shortcut is added.
    pub last: usize,
    /// 1x1 on the shortcut, where shape changes; the unit after the last.
    pub projection: Option<usize>,
}

impl Block {
    /// All units, in the order of the buffers.
    pub fn units(&self) -> RangeInclusive<usize> {
        self.first..=self.projection.unwrap_or(self.last)
    }
}

/// Blocks of each stage (He et al., table 1).
fn stages(model: Arch) -> [usize; 4] {
    match model {
        Arch::Resnet18 => [2, 2, 2, 2],
        Arch::Resnet34 | Arch::Resnet50 => [3, 4, 6, 3],
        Arch::Resnet101 => [3, 4, 23, 3],
        Arch::Resnet152 => [3, 8, 36, 3],
    }
}

/// Output channels of a block over its inner ones.
fn expansion(model: Arch) -> usize {
    match model {
        Arch::Resnet18 | Arch::Resnet34 => 1,
        Arch::Resnet50 | Arch::Resnet101 | Arch::Resnet152 => 4,
    }
}

/// Channels after the stem.
const STEM_CHANNELS: usize = 64;

impl Network {
    /// The network of that name for images and classes of that shape.
    ///
    /// # Errors
    /// Never for shapes that a job may have; the kernels' shape check is passed on.
    pub fn new(model: Arch, stem: Stem, shape: Shape) -> Result<Self, ShapeError> {
        Self::build(Builder { drafts: Vec::new(), is_grouped: false }, model, stem, shape)
    }

    /// The same that normalises groups of channels.
    ///
    /// # Errors
    /// As [`Network::new`].
    pub fn grouped(model: Arch, stem: Stem, shape: Shape) -> Result<Self, ShapeError> {
        Self::build(Builder { drafts: Vec::new(), is_grouped: true }, model, stem, shape)
    }

    fn build(
        mut builder: Builder,
        model: Arch,
        stem: Stem,
        shape: Shape,
    ) -> Result<Self, ShapeError> {
        let (kernel, stride) = match stem {
            Stem::Imagenet => (7, 2),
            Stem::Cifar => (3, 1),
        };
        let first = [shape.channels, STEM_CHANNELS];
        let mut side = builder.unit(["conv1", "bn1"], shape.side, first, [kernel, stride])?;
        let max_pool = (stem == Stem::Imagenet).then(|| MaxPool::new(side));
        side = max_pool.map_or(side, |pool| pool.output);
        let mut channels = STEM_CHANNELS;
        let mut blocks = Vec::new();
        for (stage, &count) in stages(model).iter().enumerate() {
            for index in 0..count {
                let stride = if stage > 0 && index == 0 { 2 } else { 1 };
                let name = format!("layer{}.{index}", stage + 1);
                let inner = STEM_CHANNELS << stage;
                let outer = inner * expansion(model);
                let (block, out) = builder.block(&name, side, [channels, inner, outer], stride)?;
                blocks.push(block);
                (side, channels) = (out, outer);
            }
        }
        Ok(builder.finish(model, stem, shape, max_pool, blocks, channels))
    }

    /// The network that a job trains.
    ///
    /// # Errors
    /// As [`Network::new`].
    pub fn of(job: &Job) -> Result<Self, ShapeError> {
        match job.norm.is_grouped() {
            false => Self::new(job.model, job.stem, job.shape),
            true => Self::grouped(job.model, job.stem, job.shape),
        }
    }

    /// The same layers, computed that way: fast algorithms pay for every layer that allows them.
    #[must_use]
    pub fn computed(mut self, conv: Algorithm) -> Self {
        if conv == Algorithm::Auto {
            let fast = |unit: Unit| Unit { conv: unit.conv.with_fast_algorithms(), ..unit };
            self.units = self.units.into_iter().map(fast).collect();
        }
        self
    }

    /// Multiplications of one forward pass over an image, without those by zero padding.
    pub fn multiplications(&self) -> usize {
        self.units.iter().map(|unit| unit.conv.multiplications(1)).sum::<usize>()
            + self.features * self.shape.classes
    }
}

struct Draft {
    names: [String; 2],
    conv: Conv,
    window: [usize; 2],
}

struct Builder {
    drafts: Vec<Draft>,
    is_grouped: bool,
}

impl Builder {
    /// Adds a unit and returns the side of its output.
    fn unit(
        &mut self,
        names: [&str; 2],
        side: usize,
        channels: [usize; 2],
        [kernel, stride]: [usize; 2],
    ) -> Result<usize, ShapeError> {
        let conv = Conv::new([side, side], channels, kernel, stride, kernel / 2)?;
        let out = conv.output[0];
        self.drafts.push(Draft {
            names: names.map(Into::into),
            conv,
            window: [stride, kernel / 2],
        });
        Ok(out)
    }

    fn block(
        &mut self,
        name: &str,
        side: usize,
        [channels, inner, outer]: [usize; 3],
        stride: usize,
    ) -> Result<(Block, usize), ShapeError> {
        let first = self.drafts.len();
        let name = |part: &str| format!("{name}.{part}");
        let own = |number: usize| [name(&format!("conv{number}")), name(&format!("bn{number}"))];
        // Kernel, stride and channels of each convolution.
        let basic = [(3, stride, [channels, inner]), (3, 1, [inner, outer])];
        let bottleneck =
            [(1, 1, [channels, inner]), (3, stride, [inner, inner]), (1, 1, [inner, outer])];
        let units = if inner == outer { &basic[..] } else { &bottleneck };
        let mut out = side;
        for (index, &(kernel, stride, channels)) in units.iter().enumerate() {
            let [conv, norm] = own(index + 1);
            out = self.unit([&conv, &norm], out, channels, [kernel, stride])?;
        }
        let last = self.drafts.len() - 1;
        let projection = if channels != outer || stride != 1 {
            let names = [&*name("downsample.0"), &*name("downsample.1")];
            self.unit(names, side, [channels, outer], [1, stride])?;
            Some(last + 1)
        } else {
            None
        };
        Ok((Block { first, last, projection }, out))
    }

    fn finish(
        self,
        model: Arch,
        stem: Stem,
        shape: Shape,
        max_pool: Option<MaxPool>,
        blocks: Vec<Block>,
        features: usize,
    ) -> Network {
        let mut tensors = Vec::new();
        for Draft { names: [conv_name, norm], conv, .. } in &self.drafts {
            let shape = vec![conv.channels_out, conv.channels_in, conv.kernel, conv.kernel];
            let channels = vec![conv.channels_out];
            tensors.push((format!("{conv_name}.weight"), shape, Kind::Weight));
            tensors.push((format!("{norm}.weight"), channels.clone(), Kind::Affine));
            tensors.push((format!("{norm}.bias"), channels.clone(), Kind::Affine));
            if !self.is_grouped {
                tensors.push((format!("{norm}.running_mean"), channels.clone(), Kind::Statistic));
                tensors.push((format!("{norm}.running_var"), channels, Kind::Statistic));
            }
        }
        tensors.push(("fc.weight".into(), vec![shape.classes, features], Kind::Weight));
        tensors.push(("fc.bias".into(), vec![shape.classes], Kind::Affine));
        let layout = Layout::new(tensors);
        let place = |name: &str| layout.tensor(name).expect("just laid out").range.clone();
        let is_grouped = self.is_grouped;
        let running = |norm: &str, part: &str| match is_grouped {
            true => layout.len..layout.len,
            false => place(&format!("{norm}.running_{part}")),
        };
        let units = self
            .drafts
            .into_iter()
            .map(|Draft { names: [name, norm], conv, window }| Unit {
                weight: place(&format!("{name}.weight")),
                affine: ["weight", "bias"].map(|part| place(&format!("{norm}.{part}"))),
                running: ["mean", "var"].map(|part| running(&norm, part)),
                name,
                conv,
                window,
            })
            .collect();
        let classifier = ["fc.weight", "fc.bias"].map(place);
        Network {
            model,
            stem,
            is_grouped,
            shape,
            units,
            max_pool,
            blocks,
            classifier,
            features,
            layout,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameter_counts_are_those_of_torchvision() {
        for (stem, trained) in [(Stem::Imagenet, 23_528_522), (Stem::Cifar, 23_520_842)] {
            let network = Network::new(Arch::Resnet50, stem, Shape::CIFAR).expect("shapes");
            assert_eq!(network.layout.trained, trained);
            assert_eq!(network.layout.len - trained, 53_120);
            assert_eq!(network.units.len(), 53);
            let grouped = Network::grouped(Arch::Resnet50, stem, Shape::CIFAR).expect("shapes");
            assert_eq!((grouped.layout.trained, grouped.layout.len), (trained, trained));
        }
    }

    #[test]
    fn the_others_of_the_family_are_torchvisions_too() {
        let shape = Shape { classes: 100, ..Shape::CIFAR };
        for (model, trained) in [
            (Arch::Resnet18, 11_227_812),
            (Arch::Resnet34, 21_335_972),
            (Arch::Resnet101, 42_705_060),
            (Arch::Resnet152, 58_348_708),
        ] {
            let network = Network::new(model, Stem::Imagenet, shape).expect("shapes");
            assert_eq!(network.layout.trained, trained, "{model}");
        }
    }

    #[test]
    fn multiplications_are_those_of_the_paper_less_the_padding() {
        let millions = |stem| {
            Network::new(Arch::Resnet50, stem, Shape::CIFAR).expect("shapes").multiplications()
                as f64
                / 1e6
        };
        assert!((millions(Stem::Imagenet) - 66.7).abs() < 0.1);
        assert!((millions(Stem::Cifar) - 1219.9).abs() < 0.1);
    }
}
