//! Every fast operation against its plain version, on every tier of this CPU and on ragged shapes; the
//! plain versions against finite differences in `f64`.

use kernels::scalar::{self, Window};
use kernels::{
    BatchNorm, Bf16, Conv, Epilogue, Exec, Extent, Folded, Identity, Isa, Linear, Mask, MaxPool,
    NormGradients, Normalised, PANEL, Pool, Product, Results, Rows, Slope, Statistics, Sums,
    Target, average_backward, average_forward, run_epilogue, softmax_cross_entropy, sums_len,
};
use ndarray::{Array1, Array2, Array4, ArrayView4};

use crate::operands::{stored, values, widened, with};
use crate::tiles::tile_tiers;

pub(crate) fn array4(shape: (usize, usize, usize, usize), data: &[f32]) -> Array4<f64> {
    ArrayView4::from_shape(shape, data).expect("shape").mapv(f64::from)
}

/// Relative distance of a result from the oracle in the 2-norm.
#[track_caller]
pub(crate) fn check(got: &[f32], want: impl IntoIterator<Item = f64>, bound: f64, what: &str) {
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

/// With what is allowed besides the bound of sums, of activations and of gradients by weight.
fn convolution_case<T: Product>(case: &Case, rounding: [f64; 2], way: fn(Conv) -> Conv) {
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
    let of_tiles = if T::WORD > 1 { tile_tiers() } else { Vec::new() };
    for isa in Isa::available().into_iter().chain(of_tiles) {
        let what = format!("{} {side}x{side} {channels:?} k{kernel}/{stride} n{n}", isa.name());
        let exec = Exec::new(&pool, isa);
        let nan = T::narrow(f32::NAN);
        let mut y = vec![nan; conv.output_len(n)];
        let mut dw = vec![f32::NAN; conv.weights()];
        let mut panels = vec![nan; conv.weights()];
        let mut scratch = vec![f32::NAN; conv.scratch_len(n)];
        if first {
            let target = Target { values: &mut y, sums: &mut sums };
            conv.forward_images(exec, &x_plain, &weights, target, Epilogue::Keep);
            conv.backward_weight_images(exec, &x_plain, &dy, &mut dw, &mut scratch);
        } else {
            let results = Results {
                values: &mut y,
                sums: &mut sums,
                scratch: with(&mut panels, &mut scratch),
            };
            conv.forward(exec, &*x, &weights, results, Epilogue::Keep);
            conv.backward_weight(exec, &x, &dy, &mut dw, &mut scratch);
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
        let dx4 = scalar::conv_backward_input(x4.dim().into(), filter.view(), dy4.view(), window);
        let mut dx = vec![nan; x.len()];
        let dx_bound = bound(kernel * kernel * channels[1]) + rounding[0];
        for (add, times) in [(false, 1.0), (true, 2.0)] {
            let results = Results {
                values: &mut dx,
                sums: &mut sums,
                scratch: with(&mut panels, &mut scratch),
            };
            conv.backward_input(exec, &*dy, &weights, results, add, Epilogue::Keep);
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

pub(crate) const NORM: BatchNorm = BatchNorm { epsilon: 1e-5, momentum: 0.1 };

/// Statistics of `z` as a convolution's epilogue takes them.
fn measured(exec: Exec, shape: Extent, z: &[f32], pivot: &[f32]) -> Statistics {
    let channels = shape.channels;
    let mut sums = Sums::new(sums_len(shape), channels);
    let mut z = z.to_vec();
    run_epilogue(exec, shape, &mut z, sums.tiles(shape), Epilogue::Measure(pivot));
    sums.add_up(exec);
    let mut statistics = Statistics::new(channels);
    statistics.set(&sums, shape.rows(), pivot);
    statistics
}

#[test]
fn normalisation_matches_the_oracle_on_every_tier() {
    let pool = Pool::new(2);
    for (side, n, channels) in [(1, 6, 64), (3, 7, 64), (2, 133, 256), (8, 16, 128), (1, 5, 2048)] {
        let shape = (side, side, n, channels);
        let flat = Extent::new(side * side, n, channels);
        let len = side * side * n * channels;
        // A mean far from zero: sums of squares without a pivot would lose it.
        let z: Vec<f32> = values(len, 1).iter().map(|v| v + 30.0).collect();
        let (gamma, beta) = (values(channels, 2), values(channels, 3));
        let identity = values(len, 4);
        let dy = values(len, 5);
        let z4 = array4(shape, &z);
        let gamma1 = Array1::from_iter(gamma.iter().map(|&v| f64::from(v)));
        let beta1 = Array1::from_iter(beta.iter().map(|&v| f64::from(v)));
        let y4 = scalar::norm_forward(z4.view(), &gamma1, &beta1, 1e-5);
        let summed = &y4 + &array4(shape, &identity);
        for isa in Isa::available() {
            let what = format!("{} {shape:?}", isa.name());
            let exec = Exec::new(&pool, isa);
            let statistics = measured(exec, flat, &z, &vec![29.5; channels]);
            let mut fold = Folded::new(channels);
            fold.set(NORM, &statistics.mean, &statistics.variance, &gamma, &beta);
            let mut y = vec![f32::NAN; len];
            Rows::Activation(&fold, &z, Identity::Plain(&identity)).make(exec, &mut y);
            check(&y, scalar::relu_forward(summed.view()), NEAR, &what);
            let one = Folded { scale: vec![1.0; channels], shift: vec![0.0; channels] };
            Rows::Activation(&fold, &z, Identity::Projected(&identity, &one)).make(exec, &mut y);
            check(&y, scalar::relu_forward(summed.view()), NEAR, &what);
            let mut finished = z.clone();
            let mut unused = vec![0.0; sums_len(flat)];
            let epilogue = Epilogue::Fold(&fold, Some(&identity), true);
            run_epilogue(exec, flat, &mut finished, &mut unused, epilogue);
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
    exec: Exec<'a>,
    shape: Extent,
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
        let channels = self.shape.channels;
        let mut sums = Sums::new(sums_len(self.shape), channels);
        let mut g = dy.to_vec();
        let epilogue = Epilogue::Mask(mask, of.0, of.1);
        run_epilogue(self.exec, self.shape, &mut g, sums.tiles(self.shape), epilogue);
        sums.add_up(self.exec);
        check(&g, masked4.iter().copied(), 1e-3, what);
        let g4 = array4(masked4.dim(), &g);
        let (dz4, dgamma1, dbeta1) =
            scalar::norm_backward(self.z.1.view(), g4.view(), self.gamma.1, 1e-5);
        for which in 1..=1 + usize::from(of.1.is_some()) {
            let (mut dgamma, mut dbeta) = (vec![0.0; channels], vec![0.0; channels]);
            let mut slope = Slope::new(channels);
            let gradients =
                NormGradients { gamma: &mut dgamma, beta: &mut dbeta, slope: &mut slope };
            statistics.backward(NORM, &sums, which, self.gamma.0, gradients);
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
    let statistics =
        measured(Exec::new(&pool, Isa::Portable), Extent::new(1, 10, 64), &z, &[0.0; 64]);
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
            let exec = Exec::new(&pool, isa);
            let mut y = vec![f32::NAN; dy.len()];
            max_pool.forward(exec, n * channels, &x, &mut y);
            check(&y, scalar::max_pool_forward(x4.view()), 1e-9, &what);
            let mut dx = vec![f32::NAN; x.len()];
            max_pool.backward(exec, n * channels, &x, &y, &dy, &mut dx);
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
            linear.forward(exec, &mean, &w, &b, &mut logits);
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
            linear.backward_weight(exec, &mean, &dlogits, &mut dw, &mut db);
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
    let a = &scalar::norm_forward(z.view(), &gamma, &beta, 1e-5) + &x;
    let y = scalar::relu_forward(a.view());
    let pooled = scalar::max_pool_forward(y.view());
    let logits = scalar::average_forward(pooled.view());
    let (loss, dlogits) = scalar::cross_entropy(&logits, &[2, 0]);

    let pixels = 4.0;
    let dpooled = Array4::from_shape_fn(pooled.dim(), |(_, _, i, k)| dlogits[[i, k]] / pixels);
    let dy = scalar::max_pool_backward(y.view(), dpooled.view());
    let da = scalar::relu_backward(a.view(), dy.view());
    let (dz, dgamma, dbeta) = scalar::norm_backward(z.view(), da.view(), &gamma, 1e-5);
    let dx = &scalar::conv_backward_input(x.dim().into(), w.view(), dz.view(), window) + &da;
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
