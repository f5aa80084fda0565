//! `Kernel`: work that is written once and compiled for every tier, and the arithmetic that a tier brings.

use std::marker::PhantomData;

use super::vector::Vector;
use crate::base::value::Value;

/// Work for one core whose operands were checked when it was made: (B) holds for a value of such a type.
///
/// No closure may stand between an entry and the intrinsics of a body: it would be compiled without the features,
/// one call an instruction.
pub(super) trait Kernel<W> {
    type Output;

    /// Over register tiles of `COLUMNS` vectors (64 columns of a panel in AVX-512's 32 registers, 16 in the 16 of
    /// AVX2), and of `ROWS` rows by two vectors where `a` is read transposed: then each word of `a` is used by few
    /// columns, so that more rows are needed to hide the latency of multiply-add.
    ///
    /// # Safety
    /// (T) for `A`.
    unsafe fn run<A: Arithmetic<Word = W>, const COLUMNS: usize, const ROWS: usize>(
        self,
    ) -> Self::Output;
}

/// A token that kernels over words are entered by: the function that carries the features.
pub(super) trait Enter<W>: Copy {
    fn enter<K: Kernel<W>>(self, kernel: K) -> K::Output;
}

/// Vectors of `f32` sums, and the words that are multiplied into them.
pub(super) trait Arithmetic {
    type Lanes: Vector;
    /// What is multiplied at a time: an `f32`, or two neighbouring bfloat16.
    type Word: Copy;
    /// Sums of a vector.
    const COUNT: usize = Self::Lanes::COUNT;

    fn splat(word: Self::Word) -> Self::Lanes;
    /// # Safety
    /// `COUNT` words are readable at `source`.
    unsafe fn load(source: *const Self::Word) -> Self::Lanes;
    /// `sum + words . factor`.
    fn multiply_add(words: Self::Lanes, factor: Self::Lanes, sum: Self::Lanes) -> Self::Lanes;
    /// Rounds sums to what results are stored as.
    ///
    /// # Safety
    /// `COUNT` values are writable at `target`.
    unsafe fn store<T: Value>(sums: Self::Lanes, target: *mut T);
    /// The same past the caches.
    ///
    /// # Safety
    /// `NV` times `COUNT` values are writable at `target`, which is on a boundary of as many bytes as they
    /// have, at most of a cache line.
    unsafe fn stream<T: Value, const NV: usize>(sums: &[Self::Lanes; NV], target: *mut T);
}

/// Products of `f32`.
pub(super) struct Single<V>(PhantomData<V>);

impl<V: Vector> Arithmetic for Single<V> {
    type Lanes = V;
    type Word = f32;

    #[inline(always)]
    fn splat(word: f32) -> V {
        V::splat(word)
    }

    #[inline(always)]
    unsafe fn load(source: *const f32) -> V {
        // SAFETY: passed on.
        unsafe { V::load(source) }
    }

    #[inline(always)]
    fn multiply_add(words: V, factor: V, sum: V) -> V {
        words.multiply_add(factor, sum)
    }

    #[inline(always)]
    unsafe fn store<T: Value>(sums: V, target: *mut T) {
        // SAFETY: passed on.
        unsafe { sums.store(target) }
    }

    #[inline(always)]
    unsafe fn stream<T: Value, const NV: usize>(sums: &[V; NV], target: *mut T) {
        for j in 0..NV {
            // SAFETY: passed on.
            unsafe { sums[j].stream(target.add(j * V::COUNT)) };
        }
    }
}

/// Plain Rust, vectorised by the compiler.
pub(super) struct Body<F>(pub(super) F);

impl<W, R, F: FnOnce() -> R> Kernel<W> for Body<F> {
    type Output = R;

    #[inline(always)]
    unsafe fn run<A: Arithmetic<Word = W>, const COLUMNS: usize, const ROWS: usize>(self) -> R {
        (self.0)()
    }
}

/// `rounds` of multiply-add on as many registers as a tile has, and nothing else: the CPU's peak.
pub(super) struct Chain<W> {
    pub(super) rounds: usize,
    pub(super) word: W,
}

/// Sums that do not wait for one another: more than latency (4 cycles) times multiply-adds a cycle (2).
const CHAINS: usize = 12;

impl<W: Copy> Kernel<W> for Chain<W> {
    /// How many operations on `f32` or on pairs that was.
    type Output = usize;

    #[inline(always)]
    unsafe fn run<A: Arithmetic<Word = W>, const COLUMNS: usize, const ROWS: usize>(self) -> usize {
        let mut sum = [A::Lanes::zero(); CHAINS];
        let (factor, other) = (A::splat(std::hint::black_box(self.word)), A::splat(self.word));
        for _ in 0..self.rounds {
            for sum in &mut sum {
                *sum = A::multiply_add(other, factor, *sum);
            }
        }
        std::hint::black_box(&sum);
        2 * A::COUNT * self.rounds * CHAINS
    }
}
