//! `cargo bench -p kernels [-- STEM [TIER [BATCH [THREADS [LAYER]]]]]`: the convolutions of ResNet-50, GFLOP/s a pass
//! and its share of the peak that the same run measures; medians, rounds alternating over the layers.

use std::time::Instant;

use kernels::{Arena, Bf16, Conv, Isa, Pool, Value, sums_len};

/// Input side, channels in and out, filter side, stride, how often in the network.
type Shape = (usize, [usize; 2], [usize; 2], usize);

const ROUNDS: usize = 7;

fn main() {
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    let stem = args.next().unwrap_or_else(|| "imagenet".into());
    let tier = args.next().unwrap_or_else(|| Isa::detect().name().into());
    let batch = args.next().map_or(128, |text| text.parse().expect("BATCH is a number"));
    let threads = args.next().map_or(1, |text| text.parse().expect("THREADS is a number"));
    let wanted = args.next().unwrap_or_default();
    let pool = Pool::new(threads);
    if tier == "bf16" {
        assert!(Isa::detect().has_bf16(), "this CPU has no AVX512-BF16");
        return table::<Bf16>((&pool, Isa::detect()), (&stem, &tier), batch, &wanted);
    }
    let isa = Isa::named(&tier);
    let isa = isa.expect("TIER is portable, avx2, avx512 or bf16, and this CPU has it");
    table::<f32>((&pool, isa), (&stem, &tier), batch, &wanted);
}

fn table<T: Value>(
    (pool, isa): (&Pool, Isa),
    (stem, tier): (&str, &str),
    batch: usize,
    wanted: &str,
) {
    let threads = pool.threads();
    println!(
        "{stem} stem, {tier}, {batch} images, {threads} threads; GFLOP/s and share of the peak beside it"
    );
    println!(
        "{:22} {:>2} {:>5}  {:>24} {:>25} {:>25}",
        "layer", "n", "peak", "forward", "by input", "by weight"
    );
    let (mut total, mut work, mut possible) = ([0.0; 3], [0.0; 3], [0.0; 3]);
    for shape in shapes(stem) {
        let (name, conv, count) = layer(shape);
        if !name.contains(wanted) {
            continue;
        }
        let (times, peak) = Layer::<T>::new(conv, batch).time((pool, isa));
        print!("{name:22} {count:>2} {peak:5.0}");
        for (pass, &(seconds, flops)) in times.iter().enumerate() {
            total[pass] += seconds * count as f64;
            work[pass] += flops * count as f64;
            possible[pass] += seconds * count as f64 * peak * 1e9;
            let rate = flops / seconds / 1e9;
            print!("  {:7.2} ms {rate:5.0} {:5.1} %", seconds * 1e3, 100.0 * rate / peak);
        }
        println!();
    }
    print!("{:31}", "all");
    for pass in 0..3 {
        let (seconds, flops) = (total[pass], work[pass]);
        let share = 100.0 * flops / possible[pass];
        print!("  {:7.1} ms {:5.0} {share:5.1} %", seconds * 1e3, flops / seconds / 1e9);
    }
    let sum = |values: [f64; 3]| values.iter().sum::<f64>();
    println!(
        "\nconvolutions of a step {:.3} s, {:.0} GFLOP/s, {:.1} % of peak",
        sum(total),
        sum(work) / sum(total) / 1e9,
        100.0 * sum(work) / sum(possible)
    );
}

/// GFLOP/s of multiply-adds on registers alone, on all threads.
fn peak<T: Value>(pool: &Pool, isa: Isa) -> f64 {
    const ROUNDS: usize = 500_000;
    let pairs = size_of::<T>() == 2;
    let mut counts = vec![0; pool.threads()];
    let start = Instant::now();
    pool.for_each_chunk(&mut counts, 1, |_, count| {
        count[0] = isa.chain(ROUNDS, pairs).unwrap_or(0);
    });
    counts.iter().sum::<usize>() as f64 / start.elapsed().as_secs_f64() / 1e9
}

