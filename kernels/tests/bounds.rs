//! The bounds of rounding errors that the heads of `winograd` and `strassen` state, and the matrices they come from:
//! the plain algorithm in `f64` is the convolution, and no error of the fast one in `f32` is above the bound.

use kernels::scalar::{self, Window};
use kernels::{Conv, Epilogue, Exec, Isa, PANEL, Pool, Results};
use ndarray::{Array2, Array4, ArrayView2, ArrayView4, array};

use crate::operands::{values, with};

/// Half the distance of 1 to the next `f32`.
const UNIT: f64 = 1.0 / (1_u32 << 24) as f64;

const WINDOW: Window = Window { stride: 1, pad: 1 };

/// `count` roundings one after the other (Higham 2002, lemma 3.1).
fn gamma(count: usize) -> f64 {
    let rounded = count as f64 * UNIT;
    rounded / (1.0 - rounded)
}

/// A scheme's matrices as the head of `winograd` has them.
struct Scheme {
    border: usize,
    /// `B'`, `G` and `A'`.
    input: Array2<f64>,
    weights: Array2<f64>,
    output: Array2<f64>,
    /// Roundings of the transforms, of activations and of gradients by weight.
    roundings: [usize; 2],
}

fn four() -> Scheme {
    Scheme {
        border: 1,
        input: array![
            [4.0, 0.0, -5.0, 0.0, 1.0, 0.0],
            [0.0, -4.0, -4.0, 1.0, 1.0, 0.0],
            [0.0, 4.0, -4.0, -1.0, 1.0, 0.0],
            [0.0, -2.0, -1.0, 2.0, 1.0, 0.0],
            [0.0, 2.0, -1.0, -2.0, 1.0, 0.0],
            [0.0, 4.0, 0.0, -5.0, 0.0, 1.0],
        ],
        weights: array![
            [1.0 / 4.0, 0.0, 0.0],
            [-1.0 / 6.0, -1.0 / 6.0, -1.0 / 6.0],
            [-1.0 / 6.0, 1.0 / 6.0, -1.0 / 6.0],
            [1.0 / 24.0, 1.0 / 12.0, 1.0 / 6.0],
            [1.0 / 24.0, -1.0 / 12.0, 1.0 / 6.0],
            [0.0, 0.0, 1.0],
        ],
        output: array![
            [1.0, 1.0, 1.0, 1.0, 1.0, 0.0],
            [0.0, 1.0, -1.0, 2.0, -2.0, 0.0],
            [0.0, 1.0, 1.0, 4.0, 4.0, 0.0],
            [0.0, 1.0, -1.0, 8.0, -8.0, 1.0],
        ],
        roundings: [18, 18],
    }
}

fn two() -> Scheme {
    Scheme {
        border: 0,
        input: array![[1.0, 1.0], [0.0, 1.0], [1.0, 0.0]],
        weights: array![[0.0, 1.0, 0.0], [0.0, -1.0, 1.0], [1.0, -1.0, 0.0]],
        output: array![[1.0, 1.0, 0.0], [1.0, 0.0, 1.0]],
        roundings: [6, 8],
    }
}

/// `m s m'`.
fn both(m: ArrayView2<f64>, square: &Array2<f64>) -> Array2<f64> {
    m.dot(square).dot(&m.t())
}

impl Scheme {
    /// With all that is added taken as it is, not as it cancels.
    fn magnitudes(&self) -> Self {
        let [input, weights, output] =
            [&self.input, &self.weights, &self.output].map(|matrix| matrix.mapv(f64::abs));
        Self { border: self.border, input, weights, output, roundings: self.roundings }
    }

    /// The square of inputs of the tile at (h, w), of one image and channel; zeros around the map.
    fn square(&self, x: &Array4<f64>, [h, w, n, c]: [usize; 4]) -> Array2<f64> {
        let side = self.input.ncols();
        Array2::from_shape_fn((side, side), |(i, j)| {
            let at = [h + i, w + j].map(|at| at.checked_sub(self.border));
            let [Some(h), Some(w)] = at else { return 0.0 };
            x.get([h, w, n, c]).copied().unwrap_or(0.0)
        })
    }

    /// Tiles of a map: the first row and column of their outputs.
    fn tiles(&self, x: &Array4<f64>) -> Vec<[usize; 2]> {
        let (height, width, ..) = x.dim();
        let side = self.output.nrows();
        let columns = || (0..width).step_by(side);
        (0..height).step_by(side).flat_map(|h| columns().map(move |w| [h, w])).collect()
    }

