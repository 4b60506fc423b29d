//! A bundle's commands about its running self: each finds it by the state folder, and asks it through its socket.

use std::fs;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kitbag_format::exit;
use kitbag_format::manifest::Run;
use kitbag_format::service::LogFormat;
use lexopt::prelude::*;
use serde_json::Value;

use crate::commands::{Failure, pass_on, print};
use crate::control::client::{self, Answer, PATIENCE};
use crate::control::http::encoded;
use crate::open::Own;
use crate::state::Ms;
use crate::state_folder;
use crate::status::table::{self, Extra, Look};
use crate::status::{State, Status, Unit, time, usage};
use crate::store::place::Facts;
use crate::sys::wait;

pub mod background;
mod exec;
mod logs;
mod ports;

pub use exec::exec;
pub use logs::logs;
pub use ports::ports;

/// How often a socket is asked for that is not there yet, or no longer.
const POLL: Duration = Duration::from_millis(10);
/// How long a start may take until all is ready, unless told.
const START_TIME: Ms = 60_000;
/// How long `wait` waits unless told.
const WAIT_TIME: Ms = 30_000;
/// Ends a stop that was asked for: none but what the manifest says.
const WITHOUT_END: Ms = 86_400_000;
/// Lines of a log that come with bad news.
const LAST_LINES: usize = 10;

/// Where the running bundle's state is.
pub struct Running {
    name: String,
    state: PathBuf,
    /// How its logs are written.
    format: LogFormat,
    /// Its services and tasks.
    parts: Vec<String>,
}

impl Running {
    /// The one that this bundle's state folder belongs to, whether it runs or not.
    pub fn of(own: &Own) -> Result<Self, Failure> {
        let manifest = own.bundle.manifest()?;
        let facts = Facts::of_process(Some(&own.path));
        let name = state_folder::name(&facts, &manifest.name)?;
        match state_folder::find(&facts, &name) {
            Some(state) => {
                let services = match &manifest.run {
                    Run::Services(services) => services.keys().cloned().collect(),
                    Run::Command(_) => Vec::new(),
                };
                let parts = [services, manifest.tasks.keys().cloned().collect()].concat();
                Ok(Self { name, state, format: manifest.logs.format, parts })
            }
            None => Err(Failure::NotRunning { name, state: None }),
        }
    }

    /// Asks it, and waits for the answer for `patience` at most. One that is just starting gets some time.
    fn ask(&self, method: &str, target: &str, patience: Ms) -> Result<Answer, Failure> {
        let begin = Instant::now();
        loop {
            let error = match client::ask(&self.folder(), method, target, patience) {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let nobody = matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused);
            let starting = nobody && state_folder::is_in_use(&self.state);
            if !starting || begin.elapsed() > Duration::from_millis(PATIENCE) {
                return Err(self.silent(&error));
            }
            std::thread::sleep(POLL);
        }
    }

    /// Asks it to do something: the units that it concerns.
    fn order(&self, target: &str) -> Result<Vec<String>, Failure> {
        let answer = good(self.ask("POST", target, PATIENCE)?)?;
        let units = answer["units"].as_array().map_or(&[][..], Vec::as_slice);
        Ok(units.iter().filter_map(|unit| unit.as_str().map(str::to_owned)).collect())
    }

    fn status(&self) -> Result<Status, Failure> {
        Ok(Status::from_json(&good(self.ask("GET", "/v1/status", PATIENCE)?)?))
    }

    /// Where its socket is.
    fn folder(&self) -> PathBuf {
        state_folder::runtime_in(&self.state)
    }

    fn is_not_running(&self) -> Failure {
        Failure::NotRunning { name: self.name.clone(), state: Some(self.state.clone()) }
    }

