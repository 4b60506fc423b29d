//! Plan -> complete plan: every file scanned, scripts led to the interpreters that come along, and all that dynamic
//! programs need brought in.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use globset::GlobSet;
use kitbag_closure::facts::Kind;
use kitbag_closure::resolve::{self, Addition, Closure, Conflict, Input, Member, Missing, Remark, Request};
use kitbag_closure::resolve::{Tried, Verdict};
use kitbag_closure::rewrite::{self, Edits, Reader, VARIABLES, Variable};
use kitbag_closure::root::Root;
use kitbag_closure::tree::{Listing, Node, Tree};
use kitbag_format::Digest;
use kitbag_format::manifest::Command;
use kitbag_format::slots::Pad;
use rayon::prelude::*;

use crate::diagnostic::{Diagnostic, Failure};
use crate::mentions::may_ask;
use crate::origin::{Need, Origin};
use crate::plan::{Change, Plan, PlanEntry, PlanKind};
use crate::preset::{self, python};
use crate::scan::{self, Changed, Elf, Look, Memory, Scanned, Seen, Unreadable};
use crate::script::{self, Interpreter};
use crate::sets;
use crate::tree::shown;

/// The tree's folder for what comes along.
const FOLDER: &[u8] = b".kitbag";
/// Places that are searched, in a message.
const PLACES_SHOWN: usize = 12;

/// Files that do not do, in a message.
const UNFIT_SHOWN: usize = 3;

/// What the files of a complete plan hold.
pub struct Scan {
    /// For each entry of the plan, what is packed of it; `None` for what is no file.
    pub packed: Vec<Option<Scanned>>,
    /// Sources that are packed otherwise than they stand there, as they stand there.
    changed: Vec<(PathBuf, Scanned)>,
    /// How they are packed; with empty edits, those that were looked at and stay as they are.
    pub changes: Vec<(PathBuf, Changed)>,
}

impl Scan {
    /// Every source and what it holds, for the memory.
    pub fn sources<'a>(&'a self, plan: &'a Plan) -> impl Iterator<Item = (&'a Path, &'a Scanned)> {
        let unchanged =
            plan.entries.iter().zip(&self.packed).filter_map(|(entry, scanned)| match &entry.kind {
                PlanKind::File { source, change: None, .. } => Some((source.as_path(), scanned.as_ref()?)),
                _ => None,
            });
        unchanged.chain(self.changed.iter().map(|(source, scanned)| (source.as_path(), scanned)))
    }
}

/// Completes `plan`. What cannot be completed is a [`Failure`] with exit code `MANIFEST`.
pub fn complete(plan: &mut Plan, memory: &Memory) -> Result<Scan, Failure> {
    reserved(plan)?;
    let elf = if plan.closure.enabled { Elf::Needs } else { Elf::Whole };
    let packed = scan::scan(&plan.entries, elf, memory).map_err(unreadable)?;
    let mut draft = Draft {
        plan,
        memory,
        packed,
        changed: Vec::new(),
        changes: Vec::new(),
        loads: HashMap::new(),
        loaders: HashSet::new(),
    };
    if draft.plan.closure.enabled {
        let listing = draft.listing();
        let scripts = draft.lead_scripts(&listing)?;
        draft.close(&listing)?;
        draft.rename_in_modules()?;
        draft.note_loads(&listing, &scripts);
        draft.sort();
    }
    scan::read_rest(&draft.plan.entries, &mut draft.packed).map_err(unreadable)?;
    draft.lead();
    Ok(Scan { packed: draft.packed, changed: draft.changed, changes: draft.changes })
}

/// The tree's folder `.kitbag` is for what comes along.
fn reserved(plan: &Plan) -> Result<(), Failure> {
    let is_ours = |entry: &&PlanEntry| {
        let below = entry.path.strip_prefix(FOLDER);
        below.is_some_and(|rest| rest.starts_with(b"/"))
            && !sets::is_in_place(&entry.path)
            && !preset::is_in_place(&entry.path)
    };
    let Some(entry) = plan.entries.iter().find(is_ours) else { return Ok(()) };
    let error = Diagnostic::new(format!("`{}` cannot be packed there", entry.shown()));
    let error = error.help(
        "the tree's folder `.kitbag` is for what comes along by itself; choose another `to`, or exclude it",
    );
    Err(Failure::manifest(plan.source.clone(), vec![error]))
}

