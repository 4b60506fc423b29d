//! From fork(2) to execve(2).
//!
//! Between the two the child shares nothing with the supervisor but what it is given here: it calls
//! async-signal-safe functions alone and allocates nothing. Every argument exists before the fork.

use std::convert::Infallible;
use std::ffi::{CString, c_char};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;

use super::{Errno, Pid, check, fd, signal};
use crate::state::{Fault, Stage};

/// What a child becomes.
#[derive(Debug)]
pub struct Image {
    /// Path of the program.
    pub program: CString,
    /// Its arguments, the first one included.
    pub argv: Vec<CString>,
    /// Its whole environment, `NAME=value`.
    pub env: Vec<CString>,
    /// Its working directory.
    pub cwd: CString,
}

/// What a child gets from the supervisor.
#[derive(Debug)]
pub struct Files<'a> {
    /// Standard input.
    pub stdin: &'a OwnedFd,
    /// Standard output.
    pub stdout: BorrowedFd<'a>,
    /// Standard error.
    pub stderr: BorrowedFd<'a>,
    /// The limit on open files; `None`: the supervisor's.
    pub limit: Option<libc::rlimit>,
}

/// The bytes of a failed stage's report: its number, then errno in the machine's byte order.
pub const REPORT: usize = 5;

/// Forks a child that becomes `image` in a session and process group of its own, and returns its id.
///
/// `report` gets [`REPORT`] bytes if a stage fails, and is closed by a successful execve(2).
/// Needs all signals blocked, as [`signal::take`] leaves them: a handler or a default action in the child
/// before its dispositions are reset would be the supervisor's.
pub fn start(image: &Image, files: &Files<'_>, report: &OwnedFd) -> Result<Pid, Errno> {
    if !fd::above_standard(&[files.stdin.as_fd(), files.stdout, files.stderr, report.as_fd()]) {
        return Err(Errno::EBADF);
    }
    let argv = pointers(&image.argv);
    let env = pointers(&image.env);
    let parent = nix::unistd::getpid().as_raw();
    // SAFETY: this process has one thread, so the child's copy of every lock is free; the child runs
    // `become_image` alone, which keeps to async-signal-safe calls, and leaves by execve or _exit.
    match unsafe { libc::fork() } {
        0 => {
            let Err(fault) = become_image(image, &argv, &env, files, parent);
            tell(report, fault);
            // SAFETY: _exit(2) ends the child without running the supervisor's destructors.
            unsafe { libc::_exit(127) }
        }
        answer => check(answer),
    }
}

/// A null-terminated array of pointers into `strings`, which has to outlive it.
fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
}

/// The child's way: each step, or the stage that failed. Allocates nothing.
fn become_image(
    image: &Image,
    argv: &[*const c_char],
    env: &[*const c_char],
    files: &Files<'_>,
    parent: Pid,
) -> Result<Infallible, Fault> {
    reset_signals();
    // SAFETY: takes nothing.
    at(Stage::Session, check(unsafe { libc::setsid() }))?;
    die_with(parent)?;
    for (from, to) in [(files.stdin.as_fd(), 0), (files.stdout, 1), (files.stderr, 2)] {
        // SAFETY: `from` is open and above 2, so no step overwrites what a later one needs.
        at(Stage::StandardFiles, check(unsafe { libc::dup2(from.as_raw_fd(), to) }))?;
    }
    fd::close_on_exec_from(3);
    if let Some(limit) = &files.limit {
        // SAFETY: reads the `rlimit` it is given.
        at(Stage::Limits, check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, ptr::from_ref(limit)) }))?;
    }
    // SAFETY: a NUL-terminated path.
    at(Stage::WorkingDirectory, check(unsafe { libc::chdir(image.cwd.as_ptr()) }))?;
    unblock_signals();
    // SAFETY: `argv` and `env` are null-terminated arrays of NUL-terminated strings that `image` keeps alive.
    at(Stage::Exec, check(unsafe { libc::execve(image.program.as_ptr(), argv.as_ptr(), env.as_ptr()) }))?;
    Err(Fault { stage: Stage::Exec, errno: 0 })
}

/// Marks the result of a call with the stage it belongs to.
fn at(stage: Stage, answer: Result<libc::c_int, Errno>) -> Result<(), Fault> {
    match answer {
        Ok(_) => Ok(()),
        Err(errno) => Err(Fault { stage, errno: errno as i32 }),
    }
}

/// A supervisor that is killed takes its services along. The parent may have gone before prctl(2) took effect.
fn die_with(parent: Pid) -> Result<(), Fault> {
    // SAFETY: PR_SET_PDEATHSIG takes a number; getppid takes nothing.
    at(Stage::ParentDeath, check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) }))?;
    // SAFETY: as above.
    let same = unsafe { libc::getppid() } == parent;
    if same { Ok(()) } else { Err(Fault { stage: Stage::ParentDeath, errno: libc::ESRCH }) }
}

/// Default dispositions for all: execve(2) keeps ignored signals ignored, and we or whoever started us ignore some.
/// libc's sigaction refuses its own two, 32 and 33, which glibc's posix_spawn(3) leaves ignored.
fn reset_signals() {
    for number in 1..=signal::LAST {
        signal::reset(number);
    }
}

/// An empty signal mask: execve(2) keeps it too.
pub(super) fn unblock_signals() {
    let none = nix::sys::signal::SigSet::empty();
    let _ = nix::sys::signal::pthread_sigmask(nix::sys::signal::SigmaskHow::SIG_SETMASK, Some(&none), None);
}

/// Writes the report of a failed stage; 5 bytes always fit an empty pipe.
fn tell(report: &OwnedFd, fault: Fault) {
    let mut bytes = [fault.stage as u8; REPORT];
    bytes[1..].copy_from_slice(&fault.errno.to_ne_bytes());
    // A failure here leaves an empty report, and the exit status 127.
    let _ = nix::unistd::write(report, &bytes);
}

/// The process id that was given last: that of a child which does nothing. `None` if none can be forked.
pub(super) fn newest_pid() -> Option<Pid> {
    // SAFETY: the child only leaves.
    let pid = match unsafe { libc::fork() } {
        // SAFETY: as in `start`.
        0 => unsafe { libc::_exit(0) },
        answer => check(answer).ok()?,
    };
    // SAFETY: waits for the child just made, which is on its way out; its status is not wanted.
    unsafe { libc::waitpid(pid, ptr::null_mut(), 0) };
    Some(pid)
}
