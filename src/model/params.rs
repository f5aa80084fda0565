//! `Layout`: order, names, shapes and kinds of the tensors in the one flat `f32` buffer of a model.
//!
//! Trained tensors come first, in the order of torchvision's `state_dict`, then the running
//! statistics. Convolution weights lie as the kernels read them (panels `[Cout/64][taps][Cin][64]`);
//! only checkpoints see torchvision's `[Cout][Cin][KH][KW]`.

use std::ops::Range;

use kernels::panel_index;
use ring::digest::{Context, SHA256};

/// One tensor of the model.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// Its name in torchvision's `state_dict`.
    pub name: String,
    /// Its shape there.
    pub shape: Vec<usize>,
    /// Where it is in the flat buffer.
    pub range: Range<usize>,
    /// What happens to it.
    pub kind: Kind,
}

/// What happens to a tensor in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Trained, without weight decay: normalisation parameters and biases.
    Affine,
    /// A running statistic: replaced by the mean of the workers' values.
    Statistic,
    /// Trained with weight decay.
    Weight,
}

/// The table of a model's tensors.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Every tensor, in the order of the buffer.
    pub tensors: Vec<Tensor>,
    /// Length of the trained part.
    pub trained: usize,
    /// Length of the buffer.
    pub len: usize,
}

impl Layout {
    /// Lays out named tensors, trained ones first.
    pub fn new(named: impl IntoIterator<Item = (String, Vec<usize>, Kind)>) -> Self {
        let (statistics, trained): (Vec<_>, Vec<_>) =
            named.into_iter().partition(|(_, _, kind)| *kind == Kind::Statistic);
        let mut layout = Self { tensors: Vec::new(), trained: 0, len: 0 };
        for (name, shape, kind) in trained.into_iter().chain(statistics) {
            let range = layout.len..layout.len + shape.iter().product::<usize>();
            layout.len = range.end;
            if kind != Kind::Statistic {
                layout.trained = range.end;
            }
            layout.tensors.push(Tensor { name, shape, range, kind });
        }
        layout
    }

    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }
}

impl Tensor {
    /// Whether it is what a normalisation adds.
    pub fn is_norm_bias(&self) -> bool {
        self.kind == Kind::Affine && self.name != "fc.bias" && self.name.ends_with(".bias")
    }

    /// This tensor's values in torchvision's order.
    pub fn export(&self, values: &[f32]) -> Vec<f32> {
        let values = &values[self.range.clone()];
        match self.index() {
            None => values.to_vec(),
            Some(index) => (0..values.len()).map(|at| values[index(at)]).collect(),
        }
    }

    /// Writes values in torchvision's order to their places in the flat buffer.
    pub fn import(&self, source: &[f32], values: &mut [f32]) {
        let values = &mut values[self.range.clone()];
        assert_eq!(source.len(), values.len());
        match self.index() {
            None => values.copy_from_slice(source),
            Some(index) => {
                for (at, &value) in source.iter().enumerate() {
                    values[index(at)] = value;
                }
            }
        }
    }

    /// Where torchvision's element is in the panels, for convolution weights.
    fn index(&self) -> Option<impl Fn(usize) -> usize> {
        let &[_, channels_in, rows, columns] = self.shape.as_slice() else { return None };
        let taps = rows * columns;
        Some(move |at: usize| {
            let (filter, tap) = (at / taps, at % taps);
            panel_index(taps, channels_in, [filter / channels_in, filter % channels_in, tap])
        })
    }
}

/// SHA-256 over a flat buffer, little-endian.
pub fn hash(values: &[f32]) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    context.update(bytemuck::cast_slice(values));
    context.finish().as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// A checksum over a flat buffer (CRC-32): tells buffers apart in a tenth of the time that [`hash`] takes, not against
/// somebody who makes two that are alike.
pub fn check(values: &[f32]) -> u32 {
    crc32fast::hash(bytemuck::cast_slice(values))
}

// The flat buffer travels and is hashed as the bytes of its `f32`s.
const _: () = assert!(cfg!(target_endian = "little"), "hfl needs a little-endian machine");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn export_and_import_are_inverse_and_panels_are_where_the_kernels_look() {
        let layout = Layout::new([
            ("running".into(), vec![64], Kind::Statistic),
            ("conv".into(), vec![128, 64, 3, 3], Kind::Weight),
            ("bias".into(), vec![10], Kind::Affine),
        ]);
        assert_eq!((layout.trained, layout.len), (128 * 576 + 10, 128 * 576 + 74));
        assert_eq!(layout.tensors[2].name, "running");
        let conv = layout.tensor("conv").expect("conv");
        let values: Vec<f32> = (0..layout.len).map(|i| i as f32).collect();
        let exported = conv.export(&values);
        let mut back = vec![0.0; layout.len];
        conv.import(&exported, &mut back);
        assert_eq!(back[..128 * 576], values[..128 * 576]);
        let kernel = kernels::Conv::new([8, 8], [64, 128], 3, 1, 1).expect("shape");
        let torch = ((70 * 64 + 5) * 3 + 2) * 3 + 1;
        assert_eq!(exported[torch], values[kernel.weight_index(70, 5, 2, 1)]);
    }
}
