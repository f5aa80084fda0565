//! Normalisation without the batch's own statistics: of groups of channels, and by statistics that are given; against
//! the plain versions on every tier, those against finite differences.

use kernels::scalar;
use kernels::{
    Bf16, Ending, Epilogue, Exec, Extent, Folded, GROUPS, GroupNorm, Identity, Isa, Mask,
    NormGradients, Normalised, Pool, Rows, Slope, Statistics, Sums, Value, run_epilogue, sums_len,
};
use ndarray::{Array1, Array4};

use crate::operands::{stored, values, widened};
use crate::oracle::{NORM, array4, check};

// No group of two values: those are plus and minus one whatever they were, and their gradients cancel to nothing.
const SHAPES: [(usize, usize, usize); 4] = [(2, 6, 64), (3, 7, 64), (2, 33, 256), (1, 5, 2048)];

/// Relative distances that are allowed: of values, of gradients by them, and of sums.
struct Bounds {
    near: f64,
    dz: f64,
    sums: f64,
}

fn array1(values: &[f32]) -> Array1<f64> {
    values.iter().map(|&value| f64::from(value)).collect()
}

fn group_case<T: Value>(exec: Exec, (side, n, channels): (usize, usize, usize), bounds: &Bounds) {
    let what = format!("{} {side} {n} {channels}", exec.isa.name());
    let shape = (side, side, n, channels);
    let flat = Extent::new(side * side, n, channels);
    let len = side * side * n * channels;
    let raw: Vec<T> = values(len, 1).iter().map(|v| T::narrow(v + 3.0)).collect();
    let (gamma, beta) = (values(channels, 2), values(channels, 3));
    let (identity, identity1) = stored::<T>(len, 4);
    let (gamma1, beta1) = (array1(&gamma), array1(&beta));
    let z4 = array4(shape, &widened(&raw));
    let y4 = scalar::group_forward(z4.view(), GROUPS, &gamma1, &beta1, 1e-5);
    // More room than this layer needs.
    let mut norm = GroupNorm::new(n * channels + 64);
    let mut z = raw.clone();
    let mut inverse = vec![f32::NAN; n * GROUPS];
    norm.normalise(exec, NORM, flat, &mut z, &mut inverse);
    let fold = Folded { scale: gamma.clone(), shift: beta.clone() };
    let mut y = vec![T::default(); len];
    Rows::Activation(&fold, &z, Identity::None).make(exec, &mut y);
    check(&widened(&y), scalar::relu_forward(y4.view()), bounds.near, &what);

    let mut inferred = raw.clone();
    let ending = Ending { identity: Some(&*identity), relu: true };
    norm.infer(exec, NORM, flat, [&gamma, &beta], &mut inferred, ending);
    let summed = &y4 + &array4(shape, &identity1);
    check(&widened(&inferred), scalar::relu_forward(summed.view()), bounds.near, &what);
    let mut plain = raw.clone();
    let ending = Ending { identity: None, relu: false };
    norm.infer(exec, NORM, flat, [&gamma, &beta], &mut plain, ending);
    check(&widened(&plain), y4.iter().copied(), bounds.near, &what);

    let (mut g, dy) = stored::<T>(len, 5);
    let of = Normalised { z: &z, mean: &vec![0.0; channels] };
    let mut sums = Sums::new(sums_len(flat), channels);
    let epilogue = Epilogue::Mask(Mask::Output(&y), of, Some(of));
    run_epilogue(exec, flat, &mut g, sums.tiles(flat), epilogue);
    sums.add_up(exec);
    let masked4 =
        scalar::relu_backward(array4(shape, &widened(&y)).view(), array4(shape, &dy).view());
    let (dz4, dgamma1, dbeta1) =
        scalar::group_backward(z4.view(), masked4.view(), GROUPS, &gamma1, 1e-5);
    for which in [1, 2] {
        let (mut dgamma, mut dbeta) = (vec![0.0; channels], vec![0.0; channels]);
        sums.by_affine(which, &mut dgamma, &mut dbeta);
        check(&dgamma, dgamma1.iter().copied(), bounds.sums, &what);
        check(&dbeta, dbeta1.iter().copied(), bounds.sums, &what);
    }
    let slope = norm.backward(exec, flat, &gamma, &inverse, [&g, &z]);
    let mut dz = vec![T::default(); len];
    Rows::Slope(slope, [&g, &z]).make(exec, &mut dz);
    check(&widened(&dz), dz4.iter().copied(), bounds.dz, &what);
    slope.apply_in_place(exec, &z, &mut g);
    assert_eq!(widened(&g), widened(&dz), "{what}");
}

