//! What `inspect` and `list` print, from `kitbag` and from a bundle itself alike.

use std::fmt::Write;

use serde::Serialize;
use serde_json::{Value, json};

use crate::error::Error;
use crate::index::{Entry, Index, Kind};
use crate::manifest::{Manifest, Run};
use crate::port::{Number, Port, Protocol};
use crate::reader::Bundle;
use crate::service::Schedule;
use crate::sort;

/// A bundle's vital facts.
pub struct Summary {
    manifest: Manifest,
    /// The same as it stands in the file: to write it anew would take 14 kB in every bundle.
    written: Value,
    index: Index,
    digest: String,
    length: u64,
    parts: Vec<(&'static str, u64)>,
}

impl Summary {
    /// Reads manifest and index; not the payload.
    pub fn of(bundle: &Bundle) -> Result<Self, Error> {
        let parts = bundle.head().parts.iter().map(|part| (part.kind.name(), part.length)).collect();
        Ok(Self {
            manifest: bundle.manifest()?,
            written: serde_json::from_str(&bundle.manifest_text()?).unwrap_or(Value::Null),
            index: bundle.index()?,
            digest: bundle.digest().to_string(),
            length: bundle.head().file_length,
            parts,
        })
    }

    fn count(&self, wanted: impl Fn(&Kind) -> bool) -> usize {
        self.index.entries.iter().filter(|entry| wanted(&entry.kind)).count()
    }

    fn files(&self) -> usize {
        self.count(|kind| matches!(kind, Kind::File { .. } | Kind::Link(_)))
    }

    fn slotted(&self) -> usize {
        (0..self.index.entries.len()).filter(|number| !self.index.slots(*number).is_empty()).count()
    }

    /// For people: aligned lines.
    pub fn to_text(&self) -> String {
        let manifest = &self.manifest;
        let mut text = format!("{} {}\n", manifest.name, manifest.version);
        let mut line = |label: &str, value: String| {
            let _ = writeln!(text, "  {label:<12}{value}");
        };
        if !manifest.description.is_empty() {
            line("about", manifest.description.clone());
        }
        line("digest", self.digest.clone());
        line("size", format!("{}, unpacked {}", bytes(self.length), bytes(self.index.content_length())));
        line(
            "content",
            format!(
                "{} files, {} folders, {} links, in {} frames",
                self.files(),
                self.count(|kind| *kind == Kind::Dir),
                self.count(|kind| matches!(kind, Kind::Symlink(_))),
                self.index.frames.len()
            ),
        );
        for (name, length) in &self.parts {
            line("", format!("{name} {}", bytes(*length)));
        }
        match &manifest.run {
            Run::Command(command) => line("runs", command.argv.join(" ")),
            Run::Services(services) => {
                for (name, service) in services {
                    line("service", format!("{name}: {}", service.command.argv.join(" ")));
                    for (name, port) in &service.more.ports {
                        line("", format!("{name}: {}", self::port(port)));
                    }
                }
                for (name, task) in &manifest.tasks {
                    let argv = task.command.argv.join(" ");
                    line("task", format!("{name}, {}: {argv}", when(&task.schedule)));
                }
            }
        }
        for seed in &manifest.seeds {
            line("seed", format!("{} -> ${{state}}/{}", seed.from, seed.to));
        }
        text
    }

    /// For programs: an object that only ever gains keys.
    pub fn to_json(&self) -> Value {
        json!({
            "digest": self.digest,
            "manifest": self.written,
            "size": {
                "file": self.length,
                "content": self.index.content_length(),
                "tar": self.index.tar_length(),
                "parts": self.parts.iter().map(|(name, length)| json!({"part": name, "bytes": length})).collect::<Vec<_>>(),
            },
            "count": {
                "files": self.files(),
                "folders": self.count(|kind| *kind == Kind::Dir),
                "slotted": self.slotted(),
                "symlinks": self.count(|kind| matches!(kind, Kind::Symlink(_))),
                "frames": self.index.frames.len(),
            },
        })
    }
}

/// A port in words: `8000-8999/tcp, 8080 first, loopback`; `inherited` if the supervisor makes its socket.
pub fn port(port: &Port) -> String {
    let protocol = port.protocol.name();
    let mut facts = match &port.number {
        _ if port.protocol == Protocol::Unix => protocol.to_owned(),
        Number::Any => format!("any/{protocol}"),
        Number::Fixed(number) => format!("{number}/{protocol}"),
        Number::Range { low, high, .. } => format!("{low}-{high}/{protocol}"),
    };
    if let Number::Range { prefer: Some(prefer), .. } = &port.number {
        facts.extend([", ", prefer, " first"]);
    }
    if port.protocol != Protocol::Unix {
        facts.extend([", ", &port.address]);
    }
    if port.socket.is_some() {
        facts.push_str(", inherited");
    }
    facts
}

/// When a task runs, in words.
fn when(schedule: &Schedule) -> String {
    match schedule {
        Schedule::Start => "at the start".to_owned(),
        Schedule::Asked => "when asked".to_owned(),
        Schedule::Cron(cron) => format!("{} {}", cron.expression, cron.zone),
        Schedule::Every(time) if time % 1000 == 0 => format!("every {} s", time / 1000),
        Schedule::Every(time) => format!("every {time} ms"),
    }
}

/// Indented JSON with a newline at its end.
pub fn json_text(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default() + "\n"
}

/// One line an entry, by path: the paths alone, or `long` with kind, size and digest; `+` tells a file
/// with slots. Bytes, as names are.
pub fn list(index: &Index, long: bool) -> Vec<u8> {
    let mut order: Vec<usize> = (0..index.entries.len()).collect();
    sort::by(&mut order, &|a, b| index.entries[*a].path.cmp(&index.entries[*b].path));
    let mut out = Vec::new();
    for number in order {
        let entry = &index.entries[number];
        if long {
            out.extend_from_slice(facts(index, number, entry).as_bytes());
        }
        out.extend_from_slice(&entry.path);
        if let (Kind::Symlink(target), true) = (&entry.kind, long) {
            out.extend_from_slice(b" -> ");
            out.extend_from_slice(target);
        }
        out.push(b'\n');
    }
    out
}

fn facts(index: &Index, number: usize, entry: &Entry) -> String {
    let (size, digest, executable) = index
        .file(number)
        .map_or((0, String::new(), false), |(size, digest, executable)| (size, digest.short(), executable));
    let mode = match entry.kind {
        Kind::Dir => "dr-xr-xr-x",
        Kind::Symlink(_) => "lrwxrwxrwx",
        _ if executable => "-r-xr-xr-x",
        _ => "-r--r--r--",
    };
    let filled = if index.slots(number).is_empty() { ' ' } else { '+' };
    format!("{mode}{filled}{size:>11} {digest:<12} ")
}

/// A number of bytes for people: `1.2 MB`, powers of ten.
pub fn bytes(count: u64) -> String {
    let units = ["kB", "MB", "GB", "TB"];
    if count < 1000 {
        return format!("{count} B");
    }
    let (mut tenths, mut unit) = (count / 100, 0);
    while tenths >= 10_000 && unit + 1 < units.len() {
        tenths /= 1000;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, units[unit])
}
