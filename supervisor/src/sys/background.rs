//! A process that goes on in the background, as daemon(7) has it: in a session of its own that it does not lead, so
//! that no terminal becomes its controlling one.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::ptr;
use std::sync::OnceLock;

use nix::fcntl::OFlag;

use super::{Errno, check, fd, signal};

/// Which of the two processes this one is, with its end of a pipe between them.
#[derive(Debug)]
pub enum Side {
    /// The one that was there before.
    Caller(OwnedFd),
    /// The new one.
    Background(OwnedFd),
}

/// Goes on twice: here, and in the background. The caller has one thread.
pub fn split() -> Result<Side, Errno> {
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    // SAFETY: this process has one thread, so the child's copy of every lock is free.
    let child = check(unsafe { libc::fork() })?;
    if child > 0 {
        // SAFETY: waits for the child just made, which ends at once; its status is not wanted.
        unsafe { libc::waitpid(child, ptr::null_mut(), 0) };
        return Ok(Side::Caller(read));
    }
    // SAFETY: takes nothing; a child is no group leader, so it cannot fail.
    unsafe { libc::setsid() };
    // SAFETY: as above.
    match unsafe { libc::fork() } {
        0 => {
            close_inherited();
            Ok(Side::Background(write))
        }
        // SAFETY: _exit(2) ends the process between the two without running the caller's destructors. If the fork
        // failed, the pipe is closed by that, and the caller finds it empty.
        _ => unsafe { libc::_exit(0) },
    }
}

/// Closes what whoever started us left open beyond the standard files: a lock, say, that would be held for ever.
/// Descriptors of our own are close-on-exec, all of them; inherited ones are not, or they would not be here.
fn close_inherited() {
    /// How far is enough, as in [`fd::sanitise`].
    const ENOUGH: i32 = 1024;
    for number in 3..ENOUGH {
        // SAFETY: F_GETFD takes a number; a descriptor without the flag belongs to nothing in this process.
        unsafe {
            if libc::fcntl(number, libc::F_GETFD) == 0 {
                libc::close(number);
            }
        }
    }
}

/// Gives the standard files up: standard input reads as empty, the others go to `log`.
pub fn redirect(log: &OwnedFd) -> Result<(), Errno> {
    let nothing = fd::nothing()?;
    for (from, to) in [(nothing.as_fd(), 0), (log.as_fd(), 1), (log.as_fd(), 2)] {
        // SAFETY: dup2(2) takes numbers; std looks the standard descriptors up by number at each use.
        check(unsafe { libc::dup2(from.as_raw_fd(), to) })?;
    }
    Ok(())
}

/// What [`say_last`] has the handler say. Set once, before the handler is.
static LAST_WORDS: OnceLock<String> = OnceLock::new();

/// From now on SIGINT and SIGTERM write `text` to standard error before they end this process as they would have. Those
/// that are ignored stay so. The first call alone counts.
pub fn say_last(text: String) {
    extern "C" fn handler(number: libc::c_int) {
        let text = LAST_WORDS.get().map_or("", String::as_str);
        // SAFETY: write(2) and raise(3) are async-signal-safe (signal-safety(7)), and so is reading what is set. The
        // disposition is the default one again (SA_RESETHAND), so that the signal ends the process when it is unblocked.
        unsafe {
            libc::write(2, text.as_ptr().cast(), text.len());
            libc::raise(number);
        }
    }
    if LAST_WORDS.set(text).is_err() {
        return;
    }
    for number in [libc::SIGINT, libc::SIGTERM] {
        if !signal::is_ignored(number) {
            // SAFETY: all-zero is a valid `sigaction` (empty mask); the handler has the signature that it says.
            unsafe {
                let mut action: libc::sigaction = MaybeUninit::zeroed().assume_init();
                action.sa_sigaction = handler as *const () as libc::sighandler_t;
                action.sa_flags = libc::SA_RESETHAND;
                libc::sigaction(number, &raw const action, ptr::null_mut());
            }
        }
    }
}

/// How many columns the terminal at standard output has (ioctl_tty(2) `TIOCGWINSZ`); `None` if it is no terminal.
pub fn columns() -> Option<usize> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: `size` is valid for writes of a `winsize`.
    let answer = unsafe { libc::ioctl(1, libc::TIOCGWINSZ, ptr::from_mut(&mut size)) };
    (answer == 0 && size.ws_col > 0).then_some(usize::from(size.ws_col))
}

/// Becomes this user, with these supplementary groups if they are given, for good (setgroups(2), setgid(2), setuid(2), in this order).
pub fn become_user(uid: u32, gid: u32, groups: Option<&[u32]>) -> Result<(), Errno> {
    // SAFETY: setgroups(2) reads `groups`, whose length is passed; the others take numbers.
    unsafe {
        if let Some(groups) = groups {
            check(libc::setgroups(groups.len(), groups.as_ptr()))?;
        }
        check(libc::setgid(gid))?;
        check(libc::setuid(uid)).map(drop)
    }
}
