//! Every raw system call and every `unsafe` block of the supervisor.
//!
//! `unsafe` is reopened here alone: fork(2) to execve(2), waitid(2) and kill(2) have no safe wrapper that
//! knows real-time signals, and limits and inherited descriptors none that is small.
#![allow(unsafe_code)]

pub mod child;
pub mod fd;
pub mod signal;
pub mod wait;

pub use nix::errno::Errno;

/// A process id.
pub type Pid = i32;

/// The result of a call that answers -1 and sets errno.
fn check(answer: libc::c_int) -> Result<libc::c_int, Errno> {
    Errno::result(answer)
}

/// Makes this process the one that orphaned descendants come to (prctl(2) `PR_SET_CHILD_SUBREAPER`).
pub fn become_subreaper() -> Result<(), Errno> {
    nix::sys::prctl::set_child_subreaper(true)
}
