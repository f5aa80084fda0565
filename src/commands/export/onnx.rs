//! An inference graph as ONNX (`onnx.proto3` of IR version 7, operator set 13): the few messages that it takes.
//!
//! A protocol buffer is fields: a number with a wire type (0: varint, 2: a length and as many bytes), then the value.
//! Nested messages are written to the file in one pass; weights, which are most of it, are not copied.

use std::collections::BTreeMap;
use std::io::{self, Write};

use kernels::GROUPS;

use crate::job::shape::Shape;
use crate::model::fused::{Group, Layer};
use crate::model::network::{Network, Unit};
use crate::model::resnet::NORM;

/// Versions that every runtime of the last years reads.
const IR_VERSION: u64 = 7;
const OPERATOR_SET: u64 = 13;
/// `TensorProto.DataType.FLOAT`, and `INT64`.
const FLOAT: u64 = 1;
const INT64: u64 = 7;

/// A message's bytes, and tensors whose values follow at some places.
#[derive(Default)]
struct Message<'a> {
    parts: Vec<Part<'a>>,
}

enum Part<'a> {
    Bytes(Vec<u8>),
    Values(&'a [f32]),
}

impl<'a> Message<'a> {
    fn len(&self) -> usize {
        let len = |part: &Part| match part {
            Part::Bytes(bytes) => bytes.len(),
            Part::Values(values) => size_of_val(*values),
        };
        self.parts.iter().map(len).sum()
    }

    fn bytes(&mut self) -> &mut Vec<u8> {
        if !matches!(self.parts.last(), Some(Part::Bytes(_))) {
            self.parts.push(Part::Bytes(Vec::new()));
        }
        match self.parts.last_mut() {
            Some(Part::Bytes(bytes)) => bytes,
            _ => unreachable!("just pushed"),
        }
    }

    fn varint(&mut self, mut value: u64) {
        let bytes = self.bytes();
        while value >= 0x80 {
            bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        bytes.push(value as u8);
    }

    fn number(mut self, field: u64, value: u64) -> Self {
        self.varint(field << 3);
        self.varint(value);
        self
    }

    fn text(self, field: u64, text: &str) -> Self {
        self.raw(field, text.as_bytes())
    }

    fn raw(mut self, field: u64, bytes: &[u8]) -> Self {
        self.varint(field << 3 | 2);
        self.varint(bytes.len() as u64);
        self.bytes().extend_from_slice(bytes);
        self
    }

    fn message(mut self, field: u64, inner: Self) -> Self {
        self.varint(field << 3 | 2);
        self.varint(inner.len() as u64);
        self.parts.extend(inner.parts);
        self
    }

    fn values(mut self, field: u64, values: &'a [f32]) -> Self {
        self.varint(field << 3 | 2);
        self.varint(size_of_val(values) as u64);
        self.parts.push(Part::Values(values));
        self
    }

    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        self.parts.iter().try_for_each(|part| match part {
            Part::Bytes(bytes) => out.write_all(bytes),
            Part::Values(values) => out.write_all(bytemuck::cast_slice(values)),
        })
    }
}

/// What a graph is made of, node by node.
#[derive(Default)]
struct Graph<'a> {
    nodes: Vec<Message<'a>>,
    tensors: Vec<Message<'a>>,
}

impl<'a> Graph<'a> {
    /// Adds a node whose one output has its name; gives that name.
    fn node(
        &mut self,
        operator: &str,
        inputs: &[&str],
        output: String,
        attributes: Vec<Message<'a>>,
    ) -> String {
        let node = inputs.iter().fold(Message::default(), |node, input| node.text(1, input));
        let node = node.text(2, &output).text(3, &output).text(4, operator);
        let node = attributes.into_iter().fold(node, |node, attribute| node.message(5, attribute));
        self.nodes.push(node);
        output
    }

    fn tensor(&mut self, name: &str, shape: &[usize], values: &'a [f32]) {
        assert_eq!(shape.iter().product::<usize>(), values.len());
        let dims = |tensor: Message<'a>, &side: &usize| tensor.number(1, side as u64);
        let tensor = shape.iter().fold(Message::default(), dims).number(2, FLOAT);
        self.tensors.push(tensor.text(8, name).values(9, values));
    }