#[test]
fn groups_of_channels_are_normalised_as_in_the_oracle_on_every_tier() {
    let pools = [1, 3].map(Pool::new);
    for shape in SHAPES {
        for isa in Isa::available() {
            for pool in &pools {
                let exec = Exec::new(pool, isa);
                group_case::<f32>(exec, shape, &Bounds { near: 1e-5, dz: 2e-5, sums: 2e-5 });
                group_case::<Bf16>(exec, shape, &Bounds { near: 8e-3, dz: 2e-2, sums: 2e-2 });
            }
        }
    }
}

#[test]
fn by_given_statistics_a_gradient_is_scaled_and_nothing_else() {
    let pool = Pool::new(2);
    let (n, channels) = (7, 64);
    let flat = Extent::new(4, n, channels);
    let len = flat.rows() * channels;
    let [z, g] = [1, 2].map(|seed| values(len, seed));
    let [mean, gamma] = [3, 4].map(|seed| values(channels, seed));
    let variance: Vec<f32> = values(channels, 5).iter().map(|v| v * v + 0.5).collect();
    for isa in Isa::available() {
        let exec = Exec::new(&pool, isa);
        let mut statistics = Statistics::new(channels);
        statistics.fix(&mean, &variance);
        let mut sums = Sums::new(sums_len(flat), channels);
        let of = Normalised { z: &z, mean: &statistics.mean };
        let mut masked = g.clone();
        let all = vec![1.0; len];
        let epilogue = Epilogue::Mask(Mask::Output(&all), of, None);
        run_epilogue(exec, flat, &mut masked, sums.tiles(flat), epilogue);
        sums.add_up(exec);
        let (mut dgamma, mut dbeta) = (vec![0.0; channels], vec![0.0; channels]);
        let mut slope = Slope::new(channels);
        let gradients = NormGradients { gamma: &mut dgamma, beta: &mut dbeta, slope: &mut slope };
        statistics.backward(NORM, &sums, 1, &gamma, gradients);
        let mut dz = vec![f32::NAN; len];
        Rows::Slope(&slope, [&masked, &z]).make(exec, &mut dz);
        let inverse: Vec<f64> =
            variance.iter().map(|&v| 1.0 / (f64::from(v) + 1e-5).sqrt()).collect();
        let by = |at: usize| f64::from(g[at]) * inverse[at % channels];
        let gamma = |at: usize| f64::from(gamma[at % channels]);
        check(&dz, (0..len).map(|at| by(at) * gamma(at)), 1e-6, isa.name());
        let column = |c: usize| (c..len).step_by(channels);
        let centred = |at: usize| f64::from(z[at]) - f64::from(mean[at % channels]);
        let want = |c: usize| column(c).map(|at| by(at) * centred(at)).sum::<f64>();
        check(&dgamma, (0..channels).map(want), 1e-5, isa.name());
        let want = |c: usize| column(c).map(|at| f64::from(g[at])).sum::<f64>();
        check(&dbeta, (0..channels).map(want), 1e-5, isa.name());
    }
}

#[test]
fn the_plain_gradients_of_groups_match_finite_differences() {
    const STEP: f64 = 1e-6;
    let (shape, groups) = ((2, 2, 2, 6), 3);
    let len = 48;
    let numbers: Vec<f64> = values(len + 12, 11).into_iter().map(f64::from).collect();
    let weights =
        Array4::from_shape_fn(shape, |(h, w, n, c)| ((h + 2 * w + 3 * n + 5 * c) % 7) as f64);
    let parts = |all: &[f64]| {
        let z = Array4::from_shape_vec(shape, all[..len].to_vec()).expect("shape");
        let affine = |from: usize| Array1::from_vec(all[from..from + 6].to_vec());
        (z, affine(len), affine(len + 6))
    };
    let loss = |all: &[f64]| {
        let (z, gamma, beta) = parts(all);
        (&scalar::group_forward(z.view(), groups, &gamma, &beta, 1e-5) * &weights).sum()
    };
    let (z, gamma, _) = parts(&numbers);
    let (dz, dgamma, dbeta) =
        scalar::group_backward(z.view(), weights.view(), groups, &gamma, 1e-5);
    let gradient: Vec<f64> = dz.iter().chain(&dgamma).chain(&dbeta).copied().collect();
    for at in 0..numbers.len() {
        let moved = |by: f64| {
            let mut moved = numbers.clone();
            moved[at] += by;
            loss(&moved)
        };
        let slope = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
        let error = (slope - gradient[at]).abs();
        assert!(error < 1e-5 * (1.0 + slope.abs()), "{at}: {slope} against {}", gradient[at]);
    }
}