    /// It runs, and does not answer; or it has just ended.
    fn silent(&self, error: &io::Error) -> Failure {
        if !state_folder::is_in_use(&self.state) {
            return self.is_not_running();
        }
        let pid =
            state_folder::user_of(&self.state).map_or_else(String::new, |pid| format!(" (process {pid})"));
        let why = match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "no answer in time".to_owned(),
            io::ErrorKind::UnexpectedEof => "its answer broke off".to_owned(),
            _ => error.to_string(),
        };
        Failure::Running(format!(
            "{} runs{pid}, and does not answer at {}: {why}\n  to fix  see what holds it up; \
             `kill -CONT` wakes it if it was stopped",
            self.name,
            self.folder().display()
        ))
    }
}

/// The answer's JSON, or what it says is wrong.
fn good(answer: Answer) -> Result<Value, Failure> {
    match answer.code {
        _ if answer.is_good() => Ok(answer.value),
        400 | 404 => Err(Failure::Refused(answer.fault())),
        _ => Err(Failure::Running(answer.fault())),
    }
}

/// What the bundle was called by, for sentences with something to type.
fn called() -> String {
    crate::sys::executed_path().map_or_else(|| "FILE".to_owned(), |path| path.display().to_string())
}

/// Options and names of a command line.
#[derive(Default)]
struct Line {
    names: Vec<String>,
    timeout: Option<Ms>,
    flags: Vec<&'static str>,
}

