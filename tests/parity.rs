//! Equal weights, equal batches: losses and first gradients are those of PyTorch.
//!
//! `parity.py` trains torchvision's network on what `export_inputs` writes and records a small file: the
//! loss of each step, and for each tensor's first gradient its norm and its products with a few vectors
//! of signs, from which the distance of two gradients is estimated without the gradients.

use std::path::PathBuf;

use hfl::data::batch::Batch;
use hfl::data::cifar;
use hfl::data::dataset::Dataset;
use hfl::job::norm::Norm;
use hfl::job::rng::Stream;
use hfl::job::schedule::Schedule;
use hfl::job::shape::Shape;
use hfl::job::state::State;
use hfl::job::{Algorithm, Arch, Augment, Job, Order, Stem};
use hfl::model::gradients::Pieces;
use hfl::model::init;
use hfl::model::network::Network;
use hfl::model::params::Kind;
use hfl::model::resnet::ResNet;
use hfl::training::checkpoint;
use hfl::training::store::Store;
use kernels::{Isa, Pool, Sgd, momentum_sgd};
use serde_json::Value;

const SIDE: usize = Shape::CIFAR.side;
const COLOURS: usize = Shape::CIFAR.channels;
const RATE: f32 = 0.0001;
const SEED: u64 = 7;
/// Scale of each block's last normalisation.
const LAST: f32 = 0.2;
/// Every normalisation shifts its even channels up and its odd ones down by this many deviations. Where
/// values lie around zero, rounding alone decides some ReLUs, and two correct gradients (PyTorch's in
/// single and in double precision too) differ by up to half a percent.
const SHIFT: f32 = 2.0;

/// What is compared; `parity.py` has the same table.
struct Case {
    name: &'static str,
    model: Arch,
    stem: Stem,
    norm: Norm,
    batch: usize,
    steps: usize,
}

const FROZEN: Norm = Norm::Frozen { after: 0.0 };
const IMAGENET: Case = Case {
    name: "imagenet",
    model: Arch::Resnet50,
    stem: Stem::Imagenet,
    norm: Norm::Batch,
    batch: 16,
    steps: 20,
};
const CIFAR: Case = Case { name: "cifar", stem: Stem::Cifar, batch: 2, ..IMAGENET };
/// The rest of the family.
const FAMILY: [Case; 4] = [
    Case { name: "resnet18", model: Arch::Resnet18, steps: 2, ..IMAGENET },
    Case { name: "resnet34", model: Arch::Resnet34, steps: 2, ..IMAGENET },
    Case { name: "resnet101", model: Arch::Resnet101, steps: 2, ..IMAGENET },
    Case { name: "resnet152", model: Arch::Resnet152, steps: 2, ..IMAGENET },
];
/// Other normalisations: in bottlenecks, and of groups in basic blocks too.
const NORMS: [Case; 3] = [
    Case { name: "frozen", norm: FROZEN, batch: 4, steps: 2, ..IMAGENET },
    Case { name: "group", norm: Norm::Group, batch: 4, steps: 2, ..IMAGENET },
    Case { name: "group18", model: Arch::Resnet18, norm: Norm::Group, steps: 2, ..CIFAR },
];

impl Case {
    fn job(&self) -> Job {
        Job {
            stem: self.stem,
            conv: Algorithm::Direct,
            workers: 1,
            batch_size: self.batch as u32,
            epochs: 1,
            schedule: Schedule::Constant { rate: RATE },
            seed: SEED,
            augment: Augment::None,
            order: Order::Sequential,
            model: self.model,
            norm: self.norm,
            ..Job::default()
        }
    }

    fn network(&self) -> Network {
        Network::of(&self.job()).expect("shapes")
    }

    fn data(&self) -> Dataset {
        let stream = Stream::new(SEED, "parity");
        let records =
            (0..(self.steps * self.batch) as u64).flat_map(|i| record(&stream, i)).collect();
        cifar::from_records(records).expect("valid records")
    }

