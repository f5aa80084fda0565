//! The disk: LUKS2 headers, keyslots and dm-crypt devices.
//!
//! ```text
//!   file or device --header--> [ binary header | JSON | keyslots ] --passphrase--> volume key
//!                  --segment-> sectors, AES-XTS --> dm-crypt device, or plaintext in this process
//! ```
//!
//! Nothing here knows of training. What is read from a volume is hostile until its digest matches: it is
//! read once, parsed into types with a bound on every length, and checked against an allow-list.
//! The system calls of device-mapper and loop devices will be the only unsafe code.

#![forbid(unsafe_code)]

/// A number of 512-byte sectors, the unit of offsets and lengths in LUKS2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sectors(pub u64);

impl Sectors {
    /// Bytes of a sector.
    pub const LEN: u64 = 512;

    /// The same length in bytes, unless that does not fit.
    pub fn bytes(self) -> Option<u64> {
        self.0.checked_mul(Self::LEN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_that_overflow_are_noticed() {
        assert_eq!(Sectors(8).bytes(), Some(4096));
        assert_eq!(Sectors(u64::MAX / 256).bytes(), None);
    }
}
