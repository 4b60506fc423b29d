//! Signals: which the supervisor takes, how it sends them, what they are called.

use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::OnceLock;

use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::{Errno, Pid, check, fd};

/// The names that a manifest may use, without `SIG`. Their numbers differ between architectures.
const NAMES: &[(&str, i32)] = &[
    ("HUP", libc::SIGHUP),
    ("INT", libc::SIGINT),
    ("QUIT", libc::SIGQUIT),
    ("ILL", libc::SIGILL),
    ("TRAP", libc::SIGTRAP),
    ("ABRT", libc::SIGABRT),
    ("BUS", libc::SIGBUS),
    ("FPE", libc::SIGFPE),
    ("KILL", libc::SIGKILL),
    ("USR1", libc::SIGUSR1),
    ("SEGV", libc::SIGSEGV),
    ("USR2", libc::SIGUSR2),
    ("PIPE", libc::SIGPIPE),
    ("ALRM", libc::SIGALRM),
    ("TERM", libc::SIGTERM),
    ("STKFLT", libc::SIGSTKFLT),
    ("CHLD", libc::SIGCHLD),
    ("CONT", libc::SIGCONT),
    ("STOP", libc::SIGSTOP),
    ("TSTP", libc::SIGTSTP),
    ("TTIN", libc::SIGTTIN),
    ("TTOU", libc::SIGTTOU),
    ("URG", libc::SIGURG),
    ("XCPU", libc::SIGXCPU),
    ("XFSZ", libc::SIGXFSZ),
    ("VTALRM", libc::SIGVTALRM),
    ("PROF", libc::SIGPROF),
    ("WINCH", libc::SIGWINCH),
    ("IO", libc::SIGIO),
    ("PWR", libc::SIGPWR),
    ("SYS", libc::SIGSYS),
];

/// The last signal number, `SIGRTMAX` of the kernel (128 on MIPS, which is no target).
pub const LAST: i32 = 64;

/// The number of a signal by its name, `SIGTERM` or `TERM`; `None` for a name that is none.
pub fn number(name: &str) -> Option<i32> {
    let short = name.strip_prefix("SIG").unwrap_or(name);
    NAMES.iter().find(|(known, _)| *known == short).map(|&(_, number)| number)
}

/// The name of a signal without `SIG`; `None` for real-time signals.
pub fn name(number: i32) -> Option<&'static str> {
    NAMES.iter().find(|&&(_, known)| known == number).map(|&(name, _)| name)
}

/// Blocks every signal but SIGTSTP (`^Z` still works) and returns a descriptor that reads those a
/// supervisor acts on: SIGCHLD, SIGTERM, SIGINT, SIGQUIT, and SIGHUP unless it is ignored (nohup(1)).
/// All others stay blocked, so that none ends the supervisor; SIGPIPE is ignored besides.
pub fn take() -> Result<SignalFd, Errno> {
    let mut ours = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT] {
        ours.add(signal);
    }
    if !is_ignored(libc::SIGHUP) {
        ours.add(Signal::SIGHUP);
    }
    dispose(libc::SIGPIPE, libc::SIG_IGN, 0)?;
    // An inherited SIG_IGN would have the kernel reap our children behind our back.
    dispose(libc::SIGCHLD, libc::SIG_DFL, libc::SA_NOCLDSTOP)?;
    let mut blocked = SigSet::all();
    blocked.remove(Signal::SIGTSTP);
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&blocked), None)?;
    SignalFd::with_flags(&ours, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}

/// The numbers of the signals that wait at a descriptor of [`take`]. One read gets all: they do not queue (signal(7)), and
/// what comes meanwhile is told by the next poll.
pub fn pending(signals: BorrowedFd<'_>) -> impl Iterator<Item = i32> + use<> {
    /// Each of those that are taken may wait for the process and for its thread.
    const ENOUGH: usize = 16;
    /// Of `struct signalfd_siginfo`, whose first field is the number, of 32 bits (signalfd(2)).
    const SIZE: usize = size_of::<libc::signalfd_siginfo>();
    let mut infos = [0_u8; ENOUGH * SIZE];
    let length = fd::read(signals, &mut infos).ok().flatten().unwrap_or(0);
    (0..length / SIZE).map(move |at| {
        let at = at * SIZE;
        i32::from_ne_bytes([infos[at], infos[at + 1], infos[at + 2], infos[at + 3]])
    })
}

/// True if the signal's disposition is `SIG_IGN`.
pub(super) fn is_ignored(signal: i32) -> bool {
    let mut now = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: a null `act` only asks; `now` is valid for writes, and all-zero is a valid `sigaction`.
    unsafe {
        libc::sigaction(signal, ptr::null(), now.as_mut_ptr()) == 0
            && now.assume_init().sa_sigaction == libc::SIG_IGN
    }
}

/// Has a signal end waits (signal(7)) and do nothing else.
pub(super) fn handle_with_nothing(signal: i32) -> Result<(), Errno> {
    extern "C" fn nothing(_: libc::c_int) {}
    dispose(signal, nothing as *const () as libc::sighandler_t, 0)
}

