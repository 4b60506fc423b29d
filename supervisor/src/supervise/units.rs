//! Units (instances of services, and tasks) and how they are found: by process, by time.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

use crate::spawn::cgroup;
use crate::state::{Ms, Service};
use crate::status::UnixMs;
use crate::sys::Pid;

use super::order::Part;
use super::ports::Held;
use super::schedule::{Plan, Record};
use super::spec::ServiceSpec;
use super::tail::Tail;

/// Number of a unit. It keeps it as long as the supervisor runs.
pub type Id = usize;

/// A service or task with its units.
#[derive(Debug)]
pub struct Members {
    /// What it is.
    pub spec: ServiceSpec,
    /// Its units, by index. Those beyond `wanted` are retired.
    pub units: Vec<Id>,
    /// How many of it shall run.
    pub wanted: u32,
    /// Sockets that all of them inherit, in the order of its ports.
    pub sockets: Vec<Option<Held>>,
    /// When a task is due.
    pub plan: Plan,
    /// A task's last run before this supervisor was started.
    pub remembered: Option<Box<Record>>,
}

/// A program that asks how a unit is.
#[derive(Debug)]
pub struct Helper {
    /// Its process, which leads a group.
    pub pid: Pid,
    /// When it was started, as in [`crate::snapshot::Process`].
    pub start: Option<u64>,
    /// When it has taken too long.
    pub late_at: Ms,
    /// What it prints.
    pub tail: Option<Tail>,
}

/// What a unit was told to do and cannot do yet. What it is told next takes the place of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Intent {
    /// Nothing: its state goes its own way.
    None,
    /// It stops as soon as nothing that needs it is active.
    Stop,
    /// The same, and then [`Intent::Start`].
    Restart,
    /// It starts as soon as it is at rest, and what it needs and is to stop, too.
    Start,
}

impl Intent {
    /// True if it is to stop.
    pub const fn stops(self) -> bool {
        matches!(self, Self::Stop | Self::Restart)
    }

    /// True if it is to start, at once or after its stop.
    pub const fn starts(self) -> bool {
        matches!(self, Self::Start | Self::Restart)
    }

    /// What is left of it when the unit has been asked to stop.
    pub const fn after_the_stop(self) -> Self {
        if self.starts() { Self::Start } else { Self::None }
    }
}

/// An instance of a service, or a task.
#[derive(Debug)]
pub struct Unit {
    /// Its service or task.
    pub part: Part,
    /// Its index.
    pub instance: u32,
    /// Its name for people.
    pub name: String,
    /// What is known of it.
    pub service: Service,
    /// Its process, until it is reaped.
    pub leader: Option<Pid>,
    /// The process that counts when its leader has ended, as it says (`MAINPID=`).
    pub main: Option<Pid>,
    /// When the leader of its last run was started, as in [`crate::snapshot::Process`].
    pub start: Option<u64>,
    /// What it was told to do and cannot do yet.
    pub intent: Intent,
    /// Its service has fewer instances by now.
    pub retired: bool,
    /// A task that was due while it ran, and runs again when it has ended.
    pub queued: bool,
    /// A task that was told to stop: its schedule does not start it, until somebody does.
    pub held: bool,
    /// When its state came to be: on the wall clock, and on ours.
    pub since: (UnixMs, Ms),
    /// The time under which it is in [`Timers`].
    pub timer: Option<Ms>,
    /// Why it stands where it stands.
    pub reason: Option<String>,
    /// The unit that it needs and that had failed, as long as it was not started for that.
    pub failed_need: Option<Id>,
    /// What was wrong with its user, ports or files when it was to be started.
    pub trouble: Option<Box<str>>,
    /// What its env files said at its last start, as the environment of its process tells too.
    pub from_files: Box<[(OsString, OsString)]>,
    /// Its ports, in the order of its service's; those that its service has for all instances are not here.
    pub ports: Vec<Option<Held>>,
    /// What it says of itself.
    pub says: Option<Box<str>>,
    /// Where its newline comes.
    pub newline: Option<OwnedFd>,
    /// What its processes are limited by, for the programs that probe it.
    pub ruleset: Option<OwnedFd>,
    /// The program that probes it.
    pub helper: Option<Box<Helper>>,
    /// Its cgroup, if it has limits that need one.
    pub cgroup: Option<cgroup::Unit>,
    /// How short of memory its cgroup had been when it was started.
    pub short_of_memory: [u64; 2],
    /// Its last end was for its memory limit.
    pub out_of_memory: bool,
}

impl Unit {
    /// One that has not been started.
    pub fn new(part: Part, instance: u32, name: String, since: (UnixMs, Ms)) -> Self {
        Self {
            part,
            instance,
            name,
            service: Service::default(),
            leader: None,
            main: None,
            start: None,
            intent: Intent::None,
            retired: false,
            queued: false,
            held: false,
            since,
            timer: None,
            reason: None,
            failed_need: None,
            trouble: None,
            from_files: Box::default(),
            ports: Vec::new(),
            says: None,
            newline: None,
            ruleset: None,
            helper: None,
            cgroup: None,
            short_of_memory: [0; 2],
            out_of_memory: false,
        }
    }

    /// The earliest time at which something has to be done for it.
    pub fn deadline(&self) -> Option<Ms> {
        self.service
            .state
            .deadline()
            .into_iter()
            .chain(self.helper.as_ref().map(|helper| helper.late_at))
            .min()
    }
}

/// Whose a child process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// It is the unit's own.
    Leader(Id),
    /// It probes the unit.
    Helper(Id),
}

/// The processes that were started here, by process id.
#[derive(Debug, Default)]
pub struct Pids(Vec<(Pid, Whose)>);

impl Pids {
    /// Whose a process is; `None`: it came to us.
    pub fn get(&self, pid: Pid) -> Option<Whose> {
        self.0.binary_search_by_key(&pid, |(pid, _)| *pid).ok().map(|at| self.0[at].1)
    }

    /// Remembers a process.
    pub fn insert(&mut self, pid: Pid, whose: Whose) {
        match self.0.binary_search_by_key(&pid, |(pid, _)| *pid) {
            Ok(at) => self.0[at].1 = whose,
            Err(at) => self.0.insert(at, (pid, whose)),
        }
    }

    /// Forgets one that was reaped.
    pub fn remove(&mut self, pid: Pid) {
        if let Ok(at) = self.0.binary_search_by_key(&pid, |(pid, _)| *pid) {
            self.0.remove(at);
        }
    }
}

/// When something has to be done for which unit, in order.
#[derive(Debug, Default)]
pub struct Timers(BTreeSet<(Ms, Id)>);

impl Timers {
    /// Puts a unit's time in order with its deadline.
    pub fn set(&mut self, id: Id, unit: &mut Unit) {
        let deadline = unit.deadline();
        if unit.timer == deadline {
            return;
        }
        if let Some(at) = unit.timer {
            self.0.remove(&(at, id));
        }
        if let Some(at) = deadline {
            self.0.insert((at, id));
        }
        unit.timer = deadline;
    }

    /// The next time.
    pub fn next(&self) -> Option<Ms> {
        self.0.first().map(|(at, _)| *at)
    }

    /// The units whose time has come.
    pub fn due(&self, now: Ms) -> Vec<Id> {
        self.0.iter().take_while(|(at, _)| *at <= now).map(|(_, id)| *id).collect()
    }
}
