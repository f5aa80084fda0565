//! Bytes as hexadecimal digits.

use std::fmt;

/// Shows bytes as lower-case digits.
pub(crate) struct Hex<'a>(pub(crate) &'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Bytes as lower-case digits.
pub fn hex(bytes: &[u8]) -> String {
    Hex(bytes).to_string()
}

/// The bytes that digits of either case stand for; `None` where others or an odd number of them stand.
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let pair = |pair: &[u8]| Some(digit(pair[0])? << 4 | digit(*pair.get(1)?)?);
    text.as_bytes().chunks(2).map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_read_back() {
        assert_eq!(unhex("00fFa0"), Some(vec![0, 255, 0xa0]));
        assert_eq!(Hex(&[0, 255, 0xa0]).to_string(), "00ffa0");
        for text in ["0", "0g", "+1", "é0"] {
            assert_eq!(unhex(text), None, "{text}");
        }
    }
}
