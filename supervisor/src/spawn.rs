//! A service's process from the decision to start it to its program's first instruction.
//!
//! Everything that can fail is acquired before the fork; each stage after it reports its failure, with errno,
//! through a pipe that a successful execve(2) closes.

use std::ffi::{CString, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use crate::state::{Fault, Stage};
use crate::sys::child::{self, Files, Image};
use crate::sys::{Errno, Pid, fd};

/// What a program needs in order to run.
#[derive(Debug)]
pub struct Program<'a> {
    /// Its path.
    pub path: &'a PathBuf,
    /// Its arguments, the first one included.
    pub argv: &'a [OsString],
    /// Its complete environment.
    pub env: &'a [(OsString, OsString)],
    /// Its working directory.
    pub cwd: &'a PathBuf,
}

/// A process on its way to its program.
#[derive(Debug)]
pub struct Launch {
    /// Its id, which is its process group and session too.
    pub pid: Pid,
    /// Where [`read_report`] finds out how it went.
    pub report: OwnedFd,
}

/// How a launch went, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Report {
    /// It has not come to execve(2) yet.
    Pending,
    /// The program runs, or the process was killed on the way.
    Executed,
    /// A stage failed; the process is about to exit.
    Failed(Fault),
}

/// Forks the program's process. It runs in a session of its own, with empty signal mask and default
/// dispositions, and gets SIGTERM when the supervisor dies. A service whose program changes its
/// user or gains privileges by execve(2) loses that last protection (prctl(2)).
pub fn start(program: &Program<'_>, files: &Files<'_>) -> Result<Launch, Fault> {
    let image = image(program).ok_or(Fault { stage: Stage::Arguments, errno: Errno::EINVAL as i32 })?;
    let (report, write) = fd::pipe().map_err(|errno| fault(Stage::Pipes, errno))?;
    let pid = child::start(&image, files, &write).map_err(|errno| fault(Stage::Fork, errno))?;
    Ok(Launch { pid, report })
}

/// A failed stage.
pub const fn fault(stage: Stage, errno: Errno) -> Fault {
    Fault { stage, errno: errno as i32 }
}

/// Reads how a launch went, without waiting for it.
pub fn read_report(report: &OwnedFd) -> Report {
    let mut bytes = [0; child::REPORT];
    match fd::read(report.as_fd(), &mut bytes) {
        Ok(None) => Report::Pending,
        Ok(Some(child::REPORT)) => {
            let [number, errno @ ..] = bytes;
            let stage = Stage::from_number(number).unwrap_or(Stage::Exec);
            Report::Failed(Fault { stage, errno: i32::from_ne_bytes(errno) })
        }
        Ok(Some(_)) | Err(_) => Report::Executed,
    }
}

/// The program as C strings; `None` if one of them has a NUL byte inside.
fn image(program: &Program<'_>) -> Option<Image> {
    let pair = |(name, value): &(OsString, OsString)| {
        let mut text = name.as_bytes().to_vec();
        text.push(b'=');
        text.extend_from_slice(value.as_bytes());
        CString::new(text).ok()
    };
    Some(Image {
        program: c_string(program.path.as_os_str().to_owned())?,
        argv: program.argv.iter().map(|argument| c_string(argument.clone())).collect::<Option<_>>()?,
        env: program.env.iter().map(pair).collect::<Option<_>>()?,
        cwd: c_string(program.cwd.as_os_str().to_owned())?,
    })
}

fn c_string(text: OsString) -> Option<CString> {
    CString::new(text.into_vec()).ok()
}
