//! Children: who ended, who is left. A child's id is its own until we reap it, so what is looked at with
//! `WNOWAIT` can be acted on without meeting a stranger who got the number next.

use std::fs::File;
use std::mem::MaybeUninit;
use std::os::unix::fs::FileExt;

use super::{Errno, Pid};
use crate::state::End;

/// Whom to wait for.
#[derive(Debug, Clone, Copy)]
enum Whom {
    Any,
    Process(Pid),
    Group(Pid),
}

/// What waitid(2) says without waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Children {
    /// This child ended.
    Ended(Pid, End),
    /// There are some, and none ended.
    Alive,
    /// There are none.
    None,
}

/// A child that ended, left unreaped: its process id, and its group's, cannot be given to another yet.
pub fn look() -> Children {
    wait(Whom::Any, libc::WNOHANG | libc::WNOWAIT)
}

/// Reaps a child that [`look`] has shown.
pub fn reap(pid: Pid) {
    wait(Whom::Process(pid), libc::WNOHANG);
}

/// True while this is a child of ours, ended or not.
pub fn is_child(pid: Pid) -> bool {
    wait(Whom::Process(pid), libc::WNOHANG | libc::WNOWAIT) != Children::None
}

/// True while a child of ours, ended or not, is a member of this process group. While it is and until the next
/// [`reap`], the group's id is not given to another group.
pub fn has_children(group: Pid) -> bool {
    wait(Whom::Group(group), libc::WNOHANG | libc::WNOWAIT) != Children::None
}

fn wait(whom: Whom, flags: i32) -> Children {
    let (kind, id) = match whom {
        Whom::Any => (libc::P_ALL, 0),
        Whom::Process(pid) => (libc::P_PID, pid),
        Whom::Group(group) => (libc::P_PGID, group),
    };
    loop {
        let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
        // SAFETY: `info` is valid for writes; all-zero is a valid `siginfo_t`, and waitid(2) leaves its pid 0
        // where no child has ended. Its union holds the SIGCHLD fields after a success.
        let (answer, pid, code, status) = unsafe {
            let answer = libc::waitid(kind, id.cast_unsigned(), info.as_mut_ptr(), libc::WEXITED | flags);
            let info = info.assume_init();
            (answer, info.si_pid(), info.si_code, info.si_status())
        };
        return match Errno::result(answer) {
            Err(Errno::EINTR) => continue,
            // ECHILD. Nothing else is left: the arguments are ours.
            Err(_) => Children::None,
            Ok(_) if pid == 0 => Children::Alive,
            Ok(_) if code == libc::CLD_EXITED => Children::Ended(pid, End::Status(status)),
            Ok(_) => Children::Ended(pid, End::Signal(status)),
        };
    }
}

/// The kernel's list of our children, held open.
#[derive(Debug)]
pub struct List(Option<File>);

impl List {
    /// The list of the thread that calls; this process has no other (proc_pid_children(5)). Where /proc cannot tell, every
    /// process id that a child can have is tried.
    pub fn open() -> Self {
        Self(File::open("/proc/thread-self/children").ok())
    }

    /// Our children, ended ones too.
    pub fn children(&self) -> Vec<Pid> {
        self.told().unwrap_or_else(probe_children)
    }

    /// The same, in the order in which they became ours; `None` where /proc cannot tell.
    ///
    /// proc_pid_children(5) warns that children may be missing where others end meanwhile. An ended child leaves the
    /// kernel's list when it is reaped, and that is our own doing.
    pub fn told(&self) -> Option<Vec<Pid>> {
        let mut text = vec![0; 4096];
        let mut length = 0;
        loop {
            match self.0.as_ref()?.read_at(&mut text[length..], length as u64).ok()? {
                0 => break,
                more => length += more,
            }
            if length == text.len() {
                text.resize(length * 2, 0);
            }
        }
        let words = text[..length].split(|byte| *byte == b' ');
        Some(words.filter_map(|word| str::from_utf8(word).ok()?.parse().ok()).collect())
    }
}

/// Process ids are given in rising order: those between ours and a newborn's are all that our descendants
/// can have, unless the numbers have come round in the meantime.
fn probe_children() -> Vec<Pid> {
    /// The kernel's `PID_MAX_LIMIT`.
    const LIMIT: Pid = 4 * 1024 * 1024;
    let own = nix::unistd::getpid().as_raw();
    let is_child = |pid: &Pid| is_child(*pid);
    match super::child::newest_pid() {
        Some(newest) if newest > own => (own + 1..newest).filter(is_child).collect(),
        _ => (2..LIMIT).filter(is_child).collect(),
    }
}

/// The process group of a child; `None` if it is no more.
pub fn group_of(pid: Pid) -> Option<Pid> {
    nix::unistd::getpgid(Some(nix::unistd::Pid::from_raw(pid))).ok().map(nix::unistd::Pid::as_raw)
}

/// The session of a process; `None` if it is no more.
pub fn session_of(pid: Pid) -> Option<Pid> {
    nix::unistd::getsid(Some(nix::unistd::Pid::from_raw(pid))).ok().map(nix::unistd::Pid::as_raw)
}

/// Our own process group.
pub fn own_group() -> Pid {
    nix::unistd::getpgrp().as_raw()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn both_ways_to_list_children_find_a_child() {
        let mut child = Command::new("/bin/sleep").arg("60").spawn().expect("sleep starts");
        let pid = child.id().cast_signed();
        let found = probe_children().contains(&pid);
        // /proc/thread-self lists what this thread started: the test's own.
        let list = List::open();
        let [read, again] = [(); 2].map(|()| list.told().is_none_or(|list| list.contains(&pid)));
        child.kill().expect("a child can be killed");
        child.wait().expect("a child can be reaped");
        let gone = list.told().is_none_or(|list| !list.contains(&pid));
        assert!(found && read && again && gone, "probed: {found}, read: {read}, {again}, gone: {gone}");
    }
}
