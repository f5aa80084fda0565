//! System calls that have no safe wrapper: ioctls, the kernel keyring, memory locking, signals, vsock.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_int, c_long};
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd};
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};

/// The keyring of the calling thread: gone with it.
const KEY_SPEC_THREAD_KEYRING: c_long = -1;
const KEYCTL_UNLINK: c_long = 9;

/// A key in the kernel's thread keyring, unlinked when dropped.
pub(crate) struct KernelKey(c_long);

/// An ioctl that takes an integer.
pub(crate) fn ioctl_integer(file: &File, request: u32, value: c_int) -> io::Result<c_int> {
    // SAFETY: the requests that this module's users issue take an integer or ignore it; no memory is
    // handed over.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request as libc::Ioctl, value) };
    checked(c_long::from(result)).map(|value| value as c_int)
}

/// An ioctl that reads and writes a structure; `bytes` must be as long as the kernel expects.
pub(crate) fn ioctl_bytes(file: &File, request: u32, bytes: &mut [u8]) -> io::Result<()> {
    // The size that the request encodes (bits 16 to 29), where it does.
    let size = (request >> 16 & 0x3fff) as usize;
    assert!(bytes.len() >= size, "a structure of {size} bytes");
    // SAFETY: `bytes` is valid for reads and writes of its length. Requests with an encoded size touch
    // that many bytes (asserted above); device-mapper's touch `data_size` bytes, which its caller sets
    // to the length of the slice; the loop requests without one are given their whole structures.
    let result =
        unsafe { libc::ioctl(file.as_raw_fd(), request as libc::Ioctl, bytes.as_mut_ptr()) };
    checked(c_long::from(result)).map(drop)
}

/// Keeps memory out of swap, if the system allows it.
pub(crate) fn lock_memory(bytes: &[u8]) -> bool {
    // SAFETY: mlock changes no memory; the range is that of a live slice.
    bytes.is_empty() || unsafe { libc::mlock(bytes.as_ptr().cast(), bytes.len()) } == 0
}

/// Blocks signals in this thread and those that it will start, and gives a descriptor that becomes
/// readable, without blocking, when one of them comes.
pub(crate) fn signal_descriptor(signals: &[c_int]) -> io::Result<File> {
    let set = signal_set(signals)?;
    // SAFETY: the calls read the set only. The descriptor is new, so the file is its only owner.
    unsafe {
        match libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) {
            0 => {}
            code => return Err(io::Error::from_raw_os_error(code)),
        }
        let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
        let descriptor = checked(c_long::from(libc::signalfd(-1, &raw const set, flags)))?;
        Ok(File::from_raw_fd(descriptor as c_int))
    }
}

/// Lets signals through to this thread again: they do what they do by default.
pub(crate) fn unblock_signals(signals: &[c_int]) -> io::Result<()> {
    let set = signal_set(signals)?;
    // SAFETY: the call reads the set only.
    match unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut()) }
    {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code)),
    }
}

/// Whether who started us wants a signal to be ignored, as `nohup` does.
pub(crate) fn is_ignored(signal: c_int) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: without a new action the call only writes the present one, which is read if it did.
    unsafe {
        libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) == 0
            && action.assume_init().sa_sigaction == libc::SIG_IGN
    }
}

fn signal_set(signals: &[c_int]) -> io::Result<libc::sigset_t> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the set, sigaddset changes only it.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        let mut set = set.assume_init();
        for &signal in signals {
            checked(c_long::from(libc::sigaddset(&raw mut set, signal)))?;
        }
        Ok(set)
    }
}

/// A stream socket to `port` of the host, by way of the hypervisor; reads and writes end after `wait`.
pub(crate) fn connect_to_host(port: u32, wait: Duration) -> io::Result<File> {
    // SAFETY: the descriptor is new, so the file is its only owner. The address is a plain structure that
    // lives through the call, which reads as many bytes as it is told to.
    unsafe {
        let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
        let descriptor = checked(c_long::from(libc::socket(libc::AF_VSOCK, kind, 0)))?;
        let file = File::from_raw_fd(descriptor as c_int);
        for direction in [Timeout::Recv, Timeout::Send] {
            set_socket_timeout(&file, direction, Some(wait))?;
        }
        let mut address: libc::sockaddr_vm = std::mem::zeroed();
        address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
        address.svm_port = port;
        address.svm_cid = libc::VMADDR_CID_HOST;
        checked(c_long::from(libc::connect(
            file.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_vm>() as libc::socklen_t,
        )))?;
        Ok(file)
    }
}

impl KernelKey {
    /// Adds a key of type `logon`, which no process can read back.
    pub(crate) fn add(description: &CStr, payload: &[u8]) -> io::Result<Self> {
        // SAFETY: the strings end in NUL, the payload is valid for its length; the kernel copies all.
        let serial = unsafe {
            libc::syscall(
                libc::SYS_add_key,
                c"logon".as_ptr(),
                description.as_ptr(),
                payload.as_ptr(),
                payload.len(),
                KEY_SPEC_THREAD_KEYRING,
            )
        };
        checked(serial).map(Self)
    }
}

impl Drop for KernelKey {
    fn drop(&mut self) {
        // SAFETY: two integers.
        unsafe {
            libc::syscall(libc::SYS_keyctl, KEYCTL_UNLINK, self.0, KEY_SPEC_THREAD_KEYRING);
        }
    }
}

fn checked(result: c_long) -> io::Result<c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
