//! A child of our own that works on the side: the loop never waits for a disk or a processor it need not wait for.

use super::{Errno, Pid, check, fd, signal};

/// Forks a child that calls `work` with the lowest priority, in a process group of its own, and exits with status 0
/// if that returned true. It has no descriptor but the standard ones, and is killed if the supervisor ends.
///
/// Needs a process with one thread, or a C library whose allocator knows fork(2), as glibc's does.
pub fn fork(work: impl FnOnce() -> bool) -> Result<Pid, Errno> {
    let parent = nix::unistd::getpid().as_raw();
    // SAFETY: the supervisor has one thread, so the child's copy of every lock is free; it leaves by _exit.
    match unsafe { libc::fork() } {
        0 => {
            let well = prepare(parent) && work();
            // SAFETY: _exit(2) ends the child without running the supervisor's destructors.
            unsafe { libc::_exit(i32::from(!well)) }
        }
        answer => check(answer),
    }
}

/// False if the parent has gone already.
fn prepare(parent: Pid) -> bool {
    signal::reset(signal::ignored());
    signal::set_mask(0);
    fd::close_from(3);
    // SAFETY: these take numbers. None of them has to succeed.
    unsafe {
        libc::setpgid(0, 0);
        libc::nice(19);
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        libc::getppid() == parent
    }
}
