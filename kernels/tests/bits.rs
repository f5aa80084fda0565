//! The same bits on any number of threads, on every vector tier, and past the caches or not.

use kernels::{
    Arena, BatchNorm, Bf16, Conv, Epilogue, Exec, Extent, Folded, Identity, Isa, Mask,
    NormGradients, Normalised, Pool, Product, Results, Rows, Slope, Statistics, Sums, Value,
    sums_len,
};

use crate::operands::{stored, values, with};

const NORM: BatchNorm = BatchNorm { epsilon: 1e-5, momentum: 0.1 };

#[test]
fn bits_do_not_depend_on_threads_or_vector_tier() {
    let conv = |side, channels, kernel: usize, stride| {
        Conv::new(side, channels, kernel, stride, kernel / 2).expect("shape")
    };
    bits_agree(&conv([6, 6], [64, 128], 3, 2), 11);
    // A group for each thread, and one for all.
    bits_agree(&conv([8, 8], [64, 128], 3, 1).with_fast_algorithms(), 11);
    bits_agree(&conv([8, 8], [192, 128], 3, 1).with_fast_algorithms(), 11);
    bits_agree(&conv([2, 2], [256, 128], 3, 1).with_fast_algorithms(), 11);
    bits_agree(&conv([8, 8], [64, 128], 1, 1), 11);
    // Fewer tiles than threads, which are cut into parts: of fewer images than a tile has at most, and of more.
    for n in [75, 150] {
        bits_agree(&conv([1, 1], [128, 128], 3, 1), n);
        bits_agree(&conv([2, 2], [128, 128], 3, 2), n);
    }
    // Strassen's product: other bits than those of the direct way.
    let conv = || conv([16, 8], [256, 128], 1, 1);
    assert!(bits_agree(&conv().with_fast_algorithms(), 11) != bits_agree(&conv(), 11));
}

/// The bits of the best tier.
fn bits_agree(conv: &Conv, n: usize) -> Vec<u32> {
    let (x, dy) = (values(conv.input_len(n), 1), values(conv.output_len(n), 2));
    let w = values(conv.weights(), 3);
    let run = |isa: Isa, threads: usize| {
        let pool = Pool::new(threads);
        let exec = Exec::new(&pool, isa);
        let pixels = conv.output[0] * conv.output[1];
        let mut sums = Sums::new(conv.sums_len(n), 128);
        let mut all = vec![0.0; conv.output_len(n)];
        let mut panels = vec![0.0; conv.weights()];
        let mut scratch = vec![0.0; conv.scratch_len(n)];
        let epilogue = Epilogue::Measure(&[0.0; 128]);
        let tiles = sums.tiles(conv.output_tiles(n));
        let results =
            Results { values: &mut all, sums: tiles, scratch: with(&mut panels, &mut scratch) };
        conv.forward(exec, &*x, &w, results, epilogue);
        sums.add_up(exec);
        let mut statistics = Statistics::new(128);
        statistics.set(&sums, pixels * n, &[0.0; 128]);
        let mut dx = vec![0.0; x.len()];
        let tiles = sums.tiles(conv.input_tiles(n));
        let results =
            Results { values: &mut dx, sums: tiles, scratch: with(&mut panels, &mut scratch) };
        conv.backward_input(exec, &*dy, &w, results, false, Epilogue::Keep);
        let mut dw = vec![0.0; w.len()];
        conv.backward_weight(exec, &x, &dy, &mut dw, &mut scratch);
        all.extend(statistics.mean.iter().chain(&statistics.variance));
        all.extend(dx);
        all.extend(dw);
        all.iter().map(|v| v.to_bits()).collect::<Vec<u32>>()
    };
    let tiers = Isa::available();
    for &isa in &tiers {
        let one = run(isa, 1);
        for threads in [2, 3, 7, 24] {
            assert!(run(isa, threads) == one, "{} with {threads} threads", isa.name());
        }
    }
    let vector: Vec<_> = tiers.iter().skip(1).map(|&isa| run(isa, 2)).collect();
    assert!(vector.windows(2).all(|pair| pair[0] == pair[1]), "vector tiers differ");
    run(tiers[tiers.len() - 1], 2)
}

/// A large output goes past the caches; one that does not begin at a cache line does not.
#[test]
fn outputs_that_are_streamed_have_the_bits_of_those_that_are_not() {
    let shape = |channels| Conv::new([16, 16], channels, 1, 1, 0).expect("shape");
    for isa in Isa::available() {
        streamed_case::<f32>(isa, &shape([64, 256]));
        streamed_case::<f32>(isa, &shape([256, 256]).with_fast_algorithms());
    }
    streamed_case::<Bf16>(Isa::detect(), &shape([64, 512]));
}

