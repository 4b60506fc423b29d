//! The gate: what a bundle asks of hosts, held against what it may ask.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use globset::GlobSet;
use kitbag_closure::search::Libc;
use serde::Serialize;

use super::limits::{Level, Version};
use super::process::{Loader, Process, is_libc};
use super::survey::{Object, Survey};
use crate::tree::shown;

/// Files that a line names; the rest is counted.
const FILES_SHOWN: usize = 3;

/// What hosts may be asked for.
#[derive(Debug, Default)]
pub struct Limits {
    /// The oldest kernel. `None`: any that programs ask for will do.
    pub kernel: Option<Version>,
    /// The least processor. `None`: any.
    pub cpu: Option<Level>,
    /// The oldest glibc of hosts, for programs that use the host's. `None`: none may.
    pub glibc: Option<Version>,
    /// Loaders, libraries and interpreters that every host has.
    pub allow: GlobSet,
    /// Scripts that nobody starts first must not need the host's interpreters either.
    pub self_contained: bool,
}

/// A limit that is broken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Which one: a word.
    pub check: &'static str,
    /// What is asked for.
    pub what: String,
    /// Who asks.
    pub files: Vec<String>,
    /// What to do.
    pub fix: String,
}

/// Files of a message: the first ones, and how many more there are.
pub fn some(files: &[String]) -> String {
    let first: Vec<&str> = files.iter().take(FILES_SHOWN).map(String::as_str).collect();
    match files.len().saturating_sub(FILES_SHOWN) {
        0 => first.join(", "),
        more => format!("{}, and {more} more", first.join(", ")),
    }
}

/// The greatest of what these objects ask for, and who does.
pub fn greatest<'a, T: Ord + Copy>(
    objects: impl Iterator<Item = &'a Object>,
    asks: impl Fn(&Object) -> Option<T>,
) -> Option<(T, Vec<String>)> {
    let mut greatest: Option<(T, Vec<String>)> = None;
    for object in objects {
        let Some(asked) = asks(object) else { continue };
        match &mut greatest {
            Some((most, files)) if *most == asked => files.push(shown(&object.path)),
            Some((most, _)) if *most > asked => {}
            _ => greatest = Some((asked, vec![shown(&object.path)])),
        }
    }
    greatest
}

/// Every limit that is broken.
pub fn check(survey: &Survey, limits: &Limits) -> Vec<Finding> {
    let gate = Gate { survey, limits };
    let single = [
        gate.machine(),
        gate.kernel(),
        gate.cpu(),
        gate.broken(),
        gate.absent(),
        gate.loader(),
        gate.glibc(),
    ];
    let mut findings: Vec<Finding> = single.into_iter().flatten().collect();
    findings.extend(gate.missing());
    findings.extend(gate.libraries());
    findings.extend(gate.interpreters());
    findings
}

struct Gate<'a> {
    survey: &'a Survey,
    limits: &'a Limits,
}

/// No finding where there are no files.
fn finding(check: &'static str, what: String, files: Vec<String>, fix: impl Into<String>) -> Option<Finding> {
    (!files.is_empty()).then(|| Finding { check, what, files, fix: fix.into() })
}

