//! Denormal numbers as zero.

/// Treats denormal numbers as zero on this thread while it runs kernels: they cost up to a hundred
/// times a normal operation, and gradients are full of them late in a training.
pub(crate) struct FlushDenormals {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    before: u32,
}

impl FlushDenormals {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    pub(crate) fn enter() -> Self {
        /// MXCSR bits 15 (flush to zero) and 6 (denormals are zero).
        const FLUSH: u32 = 0x8040;
        let mut before = 0_u32;
        // SAFETY: SSE is part of x86-64; stores the control register to a local.
        unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &raw mut before, options(nostack)) };
        let during = before | FLUSH;
        // SAFETY: only flush bits are added, and `drop` restores the register on this thread before
        // code outside the kernels runs.
        unsafe { std::arch::asm!("ldmxcsr [{}]", in(reg) &raw const during, options(nostack)) };
        Self { before }
    }

    #[cfg(any(not(target_arch = "x86_64"), miri))]
    pub(crate) fn enter() -> Self {
        Self {}
    }
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
impl Drop for FlushDenormals {
    fn drop(&mut self) {
        // SAFETY: restores what `enter` found.
        unsafe {
            std::arch::asm!("ldmxcsr [{}]", in(reg) &raw const self.before, options(nostack))
        };
    }
}
