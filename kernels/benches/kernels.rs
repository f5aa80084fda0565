//! GFLOP/s of each convolution pass on the model's real shapes, per tier.
fn main() {}
