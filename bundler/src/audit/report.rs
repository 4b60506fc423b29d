//! What an audit says, for people and for programs.

use std::collections::{BTreeMap, BTreeSet};

use goblin::elf::header::EM_X86_64;
use kitbag_closure::search::Libc;
use kitbag_closure::tree::Tree;
use serde_json::{Value, json};

use super::gate::{Finding, greatest, some};
use super::limits::{Level, Version};
use super::paths::{self, Place};
use super::process::{Loader, Process, is_libc};
use super::survey::{Object, Survey};
use crate::tree::shown;

/// An audit's result.
pub struct Report<'a> {
    /// What was read.
    pub survey: &'a Survey,
    /// Limits that are broken.
    pub findings: &'a [Finding],
}

/// Where the C library of some programs is from: `bundle`, `host`, `static`; whose it is; which version comes along,
/// or is asked for.
type Source = (&'static str, Option<&'static str>, Option<Version>);

/// Paths of the host below one folder.
#[derive(Default)]
struct Group<'a> {
    /// Each with true if only files mention it that came along.
    paths: Vec<(bool, &'a str)>,
    files: BTreeSet<&'a [u8]>,
    in_bundle: usize,
}

impl Report<'_> {
    fn machines(&self) -> BTreeMap<String, usize> {
        let mut machines = BTreeMap::new();
        for object in self.survey.executed() {
            *machines.entry(object.facts.target.to_string()).or_default() += 1;
        }
        machines
    }

    fn kernel(&self) -> Option<(Version, Vec<String>)> {
        greatest(self.survey.executed(), |object| object.facts.least_kernel.map(Version))
    }

    /// The level that is needed; the first one where nothing is marked.
    fn level(&self) -> Option<(Level, Vec<String>)> {
        let is_x86 = self.survey.runtime.facts.target.machine == EM_X86_64;
        let marked = greatest(self.survey.executed(), Object::level).filter(|(level, _)| *level > Level(1));
        is_x86.then(|| marked.unwrap_or((Level(1), Vec::new())))
    }

    fn level_used(&self) -> Option<(Level, Vec<String>)> {
        greatest(self.survey.executed(), |object| object.facts.x86_level_used().map(Level))
    }

    /// Programs by where their C library is from; modules only where they need the host's.
    fn libc(&self) -> BTreeMap<Source, Vec<String>> {
        let objects = &self.survey.objects;
        let mut groups: BTreeMap<Source, Vec<String>> = BTreeMap::new();
        let counts = |process: &&Process| process.is_hosts() || objects[process.main].is_program();
        for process in self.survey.processes.iter().filter(counts) {
            groups.entry(source(process, objects)).or_default().push(shown(&objects[process.main].path));
        }
        groups
    }

    /// Needs of modules that nothing in the bundle meets. They may be for what the app never uses.
    fn missing(&self) -> BTreeMap<String, Vec<String>> {
        let is_module =
            |process: &&Process| !process.is_hosts() && !self.survey.objects[process.main].is_program();
        self.survey.unmet(is_module)
    }

    fn is_in_bundle(&self, path: &str) -> bool {
        self.survey.listing.find(path.as_bytes()).is_some()
    }

    /// Text, aligned; findings last, a line each.
    pub fn to_text(&self) -> String {
        let manifest = &self.survey.manifest;
        let mut lines = Lines { text: format!("{} {}\n", manifest.name, manifest.version), label: "" };
        for (machine, count) in self.machines() {
            lines.add("machine", format!("{machine}: {}", files(count)));
        }
        let kernel = self.kernel().map(|(least, files)| format!("Linux {least} or later: {}", some(&files)));
        lines.add("kernel", kernel.unwrap_or_else(|| "no file says which".to_owned()));
        if let Some((level, files)) = self.level() {
            lines.add(
                "processor",
                if files.is_empty() { level.to_string() } else { format!("{level}: {}", some(&files)) },
            );
        }
        if let Some((level, files)) = self.level_used().filter(|(level, _)| *level > Level(1)) {
            lines.add(
                "processor",
                format!("instructions of {level} occur in {}, perhaps behind a check", some(&files)),
            );
        }
        self.needs_text(&mut lines);
        self.paths_text(&mut lines);
        lines.add(
            "permissions",
            "nothing is setuid, setgid or writable for others: a bundle cannot say so".to_owned(),
        );
        lines.text.push_str(&self.sizes_text());
        for finding in self.findings {
            lines.text.push_str(&format!(
                "finding: {}: {}: {}; {}\n",
                finding.check,
                some(&finding.files),
                finding.what,
                finding.fix
            ));
        }
        lines.text
    }

    fn needs_text(&self, lines: &mut Lines) {
        for ((from, name, version), files) in self.libc() {
            let version = version.map(|version| format!(" {version}")).unwrap_or_default();
            let name = name.unwrap_or_default();
            let source = match from {
                "static" => "none needed, static".to_owned(),
                "host" => format!("the host's {name}{version} or later").replace("musl or later", "musl"),
                _ => format!("{name}{version} comes along"),
            };
            lines.add("libc", format!("{source}: {}", some(&files)));
        }
        let hosts = self.survey.unmet(|process| process.is_hosts()).into_iter();
        for (name, files) in hosts.filter(|(name, _)| !is_libc(name.as_bytes())) {
            lines.add("library", format!("the host's {name}: {}", some(&files)));
        }
        for (name, files) in self.missing() {
            lines.add("library", format!("{name} is not there: {}", some(&files)));
        }
        for (interpreter, files) in self.scripts() {
            lines.add("scripts", format!("for the host's {interpreter}: {}", some(&files)));
        }
    }

    fn scripts(&self) -> BTreeMap<&str, Vec<String>> {
        let mut scripts: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for script in &self.survey.scripts {
            scripts.entry(&script.interpreter).or_default().push(shown(&script.path));
        }
        scripts
    }

    /// The paths worth looking at: what the app's own files mention first.
    fn paths_text(&self, lines: &mut Lines) {
        let mentions = self.survey.mentions();
        let mut groups: BTreeMap<&str, Group> = BTreeMap::new();
        for (path, objects) in mentions.iter().filter(|(path, objects)| is_worth_a_look(path, objects)) {
            let group = groups.entry(paths::group(path)).or_default();
            let came_along = objects.iter().all(|object| object.path.starts_with(b".kitbag/"));
            group.paths.push((came_along, path));
            group.files.extend(objects.iter().map(|object| object.path.as_slice()));
            group.in_bundle += usize::from(self.is_in_bundle(path));
        }
        let told: usize = groups.values().map(|group| group.paths.len()).sum();
        for (folder, mut group) in groups {
            group.paths.sort_unstable();
            let paths: Vec<String> = group.paths.iter().map(|(_, path)| shown(path.as_bytes())).collect();
            let held = match group.in_bundle {
                0 => String::new(),
                held => format!("; the bundle has {held} of them in its own tree"),
            };
            lines
                .add("mentions", format!("{folder} in {}: {}{held}", files(group.files.len()), some(&paths)));
        }
        if mentions.len() > told {
            let more = mentions.len() - told;
            lines.add(
                "mentions",
                format!("and {more} of the kernel, of libc, temporary or mere folders; --json has all"),
            );
        }
    }

    fn sizes_text(&self) -> String {
        let sizes = self.survey.summary.to_text();
        let begins = |line: &&str| line.starts_with("  size") || line.starts_with("              ");
        let sizes: String = sizes.lines().filter(begins).map(|line| format!("{line}\n")).collect();
        sizes + &self.survey.origins.to_text()
    }

    /// An object that only ever gains keys.
    pub fn to_json(&self) -> Value {
        let summary = self.survey.summary.to_json();
        let least = |found: Option<(String, Vec<String>)>| {
            let (least, files) = found.map_or((None, Vec::new()), |(least, files)| (Some(least), files));
            json!({ "least": least, "files": files })
        };
        let level = |found: Option<(Level, Vec<String>)>| {
            least(found.map(|(level, files)| (level.to_string(), files)))
        };
        let libc = self.libc().into_iter().map(|((from, name, version), files)| {
            json!({ "from": from, "name": name, "version": version.map(|version| version.to_string()), "files": files })
        });
        json!({
            "name": self.survey.manifest.name,
            "version": self.survey.manifest.version,
            "digest": summary["digest"],
            "passed": self.findings.is_empty(),
            "findings": self.findings,
            "machines": self.machines(),
            "kernel": least(self.kernel().map(|(version, files)| (version.to_string(), files))),
            "processor": { "needed": level(self.level()), "used": level(self.level_used()) },
            "libc": libc.collect::<Vec<_>>(),
            "libraries": {
                "host": self.survey.unmet(|process| process.is_hosts()),
                "missing": self.survey.unmet(|process| !process.is_hosts()),
            },
            "scripts": self.scripts(),
            "mentions": self.mentions_json(),
            "permissions": { "setuid": 0, "setgid": 0, "world_writable": 0 },
            "size": summary["size"],
            "origins": self.survey.origins.sums_json(),
        })
    }

    fn mentions_json(&self) -> Value {
        let mention = |(path, objects): (&str, Vec<&Object>)| {
            let place = match Place::of(path) {
                Place::Host => "host",
                Place::Kernel => "kernel",
                Place::Scratch => "temporary",
            };
            let files: Vec<String> = objects.iter().map(|object| shown(&object.path)).collect();
            json!({ "path": path, "place": place, "in_bundle": self.is_in_bundle(path), "files": files })
        };
        self.survey.mentions().into_iter().map(mention).collect()
    }
}

