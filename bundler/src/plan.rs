//! From the manifest as written, and the file system, to what is packed: every default made explicit.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use globset::GlobSet;
use kitbag_closure::rewrite::Edits;
use kitbag_closure::rewrite::Variable;
use kitbag_format::manifest::{Command, Manifest, Run, Seed, Service};
use kitbag_format::service::{Logs, Schedule, Task};
use kitbag_format::slots::{Pad, Slot};
use kitbag_format::template::{Piece, Template};

use crate::cargo::{self, CargoPackage};
use crate::diagnostic::{Diagnostic, Failure, Source, near_miss};
use crate::manifest::{
    self, CommandSource, Project, RunSource, ServiceSource, Supervised, TaskSource, name_fault, version_fault,
};
use crate::origin::Origin;
use crate::preset::{self, Expansion};
use crate::read::Text;
use crate::scan::Seen;
use crate::sets::{self, Brought};
use crate::tree::{self, Kind, Node, Planter, Tree, shown};

mod rendered;

/// zstd's own default.
const DEFAULT_LEVEL: i32 = 3;

/// Where time zones are, on a host and in a tree.
const ZONES: &str = "usr/share/zoneinfo";

/// What is packed.
#[derive(Debug)]
pub struct Plan {
    /// The manifest that travels.
    pub manifest: Manifest,
    /// zstd level, 1 to 19.
    pub compression: i32,
    /// The tree, sorted by the bytes of the path: a folder stands before what is in it.
    pub entries: Vec<PlanEntry>,
    /// Where the bundle is written: as told, or else [`default_output`].
    pub output: PathBuf,
    /// Variables that lead every command to what sets and presets bring, where its `env` does not say otherwise.
    /// Under which names they are set depends on who asks for them: [`crate::complete`].
    pub led: BTreeMap<String, String>,
    /// What dynamic programs need, and where it is looked for.
    pub closure: ClosurePlan,
    /// Where what came along by itself is from; empty before [`crate::complete`].
    pub origins: Vec<Origin>,
    /// The file that the manifest stands in, for errors.
    pub source: Source,
    /// Files and folders of the host that the app may use, absolute; [`crate::hermetic`] alone asks for them.
    pub host: Vec<PathBuf>,
    /// One sentence each.
    pub warnings: Vec<String>,
    /// What a preset found and took, one sentence each.
    pub notes: Vec<String>,
}

/// How the needs of dynamic programs are met.
#[derive(Debug)]
pub struct ClosurePlan {
    /// Whether they are.
    pub enabled: bool,
    /// Names of libraries that may be missing.
    pub optional: GlobSet,
    /// The file system that the programs are from: `/`, or the folder that holds another one.
    pub root: PathBuf,
}

/// A place of the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanEntry {
    /// Relative, without `/` at its beginning or end; any bytes but NUL.
    pub path: Vec<u8>,
    /// What is there.
    pub kind: PlanKind,
}

/// What is at a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlanKind {
    /// A folder.
    Dir,
    /// A regular file.
    File {
        /// Where it is read from.
        source: PathBuf,
        /// It may be executed.
        executable: bool,
        /// Its state when the plan was made.
        seen: Seen,
        /// What is packed otherwise than it stands there.
        change: Option<Box<Change>>,
    },
    /// A symbolic link that stays in the tree.
    Symlink {
        /// What it says.
        target: Vec<u8>,
    },
}

/// How a file is packed otherwise than it stands in its source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// What the bytes become.
    pub edits: Edits,
    /// What follows the text in its slots.
    pub pad: Pad,
}

impl Change {
    /// Its slots, as the index has them.
    pub fn slots(&self) -> Vec<Slot> {
        let slots = self.edits.slots.iter();
        slots.map(|slot| Slot { at: slot.at, length: slot.length, pad: self.pad }).collect()
    }
}

/// What a plan depends on beside the folder.
#[derive(Debug, Clone, Default)]
pub struct PlanOptions {
    /// The file that will be written, and is left out of the tree if an included folder holds it. `None`:
    /// the one of [`default_output`].
    pub output: Option<PathBuf>,
    /// Cargo shows errors only.
    pub quiet: bool,
    /// Where libraries are looked for. `None`: `/`.
    pub root: Option<PathBuf>,
}

