//! The arithmetic of ResNet training: convolution, normalisation, pooling, loss and update.
//!
//! # Notation
//!
//! An activation is one slice in the order `[H][W][N][C]`: pixel-major, batch next, channels
//! innermost. The block of one pixel is a matrix of `n` rows (images) and `c` columns (channels), so
//! every convolution pass is a sum of small matrix products over (pixel, tap) pairs: no im2col, no
//! copy for padding, no multiplication with the zeros of the border.
//!
//! ```text
//!   x [H][W][N][Cin]  --Conv::forward-->  y [P][Q][N][Cout]     y[o]  = sum x[i(o,t)] . w[t]
//!   dx                <-backward_input--  dy                    dx[i] = sum dy[o] . w[t]'
//!   dw                <-backward_weight-  x, dy                 dw[t] = sum x[i(o,t)]' . dy[o]
//! ```
//!
//! Weights are panels `[Cout/64][KH][KW][Cin][64]`: what the inner kernel reads is contiguous. A
//! convolution ends each tile of its result by [`Epilogue`], which takes the sums for normalisation or masks it
//! while it is in registers.
//!
//! | letter | meaning |
//! |---|---|
//! | n | images of a batch |
//! | h w, c | height and width, channels of the input |
//! | p q, k | height and width, channels of the output |
//! | t | tap, one position of the filter |
//!
//! # Rules
//!
//! * Which instructions run is [`Isa`], decided once and passed by value.
//! * Every output element is computed by one task in a fixed order, and every reduction is split by
//!   shape alone: results have the same bits for any number of threads, and in `f32` on both vector
//!   tiers.
//! * On the vector tiers no operation allocates; the caller brings all memory.
//! * Nothing here knows a file, a socket, a clock or a model.
//! * `unsafe` lives in [`x86_64`](self), the thread pool and the arena.

mod base;
mod conv;
mod gemm;
mod linear;
mod loss;
pub mod narrow;
mod norm;
#[allow(unsafe_code)]
mod parallel;
mod pooling;
pub mod scalar;
mod sgd;
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod x86_64;

pub use base::arena::Arena;
pub use base::exec::Exec;
pub use base::isa::{Isa, NoTiles};
pub use base::panel::PANEL;
pub use base::tile::{Extent, Target, sums_len};
pub use base::value::{Bf16, Value};
pub use conv::{Conv, Operand, Results, Scratch, ShapeError, panel_index};
pub use gemm::epilogue::{Epilogue, run_epilogue};
pub use gemm::product::Product;
pub use linear::Linear;
pub use loss::{smoothed_cross_entropy, softmax_cross_entropy};
pub use norm::elementwise::Rows;
pub use norm::folded::{BatchNorm, Folded, Identity, Mask, NormGradients, Normalised, Slope};
pub use norm::group::{Ending, GROUPS, GroupNorm};
pub use norm::{Statistics, Sums};
pub use parallel::{Pool, Retiring};
pub use pooling::{MaxPool, average_backward, average_forward};
pub use sgd::{Sgd, finish_momentum_sgd, momentum_sgd, moving_average};
