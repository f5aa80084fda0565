//! What receipts cost: hashing what travels, as a share of a step of ResNet-50; a receipt, a ledger of 1,000 rounds.
//!
//! `cargo bench --bench receipts`, or with `-- THREADS`. A worker hashes its contribution while its other threads go on
//! with the backward pass, and the parameters as they arrive; ps0 hashes each contribution as it arrives, and the
//! parameters on all its threads.

use std::hint::black_box;
use std::time::Instant;

use hfl::commands::bench::{self, Options};
use hfl::job::receipt::{Receipt, Share};
use hfl::job::shape::Shape;
use hfl::job::{Algorithm, Job, Precision, Stem};
use hfl::model::network::Network;
use hfl::training::cell_hashes::CellHashes;
use hfl::training::cells::{CELL, Cells};
use hfl::training::ledger::Ledger;
use kernels::{Isa, Pool};

/// How often each is timed.
const TIMES: usize = 9;

fn main() {
    let threads = std::env::args().skip(1).find_map(|word| word.parse().ok());
    let threads =
        threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let isa = Isa::detect();
    let layout = Network::of(&Job::default()).expect("a network").layout;
    let values = vec![1.5_f32; layout.len];
    let cells = Cells::of_parameters(&Job::default(), &layout, CELL, isa);
    let (one, all) = (Pool::new(1), Pool::new(threads));
    let [one, all] = [&one, &all].map(|pool| {
        median(|| {
            black_box(CellHashes::of(&cells, &values, pool).root());
        })
    });
    let bytes = (size_of_val(&values[..])) as f64;
    println!("{:.0} MB of {}, {} threads; medians of {TIMES}", bytes / 1e6, isa.name(), threads);
    println!("hash, one thread    {:>8.1} ms  {:.1} GB/s", 1e3 * one, bytes / one / 1e9);
    println!("hash, all threads   {:>8.1} ms  {:.1} GB/s", 1e3 * all, bytes / all / 1e9);
    for (stem, batch) in [(Stem::Imagenet, 128), (Stem::Cifar, 64)] {
        let step = step(stem, batch, threads, isa);
        let share = |seconds: f64| 100.0 * seconds / step;
        println!("a step of {batch} images, {stem} stem, fp32: {:.0} ms; of that", 1e3 * step);
        println!(
            "  a worker's contribution {:>5.1} %  beside the backward pass",
            share(one / threads as f64)
        );
        println!("  parameters at a worker  {:>5.1} %  while it waits for them", share(one));
        println!("  contributions at ps0    {:>5.1} %  each, while it waits for them", share(one));
        println!("  parameters at ps0       {:>5.1} %  nothing is done meanwhile", share(all));
    }
    books();
}

/// Seconds that something takes.
fn median(mut work: impl FnMut()) -> f64 {
    let mut times: Vec<f64> = (0..TIMES)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[TIMES / 2]
}

/// Seconds of a training step.
fn step(stem: Stem, batch: usize, threads: usize, isa: Isa) -> f64 {
    let (precision, conv) = (Precision::Fp32, Algorithm::Auto);
    let (shape, inference, scaling) = (Shape::default(), false, false);
    let steps = TIMES;
    let options =
        Options { stem, precision, conv, shape, batch, threads, steps, isa, inference, scaling };
    bench::run(options).expect("memory").median_s
}

/// Receipts and ledgers of 1,000 rounds of two workers.
fn books() {
    let share = |worker: u8| Share { samples: 128, fresh: false, hash: [worker; 32] };
    let (mut ledgers, mut last) = ([Ledger::default(), Ledger::of_worker(1)], None::<Receipt>);
    let start = Instant::now();
    for _ in 0..1000 {
        let step = last.as_ref().map_or(1, |last| last.step + 1);
        let shares = vec![Some(share(0)), Some(share(1))];
        let next = Receipt::next(last.as_ref(), [1; 32], step, 1, [2; 32], shares);
        ledgers.iter_mut().for_each(|ledger| ledger.push(&next));
        last = Some(next);
    }
    println!("a receipt and two ledgers: {:.1} us", 1e3 * start.elapsed().as_secs_f64());
    let [of_server, of_worker] = ledgers.map(|ledger| ledger.encode().len());
    println!("1,000 rounds: ps0 keeps {of_server} bytes, a worker {of_worker}");
}
