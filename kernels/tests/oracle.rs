//! Every fast operation against its plain version, on every tier of this CPU and on ragged shapes; the
//! plain versions against finite differences in `f64`; and the bits against the number of threads.

use kernels::scalar::{self, Window};
use kernels::{
    Arena, BatchNorm, Bf16, Conv, Finish, Folded, Identity, Isa, Linear, Mask, MaxPool, Normalised,
    PANEL, Pool, Rows, Scratch, Slope, Statistics, Sums, Value, average_backward, average_forward,
    finish_tiles, softmax_cross_entropy, sums_len,
};
use ndarray::{Array1, Array2, Array4, ArrayView4};

/// Values in -1..1 that a seed determines.
fn values(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

fn array4(shape: (usize, usize, usize, usize), data: &[f32]) -> Array4<f64> {
    ArrayView4::from_shape(shape, data).expect("shape").mapv(f64::from)
}

/// Relative distance of a result from the oracle in the 2-norm.
#[track_caller]
fn check(got: &[f32], want: impl IntoIterator<Item = f64>, bound: f64, what: &str) {
    let want: Vec<f64> = want.into_iter().collect();
    assert_eq!(got.len(), want.len(), "{what}");
    let norm = want.iter().map(|w| w * w).sum::<f64>().sqrt().max(1e-12);
    let error: f64 = got.iter().zip(&want).map(|(&g, w)| (f64::from(g) - w).powi(2)).sum();
    let relative = error.sqrt() / norm;
    assert!(relative < bound, "{what}: relative error {relative:.2e} above {bound:.2e}");
}

/// `f32` sums of `k` products round about sqrt(k) times.
fn bound(k: usize) -> f64 {
    2e-6 * (k as f64).sqrt()
}

struct Case {
    side: usize,
    channels: [usize; 2],
    kernel: usize,
    stride: usize,
    n: usize,
}

impl Case {
    fn conv(&self) -> Conv {
        let side = [self.side, self.side];
        Conv::new(side, self.channels, self.kernel, self.stride, self.kernel / 2).expect("shape")
    }
}

const CASES: [Case; 12] = [
    Case { side: 8, channels: [64, 64], kernel: 3, stride: 1, n: 5 },
    Case { side: 5, channels: [64, 128], kernel: 3, stride: 2, n: 7 },
    Case { side: 4, channels: [128, 64], kernel: 3, stride: 2, n: 3 },
    Case { side: 1, channels: [128, 128], kernel: 3, stride: 1, n: 13 },
    Case { side: 2, channels: [64, 192], kernel: 3, stride: 1, n: 1 },
    Case { side: 3, channels: [192, 64], kernel: 1, stride: 1, n: 6 },
    Case { side: 5, channels: [64, 64], kernel: 1, stride: 2, n: 2 },
    Case { side: 2, channels: [256, 128], kernel: 1, stride: 2, n: 130 },
    Case { side: 9, channels: [3, 64], kernel: 7, stride: 2, n: 3 },
    Case { side: 6, channels: [3, 64], kernel: 3, stride: 1, n: 4 },
    Case { side: 1, channels: [2048, 512], kernel: 1, stride: 1, n: 9 },
    Case { side: 3, channels: [64, 64], kernel: 3, stride: 2, n: 141 },
];

/// The panels of a layer as `[KH][KW][Cin][Cout]`.
fn filter(conv: &Conv, panels: &[f32]) -> Array4<f64> {
    let shape = (conv.kernel, conv.kernel, conv.channels_in, conv.channels_out);
    Array4::from_shape_fn(shape, |(r, s, c, k)| f64::from(panels[conv.weight_index(k, c, r, s)]))
}

/// Values as they are stored, and what they are then.
fn stored<T: Value>(len: usize, seed: u64) -> (Vec<T>, Vec<f32>) {
    let stored: Vec<T> = values(len, seed).into_iter().map(T::narrow).collect();
    let plain = widened(&stored);
    (stored, plain)
}

fn widened<T: Value>(values: &[T]) -> Vec<f32> {
    values.iter().map(|value| value.widen()).collect()
}

#[test]
fn convolutions_match_the_oracle_on_every_tier() {
    for case in &CASES {
        convolution_case::<f32>(case, [0.0; 2], |conv| conv);
    }
}

#[test]
fn winograd_convolutions_match_the_oracle() {
    for (side, channels, n) in [
        (4, [64, 64], 3),
        (8, [64, 128], 5),
        (4, [128, 64], 131),
        (12, [64, 64], 2),
        (8, [192, 64], 1),
        (2, [64, 64], 3),
        (2, [192, 256], 131),
        (2, [128, 64], 16),
    ] {
        let case = Case { side, channels, kernel: 3, stride: 1, n };
        assert!(case.conv().with_fast_algorithms().is_winograd());
        // The direct convolution's bound, and ten times its rounding error.
        convolution_case::<f32>(&case, [1e-5; 2], Conv::with_fast_algorithms);
        convolution_case::<Bf16>(&case, [2e-3, 1e-5], Conv::with_fast_algorithms);
    }
    let refused = |case: Case| !case.conv().with_fast_algorithms().is_winograd();
    assert!(refused(Case { side: 6, channels: [64, 64], kernel: 3, stride: 1, n: 1 }));
    assert!(refused(Case { side: 8, channels: [64, 64], kernel: 3, stride: 2, n: 1 }));
    assert!(refused(Case { side: 8, channels: [64, 64], kernel: 1, stride: 1, n: 1 }));
    assert!(refused(Case { side: 8, channels: [3, 64], kernel: 3, stride: 1, n: 1 }));
}

/// Rows of both ways in a set of the cache, rows and steps that are left over, pixels without taps, several taps.
#[test]
fn strassen_products_match_the_oracle() {
    for (side, channels, kernel, stride, n) in [
        (8, [1024, 128], 1, 1, 32),
        (8, [256, 256], 1, 1, 17),
        (8, [384, 128], 1, 1, 17),
        (8, [256, 256], 1, 2, 130),
        (6, [256, 128], 3, 2, 128),
        (4, [2048, 128], 1, 1, 64),
    ] {
        let case = Case { side, channels, kernel, stride, n };
        convolution_case::<f32>(&case, [0.0; 2], Conv::with_fast_algorithms);
    }
}

#[test]
fn bfloat16_convolutions_match_the_oracle_over_rounded_operands() {
    for case in &CASES {
        // Results are rounded to 8 bits.
        convolution_case::<Bf16>(case, [2e-3, 0.0], |conv| conv);
    }
}

fn with<'a, T>(panels: &'a mut [T], parts: &'a mut [f32]) -> Scratch<'a, T> {
    Scratch { panels, parts }
}

/// With what is allowed besides the bound of sums, of activations and of gradients by weight.
fn convolution_case<T: Value>(case: &Case, rounding: [f64; 2], way: fn(Conv) -> Conv) {
    let pool = Pool::new(2);
    let Case { side, channels, kernel, stride, n } = *case;
    let window = Window { stride, pad: kernel / 2 };
    let conv = way(case.conv());
    let [h, w] = conv.output;
    let first = channels[0] % PANEL != 0;
    let (x, mut x_plain) = stored::<T>(conv.input_len(n), 1);
    let (_, mut weights) = stored::<T>(conv.weights(), 2);
    if first {
        (x_plain, weights) = (values(x.len(), 1), values(weights.len(), 2));
    }
    let (dy, dy_plain) = stored::<T>(conv.output_len(n), 3);
    let x4 = array4((side, side, n, channels[0]), &x_plain);
    let dy4 = array4((h, w, n, channels[1]), &dy_plain);
    let filter = filter(&conv, &weights);
    let y4 = scalar::conv_forward(x4.view(), filter.view(), window);
    let dw4 = scalar::conv_backward_weight(x4.view(), dy4.view(), kernel, window);
    let mut sums = vec![0.0; conv.sums_len(n)];
    for isa in Isa::available() {
        let what = format!("{} {side}x{side} {channels:?} k{kernel}/{stride} n{n}", isa.name());
        let exec = (&pool, isa);
        let nan = T::narrow(f32::NAN);
        let mut y = vec![nan; conv.output_len(n)];
        let mut dw = vec![f32::NAN; conv.weights()];
        let mut panels = vec![nan; conv.weights()];
        let mut scratch = vec![f32::NAN; conv.scratch_len(n)];
        if first {
            let results = (&mut *y, &mut *sums);
            conv.forward_images(exec, n, (&x_plain, &weights), results, Finish::Keep);
            let results = (&mut *dw, &mut *scratch);
            conv.backward_weight_images(exec, n, (&x_plain, &dy), results);
        } else {
            let results = (&mut *y, &mut *sums, with(&mut panels, &mut scratch));
            conv.forward(exec, n, (&*x, &weights), results, Finish::Keep);
            conv.backward_weight(exec, n, (&x, &dy), (&mut dw, &mut scratch));
        }
        let y_bound = bound(kernel * kernel * channels[0]) + rounding[0];
        check(&widened(&y), y4.iter().copied(), y_bound, &what);
        let got = self::filter(&conv, &dw).mapv(|v| v as f32);
        let got: Vec<f32> = got.iter().copied().collect();
        let dw_bound = bound(h * w * n) + rounding[1];
        check(&got, dw4.iter().copied(), dw_bound, &what);

        if first {
            continue;
        }
        let dx4 = scalar::conv_backward_input(x4.dim(), filter.view(), dy4.view(), window);
        let mut dx = vec![nan; x.len()];
        let dx_bound = bound(kernel * kernel * channels[1]) + rounding[0];
        for (add, times) in [(false, 1.0), (true, 2.0)] {
            let results = (&mut *dx, &mut *sums, with(&mut panels, &mut scratch));
            conv.backward_input(exec, n, (&*dy, &weights), results, (add, Finish::Keep));
            check(&widened(&dx), dx4.iter().map(|v| times * v), dx_bound, &what);
        }
    }
}

#[test]
fn shapes_that_the_kernels_cannot_do_are_errors() {
    use kernels::ShapeError;
    let refused =
        |input, channels, kernel, stride| Conv::new(input, channels, kernel, stride, 1).err();
    assert_eq!(refused([8, 8], [64, 65], 3, 1), Some(ShapeError::ChannelsOut(65)));
    assert_eq!(refused([8, 8], [64, 0], 3, 1), Some(ShapeError::ChannelsOut(0)));
    assert_eq!(refused([8, 8], [5, 64], 3, 1), Some(ShapeError::ChannelsIn(5)));
    assert_eq!(refused([8, 8], [64, 64], 9, 1), Some(ShapeError::Kernel(9)));
    assert_eq!(refused([8, 8], [64, 64], 3, 0), Some(ShapeError::Kernel(3)));
    assert_eq!(refused([0, 8], [64, 64], 3, 1), Some(ShapeError::Image([0, 8])));
}

/// Values near 30 carry 2e-6 of absolute error, which the normalisation magnifies by 1/sigma.
const NEAR: f64 = 5e-5;

const NORM: BatchNorm = BatchNorm { epsilon: 1e-5, momentum: 0.1 };

/// Statistics of `z` as a convolution's epilogue takes them.
fn measured(
    exec: (&Pool, Isa),
    shape: (usize, usize, usize),
    z: &[f32],
    pivot: &[f32],
) -> Statistics {
    let (pixels, n, channels) = shape;
    let mut sums = Sums::new(sums_len(shape), channels);
    let mut z = z.to_vec();
    finish_tiles(exec, shape, &mut z, sums.tiles(shape), Finish::Measure(pivot));
    sums.add_up(exec);
    let mut statistics = Statistics::new(channels);
    statistics.set(&sums, pixels * n, pivot);
    statistics
}

#[test]
fn normalisation_matches_the_oracle_on_every_tier() {
    let pool = Pool::new(2);
    for (side, n, channels) in [(1, 6, 64), (3, 7, 64), (2, 133, 256), (8, 16, 128), (1, 5, 2048)] {
        let shape = (side, side, n, channels);
        let flat = (side * side, n, channels);
        let len = side * side * n * channels;
        // A mean far from zero: sums of squares without a pivot would lose it.
        let z: Vec<f32> = values(len, 1).iter().map(|v| v + 30.0).collect();
        let (gamma, beta) = (values(channels, 2), values(channels, 3));
        let identity = values(len, 4);
        let dy = values(len, 5);
        let z4 = array4(shape, &z);
        let gamma1 = Array1::from_iter(gamma.iter().map(|&v| f64::from(v)));
        let beta1 = Array1::from_iter(beta.iter().map(|&v| f64::from(v)));
        let y4 = scalar::norm_forward(z4.view(), (&gamma1, &beta1), 1e-5);
        let summed = &y4 + &array4(shape, &identity);
        for isa in Isa::available() {
            let what = format!("{} {shape:?}", isa.name());
            let exec = (&pool, isa);
            let statistics = measured(exec, flat, &z, &vec![29.5; channels]);
            let mut fold = Folded::new(channels);
            fold.set(NORM, (&statistics.mean, &statistics.variance), (&gamma, &beta));
            let mut y = vec![f32::NAN; len];
            Rows::Activation(&fold, &z, Identity::Plain(&identity)).make(exec, &mut y);
            check(&y, scalar::relu_forward(summed.view()), NEAR, &what);
            let one = Folded { scale: vec![1.0; channels], shift: vec![0.0; channels] };
            Rows::Activation(&fold, &z, Identity::Projected(&identity, &one)).make(exec, &mut y);
            check(&y, scalar::relu_forward(summed.view()), NEAR, &what);
            let mut finished = z.clone();
            let mut unused = vec![0.0; sums_len(flat)];
            let finish = Finish::Fold(&fold, Some(&identity), true);
            finish_tiles(exec, flat, &mut finished, &mut unused, finish);
            check(&finished, scalar::relu_forward(summed.view()), NEAR, &what);

            let of = Normalised { z: &z, mean: &statistics.mean };
            let case = Backward { exec, shape: flat, z: (&z, &z4), gamma: (&gamma, &gamma1) };
            let masked4 = scalar::relu_backward(summed.view(), array4(shape, &dy).view());
            case.check(&statistics, (Mask::Output(&y), (of, Some(of))), (&dy, &masked4), &what);

            Rows::Activation(&fold, &z, Identity::None).make(exec, &mut y);
            let masked4 =
                scalar::relu_backward(array4(shape, &y).view(), array4(shape, &dy).view());
            case.check(&statistics, (Mask::Folded(&fold), (of, None)), (&dy, &masked4), &what);
        }
    }
}

struct Backward<'a> {
    exec: (&'a Pool, Isa),
    shape: (usize, usize, usize),
    z: (&'a [f32], &'a Array4<f64>),
    gamma: (&'a [f32], &'a Array1<f64>),
}

type Masking<'a> = (Mask<'a, f32>, (Normalised<'a, f32>, Option<Normalised<'a, f32>>));