impl Line {
    /// Reads names, `--timeout` if `timed`, and these flags.
    fn read(mut parser: lexopt::Parser, timed: bool, flags: &[&'static str]) -> Result<Self, Failure> {
        let mut line = Self::default();
        while let Some(argument) = parser.next()? {
            match argument {
                Value(name) => line.names.push(name.string()?),
                Long("timeout") if timed => line.timeout = Some(span(&parser.value()?.string()?)?),
                Long(name) => match flags.iter().find(|flag| **flag == name) {
                    Some(flag) => line.flags.push(flag),
                    None => return Err(Long(name).unexpected().into()),
                },
                other => return Err(other.unexpected().into()),
            }
        }
        Ok(line)
    }

    fn has(&self, flag: &str) -> bool {
        self.flags.contains(&flag)
    }

    fn no_names(&self) -> Result<(), Failure> {
        match self.names.first() {
            Some(name) => Err(Failure::Usage(format!("unexpected argument `{name}`"))),
            None => Ok(()),
        }
    }
}

fn span(text: &str) -> Result<Ms, Failure> {
    let wrong = || Failure::Usage(format!("`{text}` is not a time: `500ms`, `30s`, `5m`, `1h`"));
    time::parse_span(text).filter(|span| *span <= WITHOUT_END).ok_or_else(wrong)
}

// --- Commands ---

/// `status [--json] [SVC…]`
pub fn status(own: &Own, parser: lexopt::Parser) -> Result<(), Failure> {
    let line = Line::read(parser, false, &["json"])?;
    let running = Running::of(own)?;
    let answer = running.ask("GET", "/v1/status", PATIENCE)?;
    let peer = answer.peer;
    let mut value = good(answer)?;
    let mut status = Status::from_json(&value);
    running.must_know(&line.names, &status)?;
    choose(&line.names, &mut value, &mut status);
    if line.has("json") {
        print(kitbag_format::report::json_text(&value).as_bytes())?;
    } else {
        let coloured = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        let look = Look { coloured, width: crate::sys::background::columns() };
        let extras = extras(&status, peer == Some(status.pid), running.format);
        print(table::render(&status, &extras, look, &called()).as_bytes())?;
    }
    let failed = status.units.iter().any(|unit| unit.state == State::Failed);
    if failed { Err(Failure::Found(exit::SERVICE_FAILED)) } else { Ok(()) }
}

/// Leaves the units of these names alone in a status; with none, all.
fn choose(names: &[String], value: &mut Value, status: &mut Status) {
    if names.is_empty() {
        return;
    }
    let mut chosen: Vec<&str> = Vec::new();
    for name in names {
        chosen.extend(status.named(name).map(|unit| unit.name.as_str()));
    }
    if let Some(units) = value["units"].as_array_mut() {
        units.retain(|unit| unit["name"].as_str().is_some_and(|name| chosen.contains(&name)));
    }
    *status = Status::from_json(value);
}

/// What the supervisor leaves to its clients: memory of whole sessions, if its processes have the same numbers here; last
/// lines.
fn extras(status: &Status, same_numbers: bool, format: LogFormat) -> Vec<Extra> {
    let session = |unit: &Unit| unit.pid.and_then(wait::session_of).unwrap_or(-1);
    let memory = if same_numbers {
        usage::of_sessions(&status.units.iter().map(session).collect::<Vec<_>>())
    } else {
        vec![0; status.units.len()]
    };
    let last_line = |unit: &Unit| {
        if unit.is_ready() { None } else { logs::last_lines(status, unit, format, 1).pop() }
    };
    status
        .units
        .iter()
        .zip(memory)
        .map(|(unit, memory)| Extra { memory, last_line: last_line(unit) })
        .collect()
}

/// `stop [SVC…]`: returns when they have ended; without a name, when everything has.
pub fn stop(own: &Own, parser: lexopt::Parser) -> Result<(), Failure> {
    let line = Line::read(parser, false, &["oknodo"])?;
    let outcome = Running::of(own).and_then(|running| {
        if line.names.is_empty() {
            running.order("/v1/stop")?;
            state_folder::wait_until_free(&running.state);
            return print(format!("{} has stopped\n", running.name).as_bytes());
        }
        let units = running.order_each(&line.names, "stop")?;
        line.names.iter().try_for_each(|name| running.wait("ended", name, WITHOUT_END).map(drop))?;
        print(format!("stopped: {}\n", units.join(", ")).as_bytes())
    });
    match outcome {
        Err(Failure::NotRunning { name, .. }) if line.has("oknodo") => {
            print(format!("{name} is not running\n").as_bytes())
        }
        other => other,
    }
}

/// `start [--timeout T] [--oknodo] [SVC…]`: everything in the background; or services of the running one.
pub fn start(own: &Own, parser: lexopt::Parser) -> Result<(), Failure> {
    let line = Line::read(parser, true, &["oknodo"])?;
    let timeout = line.timeout.unwrap_or(START_TIME);
    if line.names.is_empty() {
        return background::start(own, timeout, line.has("oknodo"));
    }
    let running = Running::of(own)?;
    let units = running.order_each(&line.names, "start")?;
    running.until_ready(&line.names, timeout)?;
    print(format!("ready: {}\n", units.join(", ")).as_bytes())
}

/// `restart [--timeout T] [SVC…]`: returns when they are ready again.
pub fn restart(own: &Own, parser: lexopt::Parser) -> Result<(), Failure> {
    let line = Line::read(parser, true, &[])?;
    let running = Running::of(own)?;
    let (units, names) = if line.names.is_empty() {
        (running.order("/v1/restart")?, vec![String::new()])
    } else {
        (running.order_each(&line.names, "restart")?, line.names)
    };
    running.until_ready(&names, line.timeout.unwrap_or(START_TIME))?;
    print(format!("restarted: {}\n", units.join(", ")).as_bytes())
}

/// `signal SIG SVC…`
pub fn signal(own: &Own, parser: lexopt::Parser) -> Result<(), Failure> {
    let line = Line::read(parser, false, &[])?;
    let [signal, names @ ..] = &line.names[..] else {
        return Err(Failure::Usage("name a signal and whom to send it: `signal HUP web`".to_owned()));
    };
    if crate::control::signal_number(signal).is_none() {
        return Err(Failure::Usage(format!("there is no signal `{signal}`; try `HUP`, `USR1` or a number")));
    }
    if names.is_empty() {
        return Err(Failure::Usage(format!("whom to send it to? `signal {signal} SVC…`")));
    }
    Running::of(own)?.order_each(names, &format!("signal?signal={}", encoded(signal))).map(drop)
}

/// `scale SVC=N…`
pub fn scale(own: &Own, parser: lexopt::Parser) -> Result<(), Failure> {
    let line = Line::read(parser, false, &[])?;
    let wanted = |text: &String| {
        let (name, number) = text.split_once('=')?;
        Some((name.to_owned(), number.parse::<u32>().ok()?))
    };
    let wanted: Option<Vec<(String, u32)>> = line.names.iter().map(wanted).collect();
    let Some(wanted) = wanted.filter(|wanted| !wanted.is_empty()) else {
        return Err(Failure::Usage("say how many of what: `scale web=3`".to_owned()));
    };
    let running = Running::of(own)?;
    running.check(&wanted.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>())?;
    for (name, number) in wanted {
        running.order(&format!("/v1/services/{}/scale?instances={number}", encoded(&name)))?;
    }
    Ok(())
}

/// `run-task NAME [--wait]`
pub fn run_task(own: &Own, parser: lexopt::Parser) -> Result<(), Failure> {
    let line = Line::read(parser, true, &["wait"])?;
    let [name] = &line.names[..] else {
        return Err(Failure::Usage("name one task: `run-task NAME`".to_owned()));
    };
    let running = Running::of(own)?;
    running.order(&format!("/v1/tasks/{}/run", encoded(name)))?;
    if !line.has("wait") {
        return Ok(());
    }
    let answer = running.wait("ended", name, line.timeout.unwrap_or(WITHOUT_END))?;
    if answer["well"] == true {
        return Ok(());
    }
    let status = running.status()?;
    let how = status.named(name).next().map_or_else(String::new, Unit::why);
    tell(&format!("task {name} did not end well: {how}"));
    running.tell_last_lines(&status, name);
    Err(Failure::Found(exit::SERVICE_FAILED))
}

/// `wait --ready [--timeout T] [SVC…]`
pub fn wait(own: &Own, parser: lexopt::Parser) -> Result<(), Failure> {
    let line = Line::read(parser, true, &["ready"])?;
    if !line.has("ready") {
        return Err(Failure::Usage("wait for what? `wait --ready`".to_owned()));
    }
    let names = if line.names.is_empty() { vec![String::new()] } else { line.names };
    Running::of(own)?.until_ready(&names, line.timeout.unwrap_or(WAIT_TIME))
}

/// `events [-f]`: an object a line.
pub fn events(own: &Own, mut parser: lexopt::Parser) -> Result<(), Failure> {
    let mut follow = false;
    while let Some(argument) = parser.next()? {
        match argument {
            Short('f') | Long("follow") => follow = true,
            other => return Err(other.unexpected().into()),
        }
    }
    let running = Running::of(own)?;
    // It is there, and answers.
    running.status()?;
    let target = format!("/v1/events?follow={}", u8::from(follow));
    let mut written = Ok(true);
    let result = client::follow(&running.folder(), &target, |line| {
        written = pass_on(line);
        matches!(written, Ok(true))
    });
    result.map_err(|error| running.silent(&error)).and(written.map(drop))
}

impl Running {
    /// Makes sure that all of several names are known, before anything is done with the first.
    fn check(&self, names: &[String]) -> Result<(), Failure> {
        if names.len() < 2 {
            return Ok(());
        }
        self.must_know(names, &self.status()?)
    }

