//! The entry of AVX-512 (F, BW, DQ, VL).

use std::arch::x86_64::__m512;

use super::kernel::{Enter, Kernel, Single};
use crate::base::isa::Avx512;

impl Enter<f32> for Avx512 {
    #[inline]
    fn enter<K: Kernel<f32>>(self, kernel: K) -> K::Output {
        // SAFETY: (T).
        unsafe { enter(kernel) }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
fn enter<K: Kernel<f32>>(kernel: K) -> K::Output {
    // SAFETY: the features are enabled here.
    unsafe { kernel.run::<Single<__m512>, 4, 12>() }
}