fn unreadable(input: Unreadable) -> Failure {
    Failure::new(
        kitbag_format::exit::MANIFEST,
        format!("cannot pack {}: {}", input.path.display(), input.why),
    )
}

struct Draft<'a> {
    plan: &'a mut Plan,
    memory: &'a Memory,
    packed: Vec<Option<Scanned>>,
    changed: Vec<(PathBuf, Scanned)>,
    changes: Vec<(PathBuf, Changed)>,
    /// What is executed together with a program, by its tree path.
    loads: HashMap<Vec<u8>, Vec<Vec<u8>>>,
    /// Loaders by tree path. They know variables that programs with more rights than their caller shall not have, and
    /// ask for none of them.
    loaders: HashSet<Vec<u8>>,
}

/// Scripts of the tree, and the path in the tree of the interpreter that each is led to.
type Scripts = HashMap<Vec<u8>, Vec<u8>>;

impl Draft<'_> {
    fn look(&self, number: usize) -> Option<&Look> {
        self.packed[number].as_ref().map(|scanned| &scanned.look)
    }

    /// The tree for lookups, as it was planned.
    fn listing(&self) -> Listing {
        let mut listing = Listing::default();
        for entry in &self.plan.entries {
            let node = match &entry.kind {
                PlanKind::Dir => Node::Folder,
                PlanKind::File { .. } => Node::File,
                PlanKind::Symlink { target } => Node::Link(target.clone()),
            };
            listing.add(entry.path.as_slice(), node);
        }
        listing
    }

    /// Executable scripts whose interpreter comes along start with that one; others are warned about.
    fn lead_scripts(&mut self, listing: &Listing) -> Result<Scripts, Failure> {
        let is_script = |number: &usize| {
            matches!(self.plan.entries[*number].kind, PlanKind::File { executable: true, change: None, .. })
                && matches!(self.look(*number), Some(Look::Script(_)))
        };
        let numbers: Vec<usize> = (0..self.plan.entries.len()).filter(is_script).collect();
        if numbers.is_empty() {
            return Ok(Scripts::new());
        }
        let interpreters = Interpreters::of(&self.plan.entries, listing);
        let (mut scripts, mut changes, mut hosts) = (Scripts::new(), Vec::new(), Vec::new());
        for number in numbers {
            let Some(Look::Script(line)) = self.look(number) else { continue };
            let entry = &self.plan.entries[number];
            let asked = script::parse(line);
            let found =
                asked.and_then(|shebang| Some((interpreters.find(shebang.interpreter)?, shebang.argument)));
            let Some((path, argument)) = found else {
                hosts.push((entry.shown(), String::from_utf8_lossy(line).trim().to_owned()));
                continue;
            };
            changes.push((number, Ask::Lead { path: path.clone(), argument: argument.to_vec() }));
            scripts.insert(entry.path.clone(), path);
        }
        self.plan.warnings.extend(host_scripts(&hosts));
        self.change(&changes)?;
        Ok(scripts)
    }

    /// Changes entries as asked for.
    fn change(&mut self, asked: &[(usize, Ask)]) -> Result<(), Failure> {
        let made: Result<Vec<_>, Unreadable> = asked
            .par_iter()
            .map(|(number, ask)| match &self.plan.entries[*number].kind {
                PlanKind::File { source, seen, .. } => {
                    scan::change(source, *seen, ask.name(), self.memory, |bytes| ask.edits(bytes)).map(Some)
                }
                _ => Ok(None),
            })
            .collect();
        for ((number, ask), made) in asked.iter().zip(made.map_err(unreadable)?) {
            let (PlanKind::File { source, change, .. }, Some(made)) =
                (&mut self.plan.entries[*number].kind, made)
            else {
                continue;
            };
            self.changes.push((source.clone(), made.clone()));
            if made.edits.is_empty() {
                continue;
            }
            *change = Some(Box::new(Change { edits: made.edits, pad: ask.pad() }));
            if let Some(scanned) = self.packed[*number].replace(made.scanned) {
                self.changed.push((source.clone(), scanned));
            }
        }
        Ok(())
    }

    /// Brings in what the ELF files need, and changes those that have to find it.
    fn close(&mut self, listing: &Listing) -> Result<(), Failure> {
        let members = self.members();
        if members.is_empty() {
            return Ok(());
        }
        let root = Root::new(&self.plan.closure.root);
        let input = Input { members: &members, tree: listing, root: &root, read: &resolve::facts_of };
        let mut closure = resolve::resolve(&input);
        let optional = &self.plan.closure.optional;
        closure.missing.retain(|missing| !may_miss(optional, missing));
        let errors = errors(&closure);
        if !errors.is_empty() {
            return Err(Failure::manifest(self.plan.source.clone(), errors));
        }
        let said = closure.remarks.iter().filter_map(|remark| remark_text(remark, optional));
        self.plan.warnings.extend(said);
        self.plan.origins = origins(&closure);
        self.add(&closure, listing)?;
        self.rewrite(&closure)?;
        let loaders = closure.requests.iter().filter(|(_, request)| request.is_loader);
        self.loaders = loaders.map(|(path, _)| path.clone()).collect();
        self.loads = closure.loads.into_iter().collect();
        Ok(())
    }

    fn members(&mut self) -> Vec<Member> {
        let mut members = Vec::new();
        for (entry, scanned) in self.plan.entries.iter().zip(&self.packed) {
            let (PlanKind::File { source, executable, .. }, Some(scanned)) = (&entry.kind, scanned) else {
                continue;
            };
            match &scanned.look {
                Look::Elf(facts) if facts.kind != Kind::Other => members.push(Member {
                    path: entry.path.clone(),
                    source: fs::canonicalize(source).unwrap_or_else(|_| source.clone()),
                    facts: facts.as_ref().clone(),
                }),
                Look::Broken(why) if *executable => {
                    let warning =
                        format!("`{}` begins as an ELF file, but {why}; packed as it is", entry.shown());
                    self.plan.warnings.push(warning);
                }
                _ => {}
            }
        }
        members
    }

    fn add(&mut self, closure: &Closure, listing: &Listing) -> Result<(), Failure> {
        let mut entries: Vec<PlanEntry> = Vec::new();
        for (path, addition) in &closure.additions {
            for (end, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
                let folder = &path[..end];
                let is_new = |entry: &PlanEntry| entry.path == folder && entry.kind == PlanKind::Dir;
                if listing.find(folder).is_none() && !entries.iter().any(is_new) {
                    entries.push(PlanEntry { path: folder.to_vec(), kind: PlanKind::Dir });
                }
            }
            let kind = match addition {
                Addition::Link(target) => PlanKind::Symlink { target: target.clone() },
                Addition::File { source, .. } => file(source).map_err(unreadable)?,
                Addition::Empty => file(Path::new("/dev/null")).map_err(unreadable)?,
            };
            entries.push(PlanEntry { path: path.clone(), kind });
        }
        let scanned = scan::scan(&entries, Elf::Needs, self.memory).map_err(unreadable)?;
        self.plan.entries.extend(entries);
        self.packed.extend(scanned);
        Ok(())
    }

    fn rewrite(&mut self, closure: &Closure) -> Result<(), Failure> {
        let variables = self.renamed();
        let wanted = |number: usize| {
            let entry = &self.plan.entries[number];
            let request = closure.requests.get(&entry.path)?.clone();
            let request = Request { variables: variables.clone(), ..request };
            matches!(entry.kind, PlanKind::File { .. }).then_some((number, Ask::Rewrite(request)))
        };
        let wanted: Vec<_> = (0..self.plan.entries.len()).filter_map(wanted).collect();
        self.change(&wanted)
    }

    /// Variables that files of the bundle are made to ask for by their other names.
    fn renamed(&self) -> Vec<Variable> {
        let led = VARIABLES.iter().filter(|variable| self.plan.led.contains_key(variable.name));
        led.copied().collect()
    }

    /// Modules of Python ask for variables in their texts.
    fn rename_in_modules(&mut self) -> Result<(), Failure> {
        let Some(zones) = self.renamed().into_iter().find(|variable| variable.name == python::ZONES) else {
            return Ok(());
        };
        let is_asker = |entry: &PlanEntry| {
            python::asks_for_zones(&entry.path) && matches!(entry.kind, PlanKind::File { change: None, .. })
        };
        let entries = self.plan.entries.iter().enumerate();
        let asked: Vec<_> = entries
            .filter(|(_, entry)| is_asker(entry))
            .map(|(number, _)| (number, Ask::Rename(zones)))
            .collect();
        self.change(&asked)
    }

    /// Sets the variables that lead to what sets and presets bring: under the name that files of the bundle were made
    /// to ask for, and under the plain one where other files ask for that. What `env` says is set as it says.
    fn lead(&mut self) {
        for variable in &VARIABLES {
            let is_renamed = self.changes.iter().any(|(_, changed)| asks_for_own(&changed.edits, variable));
            let askers = self.askers(variable);
            let is_plain = match variable.reader {
                Reader::Anyone if self.plan.closure.enabled => !askers.is_empty(),
                _ => !is_renamed,
            };
            let led = self.plan.led.get(variable.name).cloned();
            if led.is_some() {
                self.plan.notes.extend(plain_note(variable, &askers));
            }
            for command in self.plan.manifest.commands_mut() {
                let written = command.env.get(variable.name).cloned();
                let Some(value) = written.as_ref().or(led.as_ref()).cloned() else { continue };
                if is_plain && written.is_none() {
                    command.env.insert(variable.name.to_owned(), value.clone());
                }
                if is_renamed {
                    command.env.entry(variable.own.to_owned()).or_insert(value);
                }
            }
        }
    }

    /// Files that may ask for a variable by its plain name.
    fn askers(&self, variable: &Variable) -> Vec<String> {
        let asks = |entry: &PlanEntry, scanned: &Scanned| match &entry.kind {
            PlanKind::File { change, .. } => {
                let is_renamed = change.as_ref().is_some_and(|made| asks_for_own(&made.edits, variable));
                scanned.mentions.has(variable)
                    && !is_renamed
                    && may_ask(&entry.path, variable)
                    && !self.loaders.contains(&entry.path)
            }
            _ => false,
        };
        let both = self.plan.entries.iter().zip(&self.packed);
        both.filter(|(entry, scanned)| scanned.as_ref().is_some_and(|scanned| asks(entry, scanned)))
            .map(|(entry, _)| entry.shown())
            .collect()
    }

    /// Notes for each command what is executed together with its program.
    fn note_loads(&mut self, listing: &Listing, scripts: &Scripts) {
        let loads = &self.loads;
        let note = |command: &mut Command| {
            let Some(program) = command.argv.first().and_then(|program| listing.find(program.as_bytes()))
            else {
                return;
            };
            let interpreter = scripts.get(&program);
            let loaded = loads.get(interpreter.unwrap_or(&program)).into_iter().flatten();
            let paths = interpreter.into_iter().chain(loaded);
            command.loads = paths.filter_map(|path| String::from_utf8(path.clone()).ok()).collect();
        };
        self.plan.manifest.commands_mut().into_iter().for_each(note);
    }

    /// By path again.
    fn sort(&mut self) {
        let entries = std::mem::take(&mut self.plan.entries);
        let mut both: Vec<_> = entries.into_iter().zip(std::mem::take(&mut self.packed)).collect();
        both.sort_by(|(a, _), (b, _)| a.path.cmp(&b.path));
        (self.plan.entries, self.packed) = both.into_iter().unzip();
    }
}