/// Where a bundle called `name` is written unless told: `./NAME`, or `./NAME.kitbag` where that is a folder
/// or one of the files to pack, `inputs`.
fn default_output(name: &str, inputs: impl IntoIterator<Item = PathBuf>) -> PathBuf {
    let path = Path::new(".").join(name);
    let Ok(there) = fs::metadata(&path) else { return path };
    let is_it = |input: PathBuf| fs::metadata(input).is_ok_and(|input| tree::id(&input) == tree::id(&there));
    if there.is_dir() || inputs.into_iter().any(is_it) {
        return path.with_file_name(format!("{name}.kitbag"));
    }
    path
}

/// Plans the bundle of folder `dir`; builds it first if it is a Cargo project.
///
/// Everything that is wrong with the manifest and the files it names is collected in one [`Failure`], with
/// exit code `MANIFEST`; nothing is built then. A build that fails has exit code `FAILURE`.
pub fn plan(dir: &Path, options: &PlanOptions) -> Result<Plan, Failure> {
    let project = manifest::load(dir)?;
    if !project.is_cargo {
        return Draft::new(&project, None, options).finish(&BTreeMap::new());
    }
    let package = match cargo::find(dir, &project.manifest.cargo) {
        Ok(package) => package,
        Err(errors) => {
            let errors = [project.errors, errors].concat();
            return Err(Failure::manifest(project.source, errors));
        }
    };
    // Twice: mistakes show before a long build, and what the build changed in included folders is seen after.
    let unbuilt = package.bins.iter().map(|bin| (bin.clone(), PathBuf::new())).collect();
    Draft::new(&project, Some(&package), options).finish(&unbuilt)?;
    let built = cargo::build(dir, &package, &project.manifest.cargo, options.quiet)?;
    Draft::new(&project, Some(&package), options).finish(&built)
}

/// A plan in the making.
struct Draft<'a> {
    project: &'a Project,
    package: Option<&'a CargoPackage>,
    options: &'a PlanOptions,
    errors: Vec<Diagnostic>,
    warnings: Vec<String>,
    notes: Vec<String>,
    /// What the preset stands for; `None` where there is none, or one that failed.
    expansion: Option<Expansion>,
    /// What the closure's sets stand for.
    sets: Brought,
    tree: Tree,
    /// The tree has everything in it, so that what is missing is an error.
    whole: bool,
}

impl<'a> Draft<'a> {
    fn new(project: &'a Project, package: Option<&'a CargoPackage>, options: &'a PlanOptions) -> Self {
        let errors = project.errors.clone();
        Self {
            project,
            package,
            options,
            errors,
            warnings: Vec::new(),
            notes: Vec::new(),
            expansion: None,
            sets: Brought::default(),
            tree: Tree::default(),
            whole: false,
        }
    }

    fn finish(mut self, bins: &BTreeMap<String, PathBuf>) -> Result<Plan, Failure> {
        let source = &self.project.manifest;
        let name = self.name();
        let version = self.version();
        let output = self.output(&name);
        self.bring_sets();
        self.expand(&name);
        self.grow_tree(&output, bins);
        let run = self.run();
        let tasks = self.tasks();
        let seeds = self.seeds();
        self.rendered(&name);
        let host = self.host();
        let (Some(run), true) = (run, self.errors.is_empty()) else {
            return Err(Failure::manifest(self.project.source.clone(), self.errors));
        };
        let description = source.description.as_ref().map(Text::get_ref);
        let description = description.or(self.package.map(|package| &package.description));
        let description =
            description.map_or("", String::as_str).split_whitespace().collect::<Vec<_>>().join(" ");
        let closure = self.closure();
        let (led, _) = self.env();
        let logs = match &source.run {
            RunSource::Services(supervised) => supervised.logs.clone(),
            _ => Logs::default(),
        };
        let manifest = Manifest { name, version, description, requires: Vec::new(), run, seeds, tasks, logs };
        // Together things can be too many of which each is right.
        let unread =
            || Manifest::from_text(&manifest.to_text()).err().map(|wrong| format!("cannot be read: {wrong}"));
        if let Some(fault) = manifest.fault().map(str::to_owned).or_else(unread) {
            let error = Diagnostic::new(format!("no bundle could start with this manifest: it {fault}"));
            return Err(Failure::manifest(self.project.source.clone(), vec![error]));
        }
        Ok(Plan {
            manifest,
            compression: source.compression.unwrap_or(DEFAULT_LEVEL),
            entries: self.tree.nodes.into_iter().map(entry).collect(),
            output,
            led,
            closure,
            origins: Vec::new(),
            source: self.project.source.clone(),
            host,
            warnings: self.warnings,
            notes: self.notes,
        })
    }

