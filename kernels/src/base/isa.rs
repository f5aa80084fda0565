//! `Isa`: what this CPU can do, decided once and passed by value.
//!
//! The vector tiers are tokens that only [`Tier::all`] makes, where the CPU and the operating system have what they
//! stand for: who holds one may run its instructions. What is done with them is in `x86_64`, a file a token.

/// An instruction-set tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// Any CPU: ndarray and matrixmultiply, and loops that the compiler vectorises.
    Portable,
    /// One with vectors.
    #[cfg(target_arch = "x86_64")]
    Vector(Tier),
}

/// A vector tier, with the proof that this CPU has the instructions.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// AVX2 and FMA.
    Avx2(Avx2),
    /// AVX-512 F, BW, DQ and VL.
    Avx512(Avx512),
}

/// Proof that this CPU has AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Avx2(());

/// Proof that this CPU has AVX-512 (F, BW, DQ, VL), AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Avx512(());

/// Proof that this CPU has AVX512-BF16 besides AVX-512.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Avx512Bf16(());

impl Isa {
    /// The best tier of this CPU.
    pub fn detect() -> Self {
        Self::available().pop().unwrap_or(Self::Portable)
    }

    /// Every tier of this CPU, the plainest first.
    pub fn available() -> Vec<Self> {
        let mut tiers = vec![Self::Portable];
        #[cfg(target_arch = "x86_64")]
        tiers.extend(Tier::all().map(Self::Vector));
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
            Self::Vector(tier) => tier.name(),
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
        let is_there = matches!(self, Self::Vector(Tier::Avx512(_)));
        (is_there && is_x86_feature_detected!("avx512bf16")).then_some(Avx512Bf16(()))
    }

    /// Runs `rounds` of multiply-add (of `f32`, or of pairs of bfloat16) on registers alone and returns
    /// how many operations that was: what one core can do at most. `None` where the tier has no
    /// instruction for it.
    pub fn chain(self, rounds: usize, pairs: bool) -> Option<usize> {
        match self {
            Self::Portable => None,
            #[cfg(target_arch = "x86_64")]
            Self::Vector(_) if pairs => self.bf16().map(|token| token.chain(rounds)),
            #[cfg(target_arch = "x86_64")]
            Self::Vector(tier) => Some(tier.chain(rounds)),
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
            Self::Vector(tier) => tier.run(body),
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl Tier {
    /// Those of this CPU, the narrower first.
    fn all() -> impl Iterator<Item = Self> {
        let has_avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        let has_avx512 = has_avx2
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        let avx2 = has_avx2.then_some(Self::Avx2(Avx2(())));
        let avx512 = has_avx512.then_some(Self::Avx512(Avx512(())));
        avx2.into_iter().chain(avx512)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Avx2(_) => "avx2",
            Self::Avx512(_) => "avx512",
        }
    }
}
