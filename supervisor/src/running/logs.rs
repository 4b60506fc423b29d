//! `logs`: what units have printed, from the files where it is kept.

use std::fs;
use std::io::{self, IsTerminal, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use kitbag_format::Error;
use kitbag_format::service::{LogFormat, LogTo};
use kitbag_format::sort;
use lexopt::prelude::*;
use serde_json::{Value as Json, json};

use super::background::own_log;
use super::{Running, SHORTEST, closed, good, log_folder, named};
use crate::commands::{Failure, pass_on};
use crate::control::client;
use crate::logs::files::CURRENT;
use crate::logs::format::{Micros, visible};
use crate::logs::reader::{Entry, Reader};
use crate::near;
use crate::open::Own;
use crate::state_folder;
use crate::status::{Status, Unit, is_first};
use crate::sys::fd;

/// Lines that are shown unless told.
const LINES: usize = 20;
/// How much of the end of the supervisor's own log is read for its last lines.
const END: u64 = 1 << 20;
/// How often a followed file is looked at.
const POLL: Duration = Duration::from_millis(200);

/// `logs [-f] [-n N] [SVC…]`: also of a bundle that does not run any more.
pub fn logs(own: &Own, mut parser: lexopt::Parser) -> Result<(), Failure> {
    let (mut follow, mut count, mut names) = (false, LINES, Vec::new());
    while let Some(argument) = parser.next()? {
        match argument {
            Short('f') | Long("follow") => follow = true,
            Short('n') | Long("lines") => count = count_of(&parser.value()?.string()?)?,
            Value(name) => names.push(named(name)?),
            other => return Err(other.unexpected().into()),
        }
    }
    let running = Running::of(own)?;
    // A file of each is open.
    let _ = fd::raise_open_files();
    let folder = log_folder(&running)?;
    check(&running, &folder, &names)?;
    let mut units = chosen(&folder, &names)?;
    if let Some(elsewhere) = shown_elsewhere(&running) {
        let here = if units.is_empty() { "nothing is kept here" } else { "the lines here are from before" };
        super::tell(&format!("{elsewhere}; {here}"));
    } else if units.is_empty() && names.is_empty() {
        super::tell(&format!(
            "nothing is in {} yet; in the foreground, lines are shown alone",
            folder.display()
        ));
    } else if units.is_empty() {
        super::tell(&format!("{} printed nothing that is in {}", names.join(", "), folder.display()));
    }
    let known: Vec<&str> = units.iter().map(String::as_str).collect();
    let mut reader = Reader::new(&folder, &known, running.format);
    if follow {
        reader.follow(&folder);
    } else {
        reader.once();
    }
    let show = |units: &[String], entries: &[Entry]| show(units, entries, running.format);
    let failed = |error| Failure::Bundle(Error::io("read the logs")(error));
    let mut open = show(&units, &reader.last(count).map_err(failed)?)?;
    while follow && open && fd::has_reader(io::stdout().as_fd()) {
        reader.wait(POLL).map_err(failed)?;
        // Who prints for the first time joins in.
        for unit in chosen(&folder, &names)? {
            if !units.contains(&unit) {
                reader.add(&folder, &unit);
                units.push(unit);
            }
        }
        open = show(&units, &reader.more().map_err(failed)?)?;
    }
    Ok(())
}

/// The value of `-n`.
fn count_of(text: &str) -> Result<usize, Failure> {
    let wrong = |_| Failure::Usage(format!("-n: `{text}` is not a number of lines, as in `logs -n 50`"));
    text.parse().map_err(wrong)
}

/// Where a bundle that runs shows what is printed, if it keeps none of it in files: a sentence. A supervisor that does not
/// answer soon is no obstacle.
fn shown_elsewhere(running: &Running) -> Option<String> {
    let answer = client::ask(&running.folder(), "GET", "/v1/status", SHORTEST).ok()?;
    let status = Status::from_json(&good(answer).ok()?);
    let (name, pid) = (&running.name, status.pid);
    if status.log_folder.is_some() || pid == 0 {
        return None;
    }
    let log = own_log(&running.folder());
    Some(match running.to {
        LogTo::Stdout => format!(
            "{name} runs as process {pid}, and what it prints goes to its standard output, in the background to {}",
            log.display()
        ),
        _ => format!("{name} runs in the foreground, as process {pid}, and what it prints goes there"),
    })
}

/// Refuses names that neither a unit with logs has, nor a service or task of the bundle.
fn check(running: &Running, folder: &Path, names: &[String]) -> Result<(), Failure> {
    let units = chosen(folder, &[])?;
    let known = units.iter().chain(&running.parts);
    for name in names {
        let is_instance = || running.parts.iter().any(|part| is_of(name, part));
        if !units.iter().any(|unit| is_of(unit, name)) && !is_instance() {
            let near = near::nearest(name, known.clone().map(String::as_str));
            let near = near.map_or_else(String::new, |near| format!("; did you mean `{near}`?"));
            return Err(Failure::Usage(format!("nothing of `{name}` is in {}{near}", folder.display())));
        }
    }
    Ok(())
}

/// The units with these names that have logs: all of a service's instances; without a name, all.
fn chosen(folder: &Path, names: &[String]) -> Result<Vec<String>, Failure> {
    let mut units = match folders(folder) {
        // Nobody has printed anything yet.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        other => other.map_err(|error| closed(folder, &error))?,
    };
    sort::sort(&mut units);
    units.retain(|unit| names.is_empty() || names.iter().any(|name| is_of(unit, name)));
    Ok(units)
}

/// The names of the folders in a folder.
fn folders(folder: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let is_folder = match fs::metadata(entry.path()) {
            // It has just gone.
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            found => found?.is_dir(),
        };
        if is_folder {
            names.extend(entry.file_name().into_string().ok());
        }
    }
    Ok(names)
}

