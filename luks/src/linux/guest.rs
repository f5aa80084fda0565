//! What a confidential guest has to ask with system calls that have no safe wrapper: its TDX module for a
//! report, its host for a connection. Here because unsafe system calls are nowhere else.

use std::fs::{File, OpenOptions};
use std::io;
use std::time::Duration;

use super::sys::{connect_to_host, ioctl_bytes};

/// `_IOWR('T', 1, struct tdx_report_req)`: 64 bytes of report data in, 1024 bytes of report out.
const GET_REPORT: u32 = 0xc440_5401;
const REPORT_DATA_LEN: usize = 64;
const REPORT_LEN: usize = 1024;
/// Where the kernel has it.
const DEVICE: &str = "/dev/tdx_guest";

/// Whether this is a TDX guest with a driver.
pub fn has_tdx_device() -> bool {
    OpenOptions::new().read(true).write(true).open(DEVICE).is_ok()
}

/// A report of the TDX module over 64 bytes (Linux `tdx-guest.h`).
///
/// # Errors
/// What the kernel answers instead.
pub fn tdx_report(report_data: &[u8; REPORT_DATA_LEN]) -> io::Result<Vec<u8>> {
    let device = OpenOptions::new().read(true).write(true).open(DEVICE)?;
    let mut request = vec![0; REPORT_DATA_LEN + REPORT_LEN];
    request[..REPORT_DATA_LEN].copy_from_slice(report_data);
    ioctl_bytes(&device, GET_REPORT, &mut request)?;
    Ok(request.split_off(REPORT_DATA_LEN))
}

/// A stream to a port of the host (vsock); every read and write waits at most for `wait`.
///
/// # Errors
/// When nobody listens there.
pub fn vsock_to_host(port: u32, wait: Duration) -> io::Result<File> {
    connect_to_host(port, wait)
}