fn streamed_case<T: Product>(isa: Isa, conv: &Conv) {
    let (pool, n) = (Pool::new(2), 66);
    let (exec, [c, k]) = (Exec::new(&pool, isa), [conv.channels_in, conv.channels_out]);
    let len = conv.output_len(n);
    assert!(len * size_of::<T>() >= 16 << 20);
    // The gradient by the input of the layer turned round has the large output too.
    let turned = Conv::new(conv.output, [k, c], 1, 1, 0).expect("shape").with_fast_algorithms();
    let (x, _) = stored::<T>(conv.input_len(n), 1);
    let (before, _) = stored::<T>(len, 2);
    let (weights, other) = (values(conv.weights(), 3), values(turned.weights(), 4));
    let mean = vec![0.1; k];
    let run = |aside: usize| -> Vec<T> {
        let [mut y, mut dx] = [0, 1].map(|_| Arena::new(len + aside).expect("memory"));
        let (y, dx) = (&mut y.as_mut_slice()[aside..], &mut dx.as_mut_slice()[aside..]);
        dx.copy_from_slice(&before);
        let mut sums = vec![0.0; conv.sums_len(n)];
        let of = Normalised { z: &before, mean: &mean };
        let epilogue = Epilogue::Mask(Mask::Output(&before), of, None);
        let mut panels = vec![T::default(); conv.weights()];
        let results =
            Results { values: &mut *y, sums: &mut sums, scratch: with(&mut panels, &mut []) };
        conv.forward(exec, &*x, &weights, results, epilogue);
        let results =
            Results { values: &mut *dx, sums: &mut sums, scratch: with(&mut panels, &mut []) };
        turned.backward_input(exec, &*x, &other, results, true, epilogue);
        [&*y, &*dx].concat()
    };
    let (streamed, plain) = (run(0), run(1));
    let same = streamed.iter().zip(&plain).all(|(a, b)| a.widen() == b.widen());
    assert!(same, "{} {c}-{k}", isa.name());
    assert!(streamed[..len].iter().any(|value| value.widen() != 0.0));
}

/// The passes between convolutions write large maps past the caches too: with the same bits as those that
/// do not begin at a cache line, which are written as usual.
#[test]
fn large_activations_and_gradients_have_the_bits_of_those_that_are_not_streamed() {
    for isa in Isa::available() {
        streamed_passes::<f32>(isa);
        streamed_passes::<Bf16>(isa);
    }
}

fn streamed_passes<T: Value>(isa: Isa) {
    // More than 16 MiB, and a last part that is shorter than the others.
    let (channels, rows) = (192, (16 << 20) / size_of::<T>() / 192 + 7);
    let (pool, len) = (Pool::new(2), rows * channels);
    let exec = Exec::new(&pool, isa);
    let [(z, _), (x, _)] = [1, 2].map(|seed| stored::<T>(len, seed));
    let fold = Folded { scale: values(channels, 3), shift: values(channels, 4) };
    let mut statistics = Statistics::new(channels);
    (statistics.mean, statistics.variance, statistics.rows) =
        (values(channels, 5), vec![0.5; channels], rows);
    let shape = Extent::new(1, rows, channels);
    let mut sums = Sums::new(sums_len(shape), channels);
    sums.tiles(shape).fill(3.0);
    sums.add_up(exec);
    let mut slope = Slope::new(channels);
    let [mut dgamma, mut dbeta] = [0, 1].map(|_| vec![0.0; channels]);
    let gradients = NormGradients { gamma: &mut dgamma, beta: &mut dbeta, slope: &mut slope };
    statistics.backward(NORM, &sums, 1, &values(channels, 6), gradients);
    let run = |pass: usize, y: &mut [T]| match pass {
        0 => Rows::Activation(&fold, &z, Identity::None).make(exec, y),
        1 => Rows::Activation(&fold, &z, Identity::Plain(&x)).make(exec, y),
        2 => Rows::Activation(&fold, &z, Identity::Projected(&x, &fold)).make(exec, y),
        _ => Rows::Slope(&slope, [&x, &z]).make(exec, y),
    };
    let mut arena = Arena::<T>::new(2 * len + 64).expect("memory");
    let (streamed, plain) = arena.as_mut_slice().split_at_mut(len);
    let aside = usize::from(plain.as_ptr().addr().is_multiple_of(64));
    let plain = &mut plain[aside..][..len];
    for pass in 0..4 {
        streamed.fill(T::narrow(-1.0));
        plain.fill(T::narrow(-2.0));
        run(pass, streamed);
        run(pass, plain);
        let same = streamed.iter().zip(&*plain).all(|(a, b)| a.widen() == b.widen());
        assert!(same, "{} pass {pass}", isa.name());
    }
}
