//! The vector kernels: register tiles over raw pointers, behind tokens that prove the instructions.
//!
//! What a tier computes is a [`Kernel`](kernel::Kernel), written once: its body is generic over the arithmetic, whose
//! methods carry no target feature and are always inlined. Each token's file has the one function that does
//! (`#[target_feature]`), so one source gives every tier and format. `unsafe` blocks say which of these they need:
//!
//! * (T) the token exists only if the CPU has the features its entry enables;
//! * (B) all rows, columns and strides were asserted to lie inside the slices when the kernel was made.
//!
//! Nothing below names this folder: `gemm`, `norm` and `winograd` call methods of the tokens in `base::isa`, whose
//! bodies are here.

mod amx;
mod avx2;
mod avx512;
mod avx512_bf16;
mod epilogue;
mod kernel;
mod product;
mod rows;
mod strassen;
mod stream;
mod transform;
mod transpose;
mod transposed;
mod vector;

use crate::base::isa::{Avx512Bf16, Tier};
use kernel::{Body, Chain, Enter, Kernel};

impl Enter<f32> for Tier {
    /// The one place that tells the tiers apart.
    #[inline]
    fn enter<K: Kernel<f32>>(self, kernel: K) -> K::Output {
        match self {
            Self::Avx2(token) => token.enter(kernel),
            Self::Avx512(token) => token.enter(kernel),
            Self::Amx(token) => token.enter(kernel),
        }
    }
}

impl Tier {
    /// See [`crate::base::isa::Isa::run`].
    #[inline]
    pub(crate) fn run<R>(self, body: impl FnOnce() -> R) -> R {
        self.enter(Body(body))
    }

    /// See [`crate::base::isa::Isa::chain`].
    pub(crate) fn chain(self, rounds: usize) -> usize {
        self.enter(Chain { rounds, word: 0.5 })
    }
}

impl Avx512Bf16 {
    /// See [`crate::base::isa::Isa::chain`].
    pub(crate) fn chain(self, rounds: usize) -> usize {
        // Two values a word: twice the operations of a vector.
        2 * self.enter(Chain { rounds, word: 0x3F00_3F00_u32 })
    }
}