    /// `A'[ sum over c of (G w G') . (B' x B) ]A`.
    fn forward(&self, x: &Array4<f64>, w: &Array4<f64>) -> Array4<f64> {
        let (height, width, images, channels) = x.dim();
        let outputs = w.dim().3;
        let mut y = Array4::zeros((height, width, images, outputs));
        let filter =
            |c, k| both(self.weights.view(), &w.slice(ndarray::s![.., .., c, k]).to_owned());
        let filters: Vec<_> =
            (0..outputs * channels).map(|at| filter(at % channels, at / channels)).collect();
        for ([h, w], n) in
            self.tiles(x).into_iter().flat_map(|at| (0..images).map(move |n| (at, n)))
        {
            let input = |c| both(self.input.view(), &self.square(x, [h, w, n, c]));
            let inputs: Vec<_> = (0..channels).map(input).collect();
            for k in 0..outputs {
                let filters = &filters[k * channels..];
                let mut sum = Array2::zeros(inputs[0].dim());
                for (x, filter) in inputs.iter().zip(filters) {
                    sum += &(x * filter);
                }
                for ((i, j), value) in both(self.output.view(), &sum).indexed_iter() {
                    y[[h + i, w + j, n, k]] = *value;
                }
            }
        }
        y
    }

    /// `G'[ sum over tiles and images of (B' x B) . (A dy A') ]G`.
    fn backward_weight(&self, x: &Array4<f64>, dy: &Array4<f64>) -> Array4<f64> {
        let (.., images, channels) = x.dim();
        let (outputs, side) = (dy.dim().3, self.output.nrows());
        let mut sums =
            vec![Array2::zeros((self.input.nrows(), self.input.nrows())); channels * outputs];
        for ([h, w], n) in
            self.tiles(x).into_iter().flat_map(|at| (0..images).map(move |n| (at, n)))
        {
            let input = |c| both(self.input.view(), &self.square(x, [h, w, n, c]));
            let inputs: Vec<_> = (0..channels).map(input).collect();
            for k in 0..outputs {
                let square = Array2::from_shape_fn((side, side), |(i, j)| dy[[h + i, w + j, n, k]]);
                let gradient = both(self.output.t(), &square);
                for (c, x) in inputs.iter().enumerate() {
                    sums[c * outputs + k] += &(x * &gradient);
                }
            }
        }
        let squares: Vec<_> = sums.iter().map(|sum| both(self.weights.t(), sum)).collect();
        Array4::from_shape_fn((3, 3, channels, outputs), |(r, s, c, k)| {
            squares[c * outputs + k][[r, s]]
        })
    }
}

fn array4(shape: (usize, usize, usize, usize), values: &[f32]) -> Array4<f64> {
    ArrayView4::from_shape(shape, values).expect("shape").mapv(f64::from)
}

/// A layer with its operands, as the kernels and as the oracle read them.
struct Layer {
    conv: Conv,
    n: usize,
    x: Vec<f32>,
    w: Vec<f32>,
    dy: Vec<f32>,
    x4: Array4<f64>,
    w4: Array4<f64>,
    dy4: Array4<f64>,
}

impl Layer {
    fn new(side: usize, channels: [usize; 2], kernel: usize, n: usize) -> Self {
        let conv = Conv::new([side; 2], channels, kernel, 1, kernel / 2).expect("shape");
        let conv = conv.with_fast_algorithms();
        let [x, w, dy] = [(conv.input_len(n), 1), (conv.weights(), 2), (conv.output_len(n), 3)]
            .map(|(len, seed)| values(len, seed));
        let [c, k] = channels;
        let [x4, dy4] =
            [(&x, c), (&dy, k)].map(|(values, channels)| array4((side, side, n, channels), values));
        let w4 = filter(&conv, &w);
        Self { conv, n, x, w, dy, x4, w4, dy4 }
    }

    /// `y` and `dw` of a tier.
    fn run(&self, isa: Isa) -> [Array4<f64>; 2] {
        let (conv, n) = (&self.conv, self.n);
        let (pool, nan) = (Pool::new(2), f32::NAN);
        let exec = Exec::new(&pool, isa);
        let [mut y, mut sums, mut parts, mut dw] =
            [conv.output_len(n), conv.sums_len(n), conv.scratch_len(n), conv.weights()]
                .map(|len| vec![nan; len]);
        let results =
            Results { values: &mut y, sums: &mut sums, scratch: with(&mut [], &mut parts) };
        conv.forward(exec, &*self.x, &self.w, results, Epilogue::Keep);
        conv.backward_weight(exec, &self.x, &self.dy, &mut dw, &mut parts);
        [array4(self.dy4.dim(), &y), filter(conv, &dw)]
    }
}