fn file(source: &Path) -> Result<PlanKind, Unreadable> {
    let found = fs::metadata(source)
        .map_err(|error| Unreadable { path: source.to_owned(), why: error.to_string() })?;
    let executable = found.permissions().mode() & 0o111 != 0;
    Ok(PlanKind::File { source: source.to_owned(), executable, seen: Seen::from(&found), change: None })
}

/// What a file is to become.
enum Ask {
    /// A script that starts with the program at this path of the tree.
    Lead { path: Vec<u8>, argument: Vec<u8> },
    /// An ELF file that finds what it needs in the bundle.
    Rewrite(Request),
    /// A text that asks for a variable by its other name.
    Rename(Variable),
}

impl Ask {
    /// Equal ones change equal files equally.
    fn name(&self) -> Digest {
        let text = match self {
            Self::Lead { path, argument } => format!("lead {path:?} {argument:?}"),
            Self::Rewrite(request) => format!("rewrite {request:?}"),
            Self::Rename(variable) => format!("rename {variable:?}"),
        };
        Digest::of(text.as_bytes())
    }

    /// What follows the text in its slots.
    fn pad(&self) -> Pad {
        match self {
            Self::Lead { .. } => Pad::Space,
            Self::Rewrite(_) | Self::Rename(_) => Pad::Nul,
        }
    }