impl Backward<'_> {
    fn check(
        &self,
        statistics: &Statistics,
        (mask, of): Masking,
        (dy, masked4): (&[f32], &Array4<f64>),
        what: &str,
    ) {
        let (.., channels) = self.shape;
        let mut sums = Sums::new(sums_len(self.shape), channels);
        let mut g = dy.to_vec();
        let finish = Finish::Mask(mask, of.0, of.1);
        finish_tiles(self.exec, self.shape, &mut g, sums.tiles(self.shape), finish);
        sums.add_up(self.exec);
        check(&g, masked4.iter().copied(), 1e-3, what);
        let g4 = array4(masked4.dim(), &g);
        let (dz4, dgamma1, dbeta1) =
            scalar::norm_backward(self.z.1.view(), g4.view(), self.gamma.1, 1e-5);
        for which in 1..=1 + usize::from(of.1.is_some()) {
            let (mut dgamma, mut dbeta) = (vec![0.0; channels], vec![0.0; channels]);
            let mut slope = Slope::new(channels);
            let results = (&mut *dgamma, &mut *dbeta, &mut slope);
            statistics.backward(NORM, (&sums, which), self.gamma.0, results);
            let mut dz = vec![f32::NAN; g.len()];
            Rows::Slope(&slope, [&g, self.z.0]).make(self.exec, &mut dz);
            check(&dgamma, dgamma1.iter().copied(), 1e-4, what);
            check(&dbeta, dbeta1.iter().copied(), 1e-4, what);
            check(&dz, dz4.iter().copied(), 2e-4, what);
            let mut in_place = g.clone();
            slope.apply_in_place(self.exec, self.z.0, &mut in_place);
            assert_eq!(in_place, dz, "{what}");
        }
    }
}

