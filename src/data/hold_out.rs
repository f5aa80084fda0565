//! `HoldOut`: which pictures are kept to test with, where nobody has parted them, as a function of their content alone.
//!
//! A picture that is renamed, copied or joined by others stays on its side: nothing that was learned from is tested
//! with, in this job or the next.

use std::fmt;
use std::str::FromStr;

use ring::digest::{SHA256, digest};

/// The part of all pictures that is kept to test with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HoldOut(f64);

impl HoldOut {
    /// Whether a file of this content is kept to test with.
    pub(super) fn holds(self, content: &[u8]) -> bool {
        let hash = digest(&SHA256, content);
        let first = hash.as_ref().first_chunk().copied().expect("SHA-256 has 32 bytes");
        (u64::from_le_bytes(first) as f64) < self.0 * u64::MAX as f64
    }
}

impl FromStr for HoldOut {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let part: f64 = text.parse().map_err(|_| format!("'{text}' is no number"))?;
        match part > 0.0 && part < 1.0 {
            true => Ok(Self(part)),
            false => Err(format!("{part}: expected a part of all pictures, such as 0.1")),
        }
    }
}

impl fmt::Display for HoldOut {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_part_is_about_what_was_asked_for_and_grows_with_it() {
        let held = |part: &str| {
            let hold_out: HoldOut = part.parse().expect("a part");
            let files = (0..4000_u32).filter(|number| hold_out.holds(&number.to_le_bytes()));
            files.collect::<Vec<u32>>()
        };
        let (few, many) = (held("0.1"), held("0.3"));
        assert!((340..460).contains(&few.len()) && (1100..1300).contains(&many.len()));
        assert!(few.iter().all(|file| many.contains(file)), "a larger part has the smaller one");
        for wrong in ["0", "1", "-0.1", "NaN", "inf", "a"] {
            assert!(wrong.parse::<HoldOut>().is_err(), "{wrong}");
        }
    }
}
