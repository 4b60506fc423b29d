//! Which request does what. The table in [`route`] is the API of `docs/control.md`.

use serde_json::{Value, json};

use super::http::{Headers, Request};
use super::making::Making;
use super::{Accepted, App, Command, Refused, Surroundings};
use crate::near::nearest;
use crate::ports::registry::Published;
use crate::state::Ms;
use crate::status::{Kind, Readiness, State, Status, Unit, Unready, few, time};
use crate::sys::signal;

/// The content type of answers.
pub(super) const JSON: &str = "application/json";
/// The content type of events: an object a line.
pub(super) const JSON_LINES: &str = "application/x-ndjson";
/// How long a wait takes that does not say.
const WAIT: Ms = 30_000;
/// The longest wait.
const LONGEST_WAIT: Ms = 86_400_000;

/// An answer.
pub(super) enum Reply {
    /// A JSON value with its status code.
    Json(u16, Value),
    /// A path does not take a method, but this one.
    NotAllowed(&'static str, Value),
    /// Text of this content type.
    Text(&'static str, String),
    /// The last events; and if the client follows, those to come.
    Events {
        /// Go on until the client goes.
        follow: bool,
    },
    /// An answer of many parts.
    Making(fn(&mut dyn App) -> Making),
    /// An answer later.
    Wait(Wait),
}

impl Reply {
    /// Status code, headers of its own and body of what is answered at once.
    pub(super) fn parts(&self) -> (u16, Headers, String) {
        let json = |value: &Value| format!("{value}\n");
        match self {
            Self::Json(code, value) => (*code, Headers::of(JSON), json(value)),
            Self::NotAllowed(method, value) => {
                (405, Headers { allow: Some(method), ..Headers::of(JSON) }, json(value))
            }
            Self::Text(content_type, text) => (200, Headers::of(content_type), text.clone()),
            Self::Events { .. } | Self::Making(_) | Self::Wait(_) => (200, Headers::of(JSON), String::new()),
        }
    }
}

/// An error: what, and what to do about it.
pub(super) fn error(code: u16, what: &str, to_fix: &str) -> Reply {
    Reply::Json(code, error_json(what, to_fix))
}

fn error_json(what: &str, to_fix: &str) -> Value {
    json!({"error": what, "to_fix": to_fix})
}

/// What a client waits for.
pub(super) enum Goal {
    /// All are ready.
    Ready,
    /// Nothing of them runs, and nothing is going to by itself.
    Ended,
}

/// A client's wait.
pub(super) struct Wait {
    goal: Goal,
    /// The units; empty: all that the bundle's readiness depends on.
    name: String,
    /// From [`route`]: how long. Then: until when.
    pub(super) until: Ms,
    /// The connection goes on after the answer.
    pub(super) keep_alive: bool,
}

impl Wait {
    /// The answer, if there is one now; in any case if the time is `over`. A name may come to name nothing any more.
    pub(super) fn look(&self, status: &Status, over: bool) -> Option<(u16, Value)> {
        if !self.name.is_empty() && status.named(&self.name).next().is_none() {
            return Some((404, unknown_json(&self.name, status)));
        }
        match self.goal {
            Goal::Ready => match status.readiness(&self.name) {
                Readiness::Ready => Some((200, json!({"ready": true}))),
                Readiness::NotYet(units) => over.then(|| unready(&units, false)),
                Readiness::Never(units) => Some(unready(&units, true)),
            },
            Goal::Ended => {
                let running: Vec<&str> = status
                    .named(&self.name)
                    .filter(|unit| !unit.state.is_at_rest())
                    .map(|unit| unit.name.as_str())
                    .collect();
                if running.is_empty() {
                    let well = status.named(&self.name).all(has_ended_well);
                    return Some((200, json!({"ended": true, "well": well})));
                }
                let what = format!("still there: {}", few(&running));
                over.then(|| (503, json!({"ended": false, "error": what, "to_fix": "wait longer"})))
            }
        }
    }
}

/// Of a unit that is at rest. A task that was stopped before it ran has done nothing.
fn has_ended_well(unit: &Unit) -> bool {
    let as_wanted = match unit.kind {
        Kind::Service => unit.state != State::Failed,
        Kind::Task => unit.is_ready(),
    };
    as_wanted && unit.last_end.as_ref().is_none_or(|end| end.well)
}

fn unready(units: &[Unready], never: bool) -> (u16, Value) {
    let clause = |unit: &Unready| format!("{} is not ready ({}): {}", unit.unit, unit.state.name(), unit.why);
    let what: Vec<String> = units.iter().take(5).map(clause).collect();
    let more = units.len().saturating_sub(5);
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    let listed: Vec<Value> = units
        .iter()
        .map(|unit| json!({"unit": unit.unit, "state": unit.state.name(), "why": unit.why}))
        .collect();
    let to_fix =
        if never { "see its log; POST …/start tries again" } else { "wait longer, or see its log" };
    let what = format!("{}{more}", what.join("; "));
    (503, json!({"ready": false, "final": never, "units": listed, "error": what, "to_fix": to_fix}))
}

/// Every path, with the method that it wants.
const PATHS: [(&str, &str); 15] = [
    ("GET", "/v1/status"),
    ("GET", "/v1/ports"),
    ("GET", "/v1/snapshot"),
    ("GET", "/v1/events"),
    ("GET", "/v1/wait"),
    ("POST", "/v1/stop"),
    ("POST", "/v1/restart"),
    ("POST", "/v1/services/NAME/start"),
    ("POST", "/v1/services/NAME/stop"),
    ("POST", "/v1/services/NAME/restart"),
    ("POST", "/v1/services/NAME/signal"),
    ("POST", "/v1/services/NAME/scale"),
    ("GET", "/v1/services/NAME/environment"),
    ("POST", "/v1/tasks/NAME/run"),
    ("GET", "/metrics"),
];

/// Answers a request. `seen` is the status of this turn, if somebody needed it already; a command makes it an old one.
pub(super) fn route(request: &Request, app: &mut dyn App, seen: &mut Option<Status>) -> Reply {
    if request.has_wrong_body() {
        return error(400, "the body is no JSON object", "leave it out, or send `{…}`");
    }
    let path: Vec<&str> = request.path.iter().map(String::as_str).collect();
    match (request.method.as_str(), &path[..]) {
        ("GET", ["v1", "status"]) => Reply::Making(Making::status),
        ("GET", ["v1", "snapshot"]) => Reply::Making(Making::snapshot),
        ("GET", ["v1", "ports"]) => {
            Reply::Json(200, json!({"ports": app.ports().iter().map(Published::to_json).collect::<Vec<_>>()}))
        }
        ("GET", ["metrics"]) => Reply::Making(Making::metrics),
        ("GET", ["v1", "events"]) => {
            Reply::Events { follow: request.parameter("follow").is_none_or(|value| value != "0") }
        }
        ("GET", ["v1", "wait"]) => wait(request),
        ("GET", ["v1", "services", name, "environment"]) => match app.surroundings(name) {
            Ok(surroundings) => Reply::Json(200, surroundings_json(&surroundings)),
            Err(refused) => refusal(refused, name, app, seen),
        },
        ("POST", ["v1", "stop"]) => obey(&Command::Shutdown, "", app, seen),
        ("POST", ["v1", "restart"]) => obey(&Command::Restart(None), "", app, seen),
        ("POST", ["v1", "tasks", name, "run"]) => {
            obey(&Command::RunTask((*name).to_owned()), name, app, seen)
        }
        ("POST", ["v1", "services", name, verb]) => match command(request, name, verb) {
            Ok(command) => obey(&command, name, app, seen),
            Err(reply) => reply,
        },
        _ => lost(request),
    }
}

fn command(request: &Request, name: &str, verb: &str) -> Result<Command, Reply> {
    let name = name.to_owned();
    match verb {
        "start" => Ok(Command::Start(name)),
        "stop" => Ok(Command::Stop(name)),
        "restart" => Ok(Command::Restart(Some(name))),
        "signal" => {
            let text = request.parameter("signal").unwrap_or_default();
            match signal_number(&text) {
                Some(number) => Ok(Command::Signal(name, number)),
                None => Err(error(400, &format!("there is no signal `{text}`"), "name one: `?signal=HUP`")),
            }
        }
        "scale" => {
            let wanted = request.parameter("instances").and_then(|text| text.parse().ok());
            match wanted {
                Some(wanted) => Ok(Command::Scale(name, wanted)),
                None => Err(error(400, "no number of instances", "say how many, as in `?instances=3`")),
            }
        }
        _ => Err(lost(request)),
    }
}

/// A signal by name, `HUP` or `SIGHUP`, or by number.
pub(crate) fn signal_number(text: &str) -> Option<i32> {
    let by_number = || text.parse().ok().filter(|number| (1..=64).contains(number));
    signal::number(&text.to_ascii_uppercase()).or_else(by_number)
}

fn obey(command: &Command, name: &str, app: &mut dyn App, seen: &mut Option<Status>) -> Reply {
    match app.command(command) {
        Ok(Accepted { units }) => {
            *seen = None;
            Reply::Json(202, json!({"accepted": true, "units": units}))
        }
        Err(refused) => refusal(refused, name, app, seen),
    }
}

fn refusal(refused: Refused, name: &str, app: &mut dyn App, seen: &mut Option<Status>) -> Reply {
    match refused {
        Refused::Unknown => Reply::Json(404, unknown_json(name, seen.get_or_insert_with(|| app.status()))),
        Refused::Wrong(what) => error(400, &format!("cannot {what}"), "the status shows what is what"),
        Refused::Unfit { what, to_fix } => error(400, &what, &to_fix),
        Refused::Conflict(what) => error(409, &what, "try again later, or see the status"),
    }
}

fn wait(request: &Request) -> Reply {
    let goal = match (request.flag("ready"), request.flag("ended")) {
        (true, false) => Goal::Ready,
        (false, true) => Goal::Ended,
        _ => return error(400, "wait for what?", "say `?ready=1` or `?ended=1`"),
    };
    let timeout = match request.parameter("timeout") {
        None => WAIT,
        Some(text) => match time::parse_span(&text).filter(|span| *span <= LONGEST_WAIT) {
            Some(span) => span,
            None => {
                return error(400, &format!("`{text}` is no time"), "seconds, or `500ms`, `5m`, up to a day");
            }
        },
    };
    let name = request.parameter("unit").unwrap_or_default();
    Reply::Wait(Wait { goal, name, until: timeout, keep_alive: request.keep_alive })
}

/// What there is to say of a name that names nothing.
fn unknown_json(name: &str, status: &Status) -> Value {
    if let Some((what, to_fix)) = no_instance(name, status) {
        return error_json(&what, &to_fix);
    }
    let to_fix = match status.near(name) {
        Some(near) => format!("did you mean `{near}`?"),
        None => {
            let mut names: Vec<&str> = status.units.iter().map(|unit| unit.service.as_str()).collect();
            names.dedup();
            names.truncate(20);
            format!("there are: {}", names.join(", "))
        }
    };
    error_json(&format!("there is no service or task `{name}`"), &to_fix)
}

/// What there is to say of `web.7` where `web` has fewer instances.
fn no_instance(name: &str, status: &Status) -> Option<(String, String)> {
    let (service, number) = name.rsplit_once('.')?;
    let number = number.parse::<u32>().ok().filter(|number| *number < 1_000)?;
    let is_instance = |unit: &&Unit| unit.service == service && unit.instance.is_some();
    // A retired one may still be on its way to its end.
    let count = status.units.iter().filter(is_instance).filter(|unit| unit.awaited).count();
    status.units.iter().find(is_instance)?;
    let what = match count {
        0 => format!("there is no {name}: {service} was scaled to 0 instances"),
        1 => format!("there is no {name}: {service} has one instance, {service}.0"),
        _ => {
            format!("there is no {name}: {service} has the instances {service}.0 to {service}.{}", count - 1)
        }
    };
    let others = if count > 0 { "name another one, or " } else { "" };
    Some((what, format!("{others}`scale {service}={}`", number + 1)))
}

/// A path that is none, or a method that it does not take.
fn lost(request: &Request) -> Reply {
    let path = format!("/{}", request.path.join("/"));
    // As in the table: the third part is a name.
    let mut parts: Vec<&str> = request.path.iter().map(String::as_str).collect();
    if let Some(name) = parts.get_mut(2) {
        *name = "NAME";
    }
    let general = format!("/{}", parts.join("/"));
    if let Some((method, _)) = PATHS.iter().find(|(_, known)| *known == general) {
        let what = format!("{path} does not take {}", request.method);
        return Reply::NotAllowed(method, error_json(&what, &format!("use {method}")));
    }
    let known = PATHS.iter().map(|(_, path)| *path);
    let to_fix = match nearest(&general, known.clone()) {
        Some(near) => format!("did you mean {near}?"),
        None => format!("there are: {}", known.collect::<Vec<_>>().join(", ")),
    };
    error(404, &format!("there is no {path}"), &to_fix)
}

/// A variable that is no UTF-8 cannot be in JSON: it is named, and left out.
fn surroundings_json(surroundings: &Surroundings) -> Value {
    let mut left_out = Vec::new();
    let mut env = serde_json::Map::new();
    for (name, value) in &surroundings.env {
        match (name.to_str(), value.to_str()) {
            (Some(name), Some(value)) => _ = env.insert(name.to_owned(), value.into()),
            _ => left_out.push(name.to_string_lossy().into_owned()),
        }
    }
    let identity = surroundings.identity.as_ref();
    let mut limits = serde_json::Map::new();
    for (name, both) in &surroundings.limits {
        limits.insert((*name).to_owned(), json!(both));
    }
    json!({
        "environment": env,
        "left_out": left_out,
        "cwd": surroundings.cwd.to_string_lossy(),
        "identity": identity.map(|who| json!({"uid": who.uid, "gid": who.gid, "groups": who.groups})),
        "umask": surroundings.umask,
        "limits": limits,
        "nice": surroundings.nice,
        "oom_score": surroundings.oom_score,
        "cgroup": surroundings.cgroup.as_ref().map(|folder| folder.to_string_lossy()),
    })
}
