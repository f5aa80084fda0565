//! An exported model elsewhere: ONNX Runtime computes our logits, and folded weights are there under their names.
//!
//! `onnx.py` runs what `export_for_onnx_runtime` writes and records the logits with the file's digest: the recorded
//! logits are of exactly the bytes that this test exports.

use std::path::{Path, PathBuf};

use hfl::data::batch::Batch;
use hfl::data::cifar;
use hfl::data::synthetic;
use hfl::job::norm::Norm;
use hfl::job::recipe::Recipe;
use hfl::job::rng::Stream;
use hfl::job::schedule::Schedule;
use hfl::job::state::State;
use hfl::job::{Algorithm, Arch, Augment, Job, Order};
use hfl::model::inference::Inference;
use hfl::model::init;
use hfl::model::network::Network;
use hfl::model::params::Kind;
use hfl::training::checkpoint;
use hfl::training::store::Store;
use kernels::{Isa, Pool};
use serde_json::Value;

use crate::cli::hfl;
use crate::processes::Dir;

const IMAGES: usize = 4;
const MODELS: [(Arch, Norm); 3] =
    [(Arch::Resnet18, Norm::Batch), (Arch::Resnet50, Norm::Batch), (Arch::Resnet18, Norm::Group)];

/// What the recording and the file of a model are called.
fn title((model, norm): (Arch, Norm)) -> String {
    if norm.is_grouped() { format!("{model}-group") } else { model.to_string() }
}

fn job((model, norm): (Arch, Norm)) -> Job {
    Job {
        conv: Algorithm::Direct,
        workers: 1,
        batch_size: 8,
        epochs: 1,
        schedule: Schedule::Constant { rate: 0.1 },
        seed: 5,
        augment: Augment::None,
        order: Order::Sequential,
        model,
        norm,
        ..Job::default()
    }
}

/// Parameters in which every tensor matters: no statistic and no factor is what a new model has.
fn params(network: &Network) -> Vec<f32> {
    let mut params = init::initialise(&network.layout, 5, init::PLAIN_BLOCKS);
    for tensor in network.layout.tensors.iter().filter(|tensor| tensor.shape.len() == 1) {
        let stream = Stream::new(5, &tensor.name);
        let is_scale = tensor.name.ends_with("var") || tensor.name.ends_with("weight");
        for (at, value) in params[tensor.range.clone()].iter_mut().enumerate() {
            let part = stream.uniform(at as u64);
            *value = if is_scale { 0.5 + part } else { part - 0.5 };
        }
    }
    let has_statistics = network.layout.tensors.iter().any(|tensor| tensor.kind == Kind::Statistic);
    assert_ne!(has_statistics, network.is_grouped);
    params
}

/// Saves such a model and exports it; where the file is.
fn exported(dir: &Path, model: (Arch, Norm), format: &str) -> PathBuf {
    let job = job(model);
    let network = Network::of(&job).expect("shapes");
    let state = State::new(params(&network), network.layout.trained, 1);
    let place = dir.join(title(model));
    let mut store = Store::directory(&place).expect("store");
    checkpoint::save(&mut store, &network.layout, &job, &state).expect("checkpoint");
    let out = dir.join(format!("{}.{format}", title(model)));
    export(&place, &out, format);
    out
}

