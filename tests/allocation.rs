//! A training step takes no memory: everything is there before the first one.

#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use hfl::data::batch::Batch;
use hfl::job::shape::Shape;
use hfl::job::{Algorithm, Arch, Precision, Stem};
use hfl::model::Model;
use hfl::model::gradients::Pieces;
use hfl::model::init;
use hfl::model::network::Network;
use kernels::{Isa, Pool};

/// The system's allocator, counted.
struct Counting;

static TAKEN: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        TAKEN.fetch_add(1, Ordering::Relaxed);
        // SAFETY: passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn batch(n: usize) -> Batch {
    let images =
        (0..n * Shape::CIFAR.image_len()).map(|i| (i % 255) as f32 / 255.0 - 0.5).collect();
    Batch { images, labels: (0..n).map(|i| (i % 10) as u8).collect() }
}

/// A pool of two whose other thread has begun: what the system takes for a thread at its start is no step's.
fn begun(pool: Pool) -> Pool {
    let arrived = AtomicUsize::new(0);
    pool.run(2, |_| {
        arrived.fetch_add(1, Ordering::Relaxed);
        while arrived.load(Ordering::Relaxed) < 2 {
            std::thread::yield_now();
        }
    });
    pool
}

/// One test, so that no other one allocates beside it.
#[test]
fn a_steady_step_takes_no_memory() {
    let before = TAKEN.load(Ordering::Relaxed);
    drop(std::hint::black_box(vec![1_u8; 100]));
    assert!(TAKEN.load(Ordering::Relaxed) > before, "the count works");

    let single = [Algorithm::Direct, Algorithm::Auto].map(|conv| (Precision::Fp32, conv));
    // The portable tier's matrixmultiply packs its operands into memory of its own.
    let tiers = Isa::available().into_iter().skip(1);
    let best = Isa::detect();
    let half = best.has_bf16().then_some((best, (Precision::Bf16, Algorithm::Auto)));
    for (isa, way) in tiers.flat_map(|isa| single.map(|way| (isa, way))).chain(half) {
        // Groups of channels are normalised on the best tier.
        let grouped = (isa == best).then_some(true);
        let networks = [false].into_iter().chain(grouped);
        let networks =
            networks.flat_map(|grouped| [Stem::Imagenet, Stem::Cifar].map(|stem| (grouped, stem)));
        for (is_grouped, stem) in networks {
            let new = if is_grouped { Network::grouped } else { Network::new };
            let network = new(Arch::Resnet50, stem, Shape::CIFAR).expect("shapes");
            let mut params = init::initialise(&network.layout, 1, init::IDENTITY_BLOCKS);
            let mut gradients = vec![0.0; params.len()];
            // The last batch of an epoch is shorter.
            let batches = [batch(3), batch(2), batch(3)];
            let ((precision, conv), pool) = (way, begun(Pool::new(2)));
            let mut model = Model::new(network, precision, conv, 3, pool, isa).expect("memory");
            model.step(&mut params, &batches[0], &mut gradients, Pieces::Small, |_| {});
            let before = TAKEN.load(Ordering::Relaxed);
            for batch in &batches {
                model.step(&mut params, batch, &mut gradients, Pieces::Small, |_| {});
            }
            assert_eq!(TAKEN.load(Ordering::Relaxed), before, "{}, {way:?}, {stem}", isa.name());
        }
    }
}