    fn params(&self, network: &Network) -> Vec<f32> {
        let mut params = init::initialise(&network.layout, SEED, LAST);
        for unit in &network.units {
            let [gamma, beta] = unit.affine.clone();
            let scale = params[gamma.start];
            for (channel, value) in params[beta].iter_mut().enumerate() {
                *value = if channel % 2 == 0 { SHIFT * scale } else { -SHIFT * scale };
            }
        }
        if self.norm == FROZEN {
            self.calibrate(network, &mut params);
        }
        params
    }

    /// Makes running statistics those of the first batch: activations would grow from layer to layer by others.
    fn calibrate(&self, network: &Network, params: &mut [f32]) {
        let (pool, plain) = (Pool::new(2), self.network());
        let mut model = ResNet::<f32>::new(plain, self.batch, pool, Isa::Portable).expect("memory");
        let (mut batch, mut after) = (Batch::default(), vec![0.0; params.len()]);
        self.data().batch(0, self.batch, &mut batch).expect("in memory");
        model.step(&mut params.to_vec(), &batch, &mut after, Pieces::Small, |_| {});
        for at in network.layout.trained..network.layout.len {
            params[at] = (after[at] - 0.9 * params[at]) / 0.1;
        }
    }

    fn recorded(&self) -> Value {
        let path = format!("{}/tests/data/parity-{}.json", env!("CARGO_MANIFEST_DIR"), self.name);
        serde_json::from_slice(&std::fs::read(path).expect("recorded by parity.py")).expect("JSON")
    }
}

/// An image of random patches: deep features differ from image to image, so that normalising them does
/// not magnify rounding.
fn record(stream: &Stream, index: u64) -> Vec<u8> {
    const PATCH: usize = 8;
    let pixel = |at: usize| {
        let (colour, y, x) = (at / (SIDE * SIDE), at / SIDE % SIDE, at % SIDE);
        let patch = (colour * SIDE + y / PATCH) * SIDE + x / PATCH;
        stream.words(index << 16 | patch as u64)[0] as u8
    };
    let label = (stream.words(index << 16 | 0xffff)[0] % 10) as u8;
    std::iter::once(label).chain((0..COLOURS * SIDE * SIDE).map(pixel)).collect()
}

#[test]
#[ignore = "writes the inputs of tests/parity.py to $PARITY_DIR"]
fn export_inputs() {
    let directory = PathBuf::from(std::env::var("PARITY_DIR").expect("PARITY_DIR"));
    for case in [&IMAGENET, &CIFAR].into_iter().chain(&FAMILY).chain(&NORMS) {
        let directory = directory.join(case.name);
        std::fs::create_dir_all(&directory).expect("create");
        let network = case.network();
        let params = case.params(&network);
        let job = case.job();
        let state = State::new(params, network.layout.trained, 1);
        let mut store = Store::directory(&directory).expect("store");
        checkpoint::save(&mut store, &network.layout, &job, &state).expect("checkpoint");
        checkpoint::save_meta(&mut store, &job, &network, 0).expect("meta");
        std::fs::write(directory.join("data_batch_1.bin"), case.data().records()).expect("data");
    }
}

/// A sign as parity.py makes it: one bit of SplitMix64.
fn sign(vector: u64, index: u64) -> f64 {
    let mut z = (vector << 32 | index).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    if (z ^ (z >> 31)) & 1 == 1 { 1.0 } else { -1.0 }
}

