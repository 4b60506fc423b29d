//! What was reached for outside of the bundle: a pure list, to which the tracer adds and which the report prints.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::allowed::{Allowed, is_device, plain, real};
use super::tracer;

/// What a program wanted with a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// To know of it.
    Look,
    /// To know of the link itself.
    LookAtLink,
    /// To read it.
    Read,
    /// To execute it.
    Execute,
    /// To write to it, or to change what is in its folder.
    Write,
    /// To talk to a socket, or to be one.
    Connect,
}

/// All that was wanted with one path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Touch {
    /// It was looked at.
    pub looked: bool,
    /// It was read.
    pub read: bool,
    /// It was executed.
    pub executed: bool,
    /// It was written to, made or removed.
    pub written: bool,
    /// It was the address of a socket.
    pub connected: bool,
    /// Something is there, or was to be.
    pub found: bool,
    /// At least once the kernel said no.
    pub refused: bool,
    /// The programs that wanted it, by name.
    pub programs: BTreeSet<String>,
}

/// What was seen of one run.
#[derive(Debug, Default)]
pub struct Seen {
    /// One of the app's programs was executed.
    pub started: bool,
    /// Paths outside of the bundle, as they were asked for, in normal form; abstract sockets begin with `@`.
    pub touched: BTreeMap<PathBuf, Touch>,
    /// Programs with 32 bits, whose system calls are not seen.
    pub narrow: BTreeSet<String>,
    /// Programs with setuid or setgid bits, which have no effect here.
    pub setuid: BTreeSet<String>,
    /// Processes that still ran when the app had ended, and were killed.
    pub left_behind: Vec<String>,
}

impl Seen {
    /// Notes that `program` wanted the absolute path `asked`, with `result` as a system call returns it.
    pub fn note(&mut self, allowed: &Allowed, asked: &Path, want: Want, result: i64, program: &str) {
        let abstract_socket = !asked.is_absolute();
        let path = if abstract_socket { asked.to_owned() } else { plain(asked) };
        let Some(outcome) = Outcome::of(&path, want, result) else { return };
        if !abstract_socket {
            let real = real(asked, want != Want::LookAtLink);
            let looks = matches!(want, Want::Look | Want::LookAtLink) || outcome == Outcome::Exists;
            let is_beside = outcome == Outcome::Missing && allowed.is_beside(&real);
            if is_device(&path) || allowed.has(&real) || (looks && allowed.leads_to(&real)) || is_beside {
                return;
            }
        }
        let touch = self.touched.entry(path).or_default();
        match want {
            _ if outcome == Outcome::Exists => touch.looked = true,
            Want::Look | Want::LookAtLink => touch.looked = true,
            Want::Read => touch.read = true,
            Want::Execute => touch.executed = true,
            Want::Write => touch.written = true,
            Want::Connect => touch.connected = true,
        }
        touch.found |= outcome != Outcome::Missing;
        touch.refused |= outcome == Outcome::Refused;
        touch.programs.insert(program.to_owned());
    }

    /// Notes what is odd about a program that was started; `file` leads to it.
    pub fn program(&mut self, name: &str, file: &Path) {
        self.started = true;
        if tracer::is_32_bit(file) == Some(true) {
            self.narrow.insert(name.to_owned());
        }
        if tracer::is_setuid(file) {
            self.setuid.insert(name.to_owned());
        }
    }
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// It went well, or failed for a reason of its own.
    Reached,
    /// It was to be made, and is there.
    Exists,
    /// There is nothing.
    Missing,
    /// The kernel said no.
    Refused,
}

impl Outcome {
    /// By the result of a system call; `None` if it says nothing of the path.
    fn of(path: &Path, want: Want, result: i64) -> Option<Self> {
        let errno = i32::try_from(result.checked_neg()?).ok()?;
        let is_there = || fs::symlink_metadata(path).is_ok();
        Some(match errno {
            libc::EACCES | libc::EPERM | libc::EROFS if want == Want::Execute && !is_there() => Self::Missing,
            libc::EACCES | libc::EPERM | libc::EROFS => Self::Refused,
            // A program that is there, and whose loader is not.
            libc::ENOENT if want == Want::Execute && is_there() => Self::Reached,
            libc::ENOENT | libc::ENOTDIR => Self::Missing,
            libc::EEXIST => Self::Exists,
            libc::EFAULT | libc::ENAMETOOLONG | libc::ENOSYS | libc::EINTR => return None,
            _ => Self::Reached,
        })
    }
}