/// `web.2` is of `web`; and so is `web` of `web.0`, which are the same unit by two names.
fn is_of(unit: &str, name: &str) -> bool {
    let instance = || unit.strip_prefix(name)?.strip_prefix('.')?.parse::<u32>().ok();
    unit == name || is_first(name, unit) || instance().is_some()
}

/// Writes lines out, with names where there are several; false if nobody reads them any more. JSON lines have theirs
/// already, and one that is none becomes one. A terminal gets nothing to obey but colours.
fn show(names: &[String], entries: &[Entry], format: LogFormat) -> Result<bool, Failure> {
    let width = names.iter().map(String::len).max().unwrap_or(0);
    let is_terminal = io::stdout().is_terminal();
    let mut out = Vec::new();
    for entry in entries {
        let name = names.get(entry.unit).map_or("", String::as_str);
        let text = String::from_utf8_lossy(&entry.raw);
        match format {
            LogFormat::Json if entry.time.is_none() && !is_object(&entry.raw) => {
                out.extend_from_slice(json!({"service": name, "text": text}).to_string().as_bytes());
            }
            _ => {
                if names.len() > 1 && format != LogFormat::Json {
                    out.extend_from_slice(format!("{name:width$} | ").as_bytes());
                }
                if is_terminal {
                    visible(&mut out, &entry.raw);
                } else {
                    out.extend_from_slice(&entry.raw);
                }
            }
        }
        out.push(b'\n');
    }
    pass_on(&out)
}

/// True for a JSON object with the name of its unit.
fn is_object(line: &[u8]) -> bool {
    serde_json::from_slice::<Json>(line).is_ok_and(|value| value["service"].is_string())
}

/// The last lines that a unit has printed in its last run, the oldest first, as text that a terminal may have.
pub fn last_lines(status: &Status, unit: &Unit, format: LogFormat, count: usize) -> Vec<String> {
    let (Some(folder), Some(began)) = (&status.log_folder, unit.began()) else { return Vec::new() };
    // Times are whole milliseconds, and a supervisor has nothing to do with runs before its own.
    let began = began.saturating_sub(1).max(status.since).saturating_mul(1000);
    let entries = Reader::new(folder, &[&unit.name], format).last(count).unwrap_or_default();
    let is_old = |entry: &&Entry| entry.time.is_some_and(|time| time < began);
    let current = || fs::metadata(folder.join(&unit.name).join(CURRENT)).and_then(|it| it.modified());
    let fresh = match format {
        // These have no times but their file's.
        LogFormat::Plain if current().is_ok_and(|at| micros(at) >= began) => &entries[..],
        LogFormat::Plain => &[],
        _ => &entries[entries.iter().rposition(|entry| is_old(&entry)).map_or(0, |old| old + 1)..],
    };
    fresh.iter().map(|entry| shown(&entry.text)).collect()
}

/// Microseconds since 1970.
fn micros(at: std::time::SystemTime) -> Micros {
    let since = at.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Micros::try_from(since.as_micros()).unwrap_or(Micros::MAX)
}

fn shown(line: &[u8]) -> String {
    let mut out = Vec::new();
    visible(&mut out, line);
    String::from_utf8_lossy(&out).into_owned()
}

/// The end of a file: lines from `from` on, but no more than the last `count`; of the whole file, if it is shorter.
pub fn last_of_file(path: &Path, from: u64, count: usize) -> Vec<String> {
    let end = || -> io::Result<Vec<u8>> {
        let mut file = state_folder::open(path)?;
        let length = file.metadata()?.len();
        let from = if from > length { 0 } else { from };
        file.seek(SeekFrom::Start(length.saturating_sub(END).max(from)))?;
        let mut bytes = Vec::new();
        file.take(END).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = end().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let mut lines: Vec<String> = text.lines().rev().take(count).map(|line| shown(line.as_bytes())).collect();
    lines.reverse();
    lines
}
