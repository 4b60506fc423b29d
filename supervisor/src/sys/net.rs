//! Network interfaces: the loopback device, which nobody else brings up where we are the first process.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::{Errno, check};

/// Brings up `lo`: netdevice(7), `SIOCSIFFLAGS`. The kernel gives it 127.0.0.1 and ::1 by itself.
pub fn loopback_up() -> Result<(), Errno> {
    // SAFETY: socket(2) takes numbers.
    let socket = check(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: it was opened here and nobody else knows it.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: all-zero is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads the `ifreq` that it is given: a name with a zero at its end, and flags.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) }).map(drop)
}