#[test]
fn running_statistics_move_by_the_momentum_and_the_unbiased_variance() {
    let pool = Pool::new(1);
    let z = values(64 * 10, 1);
    let statistics = measured((&pool, Isa::Portable), (1, 10, 64), &z, &[0.0; 64]);
    let (mut mean, mut variance) = (vec![1.0; 64], vec![2.0; 64]);
    statistics.update_running(NORM, &mut mean, &mut variance);
    assert!((mean[3] - (0.9 + 0.1 * statistics.mean[3])).abs() < 1e-6);
    assert!((variance[3] - (1.8 + 0.1 * statistics.variance[3] * 10.0 / 9.0)).abs() < 1e-6);
}

#[test]
fn pooling_and_classifier_match_the_oracle_on_every_tier() {
    let pool = Pool::new(2);
    for (side, n, channels) in [(1, 3, 64), (4, 5, 64), (7, 2, 128), (16, 3, 64)] {
        let max_pool = MaxPool::new(side);
        let shape = (side, side, n, channels);
        let out = (max_pool.output, max_pool.output, n, channels);
        // Few distinct values: ties are common, and the first one has to win.
        let x: Vec<f32> =
            values(side * side * n * channels, 1).iter().map(|v| (v * 2.0).round()).collect();
        let dy = values(max_pool.output.pow(2) * n * channels, 2);
        let x4 = array4(shape, &x);
        for isa in Isa::available() {
            let what = format!("{} {shape:?}", isa.name());
            let exec = (&pool, isa);
            let mut y = vec![f32::NAN; dy.len()];
            max_pool.forward(exec, n * channels, &x, &mut y);
            check(&y, scalar::max_pool_forward(x4.view()), 1e-9, &what);
            let mut dx = vec![f32::NAN; x.len()];
            max_pool.backward(exec, n * channels, (&x, &y, &dy), &mut dx);
            check(&dx, scalar::max_pool_backward(x4.view(), array4(out, &dy).view()), 1e-6, &what);

            let mut mean = vec![f32::NAN; n * channels];
            average_forward(exec, &x, &mut mean);
            let mean2 = scalar::average_forward(x4.view());
            check(&mean, mean2.iter().copied(), 1e-6, &what);
            let mut spread = vec![f32::NAN; x.len()];
            average_backward(exec, &mean, &mut spread);
            assert_eq!(spread[0], mean[0] / (side * side) as f32);

            let linear = Linear { inputs: channels, outputs: 10 };
            let (w, b) = (values(channels * 10, 3), values(10, 4));
            let mut logits = vec![f32::NAN; n * 10];
            linear.forward(exec, &mean, (&w, &b), &mut logits);
            let w2 =
                Array2::from_shape_vec((10, channels), w.clone()).expect("shape").mapv(f64::from);
            let b1 = Array1::from_vec(b).mapv(f64::from);
            let logits2 = scalar::linear_forward(&mean2, &w2, &b1);
            check(&logits, logits2.iter().copied(), 1e-5, &what);

            let labels: Vec<u8> = (0..n as u8).collect();
            let (loss, gradient) = scalar::cross_entropy(&logits2, &labels);
            let mut dlogits = logits.clone();
            let got = softmax_cross_entropy(&mut dlogits, &labels, 10);
            assert!((f64::from(got) - loss).abs() < 1e-5, "{what}");
            check(&dlogits, gradient.iter().copied(), 1e-5, &what);

            let mut dx = vec![f32::NAN; mean.len()];
            linear.backward_input(exec, &dlogits, &w, &mut dx);
            check(&dx, gradient.dot(&w2).iter().copied(), 1e-5, &what);
            let (mut dw, mut db) = (vec![f32::NAN; w.len()], vec![f32::NAN; 10]);
            linear.backward_weight(exec, (&mean, &dlogits), (&mut dw, &mut db));
            check(&dw, gradient.t().dot(&mean2).iter().copied(), 1e-5, &what);
            check(&db, gradient.sum_axis(ndarray::Axis(0)).iter().copied(), 1e-4, &what);
        }
    }
}

