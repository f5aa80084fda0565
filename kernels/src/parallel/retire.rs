//! A buffer that is retired from its end: who writes it keeps what lies before, and others read the rest.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

/// What is left of a buffer, from its start on.
///
/// ```
/// let mut gradient = [0.0; 4];
/// let mut left = kernels::Retiring::new(&mut gradient);
/// left[3] = 1.5;
/// let last = left.retire(3); // may be read by others from here on,
/// left[2] = 2.5; // while what lies before is still written
/// assert_eq!((last, left.len()), (&[1.5][..], 3));
/// ```
pub struct Retiring<'a, T> {
    start: *mut T,
    len: usize,
    left: usize,
    buffer: PhantomData<&'a mut [T]>,
}

impl<'a, T> Retiring<'a, T> {
    /// All of it.
    pub fn new(buffer: &'a mut [T]) -> Self {
        let (start, len) = (buffer.as_mut_ptr(), buffer.len());
        Self { start, len, left: len, buffer: PhantomData }
    }

    /// Retires all from `from` on, and returns that with what was retired before.
    ///
    /// # Panics
    /// If it was retired already.
    pub fn retire(&mut self, from: usize) -> &'a [T] {
        assert!(from <= self.left, "{from} is retired already");
        self.left = from;
        // SAFETY: the buffer is borrowed for 'a and has these elements, which nobody writes any more: `deref_mut`
        // lends those before `left` alone, and `left` never grows.
        unsafe { std::slice::from_raw_parts(self.start.add(from), self.len - from) }
    }
}

impl<T> Deref for Retiring<'_, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: elements of the buffer, which `deref_mut` lends only while this is not.
        unsafe { std::slice::from_raw_parts(self.start, self.left) }
    }
}

impl<T> DerefMut for Retiring<'_, T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: elements of the buffer, which is borrowed mutably; none of them was retired.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.left) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_retired_is_read_while_the_rest_is_written() {
        let mut buffer = [1, 2, 3, 4, 5];
        let mut left = Retiring::new(&mut buffer);
        left[4] = 50;
        let last = left.retire(3);
        left[2] = 30;
        let more = left.retire(2);
        left.fill(0);
        assert_eq!((last, more), (&[4, 50][..], &[30, 4, 50][..]));
        assert_eq!((left.len(), left.retire(2).len(), left.retire(0).len()), (2, 3, 5));
        assert!(left.is_empty());
    }

    #[test]
    #[should_panic(expected = "retired already")]
    fn what_was_retired_cannot_be_retired_again() {
        let mut buffer = [0; 3];
        let mut left = Retiring::new(&mut buffer);
        left.retire(1);
        left.retire(2);
    }
}
