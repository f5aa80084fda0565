//! SIGTERM as something to be asked for, so that who has a volume open can close it first.

use std::fs::File;
use std::io::{self, Read};

use super::sys::signal_descriptor;

/// Bytes of a `signalfd_siginfo`.
const INFO_LEN: usize = 128;

/// The signal, kept from ending the process.
#[derive(Debug)]
pub struct Termination(File);

impl Termination {
    /// Catches SIGTERM, and SIGINT if asked for, in this thread and those that it will start.
    ///
    /// # Errors
    /// When the system has no descriptor left.
    pub fn catch(interrupts: bool) -> io::Result<Self> {
        let signals = [libc::SIGTERM, libc::SIGINT];
        signal_descriptor(&signals[..1 + usize::from(interrupts)]).map(Self)
    }

    /// Whether a signal came since this was asked the last time.
    pub fn requested(&self) -> bool {
        let mut info = [0; INFO_LEN];
        matches!((&self.0).read(&mut info), Ok(INFO_LEN))
    }
}