/// A bottleneck's worth of plain operations as one scalar function of all its inputs.
fn tiny_loss(parameters: &[f64]) -> (f64, Vec<f64>) {
    let (n, side, c) = (2, 4, 3);
    let cut = |from: usize, len: usize| &parameters[from..from + len];
    let x_len = side * side * n * c;
    let w_len = 9 * c * c;
    let x = Array4::from_shape_vec((side, side, n, c), cut(0, x_len).to_vec()).expect("shape");
    let w = Array4::from_shape_vec((3, 3, c, c), cut(x_len, w_len).to_vec()).expect("shape");
    let gamma = Array1::from_vec(cut(x_len + w_len, c).to_vec());
    let beta = Array1::from_vec(cut(x_len + w_len + c, c).to_vec());
    let window = Window { stride: 1, pad: 1 };

    let z = scalar::conv_forward(x.view(), w.view(), window);
    let a = &scalar::norm_forward(z.view(), (&gamma, &beta), 1e-5) + &x;
    let y = scalar::relu_forward(a.view());
    let pooled = scalar::max_pool_forward(y.view());
    let logits = scalar::average_forward(pooled.view());
    let (loss, dlogits) = scalar::cross_entropy(&logits, &[2, 0]);

    let pixels = 4.0;
    let dpooled = Array4::from_shape_fn(pooled.dim(), |(_, _, i, k)| dlogits[[i, k]] / pixels);
    let dy = scalar::max_pool_backward(y.view(), dpooled.view());
    let da = scalar::relu_backward(a.view(), dy.view());
    let (dz, dgamma, dbeta) = scalar::norm_backward(z.view(), da.view(), &gamma, 1e-5);
    let dx = &scalar::conv_backward_input(x.dim(), w.view(), dz.view(), window) + &da;
    let dw = scalar::conv_backward_weight(x.view(), dz.view(), 3, window);
    let all = dx.iter().chain(dw.iter()).chain(dgamma.iter()).chain(dbeta.iter());
    (loss, all.copied().collect())
}