/// The kernel's files are everywhere, every bundle with a libc mentions what libc does, and `/usr/lib` as such says
/// nothing of what is looked for there.
fn is_worth_a_look(path: &str, objects: &[&Object]) -> bool {
    let is_folder = paths::group(path) == path;
    Place::of(path) == Place::Host && !is_folder && objects.iter().any(|object| !object.is_libc())
}

fn files(count: usize) -> String {
    if count == 1 { "1 file".to_owned() } else { format!("{count} files") }
}

fn source(process: &Process, objects: &[Object]) -> Source {
    let name = process.libc(objects).map(|libc| match libc {
        Libc::Glibc => "glibc",
        Libc::Musl => "musl",
    });
    match &process.loader {
        Loader::None => ("static", None, None),
        Loader::Bundle(_) | Loader::Absent(_) => ("bundle", name, process.own_glibc(objects)),
        Loader::Host(_) => ("host", name, process.hosts_glibc(objects).map(|(least, _)| least)),
    }
}

/// Aligned lines.
struct Lines {
    text: String,
    label: &'static str,
}

impl Lines {
    /// A label stands at the first of its lines.
    fn add(&mut self, label: &'static str, value: String) {
        let shown = if self.label == label { "" } else { label };
        self.text.push_str(&format!("  {shown:<12}{value}\n"));
        self.label = label;
    }
}
