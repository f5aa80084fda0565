//! `cargo bench -p kernels [-- STEM [TIER [BATCH [THREADS [LAYER]]]]]`: the convolutions of ResNet-50, GFLOP/s a pass
//! and its shares of the peak and of the memory's bandwidth that the same run measures; medians, rounds alternating
//! over the layers.
//!
//! TIER is one of the CPU's in `f32`, or in bfloat16 `amx` (tiles), `amx-model`, or `bf16` (pairs, AVX512-BF16); with
//! `+fast` behind it by the fast algorithms.

use std::time::Instant;

use kernels::{
    Arena, Bf16, Conv, Epilogue, Exec, Folded, Identity, Isa, Mask, Normalised, Pool, Product,
    Results, Rows, Scratch, Slope, Sums, Target,
};

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
    let is_fast = tier.ends_with("+fast");
    let tier = tier.trim_end_matches("+fast").to_owned();
    let what = (&*stem, &*tier, is_fast);
    if tier == "bf16" {
        let is_pairs = |isa: &Isa| isa.has_bf16() && !isa.has_tiles();
        let isa = Isa::available().into_iter().rfind(is_pairs).expect("a CPU with AVX512-BF16");
        return table::<Bf16>(Exec::new(&pool, isa), what, batch, &wanted);
    }
    let isa = Isa::named(&tier);
    if tier == "amx" && isa.is_none() {
        panic!(
            "TIER amx: {}",
            Isa::tiles_checked().expect_err("a tier that is there has its name")
        );
    }
    let isa = isa.expect("TIER is portable, avx2, avx512, bf16 or amx, and this CPU has it");
    match isa.has_tiles() {
        true => table::<Bf16>(Exec::new(&pool, isa), what, batch, &wanted),
        false => table::<f32>(Exec::new(&pool, isa), what, batch, &wanted),
    }
}

/// Passes of a layer: three convolutions, with what is done to their tiles, and two over memory.
const PASSES: usize = 5;

fn table<T: Product>(
    Exec { pool, isa }: Exec,
    (stem, tier, is_fast): (&str, &str, bool),
    batch: usize,
    wanted: &str,
) {
    let threads = pool.threads();
    println!(
        "{stem} stem, {tier}{}, {batch} images, {threads} threads",
        if is_fast { ", fast algorithms" } else { "" }
    );
    let bandwidth = bandwidth(pool);
    println!(
        "GFLOP/s, share of the peak measured beside, MB moved, share of the bandwidth ({bandwidth:.1} GB/s of a copy);"
    );
    println!(
        "the passes include the sums for normalisation; activate and slope (its gradient) in ms"
    );
    println!(
        "{:22} {:>2} {:>5} {:>36} {:>36} {:>36} {:>8} {:>6}",
        "layer", "n", "peak", "forward", "by input", "by weight", "activate", "slope"
    );
    let (mut total, mut work, mut possible) = ([0.0; PASSES], [0.0; 3], [0.0; 3]);
    let mut moved = [0.0; 3];
    for shape in shapes(stem) {
        let (name, conv, count) = layer(shape);
        if !name.contains(wanted) {
            continue;
        }
        let conv = if is_fast { conv.with_fast_algorithms() } else { conv };
        let flops = 2.0 * conv.multiplications(batch) as f64;
        let flops = [flops, if conv.channels_in == 3 { 0.0 } else { flops }, flops];
        let bytes = bytes::<T>(&conv, batch);
        let (seconds, peak) = Layer::<T>::new(conv, batch).time(Exec::new(pool, isa));
        print!("{name:22} {count:>2} {peak:5.0}");
        for pass in 0..PASSES {
            total[pass] += seconds[pass] * count as f64;
        }
        for pass in 0..3 {
            work[pass] += flops[pass] * count as f64;
            possible[pass] += seconds[pass] * count as f64 * peak * 1e9;
            moved[pass] += bytes[pass] * count as f64;
            let rate = flops[pass] / seconds[pass] / 1e9;
            print!(" {:7.2} ms {rate:4.0} {:5.1} %", seconds[pass] * 1e3, 100.0 * rate / peak);
            let share = bytes[pass] / seconds[pass] / bandwidth / 1e7;
            print!(" {:6.1} {share:3.0} %", bytes[pass] / 1e6);
        }
        let [.., activate, slope] = seconds.map(|seconds| seconds * 1e3);
        println!(" {activate:8.2} {slope:6.2}");
    }
    print!("{:31}", "all");
    for pass in 0..3 {
        let (seconds, flops) = (total[pass], work[pass]);
        let share = 100.0 * flops / possible[pass];
        print!(" {:7.1} ms {:4.0} {share:5.1} %", seconds * 1e3, flops / seconds / 1e9);
        print!(" {:6.0} {:3.0} %", moved[pass] / 1e6, moved[pass] / seconds / bandwidth / 1e7);
    }
    let [.., activate, slope] = total.map(|seconds| seconds * 1e3);
    println!(" {activate:8.1} {slope:6.1}");
    let sum = |values: &[f64]| values.iter().sum::<f64>();
    println!(
        "convolutions of a step {:.3} s, {:.0} GFLOP/s, {:.1} % of peak; the rest of the table {:.3} s",
        sum(&total[..3]),
        sum(&work) / sum(&total[..3]) / 1e9,
        100.0 * sum(&work) / sum(&possible),
        sum(&total[3..])
    );
}

