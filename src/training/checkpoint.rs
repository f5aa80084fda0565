//! `model.ckpt-data`: a training's state as a safetensors file with torchvision's tensor names.
//!
//! Parameters, running statistics and `num_batches_tracked` load into
//! `torchvision.models.resnet50(num_classes=10)` as they are; velocities stand beside them under
//! `momentum.NAME`, averages, where a job has them, under `average.NAME`. The header's metadata has the step, the job
//! and hashes of all.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use safetensors::{Dtype, SafeTensors};
use serde::Serialize;

use crate::files::read_bounded;
use crate::job::receipt::Receipt;
use crate::job::state::{Found, State};
use crate::job::{Arch, Job, Stem};
use crate::model::network::Network;
use crate::model::params::{self, Kind, Layout, Tensor};
use crate::training::store::{Progress, Store};
use crate::training::tensors::{self, Described};
use protocol::{hex, unhex};

/// The file with the values.
pub const DATA_FILE: &str = "model.ckpt-data";
/// The file with the values that were best on test images.
pub const BEST_FILE: &str = "model.best-data";
/// The file with the graph and the hyper-parameters.
pub const META_FILE: &str = "model.ckpt-meta";
/// Prefix of the velocities' names.
const MOMENTUM: &str = "momentum.";
/// Prefix of the averages' names.
const AVERAGE: &str = "average.";
/// Suffix of the counters that PyTorch keeps beside running statistics.
const TRACKED: &str = "num_batches_tracked";

/// Why a checkpoint cannot be used.
#[derive(Debug)]
pub enum CheckpointError {
    /// The system refused.
    Io(std::io::Error),
    /// The bytes are no safetensors file.
    Format(String),
    /// A tensor is missing, has another type, or does not belong here.
    Tensor(String, &'static str),
    /// A tensor has another shape than the network's.
    Shape {
        /// Its name.
        name: String,
        /// The shape in the file.
        found: Vec<usize>,
        /// The network's.
        expected: Vec<usize>,
    },
    /// A metadata entry is missing or malformed.
    Metadata(&'static str),
    /// The values are not those that the metadata names.
    Hash(&'static str),
}

impl fmt::Display for CheckpointError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Io(error) => write!(f, "{error}"),
            Self::Format(why) => write!(f, "no safetensors file: {why}"),
            Self::Tensor(name, why) => write!(f, "tensor '{}' {why}", name.escape_default()),
            Self::Shape { name, found, expected } => {
                let name = name.escape_default();
                write!(f, "tensor '{name}' has shape {found:?}, the network's is {expected:?}")
            }
            Self::Metadata(key) => write!(f, "metadata entry '{key}' is missing or malformed"),
            Self::Hash(what) => write!(f, "the {what} are not what the file was written with"),
        }
    }
}

impl std::error::Error for CheckpointError {}

/// What a checkpoint file holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// The job that it is of.
    pub job: Job,
    /// The training.
    pub state: State,
}

/// Writes a checkpoint in the place of the last one.
///
/// # Errors
/// When the system refuses; the last checkpoint stays then.
pub fn save(store: &mut Store, layout: &Layout, job: &Job, state: &State) -> io::Result<()> {
    save_as(DATA_FILE, store, layout, job, state)
}

/// Writes a checkpoint under this name, such as [`BEST_FILE`].
///
/// # Errors
/// As [`save`].
pub fn save_as(
    name: &str,
    store: &mut Store,
    layout: &Layout,
    job: &Job,
    state: &State,
) -> io::Result<()> {
    let progress = Progress { job: job.digest(), step: state.step };
    store.save(name, progress, &|out| write(out, layout, job, state))
}

/// Reads the checkpoint of this name in a store; `None` when there is none.
///
/// # Errors
/// When there is one that is not whole.
pub fn load(store: &Store, name: &str) -> Result<Option<(Network, Checkpoint)>, CheckpointError> {
    let Some(bytes) = store.read(name).map_err(CheckpointError::Io)? else { return Ok(None) };
    parse(&bytes).map(Some)
}