    /// The same, with a status that was asked for already.
    fn must_know(&self, names: &[String], status: &Status) -> Result<(), Failure> {
        match names.iter().find(|name| status.named(name).next().is_none()) {
            // Its answer says what may have been meant.
            Some(name) => self.wait("ended", name, 0).map(drop),
            None => Ok(()),
        }
    }

    /// Asks the same for each name.
    fn order_each(&self, names: &[String], verb: &str) -> Result<Vec<String>, Failure> {
        self.check(names)?;
        let mut units = Vec::new();
        for name in names {
            units.extend(self.order(&format!("/v1/services/{}/{verb}", encoded(name)))?);
        }
        Ok(units)
    }

    /// Waits until `name` is `ready`, or has `ended`; the answer if it has come to that in time.
    fn wait(&self, goal: &str, name: &str, timeout: Ms) -> Result<Value, Failure> {
        let target = format!("/v1/wait?{goal}=1&unit={}&timeout={timeout}ms", encoded(name));
        let answer = self.ask("GET", &target, timeout.saturating_add(PATIENCE))?;
        match answer.code {
            503 => Err(Failure::NotReady { never: answer.value["final"] == true, answer: answer.value }),
            _ => good(answer),
        }
    }

    /// Waits until all of them are ready; or tells which is not and why, with the end of its log.
    fn until_ready(&self, names: &[String], timeout: Ms) -> Result<(), Failure> {
        let begin = Instant::now();
        for name in names {
            let left = timeout.saturating_sub(Ms::try_from(begin.elapsed().as_millis()).unwrap_or(Ms::MAX));
            match self.wait("ready", name, left) {
                Err(Failure::NotReady { answer, never }) => return Err(self.tell_unready(&answer, never)),
                other => other?,
            };
        }
        Ok(())
    }

