//! Signals that ask a process to end, as something to wait for, so that who has work or a volume open can save
//! it first.

use std::ffi::c_int;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};

use super::sys::{is_ignored, signal_descriptor, unblock_signals};

/// Bytes of a `signalfd_siginfo`.
const INFO_LEN: usize = 128;
/// A container's host, a person at a terminal, and a terminal that went away.
const SIGNALS: [c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// The signals, kept from ending the process the first time that one comes.
#[derive(Debug)]
pub struct Termination {
    descriptor: File,
    signals: Vec<c_int>,
}

impl Termination {
    /// Catches SIGTERM, SIGINT and SIGHUP in this thread and those that it will start. What is ignored (by
    /// `nohup`, or by a shell for its background jobs) stays so.
    ///
    /// # Errors
    /// When the system has no descriptor left.
    pub fn catch() -> io::Result<Self> {
        let signals: Vec<c_int> = SIGNALS.into_iter().filter(|s| !is_ignored(*s)).collect();
        Ok(Self { descriptor: signal_descriptor(&signals)?, signals })
    }

    /// Whether a signal came since this was asked the last time. From then on the next one ends the process at
    /// once: who asks twice does not want to wait for what is being saved.
    pub fn requested(&self) -> bool {
        let mut info = [0; INFO_LEN];
        let came = matches!((&self.descriptor).read(&mut info), Ok(INFO_LEN));
        if came {
            // A failure leaves the signals caught: the process still ends, only not at once.
            let _ = unblock_signals(&self.signals);
        }
        came
    }
}

impl AsFd for Termination {
    /// Readable once a signal came.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}