/// Parameters to start from, and what of them is not the file's.
pub struct Initial {
    /// The flat buffer.
    pub params: Vec<f32>,
    /// Classes of the file's classifier, if they are not as many as the network's: ours starts anew then.
    pub other_classes: Option<usize>,
}

/// Reads initial parameters: any safetensors file with torchvision's names, also without metadata. A classifier of
/// another number of classes is left as `fresh` begins it.
///
/// # Errors
/// When a tensor is missing, has another shape or values that are not finite; each by its name.
pub fn load_params(
    path: &Path,
    layout: &Layout,
    fresh: impl FnOnce(&mut [f32]),
) -> Result<Initial, CheckpointError> {
    let missing = || CheckpointError::Format("there is no such file".into());
    let bytes = read_bounded(path).map_err(CheckpointError::Io)?.ok_or_else(missing)?;
    // What torch.save writes: a ZIP archive, or a bare pickle of before 2020.
    if bytes.starts_with(b"PK\x03\x04") || bytes.starts_with(&[0x80, 2]) {
        let what =
            "a PyTorch pickle; in Python: safetensors.torch.save_file(torch.load(FILE), OUT)";
        return Err(CheckpointError::Format(what.into()));
    }
    let tensors = deserialize(&bytes)?;
    let mut params = vec![0.0; layout.len];
    let other_classes = other_classes(&tensors, layout);
    if other_classes.is_some() {
        fresh(&mut params);
    }
    for tensor in &layout.tensors {
        if other_classes.is_none() || !CLASSIFIER.contains(&&*tensor.name) {
            import(&tensors, tensor, "", &mut params)?;
        }
    }
    Ok(Initial { params, other_classes })
}

/// The classifier's tensors.
const CLASSIFIER: [&str; 2] = ["fc.weight", "fc.bias"];

/// The number of classes of a file's classifier, if it is whole and fits the network but for that.
fn other_classes(tensors: &SafeTensors, layout: &Layout) -> Option<usize> {
    let [weight, bias] = CLASSIFIER.map(|name| tensors.tensor(name).ok());
    let (weight, bias) = (weight?, bias?);
    let &[classes, inputs] = weight.shape() else { return None };
    let &[ours, our_inputs] = layout.tensor(CLASSIFIER[0])?.shape.as_slice() else { return None };
    let fits = inputs == our_inputs && bias.shape() == [classes];
    (fits && classes != ours).then_some(classes)
}

/// Writes `model.ckpt-meta`: the graph, layer by layer, and every hyper-parameter, as JSON.
///
/// # Errors
/// When the system refuses.
pub fn save_meta(store: &mut Store, job: &Job, network: &Network, step: u64) -> io::Result<()> {
    let mut text = serde_json::to_vec_pretty(&Meta::new(job, network))?;
    text.push(b'\n');
    store.save(META_FILE, Progress { job: job.digest(), step }, &|out| out.write_all(&text))
}

/// Bytes of a checkpoint at most, with averages or without.
pub fn len_max(layout: &Layout, averages: bool) -> u64 {
    let averages = if averages { layout.len } else { 0 };
    let values = (layout.len + layout.trained + averages) * size_of::<f32>();
    (values + HEADER_LEN_MAX + 4 * layout.tensors.len() * ENTRY_LEN_MAX) as u64
}

/// The header's metadata: job, members, hashes.
const HEADER_LEN_MAX: usize = 64 << 10;
/// What the header says of a tensor, and the value of a counter.
const ENTRY_LEN_MAX: usize = 256;

fn write(out: &mut dyn Write, layout: &Layout, job: &Job, state: &State) -> std::io::Result<()> {
    let entries = entries(layout, state);
    let described = entries.iter().map(|(name, entry)| Described {
        name,
        kind: entry.kind(),
        shape: entry.shape(),
        len: entry.len(),
    });
    out.write_all(&tensors::head(&metadata(job, state), described)?)?;
    entries.iter().try_for_each(|(_, entry)| out.write_all(&entry.bytes()))
}