/// Sets a signal's disposition: `SIG_DFL`, `SIG_IGN`, or a handler that does nothing.
fn dispose(signal: i32, handler: libc::sighandler_t, flags: i32) -> Result<(), Errno> {
    // SAFETY: all-zero is a valid `sigaction` (empty mask); the handler is none of ours but one that does nothing.
    let answer = unsafe {
        let mut action: libc::sigaction = MaybeUninit::zeroed().assume_init();
        action.sa_sigaction = handler;
        action.sa_flags = flags;
        libc::sigaction(signal, &raw const action, ptr::null_mut())
    };
    check(answer).map(drop)
}

/// The size of the kernel's signal mask in bytes: one bit for each of [`LAST`] signals.
const MASK: usize = LAST as usize / 8;
/// The kernel's `struct sigaction` in words. Its first is the handler.
const ACTION: usize = 4;

/// The signals that this process ignores, signal 1 as the lowest bit. Read once: nothing changes them after the first
/// call, which comes after [`take`]. They are what a child has to reset, as execve(2) resets handlers and
/// keeps ignored signals ignored. The calls are the kernel's own: libc's refuses its own two, 32 and 33, which glibc's
/// posix_spawn(3) leaves ignored.
pub(super) fn ignored() -> u64 {
    static IGNORED: OnceLock<u64> = OnceLock::new();
    *IGNORED.get_or_init(|| {
        let is_ignored = |number: &i32| {
            let mut now = [0_u64; ACTION];
            // SAFETY: a null action only asks; the kernel writes at most 32 bytes to `now`.
            unsafe {
                let none = ptr::null::<u64>();
                libc::syscall(libc::SYS_rt_sigaction, *number, none, now.as_mut_ptr(), MASK);
            }
            now[0] == libc::SIG_IGN as u64
        };
        (1..=LAST).filter(is_ignored).fold(0, |set, number| set | 1 << (number - 1))
    })
}

/// Sets the dispositions of these signals, as [`ignored`] has them, to `SIG_DFL`. Async-signal-safe.
pub(super) fn reset(set: u64) {
    // All zero, it is SIG_DFL whatever the order of its fields.
    let default = [0_u64; ACTION];
    for number in (1..=LAST).filter(|number| set & 1 << (number - 1) != 0) {
        // SAFETY: the kernel reads at most 32 bytes from `default`, and writes nothing back to a null pointer.
        unsafe {
            let none = ptr::null_mut::<u64>();
            libc::syscall(libc::SYS_rt_sigaction, number, default.as_ptr(), none, MASK);
        }
    }
}

/// Blocks all signals of this thread and returns those that were blocked before.
pub(super) fn block_all() -> u64 {
    change_mask(u64::MAX)
}

/// Blocks these signals and no others. Async-signal-safe.
pub(super) fn set_mask(mask: u64) {
    change_mask(mask);
}

/// The same, and returns those that were blocked before.
pub(super) fn change_mask(mask: u64) -> u64 {
    let mut before = 0_u64;
    // SAFETY: the kernel reads one mask of [`MASK`] bytes and writes another.
    unsafe {
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const mask, &raw mut before, MASK);
    }
    before
}

/// Sends a signal to one process. The caller holds its id: it is an unreaped child.
pub fn send(pid: Pid, signal: i32) -> Result<(), Errno> {
    debug_assert!(pid > 1);
    // SAFETY: kill(2) takes two numbers and touches no memory of ours.
    check(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// Sends a signal to a process group. The caller holds its id: an unreaped child is a member.
pub fn send_group(group: Pid, signal: i32) -> Result<(), Errno> {
    debug_assert!(group > 1);
    // SAFETY: as in `send`.
    check(unsafe { libc::kill(-group, signal) }).map(drop)
}

/// Sends a signal to a process of whom we are not the parent, if `is_wanted` holds for it: whether its id is another's by
/// now, no signal reaches anybody for whom it does not. True if it was sent. (Before Linux 5.3, which has
/// pidfd_open(2), a process that gets the id in the very moment would.)
pub fn send_if(pid: Pid, signal: i32, is_wanted: impl Fn(Pid) -> bool) -> bool {
    debug_assert!(pid > 1);
    if !is_wanted(pid) {
        return false;
    }
    // SAFETY: takes numbers; a descriptor that it returns is nobody else's.
    let opened = unsafe {
        Errno::result(libc::syscall(libc::SYS_pidfd_open, pid, 0))
            .map(|number| OwnedFd::from_raw_fd(number as RawFd))
    };
    match opened {
        // From here on it is this process, or nobody.
        Ok(process) => {
            is_wanted(pid) && {
                let none = ptr::null::<libc::siginfo_t>();
                // SAFETY: takes numbers and a null pointer, which stands for what kill(2) sends.
                let sent = unsafe {
                    libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), signal, none, 0)
                };
                sent == 0
            }
        }
        Err(Errno::ESRCH) => false,
        Err(_) => send(pid, signal).is_ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_that_a_manifest_may_have_is_known() {
        let unknown: Vec<_> =
            kitbag_format::service::SIGNALS.iter().filter(|name| number(name).is_none()).collect();
        assert_eq!(unknown, [&""; 0]);
        assert_eq!(NAMES.len(), kitbag_format::service::SIGNALS.len());
    }
}
