//! How a running bundle stands: plain data, made by the loop, sent by [`crate::control`] as JSON or Prometheus' text,
//! read back by `FILE status`, which shows it to people.

use std::path::PathBuf;

use crate::state::Ms;
use crate::sys::Pid;

/// Milliseconds since 1970 in UTC, for display alone.
pub type UnixMs = i64;

/// A running bundle.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Status {
    /// The bundle's name.
    pub bundle: String,
    /// The bundle's version.
    pub version: String,
    /// The supervisor's process.
    pub pid: Pid,
    /// When the supervisor began.
    pub since: UnixMs,
    /// How long ago that was, on the monotonic clock.
    pub for_ms: Ms,
    /// It was asked to stop.
    pub stopping: bool,
    /// Where the app's state is.
    pub state_folder: PathBuf,
    /// Where its logs are; `None`: they are shown in the foreground alone.
    pub log_folder: Option<PathBuf>,
    /// Services' instances and tasks, in the order of their names.
    pub units: Vec<Unit>,
}

/// What a unit is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kind {
    /// An instance of a service.
    #[default]
    Service,
    /// A task.
    Task,
}

/// Where a unit stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum State {
    /// What it needs is not ready, or done, yet: [`Unit::waits_for`].
    #[default]
    Waiting,
    /// It was started, and is not ready yet.
    Starting,
    /// A service: it runs, and has shown that it is ready.
    Ready,
    /// A service that has said that it reads its configuration anew.
    Reloading,
    /// A task: it runs.
    Running,
    /// It was asked to end, for whatever reason.
    Stopping,
    /// It has ended and starts again after a delay: [`Unit::retry_in_ms`].
    Retrying,
    /// A task that waits for its time, or for somebody to ask.
    Idle,
    /// It has ended well and is not started again.
    Done,
    /// It was told to stop.
    Stopped,
    /// It has failed and is not started again until somebody asks.
    Failed,
}

const STATES: [(State, &str); 11] = [
    (State::Waiting, "waiting"),
    (State::Starting, "starting"),
    (State::Ready, "ready"),
    (State::Reloading, "reloading"),
    (State::Running, "running"),
    (State::Stopping, "stopping"),
    (State::Retrying, "retrying"),
    (State::Idle, "idle"),
    (State::Done, "done"),
    (State::Stopped, "stopped"),
    (State::Failed, "failed"),
];

impl State {
    /// Its name, for people and in JSON.
    pub fn name(self) -> &'static str {
        STATES.iter().find(|(state, _)| *state == self).map_or("", |(_, name)| name)
    }

    /// The state of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        STATES.iter().find(|(_, known)| *known == name).map(|(state, _)| *state)
    }

    /// Every state, in the order of a unit's life.
    pub fn all() -> impl Iterator<Item = Self> {
        STATES.into_iter().map(|(state, _)| state)
    }

    /// True if nothing of the unit runs and nothing is going to by itself, but a task at its time.
    pub const fn is_at_rest(self) -> bool {
        matches!(self, Self::Idle | Self::Done | Self::Stopped | Self::Failed)
    }
}

/// An instance of a service, or a task.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Unit {
    /// Its name for people: `web`, `web.2` where there are several, `backup`.
    pub name: String,
    /// The name of its service, or of the task, in the manifest.
    pub service: String,
    /// Its index in the service, from 0; `None` for a task.
    pub instance: Option<u32>,
    /// What it is.
    pub kind: Kind,
    /// The bundle counts as ready when this is: services, and tasks that run at the start.
    pub awaited: bool,
    /// Where it stands.
    pub state: State,
    /// Since when.
    pub since: UnixMs,
    /// For how long, on the monotonic clock.
    pub for_ms: Ms,
    /// Its process, while there is one. It leads a session of the same number.
    pub pid: Option<Pid>,
    /// How often it was started again without being asked to; of a task, how often it has run.
    pub restarts: u64,
    /// Its last end.
    pub last_end: Option<Ended>,
    /// Until it is started again; of a task, until its next run.
    pub retry_in_ms: Option<Ms>,
    /// What it waits for.
    pub waits_for: Vec<String>,
    /// Why it stands where it stands, as a clause: `/healthz answered 503 three times`.
    pub reason: Option<String>,
    /// What it says of itself: sd_notify(3) `STATUS=`.
    pub says: Option<String>,
}

/// How a process came to its end.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ended {
    /// In words: `exited with status 3`, `was ended by SIGSEGV`.
    pub how: String,
    /// When.
    pub at: UnixMs,
    /// How long ago.
    pub ago_ms: Ms,
    /// How long it had run.
    pub ran_ms: Ms,
    /// It counts as good.
    pub well: bool,
}

/// Something that happened to a unit, or to the bundle.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Event {
    /// When.
    pub at: UnixMs,
    /// To which unit; empty: to the bundle.
    pub unit: String,
    /// What, in one word: the name of the state that it came to, or `signal`, `scaled`.
    pub event: String,
    /// In words; may be empty.
    pub detail: String,
}