/// The checkpoint in these bytes and the network that it is of.
fn parse(bytes: &[u8]) -> Result<(Network, Checkpoint), CheckpointError> {
    let (_, header) = SafeTensors::read_metadata(bytes)
        .map_err(|error| CheckpointError::Format(error.to_string()))?;
    let tensors = deserialize(bytes)?;
    let metadata = header.metadata().clone().unwrap_or_default();
    let entry = |key: &'static str| metadata.get(key).ok_or(CheckpointError::Metadata(key));
    let job = Job::parse(entry("job")?.as_bytes()).map_err(|_| CheckpointError::Metadata("job"))?;
    let network = Network::of(&job).map_err(|e| CheckpointError::Format(e.to_string()))?;
    let layout = &network.layout;
    let number = |key| entry(key)?.parse().map_err(|_| CheckpointError::Metadata(key));
    let members: Vec<_> = serde_json::from_str(entry("members")?)
        .map_err(|_| CheckpointError::Metadata("members"))?;
    if members.len() != usize::from(job.workers) {
        return Err(CheckpointError::Metadata("members"));
    }
    let (mut params, mut velocity) = (vec![0.0; layout.len], vec![0.0; layout.trained]);
    let mut average = job.recipe.averages().then(|| vec![0.0; layout.len]);
    for tensor in &layout.tensors {
        import(&tensors, tensor, "", &mut params)?;
        if tensor.kind != Kind::Statistic {
            import(&tensors, tensor, MOMENTUM, &mut velocity)?;
        }
        if let Some(average) = &mut average {
            import(&tensors, tensor, AVERAGE, average)?;
        }
    }
    let state = State {
        params: Arc::new(params),
        velocity: Arc::new(velocity),
        average: average.map(Arc::new),
        step: number("step")?,
        steps: metadata.contains_key("steps").then(|| number("steps")).transpose()?,
        members,
        found: match metadata.get("evaluation") {
            None => Found::default(),
            Some(text) => {
                serde_json::from_str(text).map_err(|_| CheckpointError::Metadata("evaluation"))?
            }
        },
        receipt: metadata.get("receipt").map(|text| receipt(text)).transpose()?,
    };
    let known = |name: &str| {
        let average = name.strip_prefix(AVERAGE).filter(|_| state.average.is_some());
        let name = average.or(name.strip_prefix(MOMENTUM)).unwrap_or(name);
        name.ends_with(TRACKED) || layout.tensor(name).is_some()
    };
    if let Some(name) = tensors.names().into_iter().find(|name| !known(name)) {
        return Err(CheckpointError::Tensor(name.into(), "does not belong to this network"));
    }
    let average = state.average.as_ref().map(|average| ("average", average));
    let values = [("parameters", &state.params), ("momentum", &state.velocity)];
    for (key, values) in values.into_iter().chain(average) {
        if hex(&params::hash(values)) != *entry(key)? {
            return Err(CheckpointError::Hash(key));
        }
    }
    Ok((network, Checkpoint { job, state }))
}

fn receipt(text: &str) -> Result<Receipt, CheckpointError> {
    let receipt = unhex(text).and_then(|bytes| Receipt::parse(&bytes));
    receipt.ok_or(CheckpointError::Metadata("receipt"))
}

fn deserialize(bytes: &[u8]) -> Result<SafeTensors<'_>, CheckpointError> {
    SafeTensors::deserialize(bytes).map_err(|error| CheckpointError::Format(error.to_string()))
}

