//! `hfl export`: a saved model for other programs, each normalisation folded into its convolution where it can be.

mod onnx;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use argh::FromArgs;

use crate::commands::saved::saved_model;
use crate::data::resize::Cut;
use crate::failure::{Doing, Failure};
use crate::files::renew;
use crate::job::Job;
use crate::model::fused::{self, Group, Layer};
use crate::model::params;
use crate::report::print;
use crate::training::classifier::Saved;
use crate::training::tensors::{Described, head};
use protocol::hex;

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A graph for ONNX Runtime and others.
    Onnx,
    /// Weights and biases under torchvision's names.
    Safetensors,
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "onnx" => Ok(Self::Onnx),
            "safetensors" => Ok(Self::Safetensors),
            _ => Err("expected onnx or safetensors".into()),
        }
    }
}

saved_model! {
    /// Write a saved model for other programs: a graph or its weights, normalisation folded in.
    #[derive(FromArgs, Debug)]
    #[argh(
        subcommand,
        name = "export",
        example = "{command_name} --format onnx --out model.onnx\n\
                   {command_name} --best --format safetensors --out model.safetensors"
    )]
    pub struct ExportArgs {
        /// refuse a model of an earlier step: the place was set back [0]
        #[argh(option, default = "0")]
        min_step: u64,
        /// the parameters that were best on test images, instead of the last
        #[argh(switch)]
        best: bool,
        /// onnx or safetensors
        #[argh(option)]
        format: Format,
        /// the file to write
        #[argh(option)]
        out: PathBuf,
    }
}

/// Runs the command.
///
/// # Errors
/// When the model cannot be used, or something else has the file's name.
pub fn run(args: &ExportArgs) -> Result<(), Failure> {
    let saved = Saved::open(&args.place(args.min_step), args.best)?;
    let (network, job, params) = saved.parts();
    let layers = fused::layers(network, params);
    let metadata = metadata(job, params);
    let mut bytes = Vec::new();
    let written = match args.format {
        Format::Onnx => {
            let constants = job.normalisation.constants();
            onnx::write(&mut bytes, network, &layers, &constants, &metadata)
        }
        Format::Safetensors => write_tensors(&mut bytes, &layers, &metadata),
    };
    written.doing(args.out.display())?;
    save(&args.out, &bytes, args.format)?;
    print(&args.out.display().to_string())
}

/// What the file says of its model: names of classes in the order of the logits, size and constants of pictures.
fn metadata(job: &Job, params: &[f32]) -> BTreeMap<String, String> {
    let [mean, deviation] = job.normalisation.constants();
    let list = |values: [f32; 3]| format!("[{}, {}, {}]", values[0], values[1], values[2]);
    let classes = serde_json::to_string(job.classes.names()).expect("plain text");
    let norm_layer = job.norm.is_grouped().then(|| ("norm_layer", job.norm.layer().to_owned()));
    let entries = [
        ("format", "pt".to_owned()),
        ("model", job.model.to_string()),
        ("stem", job.stem.to_string()),
        ("classes", classes),
        ("image_size", job.shape.side.to_string()),
        ("mean", list(mean)),
        ("deviation", list(deviation)),
        ("job_digest", hex(&job.digest())),
        ("parameters", hex(&params::hash(params))),
    ];
    // Pictures are resized so, their shorter side, before the centre is taken.
    let resized = Cut::to_evaluate(job).resized;
    let resized = (resized != job.shape.side).then(|| ("resize", resized.to_string()));
    entries
        .into_iter()
        .chain(norm_layer)
        .chain(resized)
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
}

fn write_tensors(
    out: &mut dyn Write,
    layers: &[Layer],
    metadata: &BTreeMap<String, String>,
) -> io::Result<()> {
    let mut tensors: Vec<(String, Vec<usize>, &[f32])> = Vec::with_capacity(2 * layers.len());
    for layer in layers {
        tensors.push((format!("{}.weight", layer.name), layer.shape.clone(), &layer.weight));
        let Layer { name, bias, group, .. } = layer;
        match group {
            None => tensors.push((format!("{name}.bias"), vec![bias.len()], bias)),
            Some(Group { name, gamma, beta }) => {
                tensors.push((format!("{name}.weight"), vec![gamma.len()], gamma));
                tensors.push((format!("{name}.bias"), vec![beta.len()], beta));
            }
        }
    }
    let described = tensors.iter().map(|(name, shape, values)| Described {
        name,
        kind: "F32",
        shape,
        len: size_of_val(*values),
    });
    out.write_all(&head(metadata, described)?)?;
    tensors.iter().try_for_each(|(_, _, values)| out.write_all(bytemuck::cast_slice(values)))
}

/// Replaces a file of the same kind only.
fn save(path: &Path, bytes: &[u8], format: Format) -> Result<(), Failure> {
    // The first fields of either: the version of ONNX's form, the header's length and its bracket.
    let is_onnx = |bytes: &[u8]| bytes.starts_with(b"\x08") && bytes.get(2) == Some(&0x12);
    let is_tensors = |bytes: &[u8]| bytes.get(8) == Some(&b'{');
    match format {
        Format::Onnx => renew(path, bytes, "ONNX file", is_onnx),
        Format::Safetensors => renew(path, bytes, "safetensors file", is_tensors),
    }
}