    fn bring_sets(&mut self) {
        match sets::expand(&self.project.manifest.closure.sets, &self.root()) {
            Ok(sets) => self.sets = sets,
            Err(errors) => self.errors.extend(errors),
        }
        self.warnings.append(&mut self.sets.warnings);
    }

    /// The file system that programs are from.
    fn root(&self) -> PathBuf {
        self.options.root.clone().unwrap_or_else(|| PathBuf::from("/"))
    }

    /// Finds what the preset stands for. That may take long, so mistakes come first.
    fn expand(&mut self, name: &str) {
        let Some(app) = self.project.manifest.app.as_ref().filter(|_| self.errors.is_empty()) else { return };
        match app.expand(&self.project.dir, name, self.options.quiet) {
            Ok(expansion) => self.expansion = Some(expansion),
            Err(error) => self.errors.push(error),
        }
    }

    fn closure(&self) -> ClosurePlan {
        let options = &self.project.manifest.closure;
        let optional = tree::glob_set(options.optional.iter()).unwrap_or_default();
        ClosurePlan { enabled: options.enabled, optional, root: self.root() }
    }

    fn name(&mut self) -> String {
        let inherited = self.package.map(|package| package.name.as_str());
        let key = self.project.manifest.name.as_ref();
        self.identity("name", key, inherited, name_fault, "guestbook")
    }

    fn version(&mut self) -> String {
        let inherited = self.package.map(|package| package.version.as_str());
        let key = self.project.manifest.version.as_ref();
        self.identity("version", key, inherited, version_fault, "1.2.3")
    }

    /// The name or version: the manifest's, or else Cargo's.
    fn identity(
        &mut self,
        key: &str,
        written: Option<&Text>,
        inherited: Option<&str>,
        fault: fn(&str) -> Option<String>,
        example: &str,
    ) -> String {
        if let Some(written) = written {
            return written.get_ref().clone();
        }
        let Some(inherited) = inherited else {
            // One of the wrong type is reported already.
            if !self.project.keys.iter().any(|written| written == key) {
                let error = Diagnostic::new(format!("the manifest has no `{key}`"));
                self.errors.push(error.help(format!("write `{key} = \"{example}\"` at its beginning")));
            }
            return String::new();
        };
        if let Some(fault) = fault(inherited) {
            let error =
                Diagnostic::new(format!("the package's {key} `{inherited}` cannot be a bundle's: {fault}"));
            self.errors.push(error.help(format!("give the bundle its own: `{key} = \"{example}\"`")));
        }
        inherited.to_owned()
    }

    fn output(&self, name: &str) -> PathBuf {
        let includes = self.project.manifest.includes.iter();
        let inputs = includes.map(|include| tree::join(&self.project.dir, include.from.get_ref()));
        self.options.output.clone().unwrap_or_else(|| default_output(name, inputs))
    }

    fn grow_tree(&mut self, output: &Path, bins: &BTreeMap<String, PathBuf>) {
        let source = &self.project.manifest;
        let output = fs::metadata(output).ok().filter(fs::Metadata::is_file);
        let output = output.map(|metadata| tree::id(&metadata));
        let mut includes = source.includes.clone();
        let own = includes.len();
        includes.extend(self.expansion.iter().flat_map(|expansion| expansion.includes.iter().cloned()));
        includes.extend(self.sets.includes.iter().cloned());
        let mut planter = Planter::new(&self.project.dir, &includes, &source.exclude, output);
        for (place, target) in self.expansion.iter().flat_map(|expansion| &expansion.links) {
            planter.link(place, target, own);
        }
        for (bin, path) in bins {
            let seen = fs::metadata(path).map_or_else(|_| Seen::default(), |found| Seen::from(&found));
            planter.bin(bin, path.clone(), seen);
        }
        let (mut tree, unused) = planter.plant();
        let expanded = source.app.is_none() || self.expansion.is_some();
        self.whole = source.includes_whole && expanded && tree.errors.is_empty();
        self.errors.append(&mut tree.errors);
        for pattern in unused {
            let line = self.project.source.line(pattern.span().start);
            let (pattern, path) = (pattern.get_ref(), &self.project.source.path);
            self.warnings.push(format!("`{pattern}` in `exclude` matches nothing ({path} line {line})"));
        }
        for (link, target) in tree.dangling() {
            self.warnings.push(format!("the link `{link}` leads to `{target}`, where the tree has nothing"));
        }
        self.tree = tree;
        if let Some(expansion) = &mut self.expansion {
            self.warnings.append(&mut expansion.warnings);
            if !self.options.quiet {
                self.notes.push(expansion.note(&self.tree, own));
            }
            if self.errors.is_empty()
                && let Err(error) = expansion.complete(&mut self.tree)
            {
                self.errors.push(error);
            }
        }
    }

