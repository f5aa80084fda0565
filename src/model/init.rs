//! The model's first parameters, each value a pure function of (seed, tensor name, index).

use crate::job::rng::Stream;
use crate::model::params::{Kind, Layout, Tensor};

/// Parameters initialised as torchvision's ResNet: convolutions normal with variance `2 / fan_out`
/// (He et al., 2015), normalisation 1 and 0, classifier uniform in `±1/sqrt(fan_in)`.
///
/// `last` is the scale of each residual block's last normalisation. With [`IDENTITY_BLOCKS`] a block
/// starts as the identity (Goyal et al., "Accurate, Large Minibatch SGD", 2017), with
/// [`PLAIN_BLOCKS`] as in torchvision by default.
pub fn initialise(layout: &Layout, seed: u64, last: f32) -> Vec<f32> {
    let mut values = vec![0.0; layout.len];
    initialise_in(layout, seed, last, &mut values);
    values
}

/// The same, into memory that is there.
pub fn initialise_in(layout: &Layout, seed: u64, last: f32, values: &mut [f32]) {
    let is_basic = !layout.tensors.iter().any(|tensor| tensor.name.ends_with(".bn3.weight"));
    let last_norm = if is_basic { ".bn2.weight" } else { ".bn3.weight" };
    let classifier = layout.tensor("fc.weight").and_then(|tensor| tensor.shape.last());
    for tensor in &layout.tensors {
        let fan_in = tensor.shape.last().filter(|_| tensor.name != "fc.bias").or(classifier);
        let fan_in = fan_in.copied().unwrap_or(1);
        let own = if tensor.name.ends_with(last_norm) {
            vec![last; tensor.range.len()]
        } else {
            tensor_values(tensor, seed, fan_in)
        };
        tensor.import(&own, values);
    }
}

/// Blocks that start as the identity: what a job uses.
pub const IDENTITY_BLOCKS: f32 = 0.0;
/// Blocks that start like any other layer.
pub const PLAIN_BLOCKS: f32 = 1.0;

/// `fan_in`: inputs of each output of a fully connected layer.
fn tensor_values(tensor: &Tensor, seed: u64, fan_in: usize) -> Vec<f32> {
    let stream = Stream::new(seed, &tensor.name);
    let indexes = 0..tensor.range.len() as u64;
    match (tensor.kind, tensor.shape.as_slice()) {
        (Kind::Weight, &[outputs, _, rows, columns]) => {
            let deviation = (2.0 / (outputs * rows * columns) as f32).sqrt();
            indexes.map(|i| deviation * stream.normal(i)).collect()
        }
        (Kind::Weight, _) => uniform(&stream, indexes, fan_in),
        (Kind::Affine, _) if tensor.name == "fc.bias" => uniform(&stream, indexes, fan_in),
        (Kind::Affine, _) if tensor.name.ends_with("weight") => vec![1.0; tensor.range.len()],
        (Kind::Statistic, _) if tensor.name.ends_with("var") => vec![1.0; tensor.range.len()],
        (Kind::Affine | Kind::Statistic, _) => vec![0.0; tensor.range.len()],
    }
}

fn uniform(stream: &Stream, indexes: std::ops::Range<u64>, fan_in: usize) -> Vec<f32> {
    let bound = 1.0 / (fan_in as f32).sqrt();
    indexes.map(|i| bound * (2.0 * stream.uniform(i) - 1.0)).collect()
}
