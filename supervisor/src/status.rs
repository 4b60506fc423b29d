//! How a running bundle stands: plain data, made by the loop, sent by [`crate::control`] as JSON or Prometheus' text,
//! read back by `FILE status`, which shows it to people.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::state::Ms;
use crate::sys::Pid;

pub mod metrics;
pub mod table;
pub mod time;
pub mod usage;

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

impl Kind {
    /// `service` or `task`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Task => "task",
        }
    }
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
    /// A task's next run on the clock that its schedule goes by: RFC 3339, with the offset from UTC.
    pub due_at: Option<String>,
    /// What it may do is limited by its `sandbox`.
    pub limited: bool,
    /// What it waits for.
    pub waits_for: Vec<String>,
    /// The unit, or the service, that has failed and that this one needs, if it was not started for that.
    pub failed_need: Option<String>,
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

impl Event {
    /// `{"time", "unit", "event", "detail"}`
    pub fn to_json(&self) -> Value {
        json!({"time": time::rfc3339(self.at), "unit": self.unit, "event": self.event, "detail": self.detail})
    }
}

// --- Readiness ---

/// Whether units are ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    /// All of them are.
    Ready,
    /// These are not yet.
    NotYet(Vec<Unready>),
    /// These are not, and are not going to be by themselves.
    Never(Vec<Unready>),
}

/// A unit that is not ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unready {
    /// Its name.
    pub unit: String,
    /// Where it stands.
    pub state: State,
    /// Why, as a clause.
    pub why: String,
}

impl Status {
    /// The units of this name: a service's instances, a task, or one instance, of which the first has two names
    /// ([`is_first`]). Empty: all units.
    pub fn named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Unit> {
        let is_service = self.units.iter().any(|unit| unit.service == name);
        let is_meant = move |unit: &&Unit| match is_service {
            true => unit.service == name,
            false => unit.name == name || unit.instance == Some(0) && is_first(name, &unit.service),
        };
        self.units.iter().filter(move |unit| name.is_empty() || is_meant(unit))
    }

    /// Whether the units of this name are ready; of all, those that the bundle's readiness depends on.
    pub fn readiness(&self, name: &str) -> Readiness {
        let concerned = self.named(name).filter(|unit| unit.awaited || !name.is_empty());
        let unready: Vec<&Unit> = concerned.filter(|unit| !unit.is_ready()).collect();
        let tell = |unit: &&Unit| Unready { unit: unit.name.clone(), state: unit.state, why: unit.why() };
        let never: Vec<Unready> = unready.iter().filter(|unit| unit.state.is_at_rest()).map(tell).collect();
        if unready.is_empty() {
            Readiness::Ready
        } else if never.is_empty() {
            Readiness::NotYet(unready.iter().map(tell).collect())
        } else {
            Readiness::Never(never)
        }
    }

    /// The name that a person may have meant by one that does not exist.
    pub fn near(&self, name: &str) -> Option<&str> {
        let names = self.units.iter().flat_map(|unit| [unit.service.as_str(), unit.name.as_str()]);
        crate::near::nearest(name, names.filter(|known| *known != name))
    }
}

/// True for `web.0`, the first instance of `web`, which is called `web` alone where the manifest has one instance.
pub fn is_first(name: &str, service: &str) -> bool {
    name.strip_prefix(service) == Some(".0")
}

impl Unit {
    /// True if what needs it can go on.
    pub const fn is_ready(&self) -> bool {
        match self.kind {
            Kind::Service => matches!(self.state, State::Ready | State::Reloading | State::Done),
            Kind::Task => matches!(self.state, State::Idle | State::Done),
        }
    }

    /// True if it stands for a service that was scaled to 0 instances.
    pub fn has_no_instance(&self) -> bool {
        self.kind == Kind::Service && self.state == State::Stopped && !self.awaited
    }

    /// When the run began that it is not ready in, or the last one if it does not run; `None`: it had none, or is ready.
    pub fn began(&self) -> Option<UnixMs> {
        match self.state {
            State::Starting | State::Running => Some(self.since),
            State::Ready | State::Reloading => None,
            _ => self.last_end.as_ref().map(|end| end.at.saturating_sub_unsigned(end.ran_ms)),
        }
    }

