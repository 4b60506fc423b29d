//! Memory and process limits of services by cgroup v2 (cgroups(7)), where the supervisor's own cgroup is delegated to it.
//!
//! In a cgroup whose children have controllers there can be no process. So the supervisor moves to a leaf of its
//! own, and each unit gets another beside it:
//!
//! ```text
//! <own>/kitbag-<pid>            the supervisor
//! <own>/kitbag-<pid>.<unit>     memory.max, pids.max
//! ```

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::{fmt, fs, io};

use crate::sys::Pid;

/// Where cgroup v2 is mounted: alone, or beside version 1.
const MOUNTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// What is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// `memory.max`, in bytes.
    pub memory: Option<u64>,
    /// `pids.max`
    pub pids: Option<u64>,
}

impl Limits {
    /// Each controller that it needs, its file and the value.
    fn files(self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
        let memory = self.memory.map(|value| ("memory", "memory.max", value));
        memory.into_iter().chain(self.pids.map(|value| ("pids", "pids.max", value)))
    }
}

/// Why a limit is not enforced.
#[derive(Debug)]
pub enum Unavailable {
    /// There is no cgroup v2.
    NoCgroup2,
    /// The supervisor's own cgroup does not have this controller.
    Controller(&'static str, PathBuf),
    /// The supervisor's own cgroup has other processes in it.
    Shared(PathBuf),
    /// The system said no. It is not delegated, most likely.
    Io(PathBuf, io::Error),
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCgroup2 => f.write_str("this system has no cgroup v2"),
            Self::Controller(name, own) => {
                write!(f, "cgroup {} does not have the controller `{name}`", own.display())
            }
            Self::Shared(own) => write!(
                f,
                "cgroup {} has other processes in it; start this in one of its own: `systemd-run --scope -p \
                 Delegate=yes …`, or as a service with `Delegate=yes`",
                own.display()
            ),
            Self::Io(path, error) => write!(
                f,
                "{}: {error}; to have it enforced, start this as a service with `Delegate=yes`",
                path.display()
            ),
        }
    }
}

impl std::error::Error for Unavailable {}

/// The supervisor's own cgroup, with itself in a leaf.
#[derive(Debug)]
pub struct Cgroups {
    own: PathBuf,
    /// Begins the name of each that is made here.
    prefix: String,
    /// Controllers that the leaves have.
    controllers: Vec<&'static str>,
    /// Which one they do not have, though they were to.
    missing: Option<Unavailable>,
}

impl Cgroups {
    /// Finds the supervisor's own cgroup and makes it ready for units with controllers for `limits`, those of all units
    /// together, as far as it has them. Moves this process.
    ///
    /// # Errors
    /// No limit holds.
    pub fn enter(limits: Limits) -> Result<Self, Unavailable> {
        let text = fs::read_to_string("/proc/self/cgroup").map_err(|_| Unavailable::NoCgroup2)?;
        let path = text.lines().find_map(|line| line.strip_prefix("0::")).ok_or(Unavailable::NoCgroup2)?;
        // The root's name is empty.
        let path = if path == "/" { "" } else { path };
        let own = MOUNTS.iter().map(|mount| PathBuf::from([mount, path].concat()));
        let own = own.into_iter().find(|own| own.join("cgroup.controllers").exists());
        let pid = std::process::id().cast_signed();
        Self::enter_at(own.ok_or(Unavailable::NoCgroup2)?, pid, limits)
    }

    /// The same for the process `pid` with this cgroup.
    pub fn enter_at(own: PathBuf, pid: Pid, limits: Limits) -> Result<Self, Unavailable> {
        let wrong = |name: &str| {
            let path = own.join(name);
            move |error| Unavailable::Io(path, error)
        };
        let there =
            fs::read_to_string(own.join("cgroup.controllers")).map_err(wrong("cgroup.controllers"))?;
        let (mut controllers, mut missing) = (Vec::new(), None);
        for (name, ..) in limits.files() {
            if there.split_ascii_whitespace().any(|have| have == name) {
                controllers.push(name);
            } else {
                missing = Some(Unavailable::Controller(name, own.clone()));
            }
        }
        let missing = match missing {
            Some(missing) if controllers.is_empty() => return Err(missing),
            missing => missing,
        };
        let cgroups = Self { prefix: format!("kitbag-{pid}"), controllers, missing, own: own.clone() };
        let leaf = own.join(&cgroups.prefix);
        make(&leaf).map_err(wrong(&cgroups.prefix))?;
        let entered = fs::write(leaf.join("cgroup.procs"), pid.to_string())
            .map_err(wrong(&format!("{}/cgroup.procs", cgroups.prefix)))
            .and_then(|()| cgroups.control('+'));
        match entered {
            Ok(()) => Ok(cgroups),
            Err(error) => {
                cgroups.leave(pid);
                Err(error)
            }
        }
    }

