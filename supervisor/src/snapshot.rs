//! All that a supervisor knows and a successor could not find out again, as a value that can be written down and read
//! back. What else a supervisor has follows from this and from the manifest.
//!
//! Times are milliseconds of `CLOCK_MONOTONIC`, the same in all processes from one start of the machine to the next.
//! A process is its id together with when it was started, so that an id that belongs to another process by now is
//! never taken for it.

use std::fmt;

use kitbag_format::digest::Digest;
use serde::{Deserialize, Serialize};

use crate::mark::Marks;
use crate::state::{End, Event, Ms, Service, Whole};
use crate::status::UnixMs;
use crate::supervise::schedule::Plan;
use crate::supervise::units::Intent;
use crate::sys::Pid;

#[cfg(test)]
mod tests;

/// The version of the text. A reader knows its own alone; keys that it does not know are none of its business.
pub const VERSION: u32 = 2;

/// A supervisor's knowledge at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The bundle's name.
    pub bundle: String,
    /// The bundle's version.
    pub version: String,
    /// When it was taken.
    pub taken: Moment,
    /// The supervisor.
    pub supervisor: Process,
    /// When the supervision began: on the wall clock, and on ours.
    pub since: (UnixMs, Ms),
    /// Where the bundle stands.
    pub whole: Whole,
    /// It goes on when services have failed for good.
    pub stays: bool,
    /// The soft and the hard limit on open files that services get; this process's own may have been raised.
    pub open_files: Option<[u64; 2]>,
    /// Children that this process had before it supervised: not ours to end.
    pub strangers: Vec<Pid>,
    /// The number of the control socket that is listened at.
    pub control: Option<i32>,
    /// By which limits the units' processes are known.
    pub marks: Option<Marks>,
    /// Services and tasks; last, as [`SnapshotText`] adds them to the rest.
    pub parts: Vec<Part>,
}

/// A moment on one machine.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Moment {
    /// Which start of the machine it belongs to (random(4), `boot_id`); empty: not known.
    pub boot: String,
    /// On the wall clock.
    pub wall: UnixMs,
    /// On ours.
    pub now: Ms,
}

/// A process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its id.
    pub pid: Pid,
    /// When it was started, in clock ticks since the machine was (proc_pid_stat(5), field 22); `None` where there is no
    /// /proc: then it cannot be told from a later process of this id.
    pub start: Option<u64>,
}

/// A service, or a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Its name in the manifest.
    pub name: String,
    /// How many of it shall run.
    pub wanted: u32,
    /// When a task is due, and how often it has run.
    pub plan: Plan,
    /// The sockets that all its units inherit, in the order of its ports.
    pub sockets: Vec<Option<Port>>,
    /// Its units, by index; beyond `wanted` those that are to end, or have. Last, as above.
    pub units: Vec<Unit>,
}

/// An instance of a service, or a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unit {
    /// Its index.
    pub instance: u32,
    /// Its number among all units, which stands in its processes' mark.
    pub number: usize,
    /// What [`crate::state`] knows of it.
    pub service: Service,
    /// The first process of its run, while the state has one.
    pub leader: Option<Process>,
    /// The process that counts when that one has ended, as it says (`MAINPID=`).
    pub main: Option<Pid>,
    /// That process has ended and was reaped; its group may go on.
    pub reaped: bool,
    /// What it was told to do and cannot do yet.
    pub intent: Intent,
    /// A task that runs again when it has ended.
    pub queued: bool,
    /// A task that its schedule does not start.
    pub held: bool,
    /// When its state came to be: on the wall clock, and on ours.
    pub since: (UnixMs, Ms),
    /// Why it stands where it stands.
    pub reason: Option<String>,
    /// The number of the unit that it needs and that had failed, as long as it was not started for that.
    pub failed_need: Option<usize>,
    /// What it says of itself.
    pub says: Option<String>,
    /// The program that asks how it is, and when that has taken too long.
    pub helper: Option<(Process, Ms)>,
    /// Its cgroup's folder.
    pub cgroup: Option<String>,
    /// How short of memory its cgroup had been when the run began: `oom` and `oom_kill` of `memory.events`.
    pub short_of_memory: [u64; 2],
    /// Its last end was for its memory limit.
    pub out_of_memory: bool,
    /// The value of its `NOTIFY_SOCKET`, which a running program keeps.
    pub notify_socket: Option<String>,
    /// What it is connected by.
    pub descriptors: Descriptors,
    /// Its own ports, in the order of its service's.
    pub ports: Vec<Option<Port>>,
}

