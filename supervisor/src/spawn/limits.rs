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
    /// More open files than the kernel allows root too: what was asked for, and `fs.nr_open`.
    AboveKernel(Option<u64>, u64),
}

impl fmt::Display for LimitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(name) => write!(f, "there is no limit `{name}`; getrlimit(2) lists them"),
            Self::AboveKernel(wanted, most) => {
                let wanted = shown(*wanted);
                write!(
                    f,
                    "limit nofile = {wanted} is above {most}, which is the most that the kernel lets anybody have, root \
                     too (/proc/sys/fs/nr_open); ask for less, or raise that: `sysctl fs.nr_open=NUMBER`"
                )
            }
            Self::AboveHard(name, wanted, hard) => {
                let wanted = shown(*wanted);
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

fn shown(limit: Option<u64>) -> String {
    limit.map_or_else(|| "unlimited".to_owned(), |limit| limit.to_string())
}

/// The limits of a manifest as numbers; its value is the soft and the hard limit, `None` no limit.
pub fn resolve(limits: &BTreeMap<String, Option<u64>>) -> Result<Vec<Limit>, LimitError> {
    limits.iter().map(|(name, value)| one(name, *value)).collect()
}

fn one(name: &str, value: Option<u64>) -> Result<Limit, LimitError> {
    let known = NAMES.iter().find(|(known, _)| *known == name);
    let Some(&(_, resource)) = known else { return Err(LimitError::Unknown(name.to_owned())) };
    let most = value.unwrap_or(libc::RLIM_INFINITY);
    let hard = sys::limit(resource).map_or(libc::RLIM_INFINITY, |limit| limit.rlim_max);
    if most > hard && !nix::unistd::geteuid().is_root() {
        return Err(LimitError::AboveHard(name.to_owned(), value, hard));
    }
    match (resource == libc::RLIMIT_NOFILE).then(most_open_files).flatten() {
        Some(open) if most > open => Err(LimitError::AboveKernel(value, open)),
        _ => Ok(Limit { resource, soft: most, hard: most }),
    }
}

/// What no limit on open files can be above (proc_sys_fs(5), `nr_open`); `None` where there is no /proc.
fn most_open_files() -> Option<u64> {
    std::fs::read_to_string("/proc/sys/fs/nr_open").ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_open_files_than_the_kernel_allows_anybody_are_refused_with_its_bound() {
        let most = most_open_files().expect("a /proc");
        for wanted in [Some(most + 1), Some(2_000_000_000_000), None] {
            let error = one("nofile", wanted).expect_err("beyond what there can be");
            if !nix::unistd::geteuid().is_root() {
                // The own bound is nearer, and names what to do.
                assert!(matches!(error, LimitError::AboveHard(..)), "{error}");
                continue;
            }
            assert_eq!(error, LimitError::AboveKernel(wanted, most));
            let asked = wanted.map_or("unlimited".to_owned(), |wanted| wanted.to_string());
            assert!(
                error.to_string().starts_with(&format!("limit nofile = {asked} is above {most}, ")),
                "{error}"
            );
        }
        let own = sys::limit(libc::RLIMIT_NOFILE).expect("a limit").rlim_cur;
        assert!(one("nofile", Some(own)).is_ok());
    }
}
