//! SIGTERM: asks a role to end in good order. Also the duties of process 1, where a role is that.
//!
//! Process-wide, as signals are. Process 1 has no default handlers, so without this it could only be
//! killed; and orphans become its children, whose ends it has to collect.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use luks::linux::Termination;
use rustix::process::{Pid, WaitOptions, getpid, wait};

use crate::failure::{Doing, Failure};

static TERMINATION: OnceLock<Termination> = OnceLock::new();
static REQUESTED: AtomicBool = AtomicBool::new(false);

/// From now on the signal only asks. Before any thread is started: it would be handled there.
///
/// # Errors
/// When the system has no descriptors left.
pub fn catch() -> Result<(), Failure> {
    if TERMINATION.get().is_none() {
        let termination = Termination::catch(is_first()).doing("SIGTERM")?;
        // Nobody else sets it: roles are started once, by one thread.
        let _ = TERMINATION.set(termination);
    }
    Ok(())
}

/// Whether the process was asked to end; to be called now and then.
pub fn requested() -> bool {
    if is_first() {
        collect_orphans();
    }
    let asked = TERMINATION.get().is_some_and(Termination::requested);
    REQUESTED.fetch_or(asked, Ordering::Relaxed) || asked
}

fn is_first() -> bool {
    getpid() == Pid::INIT
}

fn collect_orphans() {
    // An error says that there are none.
    while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
}
