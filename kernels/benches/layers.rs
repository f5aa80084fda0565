//! `cargo bench -p kernels [-- STEM [TIER [BATCH [THREADS]]]]`: every convolution of ResNet-50, GFLOP/s a pass
//! and its share of the peak that the same run measures; medians, rounds alternating over the layers.

use std::time::Instant;

use kernels::{Arena, Conv, Isa, Pool};

/// Input side, channels in and out, filter side, stride, how often in the network.
type Shape = (usize, [usize; 2], [usize; 2], usize);

const ROUNDS: usize = 7;

fn main() {
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    let stem = args.next().unwrap_or_else(|| "imagenet".into());
    let tier = args.next().unwrap_or_else(|| Isa::detect().name().into());
    let batch = args.next().map_or(128, |text| text.parse().expect("BATCH is a number"));
    let threads = args.next().map_or(1, |text| text.parse().expect("THREADS is a number"));
    let isa = Isa::named(&tier).expect("TIER is portable, avx2 or avx512, and this CPU has it");
    let pool = Pool::new(threads);
    let peak = peak(&pool, isa);
    println!("{stem} stem, {tier}, {batch} images, {threads} threads, peak {peak:.0} GFLOP/s");
    println!("{:26} {:>3}  {:>25} {:>25} {:>25}", "layer", "n", "forward", "by input", "by weight");
    let (mut total, mut work) = ([0.0; 3], [0.0; 3]);
    for shape in shapes(&stem) {
        let (name, conv, count) = layer(shape);
        let times = Layer::new(conv, batch).time((&pool, isa));
        print!("{name:26} {count:>3} ");
        for (pass, &(seconds, flops)) in times.iter().enumerate() {
            total[pass] += seconds * count as f64;
            work[pass] += flops * count as f64;
            let rate = flops / seconds / 1e9;
            print!("  {:7.2} ms {rate:5.0} {:5.1} %", seconds * 1e3, 100.0 * rate / peak);
        }
        println!();
    }
    print!("{:30} ", "all");
    for (seconds, flops) in total.into_iter().zip(work) {
        let rate = flops / seconds / 1e9;
        print!("  {:7.1} ms {rate:5.0} {:5.1} %", seconds * 1e3, 100.0 * rate / peak);
    }
    let (seconds, flops): (f64, f64) = (total.iter().sum(), work.iter().sum());
    let rate = flops / seconds / 1e9;
    println!(
        "\nconvolutions of a step {seconds:.3} s, {rate:.0} GFLOP/s, {:.1} % of peak",
        100.0 * rate / peak
    );
}

/// GFLOP/s of multiply-adds on registers alone, on all threads.
fn peak(pool: &Pool, isa: Isa) -> f64 {
    const ROUNDS: usize = 20_000_000;
    if isa.chain(1).is_none() {
        return f64::NAN;
    }
    let mut rates: Vec<f64> = (0..3)
        .map(|_| {
            let mut sums = vec![0.0_f32; pool.threads()];
            let start = Instant::now();
            pool.for_each_chunk(&mut sums, 1, |_, sum| sum[0] = isa.chain(ROUNDS).unwrap_or(0.0));
            sums.iter().map(|&sum| f64::from(sum)).sum::<f64>()
                / start.elapsed().as_secs_f64()
                / 1e9
        })
        .collect();
    rates.sort_by(f64::total_cmp);
    rates[1]
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

/// A layer with its buffers.
struct Layer {
    conv: Conv,
    n: usize,
    x: Arena,
    y: Arena,
    w: Arena,
    dw: Arena,
}

impl Layer {
    fn new(conv: Conv, n: usize) -> Self {
        let filled = |len| {
            let mut arena = Arena::new(len).expect("memory");
            for (index, value) in arena.as_mut_slice().iter_mut().enumerate() {
                *value = (index % 251) as f32 / 251.0 - 0.5;
            }
            arena
        };
        let (x, y) = (filled(conv.input_len(n)), filled(conv.output_len(n)));
        let (w, dw) = (filled(conv.weights()), filled(conv.weights()));
        Self { conv, n, x, y, w, dw }
    }

    /// Seconds and operations of each pass; no gradient by input for the first layer.
    fn time(mut self, exec: (&Pool, Isa)) -> [(f64, f64); 3] {
        let flops = 2.0 * self.conv.multiplications(self.n) as f64;
        let mut seconds: [Vec<f64>; 3] = Default::default();
        for _ in 0..ROUNDS {
            for (pass, seconds) in seconds.iter_mut().enumerate() {
                let start = Instant::now();
                self.run(pass, exec);
                seconds.push(start.elapsed().as_secs_f64());
            }
        }
        let first = self.conv.channels_in == 3;
        [0, 1, 2].map(|pass| {
            seconds[pass].sort_by(f64::total_cmp);
            (seconds[pass][ROUNDS / 2], if first && pass == 1 { 0.0 } else { flops })
        })
    }

    fn run(&mut self, pass: usize, exec: (&Pool, Isa)) {
        let Self { conv, n, x, y, w, dw } = self;
        match pass {
            0 => conv.forward(exec, *n, x.as_slice(), w.as_slice(), y.as_mut_slice()),
            1 if conv.channels_in == 3 => {}
            1 => {
                let dx = (x.as_mut_slice(), false);
                conv.backward_input(exec, *n, y.as_slice(), w.as_slice(), dx);
            }
            _ => {
                let operands = (x.as_slice(), y.as_slice());
                conv.backward_weight(exec, *n, operands, dw.as_mut_slice());
            }
        }
    }
}
