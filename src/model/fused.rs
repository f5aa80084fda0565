//! A network for inference elsewhere: each normalisation folded into the convolution before it, where it can be, in
//! torchvision's order of values.

use kernels::Folded;

use crate::model::network::{Network, Unit};
use crate::model::params::Layout;
use crate::model::resnet::NORM;

/// A convolution or the classifier with its bias.
pub struct Layer {
    /// Its name in torchvision, such as `layer1.0.conv2` or `fc`.
    pub name: String,
    /// Shape of the weight: outputs, inputs, and the kernel's height and width but for the classifier.
    pub shape: Vec<usize>,
    /// The weight.
    pub weight: Vec<f32>,
    /// The bias, one an output.
    pub bias: Vec<f32>,
    /// What follows, where groups of channels are normalised: statistics of an image cannot be folded.
    pub group: Option<Group>,
}

/// The normalisation of groups of channels behind a convolution.
pub struct Group {
    /// Its name in torchvision, such as `layer1.0.bn2`.
    pub name: String,
    /// Its factor, one a channel.
    pub gamma: Vec<f32>,
    /// Its summand.
    pub beta: Vec<f32>,
}

/// Every layer with weights, in the order of the network's units, then the classifier.
pub fn layers(network: &Network, params: &[f32]) -> Vec<Layer> {
    let exported = |layout: &Layout, name: &str| {
        let tensor = layout.tensor(name).expect("a tensor of this network");
        (tensor.shape.clone(), tensor.export(params))
    };
    let units = network.units.iter().map(|unit| {
        let (shape, mut weight) = exported(&network.layout, &format!("{}.weight", unit.name));
        let name = unit.name.clone();
        if network.is_grouped {
            let bias = vec![0.0; shape[0]];
            return Layer { name, shape, weight, bias, group: Some(group(network, unit, params)) };
        }
        let mut fold = Folded::new(unit.conv.channels_out);
        let [mean, variance] = unit.running.clone().map(|range| &params[range]);
        let [gamma, beta] = unit.affine.clone().map(|range| &params[range]);
        fold.set(NORM, mean, variance, gamma, beta);
        let filter = weight.len() / shape[0];
        for (values, scale) in weight.chunks_exact_mut(filter).zip(&fold.scale) {
            values.iter_mut().for_each(|value| *value *= scale);
        }
        Layer { name, shape, weight, bias: fold.shift, group: None }
    });
    let (shape, weight) = exported(&network.layout, "fc.weight");
    let (_, bias) = exported(&network.layout, "fc.bias");
    let classifier = Layer { name: "fc".into(), shape, weight, bias, group: None };
    units.chain([classifier]).collect()
}

/// The normalisation of a unit.
fn group(network: &Network, unit: &Unit, params: &[f32]) -> Group {
    let [gamma, beta] = unit.affine.clone();
    let tensor = network.layout.tensors.iter().find(|tensor| tensor.range == gamma);
    let name = tensor.and_then(|tensor| tensor.name.strip_suffix(".weight"));
    let [gamma, beta] = [gamma, beta].map(|range| params[range].to_vec());
    Group { name: name.expect("a unit of this network").into(), gamma, beta }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::shape::Shape;
    use crate::job::{Arch, Stem};

    #[test]
    fn a_folded_convolution_is_the_normalised_one() {
        let network = Network::new(Arch::Resnet18, Stem::Cifar, Shape::CIFAR).expect("shapes");
        let params: Vec<f32> = (0..network.layout.len).map(|i| 0.5 + (i % 7) as f32).collect();
        let layers = layers(&network, &params);
        assert_eq!(layers.len(), network.units.len() + 1);
        let (unit, layer) = (&network.units[3], &layers[3]);
        let at = |name: &str, index: usize| {
            let tensor = network.layout.tensor(name).expect("a tensor");
            tensor.export(&params)[index]
        };
        let (channel, filter) = (5, layer.weight.len() / layer.bias.len());
        let deviation = (at("layer1.1.bn1.running_var", channel) + 1e-5).sqrt();
        let scale = at("layer1.1.bn1.weight", channel) / deviation;
        assert_eq!((layer.name.as_str(), unit.name.as_str()), ("layer1.1.conv1", "layer1.1.conv1"));
        let value = at("layer1.1.conv1.weight", channel * filter + 8);
        assert!((layer.weight[channel * filter + 8] - scale * value).abs() < 1e-5);
        let shift =
            at("layer1.1.bn1.bias", channel) - scale * at("layer1.1.bn1.running_mean", channel);
        assert!((layer.bias[channel] - shift).abs() < 1e-5);
    }
}
