//! A whole step: the same bits for any number of threads and on both vector tiers; formats and ways of
//! convolution that agree within their rounding.

use hfl::data::batch::Batch;
use hfl::data::cifar;
use hfl::data::synthetic;
use hfl::job::rng::Stream;
use hfl::job::shape::Shape;
use hfl::job::{Algorithm, Arch, Precision, Stem};
use hfl::model::Model;
use hfl::model::gradients::{Bucket, Pieces};
use hfl::model::init;
use hfl::model::network::Network;
use hfl::model::params::Kind;
use kernels::{Isa, Pool};

const IMAGES: usize = 5;

fn batch(images: usize) -> Batch {
    let mut batch = Batch::default();
    let data = cifar::from_records(synthetic::records(3, images)).expect("records");
    data.batch(0, images, &mut batch).expect("in memory");
    batch
}

/// Loss and gradients. Each part is handed over once, from the end on, when it is final; its parameters are read
/// no more.
fn step(
    (model, stem, images): (Arch, Stem, usize),
    way: (Precision, Algorithm),
    exec: (usize, Isa),
    pieces: Pieces,
) -> (f32, Vec<f32>) {
    let network = Network::new(model, stem, Shape::CIFAR).expect("shapes");
    let mut params = init::initialise(&network.layout, 1, 0.5);
    let mut gradients = vec![f32::NAN; params.len()];
    let (threads, isa) = exec;
    let ((precision, conv), pool) = (way, Pool::new(threads));
    let mut model = Model::new(network, precision, conv, images, pool, isa).expect("memory");
    let (mut handed_over, mut next) = (gradients.clone(), gradients.len());
    let done = |part: Bucket| {
        let range = part.range;
        assert_eq!((range.end, part.params.len()), (next, range.len()));
        part.params.fill(f32::NAN);
        handed_over[range.clone()].copy_from_slice(&part.gradients[..range.len()]);
        next = range.start;
    };
    let loss = model.step(&mut params, &batch(images), &mut gradients, pieces, done);
    assert!(next == 0 && handed_over == gradients && params.iter().all(|value| value.is_nan()));
    (loss, gradients)
}

/// Distance of two vectors over the length of the second.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    let squares = |values: &mut dyn Iterator<Item = f32>| {
        values.map(|value| f64::from(value).powi(2)).sum::<f64>()
    };
    let difference = squares(&mut a.iter().zip(b).map(|(a, b)| a - b));
    (difference / squares(&mut b.iter().copied())).sqrt()
}

#[test]
fn bits_depend_neither_on_threads_nor_on_the_vector_tier() {
    for (model, stem) in [
        (Arch::Resnet50, Stem::Imagenet),
        (Arch::Resnet50, Stem::Cifar),
        (Arch::Resnet18, Stem::Imagenet),
        (Arch::Resnet18, Stem::Cifar),
    ] {
        for conv in [Algorithm::Direct, Algorithm::Auto] {
            let mut vector = Vec::new();
            for isa in Isa::available() {
                let bits = |threads| {
                    let way = (Precision::Fp32, conv);
                    let pieces = [Pieces::Whole, Pieces::Small][threads % 2];
                    bits_of(step((model, stem, IMAGES), way, (threads, isa), pieces))
                };
                let one = bits(1);
                assert!(
                    one == bits(3),
                    "{model}, {} with 3 threads, {stem} stem, {conv}",
                    isa.name()
                );
                if isa != Isa::Portable {
                    vector.push(one);
                }
            }
            assert!(vector.windows(2).all(|p| p[0] == p[1]), "{model}, {stem} stem, {conv}");
        }
    }
}