    /// Why it stands where it stands, as a clause.
    pub fn why(&self) -> String {
        let end = || self.last_end.as_ref().map(|end| end.how.clone());
        match (&self.reason, self.state) {
            (_, State::Stopped) if self.has_no_instance() => "it was scaled to 0 instances".to_owned(),
            (_, State::Stopped) => "it was told to stop".to_owned(),
            (Some(reason), _) => reason.clone(),
            (None, State::Waiting) if !self.waits_for.is_empty() => {
                format!("it waits for {}", few(&self.waits_for))
            }
            (None, State::Starting) => {
                let before = self.last_end.as_ref().filter(|end| !end.well);
                let before = before.map_or_else(String::new, |end| format!("; the run before {}", end.how));
                format!("it runs, and has not shown yet that it is ready{before}")
            }
            (None, State::Retrying | State::Failed | State::Done) => {
                end().map_or_else(|| self.state.name().to_owned(), |how| format!("it {how}"))
            }
            (None, _) => format!("it is {}", self.state.name()),
        }
    }
}

// --- JSON ---

impl Status {
    /// What `GET /v1/status` answers; `docs/control.md` says what each key means.
    pub fn to_json(&self) -> Value {
        let mut value = self.head();
        value["units"] = self.units.iter().map(Unit::to_json).collect();
        value
    }

    /// The same with no units.
    fn head(&self) -> Value {
        json!({
            "bundle": self.bundle,
            "version": self.version,
            "pid": self.pid,
            "since": time::rfc3339(self.since),
            "for_ms": self.for_ms,
            "stopping": self.stopping,
            "ready": self.readiness("") == Readiness::Ready,
            "state_folder": self.state_folder.to_string_lossy(),
            "log_folder": self.log_folder.as_ref().map(|folder| folder.to_string_lossy()),
        })
    }

    /// Reads what [`Self::to_json`] wrote. What is missing gets its default: the running one may be another version.
    pub fn from_json(value: &Value) -> Self {
        let units = value["units"].as_array().map_or(&[][..], Vec::as_slice);
        Self {
            bundle: text(&value["bundle"]),
            version: text(&value["version"]),
            pid: pid(&value["pid"]).unwrap_or(0),
            since: moment(&value["since"]),
            for_ms: number(&value["for_ms"]),
            stopping: value["stopping"] == true,
            state_folder: text(&value["state_folder"]).into(),
            log_folder: value["log_folder"].as_str().map(PathBuf::from),
            units: units.iter().map(Unit::from_json).collect(),
        }
    }
}

/// The text of [`Status::to_json`] in the making. A step writes one unit.
pub struct StatusText {
    status: Status,
    text: String,
    written: usize,
}

impl StatusText {
    /// The text of this status; nothing of it is written yet.
    pub fn new(status: Status) -> Self {
        let mut text = status.head().to_string();
        // Its end comes when the units are in.
        text.truncate(text.len() - 1);
        text.push_str(",\"units\":[");
        Self { status, text, written: 0 }
    }

    /// Goes on with the next unit; false if all is done.
    pub fn step(&mut self) -> bool {
        let Some(unit) = self.status.units.get(self.written) else { return false };
        if self.written > 0 {
            self.text.push(',');
        }
        self.text.push_str(&unit.to_json().to_string());
        self.written += 1;
        true
    }

    /// The text, once nothing is left to do.
    pub fn into_text(mut self) -> String {
        self.text.push_str("]}\n");
        self.text
    }
}

impl Unit {
    fn to_json(&self) -> Value {
        json!({
            "name": self.name,
            "service": self.service,
            "instance": self.instance,
            "kind": self.kind.name(),
            "awaited": self.awaited,
            "state": self.state.name(),
            "since": time::rfc3339(self.since),
            "for_ms": self.for_ms,
            "pid": self.pid,
            "restarts": self.restarts,
            "last_end": self.last_end.as_ref().map(Ended::to_json),
            "retry_in_ms": self.retry_in_ms,
            "due_at": self.due_at,
            "limited": self.limited,
            "waits_for": self.waits_for,
            "failed_need": self.failed_need,
            "reason": self.reason,
            "says": self.says,
        })
    }

    fn from_json(value: &Value) -> Self {
        let waits_for = value["waits_for"].as_array().map_or(&[][..], Vec::as_slice);
        Self {
            name: text(&value["name"]),
            service: text(&value["service"]),
            instance: value["instance"].as_u64().and_then(|index| index.try_into().ok()),
            kind: if value["kind"] == "task" { Kind::Task } else { Kind::Service },
            awaited: value["awaited"] == true,
            state: value["state"].as_str().and_then(State::from_name).unwrap_or_default(),
            since: moment(&value["since"]),
            for_ms: number(&value["for_ms"]),
            pid: pid(&value["pid"]),
            restarts: number(&value["restarts"]),
            last_end: value["last_end"].is_object().then(|| Ended::from_json(&value["last_end"])),
            retry_in_ms: value["retry_in_ms"].as_u64(),
            due_at: value["due_at"].as_str().map(str::to_owned),
            limited: value["limited"] == true,
            waits_for: waits_for.iter().map(text).collect(),
            failed_need: value["failed_need"].as_str().map(str::to_owned),
            reason: value["reason"].as_str().map(str::to_owned),
            says: value["says"].as_str().map(str::to_owned),
        }
    }
}

