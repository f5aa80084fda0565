//! `Isa`: what this CPU can do, decided once and passed by value.
//!
//! The vector tiers are tokens that only [`Tier::all`] makes, where the CPU and the operating system have what they
//! stand for: who holds one may run its instructions. What is done with them is in `x86_64`, a file a token.
//!
//! Tiles multiply bfloat16 alone: what a tier with them does in `f32` are the instructions, and the bits, of the
//! vectors beside them.

use std::fmt;
#[cfg(target_arch = "x86_64")]
use std::sync::OnceLock;

use super::value::Value;

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
    /// AMX tiles of bfloat16, and the vectors beside them.
    Amx(Amx),
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

/// Tiles, and the proof of the vectors that do everything else.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Amx {
    pub(crate) avx2: Avx2,
    pub(crate) avx512: Option<Avx512>,
    pub(crate) tiles: Tiles,
}

/// What multiplies tiles.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tiles {
    /// The CPU, as it was found to: CPUID, XCR0, the kernel's permission and a test of some products.
    Instructions(TileProof),
    /// The plain model, on any CPU with AVX2.
    Model,
}

/// Proof that this process may run AMX-TILE and AMX-BF16, and that they compute what they should.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TileProof(());

/// Why tiles cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoTiles {
    /// CPUID has not both AMX-TILE and AMX-BF16.
    Cpu,
    /// No AVX-512 beside them.
    Vectors,
    /// The operating system does not save tiles: XCR0 without bits 17 and 18.
    System,
    /// The kernel answered `arch_prctl(ARCH_REQ_XCOMP_PERM)` with this error.
    Refused(i32),
    /// Products were not those of the model.
    Wrong,
}

impl fmt::Display for NoTiles {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Cpu => {
                write!(f, "this CPU has no AMX tiles for bfloat16 (CPUID amx_tile, amx_bf16)")
            }
            Self::Vectors => write!(f, "this CPU has AMX tiles, but no AVX-512 beside them"),
            Self::System => write!(
                f,
                "this CPU has AMX tiles, but the operating system does not enable them (XCR0 bits 17, 18; in a TD \
                 the XFAM must have them too)"
            ),
            Self::Refused(error) => {
                write!(f, "the kernel does not permit AMX tiles (arch_prctl gave error {error})")
            }
            Self::Wrong => write!(
                f,
                "AMX tiles of this CPU failed their test at start: some products are wrong; they are switched off"
            ),
        }
    }
}

impl std::error::Error for NoTiles {}

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

    /// The tier of that name, if this CPU has it; [`Isa::model`] has one too.
    pub fn named(name: &str) -> Option<Self> {
        Self::available().into_iter().chain(Self::model()).find(|isa| isa.name() == name)
    }

    /// The plain model of tiles, with the vectors of this CPU: some hundred times as slow as tiles, for tests.
    /// `None` without AVX2.
    pub fn model() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        return Tier::model().map(Self::Vector);
        #[cfg(not(target_arch = "x86_64"))]
        None
    }

    /// Whether this process can use AMX tiles. The first call asks the kernel for them and tests some products.
    ///
    /// # Errors
    /// Says why not.
    pub fn tiles_checked() -> Result<(), NoTiles> {
        #[cfg(target_arch = "x86_64")]
        return Tier::tiles().map(|_| ());
        #[cfg(not(target_arch = "x86_64"))]
        Err(NoTiles::Cpu)
    }

    /// The tier that products of a format run on: tiles have none of `f32`, those are their vectors'.
    #[must_use]
    pub fn of<T: Value>(self) -> Self {
        #[cfg(target_arch = "x86_64")]
        if let Self::Vector(Tier::Amx(amx)) = self
            && size_of::<T>() == size_of::<f32>()
        {
            return Self::Vector(amx.vectors());
        }
        self
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
        return self.tiles().is_some() || self.bf16().is_some();
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    /// Whether products of bfloat16 run on tiles, or on their model.
    pub fn has_tiles(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self.tiles().is_some();
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    #[cfg(target_arch = "x86_64")]
    pub(crate) fn bf16(self) -> Option<Avx512Bf16> {
        let is_there = match self {
            Self::Portable | Self::Vector(Tier::Avx2(_)) => false,
            Self::Vector(Tier::Avx512(_)) => true,
            Self::Vector(Tier::Amx(amx)) => amx.avx512.is_some(),
        };
        (is_there && is_x86_feature_detected!("avx512bf16")).then_some(Avx512Bf16(()))
    }

    #[cfg(target_arch = "x86_64")]
    pub(crate) fn tiles(self) -> Option<Amx> {
        match self {
            Self::Vector(Tier::Amx(amx)) => Some(amx),
            _ => None,
        }
    }

    /// Runs `rounds` of multiply-add (of `f32`, or of pairs of bfloat16) on registers alone and returns
    /// how many operations that was: what one core can do at most. `None` where the tier has no
    /// instruction for it.
    pub fn chain(self, rounds: usize, pairs: bool) -> Option<usize> {
        match self {
            Self::Portable => None,
            #[cfg(target_arch = "x86_64")]
            Self::Vector(Tier::Amx(amx)) if pairs => Some(amx.chain(rounds)),
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
        let avx2 = Avx2::find().map(Self::Avx2);
        let avx512 = Avx512::find().map(Self::Avx512);
        avx2.into_iter().chain(avx512).chain(Self::tiles().ok())
    }

    /// That of tiles. Whether there are any is found out once in a process, which has to ask for them.
    fn tiles() -> Result<Self, NoTiles> {
        static FOUND: OnceLock<Result<TileProof, NoTiles>> = OnceLock::new();
        let (Some(avx2), Some(avx512)) = (Avx2::find(), Avx512::find()) else {
            return Err(NoTiles::check_cpu().err().unwrap_or(NoTiles::Vectors));
        };
        let found =
            FOUND.get_or_init(|| NoTiles::check_all(Self::Avx512(avx512)).map(|()| TileProof(())));
        let tiles = Tiles::Instructions((*found)?);
        Ok(Self::Amx(Amx { avx2, avx512: Some(avx512), tiles }))
    }

    fn model() -> Option<Self> {
        let (avx2, avx512) = (Avx2::find()?, Avx512::find());
        Some(Self::Amx(Amx { avx2, avx512, tiles: Tiles::Model }))
    }

    fn name(self) -> &'static str {
        match self {
            Self::Avx2(_) => "avx2",
            Self::Avx512(_) => "avx512",
            Self::Amx(Amx { tiles: Tiles::Instructions(_), .. }) => "amx",
            Self::Amx(Amx { tiles: Tiles::Model, .. }) => "amx-model",
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl Avx2 {
    fn find() -> Option<Self> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")).then_some(Self(()))
    }
}

#[cfg(target_arch = "x86_64")]
impl Avx512 {
    fn find() -> Option<Self> {
        let has_all = Avx2::find().is_some()
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        has_all.then_some(Self(()))
    }
}

#[cfg(target_arch = "x86_64")]
impl Amx {
    /// The tier of its vectors.
    pub(crate) fn vectors(self) -> Tier {
        self.avx512.map_or(Tier::Avx2(self.avx2), Tier::Avx512)
    }
}
