//! A buffer that is given up from its end: who writes it keeps what lies before, and others read the rest.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

/// What is left of a buffer, from its start on.
pub struct Receding<'a, T> {
    start: *mut T,
    len: usize,
    left: usize,
    buffer: PhantomData<&'a mut [T]>,
}

impl<'a, T> Receding<'a, T> {
    /// All of it.
    pub fn new(buffer: &'a mut [T]) -> Self {
        let (start, len) = (buffer.as_mut_ptr(), buffer.len());
        Self { start, len, left: len, buffer: PhantomData }
    }

    /// Gives up all from `from` on, and returns that with what was given up before.
    ///
    /// # Panics
    /// If it was given up already.
    pub fn give_up(&mut self, from: usize) -> &'a [T] {
        assert!(from <= self.left, "{from} is given up already");
        self.left = from;
        // SAFETY: the buffer is borrowed for 'a and has these elements, which nobody writes any more: `deref_mut`
        // lends those before `left` alone, and `left` never grows.
        unsafe { std::slice::from_raw_parts(self.start.add(from), self.len - from) }
    }
}

impl<T> Deref for Receding<'_, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: elements of the buffer, which `deref_mut` lends only while this is not.
        unsafe { std::slice::from_raw_parts(self.start, self.left) }
    }
}

impl<T> DerefMut for Receding<'_, T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: elements of the buffer, which is borrowed mutably; none of them was given up.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.left) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_up_is_read_while_the_rest_is_written() {
        let mut buffer = [1, 2, 3, 4, 5];
        let mut left = Receding::new(&mut buffer);
        left[4] = 50;
        let last = left.give_up(3);
        left[2] = 30;
        let more = left.give_up(2);
        left.fill(0);
        assert_eq!((last, more), (&[4, 50][..], &[30, 4, 50][..]));
        assert_eq!((left.len(), left.give_up(2).len(), left.give_up(0).len()), (2, 3, 5));
        assert!(left.is_empty());
    }

    #[test]
    #[should_panic(expected = "given up already")]
    fn what_was_given_up_cannot_be_given_up_again() {
        let mut buffer = [0; 3];
        let mut left = Receding::new(&mut buffer);
        left.give_up(1);
        left.give_up(2);
    }
}