impl Ended {
    fn to_json(&self) -> Value {
        json!({
            "how": self.how,
            "at": time::rfc3339(self.at),
            "ago_ms": self.ago_ms,
            "ran_ms": self.ran_ms,
            "well": self.well,
        })
    }

    fn from_json(value: &Value) -> Self {
        Self {
            how: text(&value["how"]),
            at: moment(&value["at"]),
            ago_ms: number(&value["ago_ms"]),
            ran_ms: number(&value["ran_ms"]),
            well: value["well"] == true,
        }
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

fn pid(value: &Value) -> Option<Pid> {
    value.as_i64().and_then(|pid| pid.try_into().ok())
}

fn moment(value: &Value) -> UnixMs {
    value.as_str().and_then(time::from_rfc3339).unwrap_or(0)
}

/// The first five names, and how many more there are: for a sentence.
pub fn few<T: AsRef<str>>(names: &[T]) -> String {
    const MOST: usize = 5;
    let shown: Vec<&str> = names.iter().take(MOST).map(AsRef::as_ref).collect();
    let more = names.len().saturating_sub(MOST);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", shown.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(name: &str, state: State) -> Unit {
        Unit { name: name.into(), service: name.into(), awaited: true, state, ..Unit::default() }
    }

    #[test]
    fn of_many_names_the_first_five_are_told() {
        assert_eq!(few(&["1", "2", "3", "4", "5"]), "1, 2, 3, 4, 5");
        assert_eq!(few(&["1", "2", "3", "4", "5", "6", "7"]), "1, 2, 3, 4, 5 and 2 more");
    }

    #[test]
    fn json_brings_everything_back() {
        let mut web = unit("web.1", State::Retrying);
        web.service = "web".into();
        web.instance = Some(1);
        web.pid = Some(77);
        web.since = 1_795_255_923_123;
        web.restarts = 3;
        web.retry_in_ms = Some(1500);
        web.due_at = Some("2026-11-30T03:00:00+01:00".into());
        web.limited = true;
        web.waits_for = vec!["db".into()];
        web.failed_need = Some("db.1".into());
        web.reason = Some("\"quoted\"\n".into());
        web.last_end =
            Some(Ended { how: "exited with status 3".into(), at: 5, ago_ms: 1, ran_ms: 2, well: false });
        let status = Status {
            bundle: "shop".into(),
            version: "1".into(),
            pid: 1,
            since: 1_000,
            for_ms: 7,
            stopping: true,
            state_folder: "/s".into(),
            log_folder: Some("/s/log".into()),
            units: vec![web, Unit { kind: Kind::Task, says: Some("x".into()), ..unit("b", State::Idle) }],
        };
        assert_eq!(Status::from_json(&status.to_json()), status);
        let mut text = StatusText::new(status.clone());
        while text.step() {}
        let read: Value = serde_json::from_str(&text.into_text()).expect("it is JSON");
        assert_eq!(read, status.to_json());
        assert_eq!(Status::from_json(&Value::Null), Status::default());
        assert!(State::all().all(|state| State::from_name(state.name()) == Some(state)));
    }

    #[test]
    fn readiness_says_who_is_not_and_whether_that_can_change() {
        let mut status = Status { units: vec![unit("db", State::Ready)], ..Status::default() };
        assert_eq!(status.readiness(""), Readiness::Ready);
        status.units.push(Unit { waits_for: vec!["x".into()], ..unit("web", State::Waiting) });
        let Readiness::NotYet(units) = status.readiness("") else { panic!("{status:?}") };
        assert_eq!((units[0].unit.as_str(), units[0].why.as_str()), ("web", "it waits for x"));
        status.units.push(unit("mail", State::Failed));
        assert!(matches!(status.readiness(""), Readiness::Never(units) if units[0].unit == "mail"));
        assert_eq!(status.readiness("db"), Readiness::Ready);
        status.units.push(Unit { awaited: false, kind: Kind::Task, ..unit("nightly", State::Failed) });
        assert!(matches!(status.readiness("nightly"), Readiness::Never(_)));
        assert_eq!(status.near("webb"), Some("web"));
        assert_eq!(status.near("web"), None, "that name is no help");
        status.units[1].instance = Some(0);
        let named = |name: &str| status.named(name).map(|unit| unit.name.clone()).collect::<Vec<_>>();
        assert_eq!((named("web.0"), named("web.1")), (vec!["web".to_owned()], vec![]));
    }
}