#[test]
fn plain_gradients_match_finite_differences() {
    const STEP: f64 = 1e-6;
    let len = 4 * 4 * 2 * 3 + 81 + 6;
    let at: Vec<f64> = values(len, 11).into_iter().map(f64::from).collect();
    let (_, gradient) = tiny_loss(&at);
    for i in 0..len {
        let (mut up, mut down) = (at.clone(), at.clone());
        up[i] += STEP;
        down[i] -= STEP;
        let slope = (tiny_loss(&up).0 - tiny_loss(&down).0) / (2.0 * STEP);
        let error = (slope - gradient[i]).abs();
        assert!(error < 1e-6 * (1.0 + slope.abs()), "input {i}: {slope} vs {}", gradient[i]);
    }
}

#[test]
fn bits_do_not_depend_on_threads_or_vector_tier() {
    bits_agree(&Conv::new([6, 6], [64, 128], 3, 2, 1).expect("shape"));
    // A group for each thread, and one for all.
    bits_agree(&Conv::new([8, 8], [64, 128], 3, 1, 1).expect("shape").with_fast_algorithms());
    bits_agree(&Conv::new([8, 8], [192, 128], 3, 1, 1).expect("shape").with_fast_algorithms());
    bits_agree(&Conv::new([8, 8], [64, 128], 1, 1, 0).expect("shape"));
    // Fewer tiles than threads.
    bits_agree(&Conv::new([1, 1], [128, 128], 3, 1, 1).expect("shape"));
    // Strassen's product: other bits than those of the direct way.
    let conv = || Conv::new([16, 8], [256, 128], 1, 1, 0).expect("shape");
    assert!(bits_agree(&conv().with_fast_algorithms()) != bits_agree(&conv()));
}

