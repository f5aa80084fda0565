//! Whether tiles can be used: what CPUID and XCR0 say, the kernel's permission, and a test of some products.

use std::arch::asm;
use std::arch::x86_64::{__cpuid_count, __get_cpuid_max};

use super::instructions::Instructions;
use super::model::Model;
use super::unit::{BLOCK, Shape, Unit, VALUES};
use crate::base::isa::{NoTiles, Tier};
use crate::base::panel::Strided;
use crate::base::value::{Bf16, Value};

/// CPUID, leaf 7, EDX.
const CPU_BF16: u32 = 1 << 22;
const CPU_TILE: u32 = 1 << 24;
/// XCR0: configuration and data of tiles.
const SYSTEM: u64 = 1 << 17 | 1 << 18;
/// CPUID, leaf 1, ECX: XGETBV may be used.
const CPU_OSXSAVE: u32 = 1 << 27;
/// Linux on x86-64: `arch_prctl`, and its request for a state that grows with its use (its
/// Documentation/arch/x86/xstate.rst).
const ARCH_PRCTL: usize = 158;
const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
const XFEATURE_XTILEDATA: usize = 18;

impl NoTiles {
    /// Whether the CPU has tiles of bfloat16.
    pub(crate) fn check_cpu() -> Result<(), Self> {
        let has_both = || {
            let (leaf_max, _) = __get_cpuid_max(0);
            let bits = CPU_BF16 | CPU_TILE;
            leaf_max >= 7 && __cpuid_count(7, 0).edx & bits == bits
        };
        if has_both() { Ok(()) } else { Err(Self::Cpu) }
    }

    /// All that stands between a CPU with AVX-512 and its tiles, in the order in which it may be asked for.
    pub(crate) fn check_all(vectors: Tier) -> Result<(), Self> {
        Self::check_cpu()?;
        if __cpuid_count(1, 0).ecx & CPU_OSXSAVE == 0 || xcr0() & SYSTEM != SYSTEM {
            return Err(Self::System);
        }
        // Of the process, and of threads started later; a second time it does nothing.
        match request_permission() {
            0 => {}
            error => return Err(Self::Refused(error)),
        }
        // SAFETY: (A), as found just now.
        let mut tiles = unsafe { Instructions::unproven() };
        if is_right(&mut tiles, &mut Model::new(vectors)) { Ok(()) } else { Err(Self::Wrong) }
    }
}

fn xcr0() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: the operating system has enabled XGETBV, which reads a register.
    unsafe {
        asm!(
            "xgetbv",
            in("ecx") 0, out("eax") low, out("edx") high,
            options(nostack, nomem, preserves_flags),
        );
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Zero, or the kernel's error.
fn request_permission() -> i32 {
    let answer: isize;
    // SAFETY: a system call that takes numbers and touches no memory of this process; it clobbers these registers.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => answer,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    -answer as i32
}

/// Whether tiles compute what the model does, to the bit: full ones and short ones, sums that begin and that go on,
/// and operands whose products are numbers, denormals, or less.
pub(super) fn is_right(tiles: &mut impl Unit, model: &mut impl Unit) -> bool {
    let mut state = 0x9E37_79B9_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 16) as u16
    };
    // Exponents from those of denormals on; 127 is that of 1.
    let cases = [(32, 16, 140), (32, 9, 70), (17, 16, 66), (16, 1, 140), (5, 3, 72)];
    cases.into_iter().all(|(rows, pairs, exponents)| {
        let mut operand = || {
            [(); BLOCK * VALUES].map(|()| {
                let bits = next();
                Bf16(bits & 0x807F | ((bits >> 7) % exponents) << 7)
            })
        };
        let (left, right, more) = (operand(), operand(), operand());
        let before = more.map(Value::widen);
        let shape = Shape::new(rows, pairs);
        [None, Some(&before)].into_iter().all(|before| {
            let got = products(tiles, shape, &left, &right, before);
            let want = products(model, shape, &left, &right, before);
            got.map(f32::to_bits) == want.map(f32::to_bits)
        })
    })
}

type Operand = [Bf16; BLOCK * VALUES];