    /// Whole numbers, such as sides.
    fn sizes(&mut self, name: &str, sizes: &[i64]) {
        let bytes: Vec<u8> = sizes.iter().flat_map(|size| size.to_le_bytes()).collect();
        let tensor = Message::default().number(1, sizes.len() as u64).number(2, INT64);
        self.tensors.push(tensor.text(8, name).raw(9, &bytes));
    }

    /// What all normalisations of groups read.
    fn groups(&mut self) {
        self.tensor("groups.scale", &[GROUPS], &[1.0; GROUPS]);
        self.tensor("groups.shift", &[GROUPS], &[0.0; GROUPS]);
        self.sizes("groups.shape", &[0, GROUPS as i64, -1]);
    }

    /// Groups of channels, each an instance of its own: operators of the group itself are of later versions.
    fn normalise(&mut self, group: &'a Group, [height, width]: [usize; 2], x: &str) -> String {
        let Group { name, gamma, beta } = group;
        let part = |part: &str| format!("{name}.{part}");
        let [weight, bias, shape] = ["weight", "bias", "shape"].map(part);
        self.tensor(&weight, &[gamma.len(), 1, 1], gamma);
        self.tensor(&bias, &[beta.len(), 1, 1], beta);
        self.sizes(&shape, &[0, gamma.len() as i64, height as i64, width as i64]);
        let x = self.node("Reshape", &[x, "groups.shape"], part("groups"), Vec::new());
        let inputs = [&*x, "groups.scale", "groups.shift"];
        let epsilon = vec![float("epsilon", NORM.epsilon)];
        let x = self.node("InstanceNormalization", &inputs, part("normalised"), epsilon);
        let x = self.node("Reshape", &[&x, &shape], part("whole"), Vec::new());
        let x = self.node("Mul", &[&x, &weight], part("scaled"), Vec::new());
        self.node("Add", &[&x, &bias], name.clone(), Vec::new())
    }

    /// A layer's convolution, and its normalisation where that is not folded.
    fn convolve(&mut self, layer: &'a Layer, unit: &Unit, x: &str) -> String {
        let [stride, padding] = unit.window;
        let [weight, bias] = ["weight", "bias"].map(|part| format!("{}.{part}", layer.name));
        self.tensor(&weight, &layer.shape, &layer.weight);
        self.tensor(&bias, &[layer.bias.len()], &layer.bias);
        let attributes = vec![
            numbers("kernel_shape", &layer.shape[2..]),
            numbers("pads", &[padding; 4]),
            numbers("strides", &[stride; 2]),
        ];
        let x = self.node("Conv", &[x, &weight, &bias], layer.name.clone(), attributes);
        match &layer.group {
            None => x,
            Some(group) => self.normalise(group, unit.conv.output, &x),
        }
    }

    fn relu(&mut self, x: &str) -> String {
        self.node("Relu", &[x], format!("{x}.relu"), Vec::new())
    }
}

/// An attribute that is a list of whole numbers.
fn numbers<'a>(name: &str, values: &[usize]) -> Message<'a> {
    const INTS: u64 = 7;
    let attribute = Message::default().text(1, name);
    values.iter().fold(attribute, |list, &value| list.number(8, value as u64)).number(20, INTS)
}

/// An attribute that is one whole number.
fn number<'a>(name: &str, value: u64) -> Message<'a> {
    const INT: u64 = 2;
    Message::default().text(1, name).number(3, value).number(20, INT)
}

/// An attribute that is one number.
fn float<'a>(name: &str, value: f32) -> Message<'a> {
    const FLOAT: u64 = 1;
    let mut attribute = Message::default().text(1, name);
    // A value of 32 bits.
    attribute.varint(2 << 3 | 5);
    attribute.bytes().extend_from_slice(&value.to_le_bytes());
    attribute.number(20, FLOAT)
}

/// The type of an input or output: `[batch, ...]`.
fn value<'a>(name: &str, sides: &[usize]) -> Message<'a> {
    let batch = Message::default().message(1, Message::default().text(2, "batch"));
    let shape = sides
        .iter()
        .fold(batch, |shape, &side| shape.message(1, Message::default().number(1, side as u64)));
    let tensor = Message::default().number(1, FLOAT).message(2, shape);
    Message::default().text(1, name).message(2, Message::default().message(1, tensor))
}

/// Input and output of the graph.
const INPUT: &str = "pixels";
const OUTPUT: &str = "logits";