fn import(
    tensors: &SafeTensors,
    tensor: &Tensor,
    prefix: &str,
    values: &mut [f32],
) -> Result<(), CheckpointError> {
    let name = format!("{prefix}{}", tensor.name);
    let Ok(view) = tensors.tensor(&name) else {
        return Err(CheckpointError::Tensor(name, "is missing"));
    };
    if view.dtype() != Dtype::F32 {
        return Err(CheckpointError::Tensor(name, "does not hold 32-bit floating-point numbers"));
    }
    if view.shape() != tensor.shape {
        let (found, expected) = (view.shape().to_vec(), tensor.shape.clone());
        return Err(CheckpointError::Shape { name, found, expected });
    }
    let (source, _) = view.data().as_chunks::<4>();
    let source: Vec<f32> = source.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
    if source.iter().any(|value| !value.is_finite()) {
        return Err(CheckpointError::Tensor(name, "holds values that are infinite or no numbers"));
    }
    tensor.import(&source, values);
    Ok(())
}

fn metadata(job: &Job, state: &State) -> BTreeMap<String, String> {
    let json = |bytes: Vec<u8>| String::from_utf8(bytes).expect("JSON is UTF-8");
    let members = serde_json::to_vec(&state.members).expect("plain numbers");
    let mut metadata = BTreeMap::from([
        ("format".into(), "pt".into()),
        ("job".into(), json(job.encode())),
        ("job_digest".into(), hex(&job.digest())),
        ("members".into(), json(members)),
        ("momentum".into(), hex(&params::hash(&state.velocity))),
        ("parameters".into(), hex(&params::hash(&state.params))),
        ("step".into(), state.step.to_string()),
    ]);
    let average = state.average.as_ref().map(|average| hex(&params::hash(average)));
    metadata.extend(average.map(|hash| ("average".into(), hash)));
    metadata.extend(state.steps.map(|steps| ("steps".into(), steps.to_string())));
    metadata.extend(state.receipt.as_ref().map(|last| ("receipt".into(), hex(&last.encode()))));
    if state.found != Found::default() {
        let found = serde_json::to_string(&state.found).expect("plain numbers");
        metadata.insert("evaluation".into(), found);
    }
    metadata
}

/// A tensor that is turned into torchvision's order when it is written.
enum Entry<'a> {
    Counter(u64),
    Values(&'a Tensor, &'a [f32]),
}

fn entries<'a>(layout: &'a Layout, state: &'a State) -> Vec<(String, Entry<'a>)> {
    let mut entries = Vec::new();
    for tensor in &layout.tensors {
        entries.push((tensor.name.clone(), Entry::Values(tensor, &state.params)));
        if tensor.kind != Kind::Statistic {
            let name = format!("{MOMENTUM}{}", tensor.name);
            entries.push((name, Entry::Values(tensor, &state.velocity)));
        }
        if let Some(average) = &state.average {
            let name = format!("{AVERAGE}{}", tensor.name);
            entries.push((name, Entry::Values(tensor, average)));
        }
        if let Some(norm) = tensor.name.strip_suffix("running_mean") {
            entries.push((format!("{norm}{TRACKED}"), Entry::Counter(state.step)));
        }
    }
    // Counters first: every tensor is then aligned to its type.
    entries.sort_by_key(|(_, entry)| matches!(entry, Entry::Values(..)));
    entries
}

impl Entry<'_> {
    fn kind(&self) -> &'static str {
        match self {
            Self::Counter(_) => "I64",
            Self::Values(..) => "F32",
        }
    }

    fn shape(&self) -> &[usize] {
        match self {
            Self::Counter(_) => &[],
            Self::Values(tensor, _) => &tensor.shape,
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Counter(_) => 8,
            Self::Values(tensor, _) => tensor.range.len() * size_of::<f32>(),
        }
    }

    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Counter(count) => count.to_le_bytes().to_vec(),
            Self::Values(tensor, values) => bytemuck::cast_slice(&tensor.export(values)).to_vec(),
        }
    }
}

#[derive(Serialize)]
struct Meta<'a> {
    model: String,
    stem: Stem,
    norm_layer: &'static str,
    classes: &'a [String],
    parameters: usize,
    job_digest: String,
    job: &'a Job,
    layers: Vec<Layer>,
}