/// A port that is leased.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// Its number; `None`: it is a unix socket, whose path follows from names.
    pub number: Option<u16>,
    /// The number of the descriptor that has its name in the abstract namespace.
    pub name: Option<i32>,
    /// That of its socket: bound, listening for those who inherit it.
    pub socket: Option<i32>,
    /// Its unit may bind it now.
    pub is_lent: bool,
}

/// Numbers of descriptors in the process that took the snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Descriptors {
    /// The pipe of its standard output: where it is read, and where its processes write.
    pub stdout: Option<[i32; 2]>,
    /// The same for standard error.
    pub stderr: Option<[i32; 2]>,
    /// Where its newline comes.
    pub newline: Option<i32>,
    /// Its sd_notify(3) socket.
    pub notify: Option<i32>,
}

/// What of a unit's run is still there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remains {
    /// Its state has no run.
    NoRun,
    /// The process that leads it.
    Leader,
    /// That one has ended. The number of its group is nobody else's: whoever is in the group is the unit's.
    Group,
    /// Nothing. The number may be anybody's: it must not be signalled.
    Nothing,
}

/// Why a text is no snapshot that can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SnapshotError {
    /// It does not begin like one.
    NotOne,
    /// One of another version.
    Version(u32),
    /// Some of it is missing, or was changed.
    Damaged,
    /// It is whole, and does not say what this version has to know: at which line and column, and what.
    Content(String),
}

impl fmt::Display for SnapshotError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotOne => f.write_str("this is no supervisor's snapshot"),
            Self::Version(version) => {
                write!(f, "the snapshot has version {version}; this supervisor reads version {VERSION}")
            }
            Self::Damaged => f.write_str("the snapshot is damaged: some of it is missing, or was changed"),
            Self::Content(what) => write!(f, "the snapshot says something else than expected: {what}"),
        }
    }
}

impl std::error::Error for SnapshotError {}

/// The first line.
#[derive(Serialize, Deserialize)]
struct Head {
    kitbag_snapshot: u32,
    /// BLAKE3 of the second line without its end, in hexadecimal.
    digest: String,
}

impl Snapshot {
    /// Two lines of JSON: a head with version and digest, and the snapshot.
    pub fn to_text(&self) -> String {
        let mut text = SnapshotText::new(self.clone());
        while text.step() {}
        text.into_text()
    }

    /// Reads what [`Self::to_text`] wrote.
    ///
    /// # Errors
    /// [`SnapshotError`]
    pub fn from_text(text: &str) -> Result<Self, SnapshotError> {
        let (head, body) = text.split_once('\n').ok_or(SnapshotError::NotOne)?;
        let head: Head = serde_json::from_str(head).map_err(|_| SnapshotError::NotOne)?;
        if head.kitbag_snapshot != VERSION {
            return Err(SnapshotError::Version(head.kitbag_snapshot));
        }
        let body = body.strip_suffix('\n').ok_or(SnapshotError::Damaged)?;
        if Digest::of(body.as_bytes()).to_string() != head.digest {
            return Err(SnapshotError::Damaged);
        }
        serde_json::from_str(body).map_err(|error| SnapshotError::Content(error.to_string()))
    }

    /// What of it still counts at another moment. On the same start of the machine that is everything. After another one
    /// no process is left, the bundle is not being stopped any more, and times are as long ago, or as far ahead, by the
    /// wall clock; a clock that was put back makes them as recent as they can be.
    #[must_use]
    pub fn at(self, moment: &Moment) -> Self {
        if !moment.boot.is_empty() && self.taken.boot == moment.boot {
            return self;
        }
        let passed = Ms::try_from(moment.wall.saturating_sub(self.taken.wall)).unwrap_or(0);
        let then = self.taken.now.saturating_add(passed);
        let to = |at: Ms| match at {
            Ms::MAX => Ms::MAX,
            at => at.saturating_add(moment.now).saturating_sub(then),
        };
        Self {
            taken: moment.clone(),
            supervisor: Process { start: None, ..self.supervisor },
            since: (self.since.0, to(self.since.1)),
            whole: Whole::default(),
            strangers: Vec::new(),
            control: None,
            marks: None,
            parts: self.parts.into_iter().map(|part| part.of_another_boot(&to)).collect(),
            ..self
        }
    }
}

