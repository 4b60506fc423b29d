//! A bundle's commands about its running self: each finds it by the state folder, and asks it through its socket.

use std::ffi::OsString;
use std::fs;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kitbag_format::exit;
use kitbag_format::manifest::Run;
use kitbag_format::service::{LogFormat, LogTo, ReadyWhen};
use kitbag_format::{Bundle, Digest};
use lexopt::prelude::*;
use serde_json::Value;

use crate::called::called;
use crate::commands::{Failure, pass_on, print};
use crate::control::client::{self, Answer, PATIENCE};
use crate::control::http::encoded;
use crate::control::socket;
use crate::open::Own;
use crate::state::Ms;
use crate::state_folder::{self, Found};
use crate::status::table::{self, Extra, Look};
use crate::status::{Kind, State, Status, Unit, time, usage};
use crate::store::place::Facts;
use crate::sys::{Pid, reason, wait};

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
/// Whoever runs is given so long for an answer, however short the time is that was asked for.
const SHORTEST: Ms = 1_000;
/// A wait ends so long before its time is over at most, for its answer to be there in time.
const MARGIN: Ms = 200;
/// How long a wait is silent, and how long it is at least between two of its words.
const SILENCE: [Ms; 2] = [3_000, 1_000];
/// How often a stop is looked at, at first and then.
const STOP_LOOK: [Ms; 2] = [100, 500];
/// Who ends while he is asked is given so long to let go of the state.
const ENDING: Duration = Duration::from_secs(5);
/// A wait without words.
const SILENT: [Ms; 2] = [WITHOUT_END; 2];
/// A service that is ready because it runs has to have run for so long when `start` says so.
const SETTLED: Ms = 100;
/// Lines of a log that come with bad news.
const LAST_LINES: usize = 10;

/// Where the running bundle's state is.
pub struct Running {
    name: String,
    state: PathBuf,
    /// How its logs are written.
    format: LogFormat,
    /// Where the manifest wants them.
    to: LogTo,
    /// Its services and tasks.
    parts: Vec<String>,
    /// What they need.
    needs: Vec<(String, Vec<String>)>,
    /// Services that are ready because they run.
    unproven: Vec<String>,
    version: String,
    digest: Digest,
    /// When all that is asked has to be answered.
    until: Option<Instant>,
}

impl Running {
    /// The one that this bundle's state folder belongs to, whether it runs or not.
    pub fn of(own: &Own) -> Result<Self, Failure> {
        let manifest = own.bundle.manifest()?;
        let facts = Facts::of_process(Some(&own.path));
        let name = state_folder::name(&facts, &manifest.name)?;
        let state = match state_folder::find(&facts, &name) {
            Ok(Found::State(state)) => state,
            Ok(Found::Nothing(looked)) => {
                let looked: Vec<String> = looked.iter().map(|path| path.display().to_string()).collect();
                return Err(Failure::NotRunning {
                    name,
                    place: format!(": no state is in {}", looked.join(", ")),
                });
            }
            Err((path, error)) => return Err(closed(&path, &error)),
        };
        let (mut parts, mut needs, mut unproven) = (Vec::new(), Vec::new(), Vec::new());
        if let Run::Services(services) = &manifest.run {
            for (name, service) in services {
                parts.push(name.clone());
                needs.push((name.clone(), service.more.needs.clone()));
                if service.more.ready.when == ReadyWhen::UpFor(0) {
                    unproven.push(name.clone());
                }
            }
        }
        parts.extend(manifest.tasks.keys().cloned());
        needs.extend(manifest.tasks.iter().map(|(name, task)| (name.clone(), task.needs.clone())));
        Ok(Self {
            parts,
            needs,
            unproven,
            name,
            state,
            format: manifest.logs.format,
            to: manifest.logs.to.clone(),
            version: manifest.version.clone(),
            digest: own.bundle.digest(),
            until: None,
        })
    }

    /// The same, asked for no longer than this from now on.
    fn within(mut self, timeout: Option<Ms>) -> Self {
        self.until = timeout.map(|timeout| Instant::now() + Duration::from_millis(timeout));
        self
    }

    /// What is left of the time for it.
    fn left(&self) -> Ms {
        self.until.map_or(WITHOUT_END, left_until)
    }