    fn edits(&self, bytes: &[u8]) -> Result<Edits, String> {
        match self {
            Self::Lead { path, argument } => script::lead_to(bytes, path, argument)
                .ok_or_else(|| format!("`{}` is too long a path for its first line", shown(path))),
            Self::Rewrite(request) => rewrite::rewrite(bytes, request).map_err(|error| error.to_string()),
            Self::Rename(variable) => Ok(Edits {
                length: bytes.len() as u64,
                writes: variable.renamed_in_text(bytes),
                slots: Vec::new(),
                unpatched: Vec::new(),
            }),
        }
    }
}

/// True for a file that was made to ask for a variable by its other name.
fn asks_for_own(edits: &Edits, variable: &Variable) -> bool {
    edits.writes.iter().any(|(_, bytes)| bytes == variable.own.as_bytes())
}

/// That a variable is set under its plain name too, and for whom.
fn plain_note(variable: &Variable, askers: &[String]) -> Option<String> {
    let (first, more) = askers.split_first()?;
    let others = if more.is_empty() { String::new() } else { format!(" and {} more files", more.len()) };
    let verb = if more.is_empty() { "names" } else { "name" };
    Some(format!(
        "`{first}`{others} {verb} {}: it is set, and programs of the host that the app starts will have it too",
        variable.name
    ))
}