/// Writes the graph: pixels from 0 to 1, `[batch, 3, side, side]`, to logits, `[batch, classes]`.
///
/// # Errors
/// When `out` refuses.
pub(super) fn write(
    out: &mut dyn Write,
    network: &Network,
    layers: &[Layer],
    constants: &[[f32; 3]; 2],
    metadata: &BTreeMap<String, String>,
) -> io::Result<()> {
    let graph = graph(network, layers, constants);
    let Shape { side, channels, classes } = network.shape;
    let message =
        graph.nodes.into_iter().fold(Message::default(), |all, node| all.message(1, node));
    let message = message.text(2, &network.model.to_string());
    let message = graph.tensors.into_iter().fold(message, |all, tensor| all.message(5, tensor));
    let message = message
        .message(11, value(INPUT, &[channels, side, side]))
        .message(12, value(OUTPUT, &[classes]));
    let model = Message::default()
        .number(1, IR_VERSION)
        .text(2, "hfl")
        .text(3, env!("CARGO_PKG_VERSION"))
        .message(7, message)
        .message(8, Message::default().text(1, "").number(2, OPERATOR_SET));
    let model = metadata.iter().fold(model, |model, (key, value)| {
        model.message(14, Message::default().text(1, key).text(2, value))
    });
    model.write(out)
}

fn graph<'a>(
    network: &Network,
    layers: &'a [Layer],
    [mean, deviation]: &'a [[f32; 3]; 2],
) -> Graph<'a> {
    let mut graph = Graph::default();
    graph.tensor("mean", &[1, 3, 1, 1], mean);
    graph.tensor("deviation", &[1, 3, 1, 1], deviation);
    let x = graph.node("Sub", &[INPUT, "mean"], "centred".into(), Vec::new());
    let x = graph.node("Div", &[&x, "deviation"], "normalised".into(), Vec::new());
    let unit =
        |graph: &mut Graph<'a>, u: usize, x: &str| graph.convolve(&layers[u], &network.units[u], x);
    if network.is_grouped {
        graph.groups();
    }
    let x = unit(&mut graph, 0, &x);
    let mut x = graph.relu(&x);
    if network.max_pool.is_some() {
        let window = vec![
            numbers("kernel_shape", &[3; 2]),
            numbers("pads", &[1; 4]),
            numbers("strides", &[2; 2]),
        ];
        x = graph.node("MaxPool", &[&x], "maxpool".into(), window);
    }
    for (index, block) in network.blocks.iter().enumerate() {
        let mut y = x.clone();
        for u in block.first..=block.last {
            y = unit(&mut graph, u, &y);
            if u != block.last {
                y = graph.relu(&y);
            }
        }
        let shortcut = match block.projection {
            Some(p) => unit(&mut graph, p, &x),
            None => x,
        };
        let sum = graph.node("Add", &[&y, &shortcut], format!("block{index}"), Vec::new());
        x = graph.relu(&sum);
    }
    let x = graph.node("GlobalAveragePool", &[&x], "avgpool".into(), Vec::new());
    let x = graph.node("Flatten", &[&x], "features".into(), vec![number("axis", 1)]);
    let classifier = &layers[network.units.len()];
    graph.tensor("fc.weight", &classifier.shape, &classifier.weight);
    graph.tensor("fc.bias", &[classifier.bias.len()], &classifier.bias);
    let inputs = [&*x, "fc.weight", "fc.bias"];
    graph.node("Gemm", &inputs, OUTPUT.into(), vec![number("transB", 1)]);
    graph
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(message: &Message) -> Vec<u8> {
        let mut bytes = Vec::new();
        message.write(&mut bytes).expect("memory");
        assert_eq!(bytes.len(), message.len());
        bytes
    }

    #[test]
    fn fields_are_those_of_protocol_buffers() {
        // The example of the format's documentation: field 1 is 150, field 2 is "testing".
        let message = Message::default().number(1, 150).text(2, "testing");
        assert_eq!(bytes(&message), b"\x08\x96\x01\x12\x07testing");
        let outer = Message::default().message(3, Message::default().number(1, 150)).number(1, 1);
        assert_eq!(bytes(&outer), b"\x1a\x03\x08\x96\x01\x08\x01");
        let values = Message::default().values(9, &[1.0]).number(1, 2);
        assert_eq!(bytes(&values), b"\x4a\x04\0\0\x80\x3f\x08\x02");
    }
}