/// The bits of the best tier.
fn bits_agree(conv: &Conv) -> Vec<u32> {
    let n = 11;
    let (x, dy) = (values(conv.input_len(n), 1), values(conv.output_len(n), 2));
    let w = values(conv.weights(), 3);
    let run = |isa: Isa, threads: usize| {
        let pool = Pool::new(threads);
        let exec = (&pool, isa);
        let pixels = conv.output[0] * conv.output[1];
        let mut sums = Sums::new(conv.sums_len(n), 128);
        let mut all = vec![0.0; conv.output_len(n)];
        let mut panels = vec![0.0; conv.weights()];
        let mut scratch = vec![0.0; conv.scratch_len(n)];
        let finish = Finish::Measure(&[0.0; 128]);
        let tiles = sums.tiles(conv.output_tiles(n));
        let results = (&mut *all, tiles, with(&mut panels, &mut scratch));
        conv.forward(exec, n, (&*x, &w), results, finish);
        sums.add_up(exec);
        let mut statistics = Statistics::new(128);
        statistics.set(&sums, pixels * n, &[0.0; 128]);
        let mut dx = vec![0.0; x.len()];
        let tiles = sums.tiles(conv.input_tiles(n));
        let results = (&mut *dx, tiles, with(&mut panels, &mut scratch));
        conv.backward_input(exec, n, (&*dy, &w), results, (false, Finish::Keep));
        let mut dw = vec![0.0; w.len()];
        conv.backward_weight(exec, n, (&x, &dy), (&mut dw, &mut scratch));
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

fn streamed_case<T: Value>(isa: Isa, conv: &Conv) {
    let (pool, n) = (Pool::new(2), 66);
    let (exec, [c, k]) = ((&pool, isa), [conv.channels_in, conv.channels_out]);
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
        let finish = Finish::Mask(Mask::Output(&before), of, None);
        let mut panels = vec![T::default(); conv.weights()];
        let results = (&mut *y, &mut *sums, with(&mut panels, &mut []));
        conv.forward(exec, n, (&*x, &weights), results, finish);
        let results = (&mut *dx, &mut *sums, with(&mut panels, &mut []));
        turned.backward_input(exec, n, (&*x, &other), results, (true, finish));
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
    let exec = (&pool, isa);
    let [(z, _), (x, _)] = [1, 2].map(|seed| stored::<T>(len, seed));
    let fold = Folded { scale: values(channels, 3), shift: values(channels, 4) };
    let mut statistics = Statistics::new(channels);
    (statistics.mean, statistics.variance, statistics.rows) =
        (values(channels, 5), vec![0.5; channels], rows);
    let shape = (1, rows, channels);
    let mut sums = Sums::new(sums_len(shape), channels);
    sums.tiles(shape).fill(3.0);
    sums.add_up(exec);
    let mut slope = Slope::new(channels);
    let [mut dgamma, mut dbeta] = [0, 1].map(|_| vec![0.0; channels]);
    let results = (&mut *dgamma, &mut *dbeta, &mut slope);
    statistics.backward(NORM, (&sums, 1), &values(channels, 6), results);
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
