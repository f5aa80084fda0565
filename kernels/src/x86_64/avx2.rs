//! The entry of AVX2 and FMA.

use std::arch::x86_64::__m256;

use super::kernel::{Enter, Kernel, Single};
use crate::base::isa::Avx2;

impl Enter<f32> for Avx2 {
    #[inline]
    fn enter<K: Kernel<f32>>(self, kernel: K) -> K::Output {
        // SAFETY: (T).
        unsafe { enter(kernel) }
    }
}

#[target_feature(enable = "avx2,fma")]
fn enter<K: Kernel<f32>>(kernel: K) -> K::Output {
    // SAFETY: the features are enabled here.
    unsafe { kernel.run::<Single<__m256>, 2, 6>() }
}
