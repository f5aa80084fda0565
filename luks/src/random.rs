//! Random bytes from the system, for keys, salts and UUIDs.

use ring::rand::{SecureRandom, SystemRandom};

use crate::Error;

/// Fills with random bytes.
///
/// # Errors
/// When the system has none.
pub(crate) fn random(target: &mut [u8]) -> Result<(), Error> {
    let failed = |_| Error::Io("random numbers".into(), std::io::Error::other("none"));
    SystemRandom::new().fill(target).map_err(failed)
}
