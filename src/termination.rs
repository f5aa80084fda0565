//! SIGTERM, SIGINT and SIGHUP: ask a role to save and to end. Also the duties of process 1, where a role is that.
//!
//! Process-wide, as signals are. Process 1 has no default handlers, so without this it could only be
//! killed; and orphans become its children, whose ends it has to collect.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use luks::linux::Termination;
use protocol::Net;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, Signal, WaitOptions, getpid, getppid, set_parent_process_death_signal, wait,
};

use crate::failure::{Doing, Failure};

static TERMINATION: OnceLock<Termination> = OnceLock::new();
static REQUESTED: AtomicBool = AtomicBool::new(false);

/// From now on the first signal only asks; the second ends the process. Before any thread is started: it would
/// be handled there.
///
/// # Errors
/// When the system has no descriptors left.
pub fn catch() -> Result<(), Failure> {
    if TERMINATION.get().is_none() {
        let termination = Termination::catch().doing("signals")?;
        // Nobody else sets it: roles are started once, by one thread.
        let _ = TERMINATION.set(termination);
    }
    Ok(())
}

/// Lets a signal end the waits of a network.
///
/// # Errors
/// When the system cannot watch for it.
pub fn wake(net: &mut Net) -> Result<(), Failure> {
    let Some(descriptor) = descriptor() else { return Ok(()) };
    descriptor.try_clone_to_owned().and_then(|owned| net.watch(owned)).doing("signals")
}

/// Whether the process was asked to end; to be called after each wait.
pub fn requested() -> bool {
    if is_first() {
        collect_orphans();
    }
    let asked = TERMINATION.get().is_some_and(Termination::requested);
    // Relaxed: nothing is handed over with it, and a later look would do.
    REQUESTED.fetch_or(asked, Ordering::Relaxed) || asked
}

/// Waits, unless a signal comes.
pub fn pause(time: Duration) {
    let Some(descriptor) = descriptor() else { return std::thread::sleep(time) };
    let time = Timespec::try_from(time).ok();
    // An error means that the pause is shorter, no more.
    let _ = poll(&mut [PollFd::from_borrowed_fd(descriptor, PollFlags::IN)], time.as_ref());
}

/// From now on the end of the process that started us asks us to end too, however it ended.
///
/// # Errors
/// When it is gone already.
pub fn with_parent(parent: u32) -> Result<(), Failure> {
    set_parent_process_death_signal(Some(Signal::TERM)).doing("signals")?;
    // It may have ended before the line above.
    let is_alive = getppid().is_some_and(|pid| pid.as_raw_nonzero().get() as u32 == parent);
    if is_alive { Ok(()) } else { Err(Failure::new("the process that started this one is gone")) }
}

fn descriptor() -> Option<BorrowedFd<'static>> {
    TERMINATION.get().map(Termination::as_fd)
}

fn is_first() -> bool {
    getpid() == Pid::INIT
}

fn collect_orphans() {
    // An error says that there are none.
    while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
}