    fn run(&mut self) -> Option<Run> {
        match &self.project.manifest.run {
            RunSource::Wrong => None,
            RunSource::None if self.project.keys.iter().any(|key| key == "app") => {
                self.entry().map(Run::Command)
            }
            RunSource::None => self.only_bin().map(Run::Command),
            RunSource::Command(command) => self.command(command).map(Run::Command),
            RunSource::Services(Supervised { services, .. }) => {
                self.needs_no_entry();
                let services = services.iter();
                let run = services.map(|(name, source)| (name.get_ref().clone(), self.service(source)));
                Some(Run::Services(run.collect()))
            }
        }
    }

    fn service(&mut self, source: &ServiceSource) -> Service {
        let mut service = source.service.clone();
        for (command, source) in service.commands_mut().into_iter().zip(&source.commands) {
            *command = self.supervised(source);
        }
        rendered::tell_port(&mut service);
        // A probe sees what its service sees.
        let main = service.command.clone();
        for (probe, source) in service.commands_mut().into_iter().zip(&source.commands).skip(1) {
            let own = std::mem::replace(&mut probe.env, main.env.clone());
            probe.env.extend(own.into_iter().filter(|(name, _)| source.sets(name)));
            if source.cwd.is_none() {
                probe.cwd.clone_from(&main.cwd);
            }
        }
        service
    }

    fn tasks(&mut self) -> BTreeMap<String, Task> {
        let RunSource::Services(Supervised { tasks, .. }) = &self.project.manifest.run else {
            return BTreeMap::new();
        };
        let tasks = tasks.iter();
        tasks.map(|(name, source)| (name.get_ref().clone(), self.task(source))).collect()
    }

    fn task(&mut self, source: &TaskSource) -> Task {
        if let (Schedule::Cron(_), Some(zone)) = (&source.task.schedule, &source.zone) {
            self.zone(zone);
        }
        Task { command: self.supervised(&source.command), ..source.task.clone() }
    }

    /// The command of a service or task, in the preset's folder unless it says where.
    fn supervised(&mut self, source: &CommandSource) -> Command {
        let command = self.command(source).unwrap_or_default();
        let cwd = self.expansion.as_ref().and_then(|expansion| expansion.cwd.clone());
        Command { cwd: command.cwd.or(cwd), ..command }
    }

    /// Whether there is such a time zone; where this machine has none at all, nobody can tell.
    fn zone(&mut self, zone: &Text) {
        let name = zone.get_ref().as_str();
        if matches!(name, "UTC" | "local") {
            return;
        }
        let known = Path::new("/").join(ZONES);
        if known.is_dir() && !known.join(name).is_file() {
            let error = Diagnostic::new(format!("unknown time zone `{name}`"))
                .at(zone.span(), "expected `UTC`, `local`, or a name such as `Europe/Berlin`")
                .near(near_zone(&known, name).as_deref());
            self.errors.push(error);
        } else if self.tree.resolve(format!("{ZONES}/{name}").as_bytes()).is_none() {
            let line = self.project.source.line(zone.span().start);
            self.warnings.push(format!(
                "the time zone `{name}` is the host's, if it has it; `sets = [\"timezones\"]` in `[closure]` brings \
                 it along ({} line {line})",
                self.project.source.path
            ));
        }
    }

    /// A preset's entry makes a tool.
    fn entry(&mut self) -> Option<Command> {
        let expansion = self.expansion.as_ref()?;
        if let Some(command) = &expansion.command {
            return Some(Command { env: self.env().1, ..command.clone() });
        }
        let error = Diagnostic::new("the manifest says nothing to start");
        let tool = format!("a tool: `entry = \"{}\"` in `[app.{}]`", expansion.examples.0, expansion.kind);
        let service =
            format!("a service bundle: `[services.web]` and below it `argv = {}`", expansion.examples.1);
        self.errors.push(error.help(tool).help(service));
        None
    }