/// The text of a snapshot in the making. A step writes one unit.
pub struct SnapshotText {
    parts: std::vec::IntoIter<Part>,
    /// Those of the part that is being written.
    units: Option<std::vec::IntoIter<Unit>>,
    body: String,
}

impl SnapshotText {
    /// The text of this snapshot; of its parts none is written yet.
    pub fn new(mut snapshot: Snapshot) -> Self {
        let parts = std::mem::take(&mut snapshot.parts).into_iter();
        Self { parts, units: None, body: without_end(&snapshot) }
    }

    /// Goes on with the next unit; false if all is done.
    pub fn step(&mut self) -> bool {
        match self.units.as_mut().map(Iterator::next) {
            Some(Some(unit)) => self.list(&json(&unit)),
            Some(None) => {
                self.units = None;
                self.body.push_str("]}");
            }
            None => {
                let Some(mut part) = self.parts.next() else { return false };
                self.units = Some(std::mem::take(&mut part.units).into_iter());
                self.list(&without_end(&part));
            }
        }
        true
    }

    /// Adds to the list that is open.
    fn list(&mut self, text: &str) {
        if !self.body.ends_with('[') {
            self.body.push(',');
        }
        self.body.push_str(text);
    }

    /// The text, once nothing is left to do.
    pub fn into_text(mut self) -> String {
        self.body.push_str("]}");
        let digest = Digest::of(self.body.as_bytes()).to_string();
        let head = json(&Head { kitbag_snapshot: VERSION, digest });
        [&head, "\n", &self.body, "\n"].concat()
    }
}

/// Numbers, texts, lists and keys that are texts: nothing that JSON does not have.
fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

/// A value whose last field is an empty list, up to where that list begins.
fn without_end(value: &impl Serialize) -> String {
    let mut text = json(value);
    text.truncate(text.len().saturating_sub("]}".len()));
    text
}

impl Part {
    fn of_another_boot(self, to: &dyn Fn(Ms) -> Ms) -> Self {
        let units = self.units.into_iter().map(|unit| unit.of_another_boot(to)).collect();
        Self { plan: self.plan.with_times(to), sockets: Vec::new(), units, ..self }
    }
}

impl Unit {
    fn of_another_boot(self, to: &dyn Fn(Ms) -> Ms) -> Self {
        Self {
            service: self.service.with_times(to),
            leader: None,
            main: None,
            ports: Vec::new(),
            since: (self.since.0, to(self.since.1)),
            helper: None,
            cgroup: None,
            short_of_memory: [0; 2],
            notify_socket: None,
            descriptors: Descriptors::default(),
            ..self
        }
    }

    /// What of its run is there now. `start_of` says when the process that has an id now was started
    /// ([`crate::status::usage::start_of_process`]).
    pub fn remains(&self, start_of: &dyn Fn(Pid) -> Option<u64>) -> Remains {
        if self.service.state.run().is_none() {
            return Remains::NoRun;
        }
        let Some(Process { pid, start: Some(start) }) = self.leader else { return Remains::Nothing };
        match start_of(pid) {
            Some(found) if found == start && !self.reaped => Remains::Leader,
            // A new process gets no id that a group still has: whoever has this one came after the group.
            Some(_) => Remains::Nothing,
            None => Remains::Group,
        }
    }

    /// What has happened to it while nobody looked, for [`Service::step`].
    pub const fn missed(&self, remains: Remains) -> &'static [Event] {
        match remains {
            Remains::NoRun | Remains::Leader => &[],
            Remains::Group if self.reaped => &[],
            Remains::Group => &[Event::Exited(End::Unseen)],
            Remains::Nothing if self.reaped => &[Event::GroupGone],
            Remains::Nothing => &[Event::Exited(End::Unseen), Event::GroupGone],
        }
    }
}