    /// Why some of the limits do not hold, if it is so.
    pub const fn missing(&self) -> Option<&Unavailable> {
        self.missing.as_ref()
    }

    /// Gives the leaves their controllers (`+`), or takes them away.
    fn control(&self, sign: char) -> Result<(), Unavailable> {
        let text: Vec<String> = self.controllers.iter().map(|name| format!("{sign}{name}")).collect();
        let path = self.own.join("cgroup.subtree_control");
        if text.is_empty() {
            return Ok(());
        }
        fs::write(&path, text.join(" ")).map_err(|error| match error.kind() {
            io::ErrorKind::ResourceBusy => Unavailable::Shared(self.own.clone()),
            _ => Unavailable::Io(path, error),
        })
    }

    /// Makes a unit's cgroup, with the limits that have a controller. One that is left over from before gets them anew.
    pub fn unit(&self, name: &str, limits: Limits) -> Result<Unit, Unavailable> {
        let path = self.own.join(format!("{}.{name}", self.prefix));
        make(&path).map_err(|error| Unavailable::Io(path.clone(), error))?;
        for (_, file, value) in limits.files().filter(|(name, ..)| self.controllers.contains(name)) {
            let file = path.join(file);
            fs::write(&file, value.to_string()).map_err(|error| Unavailable::Io(file, error))?;
        }
        Ok(Unit { path })
    }

    /// The name of the unit whose cgroup a process is in, or below, though it may have ended (proc_pid_cgroup(5)).
    pub fn unit_of(&self, pid: Pid) -> Option<String> {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let mut names = text.lines().find_map(|line| line.strip_prefix("0::"))?.split('/');
        names.find_map(|name| name.strip_prefix(&*self.prefix)?.strip_prefix('.')).map(str::to_owned)
    }

    /// Undoes what [`enter`](Self::enter) did, as far as it can be undone: units that are not empty stay.
    pub fn leave(self, pid: Pid) {
        // What fails here leaves an empty folder behind, which goes with the cgroup above it.
        let _ = self.control('-');
        let _ = fs::write(self.own.join("cgroup.procs"), pid.to_string());
        let _ = fs::remove_dir(self.own.join(&self.prefix));
    }
}

/// A unit's cgroup.
#[derive(Debug)]
pub struct Unit {
    path: PathBuf,
}

impl Unit {
    /// Its folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What a process writes to that joins it: [`crate::spawn::Setup::cgroup`].
    pub fn procs(&self) -> Option<CString> {
        CString::new(self.path.join("cgroup.procs").into_os_string().as_bytes()).ok()
    }

    /// Ends all that is in it, and below it, at once (Linux 5.14).
    pub fn kill(&self) -> io::Result<()> {
        fs::write(self.path.join("cgroup.kill"), "1")
    }

    /// True while a process, not counting zombies, is in it or below it. `None` where the system does not tell.
    pub fn is_populated(&self) -> Option<bool> {
        Some(self.value("cgroup.events", "populated")? != 0)
    }

    /// How often its memory limit left the kernel no way out, and how many of its processes were killed for want of
    /// memory: its own, or the machine's.
    pub fn short_of_memory(&self) -> [u64; 2] {
        ["oom", "oom_kill"].map(|key| self.value("memory.events", key).unwrap_or(0))
    }

    /// True if it has lost processes for its own memory limit since it was so [short](Self::short_of_memory).
    pub fn has_reached_memory(&self, before: [u64; 2]) -> bool {
        self.short_of_memory().iter().zip(before).all(|(now, before)| *now > before)
    }

    /// Bytes of memory that it has now.
    pub fn memory(&self) -> Option<u64> {
        fs::read_to_string(self.path.join("memory.current")).ok()?.trim().parse().ok()
    }

    /// True if no process can join it: what was in it has given controllers to cgroups below it, and not taken them back.
    pub fn is_shut(&self) -> bool {
        fs::read_to_string(self.path.join("cgroup.subtree_control")).is_ok_and(|text| !text.trim().is_empty())
    }

    /// Removes it and what is below it; fails while a process is there.
    pub fn remove(&self) -> io::Result<()> {
        remove(&self.path)
    }

    /// A value of a file with lines `key value`.
    fn value(&self, file: &str, key: &str) -> Option<u64> {
        let text = fs::read_to_string(self.path.join(file)).ok()?;
        let values = text.lines().filter_map(|line| line.split_once(' '));
        values.into_iter().find(|(found, _)| *found == key)?.1.parse().ok()
    }
}

/// Removes a cgroup after those below it: its files go with it.
fn remove(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}

fn make(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}