/// Programs of the tree that scripts may ask for.
struct Interpreters<'a> {
    listing: &'a Listing,
    /// By the state of their source: the same file.
    by_source: HashMap<Seen, Vec<u8>>,
}

impl<'a> Interpreters<'a> {
    fn of(entries: &[PlanEntry], listing: &'a Listing) -> Self {
        let by_source = entries.iter().filter_map(|entry| match &entry.kind {
            PlanKind::File { executable: true, seen, .. } => Some((*seen, entry.path.clone())),
            _ => None,
        });
        Self { by_source: by_source.collect(), listing }
    }

    /// The path in the tree of the program that is asked for: the very file, or else the one at its path in the
    /// tree, or else one of its name in the tree's usual folders.
    fn find(&self, interpreter: Interpreter) -> Option<Vec<u8>> {
        let by_path = match interpreter {
            Interpreter::Path(path) => {
                let found = fs::metadata(OsStr::from_bytes(path)).ok().map(|found| Seen::from(&found));
                let same = found.and_then(|seen| self.by_source.get(&seen).cloned());
                same.or_else(|| self.listing.find(path.strip_prefix(b"/").unwrap_or(path)))
            }
            Interpreter::Name(_) => None,
        };
        by_path.or_else(|| {
            let folders = [&b"bin/"[..], b"usr/bin/", b"usr/local/bin/"];
            folders.iter().find_map(|folder| self.listing.find(&[folder, interpreter.name()].concat()))
        })
    }
}

/// True for what the manifest allows to be missing.
fn may_miss(optional: &GlobSet, missing: &Missing) -> bool {
    optional.is_match(Path::new(OsStr::from_bytes(&missing.name)))
}

fn host_scripts(hosts: &[(String, String)]) -> Option<String> {
    let (path, line) = hosts.first()?;
    let more = hosts.len() - 1;
    let others = if more > 0 {
        format!(", and {more} more scripts need the host's interpreters")
    } else {
        String::new()
    };
    Some(format!(
        "`{path}` is a script for `{line}`, which is not in the bundle: the host must have it{others}"
    ))
}

fn origins(closure: &Closure) -> Vec<Origin> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let origin = |(path, addition): (&Vec<u8>, &Addition)| match addition {
        Addition::File { origin, .. } => {
            let chain = closure.why(path);
            let needs =
                chain.iter().map(|link| Need { by: text(&link.from), name: text(&link.name) }).collect();
            Some(Origin { path: text(path), from: text(origin), needs })
        }
        _ => None,
    };
    closure.additions.iter().filter_map(origin).collect()
}

fn errors(closure: &Closure) -> Vec<Diagnostic> {
    let missing = closure.missing.iter().map(missing_error);
    let conflicts = closure.conflicts.iter().map(conflict_error);
    let versions = closure.unmet_versions.iter().map(|unmet| {
        let title = format!(
            "`{}` needs version `{}` of `{}`, which `{}` does not have",
            shown(&unmet.needed_by),
            shown(&unmet.version),
            shown(&unmet.library),
            shown(&unmet.file)
        );
        let help =
            "it was built for a newer library than this machine has; include that one too, or build it here";
        chained(Diagnostic::new(title), "it comes in because", &unmet.chain).help(help)
    });
    missing.chain(conflicts).chain(versions).collect()
}