    /// Asks it, and waits for the answer for `patience` at most. One that is just starting gets some time.
    fn ask(&self, method: &str, target: &str, patience: Ms) -> Result<Answer, Failure> {
        let begin = Instant::now();
        let most = |time: Ms| time.min(self.left().max(SHORTEST));
        loop {
            // The kernel's timer may ring some milliseconds before this clock has come to the end.
            let all_that_is_left = self.left() <= patience;
            let error = match client::ask(&self.folder(), method, target, most(patience)) {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let nobody = matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused);
            let starting = nobody && self.is_in_use()?;
            if broke_off(&error) {
                // Its socket closes before it lets go of the state.
                let until = Instant::now() + ENDING;
                let until = self.until.map_or(until, |end| end.min(until));
                let pid = state_folder::user_of(&self.state);
                let _ = state_folder::wait_until_free(&self.state, pid, Some(until));
            }
            if !starting || begin.elapsed() > Duration::from_millis(most(PATIENCE)) {
                return Err(self.silent(&error, all_that_is_left));
            }
            std::thread::sleep(POLL);
        }
    }

    fn is_in_use(&self) -> Result<bool, Failure> {
        state_folder::is_in_use(&self.state).map_err(|error| closed(&self.state, &error))
    }

    /// Waits until process `pid`, which ran, is gone; a failure if that takes too long.
    fn wait_until_gone(&self, pid: Option<u32>) -> Result<(), Failure> {
        let gone = state_folder::wait_until_free(&self.state, pid, self.until);
        if gone.map_err(|error| closed(&self.state, &error))? {
            return Ok(());
        }
        let process = pid.map_or_else(String::new, |pid| format!(", as process {pid}"));
        Err(Failure::Late(format!(
            "{} is stopping still{process}\n  to fix  `{} status` says who has not ended; wait longer with --timeout",
            self.name,
            called()
        )))
    }

    /// A sentence, if what runs is of another file than this one.
    fn differs(&self, status: &Status) -> Option<String> {
        let is_other = || digest_of(status.pid).is_some_and(|digest| digest != self.digest);
        let (runs, this) = (&status.version, &self.version);
        if status.version.is_empty() || (runs == this && !is_other()) {
            return None;
        }
        let this = if runs == this { format!("another build of {this}") } else { this.clone() };
        Some(format!("what runs is {} {runs}, as process {}, and this file is {this}", self.name, status.pid))
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

    /// It runs, and does not answer; or it has just ended. Or it has had `all_that_is_left` of the time for it.
    fn silent(&self, error: &io::Error, all_that_is_left: bool) -> Failure {
        match self.is_in_use() {
            Ok(true) => {}
            Ok(false) => {
                let place = format!(" with its state in {}", self.state.display());
                return Failure::NotRunning { name: self.name.clone(), place };
            }
            Err(failure) => return failure,
        }
        let (process, pid) = match state_folder::user_of(&self.state) {
            Some(pid) => (format!(" as process {pid}"), pid.to_string()),
            None => (String::new(), "PID".to_owned()),
        };
        let late = matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
        let folder = self.folder();
        let why = match error.kind() {
            _ if late => "no answer in time".to_owned(),
            io::ErrorKind::UnexpectedEof => "its answer broke off".to_owned(),
            io::ErrorKind::NotFound => {
                return Failure::Running(format!(
                    "{} runs{process}, and cannot be asked: its socket {} is gone\n  to fix  if somebody has removed it, \
                     `kill {pid}` stops what runs, then `{} start`; a start that copies much into its state has none yet",
                    self.name,
                    folder.join(socket::NAME).display(),
                    called()
                ));
            }
            _ => error.to_string(),
        };
        let to_fix = if late {
            format!("`kill -CONT {pid}` wakes it if it was stopped")
        } else {
            format!("`kill {pid}` stops it")
        };
        let text = format!(
            "{} runs{process}, and does not answer at {}: {why}\n  to fix  see what holds it up; {to_fix}",
            self.name,
            folder.display()
        );
        if late && all_that_is_left { Failure::Late(text) } else { Failure::Running(text) }
    }
}

/// True if somebody has begun to listen, and has gone without an answer.
fn broke_off(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), UnexpectedEof | ConnectionReset | BrokenPipe)
}

/// This user may not see what is there.
fn closed(path: &Path, error: &io::Error) -> Failure {
    Failure::Running(format!(
        "cannot look into {}: {}\n  to fix  ask as the user that it belongs to, or as root",
        path.display(),
        reason(error)
    ))
}