#[derive(Serialize)]
struct Layer {
    name: String,
    kind: &'static str,
    input: [usize; 3],
    output: [usize; 3],
    #[serde(skip_serializing_if = "Option::is_none")]
    window: Option<Window>,
}

#[derive(Serialize)]
struct Window {
    kernel: usize,
    stride: usize,
    padding: usize,
}

impl<'a> Meta<'a> {
    fn new(job: &'a Job, network: &Network) -> Self {
        let mut layers: Vec<Layer> = Vec::new();
        for (index, unit) in network.units.iter().enumerate() {
            let ([h, w], [p, q]) = (unit.conv.input, unit.conv.output);
            let [stride, padding] = unit.window;
            layers.push(Layer {
                name: unit.name.clone(),
                kind: match network.is_grouped {
                    false => "convolution + batch normalisation",
                    true => "convolution + group normalisation",
                },
                input: [unit.conv.channels_in, h, w],
                output: [unit.conv.channels_out, p, q],
                window: Some(Window { kernel: unit.conv.kernel, stride, padding }),
            });
            if let (0, Some(pool)) = (index, network.max_pool) {
                let channels = unit.conv.channels_out;
                layers.push(Layer {
                    name: "maxpool".into(),
                    kind: "max pooling",
                    input: [channels, pool.input, pool.input],
                    output: [channels, pool.output, pool.output],
                    window: Some(Window { kernel: 3, stride: 2, padding: 1 }),
                });
            }
        }
        layers.push(Layer {
            name: "fc".into(),
            kind: "global average pooling + fully connected",
            input: [network.features, 1, 1],
            output: [network.shape.classes, 1, 1],
            window: None,
        });
        Self {
            model: title(job.model),
            stem: job.stem,
            norm_layer: job.norm.layer(),
            classes: job.classes.names(),
            parameters: network.layout.trained,
            job_digest: hex(&job.digest()),
            job,
            layers,
        }
    }
}

/// A network's name as papers write it.
fn title(model: Arch) -> String {
    format!("{} v1.5", model.to_string().replace("resnet", "ResNet-"))
}