/// Bytes that each pass reads and writes at least, once each: activations as they are stored, weights as `f32` and, in
/// bfloat16, as the panels they become.
fn bytes<T: Product>(conv: &Conv, n: usize) -> [f64; 3] {
    let first = conv.channels_in == 3;
    let value = size_of::<T>();
    let x = conv.input_len(n) * if first { size_of::<f32>() } else { value };
    let (y, weights) = (conv.output_len(n) * value, conv.weights() * size_of::<f32>());
    let panels =
        weights + if first || value == size_of::<f32>() { 0 } else { conv.weights() * value };
    // By input the mask and what was normalised are read beside.
    let by_input = if first { 0 } else { y + 3 * x + panels };
    [x + panels + y, by_input, x + y + weights].map(|bytes| bytes as f64)
}

/// GB/s of a copy by all threads, read and written: far more than the caches hold.
fn bandwidth(pool: &Pool) -> f64 {
    const LEN: usize = 1 << 25;
    let (source, mut target) = (filled::<f32>(LEN), filled::<f32>(LEN));
    let seconds = (0..ROUNDS).map(|_| {
        let start = Instant::now();
        pool.for_each_chunk(target.as_mut_slice(), 1 << 16, |index, target| {
            target.copy_from_slice(&source.as_slice()[index << 16..][..target.len()]);
        });
        start.elapsed().as_secs_f64()
    });
    (2 * LEN * size_of::<f32>()) as f64 / median(seconds.collect()) / 1e9
}

