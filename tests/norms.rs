//! Normalisations in which no image depends on the others of its batch: groups of channels, and frozen statistics.

use hfl::data::batch::Batch;
use hfl::job::rng::Stream;
use hfl::job::shape::Shape;
use hfl::job::{Algorithm, Arch, Precision, Stem};
use hfl::model::Model;
use hfl::model::gradients::Pieces;
use hfl::model::inference::Inference;
use hfl::model::init;
use hfl::model::network::Network;
use hfl::model::params::Kind;
use kernels::{Isa, Pool, softmax_cross_entropy};

const IMAGES: usize = 3;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    Frozen,
    Grouped,
}

const WAYS: [Way; 2] = [Way::Frozen, Way::Grouped];

fn network(way: Way, model: Arch, stem: Stem) -> Network {
    let new = if way == Way::Grouped { Network::grouped } else { Network::new };
    new(model, stem, Shape::CIFAR).expect("shapes")
}

/// Parameters whose running statistics are about what activations have.
fn params(network: &Network) -> Vec<f32> {
    let mut params = init::initialise(&network.layout, 1, 0.5);
    for tensor in network.layout.tensors.iter().filter(|tensor| tensor.kind == Kind::Statistic) {
        let stream = Stream::new(3, &tensor.name);
        let (base, part) = if tensor.name.ends_with("var") { (2.0, 1.0) } else { (0.0, 0.3) };
        for (at, value) in params[tensor.range.clone()].iter_mut().enumerate() {
            *value = base + part * stream.uniform(at as u64);
        }
    }
    params
}

/// So many images from the one of that number on.
fn batch(first: usize, n: usize) -> Batch {
    let stream = Stream::new(9, "images");
    let len = Shape::CIFAR.image_len();
    let value = |image: usize, at: usize| stream.normal(((first + image) * len + at) as u64);
    let channels = Shape::CIFAR.channels;
    let pixels = (0..len / channels).flat_map(|pixel| (0..n).map(move |image| (pixel, image)));
    let images = pixels.flat_map(|(pixel, image)| {
        (0..channels).map(move |channel| value(image, pixel * channels + channel))
    });
    Batch { images: images.collect(), labels: (first..first + n).map(|i| i as u8).collect() }
}

struct Setting {
    way: Way,
    model: Arch,
    stem: Stem,
    conv: Algorithm,
    threads: usize,
    isa: Isa,
}

impl Setting {
    fn of(way: Way, model: Arch, isa: Isa) -> Self {
        Self { way, model, stem: Stem::Imagenet, conv: Algorithm::Direct, threads: 2, isa }
    }

    fn step(&self, precision: Precision, params: &[f32], batch: &Batch) -> (f32, Vec<f32>) {
        let network = network(self.way, self.model, self.stem);
        let pool = Pool::new(self.threads);
        // More room than the batch needs.
        let most = batch.len() + 1;
        let mut model =
            Model::new(network, precision, self.conv, most, pool, self.isa).expect("memory");
        model.freeze(self.way == Way::Frozen);
        let (mut params, mut gradients) = (params.to_vec(), vec![f32::NAN; params.len()]);
        let mut end = params.len();
        let loss = model.step(&mut params, batch, &mut gradients, Pieces::Small, |bucket| {
            assert_eq!(bucket.range.end, end);
            end = bucket.range.start;
        });
        assert_eq!(end, 0, "every part is handed over");
        assert!(loss.is_finite() && gradients.iter().all(|g| g.is_finite()));
        (loss, gradients)
    }
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    let square = |value: f32| f64::from(value).powi(2);
    let far: f64 = a.iter().zip(b).map(|(a, b)| square(a - b)).sum();
    (far / b.iter().copied().map(square).sum::<f64>()).sqrt()
}

/// The mean of gradients of single images is that of their batch, which the batch's own statistics do not allow; and
/// running statistics stand still.
#[test]
fn a_batch_is_the_mean_of_its_images_in_every_format_and_block() {
    for way in WAYS {
        for model in [Arch::Resnet18, Arch::Resnet50] {
            let network = network(way, model, Stem::Imagenet);
            let params = params(&network);
            let (trained, layout) = (network.layout.trained, &network.layout);
            let half = Isa::detect().has_bf16().then_some((Precision::Bf16, 0.1));
            for (precision, bound) in [(Precision::Fp32, 5e-3)].into_iter().chain(half) {
                let setting = Setting::of(way, model, Isa::detect());
                let (loss, all) = setting.step(precision, &params, &batch(0, IMAGES));
                let (mut losses, mut mean) = (0.0, vec![0.0; layout.len]);
                for image in 0..IMAGES {
                    let (loss, gradients) = setting.step(precision, &params, &batch(image, 1));
                    losses += loss / IMAGES as f32;
                    for (mean, gradient) in mean.iter_mut().zip(&gradients) {
                        *mean += gradient / IMAGES as f32;
                    }
                }
                let far = distance(&mean[..trained], &all[..trained]);
                let what = format!("{way:?} {model} {precision}: {far:.1e}, {losses} for {loss}");
                assert!(far < bound && (losses / loss - 1.0).abs() < bound as f32, "{what}");
                assert!(all[trained..] == params[trained..], "{what}");
            }
        }
    }
}

#[test]
fn bits_depend_neither_on_threads_nor_on_the_vector_tier_with_other_normalisations() {
    for way in WAYS {
        for stem in [Stem::Imagenet, Stem::Cifar] {
            let params = params(&network(way, Arch::Resnet18, stem));
            let mut vector = Vec::new();
            for isa in Isa::available() {
                let bits = |threads| {
                    let plain = Setting::of(way, Arch::Resnet18, isa);
                    let setting = Setting { stem, threads, conv: Algorithm::Auto, ..plain };
                    let (_, gradients) = setting.step(Precision::Fp32, &params, &batch(0, IMAGES));
                    gradients.iter().map(|g| g.to_bits()).collect::<Vec<u32>>()
                };
                let one = bits(1);
                assert!(one == bits(3), "{way:?}, {stem} stem, {} on 3 threads", isa.name());
                vector.extend((isa != Isa::Portable).then_some(one));
            }
            assert!(vector.windows(2).all(|pair| pair[0] == pair[1]), "{way:?}, {stem} stem");
        }
    }
}

#[test]
fn training_and_inference_compute_the_same_function() {
    for way in WAYS {
        for (model, stem) in [(Arch::Resnet18, Stem::Cifar), (Arch::Resnet50, Stem::Imagenet)] {
            for isa in Isa::available() {
                let network = network(way, model, stem);
                let params = params(&network);
                let setting = Setting { stem, ..Setting::of(way, model, isa) };
                let (loss, _) = setting.step(Precision::Fp32, &params, &batch(0, IMAGES));
                let pool = Pool::new(2);
                let mut inference =
                    Inference::new(network, params, IMAGES + 1, pool, isa).expect("memory");
                let batch = batch(0, IMAGES);
                let mut logits = inference.run(&batch).to_vec();
                let classes = Shape::CIFAR.classes;
                let other = softmax_cross_entropy(&mut logits, &batch.labels, classes);
                let far = (other / loss - 1.0).abs();
                assert!(far < 1e-4, "{way:?} {model} {}: {other} for {loss}", isa.name());
            }
        }
    }
}
