//! `logs`: what units have printed, from the files where it is kept.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lexopt::prelude::*;

use super::{Running, log_folder};
use crate::commands::{Failure, print};
use crate::near;
use crate::open::Own;

/// Lines of each unit that are shown unless told.
const LINES: usize = 20;
/// The file in a unit's folder that is being written.
const CURRENT: &str = "current";
/// How much of a file's end is read for its last lines.
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
    let folder = log_folder(&Running::of(own)?);
    let units = chosen(&folder, &names)?;
    if units.is_empty() {
        super::tell(&format!(
            "nothing is in {} yet; in the foreground, lines are shown alone",
            folder.display()
        ));
    }
    show(&folder, &units, count)?;
    if follow { follow_all(&folder, &units) } else { Ok(()) }
}

/// The units with these names that have logs: all of a service's instances; without a name, all.
fn chosen(folder: &Path, names: &[String]) -> Result<Vec<String>, Failure> {
    let mut units: Vec<String> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.path().is_dir())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    units.sort();
    for name in names {
        if !units.iter().any(|unit| is_of(unit, name)) {
            let near = near::nearest(name, units.iter().map(String::as_str));
            let near = near.map_or_else(String::new, |near| format!("; did you mean `{near}`?"));
            return Err(Failure::Usage(format!("nothing of `{name}` is in {}{near}", folder.display())));
        }
    }
    units.retain(|unit| names.is_empty() || names.iter().any(|name| is_of(unit, name)));
    Ok(units)
}

/// `web.2` is of `web`.
fn is_of(unit: &str, name: &str) -> bool {
    let instance = || unit.strip_prefix(name)?.strip_prefix('.')?.parse::<u32>().ok();
    unit == name || instance().is_some()
}

/// The last lines of each, together, in the order of their time stamps.
fn show(folder: &Path, units: &[String], count: usize) -> Result<(), Failure> {
    let mut lines = Vec::new();
    for unit in units {
        lines.extend(last_lines(folder, unit, count).into_iter().map(|line| (unit, line)));
    }
    if units.len() > 1 {
        // Lines begin with their time; those of one unit keep their order.
        lines.sort_by(|(_, one), (_, other)| one.get(..27).cmp(&other.get(..27)));
        lines.drain(..lines.len().saturating_sub(count));
    }
    let mut text = String::new();
    for (unit, line) in lines {
        text.push_str(&named(units, unit, &line));
    }
    print(text.as_bytes())
}

fn named(units: &[String], unit: &str, line: &str) -> String {
    match units {
        [_] => format!("{line}\n"),
        _ => {
            let width = units.iter().map(String::len).max().unwrap_or(0);
            format!("{unit:width$} | {line}\n")
        }
    }
}

/// The last lines that a unit has printed, the oldest first.
pub fn last_lines(folder: &Path, unit: &str, count: usize) -> Vec<String> {
    last_of_file(&folder.join(unit).join(CURRENT), count)
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

/// A followed file.
struct Tail {
    unit: String,
    path: PathBuf,
    file: Option<File>,
    partial: Vec<u8>,
}

impl Tail {
    /// Begins at the file's end.
    fn new(folder: &Path, unit: &str) -> Self {
        let path = folder.join(unit).join(CURRENT);
        let mut file = File::open(&path).ok();
        if let Some(file) = &mut file {
            let _ = file.seek(SeekFrom::End(0));
        }
        Self { unit: unit.to_owned(), path, file, partial: Vec::new() }
    }

    /// The lines that were written since. When another file has taken its place, that one is read from its beginning.
    fn lines(&mut self) -> Vec<String> {
        let replaced = self.is_replaced();
        if let Some(file) = &mut self.file {
            let _ = file.take(END).read_to_end(&mut self.partial);
        }
        if replaced {
            self.file = File::open(&self.path).ok();
        }
        let end = self.partial.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let whole: Vec<u8> = self.partial.drain(..end).collect();
        String::from_utf8_lossy(&whole).lines().map(str::to_owned).collect()
    }

    fn is_replaced(&self) -> bool {
        let Ok(named) = fs::metadata(&self.path) else { return false };
        let open = self.file.as_ref().and_then(|file| file.metadata().ok());
        open.is_none_or(|open| (open.dev(), open.ino()) != (named.dev(), named.ino()))
    }
}

/// Shows what comes until the reader has gone.
fn follow_all(folder: &Path, units: &[String]) -> Result<(), Failure> {
    let mut tails: Vec<Tail> = units.iter().map(|unit| Tail::new(folder, unit)).collect();
    loop {
        for tail in &mut tails {
            for line in tail.lines() {
                if io::stdout().write_all(named(units, &tail.unit, &line).as_bytes()).is_err() {
                    return Ok(());
                }
            }
        }
        let _ = io::stdout().flush();
        std::thread::sleep(POLL);
    }
}