/// Parameters that come in while the forward pass runs make the same step, if each is there when it is asked for: what
/// was not asked for yet is no number here.
#[test]
fn a_forward_pass_reads_no_parameter_that_it_has_not_asked_for() {
    for (arch, is_grouped) in [(Arch::Resnet50, false), (Arch::Resnet18, true)] {
        let make = if is_grouped { Network::grouped } else { Network::new };
        let network = make(arch, Stem::Imagenet, Shape::CIFAR).expect("shapes");
        let layout = network.layout.clone();
        let whole = init::initialise(&layout, 1, 0.5);
        let (pool, way) = (Pool::new(2), (Precision::Fp32, Algorithm::Auto));
        let mut model =
            Model::new(network, way.0, way.1, IMAGES, pool, Isa::detect()).expect("memory");
        let batch = batch(IMAGES);
        let mut gradients = vec![0.0; layout.len];
        let loss = model.step(&mut whole.clone(), &batch, &mut gradients, Pieces::Whole, |_| {});
        let want = bits_of((loss, gradients.clone()));
        let (mut params, mut ends) = (vec![f32::NAN; layout.len], Vec::new());
        let mut there = |params: &mut [f32], end: usize| {
            params[..end].copy_from_slice(&whole[..end]);
            params[layout.trained..].copy_from_slice(&whole[layout.trained..]);
            ends.push(end);
            true
        };
        assert!(model.forward(&mut params, &batch, &mut there));
        let loss = model.backward(&mut params, &batch, &mut gradients, Pieces::Whole, |_| {});
        assert!(bits_of((loss, gradients.clone())) == want, "{arch}");
        assert!(ends.is_sorted() && ends.last() == Some(&layout.len), "{ends:?}");
        assert!(ends[0] < layout.len / 100, "the first layer waits for itself alone: {ends:?}");
        // It stops where it is told to, and what comes after is a step as any other.
        for stop in 1..=ends.len() {
            let mut calls = 0;
            let mut until = |_: &mut [f32], _| {
                calls += 1;
                calls < stop
            };
            assert!(!model.forward(&mut params, &batch, &mut until));
            assert_eq!(calls, stop);
        }
        let loss = model.step(&mut params, &batch, &mut gradients, Pieces::Whole, |_| {});
        assert!(bits_of((loss, gradients)) == want, "{arch}");
    }
}

fn bits_of((loss, gradients): (f32, Vec<f32>)) -> Vec<u32> {
    assert!(loss.is_finite() && gradients.iter().all(|g| g.is_finite()));
    gradients.iter().map(|g| g.to_bits()).collect()
}

#[test]
fn bits_are_the_same_with_more_threads_than_tiles() {
    for isa in Isa::available().into_iter().filter(|&isa| isa != Isa::Portable) {
        let bits = |way, threads| {
            bits_of(step((Arch::Resnet50, Stem::Imagenet, 128), way, (threads, isa), Pieces::Small))
        };
        for (precision, conv) in [
            (Precision::Fp32, Algorithm::Direct),
            (Precision::Fp32, Algorithm::Auto),
            (Precision::Bf16, Algorithm::Auto),
        ] {
            if precision == Precision::Bf16 && !isa.has_bf16() {
                continue;
            }
            let way = (precision, conv);
            assert!(bits(way, 1) == bits(way, 40), "{}, {precision}, {conv}", isa.name());
        }
    }
}

#[test]
fn a_step_on_the_model_of_tiles_has_the_same_bits_on_any_number_of_threads() {
    let way = (Precision::Bf16, Algorithm::Auto);
    for isa in Isa::model().into_iter().chain(Isa::named("amx")) {
        let bits = |threads, pieces| {
            bits_of(step((Arch::Resnet50, Stem::Imagenet, IMAGES), way, (threads, isa), pieces))
        };
        assert!(bits(1, Pieces::Whole) == bits(3, Pieces::Small), "{}", isa.name());
    }
    // Instructions and model do not differ.
    if let [Some(model), Some(tiles)] = [Isa::model(), Isa::named("amx")] {
        let bits = |isa| {
            bits_of(step((Arch::Resnet50, Stem::Imagenet, IMAGES), way, (2, isa), Pieces::Small))
        };
        assert!(bits(model) == bits(tiles));
    }
}

