//! One allocation for all buffers of a training step, on huge pages, touched once at the start.
//!
//! Memory that is mapped anew each step costs 10 to 60 % of it on virtual machines; an arena is mapped
//! once and lives as long as the model.

use std::ptr::NonNull;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

use crate::base::value::Value;

/// A zeroed, page-aligned buffer.
pub struct Arena<T: Value = f32> {
    start: NonNull<T>,
    len: usize,
}

/// Size of a huge page, in bytes.
const HUGE: usize = 2 << 20;

impl<T: Value> Arena<T> {
    /// Maps room for `len` values and touches every page.
    ///
    /// # Errors
    /// When the system has not that much memory.
    pub fn new(len: usize) -> std::io::Result<Self> {
        let bytes = Self::bytes(len);
        // SAFETY: a new private mapping at an address of the kernel's choice.
        let start = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )?
        };
        // Advice only: a kernel without huge pages refuses it, and the arena works all the same.
        // SAFETY: the range was mapped just above.
        let advise = || unsafe { madvise(start, bytes, Advice::LinuxHugepage) };
        // Miri maps memory and knows no advice.
        let _ = (!cfg!(miri)).then(advise);
        let start = NonNull::new(start.cast()).expect("mmap does not return null");
        let mut arena = Self { start, len };
        arena.as_mut_slice().fill(T::default());
        Ok(arena)
    }

    /// The whole buffer.
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: `start` points to `len` mapped, initialised values that this arena owns.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }

    /// The whole buffer, to read.
    pub fn as_slice(&self) -> &[T] {
        // SAFETY: as above, shared.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    fn bytes(len: usize) -> usize {
        (len.max(1) * size_of::<T>()).next_multiple_of(HUGE)
    }
}

impl<T: Value> Drop for Arena<T> {
    fn drop(&mut self) {
        // SAFETY: unmaps exactly what `new` mapped; no borrow outlives `self`.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), Self::bytes(self.len)) };
    }
}

// SAFETY: an arena owns its mapping like a boxed slice.
unsafe impl<T: Value> Send for Arena<T> {}
// SAFETY: as above; shared access only reads.
unsafe impl<T: Value> Sync for Arena<T> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arena_is_zeroed_and_writable_to_its_end() {
        /// Not a whole number of pages.
        const LEN: usize = if cfg!(miri) { 1_003 } else { 1_000_003 };
        let mut arena = Arena::<f32>::new(LEN).expect("4 MB");
        assert!(arena.as_slice().iter().all(|&value| value == 0.0));
        arena.as_mut_slice()[LEN - 1] = 1.0;
        assert_eq!(arena.as_slice()[LEN - 1], 1.0);
    }
}