/// Gradients of the portable tier agree to rounding. Those of another tier may differ by a flipped ReLU
/// or two: where one sum rounds to the other side of zero, tensors of the last blocks change by one part
/// in the square root of their samples, those before by a thousandth. An error in how operations are put
/// together differs by far more, and each operation is compared with its oracle on every tier.
fn check_gradients(network: &Network, gradients: &[f32], recorded: &Value, isa: Isa) -> f64 {
    let bound = if isa == Isa::Portable { 1e-3 } else { 2e-2 };
    let mut worst = 0.0_f64;
    for tensor in network.layout.tensors.iter().filter(|t| t.kind != Kind::Statistic) {
        let recorded = &recorded["gradients"][&tensor.name];
        let norm = recorded["norm"].as_f64().expect("norm");
        let values = tensor.export(gradients);
        let (mut squares, signs) = (0.0, recorded["signs"].as_array().expect("products"));
        for (vector, want) in (0..).zip(signs) {
            let want = want.as_f64().expect("product");
            let product: f64 = values
                .iter()
                .enumerate()
                .map(|(i, &v)| sign(vector, i as u64) * f64::from(v))
                .sum();
            squares += (product - want).powi(2);
        }
        let relative = (squares / signs.len() as f64).sqrt() / norm;
        worst = worst.max(relative);
        assert!(relative < bound, "{}: gradient differs by {relative:.2e}", tensor.name);
    }
    worst
}

fn check_case(case: &Case, isa: Isa, steps: usize) {
    let network = case.network();
    let recorded = case.recorded();
    let losses: Vec<f64> = serde_json::from_value(recorded["losses"].clone()).expect("losses");
    assert_eq!(losses.len(), case.steps);
    let mut params = case.params(&network);
    let layout = network.layout.clone();
    let mut velocity = vec![0.0; layout.trained];
    let mut gradients = vec![0.0; layout.len];
    let data = case.data();
    let mut model = ResNet::<f32>::new(network, case.batch, Pool::new(2), isa).expect("memory");
    model.freeze(case.norm == FROZEN);
    let mut batch = Batch::default();
    let mut worst = 0.0_f64;
    for (step, want) in losses.iter().enumerate().take(steps) {
        data.batch(step * case.batch, case.batch, &mut batch).expect("in memory");
        let loss = model.step(&mut params, &batch, &mut gradients, Pieces::Small, |_| {});
        let relative = (f64::from(loss) - want).abs() / want;
        if step == 0 {
            let worst = check_gradients(&model.network, &gradients, &recorded, isa);
            println!("{} on {}: worst gradient {worst:.2e}", case.name, isa.name());
        }
        if step < 10 {
            worst = worst.max(relative);
        }
        // Two correct trainings drift apart by rounding alone; after ten steps only roughly equal.
        let bound = if step < 10 { 1e-3 } else { 0.1 };
        assert!(relative < bound, "{} step {step}: loss {loss}, PyTorch {want}", case.name);
        for tensor in layout.tensors.iter().filter(|t| t.kind != Kind::Statistic) {
            let decay = if tensor.kind == Kind::Weight { 5e-4 } else { 0.0 };
            let sgd = Sgd { rate: RATE, momentum: 0.9, decay, scale: 1.0, nesterov: false };
            let range = tensor.range.clone();
            let (w, v) = (&mut params[range.clone()], &mut velocity[range.clone()]);
            assert!(momentum_sgd(model.exec(), sgd, w, v, &gradients[range]));
        }
    }
    println!(
        "{} on {}: worst relative difference of ten losses {worst:.2e}",
        case.name,
        isa.name()
    );
}

/// All steps on the best tier, the first two on the others.
fn check_every_tier(case: &Case) {
    for isa in Isa::available() {
        check_case(case, isa, if isa == Isa::detect() { case.steps } else { 2 });
    }
}

#[test]
fn losses_and_gradients_are_those_of_pytorch_with_the_imagenet_stem() {
    check_every_tier(&IMAGENET);
}

#[test]
fn losses_and_gradients_are_those_of_pytorch_with_the_cifar_stem() {
    check_every_tier(&CIFAR);
}

#[test]
fn losses_and_gradients_are_those_of_pytorch_in_the_rest_of_the_family() {
    // How blocks are put together: each tier's kernels are compared in the others.
    FAMILY.iter().for_each(|case| check_case(case, Isa::detect(), case.steps));
}

#[test]
fn losses_and_gradients_are_those_of_pytorch_with_other_normalisations() {
    NORMS.iter().for_each(check_every_tier);
}