fn export(place: &Path, out: &Path, format: &str) {
    let [place, name] = [place, out].map(|path| path.to_str().expect("UTF-8"));
    let output = hfl(&["export", "--model-dir", place, "--format", format, "--out", name]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn logits(model: (Arch, Norm)) -> Vec<f32> {
    let network = Network::of(&job(model)).expect("shapes");
    let params = params(&network);
    let (pool, isa) = (Pool::new(2), Isa::detect());
    let mut inference = Inference::new(network, params, IMAGES, pool, isa).expect("memory");
    let mut batch = Batch::default();
    let data = cifar::from_records(synthetic::records(8, IMAGES)).expect("records");
    data.batch(0, IMAGES, &mut batch).expect("in memory");
    inference.run(&batch).to_vec()
}

fn digest(path: &Path) -> String {
    let bytes = std::fs::read(path).expect("the export");
    protocol::hex(ring::digest::digest(&ring::digest::SHA256, &bytes).as_ref())
}

#[test]
#[ignore = "writes the inputs of tests/onnx.py to $ONNX_DIR"]
fn export_for_onnx_runtime() {
    let dir = PathBuf::from(std::env::var("ONNX_DIR").expect("ONNX_DIR"));
    MODELS.iter().for_each(|&model| drop(exported(&dir, model, "onnx")));
    std::fs::write(dir.join("images.bin"), synthetic::records(8, IMAGES)).expect("write");
}

#[test]
fn onnx_runtime_computes_our_logits() {
    let recorded = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/onnx.json");
    let recorded: Value =
        serde_json::from_slice(&std::fs::read(recorded).expect("recorded by onnx.py"))
            .expect("JSON");
    let dir = Dir::new("onnx");
    for model in MODELS {
        let title = title(model);
        let recorded = &recorded[&title];
        let file = exported(&dir.path(""), model, "onnx");
        assert_eq!(recorded["sha256"], digest(&file), "{title}: another file than was run");
        let theirs: Vec<f32> = serde_json::from_value(recorded["logits"].clone()).expect("logits");
        let ours = logits(model);
        assert_eq!(theirs.len(), ours.len());
        let largest = ours.iter().fold(0.0_f32, |most, logit| most.max(logit.abs()));
        for (ours, theirs) in ours.iter().zip(&theirs) {
            let far = (ours - theirs).abs();
            assert!(far < 1e-4 * largest.max(1.0), "{title}: {ours}, ONNX Runtime {theirs}");
        }
    }
}

#[test]
fn folded_weights_are_written_under_torchvisions_names_and_nothing_else_is_overwritten() {
    let dir = Dir::new("folded");
    let file = exported(&dir.path(""), MODELS[0], "safetensors");
    let bytes = std::fs::read(&file).expect("the export");
    let len = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + len]).expect("JSON");
    let shape = |name: &str| header[name]["shape"].clone();
    assert_eq!(shape("layer2.0.downsample.0.weight"), serde_json::json!([128, 64, 1, 1]));
    assert_eq!(shape("layer4.1.conv2.bias"), serde_json::json!([512]));
    assert_eq!(header.as_object().map(serde_json::Map::len), Some(2 * 21 + 1));
    let classes = header["__metadata__"]["classes"].as_str().expect("names");
    assert!(classes.starts_with("[\"airplane\",\"automobile\""), "{classes}");
    let end = header["fc.bias"]["data_offsets"][1].as_u64().expect("an offset") as usize;
    assert_eq!(8 + len + end, bytes.len());
    exported(&dir.path(""), MODELS[0], "safetensors");
    std::fs::write(&file, "a thesis").expect("write");
    let (place, name) = (dir.path("resnet18"), file.to_str().expect("UTF-8"));
    let place = place.to_str().expect("UTF-8");
    let flags = ["export", "--model-dir", place, "--format", "safetensors", "--out", name];
    let refused = hfl(&flags);
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && why.contains("is no safetensors file"), "{why}");
    assert_eq!(std::fs::read_to_string(&file).expect("read"), "a thesis");
    let refused = hfl(&[&flags[..], &["--best"]].concat());
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && why.contains("model.best-data: no such file"), "{why}");
}

#[test]
fn averages_are_exported_and_predicted_with_where_a_job_has_them() {
    let dir = Dir::new("averages");
    let plain = exported(&dir.path(""), MODELS[0], "safetensors");
    let recipe = Recipe { ema: 0.99, ..Recipe::default() };
    let job = Job { recipe, ..job(MODELS[0]) };
    let network = Network::of(&job).expect("shapes");
    let averages = std::sync::Arc::new(params(&network));
    let others = init::initialise(&network.layout, 6, init::PLAIN_BLOCKS);
    let state = State::new(others, network.layout.trained, 1);
    let state = State { average: Some(averages), ..state };
    let place = dir.path("averaged");
    let mut store = Store::directory(&place).expect("store");
    checkpoint::save(&mut store, &network.layout, &job, &state).expect("checkpoint");
    let (_, read) =
        checkpoint::load(&store, checkpoint::DATA_FILE).expect("whole").expect("a file");
    assert!(read.state == state);
    let out = dir.path("averaged.safetensors");
    export(&place, &out, "safetensors");
    let values = |path: &Path| {
        let bytes = std::fs::read(path).expect("the export");
        let len = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
        bytes[8 + len..].to_vec()
    };
    assert!(values(&out) == values(&plain), "the same weights");
    let picture = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/pictures/colour.jpg");
    let [of_averages, of_plain] = [place, dir.path("resnet18")].map(|model| {
        let model = model.to_str().expect("UTF-8");
        let output = hfl(&["predict", "--model-dir", model, "--json", picture]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    });
    assert_eq!(of_averages, of_plain);
}

#[test]
fn what_cannot_be_folded_is_written_beside_the_convolutions() {
    let dir = Dir::new("grouped");
    let file = exported(&dir.path(""), MODELS[2], "safetensors");
    let bytes = std::fs::read(&file).expect("the export");
    let len = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + len]).expect("JSON");
    assert_eq!(header["layer2.0.downsample.1.weight"]["shape"], serde_json::json!([128]));
    assert_eq!(header["bn1.bias"]["shape"], serde_json::json!([64]));
    assert!(header["conv1.bias"].is_null() && header["bn1.running_mean"].is_null());
    assert_eq!(header.as_object().map(serde_json::Map::len), Some(3 * 20 + 2 + 1));
    let norm = header["__metadata__"]["norm_layer"].as_str().expect("told");
    assert!(norm.contains("GroupNorm(32"), "{norm}");
}
