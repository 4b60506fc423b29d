//! Every raw system call and every `unsafe` block of the supervisor.
//!
//! `unsafe` is reopened here alone: clone(2) to execve(2), waitid(2) and kill(2) have no safe wrapper that
//! knows real-time signals, and limits and inherited descriptors none that is small.
//!
//! `glibc.rs` and `unused.rs` are the program's, not the library's: with them the released runtime takes the place of
//! parts of libc, which tests need whole.
#![allow(unsafe_code)]

pub mod background;
pub mod child;
pub mod code;
pub mod fd;
pub mod hurry;
pub mod landlock;
pub mod net;
pub mod rights;
pub mod signal;
pub mod socket;
pub mod wait;
pub mod worker;

use std::mem::MaybeUninit;
use std::ptr;

pub use nix::errno::Errno;

/// A process id.
pub type Pid = i32;

/// A resource's number in getrlimit(2).
#[cfg(target_env = "gnu")]
pub type Resource = libc::__rlimit_resource_t;
/// A resource's number in getrlimit(2).
#[cfg(not(target_env = "gnu"))]
pub type Resource = libc::c_int;

/// The result of a call that answers -1 and sets errno.
fn check(answer: libc::c_int) -> Result<libc::c_int, Errno> {
    Errno::result(answer)
}

/// The number of an error of the system; `EIO` for one that std has made itself.
pub fn errno_of(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// What an error says, without the number that std adds.
pub fn reason(error: &std::io::Error) -> String {
    let named = |number| Errno::from_raw(number).desc().to_owned();
    error.raw_os_error().map_or_else(|| error.to_string(), named)
}

/// One call, again if a signal interrupted it; `None` if it would wait.
pub fn attempt(mut call: impl FnMut() -> Result<usize, Errno>) -> Result<Option<usize>, Errno> {
    loop {
        match call() {
            Ok(length) => return Ok(Some(length)),
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return Ok(None),
            Err(errno) => return Err(errno),
        }
    }
}

/// This process's limit on a resource, by getrlimit(2)'s number.
pub fn limit(resource: Resource) -> Option<libc::rlimit> {
    let mut limit = MaybeUninit::<libc::rlimit>::zeroed();
    // SAFETY: `limit` is valid for writes, and all-zero is a valid `rlimit`.
    unsafe {
        check(libc::getrlimit(resource, limit.as_mut_ptr())).ok()?;
        Some(limit.assume_init())
    }
}

/// The soft and the hard limit of another process on a resource, as prlimit(2) tells it: of one with our user.
pub fn limit_of(pid: Pid, resource: Resource) -> Result<(u64, u64), Errno> {
    let mut limit = MaybeUninit::<libc::rlimit64>::zeroed();
    // SAFETY: a null new limit only asks; `limit` is valid for writes, and all-zero is a valid `rlimit64`.
    unsafe {
        check(libc::prlimit64(pid, resource, ptr::null(), limit.as_mut_ptr()))?;
        let limit = limit.assume_init();
        Ok((limit.rlim_cur, limit.rlim_max))
    }
}

/// Sets this process's limit on a resource (setrlimit(2)).
pub fn set_limit(resource: Resource, limit: libc::rlimit) -> Result<(), Errno> {
    // SAFETY: reads the `rlimit` it is given.
    check(unsafe { libc::setrlimit(resource, &raw const limit) }).map(drop)
}

/// This process's priority, -20 to 19 (getpriority(2)).
pub fn priority() -> i32 {
    // SAFETY: takes numbers; 0 is this process, which exists, so that -1 is a priority and no error.
    unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) }
}

/// Sets this process's priority (setpriority(2)).
pub fn set_priority(value: i32) -> Result<(), Errno> {
    // SAFETY: takes numbers; 0 is this process.
    check(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, value) }).map(drop)
}

/// Makes this process the one that orphaned descendants come to (prctl(2) `PR_SET_CHILD_SUBREAPER`).
pub fn become_subreaper() -> Result<(), Errno> {
    nix::sys::prctl::set_child_subreaper(true)
}

/// The path that execve(2) was given (getauxval(3) `AT_EXECFN`); relative to the working folder of that moment.
pub fn executed_path() -> Option<std::path::PathBuf> {
    use std::os::unix::ffi::OsStrExt;
    // SAFETY: reads a number from the auxiliary vector.
    let address = unsafe { libc::getauxval(libc::AT_EXECFN) };
    if address == 0 {
        return None;
    }
    // SAFETY: the kernel put a text with a zero at its end there, which stays for the process's life.
    let text = unsafe { std::ffi::CStr::from_ptr(address as *const libc::c_char) };
    Some(std::ffi::OsStr::from_bytes(text.to_bytes()).into())
}

/// Bytes of a page of memory (sysconf(3) `_SC_PAGESIZE`).
pub fn page_size() -> u64 {
    // SAFETY: takes a number.
    u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

/// The unit of processor time in /proc (sysconf(3) `_SC_CLK_TCK`).
pub fn ticks_per_second() -> u64 {
    // SAFETY: takes a number.
    u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }).unwrap_or(100).max(1)
}

/// Clock ticks since the machine was started, the time that it slept included: the clock by which proc_pid_stat(5) tells when
/// a process was started. `None` before Linux 2.6.39.
pub fn boot_ticks() -> Option<u64> {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).ok()?;
    let nanoseconds = (time.tv_sec() as u64).saturating_mul(1_000_000_000) + time.tv_nsec() as u64;
    Some(nanoseconds / (1_000_000_000 / ticks_per_second()))
}

/// Milliseconds of `CLOCK_MONOTONIC` (clock_gettime(2)): since the machine was started, for all its processes, without the
/// time that it slept. Nobody sets it.
pub fn monotonic_ms() -> u64 {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    // Linux has it since 2.0.
    time.map_or(0, |time| (time.tv_sec() as u64).saturating_mul(1000) + time.tv_nsec() as u64 / 1_000_000)
}