/// The panels of a layer as `[KH][KW][Cin][Cout]`.
fn filter(conv: &Conv, panels: &[f32]) -> Array4<f64> {
    let shape = (conv.kernel, conv.kernel, conv.channels_in, conv.channels_out);
    Array4::from_shape_fn(shape, |(r, s, c, k)| f64::from(panels[conv.weight_index(k, c, r, s)]))
}

/// The vector tiers: the portable one computes the direct way.
fn vectors() -> Vec<Isa> {
    Isa::available().into_iter().filter(|&isa| isa != Isa::Portable).collect()
}

/// The largest share of its bound that an error has.
fn share(got: &Array4<f64>, want: &Array4<f64>, bound: &Array4<f64>) -> f64 {
    let errors = got.iter().zip(want).map(|(got, want)| (got - want).abs());
    errors.zip(bound).map(|(error, bound)| error / bound).fold(0.0, f64::max)
}

fn far(a: &Array4<f64>, b: &Array4<f64>) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

fn cases() -> [(Scheme, Layer); 3] {
    [
        (four(), Layer::new(8, [64, 128], 3, 2)),
        (four(), Layer::new(4, [192, 64], 3, 17)),
        (two(), Layer::new(2, [128, 64], 3, 19)),
    ]
}

#[test]
fn the_matrices_of_winograd_make_the_convolution() {
    for (scheme, Layer { x4, w4, dy4, .. }) in cases() {
        let y = scalar::conv_forward(x4.view(), w4.view(), WINDOW);
        assert!(far(&scheme.forward(&x4, &w4), &y) < 1e-11);
        let dw = scalar::conv_backward_weight(x4.view(), dy4.view(), 3, WINDOW);
        assert!(far(&scheme.backward_weight(&x4, &dy4), &dw) < 1e-11);
    }
}

#[test]
fn no_error_of_winograd_is_above_its_bound() {
    for (scheme, layer) in cases() {
        let Layer { conv, n, x4, w4, dy4, .. } = &layer;
        let [x, w, dy] = [x4, w4, dy4].map(|values| values.mapv(f64::abs));
        let magnitudes = scheme.magnitudes();
        let tiles = scheme.tiles(x4).len() * n;
        let bounds = [
            gamma(conv.channels_in + scheme.roundings[0]) * magnitudes.forward(&x, &w),
            gamma(tiles + scheme.roundings[1]) * magnitudes.backward_weight(&x, &dy),
        ];
        let exact = [
            scalar::conv_forward(x4.view(), w4.view(), WINDOW),
            scalar::conv_backward_weight(x4.view(), dy4.view(), 3, WINDOW),
        ];
        for isa in vectors() {
            for ((got, want), bound) in layer.run(isa).iter().zip(&exact).zip(&bounds) {
                let share = share(got, want, bound);
                // The transforms round: an error that is none would be no Winograd's.
                assert!(share > 1e-4 && share <= 1.0, "{}: {share} of the bound", isa.name());
            }
        }
    }
}

/// In the largest absolute values of the operands, as Higham (2002), theorem 23.2, has it.
#[test]
fn no_error_of_strassen_is_above_its_bound() {
    for (side, channels, n) in [(8, [256, 128], 16), (8, [1024, 128], 16)] {
        let layer = Layer::new(side, channels, 1, n);
        assert!(channels[1].is_multiple_of(2 * PANEL) && side * side * n >= 512);
        let Layer { x4, w4, dy4, .. } = &layer;
        let most = |values: &Array4<f64>| values.iter().fold(0.0, |most: f64, v| most.max(v.abs()));
        let window = Window { stride: 1, pad: 0 };
        let exact = [
            scalar::conv_forward(x4.view(), w4.view(), window),
            scalar::conv_backward_weight(x4.view(), dy4.view(), 1, window),
        ];
        let bound = |len: usize, a, b| 6.0 * len as f64 * gamma(len + 5) * most(a) * most(b);
        let bounds = [bound(channels[0], x4, w4), bound(side * side * n, x4, dy4)];
        for isa in vectors() {
            for ((got, want), bound) in layer.run(isa).iter().zip(&exact).zip(bounds) {
                let error = far(got, want);
                assert!(error > 0.0 && error <= bound, "{}: {error} above {bound}", isa.name());
            }
        }
    }
}