    /// Services say what they start themselves.
    fn needs_no_entry(&mut self) {
        let Some(entry) = self.project.manifest.app.as_ref().and_then(preset::Preset::entry) else { return };
        let error = Diagnostic::new("both `entry` and `services`")
            .at(entry.span(), "nothing starts this")
            .help("leave it out: each service says in `argv` what it starts");
        self.errors.push(error);
    }

    /// A Cargo package with one bin is a tool without a word.
    fn only_bin(&mut self) -> Option<Command> {
        let bins = self.package.map_or(&[][..], |package| &package.bins);
        if let [bin] = bins {
            let argv = vec![format!("bin/{bin}")];
            return Some(Command { argv, env: self.env().1, ..Command::default() });
        }
        let program = bins.first().map_or("tool", String::as_str);
        let mut error =
            Diagnostic::new("the manifest says nothing to start: neither `command` nor `services`");
        if bins.len() > 1 {
            let list = bins.iter().map(|bin| format!("`bin/{bin}`")).collect::<Vec<_>>().join(", ");
            error = error.help(format!("the package has several bins: {list}"));
        }
        error = error
            .help(format!("a tool, which behaves as one program: `command = [\"bin/{program}\"]`"))
            .help(format!(
                "a service bundle: `[services.{program}]` and below it `argv = [\"bin/{program}\"]`"
            ));
        self.errors.push(error);
        None
    }

    /// Variables for every command, before its own: those that the bundle's programs may know by another name, and
    /// the others.
    fn env(&self) -> (BTreeMap<String, String>, BTreeMap<String, String>) {
        let mut env = self.sets.env.clone();
        env.extend(self.expansion.iter().flat_map(|expansion| expansion.env.clone()));
        env.into_iter().partition(|(name, _)| Variable::named(name).is_some())
    }

    fn command(&mut self, source: &CommandSource) -> Option<Command> {
        let (program, arguments) = source.argv.split_first()?;
        let program = self.program(program)?;
        let arguments = arguments.iter().map(|argument| argument.get_ref().clone());
        let pairs = source.env.iter();
        let (_, mut env) = self.env();
        env.extend(pairs.map(|(name, value)| (name.get_ref().clone(), value.get_ref().clone())));
        Some(Command {
            argv: std::iter::once(program).chain(arguments).collect(),
            env,
            cwd: source.cwd.as_ref().and_then(|cwd| self.cwd(cwd)),
            loads: Vec::new(),
        })
    }

    /// The program's path in the tree, if it can be executed.
    fn program(&mut self, text: &Text) -> Option<String> {
        let path = match tree_path(text.get_ref()) {
            Ok(path) => path,
            Err(fault) => {
                self.errors.push(
                    Diagnostic::new(format!("`{}` cannot be started", text.get_ref()))
                        .at(text.span(), fault)
                        .help("the path in the tree begins at `to` of an `[[include]]`: `bin/tool`"),
                );
                return None;
            }
        };
        match self.tree.resolve(path.as_bytes()) {
            Some((_, Some(Node { kind: Kind::File { executable: true, .. }, .. }))) => {}
            Some((_, Some(Node { kind: Kind::File { .. }, source, .. }))) => {
                let error = Diagnostic::new(format!("`{path}` cannot be started"))
                    .at(text.span(), "it is not executable")
                    .help(format!("chmod +x {}", source.display()));
                self.errors.push(error);
            }
            Some(_) => {
                let error = Diagnostic::new(format!("`{path}` cannot be started"));
                self.errors.push(error.at(text.span(), "it is a folder, not a program"));
            }
            None => self.not_in_tree(&path, text.span(), "program"),
        }
        Some(path)
    }

    fn not_in_tree(&mut self, path: &str, span: Range<usize>, what: &str) {
        if !self.whole {
            return;
        }
        let mut error = Diagnostic::new(format!("there is no `{path}` in the tree"))
            .at(span, format!("expected the path of a {what} in the tree"));
        if self.tree.left_out.as_deref() == Some(path.as_bytes()) {
            error = error.help("it is the file that the bundle is written to: choose another one with `-o`");
        } else if let Some(near) = self.tree.near(path) {
            error = error.near(Some(near));
        } else {
            error =
                error.help("`[[include]]` brings files into the tree; `kitbag pack --dry-run` lists them");
        }
        self.errors.push(error);
    }

