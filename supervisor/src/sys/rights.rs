//! Another user's rights to files, for as long as something is done in folders where he can swap what is there.
//!
//! What is opened, made or renamed then is no more than he could do himself, whatever he puts in its way. The process stays
//! root's for everything else: filesystem ids concern files alone (setfsuid(2)).

use super::{Errno, check};
use crate::spawn::identity::Ids;

/// Restores this thread's own rights when it is dropped. The supervisor has one thread.
#[derive(Debug)]
pub struct Borrowed {
    gid: u32,
    groups: Vec<u32>,
    dumpable: libc::c_int,
    death_signal: libc::c_int,
}

/// Takes the rights of a user and his groups.
///
/// # Errors
/// `EPERM` for a process that may not become him.
pub fn borrow(ids: &Ids) -> Result<Borrowed, Errno> {
    let groups = nix::unistd::getgroups()?.into_iter().map(nix::unistd::Gid::as_raw).collect();
    let mut death_signal: libc::c_int = 0;
    // SAFETY: PR_GET_PDEATHSIG writes an int where it is told to; PR_GET_DUMPABLE takes nothing.
    let dumpable = unsafe {
        libc::prctl(libc::PR_GET_PDEATHSIG, &raw mut death_signal);
        libc::prctl(libc::PR_GET_DUMPABLE)
    };
    let own = Borrowed { gid: nix::unistd::getegid().as_raw(), groups, dumpable, death_signal };
    if let Some(groups) = &ids.groups {
        set_groups(groups)?;
    }
    // Neither tells whether it has done it: -1 is no id, and changes nothing. Without them `own` is restored here.
    if set_fs_gid(ids.gid) != ids.gid || set_fs_uid(ids.uid) != ids.uid {
        return Err(Errno::EPERM);
    }
    Ok(own)
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        set_fs_uid(nix::unistd::geteuid().as_raw());
        set_fs_gid(self.gid);
        let _ = set_groups(&self.groups);
        // The kernel has taken both away with the change (prctl(2), PR_SET_DUMPABLE and PR_SET_PDEATHSIG).
        // SAFETY: prctl(2) takes numbers here.
        unsafe {
            libc::prctl(libc::PR_SET_DUMPABLE, self.dumpable);
            libc::prctl(libc::PR_SET_PDEATHSIG, self.death_signal);
        }
    }
}

/// setgroups(2) of this thread: libc's would ask all threads.
fn set_groups(groups: &[u32]) -> Result<(), Errno> {
    // SAFETY: pointer and length are those of `groups`, which the call only reads.
    let answer = unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
    check(answer as libc::c_int).map(drop)
}

/// Sets the thread's filesystem user, and returns what it is then.
fn set_fs_uid(uid: u32) -> u32 {
    // SAFETY: both take numbers.
    unsafe {
        libc::syscall(libc::SYS_setfsuid, uid);
        libc::syscall(libc::SYS_setfsuid, u32::MAX) as u32
    }
}

/// Sets the thread's filesystem group, and returns what it is then.
fn set_fs_gid(gid: u32) -> u32 {
    // SAFETY: both take numbers.
    unsafe {
        libc::syscall(libc::SYS_setfsgid, gid);
        libc::syscall(libc::SYS_setfsgid, u32::MAX) as u32
    }
}

/// Sets an extended attribute of what a descriptor leads to (fsetxattr(2)).
pub fn set_attribute(
    fd: std::os::fd::BorrowedFd<'_>,
    name: &std::ffi::CStr,
    value: &[u8],
) -> Result<(), Errno> {
    use std::os::fd::AsRawFd;
    let (pointer, length) = (value.as_ptr().cast(), value.len());
    // SAFETY: `name` ends with a zero byte, pointer and length are those of `value`; both are only read.
    check(unsafe { libc::fsetxattr(fd.as_raw_fd(), name.as_ptr(), pointer, length, 0) }).map(drop)
}
