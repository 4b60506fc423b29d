//! `logs`: what units have printed, from the files where it is kept.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use kitbag_format::Error;
use kitbag_format::service::LogFormat;
use kitbag_format::sort;
use lexopt::prelude::*;

use super::{Running, log_folder};
use crate::commands::{Failure, pass_on};
use crate::logs::reader::{Entry, Reader};
use crate::near;
use crate::open::Own;
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
            Short('n') | Long("lines") => count = parser.value()?.parse()?,
            Value(name) => names.push(name.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    let running = Running::of(own)?;
    let folder = log_folder(&running);
    check(&running, &folder, &names)?;
    let mut units = chosen(&folder, &names);
    if units.is_empty() && names.is_empty() {
        super::tell(&format!(
            "nothing is in {} yet; in the foreground, lines are shown alone",
            folder.display()
        ));
    } else if units.is_empty() {
        super::tell(&format!("{} printed nothing that is in {}", names.join(", "), folder.display()));
    }
    let known: Vec<&str> = units.iter().map(String::as_str).collect();
    let mut reader = Reader::new(&folder, &known, running.format);
    let failed = |error| Failure::Bundle(Error::io("read the logs")(error));
    let mut open = show(&units, &reader.last(count).map_err(failed)?)?;
    while follow && open && fd::has_reader(io::stdout().as_fd()) {
        std::thread::sleep(POLL);
        // Who prints for the first time joins in.
        for unit in chosen(&folder, &names) {
            if !units.contains(&unit) {
                reader.add(&folder, &unit);
                units.push(unit);
            }
        }
        open = show(&units, &reader.more().map_err(failed)?)?;
    }
    Ok(())
}

/// Refuses names that neither a unit with logs has, nor a service or task of the bundle.
fn check(running: &Running, folder: &Path, names: &[String]) -> Result<(), Failure> {
    let units = chosen(folder, &[]);
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
fn chosen(folder: &Path, names: &[String]) -> Vec<String> {
    let mut units: Vec<String> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.path().is_dir())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    sort::sort(&mut units);
    units.retain(|unit| names.is_empty() || names.iter().any(|name| is_of(unit, name)));
    units
}

/// `web.2` is of `web`.
fn is_of(unit: &str, name: &str) -> bool {
    let instance = || unit.strip_prefix(name)?.strip_prefix('.')?.parse::<u32>().ok();
    unit == name || instance().is_some()
}

/// Writes lines out, with names where there are several; false if nobody reads them any more.
fn show(names: &[String], entries: &[Entry]) -> Result<bool, Failure> {
    let width = names.iter().map(String::len).max().unwrap_or(0);
    let mut out = Vec::new();
    for entry in entries {
        if let (2.., Some(name)) = (names.len(), names.get(entry.unit)) {
            out.extend_from_slice(format!("{name:width$} | ").as_bytes());
        }
        out.extend_from_slice(&entry.raw);
        out.push(b'\n');
    }
    pass_on(&out)
}

/// The last lines that a unit has printed, the oldest first, as text. None if its log cannot be read.
pub fn last_lines(folder: &Path, unit: &str, format: LogFormat, count: usize) -> Vec<String> {
    let entries = Reader::new(folder, &[unit], format).last(count).unwrap_or_default();
    entries.iter().map(|entry| String::from_utf8_lossy(&entry.text).into_owned()).collect()
}

/// The last lines of a file.
pub fn last_of_file(path: &Path, count: usize) -> Vec<String> {
    let end = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(END)))?;
        let mut bytes = Vec::new();
        file.take(END).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = end().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let mut lines: Vec<String> = text.lines().rev().take(count).map(str::to_owned).collect();
    lines.reverse();
    lines
}
