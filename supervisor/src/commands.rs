//! The bundle's own command line, and the edge: what went wrong as a sentence, and the exit code.
//!
//! One table of commands feeds dispatch, help and the near miss of a typing error.

use std::ffi::OsString;
use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use kitbag_format::manifest::Run;
use kitbag_format::report::{self, Summary};
use kitbag_format::{Error, exit, extract};
use lexopt::prelude::*;

use crate::called::called;
use crate::expand::ExpandError;
use crate::open::{self, Own};
use crate::service::Setting;
use crate::status::time::parse_span;
use crate::store::StoreError;
use crate::store::collect::{self, Policy};
use crate::store::place::{self, Facts};
use crate::{machine, near, running, service, store::heal, tool};

/// Why a bundle's command, or its start, did not work.
#[derive(Debug)]
pub enum Failure {
    /// The bundle's bytes.
    Bundle(Error),
    /// The store, or the state folder.
    Store(StoreError),
    /// A placeholder.
    Expand(ExpandError),
    /// A tool's program.
    NotStarted {
        /// Its path.
        program: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A service cannot be what its manifest asks for on this host.
    Service(String),
    /// The command line.
    Usage(String),
    /// The bundle is to be asked something, and does not run.
    NotRunning {
        /// Its name.
        name: String,
        /// Where that was seen, as the words after "is not running".
        place: String,
    },
    /// It runs, and what was asked of it did not work: a sentence.
    Running(String),
    /// It runs, and what was asked of it makes no sense: a sentence, and what to do.
    Refused(String),
    /// It runs, and did not come to what was waited for.
    NotReady {
        /// What it answered.
        answer: serde_json::Value,
        /// It is not going to by itself.
        never: bool,
    },
    /// It did not come to what was waited for, nor did it say why: a sentence, and what to do.
    Late(String),
    /// Found and reported; only the code is left to say.
    Found(u8),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Bundle(error)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<ExpandError> for Failure {
    fn from(error: ExpandError) -> Self {
        Self::Expand(error)
    }
}

impl From<lexopt::Error> for Failure {
    fn from(error: lexopt::Error) -> Self {
        Self::Usage(error.to_string())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bundle(error) if error.advice().is_empty() => error.fmt(f),
            Self::Bundle(error) => write!(f, "{error}\n  to fix  {}", error.advice()),
            Self::Store(error) => error.fmt(f),
            Self::Expand(error) => error.fmt(f),
            Self::NotStarted { program, error } => write!(f, "cannot start {}: {error}", program.display()),
            Self::Usage(why) => write!(f, "{why}\n  to fix  see `--help`; of a tool bundle, `--kitbag help`"),
            Self::Service(why) => f.write_str(why),
            Self::NotRunning { name, place } => write!(
                f,
                "{name} is not running{place}\n  to fix  `{} start` starts it; KITBAG_STATE names another state folder",
                called()
            ),
            Self::Running(what) | Self::Refused(what) | Self::Late(what) => f.write_str(what),
            Self::NotReady { answer, .. } => {
                f.write_str(answer["error"].as_str().unwrap_or("it is not ready"))
            }
            Self::Found(_) => Ok(()),
        }
    }
}

impl Failure {
    /// The exit code. What keeps a tool from starting has one of its own, as the program's could be any other.
    fn code(&self, starting_tool: bool) -> u8 {
        match self {
            Self::Usage(_) | Self::Refused(_) => exit::USAGE,
            Self::Found(code) => *code,
            Self::NotRunning { .. } => exit::NOT_RUNNING,
            Self::Running(_) => exit::FAILURE,
            Self::Late(_) => exit::NOT_READY,
            Self::NotReady { never, .. } => {
                if *never {
                    exit::SERVICE_FAILED
                } else {
                    exit::NOT_READY
                }
            }
            _ if starting_tool => exit::NOT_STARTED,
            Self::Bundle(Error::Io { .. }) | Self::Expand(_) | Self::Service(_) => exit::FAILURE,
            Self::Bundle(_) => exit::DAMAGED,
            Self::Store(error) => error.exit_code(),
            Self::NotStarted { .. } => exit::NOT_STARTED,
        }
    }
}

/// What a person hears from us while a program is about to run.
pub fn say(text: &str) {
    // Nobody is left to hear that stderr is gone.
    let _ = writeln!(io::stderr(), "kitbag: {text}");
}

/// Which bundles have a command.
#[derive(Clone, Copy, PartialEq, Eq)]
enum For {
    All,
    /// Bundles of services.
    Services,
}

struct Command {
    whose: For,
    name: &'static str,
    arguments: &'static str,
    about: &'static str,
    run: fn(&Own, lexopt::Parser) -> Result<(), Failure>,
}

impl Command {
    /// How it is typed, `FILE` for the bundle.
    fn usage(&self, is_tool: bool) -> String {
        let file = if is_tool { "FILE --kitbag" } else { "FILE" };
        format!("{file} {} {}", self.name, self.arguments)
    }
}

const COMMANDS: &[Command] = &[
    Command {
        whose: For::Services,
        name: "start",
        arguments: "[--timeout 60s] [--oknodo] [SVC…]",
        about: "run in the background, and return when all is ready; or start these services again",
        run: running::start,
    },
    Command {
        whose: For::Services,
        name: "status",
        arguments: "[--json] [SVC…]",
        about: "how the running services are, and what to do next",
        run: running::status,
    },
    Command {
        whose: For::Services,
        name: "ports",
        arguments: "[--host] [--json] [SVC…]",
        about: "which ports the services have; --host: every bundle's on this host",
        run: running::ports,
    },
    Command {
        whose: For::Services,
        name: "stop",
        arguments: "[--timeout 5m] [--oknodo] [SVC…]",
        about: "stop everything that runs, or these services, and return when it is gone",
        run: running::stop,
    },
    Command {
        whose: For::Services,
        name: "restart",
        arguments: "[--timeout 60s] [SVC…]",
        about: "stop and start all services or these, and return when they are ready",
        run: running::restart,
    },
    Command {
        whose: For::Services,
        name: "logs",
        arguments: "[-f] [-n N] [SVC…]",
        about: "what services printed; -f goes on with what they print",
        run: running::logs,
    },
    Command {
        whose: For::Services,
        name: "wait",
        arguments: "--ready [--timeout 30s] [SVC…]",
        about: "until all services or these are ready",
        run: running::wait,
    },
    Command {
        whose: For::Services,
        name: "signal",
        arguments: "SIG SVC…",
        about: "send services a signal",
        run: running::signal,
    },
    Command {
        whose: For::Services,
        name: "scale",
        arguments: "SVC=N…",
        about: "run so many instances of a service",
        run: running::scale,
    },
    Command {
        whose: For::Services,
        name: "run-task",
        arguments: "NAME [--wait] [--timeout 1h]",
        about: "run a task now",
        run: running::run_task,
    },
    Command {
        whose: For::Services,
        name: "exec",
        arguments: "SVC -- CMD",
        about: "run a command with a service's environment, folder and user",
        run: running::exec,
    },
    Command {
        whose: For::Services,
        name: "events",
        arguments: "[-f]",
        about: "what happened last to services, as JSON lines; -f goes on",
        run: running::events,
    },
    Command {
        whose: For::All,
        name: "inspect",
        arguments: "[--json]",
        about: "what the bundle is, and where it unpacks",
        run: inspect,
    },
    Command { whose: For::All, name: "list", arguments: "[--long]", about: "the files in it", run: list },
    Command {
        whose: For::All,
        name: "unpack",
        arguments: "DIR",
        about: "its files into a new or empty folder",
        run: unpack,
    },
    Command {
        whose: For::All,
        name: "verify",
        arguments: "[--unpacked]",
        about: "every byte against its digest; also those unpacked earlier",
        run: verify,
    },
    Command {
        whose: For::All,
        name: "gc",
        arguments: "[--keep N] [--older-than 30d] [--dry-run]",
        about: "remove unpacked bundles that nothing runs: all but the N last used of each app, and what was not used for that long",
        run: gc,
    },
];

/// Does what the file was started for, with these arguments behind its name. Returns the exit code.
pub fn main(arguments: Vec<OsString>) -> u8 {
    let ours = arguments.first().is_some_and(|first| first == "--kitbag");
    let own = match open::own() {
        Ok(own) => own,
        Err(error) => {
            let tool = kitbag_entry::is_tool() && !ours;
            return report_failure(&Failure::Bundle(error), tool);
        }
    };
    let starting_tool = own.bundle.is_tool() && !ours;
    let result = if starting_tool {
        tool::start(&own, &arguments).map(|()| exit::OK)
    } else {
        dispatch(&own, &arguments[usize::from(ours)..])
    };
    result.unwrap_or_else(|failure| report_failure(&failure, starting_tool))
}

/// Says what went wrong. Returns the exit code.
pub fn report_failure(failure: &Failure, starting_tool: bool) -> u8 {
    if !matches!(failure, Failure::Found(_)) {
        let _ = writeln!(io::stderr(), "kitbag: error: {failure}");
    }
    failure.code(starting_tool)
}

fn dispatch(own: &Own, arguments: &[OsString]) -> Result<u8, Failure> {
    let name = arguments.first().map(|name| name.to_string_lossy()).unwrap_or_default();
    let rest = lexopt::Parser::from_args(arguments.iter().skip(1).cloned());
    if asks_for_help(&name, arguments)
        && let Some(text) = help_of(&name, own.bundle.is_tool())
    {
        print(text.as_bytes())?;
        return Ok(exit::OK);
    }
    match name.as_ref() {
        "" | "run" if !own.bundle.is_tool() => {
            nothing_more(rest)?;
            return run(own);
        }
        "" | "help" | "--help" | "-h" => print(help(own)?.as_bytes())?,
        "--version" | "-V" => {
            let manifest = own.bundle.manifest()?;
            print(format!("{} {}\n", manifest.name, manifest.version).as_bytes())?;
        }
        _ => match COMMANDS.iter().find(|command| command.name == name) {
            Some(command) if command.whose == For::Services && own.bundle.is_tool() => {
                return Err(Failure::Usage(format!(
                    "`{name}` is for bundles of services; this one is a tool, which runs in front of whoever started it"
                )));
            }
            Some(command) => (command.run)(own, rest)?,
            None => return Err(Failure::Usage(unknown(&name))),
        },
    }
    Ok(exit::OK)
}

/// Runs the services here. The first process of a machine switches it off afterwards, however that went.
fn run(own: &Own) -> Result<u8, Failure> {
    let Some(machine) = machine::begin() else { return service::run(own, &Setting::Foreground) };
    if let Err(failure) = service::run(own, &Setting::Machine(&machine)) {
        report_failure(&failure, false);
    }
    machine.power_off()
}

fn unknown(name: &str) -> String {
    let known = COMMANDS.iter().map(|command| command.name).chain(["run", "help"]);
    match near::nearest(name, known) {
        Some(near) => format!("there is no command `{name}`; did you mean `{near}`?"),
        None => format!("there is no command `{name}`"),
    }
}

/// The commands that such a bundle has.
fn commands_of(is_tool: bool) -> impl Iterator<Item = &'static Command> {
    COMMANDS.iter().filter(move |command| command.whose == For::All || !is_tool)
}

