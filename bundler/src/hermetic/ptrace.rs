//! What ptrace(2) and wait(2) offer and `nix` does not: real-time signals, group stops that last, and the arguments
//! of a system call whatever the architecture. The only `unsafe` of the bundler.
#![allow(unsafe_code, reason = "two system calls that no crate wraps whole")]

use std::io;
use std::ptr;

use nix::errno::Errno;
use nix::unistd::Pid;

/// linux/ptrace.h; since Linux 5.3.
const GET_SYSCALL_INFO: libc::c_uint = 0x420e;
/// Values of `op` in `struct ptrace_syscall_info`.
const INFO_EXIT: u8 = 2;
const INFO_SECCOMP: u8 = 3;
/// SIGTRAP of a system call's end, as PTRACE_O_TRACESYSGOOD marks it.
const SYSCALL_TRAP: i32 = libc::SIGTRAP | 0x80;

/// What a traced thread reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Report {
    /// It exited with this status.
    Exited(i32),
    /// This signal ended it.
    Killed(i32),
    /// The filter stopped it at the beginning of a system call.
    Call,
    /// The system call that [`Resume::UntilReturn`] waited for has a result.
    Returned,
    /// It executed a new program.
    Executed,
    /// A signal is about to be delivered.
    Signal(i32),
    /// It is stopped as SIGSTOP and its like do, with all of its process.
    Stopped,
    /// Something that needs no answer.
    Other,
}

/// How a stopped thread goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resume {
    /// Until there is something to report, with this signal; 0 for none.
    Run(i32),
    /// Until the system call it is in returns.
    UntilReturn,
    /// It stays stopped until SIGCONT.
    StayStopped,
}

/// Waits until any traced thread or child has something to report. ECHILD: there is none left.
pub fn wait() -> io::Result<(Pid, Report)> {
    wait_for(-1, libc::__WALL)
}

/// Waits until child `pid`, which is not traced yet, ends or stops itself.
pub fn wait_stop(pid: Pid) -> io::Result<Report> {
    wait_for(pid.as_raw(), libc::WUNTRACED).map(|(_, report)| report)
}

fn wait_for(pid: i32, options: i32) -> io::Result<(Pid, Report)> {
    let mut status = 0;
    loop {
        // SAFETY: `status` is a valid place for an int, and waitpid keeps no pointer to it.
        let found = unsafe { libc::waitpid(pid, &raw mut status, options) };
        match Errno::result(found) {
            Ok(found) => return Ok((Pid::from_raw(found), report(status))),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// A wait status as wait(2) and ptrace(2), "Stopped states", define it. The event stands in the third byte.
fn report(status: i32) -> Report {
    if libc::WIFEXITED(status) {
        return Report::Exited(libc::WEXITSTATUS(status));
    }
    if libc::WIFSIGNALED(status) {
        return Report::Killed(libc::WTERMSIG(status));
    }
    let signal = libc::WSTOPSIG(status);
    let stops = [libc::SIGSTOP, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];
    match status >> 16 {
        libc::PTRACE_EVENT_SECCOMP => Report::Call,
        libc::PTRACE_EVENT_EXEC => Report::Executed,
        libc::PTRACE_EVENT_STOP if stops.contains(&signal) => Report::Stopped,
        0 if signal == SYSCALL_TRAP => Report::Returned,
        0 => Report::Signal(signal),
        _ => Report::Other,
    }
}

/// Lets a stopped thread go on. ESRCH: it was killed meanwhile.
pub fn resume(pid: Pid, how: Resume) -> Result<(), Errno> {
    let (request, signal) = match how {
        Resume::Run(signal) => (libc::PTRACE_CONT, signal),
        Resume::UntilReturn => (libc::PTRACE_SYSCALL, 0),
        Resume::StayStopped => (libc::PTRACE_LISTEN, 0),
    };
    // SAFETY: these requests take no address and a number; they touch no memory of ours (ptrace(2)).
    let done = unsafe {
        libc::ptrace(request, pid.as_raw(), ptr::null_mut::<libc::c_void>(), libc::c_long::from(signal))
    };
    Errno::result(done).map(drop)
}

/// Number and arguments of the system call that a thread is about to make ([`Report::Call`]).
pub fn call(pid: Pid) -> Result<(u64, [u64; 6]), Errno> {
    let info = syscall_info(pid)?;
    match info {
        [op, _, _, number, a, b, c, d, e, f, _] if op.to_ne_bytes()[0] == INFO_SECCOMP => {
            Ok((number, [a, b, c, d, e, f]))
        }
        _ => Err(Errno::EINVAL),
    }
}

/// Result of the system call that a thread comes back from ([`Report::Returned`]); a negative one is an errno.
pub fn returned(pid: Pid) -> Result<i64, Errno> {
    let info = syscall_info(pid)?;
    if info[0].to_ne_bytes()[0] == INFO_EXIT { Ok(info[3].cast_signed()) } else { Err(Errno::EINVAL) }
}

/// `struct ptrace_syscall_info` as words: `op` and `arch`, two pointers, then what `op` calls for, number or result
/// first.
fn syscall_info(pid: Pid) -> Result<[u64; 11], Errno> {
    let mut info = [0_u64; 11];
    // SAFETY: `info` has the size that is given, any bytes are valid in it, and it is written to during the call alone.
    let written =
        unsafe { libc::ptrace(GET_SYSCALL_INFO as _, pid.as_raw(), size_of_val(&info), info.as_mut_ptr()) };
    Errno::result(written).map(|_| info)
}
