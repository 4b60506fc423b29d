//! A service's process from the decision to start it to its program's first instruction.
//!
//! A launch is over when [`Spawner::start`] returns: the program runs, or a stage has failed and nothing is left.

pub mod cgroup;
pub mod environment;
pub mod identity;
pub mod limits;

use std::ffi::{CString, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use kitbag_format::service;

use crate::expand::{ExpandError, Values};
use crate::snapshot::Process;
use crate::spawn::identity::{Accounts, Identity, IdentityError, Ids};
use crate::spawn::limits::{Limit, LimitError};
use crate::state::{Fault, Stage};
use crate::status::usage;
use crate::sys::child::{self, Files, Image};
use crate::sys::fd::Slots;
use crate::sys::{self, Errno};

/// What a program needs in order to run.
#[derive(Debug)]
pub struct Program<'a> {
    /// Its path.
    pub path: &'a Path,
    /// Its arguments, the first one included.
    pub argv: &'a [OsString],
    /// Its complete environment.
    pub env: &'a [(OsString, OsString)],
    /// Its working directory.
    pub cwd: &'a Path,
    /// What its process is.
    pub setup: &'a Setup,
}

/// What a process is beside its program, as numbers. The default is what the supervisor is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Setup {
    /// Its user and groups.
    pub ids: Option<Ids>,
    /// Its limits; see [`limits::resolve`].
    pub limits: Vec<Limit>,
    /// Its priority, -20 to 19.
    pub nice: Option<i8>,
    /// Its `oom_score_adj`, -1000 to 1000. A supervisor that changes its own passes here what it was.
    pub oom_score: Option<i16>,
    /// Its umask(2).
    pub umask: Option<u32>,
    /// `cgroup.procs` of the cgroup that it joins.
    pub cgroup: Option<CString>,
}

impl Setup {
    /// What a manifest asks for, with this host's users, and the identity that the environment depends on. The cgroup is
    /// added by whoever makes it.
    pub fn resolve(
        process: &service::Process,
        values: &Values<'_>,
        accounts: &Accounts,
    ) -> Result<(Self, Option<Identity>), SetupError> {
        let text = |text: &String| values.text(text).map(|text| text.to_string_lossy().into_owned());
        let user = process.user.as_ref().map(text).transpose()?;
        let group = process.group.as_ref().map(text).transpose()?;
        let groups = process.groups.as_ref().map(|groups| groups.iter().map(text).collect()).transpose()?;
        let identity = accounts.identity(user.as_deref(), group.as_deref(), groups)?;
        let setup = Self {
            ids: identity.as_ref().map(|identity| identity.ids.clone()),
            limits: limits::resolve(&process.limits)?,
            nice: process.nice,
            oom_score: process.oom_score,
            umask: process.umask,
            cgroup: None,
        };
        Ok((setup, identity))
    }
}

/// Why a process cannot be what its manifest asks for.
#[derive(Debug)]
pub enum SetupError {
    /// A template.
    Expand(ExpandError),
    /// A user or group.
    Identity(IdentityError),
    /// A limit.
    Limit(LimitError),
}