impl Gate<'_> {
    fn is_allowed(&self, name: &[u8]) -> bool {
        let text = String::from_utf8_lossy(name);
        let last = text.rsplit('/').next().unwrap_or(&text);
        self.limits.allow.is_match(Path::new(text.as_ref())) || self.limits.allow.is_match(Path::new(last))
    }

    fn path(&self, number: usize) -> String {
        shown(&self.survey.objects[number].path)
    }

    fn machine(&self) -> Option<Finding> {
        let own = self.survey.runtime.facts.target;
        let other = |object: &&Object| object.is_program() && object.executable && object.facts.target != own;
        let others: Vec<&Object> = self.survey.objects.iter().filter(other).collect();
        let what = format!("not for {own}, as the bundle is, but for {}", others.first()?.facts.target);
        let files = others.iter().map(|object| shown(&object.path)).collect();
        finding("machine", what, files, "pack one bundle for each machine")
    }

    fn kernel(&self) -> Option<Finding> {
        let limit = self.limits.kernel?;
        let (least, files) =
            greatest(self.survey.executed(), |object| object.facts.least_kernel.map(Version))?;
        let fix = "build it with a C library for older kernels";
        finding("kernel", format!("Linux {least} or later, more than {limit}"), files, fix)
            .filter(|_| least > limit)
    }

    fn cpu(&self) -> Option<Finding> {
        let limit = self.limits.cpu?;
        let (least, files) = greatest(self.survey.executed(), Object::level)?;
        let fix = format!("build it with -march={limit}");
        finding("cpu", format!("a processor of level {least}, more than {limit}"), files, fix)
            .filter(|_| least > limit)
    }

    fn broken(&self) -> Option<Finding> {
        let (_, why) = self.survey.broken.first()?;
        let files = self.survey.broken.iter().map(|(path, _)| shown(path)).collect();
        finding("elf", format!("begins as a program, but {why}"), files, "exclude it, or build it again")
    }

    fn absent(&self) -> Option<Finding> {
        let absent = self.survey.processes.iter().filter_map(|process| match &process.loader {
            Loader::Absent(path) => Some((self.path(process.main), shown(path))),
            _ => None,
        });
        let (files, paths): (Vec<String>, Vec<String>) = absent.unzip();
        let what = format!("the loader {}, which is not in the bundle", paths.first()?);
        finding("loader", what, files, "pack it again")
    }

    /// Programs of the host's loader, and modules, that nothing grants.
    fn hosts(&self) -> impl Iterator<Item = &Process> {
        self.survey.processes.iter().filter(|process| match &process.loader {
            Loader::Host(Some(path)) => !self.is_allowed(path),
            Loader::Host(None) => self.least_glibc(process).is_some(),
            _ => false,
        })
    }

    fn least_glibc(&self, process: &Process) -> Option<Version> {
        let libc = process.libc(&self.survey.objects)?;
        let least = process.hosts_glibc(&self.survey.objects).map(|(least, _)| least);
        least.filter(|_| libc == Libc::Glibc)
    }

    fn granted_glibc(&self) -> Option<Version> {
        self.limits.glibc.filter(|_| !self.limits.self_contained)
    }

    /// The host's loader, where no limit speaks of it.
    fn loader(&self) -> Option<Finding> {
        let is_granted = |process: &Process| {
            self.granted_glibc().is_some() && process.libc(&self.survey.objects) == Some(Libc::Glibc)
        };
        let asking: Vec<&Process> = self.hosts().filter(|process| !is_granted(process)).collect();
        let files = asking.iter().map(|process| self.path(process.main)).collect();
        let glibc = asking.iter().filter_map(|process| self.least_glibc(process)).max();
        let loader = asking.iter().find_map(|process| match &process.loader {
            Loader::Host(Some(path)) => Some(shown(path)),
            _ => None,
        });
        let (what, hosts) = match (glibc, loader) {
            (Some(least), _) => (format!("the host's glibc {least} or later"), format!("--glibc {least}")),
            (None, Some(loader)) => (format!("the host's loader {loader}"), format!("--allow {loader}")),
            (None, None) => return None,
        };
        let fix = "pack it with its closure";
        let fix =
            if self.limits.self_contained { fix.to_owned() } else { format!("{fix}, or grant it: {hosts}") };
        finding("loader", what, files, fix)
    }

    /// More of the host's glibc than hosts have.
    fn glibc(&self) -> Option<Finding> {
        let limit = self.granted_glibc()?;
        let over = self.hosts().filter_map(|process| {
            let (least, by) = process.hosts_glibc(&self.survey.objects)?;
            (self.least_glibc(process)? > limit).then_some((least, by))
        });
        let over: BTreeSet<(Version, usize)> = over.collect();
        let (most, _) = over.last()?;
        let files = over.iter().rev().map(|(_, number)| self.path(*number)).collect();
        let fix = format!("build it where glibc is {limit}, or pack it with its closure");
        finding("glibc", format!("the host's glibc {most} or later, more than {limit}"), files, fix)
    }

    /// Libraries that programs with a loader of the bundle need, and that nothing provides.
    fn missing(&self) -> Vec<Finding> {
        let is_started =
            |process: &&Process| !process.is_hosts() && self.survey.objects[process.main].is_program();
        let missing = self.survey.unmet(is_started).into_iter().filter_map(|(name, files)| {
            finding("library", format!("{name}, which is not in the bundle"), files, "include it")
        });
        missing.collect()
    }

    /// The host's libraries other than those of a libc.
    fn libraries(&self) -> Vec<Finding> {
        let unmet = self.survey.unmet(|process| process.is_hosts()).into_iter();
        let asked = unmet.filter(|(name, _)| !is_libc(name.as_bytes()) && !self.is_allowed(name.as_bytes()));
        let found = asked.filter_map(|(name, files)| {
            let fix = format!("pack it with its closure, include it, or grant it: --allow {name}");
            finding("library", format!("the host's {name}"), files, fix)
        });
        found.collect()
    }

    fn interpreters(&self) -> Vec<Finding> {
        let mut asked: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for script in &self.survey.scripts {
            let counts = script.is_started || self.limits.self_contained;
            if counts && !self.is_allowed(script.interpreter.as_bytes()) {
                asked.entry(&script.interpreter).or_default().push(shown(&script.path));
            }
        }
        let found = asked.into_iter().filter_map(|(interpreter, files)| {
            let fix = format!("include the interpreter, or grant it: --allow {interpreter}");
            finding("interpreter", format!("the host's {interpreter}"), files, fix)
        });
        found.collect()
    }
}

impl Survey {
    /// Needs that the bundle does not meet, of these processes: names, and who has them.
    pub fn unmet(&self, of: impl Fn(&&Process) -> bool) -> BTreeMap<String, Vec<String>> {
        let mut unmet: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (asker, name) in self.processes.iter().filter(of).flat_map(|process| &process.unmet) {
            unmet.entry(shown(name)).or_default().insert(shown(&self.objects[*asker].path));
        }
        unmet.into_iter().map(|(name, files)| (name, files.into_iter().collect())).collect()
    }
}
