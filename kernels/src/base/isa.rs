//! `Isa`: what this CPU can do, decided once and passed by value.

#[cfg(target_arch = "x86_64")]
use crate::x86_64::{Avx2, Avx512, Avx512Bf16};

/// An instruction-set tier. The vector tiers hold a proof that this CPU has the instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// Any x86-64: ndarray and matrixmultiply, and loops that the compiler vectorises.
    Portable,
    /// AVX2 and FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    /// AVX-512 F, BW, DQ and VL.
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
}

impl Isa {
    /// The best tier of this CPU.
    pub fn detect() -> Self {
        Self::available().pop().unwrap_or(Self::Portable)
    }

    /// Every tier of this CPU, the plainest first.
    pub fn available() -> Vec<Self> {
        let mut tiers = vec![Self::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            tiers.extend(Avx2::detect().map(Self::Avx2));
            tiers.extend(Avx512::detect().map(Self::Avx512));
        }
        tiers
    }

    /// The tier of that name, if this CPU has it.
    pub fn named(name: &str) -> Option<Self> {
        Self::available().into_iter().find(|isa| isa.name() == name)
    }

    /// The name used on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => "avx512",
        }
    }

    /// Whether products of bfloat16 run in hardware.
    pub fn has_bf16(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self.bf16().is_some();
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    #[cfg(target_arch = "x86_64")]
    pub(crate) fn bf16(self) -> Option<Avx512Bf16> {
        if let Self::Avx512(token) = self { Avx512Bf16::detect(token) } else { None }
    }

    /// Runs `rounds` of multiply-add (of `f32`, or of pairs of bfloat16) on registers alone and returns
    /// how many operations that was: what one core can do at most. `None` where the tier has no
    /// instruction for it.
    pub fn chain(self, rounds: usize, pairs: bool) -> Option<usize> {
        match self {
            Self::Portable => None,
            #[cfg(target_arch = "x86_64")]
            _ if pairs => self.bf16().map(|token| token.chain(rounds)),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(token) => Some(token.chain(rounds)),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(token) => Some(token.chain(rounds)),
        }
    }

    /// Runs an elementwise loop compiled for this tier.
    ///
    /// The body is plain Rust without fused multiply-add, so its results have the same bits on every
    /// tier; it must be inlined (`#[inline(always)]`) to be vectorised for the tier.
    #[inline(always)]
    pub(crate) fn run<R>(self, body: impl FnOnce() -> R) -> R {
        match self {
            Self::Portable => body(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(token) => token.run(body),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(token) => token.run(body),
        }
    }
}