/// Fuzzing entry: what parses has every tensor, in shape, and writes back to what parses to the same.
#[cfg(any(test, fuzzing))]
pub fn fuzz(data: &[u8]) {
    let Ok((network, checkpoint)) = parse(data) else { return };
    assert_eq!(checkpoint.state.params.len(), network.layout.len);
    assert_eq!(checkpoint.state.members.len(), usize::from(checkpoint.job.workers));
    let mut bytes = Vec::new();
    write(&mut bytes, &network.layout, &checkpoint.job, &checkpoint.state).expect("memory");
    let again = parse(&bytes).expect("our own bytes");
    assert_eq!(
        hex(&params::hash(&again.1.state.params)),
        hex(&params::hash(&checkpoint.state.params))
    );
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    use crate::job::schedule::Schedule;
    use crate::job::shape::Shape;
    use crate::job::state::Member;
    use crate::job::{Algorithm, Augment, Order};

    fn trained() -> (Network, Checkpoint) {
        let network = Network::new(Arch::Resnet50, Stem::Cifar, Shape::CIFAR).expect("shapes");
        let job = Job {
            stem: Stem::Cifar,
            conv: Algorithm::Direct,
            batch_size: 8,
            epochs: 1,
            schedule: Schedule::Cosine { rate: 0.1, warm_up: None },
            augment: Augment::None,
            order: Order::Sequential,
            ..Job::default()
        };
        let layout = &network.layout;
        let params = (0..layout.len).map(|i| i as f32).collect();
        let mut state = State::new(params, layout.trained, 2);
        Arc::make_mut(&mut state.velocity)
            .iter_mut()
            .enumerate()
            .for_each(|(i, v)| *v = -(i as f32));
        (state.step, state.steps) = (7, Some(9));
        state.found.take(6, [3, 4]);
        let classes = vec![2, 7];
        state.members[1] = Some(Member { samples: 9, batches: 2, data: Some([5; 32]), classes });
        (network, Checkpoint { job, state })
    }

    #[test]
    fn what_is_saved_is_loaded_and_damage_is_an_error() {
        let (network, checkpoint) = trained();
        let directory = std::env::temp_dir().join(format!("hfl-checkpoint-{}", std::process::id()));
        let mut store = Store::directory(&directory).expect("create");
        save(&mut store, &network.layout, &checkpoint.job, &checkpoint.state).expect("save");
        let bytes = store.read(DATA_FILE).expect("read").expect("a file");
        let (len, most) = (bytes.len() as u64, len_max(&network.layout, false));
        assert!(len <= most && most < len + (1 << 20), "{len} bytes, {most} at most");
        let path = directory.join(DATA_FILE);
        let read = |layout: &Layout| load_params(&path, layout, |values| values.fill(-3.0));
        let initial = read(&network.layout).expect("params");
        assert!(initial.params == *checkpoint.state.params && initial.other_classes.is_none());
        for classes in [7, 100] {
            let shape = Shape { classes, ..Shape::CIFAR };
            let other = Network::new(Arch::Resnet50, Stem::Cifar, shape).expect("shapes").layout;
            let initial = read(&other).expect("all but the classifier");
            assert_eq!(initial.other_classes, Some(10));
            for tensor in &other.tensors {
                let expected = match network.layout.tensor(&tensor.name) {
                    Some(own) if !CLASSIFIER.contains(&&*tensor.name) => {
                        own.export(&checkpoint.state.params)
                    }
                    _ => vec![-3.0; tensor.range.len()],
                };
                assert!(tensor.export(&initial.params) == expected, "{}", tensor.name);
            }
        }
        fs::remove_dir_all(&directory).expect("remove");
        assert!(parse(&bytes).expect("valid").1 == checkpoint);
        for at in [bytes.len() - 1, bytes.len() / 2, bytes.len() / 4] {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            let error = parse(&damaged).map(|_| ()).expect_err("damaged");
            assert!(matches!(error, CheckpointError::Hash(_)), "byte {at}: {error}");
        }
        assert!(parse(&bytes[..bytes.len() - 1]).is_err());
    }

    #[test]
    fn files_of_others_are_refused_by_name() {
        let (network, checkpoint) = trained();
        let folder = std::env::temp_dir().join(format!("hfl-init-{}", std::process::id()));
        let mut store = Store::directory(&folder).expect("create");
        let path = folder.join(DATA_FILE);
        let refused = |path: &Path| match load_params(path, &network.layout, |_| {}) {
            Ok(_) => panic!("not refused"),
            Err(error) => error.to_string(),
        };
        assert!(refused(&path).contains("no such file"));
        for pickle in [&b"PK\x03\x04rest"[..], &[0x80, 2, 0x8a]] {
            fs::write(&path, pickle).expect("write");
            assert!(refused(&path).contains("a PyTorch pickle"));
        }
        let mut state = checkpoint.state.clone();
        let spoiled = network.layout.tensors[3].clone();
        Arc::make_mut(&mut state.params)[spoiled.range.start] = f32::NAN;
        save(&mut store, &network.layout, &checkpoint.job, &state).expect("save");
        let why = refused(&path);
        assert!(why.contains(&spoiled.name) && why.contains("infinite or no numbers"), "{why}");
        assert!(load(&store, DATA_FILE).is_err(), "a checkpoint neither");
        fs::remove_dir_all(&folder).expect("remove");
    }

    #[test]
    fn seeds_of_the_fuzz_target_replay() {
        let seeds = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/checkpoint");
        for entry in fs::read_dir(seeds).expect("seeds") {
            fuzz(&fs::read(entry.expect("entry").path()).expect("a seed"));
        }
    }
}