    /// A working directory that is not absolute is in the tree.
    fn cwd(&mut self, text: &Text) -> Option<String> {
        let cwd = text.get_ref().as_str();
        if cwd.starts_with('/') || cwd.starts_with("${state}") || cwd.starts_with("${env.") {
            return Some(cwd.to_owned());
        }
        let path = match cwd.trim_start_matches("./") {
            "." | "" | "${tree}" => return Some("${tree}".to_owned()),
            cwd => tree_path(cwd),
        };
        let fault = match path {
            Err(fault) => fault,
            Ok(path) => match self.tree.resolve(path.as_bytes()) {
                Some((_, None | Some(Node { kind: Kind::Dir, .. }))) => {
                    return Some(format!("${{tree}}/{path}"));
                }
                Some(_) => "it is not a folder".to_owned(),
                None => {
                    self.not_in_tree(&path, text.span(), "folder");
                    return None;
                }
            },
        };
        let error = Diagnostic::new(format!("`{cwd}` cannot be a working directory")).at(text.span(), fault);
        self.errors
            .push(error.help("a folder of the tree, an absolute path, or one that begins with `${state}`"));
        None
    }

    fn host(&mut self) -> Vec<PathBuf> {
        let source = &self.project.source;
        let paths = &self.project.manifest.host;
        for path in paths.iter().filter(|path| fs::symlink_metadata(path.get_ref()).is_err()) {
            let (line, path) = (source.line(path.span().start), path.get_ref());
            self.warnings
                .push(format!("this machine has no `{path}` (`host` in {} line {line})", source.path));
        }
        paths.iter().map(|path| path.get_ref().into()).collect()
    }

    fn seeds(&mut self) -> Vec<Seed> {
        let mut seeds = Vec::new();
        for seed in &self.project.manifest.seeds {
            let from = seed.from.get_ref();
            if self.tree.resolve(from.as_bytes()).is_none() {
                self.not_in_tree(from, seed.from.span(), "file or folder");
            }
            seeds.push(Seed { from: from.clone(), to: seed.to.get_ref().clone() });
        }
        seeds
    }
}

/// The time zone of the same area whose name is nearest.
fn near_zone(zones: &Path, name: &str) -> Option<String> {
    let (area, _) = name.rsplit_once('/').unwrap_or_default();
    let listed = fs::read_dir(zones.join(area)).ok()?.flatten();
    let names: Vec<String> = listed
        .filter(|entry| entry.path().is_file())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .map(|last| if area.is_empty() { last } else { format!("{area}/{last}") })
        .collect();
    near_miss(name, names.iter().map(String::as_str)).map(str::to_owned)
}

/// A path in the tree, written with `${tree}/` before it or without; else what is wrong with it.
fn tree_path(text: &str) -> Result<String, String> {
    let template = Template::parse(text).map_err(|error| error.to_string())?;
    let path = match &template.0[..] {
        [Piece::Text(path)] if path.starts_with('/') => {
            return Err("it runs from the bundle's tree: include it, and give its path there".to_owned());
        }
        [Piece::Text(path)] => path.as_str(),
        [Piece::Tree, Piece::Text(path)] if path.starts_with('/') => &path[1..],
        _ => {
            return Err(
                "expected a path in the tree; of the placeholders only `${tree}/` may begin it".to_owned()
            );
        }
    };
    let path = path.strip_prefix("./").unwrap_or(path);
    if path.contains('$') {
        return Err("a `$` cannot be part of it".to_owned());
    }
    if path.split('/').any(|name| matches!(name, "" | "." | "..")) {
        return Err("expected a path without `.`, `..`, doubled `/` or `/` at its end".to_owned());
    }
    Ok(path.to_owned())
}

fn entry((path, node): (Vec<u8>, Node)) -> PlanEntry {
    let kind = match node.kind {
        Kind::Dir => PlanKind::Dir,
        Kind::File { executable, seen } => {
            PlanKind::File { source: node.source, executable, seen, change: None }
        }
        Kind::Symlink { target } => PlanKind::Symlink { target },
    };
    PlanEntry { path, kind }
}

impl PlanEntry {
    /// The path for people.
    pub fn shown(&self) -> String {
        shown(&self.path)
    }
}

#[cfg(test)]
mod tests;