/// The digest of the file that a process runs; `None` if it cannot be told.
fn digest_of(pid: Pid) -> Option<Digest> {
    let file = fs::File::open(format!("/proc/{pid}/exe")).ok()?;
    Some(Bundle::open(file).ok()?.digest())
}

fn left_until(until: Instant) -> Ms {
    Ms::try_from(until.saturating_duration_since(Instant::now()).as_millis()).unwrap_or(Ms::MAX)
}

/// The answer's JSON, or what it says is wrong.
fn good(answer: Answer) -> Result<Value, Failure> {
    match answer.code {
        _ if answer.is_good() => Ok(answer.value),
        400 | 404 => Err(Failure::Refused(answer.fault())),
        _ => Err(Failure::Running(answer.fault())),
    }
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
                Value(name) => line.names.push(named(name)?),
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

/// A name on the command line. An empty one, as of a variable that is not set, does not mean all.
fn named(argument: OsString) -> Result<String, Failure> {
    let name = argument.string()?;
    if name.is_empty() {
        return Err(Failure::Usage("a name is empty: there is no service or task ``".to_owned()));
    }
    Ok(name)
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
    let others = choose(&line.names, &mut value, &mut status);
    if line.has("json") {
        print(kitbag_format::report::json_text(&value).as_bytes())?;
    } else {
        let coloured = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        let look = Look {
            coloured,
            width: crate::sys::background::columns(),
            others: &others,
            needs: &running.needs,
        };
        let extras = extras(&status, peer == Some(status.pid), running.format);
        let mut text = table::render(&status, &extras, look, &called());
        if let Some(other) = running.differs(&status) {
            text.push_str(&format!("{other}: {}\n", swap()));
        }
        print(text.as_bytes())?;
    }
    let failed = status.units.iter().any(|unit| unit.state == State::Failed);
    if failed { Err(Failure::Found(exit::SERVICE_FAILED)) } else { Ok(()) }
}

/// Leaves the units of these names alone in a status; with none, all. Returns the others.
fn choose(names: &[String], value: &mut Value, status: &mut Status) -> Vec<Unit> {
    if names.is_empty() {
        return Vec::new();
    }
    let chosen: Vec<String> =
        names.iter().flat_map(|name| status.named(name)).map(|unit| unit.name.clone()).collect();
    if let Some(units) = value["units"].as_array_mut() {
        units.retain(|unit| unit["name"].as_str().is_some_and(|name| chosen.iter().any(|it| it == name)));
    }
    let (shown, others) =
        std::mem::take(&mut status.units).into_iter().partition(|it| chosen.contains(&it.name));
    status.units = shown;
    others
}

/// What the supervisor leaves to its clients: a look at whole sessions, if its processes have the same numbers here; last
/// lines.
fn extras(status: &Status, same_numbers: bool, format: LogFormat) -> Vec<Extra> {
    let session = |unit: &Unit| unit.pid.and_then(wait::session_of).unwrap_or(-1);
    let sessions = if same_numbers {
        usage::of_sessions(&status.units.iter().map(session).collect::<Vec<_>>())
    } else {
        vec![usage::Session::default(); status.units.len()]
    };
    let last_line = |unit: &Unit| {
        if unit.is_ready() { None } else { logs::last_lines(status, unit, format, 1).pop() }
    };
    let units = status.units.iter().zip(sessions);
    units.map(|(unit, session)| Extra { session, last_line: last_line(unit) }).collect()
}

/// `stop [--timeout T] [--oknodo] [SVC…]`: returns when they have ended; without a name, when everything has.
pub fn stop(own: &Own, parser: lexopt::Parser) -> Result<(), Failure> {
    let line = Line::read(parser, true, &["oknodo"])?;
    let outcome = Running::of(own).and_then(|running| {
        let running = running.within(line.timeout);
        if line.names.is_empty() { running.stop_all() } else { running.stop_some(&line.names) }
    });
    match outcome {
        Err(Failure::NotRunning { name, .. }) if line.has("oknodo") => {
            print(format!("{name} is not running\n").as_bytes())
        }
        other => other,
    }
}

/// What to type for this file to run in place of another version.
fn swap() -> String {
    let called = called();
    format!("`{called} stop`, then `{called} start`")
}

/// `start [--timeout T] [--oknodo] [SVC…]`: everything in the background; or services of the running one.
pub fn start(own: &Own, parser: lexopt::Parser) -> Result<(), Failure> {
    let line = Line::read(parser, true, &["oknodo"])?;
    let timeout = line.timeout.unwrap_or(START_TIME);
    if line.names.is_empty() {
        return background::start(own, timeout, line.has("oknodo"));
    }
    let running = Running::of(own)?.within(Some(timeout));
    let units = running.order_each(&line.names, "start")?;
    running.until_settled(&line.names)?;
    print(format!("ready: {}\n", units.join(", ")).as_bytes())
}

/// `restart [--timeout T] [SVC…]`: returns when they are ready again.
pub fn restart(own: &Own, parser: lexopt::Parser) -> Result<(), Failure> {
    let line = Line::read(parser, true, &[])?;
    let running = Running::of(own)?.within(Some(line.timeout.unwrap_or(START_TIME)));
    let other = running.differs(&running.status()?);
    let (units, names) = if line.names.is_empty() {
        // It would bring the same version back, and say that it did as it was told.
        if let Some(other) = other {
            return Err(Failure::Running(format!("{other}: nothing was restarted\n  to fix  {}", swap())));
        }
        (running.order("/v1/restart")?, vec![String::new()])
    } else {
        (running.order_each(&line.names, "restart")?, line.names)
    };
    running.until_settled(&names)?;
    other.iter().for_each(|other| tell(&format!("{other}, which runs after {}", swap())));
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
    let running = Running::of(own)?.within(line.timeout);
    running.order(&format!("/v1/tasks/{}/run", encoded(name)))?;
    if !line.has("wait") {
        return Ok(());
    }
    let answer = match running.wait("ended", name, SILENT, &mut |_| Ok(())) {
        Err(Failure::NotReady { .. }) => return Err(still_runs(name)),
        other => other?,
    };
    if answer["well"] == true {
        return Ok(());
    }
    let status = running.status()?;
    let how = status.named(name).next().map_or_else(String::new, Unit::why);
    tell(&format!("task {name} did not end well: {how}"));
    running.tell_last_lines(&status, name);
    Err(Failure::Found(exit::SERVICE_FAILED))
}

/// The time of whoever waits for a task is over, not that of the task.
fn still_runs(name: &str) -> Failure {
    let called = called();
    Failure::Late(format!(
        "task {name} still runs, and goes on\n  to fix  `{called} status {name}` says more, `{called} logs -f {name}` goes on \
         with what it prints, `{called} stop {name}` ends it"
    ))
}

/// `wait --ready [--timeout T] [SVC…]`
pub fn wait(own: &Own, parser: lexopt::Parser) -> Result<(), Failure> {
    let line = Line::read(parser, true, &["ready"])?;
    if !line.has("ready") {
        return Err(Failure::Usage("wait for what? `wait --ready`".to_owned()));
    }
    let names = if line.names.is_empty() { vec![String::new()] } else { line.names };
    Running::of(own)?.within(Some(line.timeout.unwrap_or(WAIT_TIME))).until_ready(&names)
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
    result.map_err(|error| running.silent(&error, false)).and(written.map(drop))
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
            Some(name) => self.wait("ended", name, SILENT, &mut |_| Ok(())).map(drop),
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

    /// Waits until `name` is `ready`, or has `ended`; the answer if it has come to that in time. What is so meanwhile is
    /// shown to `each` after the first of `spans`, and then after each of the second, and it may end the wait.
    fn wait(
        &self,
        goal: &str,
        name: &str,
        spans: [Ms; 2],
        each: &mut dyn FnMut(&Value) -> Result<(), Failure>,
    ) -> Result<Value, Failure> {
        let [mut span, later] = spans;
        loop {
            let left = self.left();
            // Several steps bring it to its end, so that the last answer is there in time.
            let time = left.saturating_sub((left / 10).min(MARGIN)).min(span);
            let target = format!("/v1/wait?{goal}=1&unit={}&timeout={time}ms", encoded(name));
            let answer = self.ask("GET", &target, time.saturating_add(PATIENCE))?;
            if answer.code != 503 {
                return good(answer);
            }
            let was_looked_at = answer.value[goal].is_boolean();
            if !was_looked_at && self.left() > 0 {
                // There are too many others now.
                std::thread::sleep(POLL);
                continue;
            }
            let never = answer.value["final"] == true;
            if never || self.left() == 0 {
                return Err(Failure::NotReady { never, answer: answer.value });
            }
            if time == span {
                each(&answer.value)?;
                span = later;
            }
        }
    }

    /// Waits until all of them are ready; or tells which is not and why, with the end of its log. After some seconds it
    /// tells what it waits for, and again when that is something new.
    fn until_ready(&self, names: &[String]) -> Result<(), Failure> {
        let mut told = Vec::new();
        let mut each = |answer: &Value| {
            let why = answer["error"].as_str().unwrap_or_default().to_owned();
            if !told.contains(&why) {
                tell(&format!("still waiting: {why}"));
                told.push(why);
            }
            Ok(())
        };
        for name in names {
            match self.wait("ready", name, SILENCE, &mut each) {
                Err(Failure::NotReady { answer, never }) => return Err(self.tell_unready(&answer, never)),
                other => other?,
            };
        }
        Ok(())
    }

    /// The same; and what is ready because it runs, has to have run for a moment.
    fn until_settled(&self, names: &[String]) -> Result<(), Failure> {
        self.until_ready(names)?;
        if self.unproven.is_empty() {
            return Ok(());
        }
        loop {
            let status = self.status()?;
            let (mut has_failed, mut left) = (false, 0);
            let named = names.iter().flat_map(|name| status.named(name));
            for unit in named.filter(|unit| self.is_unproven(unit)) {
                let ended_ill = unit.last_end.as_ref().is_some_and(|end| !end.well);
                if unit.state == State::Ready {
                    left = left.max(SETTLED.saturating_sub(unit.for_ms));
                } else if matches!(unit.state, State::Stopping | State::Starting) {
                    // Its process has ended, and the rest of it is on its way out; or it starts once more.
                    left = SETTLED;
                } else if unit.state == State::Failed || (unit.state == State::Retrying && ended_ill) {
                    self.tell_one(Some(&status), &unit.name, unit.state.name(), &unit.why());
                    has_failed = true;
                }
            }
            if has_failed {
                self.tell_what_runs(&status);
                return Err(Failure::Found(exit::SERVICE_FAILED));
            }
            match left.min(self.left()) {
                0 => return Ok(()),
                left => std::thread::sleep(Duration::from_millis(left)),
            }
        }
    }

    fn is_unproven(&self, unit: &Unit) -> bool {
        unit.kind == Kind::Service && self.unproven.contains(&unit.service)
    }

    /// Tells who is not ready. The exit code says whether that may change.
    fn tell_unready(&self, answer: &Value, never: bool) -> Failure {
        let status = self.status();
        for unit in answer["units"].as_array().into_iter().flatten() {
            let text = |key: &str| unit[key].as_str().unwrap_or("?");
            self.tell_one(status.as_ref().ok(), text("unit"), text("state"), text("why"));
        }
        self.tell_what_runs(&status.unwrap_or_default());
        Failure::Found(if never { exit::SERVICE_FAILED } else { exit::NOT_READY })
    }

    /// Tells of one that is not ready, with the end of its log.
    fn tell_one(&self, status: Option<&Status>, unit: &str, state: &str, why: &str) {
        tell(&format!("{unit} is not ready ({state}): {why}"));
        if let Some(status) = status {
            self.tell_last_lines(status, unit);
        }
    }

    /// Tells what becomes of a bundle that is not ready.
    fn tell_what_runs(&self, status: &Status) {
        let (name, called) = (&self.name, called());
        tell(&if status.stopping {
            format!("{name} is stopping: `{called} start` waits for that, and starts it again")
        } else {
            format!("{name} goes on running: `{called} status` says more, `{called} stop` ends it")
        });
    }

    /// Stops everything, and waits until it is gone.
    fn stop_all(&self) -> Result<(), Failure> {
        let pid = state_folder::user_of(&self.state);
        self.order("/v1/stop")?;
        self.wait_until_gone(pid)?;
        if self.is_in_use()? {
            let next = state_folder::user_of(&self.state).filter(|next| Some(*next) != pid);
            if let Some(next) = next {
                return Err(self.started_again(&self.name, Some(next)));
            }
        }
        print(format!("{} has stopped\n", self.name).as_bytes())
    }

    /// Stops these, and waits until what ran of them has ended.
    fn stop_some(&self, names: &[String]) -> Result<(), Failure> {
        let before = self.status()?;
        let units = self.order_each(names, "stop")?;
        let mut stopping = Vec::new();
        // What needs them stops, too, and first, unless nothing of them ran.
        let own: Vec<&Unit> = names.iter().flat_map(|name| before.named(name)).collect();
        let is_other =
            |unit: &&Unit| units.contains(&unit.name) && !own.iter().any(|own| own.service == unit.service);
        let mut others: Vec<&String> =
            before.units.iter().filter(is_other).map(|unit| &unit.service).collect();
        others.dedup();
        for name in names.iter().chain(others) {
            self.wait("ended", name, STOP_LOOK, &mut |_| self.started_since(name, &before, &mut stopping))?;
        }
        print(format!("stopped: {}\n", units.join(", ")).as_bytes())
    }

    /// An error if one of this name has ended since, and been started again: it is another process than `before`, or
    /// was `stopping` at an earlier look, and neither stops nor has ended.
    fn started_since(&self, name: &str, before: &Status, stopping: &mut Vec<String>) -> Result<(), Failure> {
        for unit in self.status()?.named(name) {
            if unit.state == State::Stopping {
                stopping.push(unit.name.clone());
                continue;
            }
            let was = before.units.iter().find(|was| was.name == unit.name).and_then(|was| was.pid);
            let is_new = (unit.pid.is_some() && unit.pid != was) || stopping.contains(&unit.name);
            if !unit.state.is_at_rest() && is_new {
                return Err(self.started_again(&unit.name, unit.pid.map(Pid::cast_unsigned)));
            }
        }
        Ok(())
    }

    fn started_again(&self, name: &str, pid: Option<u32>) -> Failure {
        let process = pid.map_or_else(String::new, |pid| format!(", as process {pid}"));
        Failure::Running(format!(
            "{name} has stopped, and was started again meanwhile{process}\n  to fix  `{} events` shows when; stop it again",
            called()
        ))
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
fn log_folder(running: &Running) -> Result<PathBuf, Failure> {
    let runtime = running.folder();
    match fs::read_link(runtime.join(LOG_LINK)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(default_log_folder(&runtime)),
        other => other.map_err(|error| closed(&runtime, &error)),
    }
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

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    /// A bundle that is asked, and the listener of who answers in its place.
    fn asked(folder: &Path) -> (Running, UnixListener) {
        let running = Running {
            name: "shop".to_owned(),
            state: folder.to_owned(),
            format: LogFormat::Plain,
            to: LogTo::Auto,
            parts: Vec::new(),
            needs: Vec::new(),
            unproven: Vec::new(),
            version: String::new(),
            digest: Digest([0; 32]),
            until: None,
        };
        let runtime = state_folder::runtime(folder).expect("a folder");
        (running, UnixListener::bind(runtime.join(socket::NAME)).expect("a socket"))
    }

    #[test]
    fn a_supervisor_that_ends_while_it_is_asked_does_not_run() {
        let folder = tempfile::tempdir().expect("a folder");
        let (running, listener) = asked(folder.path());
        let lock = state_folder::lock(folder.path()).expect("nobody else's");
        let ending = thread::spawn(move || {
            drop(listener.accept().expect("a client"));
            drop(listener);
            thread::sleep(Duration::from_millis(300));
            drop(lock);
        });
        let answer = running.ask("GET", "/v1/status", PATIENCE);
        assert!(matches!(answer, Err(Failure::NotRunning { .. })), "{}", answer.err().unwrap());
        ending.join().expect("it ends");
    }

    #[test]
    fn an_overloaded_supervisor_is_not_asked_again_at_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let (running, listener) = asked(folder.path());
        let overloaded = thread::spawn(move || {
            let until = Instant::now() + Duration::from_millis(300);
            for asked in 1.. {
                let mut stream = listener.accept().expect("a client").0;
                let _ = stream.read(&mut [0; 1000]).expect("a request");
                let is_over = Instant::now() >= until;
                let (code, body) =
                    if is_over { (200, r#"{"ready":true}"#) } else { (503, r#"{"error":"too many"}"#) };
                write!(stream, "HTTP/1.1 {code} X\r\nContent-Length: {}\r\n\r\n{body}", body.len())
                    .expect("sent");
                if is_over {
                    return asked;
                }
            }
            0
        });
        let answer = running.wait("ready", "", SILENCE, &mut |_| panic!("it has not looked yet"));
        assert_eq!(answer.ok(), Some(serde_json::json!({"ready": true})));
        let asked = overloaded.join().expect("it ends");
        assert!((2..=31).contains(&asked), "asked {asked} times");
    }
}
