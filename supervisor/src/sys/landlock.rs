//! What of landlock(7) the `landlock` crate leaves to its callers: the kernel's version as a number, and the last step in
//! a child, where nothing may be allocated.

use std::os::fd::RawFd;
use std::ptr;

use super::{Errno, check};

/// linux/landlock.h: landlock_create_ruleset(2) answers with the version of its interface.
const CREATE_RULESET_VERSION: libc::c_uint = 1;

/// The version of the kernel's interface, from 1. `ENOSYS`: the kernel has none; `EOPNOTSUPP`: it is not enabled.
pub fn abi() -> Result<i32, Errno> {
    let (nothing, length) = (ptr::null::<libc::c_void>(), 0_usize);
    // SAFETY: with this flag, no attributes are read.
    let answer =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, nothing, length, CREATE_RULESET_VERSION) };
    Errno::result(answer).map(|abi| i32::try_from(abi).unwrap_or(i32::MAX))
}

/// Restricts this process, and all that it starts, by a ruleset: for good. A process without CAP_SYS_ADMIN has to give up
/// what set-user-ID programs and file capabilities would give it (prctl(2), PR_SET_NO_NEW_PRIVS); one with it keeps that.
/// Async-signal-safe.
pub(super) fn restrict(ruleset: RawFd) -> Result<(), Errno> {
    match restrict_self(ruleset) {
        Err(Errno::EPERM) => {
            // SAFETY: takes numbers.
            check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
            restrict_self(ruleset)
        }
        answer => answer,
    }
}

fn restrict_self(ruleset: RawFd) -> Result<(), Errno> {
    // SAFETY: takes numbers.
    let answer = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset, 0) };
    Errno::result(answer).map(drop)
}