impl fmt::Display for SetupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Expand(error) => error.fmt(f),
            Self::Identity(error) => error.fmt(f),
            Self::Limit(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for SetupError {}

impl From<ExpandError> for SetupError {
    fn from(error: ExpandError) -> Self {
        Self::Expand(error)
    }
}

impl From<IdentityError> for SetupError {
    fn from(error: IdentityError) -> Self {
        Self::Identity(error)
    }
}

impl From<LimitError> for SetupError {
    fn from(error: LimitError) -> Self {
        Self::Limit(error)
    }
}

/// Starts programs. Made before the supervisor opens other files, for the low numbers it keeps.
#[derive(Debug)]
pub struct Spawner {
    slots: Slots,
}

impl Default for Spawner {
    fn default() -> Self {
        Self::new()
    }
}

impl Spawner {
    /// Cannot fail: where the kernel is old or descriptors are short, launches take longer.
    pub fn new() -> Self {
        Self { slots: Slots::reserve() }
    }

    /// Starts the program's process, and returns when the program runs. Its id is its process group and session too. It has an empty signal mask and default dispositions, inherits `files` alone, and gets SIGTERM when the
    /// supervisor dies; a program that gains privileges by execve(2) loses that last protection (prctl(2)).
    ///
    /// A fault leaves no process behind, and SIGCHLD pending at most. One that hangs on its way is ended after
    /// [`child::DEADLINE`] (`ETIMEDOUT`); nothing else happens in this thread until then.
    pub fn start(&mut self, program: &Program<'_>, files: &Files<'_>) -> Result<Process, Fault> {
        let image = image(program).ok_or_else(|| fault(Stage::Arguments, Errno::EINVAL))?;
        let before = sys::boot_ticks();
        let pid = child::start(&image, files, &mut self.slots)?;
        Ok(Process { pid, start: usage::start_since(pid, before) })
    }
}

/// A failed stage.
pub const fn fault(stage: Stage, errno: Errno) -> Fault {
    Fault { stage, errno: errno as i32 }
}

/// What could not be done, for a sentence: `execute /srv/app/bin/web`.
pub fn stage_name(stage: Stage, program: &Program<'_>) -> String {
    let Setup { ids, limits, nice, oom_score, .. } = program.setup;
    let plain = match stage {
        Stage::Ports => "ports",
        Stage::Files => "files made for it",
        Stage::Arguments => "arguments and environment",
        Stage::Pipes => "pipes",
        Stage::Fork => "fork",
        Stage::Session => "session",
        Stage::StandardFiles => "standard input and output",
        Stage::Cgroup => "join its cgroup",
        Stage::Sandbox => "sandbox (Landlock)",
        Stage::Groups => "supplementary groups",
        Stage::ParentDeath => "parent death signal",
        Stage::Limits => {
            let names: Vec<&str> = limits.iter().map(|limit| limit.name()).collect();
            return format!("resource limits ({})", names.join(", "));
        }
        Stage::Nice => return format!("priority (nice {})", nice.unwrap_or(0)),
        Stage::OomScore => return format!("oom score {}", oom_score.unwrap_or(0)),
        Stage::Group => return format!("group {}", ids.as_ref().map_or(0, |ids| ids.gid)),
        Stage::User => return format!("user {}", ids.as_ref().map_or(0, |ids| ids.uid)),
        Stage::WorkingDirectory => return format!("working directory {}", program.cwd.display()),
        Stage::Exec => return format!("execute {}", program.path.display()),
    };
    plain.to_owned()
}

/// What an error means at this stage where its name alone does not tell a person what to look at.
pub const fn hint(Fault { stage, errno }: Fault) -> Option<&'static str> {
    Some(match (stage, errno) {
        (Stage::Fork, libc::EAGAIN) => {
            "no more processes for this user, `ulimit -u`, for this cgroup, pids.max, or at all, kernel.pid_max"
        }
        (_, libc::EMFILE) => "no more open files for the supervisor, `ulimit -n`",
        (_, libc::ENFILE) => "no more open files on this machine, fs.file-max",
        (Stage::Limits | Stage::Nice | Stage::OomScore, libc::EPERM | libc::EACCES) => {
            "root may go beyond what this was started with"
        }
        (Stage::Groups | Stage::Group | Stage::User, libc::EPERM) => "root may start it as somebody else",
        (Stage::Exec, libc::ENOEXEC) => {
            "for another kind of machine, or a text that does not begin with `#!`"
        }
        (Stage::Exec, libc::EACCES) => "not executable, or on a file system that is mounted noexec",
        _ => return None,
    })
}

/// The program as C strings; `None` if one of them has a NUL byte inside.
fn image<'a>(program: &Program<'a>) -> Option<Image<'a>> {
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
        setup: program.setup,
    })
}

fn c_string(text: OsString) -> Option<CString> {
    CString::new(text.into_vec()).ok()
}