    /// Tells who is not ready. The exit code says whether that may change.
    fn tell_unready(&self, answer: &Value, never: bool) -> Failure {
        let status = self.status().ok();
        for unit in answer["units"].as_array().into_iter().flatten() {
            let text = |key: &str| unit[key].as_str().unwrap_or("?");
            tell(&format!("{} is not ready ({}): {}", text("unit"), text("state"), text("why")));
            if let Some(status) = &status {
                self.tell_last_lines(status, text("unit"));
            }
        }
        let called = called();
        tell(&format!("{} goes on running: `{called} status` says more, `{called} stop` ends it", self.name));
        Failure::Found(if never { exit::SERVICE_FAILED } else { exit::NOT_READY })
    }

    /// What a unit has printed last, in its last run.
    fn tell_last_lines(&self, status: &Status, name: &str) {
        for unit in status.named(name).filter(|_| status.log_folder.is_some()) {
            let lines = logs::last_lines(status, unit, self.format, LAST_LINES);
            if lines.is_empty() && unit.began().is_some() {
                tell(&format!("  {} printed nothing in this run", unit.name));
            }
            for line in lines {
                tell(&format!("  {} | {line}", unit.name));
            }
        }
    }
}

/// A sentence on standard error.
fn tell(text: &str) {
    crate::commands::say(text);
}

/// The link in the supervisor's own folder that leads to where logs were written last, if not to the default.
const LOG_LINK: &str = "log-folder";

/// The log folder of a bundle, running or not: a supervisor that does not answer is no obstacle.
fn log_folder(running: &Running) -> PathBuf {
    let runtime = running.folder();
    fs::read_link(runtime.join(LOG_LINK)).unwrap_or_else(|_| default_log_folder(&runtime))
}

/// Where logs are unless the manifest says otherwise.
pub fn default_log_folder(runtime: &Path) -> PathBuf {
    runtime.join("log")
}

/// Remembers where logs are written, for who looks for them when nothing runs: the manifest alone does not say, as its
/// text may have variables of this process.
///
/// # Errors
/// Those of symlink(2) and rename(2).
pub fn note_log_folder(runtime: &Path, folder: &Path) -> io::Result<()> {
    let link = runtime.join(LOG_LINK);
    let absent = |error: io::Error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) };
    if folder == default_log_folder(runtime) {
        return fs::remove_file(&link).or_else(absent);
    }
    if fs::read_link(&link).is_ok_and(|known| known == folder) {
        return Ok(());
    }
    let part = runtime.join("log-folder.part");
    fs::remove_file(&part).or_else(absent)?;
    std::os::unix::fs::symlink(folder, &part)?;
    fs::rename(&part, &link)
}