/// GFLOP/s of multiply-adds on registers alone, on all threads.
fn peak<T: Product>(pool: &Pool, isa: Isa) -> f64 {
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
struct Layer<T: Product> {
    conv: Conv,
    n: usize,
    images: Arena,
    x: Arena<T>,
    other: Arena<T>,
    dx: Arena<T>,
    y: Arena<T>,
    dy: Arena<T>,
    w: Arena,
    panels: Arena<T>,
    dw: Arena,
    scratch: Arena,
    sums: Sums,
    mean: Vec<f32>,
    fold: Folded,
    slope: Slope,
}

impl<T: Product> Layer<T> {
    fn new(conv: Conv, n: usize) -> Self {
        let channels = conv.channels_in.max(conv.channels_out);
        Self {
            images: filled(conv.input_len(n)),
            x: filled(conv.input_len(n)),
            other: filled(conv.input_len(n)),
            dx: filled(conv.input_len(n)),
            y: filled(conv.output_len(n)),
            dy: filled(conv.output_len(n)),
            w: filled(conv.weights()),
            panels: filled(conv.weights()),
            dw: filled(conv.weights()),
            scratch: filled(conv.scratch_len(n)),
            sums: Sums::new(conv.sums_len(n), channels),
            mean: vec![0.0; channels],
            fold: Folded::new(conv.channels_out),
            slope: Slope::new(conv.channels_out),
            conv,
            n,
        }
    }

    /// Seconds of each pass, and the peak.
    fn time(mut self, exec: Exec) -> ([f64; PASSES], f64) {
        let mut seconds: [Vec<f64>; PASSES] = Default::default();
        let mut peaks = Vec::new();
        for _ in 0..ROUNDS {
            peaks.push(peak::<T>(exec.pool, exec.isa));
            for (pass, seconds) in seconds.iter_mut().enumerate() {
                let start = Instant::now();
                self.run(pass, exec);
                seconds.push(start.elapsed().as_secs_f64());
            }
        }
        (seconds.map(median), median(peaks))
    }

    fn run(&mut self, pass: usize, exec: Exec) {
        match pass {
            0 => self.forward(exec),
            1 => self.backward_input(exec),
            2 => self.backward_weight(exec),
            3 => {
                let (y, dy) = (self.y.as_slice(), self.dy.as_mut_slice());
                Rows::Activation(&self.fold, y, Identity::None).make(exec, dy);
            }
            _ => self.slope.apply_in_place(exec, self.y.as_slice(), self.dy.as_mut_slice()),
        }
    }

    fn forward(&mut self, exec: Exec) {
        let (conv, n) = (&self.conv, self.n);
        let shape = conv.output_tiles(n);
        let (y, sums) = (self.y.as_mut_slice(), self.sums.tiles(shape));
        let epilogue = Epilogue::Measure(&self.mean[..conv.channels_out]);
        if conv.channels_in == 3 {
            let (x, w) = (self.images.as_slice(), self.w.as_slice());
            conv.forward_images(exec, x, w, Target { values: y, sums }, epilogue);
        } else {
            let scratch =
                Scratch { panels: self.panels.as_mut_slice(), parts: self.scratch.as_mut_slice() };
            let (x, w) = (self.x.as_slice(), self.w.as_slice());
            conv.forward(exec, x, w, Results { values: y, sums, scratch }, epilogue);
        }
        self.sums.add_up(exec);
    }

    fn backward_input(&mut self, exec: Exec) {
        let (conv, n) = (&self.conv, self.n);
        if conv.channels_in == 3 {
            return;
        }
        let shape = conv.input_tiles(n);
        let scratch =
            Scratch { panels: self.panels.as_mut_slice(), parts: self.scratch.as_mut_slice() };
        let results =
            Results { values: self.dx.as_mut_slice(), sums: self.sums.tiles(shape), scratch };
        let of = Normalised { z: self.x.as_slice(), mean: &self.mean[..conv.channels_in] };
        let (dy, w) = (self.dy.as_slice(), self.w.as_slice());
        let epilogue = Epilogue::Mask(Mask::Output(self.other.as_slice()), of, None);
        conv.backward_input(exec, dy, w, results, false, epilogue);
        self.sums.add_up(exec);
    }

    fn backward_weight(&mut self, exec: Exec) {
        let (conv, dy) = (&self.conv, self.dy.as_slice());
        let (dw, scratch) = (self.dw.as_mut_slice(), self.scratch.as_mut_slice());
        if conv.channels_in == 3 {
            conv.backward_weight_images(exec, self.images.as_slice(), dy, dw, scratch);
        } else {
            conv.backward_weight(exec, self.x.as_slice(), dy, dw, scratch);
        }
    }
}

fn filled<T: Product>(len: usize) -> Arena<T> {
    let mut arena = Arena::new(len).expect("memory");
    for (index, value) in arena.as_mut_slice().iter_mut().enumerate() {
        *value = T::narrow((index % 251) as f32 / 251.0 - 0.5);
    }
    arena
}