/// Products of a block, twice, so that sums go on in the tiles.
fn products(
    unit: &mut impl Unit,
    shape: Shape,
    left: &Operand,
    right: &Operand,
    before: Option<&[f32; BLOCK * BLOCK]>,
) -> [f32; BLOCK * BLOCK] {
    let mut sums = [0.0; BLOCK * BLOCK];
    unit.configure(shape);
    unit.begin(before.map(|before| (&before[..], BLOCK)));
    for _ in 0..2 {
        unit.add_products(
            Strided { data: left, stride: VALUES },
            Strided { data: right, stride: 2 * VALUES },
        );
    }
    unit.end(&mut sums, BLOCK);
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::isa::Isa;

    fn vectors() -> Tier {
        Isa::model().and_then(Isa::tiles).expect("AVX2").vectors()
    }

    /// Products as Intel's pseudo-code has them, in exact arithmetic: a sum of products of bfloat16 fits an `i128`
    /// of fixed point where exponents differ little, and is rounded once a step.
    #[test]
    fn the_model_is_fused_even_and_odd_apart_and_flushes() {
        let mut model = Model::new(vectors());
        let bf16 = |value: f32| Bf16::narrow(value);
        let mut left = [Bf16(0); BLOCK * VALUES];
        let mut right = [Bf16(0); BLOCK * VALUES];
        let mut set = |pair: usize, [a, b]: [[f32; 2]; 2]| {
            for half in 0..2 {
                left[2 * pair + half] = bf16(a[half]);
                right[pair * 2 * VALUES + half] = bf16(b[half]);
            }
        };
        let one = 1.0 + 1.0 / 128.0;
        // 1.0078125 squared needs 15 bits; less 1 it is exact only if the product is not rounded.
        set(0, [[-1.0, 0.0], [1.0, 0.0]]);
        set(1, [[one, 0.0], [one, 0.0]]);
        // Odd: 2^24, then 1 twice, each lost; summed with the even ones first they would not be.
        set(2, [[0.0, 4096.0], [0.0, 4096.0]]);
        set(3, [[0.0, 1.0], [0.0, 1.0]]);
        set(4, [[0.0, 1.0], [0.0, 1.0]]);
        let run = |model: &mut Model, left: &Operand, right: &Operand| {
            let shape = Shape::new(1, 5);
            model.configure(shape);
            model.begin(None);
            model.add_products(
                Strided { data: left, stride: VALUES },
                Strided { data: right, stride: 2 * VALUES },
            );
            let mut sums = [f32::NAN; BLOCK * BLOCK];
            model.end(&mut sums, BLOCK);
            sums[0]
        };
        let even = one * one - 1.0;
        assert_eq!(run(&mut model, &left, &right), 16_777_216.0 + even);
        // A denormal operand is zero whatever it meets, and so is a product that would be one.
        let mut tiny = [Bf16(0); BLOCK * VALUES];
        (tiny[0], tiny[1]) = (Bf16(0x0001), Bf16(0x0080));
        let mut factor = [Bf16(0); BLOCK * VALUES];
        (factor[0], factor[1]) = (bf16(3.0e38), bf16(0.5));
        assert_eq!(run(&mut model, &tiny, &factor).to_bits(), 0);
        // Twice the least normal number is one.
        factor[1] = bf16(2.0);
        assert_eq!(run(&mut model, &tiny, &factor), 2.0 * f32::MIN_POSITIVE);
    }

    #[test]
    fn the_start_up_test_passes_the_model_and_finds_what_differs_from_it() {
        /// A unit with one thing wrong.
        struct Broken(Model, fn(&mut Model));

        impl Unit for Broken {
            fn configure(&mut self, shape: Shape) {
                self.0.configure(shape);
            }
            fn shape(&self) -> Shape {
                self.0.shape()
            }
            fn zero<const I: usize, const J: usize>(&mut self) {
                self.0.zero::<I, J>();
            }
            fn load<const I: usize, const J: usize>(&mut self, sums: &[f32], stride: usize) {
                self.0.load::<I, J>(sums, stride);
            }
            fn load_left<const I: usize>(&mut self, rows: &[Bf16], stride: usize) {
                self.0.load_left::<I>(rows, stride);
            }
            fn load_right<const J: usize>(&mut self, pairs: &[Bf16], stride: usize) {
                self.0.load_right::<J>(pairs, stride);
            }
            fn multiply<const I: usize, const J: usize>(&mut self) {
                self.0.multiply::<I, J>();
                self.1(&mut self.0);
            }
            fn store<const I: usize, const J: usize>(&self, sums: &mut [f32], stride: usize) {
                self.0.store::<I, J>(sums, stride);
            }
        }

        let new = || Model::new(vectors());
        let passes = |wrong: fn(&mut Model)| is_right(&mut Broken(new(), wrong), &mut new());
        assert!(passes(|_| {}));
        let last_bit = |model: &mut Model| {
            let sum = model.sum_mut([1, 1], [0, 15]);
            *sum = f32::from_bits(sum.to_bits() ^ 1);
        };
        assert!(!passes(last_bit));
        assert!(!passes(|model| *model.sum_mut([0, 0], [4, 0]) += 1.0));
    }

    /// The instructions of this CPU, where it has them, and what is said where it has not.
    #[test]
    fn the_instructions_are_the_model_or_it_is_said_why_there_are_none() {
        match Isa::tiles_checked() {
            Ok(()) => println!("AMX: the CPU's instructions, checked against the model"),
            Err(why) => {
                println!("AMX: the model only: {why}");
                assert!(why != NoTiles::Wrong, "{why}");
                assert!(Isa::named("amx").is_none());
                assert_eq!(why == NoTiles::Cpu, NoTiles::check_cpu().is_err());
            }
        }
    }
}
