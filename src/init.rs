//! The model's first parameters, each value a pure function of (seed, tensor name, index).

use crate::params::{Kind, Layout, Tensor};
use crate::rng::Stream;

/// Parameters initialised as torchvision's ResNet: convolutions normal with variance `2 / fan_out`
/// (He et al., 2015), normalisation 1 and 0, classifier uniform in `±1/sqrt(fan_in)`.
///
/// The last normalisation of each residual block starts at zero, so that a block starts as the
/// identity (Goyal et al., "Accurate, Large Minibatch SGD", 2017): measured better on CIFAR-10.
pub fn initialise(layout: &Layout, seed: u64) -> Vec<f32> {
    let mut values = vec![0.0; layout.len];
    for tensor in &layout.tensors {
        tensor.import(&tensor_values(tensor, seed), &mut values);
    }
    values
}

fn tensor_values(tensor: &Tensor, seed: u64) -> Vec<f32> {
    let stream = Stream::new(seed, &tensor.name);
    let indexes = 0..tensor.range.len() as u64;
    let last_of_block = tensor.name.ends_with("bn3.weight");
    match (tensor.kind, tensor.shape.as_slice()) {
        (Kind::Weight, &[outputs, _, rows, columns]) => {
            let deviation = (2.0 / (outputs * rows * columns) as f32).sqrt();
            indexes.map(|i| deviation * stream.normal(i)).collect()
        }
        (Kind::Weight, _) => uniform(&stream, indexes, *tensor.shape.last().unwrap_or(&1)),
        (Kind::Affine, _) if tensor.name == "fc.bias" => uniform(&stream, indexes, FC_INPUTS),
        (Kind::Affine, _) if last_of_block => vec![0.0; tensor.range.len()],
        (Kind::Affine, _) if tensor.name.ends_with("weight") => vec![1.0; tensor.range.len()],
        (Kind::Statistic, _) if tensor.name.ends_with("var") => vec![1.0; tensor.range.len()],
        (Kind::Affine | Kind::Statistic, _) => vec![0.0; tensor.range.len()],
    }
}

/// Inputs of ResNet-50's classifier.
const FC_INPUTS: usize = 2048;

fn uniform(stream: &Stream, indexes: std::ops::Range<u64>, fan_in: usize) -> Vec<f32> {
    let bound = 1.0 / (fan_in as f32).sqrt();
    indexes.map(|i| bound * (2.0 * stream.uniform(i) - 1.0)).collect()
}