/// The convolutions of ResNet-50 over 32x32 images, equal ones counted together.
fn shapes(stem: &str) -> Vec<Shape> {
    let (first, mut side) = match stem {
        "imagenet" => ((32, [3, 64], [7, 2], 1), 8),
        "cifar" => ((32, [3, 64], [3, 1], 1), 32),
        _ => panic!("STEM is imagenet or cifar"),
    };
    let mut shapes = vec![first];
    let mut channels = 64;
    for (stage, blocks) in [3, 4, 6, 3].into_iter().enumerate() {
        let inner = 64 << stage;
        let stride = if stage == 0 { 1 } else { 2 };
        let out = side / stride;
        shapes.extend([
            (side, [channels, inner], [1, 1], 1),
            (side, [inner, inner], [3, stride], 1),
            (out, [inner, 4 * inner], [1, 1], blocks),
            (side, [channels, 4 * inner], [1, stride], 1),
            (out, [4 * inner, inner], [1, 1], blocks - 1),
            (out, [inner, inner], [3, 1], blocks - 1),
        ]);
        (side, channels) = (out, 4 * inner);
    }
    shapes
}

fn layer((side, channels, [kernel, stride], count): Shape) -> (String, Conv, usize) {
    let conv = Conv::new([side, side], channels, kernel, stride, kernel / 2).expect("shape");
    let [cin, cout] = channels;
    (format!("{side}x{side} {cin}-{cout} {kernel}x{kernel}/{stride}"), conv, count)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A layer with its buffers.
struct Layer<T: Value> {
    conv: Conv,
    n: usize,
    images: Arena,
    x: Arena<T>,
    y: Arena<T>,
    w: Arena,
    panels: Arena<T>,
    dw: Arena,
    scratch: Arena,
    sums: Vec<f32>,
}

impl<T: Value> Layer<T> {
    fn new(conv: Conv, n: usize) -> Self {
        let sums = |[h, w]: [usize; 2], channels| sums_len(h * w, n, channels);
        let inputs = sums(conv.input, conv.channels_in);
        let sums = vec![0.0; inputs.max(sums(conv.output, conv.channels_out))];
        Self {
            images: filled(conv.input_len(n)),
            x: filled(conv.input_len(n)),
            y: filled(conv.output_len(n)),
            w: filled(conv.weights()),
            panels: filled(conv.weights()),
            dw: filled(conv.weights()),
            scratch: filled(conv.scratch_len()),
            sums,
            conv,
            n,
        }
    }

    /// Seconds and operations of each pass, and the peak; no gradient by input for the first layer.
    fn time(mut self, exec: (&Pool, Isa)) -> ([(f64, f64); 3], f64) {
        let flops = 2.0 * self.conv.multiplications(self.n) as f64;
        let mut seconds: [Vec<f64>; 3] = Default::default();
        let mut peaks = Vec::new();
        for _ in 0..ROUNDS {
            peaks.push(peak::<T>(exec.0, exec.1));
            for (pass, seconds) in seconds.iter_mut().enumerate() {
                let start = Instant::now();
                self.run(pass, exec);
                seconds.push(start.elapsed().as_secs_f64());
            }
        }
        let first = self.conv.channels_in == 3;
        let passes = seconds.map(median);
        let flops = [flops, if first { 0.0 } else { flops }, flops];
        ([0, 1, 2].map(|pass| (passes[pass], flops[pass])), median(peaks))
    }

    fn run(&mut self, pass: usize, exec: (&Pool, Isa)) {
        let Self { conv, n, images, x, y, w, panels, dw, scratch, sums } = self;
        let gradients = (dw.as_mut_slice(), scratch.as_mut_slice());
        let first = conv.channels_in == 3;
        match pass {
            0 if first => {
                let results = (y.as_mut_slice(), &mut **sums);
                conv.forward_images(exec, *n, (images.as_slice(), w.as_slice()), results, |_| {});
            }
            0 => {
                let results = (y.as_mut_slice(), &mut **sums);
                conv.forward(exec, *n, (x.as_slice(), panels.as_slice()), results, |_| {});
            }
            1 if first => {}
            1 => {
                let results = (x.as_mut_slice(), &mut **sums, false);
                let operands = (y.as_slice(), panels.as_slice());
                conv.backward_input(exec, *n, operands, results, |_| {});
            }
            _ if first => {
                let operands = (images.as_slice(), y.as_slice());
                conv.backward_weight_images(exec, *n, operands, gradients);
            }
            _ => conv.backward_weight(exec, *n, (x.as_slice(), y.as_slice()), gradients),
        }
    }
}

fn filled<T: Value>(len: usize) -> Arena<T> {
    let mut arena = Arena::new(len).expect("memory");
    for (index, value) in arena.as_mut_slice().iter_mut().enumerate() {
        *value = T::narrow((index % 251) as f32 / 251.0 - 0.5);
    }
    arena
}