#[test]
fn every_tier_way_and_format_computes_the_same_step() {
    let (loss, gradients) = step(
        (Arch::Resnet50, Stem::Cifar, IMAGES),
        (Precision::Fp32, Algorithm::Direct),
        (2, Isa::Portable),
        Pieces::Small,
    );
    let check = |way, isa: Isa, bound: f64| {
        let (other_loss, other) =
            step((Arch::Resnet50, Stem::Cifar, IMAGES), way, (2, isa), Pieces::Small);
        let far = distance(&other, &gradients);
        println!("{way:?} on {}: loss {other_loss}, gradients {far:.2e}", isa.name());
        assert!((other_loss - loss).abs() < loss * bound as f32, "{way:?} on {}", isa.name());
        assert!(far < bound, "{way:?} on {}: {far:.2e}", isa.name());
    };
    for isa in Isa::available() {
        // One ReLU on the other side of zero makes about a thousandth.
        check((Precision::Fp32, Algorithm::Direct), isa, 1e-2);
        check((Precision::Fp32, Algorithm::Auto), isa, 1e-2);
        if isa.has_bf16() {
            check((Precision::Bf16, Algorithm::Auto), isa, 0.3);
        }
    }
    if let Some(isa) = Isa::model() {
        check((Precision::Bf16, Algorithm::Auto), isa, 0.3);
    }
}

#[test]
fn bfloat16_is_refused_where_the_cpu_has_no_instructions_for_it() {
    let network = Network::new(Arch::Resnet50, Stem::Imagenet, Shape::CIFAR).expect("shapes");
    let (precision, conv, pool) = (Precision::Bf16, Algorithm::Auto, Pool::new(1));
    let refused = Model::new(network, precision, conv, 1, pool, Isa::Portable).err();
    let text = refused.expect("refused").to_string();
    assert!(text.contains("AMX or AVX512-BF16") && text.contains("--precision fp32"), "{text}");
}

/// The loss of a model's step, in which nothing else is looked at.
fn loss(model: &mut Model, params: &[f32], batch: &Batch) -> f64 {
    let (mut params, mut gradients) = (params.to_vec(), vec![0.0; params.len()]);
    f64::from(model.step(&mut params, batch, &mut gradients, Pieces::Small, |_| {}))
}

/// Along its gradient a tensor changes the loss by the gradient's length: of every convolution, normalisation and
/// classifier, in both kinds of blocks, on maps of other sizes too.
#[test]
fn gradients_are_slopes_of_the_loss() {
    for (arch, side) in [(Arch::Resnet18, 32), (Arch::Resnet34, 32), (Arch::Resnet18, 96)] {
        let shape = Shape { side, ..Shape::CIFAR };
        let network = Network::new(arch, Stem::Imagenet, shape).expect("shapes");
        let layout = network.layout.clone();
        let params = init::initialise(&layout, 1, 0.5);
        let stream = Stream::new(9, "images");
        let images = (0..(12 * shape.image_len()) as u64).map(|at| stream.normal(at)).collect();
        let batch = Batch { images, labels: (0..12).map(|index| index % 10).collect() };
        let (precision, conv, pool) = (Precision::Fp32, Algorithm::Auto, Pool::new(2));
        let mut model =
            Model::new(network, precision, conv, 12, pool, Isa::detect()).expect("memory");
        let mut gradients = vec![0.0; layout.len];
        model.step(&mut params.clone(), &batch, &mut gradients, Pieces::Small, |_| {});
        let mut checked = 0;
        for tensor in layout.tensors.iter().filter(|t| t.kind != Kind::Statistic).step_by(4) {
            let own = &gradients[tensor.range.clone()];
            let norm = own.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
            // A change of the loss that is far above rounding, and far below where the slope changes.
            let step = 2e-3 / norm;
            let at = |sign: f64| {
                let mut moved = params.clone();
                for (value, g) in moved[tensor.range.clone()].iter_mut().zip(own) {
                    *value += (sign * step * f64::from(*g) / norm) as f32;
                }
                moved
            };
            let [ahead, behind] = [1.0, -1.0].map(|sign| loss(&mut model, &at(sign), &batch));
            let slope = (ahead - behind) / (2.0 * step);
            let far = (slope / norm - 1.0).abs();
            assert!(far < 0.05, "{arch} at {side}, {}: {slope} for {norm}", tensor.name);
            checked += 1;
        }
        assert!(checked > 10, "{checked} tensors");
    }
}
