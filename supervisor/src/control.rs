//! What may be asked of a running bundle.

use std::path::PathBuf;

use crate::status::Status;

/// What the socket needs from the loop.
pub trait App {
    /// How things are.
    fn status(&mut self) -> Status;
    /// Begins what is asked for and returns at once.
    fn command(&mut self, command: &Command) -> Result<Accepted, Refused>;
    /// What a command beside a service's or task's processes needs; `None`: there is no such unit.
    fn surroundings(&mut self, name: &str) -> Option<Surroundings>;
}

/// What is to be done. A name is a service's (all its instances), an instance's (`web.2`) or a task's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Start it if it does not run; whatever it failed at is forgotten.
    Start(String),
    /// Stop it, and do not start it again.
    Stop(String),
    /// Stop it if it runs, and start it. `None`: every service.
    Restart(Option<String>),
    /// Send it a signal, by number.
    Signal(String, i32),
    /// Let so many instances of a service run.
    Scale(String, u32),
    /// Run a task now.
    RunTask(String),
    /// Stop everything, and end.
    Shutdown,
}

/// What was begun.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Accepted {
    /// The units that it concerns.
    pub units: Vec<String>,
}

/// Why nothing was begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// There is no unit of this name.
    Unknown,
    /// It cannot be done with this unit: words after "cannot", such as `scale a task`.
    Wrong(String),
    /// Not now: a sentence, such as `the bundle is stopping`.
    Conflict(String),
}

/// What a command beside a unit's processes needs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Surroundings {
    /// The complete environment.
    pub env: Vec<(std::ffi::OsString, std::ffi::OsString)>,
    /// The working directory.
    pub cwd: PathBuf,
    /// User, group and supplementary groups; `None`: the supervisor's.
    pub identity: Option<Identity>,
    /// umask(2); `None`: the supervisor's.
    pub umask: Option<u32>,
}

/// Who a process is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Identity {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}