fn chained(error: Diagnostic, why: &str, chain: &[resolve::Link]) -> Diagnostic {
    chain.iter().fold(error, |error, link| error.help(format!("{why} {link}")))
}

fn missing_error(missing: &Missing) -> Diagnostic {
    let name = shown(&missing.name);
    let title = format!("`{}` needs `{name}`, which nothing provides", shown(&missing.needed_by));
    let error = chained(Diagnostic::new(title), "it comes in because", &missing.chain);
    let unfit = unique(missing.tried.iter().filter_map(unfit)).into_iter().take(UNFIT_SHOWN);
    let error = unfit.fold(error, Diagnostic::help);
    let error = error.help(format!("searched for {}: {}", missing.target, places(&missing.tried)));
    error.help(match missing.need {
        resolve::Need::Interpreter => {
            "kitbag brings it from the machine where it packs, or from the file system of another \
                              one: `--root DIR`"
                .to_owned()
        }
        resolve::Need::Library | resolve::Need::Dlopen(_) => format!(
            "install the package that has it, include the file, or do without: `[closure]` and below it \
             `optional = [\"{name}\"]`"
        ),
    })
}

/// What is there, and why that does not do. None if nothing is.
fn unfit(tried: &Tried) -> Option<String> {
    let path = shown(&tried.path);
    match &tried.verdict {
        Verdict::Absent => None,
        Verdict::NotLoadable(why) => Some(format!("`{path}` cannot be loaded: {why}")),
        Verdict::Other(target) => Some(format!("`{path}` is for {target}")),
    }
}

/// The folders that were searched.
fn places(tried: &[Tried]) -> String {
    let folder = |tried: &Tried| {
        let end = tried.path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        format!("`{}`", shown(&tried.path[..end]))
    };
    let mut places = unique(tried.iter().map(folder));
    if let Some(more @ 1..) = places.len().checked_sub(PLACES_SHOWN) {
        places.truncate(PLACES_SHOWN);
        places.push(format!("and {more} more folders"));
    }
    if places.is_empty() { "nowhere".to_owned() } else { places.join(", ") }
}

/// Each text once, where it comes first.
fn unique(texts: impl Iterator<Item = String>) -> Vec<String> {
    texts.fold(Vec::new(), |mut unique, text| {
        if !unique.contains(&text) {
            unique.push(text);
        }
        unique
    })
}

fn conflict_error(conflict: &Conflict) -> Diagnostic {
    match conflict {
        Conflict::TwoOfOneName { name, first, second } => {
            let error =
                Diagnostic::new(format!("one program needs two different libraries `{}`", shown(name)));
            let error = chained(error, "one comes in because", first);
            let error = chained(error, "the other one because", second);
            error.help("no process can load both; include or exclude one of them")
        }
        Conflict::Different { program, name, wanted, found } => {
            let instead = found.as_ref().map_or("nothing".to_owned(), |found| format!("`{}`", shown(found)));
            let title =
                format!("`{}` would find {instead} for `{}` in the bundle", shown(program), shown(name));
            let help = match (found, wanted.iter().any(|byte| b":$\n".contains(byte))) {
                (None, true) => "no search path can name a folder with `:` or `$` in it; rename that one",
                _ => "exclude what stands in its way",
            };
            Diagnostic::new(title).help(format!("on this machine it finds `{}`; {help}", shown(wanted)))
        }
        Conflict::NeededByPath { needed_by, name } => {
            let title = format!("`{}` needs a library by its path `{}`", shown(needed_by), shown(name));
            Diagnostic::new(title)
                .help("no search path leads there in a bundle; link it by its name: `-Wl,-soname`")
        }
    }
}

fn remark_text(remark: &Remark, optional: &GlobSet) -> Option<String> {
    match remark {
        Remark::NotThere(missing) if may_miss(optional, missing) => None,
        Remark::NotThere(missing) => Some(format!(
            "`{}` may open `{}` while it runs, which nothing provides",
            shown(&missing.needed_by),
            shown(&missing.name)
        )),
        Remark::OtherCopy { .. } | Remark::LoadedBefore { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    /// What rewriting leaves in files, the runtime fills in.
    #[test]
    fn both_halves_spell_the_tree_alike() {
        assert_eq!(kitbag_closure::rewrite::TREE, kitbag_format::slots::TREE);
    }
}
