//! The plain version of every operation: what the fast ones are checked against.
//!
//! Generic over the number, so that the same loops serve as `f32` oracle and, in `f64`, under finite
//! differences. Activations are `[H][W][N][C]`, filters `[KH][KW][Cin][Cout]`.

use ndarray::{Array1, Array2, Array4, ArrayView4, Axis, NdFloat};

/// Stride and zero padding of a convolution.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// Distance of neighbouring outputs in the input.
    pub stride: usize,
    /// Zeros around the image.
    pub pad: usize,
}

impl Window {
    fn output(self, side: usize, kernel: usize) -> usize {
        (side + 2 * self.pad - kernel) / self.stride + 1
    }

    /// Calls `visit(p, q, r, s, h, w)` for each tap inside the image.
    fn taps(
        self,
        [height, width]: [usize; 2],
        kernel: usize,
        mut visit: impl FnMut(usize, usize, usize, usize, usize, usize),
    ) {
        for p in 0..self.output(height, kernel) {
            for q in 0..self.output(width, kernel) {
                for r in 0..kernel {
                    for s in 0..kernel {
                        let (h, w) = (p * self.stride + r, q * self.stride + s);
                        if h >= self.pad && w >= self.pad {
                            let (h, w) = (h - self.pad, w - self.pad);
                            if h < height && w < width {
                                visit(p, q, r, s, h, w);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// `y = x * w`.
pub fn conv_forward<T: NdFloat>(x: ArrayView4<T>, w: ArrayView4<T>, window: Window) -> Array4<T> {
    let (height, width, n, channels) = x.dim();
    let (kernel, _, _, outputs) = w.dim();
    let shape = (window.output(height, kernel), window.output(width, kernel), n, outputs);
    let mut y = Array4::zeros(shape);
    window.taps([height, width], kernel, |p, q, r, s, h, v| {
        for i in 0..n {
            for c in 0..channels {
                for k in 0..outputs {
                    y[[p, q, i, k]] += x[[h, v, i, c]] * w[[r, s, c, k]];
                }
            }
        }
    });
    y
}

/// Gradient by the input, whose shape is `shape`.
pub fn conv_backward_input<T: NdFloat>(
    shape: [usize; 4],
    w: ArrayView4<T>,
    dy: ArrayView4<T>,
    window: Window,
) -> Array4<T> {
    let mut dx = Array4::zeros(shape);
    let [height, width, n, channels] = shape;
    window.taps([height, width], w.dim().0, |p, q, r, s, h, v| {
        for i in 0..n {
            for c in 0..channels {
                for k in 0..w.dim().3 {
                    dx[[h, v, i, c]] += dy[[p, q, i, k]] * w[[r, s, c, k]];
                }
            }
        }
    });
    dx
}

/// Gradient by a filter of side `kernel`.
pub fn conv_backward_weight<T: NdFloat>(
    x: ArrayView4<T>,
    dy: ArrayView4<T>,
    kernel: usize,
    window: Window,
) -> Array4<T> {
    let (height, width, n, channels) = x.dim();
    let outputs = dy.dim().3;
    let mut dw = Array4::zeros((kernel, kernel, channels, outputs));
    window.taps([height, width], kernel, |p, q, r, s, h, v| {
        for i in 0..n {
            for c in 0..channels {
                for k in 0..outputs {
                    dw[[r, s, c, k]] += x[[h, v, i, c]] * dy[[p, q, i, k]];
                }
            }
        }
    });
    dw
}

/// Mean and biased variance of each channel.
pub fn channel_statistics<T: NdFloat>(z: ArrayView4<T>) -> (Array1<T>, Array1<T>) {
    let channels = z.dim().3;
    let count = T::from(z.len() / channels).expect("a small number");
    let mut mean = Array1::zeros(channels);
    let mut variance = Array1::zeros(channels);
    for row in z.lanes(Axis(3)) {
        mean += &row;
    }
    mean.mapv_inplace(|sum: T| sum / count);
    for row in z.lanes(Axis(3)) {
        for c in 0..channels {
            variance[c] += (row[c] - mean[c]) * (row[c] - mean[c]);
        }
    }
    variance.mapv_inplace(|sum: T| sum / count);
    (mean, variance)
}

/// `(z - mean) / sqrt(variance + epsilon) * gamma + beta` with the batch's own statistics.
pub fn norm_forward<T: NdFloat>(
    z: ArrayView4<T>,
    gamma: &Array1<T>,
    beta: &Array1<T>,
    epsilon: T,
) -> Array4<T> {
    let (mean, variance) = channel_statistics(z);
    Array4::from_shape_fn(z.dim(), |(h, w, n, c)| {
        (z[[h, w, n, c]] - mean[c]) / (variance[c] + epsilon).sqrt() * gamma[c] + beta[c]
    })
}

/// Gradients by `z`, gamma and beta.
pub fn norm_backward<T: NdFloat>(
    z: ArrayView4<T>,
    dy: ArrayView4<T>,
    gamma: &Array1<T>,
    epsilon: T,
) -> (Array4<T>, Array1<T>, Array1<T>) {
    let (mean, variance) = channel_statistics(z);
    let channels = gamma.len();
    let count = T::from(z.len() / channels).expect("a small number");
    let inverse = variance.mapv(|v| T::one() / (v + epsilon).sqrt());
    let (mut dgamma, mut dbeta) = (Array1::zeros(channels), Array1::zeros(channels));
    for ((h, w, n, c), &dy) in dy.indexed_iter() {
        dgamma[c] += dy * (z[[h, w, n, c]] - mean[c]) * inverse[c];
        dbeta[c] += dy;
    }
    let dz = Array4::from_shape_fn(z.dim(), |(h, w, n, c)| {
        let centred = (z[[h, w, n, c]] - mean[c]) * inverse[c];
        gamma[c] * inverse[c] * (dy[[h, w, n, c]] - dbeta[c] / count - centred * dgamma[c] / count)
    });
    (dz, dgamma, dbeta)
}

/// Mean, and one over the deviation, of each image over its pixels and the channels of each of some groups.
fn group_statistics<T: NdFloat>(z: ArrayView4<T>, groups: usize, epsilon: T) -> [Array2<T>; 2] {
    let (height, width, images, channels) = z.dim();
    let of = channels / groups;
    let count = T::from(height * width * of).expect("a small number");
    let mut mean = Array2::zeros((images, groups));
    let mut variance = Array2::zeros((images, groups));
    for ((_, _, n, c), &z) in z.indexed_iter() {
        mean[[n, c / of]] += z / count;
    }
    for ((_, _, n, c), &z) in z.indexed_iter() {
        variance[[n, c / of]] += (z - mean[[n, c / of]]).powi(2) / count;
    }
    [mean, variance.mapv(|v: T| T::one() / (v + epsilon).sqrt())]
}

/// `(z - mean) / sqrt(variance + epsilon) * gamma + beta` with the statistics of each image's groups of channels.
pub fn group_forward<T: NdFloat>(
    z: ArrayView4<T>,
    groups: usize,
    gamma: &Array1<T>,
    beta: &Array1<T>,
    epsilon: T,
) -> Array4<T> {
    let [mean, inverse] = group_statistics(z, groups, epsilon);
    let of = gamma.len() / groups;
    Array4::from_shape_fn(z.dim(), |(h, w, n, c)| {
        let at = [n, c / of];
        (z[[h, w, n, c]] - mean[at]) * inverse[at] * gamma[c] + beta[c]
    })
}

/// Gradients by `z`, gamma and beta.
pub fn group_backward<T: NdFloat>(
    z: ArrayView4<T>,
    dy: ArrayView4<T>,
    groups: usize,
    gamma: &Array1<T>,
    epsilon: T,
) -> (Array4<T>, Array1<T>, Array1<T>) {
    let [mean, inverse] = group_statistics(z, groups, epsilon);
    let (height, width, images, channels) = z.dim();
    let of = channels / groups;
    let count = T::from(height * width * of).expect("a small number");
    let centred = |(h, w, n, c): (usize, usize, usize, usize)| {
        (z[[h, w, n, c]] - mean[[n, c / of]]) * inverse[[n, c / of]]
    };
    let (mut dgamma, mut dbeta) = (Array1::zeros(channels), Array1::zeros(channels));
    let mut along = Array2::zeros((images, groups));
    let mut across = Array2::zeros((images, groups));
    for (at, &dy) in dy.indexed_iter() {
        let (_, _, n, c) = at;
        dgamma[c] += dy * centred(at);
        dbeta[c] += dy;
        along[[n, c / of]] += gamma[c] * dy * centred(at) / count;
        across[[n, c / of]] += gamma[c] * dy / count;
    }
    let dz = Array4::from_shape_fn(z.dim(), |at| {
        let (h, w, n, c) = at;
        let group = [n, c / of];
        inverse[group] * (gamma[c] * dy[[h, w, n, c]] - across[group] - centred(at) * along[group])
    });
    (dz, dgamma, dbeta)
}

/// `max(0, x)`.
pub fn relu_forward<T: NdFloat>(x: ArrayView4<T>) -> Array4<T> {
    x.mapv(|x| if x > T::zero() { x } else { T::zero() })
}

/// The gradient where `x` is positive.
pub fn relu_backward<T: NdFloat>(x: ArrayView4<T>, dy: ArrayView4<T>) -> Array4<T> {
    Array4::from_shape_fn(x.dim(), |at| if x[at] > T::zero() { dy[at] } else { T::zero() })
}

/// Max pooling with a 3x3 window, stride 2, padding 1.
pub fn max_pool_forward<T: NdFloat>(x: ArrayView4<T>) -> Array4<T> {
    let (height, width, n, channels) = x.dim();
    let mut y =
        Array4::from_elem((height.div_ceil(2), width.div_ceil(2), n, channels), T::neg_infinity());
    Window { stride: 2, pad: 1 }.taps([height, width], 3, |p, q, _, _, h, w| {
        for i in 0..n {
            for c in 0..channels {
                if x[[h, w, i, c]] > y[[p, q, i, c]] {
                    y[[p, q, i, c]] = x[[h, w, i, c]];
                }
            }
        }
    });
    y
}

/// The gradient goes to the first of a window's largest values.
pub fn max_pool_backward<T: NdFloat>(x: ArrayView4<T>, dy: ArrayView4<T>) -> Array4<T> {
    let y = max_pool_forward(x);
    let mut taken = Array4::from_elem(dy.dim(), false);
    let mut dx = Array4::zeros(x.dim());
    let (height, width, n, channels) = x.dim();
    Window { stride: 2, pad: 1 }.taps([height, width], 3, |p, q, _, _, h, w| {
        for i in 0..n {
            for c in 0..channels {
                if !taken[[p, q, i, c]] && x[[h, w, i, c]] == y[[p, q, i, c]] {
                    taken[[p, q, i, c]] = true;
                    dx[[h, w, i, c]] += dy[[p, q, i, c]];
                }
            }
        }
    });
    dx
}

/// Mean over the pixels.
pub fn average_forward<T: NdFloat>(x: ArrayView4<T>) -> Array2<T> {
    let (height, width, n, channels) = x.dim();
    let count = T::from(height * width).expect("a small number");
    Array2::from_shape_fn((n, channels), |(i, c)| {
        let mut sum = T::zero();
        for h in 0..height {
            for w in 0..width {
                sum += x[[h, w, i, c]];
            }
        }
        sum / count
    })
}

/// `x . w' + b`.
pub fn linear_forward<T: NdFloat>(x: &Array2<T>, w: &Array2<T>, b: &Array1<T>) -> Array2<T> {
    Array2::from_shape_fn((x.nrows(), w.nrows()), |(n, k)| {
        let mut sum = b[k];
        for c in 0..x.ncols() {
            sum += x[[n, c]] * w[[k, c]];
        }
        sum
    })
}

/// Mean softmax cross-entropy and its gradient by the logits.
pub fn cross_entropy<T: NdFloat>(logits: &Array2<T>, labels: &[u8]) -> (T, Array2<T>) {
    let n = T::from(labels.len()).expect("a small number");
    let mut loss = T::zero();
    let mut gradient = Array2::zeros(logits.dim());
    for (i, &label) in labels.iter().enumerate() {
        let row = logits.row(i);
        let largest = row.iter().copied().fold(T::neg_infinity(), T::max);
        let mut sum = T::zero();
        for &x in row {
            sum += (x - largest).exp();
        }
        loss += sum.ln() - (row[usize::from(label)] - largest);
        for (k, &x) in row.iter().enumerate() {
            let target = if k == usize::from(label) { T::one() } else { T::zero() };
            gradient[[i, k]] = ((x - largest).exp() / sum - target) / n;
        }
    }
    (loss / n, gradient)
}
