//! Resource limits by name -> numbers for setrlimit(2).

use std::collections::BTreeMap;
use std::fmt;

use crate::sys::{self, Resource};

/// A limit on a resource: setrlimit(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// The resource's number.
    pub resource: Resource,
    /// What holds; [`libc::RLIM_INFINITY`]: nothing.
    pub soft: libc::rlim_t,
    /// Up to which the process may raise that.
    pub hard: libc::rlim_t,
}

impl Limit {
    /// As setrlimit(2) takes it.
    pub const fn rlimit(self) -> libc::rlimit {
        libc::rlimit { rlim_cur: self.soft, rlim_max: self.hard }
    }

    /// Its resource as a manifest has it: `nofile`.
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|(_, resource)| *resource == self.resource).map_or("?", |(name, _)| name)
    }
}

/// getrlimit(2)'s names without `RLIMIT_`. Their numbers differ between architectures.
pub const NAMES: &[(&str, Resource)] = &[
    ("as", libc::RLIMIT_AS),
    ("core", libc::RLIMIT_CORE),
    ("cpu", libc::RLIMIT_CPU),
    ("data", libc::RLIMIT_DATA),
    ("fsize", libc::RLIMIT_FSIZE),
    ("locks", libc::RLIMIT_LOCKS),
    ("memlock", libc::RLIMIT_MEMLOCK),
    ("msgqueue", libc::RLIMIT_MSGQUEUE),
    ("nice", libc::RLIMIT_NICE),
    ("nofile", libc::RLIMIT_NOFILE),
    ("nproc", libc::RLIMIT_NPROC),
    ("rss", libc::RLIMIT_RSS),
    ("rtprio", libc::RLIMIT_RTPRIO),
    ("rttime", libc::RLIMIT_RTTIME),
    ("sigpending", libc::RLIMIT_SIGPENDING),
    ("stack", libc::RLIMIT_STACK),
];

/// Why a limit cannot be set.
#[derive(Debug, PartialEq, Eq)]
pub enum LimitError {
    /// No such resource.
    Unknown(String),
    /// More than this user may have: the resource, what was asked for and the most there is. `None`: no limit.
    AboveHard(String, Option<u64>, u64),
}

impl fmt::Display for LimitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(name) => write!(f, "there is no limit `{name}`; getrlimit(2) lists them"),
            Self::AboveHard(name, wanted, hard) => {
                let wanted = wanted.map_or("unlimited".to_owned(), |wanted| wanted.to_string());
                write!(
                    f,
                    "limit {name} = {wanted} is above the hard limit {hard} that this was started with, which only \
                     root can raise; ask for less, or raise it where this is started (`LimitNOFILE=` and its like \
                     in systemd, /etc/security/limits.conf)"
                )
            }
        }
    }
}

impl std::error::Error for LimitError {}

/// The limits of a manifest as numbers; its value is the soft and the hard limit, `None` no limit.
pub fn resolve(limits: &BTreeMap<String, Option<u64>>) -> Result<Vec<Limit>, LimitError> {
    limits.iter().map(|(name, value)| one(name, *value)).collect()
}

fn one(name: &str, value: Option<u64>) -> Result<Limit, LimitError> {
    let known = NAMES.iter().find(|(known, _)| *known == name);
    let Some(&(_, resource)) = known else { return Err(LimitError::Unknown(name.to_owned())) };
    let most = value.unwrap_or(libc::RLIM_INFINITY);
    match sys::limit(resource).map(|limit| limit.rlim_max) {
        Some(hard) if most > hard && !nix::unistd::geteuid().is_root() => {
            Err(LimitError::AboveHard(name.to_owned(), value, hard))
        }
        _ => Ok(Limit { resource, soft: most, hard: most }),
    }
}
