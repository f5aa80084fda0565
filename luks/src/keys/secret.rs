//! Secret bytes: passphrases and keys, wiped when dropped, kept out of swap where the system allows it.

use std::fmt;
use std::io::{self, Read};

use zeroize::Zeroize;

use crate::memory;

/// Longest passphrase that is typed or piped, as in cryptsetup.
const LINE_LEN_MAX: usize = 512;
/// Longest key file, as in cryptsetup.
const FILE_LEN_MAX: usize = 8 << 20;

/// Bytes that nobody may see: locked in memory where allowed, zeroized, never printed.
pub struct Secret(Box<[u8]>);

impl Secret {
    /// Zeros, to be filled.
    pub fn zeroed(len: usize) -> Self {
        let bytes = vec![0; len].into_boxed_slice();
        memory::keep_from_swap(&bytes);
        Self(bytes)
    }

    /// A copy of these bytes; the caller wipes its own.
    pub fn copy(bytes: &[u8]) -> Self {
        let mut secret = Self::zeroed(bytes.len());
        secret.0.copy_from_slice(bytes);
        secret
    }
}

impl std::ops::Deref for Secret {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl std::ops::DerefMut for Secret {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Secret({} bytes)", self.0.len())
    }
}

/// What opens a keyslot.
#[derive(Debug)]
pub struct Passphrase(Secret);

/// For the second time that somebody types it; timing tells nobody anything there.
impl PartialEq for Passphrase {
    fn eq(&self, other: &Self) -> bool {
        self.0[..] == other.0[..]
    }
}

impl Passphrase {
    /// All bytes of a key file, a final newline included.
    ///
    /// # Errors
    /// Of the reader; of a file that is empty or longer than 8 MiB.
    pub fn from_file(source: impl Read) -> io::Result<Self> {
        Self::bounded(source, FILE_LEN_MAX, |bytes| bytes.len())
    }

    /// The bytes up to the first newline, as at a prompt or in a pipe.
    ///
    /// # Errors
    /// Of the reader; of a line that is empty or longer than 512 bytes.
    pub fn from_line(source: impl Read) -> io::Result<Self> {
        let line = |bytes: &[u8]| bytes.iter().position(|&b| b == b'\n').unwrap_or(bytes.len());
        Self::bounded(source, LINE_LEN_MAX + 1, line).and_then(|passphrase| {
            match passphrase.0.len() > LINE_LEN_MAX {
                true => Err(io::Error::other("a passphrase of more than 512 bytes")),
                false => Ok(passphrase),
            }
        })
    }

    /// These bytes; an empty passphrase opens nothing and is refused when it is used.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        Self(Secret::copy(bytes))
    }

    /// The bytes, for the key derivation alone.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Reads at most `max` bytes and keeps as many as `end` says.
    fn bounded(
        mut source: impl Read,
        max: usize,
        end: impl FnOnce(&[u8]) -> usize,
    ) -> io::Result<Self> {
        let mut buffer = Secret::zeroed((1 << 16).min(max + 1));
        let mut len = 0;
        loop {
            if len == buffer.len() {
                if len > max {
                    return Err(io::Error::other(format!("a key of more than {max} bytes")));
                }
                let mut larger = Secret::zeroed((2 * len).min(max + 1));
                larger[..len].copy_from_slice(&buffer);
                buffer = larger;
            }
            match source.read(&mut buffer[len..]) {
                Ok(0) => break,
                Ok(read) => len += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            // A terminal or a pipe may stay open after the line.
            if max <= LINE_LEN_MAX + 1 && buffer[..len].contains(&b'\n') {
                break;
            }
        }
        let end = end(&buffer[..len]);
        match end {
            0 => Err(io::Error::other("an empty passphrase")),
            _ => Ok(Self(Secret::copy(&buffer[..end]))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newlines_follow_the_rules_of_cryptsetup() {
        let line = Passphrase::from_line(&b"word\nmore"[..]).expect("a line");
        assert_eq!(line.bytes(), b"word");
        let file = Passphrase::from_file(&b"word\nmore\n"[..]).expect("a file");
        assert_eq!(file.bytes(), b"word\nmore\n");
        assert!(Passphrase::from_line(&b"\n"[..]).is_err());
        assert!(Passphrase::from_file(&b""[..]).is_err());
        assert!(Passphrase::from_line(&[b'x'; 513][..]).is_err());
        assert_eq!(Passphrase::from_line(&[b'x'; 512][..]).expect("longest").bytes().len(), 512);
        let long = vec![7; 200_000];
        assert_eq!(Passphrase::from_file(&long[..]).expect("long").bytes(), long);
        assert!(Passphrase::from_file(io::repeat(1)).is_err());
    }

    #[test]
    fn debug_output_has_no_secret() {
        assert_eq!(format!("{:?}", Passphrase::from_bytes(b"word")), "Passphrase(Secret(4 bytes))");
    }
}
