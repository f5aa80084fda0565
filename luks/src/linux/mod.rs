//! The kernel's side: system calls, loop devices, device-mapper, device nodes, the guest's devices.

mod guest;
pub(crate) mod loop_device;
pub(crate) mod mapper;
pub(crate) mod node;
pub(crate) mod sys;
mod termination;

pub use guest::{has_tdx_device, tdx_report, vsock_to_host};
pub use termination::Termination;