fn help(own: &Own) -> Result<String, Failure> {
    let manifest = own.bundle.manifest()?;
    let tool = manifest.is_tool();
    let mut text = format!("{} {}", manifest.name, manifest.version);
    if !manifest.description.is_empty() {
        text.push_str(&format!(": {}", manifest.description));
    }
    text.push_str("\n\nOne file with all it needs, packed by kitbag.\n\nUsage:\n");
    match &manifest.run {
        Run::Command(_) => text.push_str("  FILE [ARGUMENTS]   run the program; all arguments are its own\n"),
        Run::Services(services) => {
            let names: Vec<&str> = services.keys().map(String::as_str).collect();
            text.push_str(&format!("  FILE [run]\n      run here until stopped: {}\n", names.join(", ")));
        }
    }
    for command in commands_of(tool) {
        text.push_str(&format!("  {}\n      {}\n", command.usage(tool), command.about));
    }
    text.push_str(
        "\nEnvironment:\n  KITBAG_STORE   folder to unpack in\n  KITBAG_STATE   folder of this app's state\n",
    );
    if !tool {
        text.push_str(
            "  KITBAG_NAME    what this copy is called: a further one has a name, and state, of its own\n  \
             KITBAG_RUN     folder of the registry of ports\n",
        );
    }
    text.push_str(
        "  KITBAG_GC=off  keep unpacked bundles until `gc` is asked for\n\n\
         Exit codes: 0 done, 1 failed, 2 usage, 4 damaged, 5 no place or disk full, 6 running already,\n\
         7 a service failed, 9 not running, 10 not ready in time, 125 the tool's program could not be started\n",
    );
    Ok(text)
}

/// True if a command's arguments ask what it means. What follows `--`, and what `exec` starts, is not for us.
fn asks_for_help(name: &str, arguments: &[OsString]) -> bool {
    let most = if name == "exec" { 1 } else { arguments.len() };
    let mut own = arguments.iter().skip(1).take(most).take_while(|argument| *argument != "--");
    own.any(|argument| argument == "--help" || argument == "-h")
}

/// A command's line of usage, and what it means; `None` if such a bundle has no such command.
fn help_of(name: &str, is_tool: bool) -> Option<String> {
    if name == "run" && !is_tool {
        return Some("FILE [run]\n    run here until stopped\n".to_owned());
    }
    let command = commands_of(is_tool).find(|command| command.name == name)?;
    Some(format!("{}\n    {}\n", command.usage(is_tool), command.about))
}

fn nothing_more(mut parser: lexopt::Parser) -> Result<(), Failure> {
    match parser.next()? {
        Some(argument) => Err(argument.unexpected().into()),
        None => Ok(()),
    }
}

/// Reads one optional flag and nothing else.
fn flag(mut parser: lexopt::Parser, short: Option<char>, long: &str) -> Result<bool, Failure> {
    let mut set = false;
    while let Some(argument) = parser.next()? {
        match argument {
            Long(name) if name == long => set = true,
            Short(name) if Some(name) == short => set = true,
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(set)
}

fn inspect(own: &Own, parser: lexopt::Parser) -> Result<(), Failure> {
    let json = flag(parser, None, "json")?;
    let summary = Summary::of(&own.bundle)?;
    let places = place::survey(&Facts::of_process(Some(&own.path)));
    if json {
        let mut value = summary.to_json();
        value["places"] = places.iter().map(|place| serde_json::Value::from(place.to_string())).collect();
        return print(report::json_text(&value).as_bytes());
    }
    let mut text = summary.to_text();
    for (number, place) in places.iter().enumerate() {
        text.push_str(&format!("  {:<12}{place}\n", if number == 0 { "unpacks in" } else { "" }));
    }
    print(text.as_bytes())
}

fn list(own: &Own, parser: lexopt::Parser) -> Result<(), Failure> {
    let long = flag(parser, Some('l'), "long")?;
    print(&report::list(&own.bundle.index()?, long))
}

fn unpack(own: &Own, mut parser: lexopt::Parser) -> Result<(), Failure> {
    let dir = match parser.next()? {
        Some(Value(dir)) => PathBuf::from(dir),
        Some(other) => return Err(other.unexpected().into()),
        None => return Err(Failure::Usage("name the folder to unpack in: `unpack DIR`".to_owned())),
    };
    nothing_more(parser)?;
    extract::unpack_to(&own.bundle, Path::new(&dir), &|_| ())?;
    print(format!("{}\n", dir.display()).as_bytes())
}

fn verify(own: &Own, parser: lexopt::Parser) -> Result<(), Failure> {
    let unpacked = flag(parser, None, "unpacked")?;
    own.bundle.verify(extract::threads_for(own.bundle.head().file_length))?;
    print(format!("{}: whole, digest {}\n", own.path.display(), own.bundle.digest()).as_bytes())?;
    if !unpacked {
        return Ok(());
    }
    let mut wrong = 0;
    for store in place::existing(&Facts::of_process(Some(&own.path))) {
        let Some(findings) = heal::verify_unpacked(&store, &own.bundle)? else { continue };
        wrong += findings.len();
        let tree = store.tree_dir(&own.bundle.digest());
        let state = if findings.is_empty() { "whole" } else { "damaged; the next start heals it" };
        print(format!("{}: {state}\n", tree.display()).as_bytes())?;
        for finding in findings {
            print(format!("  {finding}\n").as_bytes())?;
        }
    }
    if wrong > 0 { Err(Failure::Found(exit::DAMAGED)) } else { Ok(()) }
}

fn gc(own: &Own, mut parser: lexopt::Parser) -> Result<(), Failure> {
    let mut policy = Policy::default();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("keep") => policy.keep = parser.value()?.parse()?,
            Long("older-than") => policy.older_than = duration(&parser.value()?.string()?)?,
            Long("dry-run") => policy.dry_run = true,
            other => return Err(other.unexpected().into()),
        }
    }
    for store in place::existing(&Facts::of_process(Some(&own.path))) {
        print(format!("{}\n", collect::collect(&store, &policy)?).as_bytes())?;
    }
    Ok(())
}

/// `30d`, `12h`, `5m`, `10s`. What a number alone would mean here, seconds or days, nobody can know.
fn duration(text: &str) -> Result<Duration, Failure> {
    let has_unit = text.ends_with(|last: char| last.is_ascii_alphabetic());
    let span = parse_span(text).filter(|_| has_unit).map(Duration::from_millis);
    let wrong = || format!("`{text}` is not a time: a number and `s`, `m`, `h` or `d`, as in `30d`");
    span.ok_or_else(|| Failure::Usage(wrong()))
}

/// Writes to stdout; a reader that has gone (`| head`) is no failure.
pub fn print(bytes: &[u8]) -> Result<(), Failure> {
    pass_on(bytes).map(drop)
}

/// The same; false if the reader has gone.
pub fn pass_on(bytes: &[u8]) -> Result<bool, Failure> {
    let mut stdout = io::stdout();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Error::io("write to stdout")(error).into()),
    }
}
