//! `kitbag.toml`, or `[package.metadata.kitbag]` of a Cargo.toml, as it is written: typed, with the place
//! of everything, and with every error that the text alone shows. `docs/manifest.md` is its reference.

use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use kitbag_format::exit;
use kitbag_format::template::{Piece, Template};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::diagnostic::{Diagnostic, Failure, Source};
use crate::preset::Preset;
use crate::read::{Key, Late, Reader, Section, Text};

mod placeholders;
mod services;

pub use placeholders::{Wrong, broken, written};
pub use services::references::Known;
pub use services::{RenderSource, ServiceSource, Supervised, TaskSource};

/// The file's name.
pub const FILE: &str = "kitbag.toml";

/// What to write where nothing is there yet.
const EXAMPLE: &str = r#"write a file `kitbag.toml` there, such as

    name = "hello"
    version = "1.0.0"
    command = ["bin/hello"]

    [[include]]
    from = "hello"
    to = "bin/hello""#;

const TOP: &[Key] = &[
    ("name", "name = \"guestbook\""),
    ("version", "version = \"1.2.3\""),
    ("description", "description = \"A book for guests\""),
    ("exclude", "exclude = [\"*.bak\"]"),
    ("compression", "compression = 3"),
    ("closure", "[closure]"),
    ("host", "host = [\"/etc/resolv.conf\"]"),
    ("cargo", "[cargo]"),
    ("app", "[app.python]"),
    ("include", "[[include]]"),
    ("seed", "[[seed]]"),
    ("command", "command = [\"bin/tool\", \"--flag\"]"),
    ("services", "[services.web]"),
    ("tasks", "[tasks.backup]"),
    ("logs", "[logs]"),
];
const CARGO: &[Key] = &[
    ("package", "package = \"guestbook\""),
    ("bins", "bins = [\"guestbook\"]"),
    ("features", "features = [\"tls\"]"),
    ("default-features", "default-features = false"),
    ("static", "static = true"),
    ("profile", "profile = \"release\""),
    ("target", "target = \"x86_64-unknown-linux-gnu\""),
];
const CLOSURE: &[Key] = &[
    ("enabled", "enabled = false"),
    ("optional", "optional = [\"libtk*.so*\"]"),
    ("sets", "sets = [\"certificates\"]"),
];
const INCLUDE: &[Key] = &[
    ("from", "from = \"templates\""),
    ("to", "to = \"share/templates\""),
    ("exclude", "exclude = [\"*.tmp\"]"),
];
const SEED: &[Key] = &[("from", "from = \"share/app.db\""), ("to", "to = \"app.db\"")];
const COMMAND: &[Key] = &[
    ("argv", "argv = [\"bin/tool\", \"--flag\"]"),
    ("env", "env = { LANG = \"C.UTF-8\" }"),
    ("cwd", "cwd = \"${state}\""),
];
/// A folder's manifest, read.
#[derive(Debug)]
pub struct Project {
    /// The folder, as it was given.
    pub dir: PathBuf,
    /// The file that the manifest stands in.
    pub source: Source,
    /// What it says.
    pub manifest: SourceManifest,
    /// What is wrong with it.
    pub errors: Vec<Diagnostic>,
    /// Keys of its top level, right or wrong.
    pub keys: Vec<String>,
    /// There is a package to build with Cargo.
    pub is_cargo: bool,
}

/// The manifest as it is written.
#[derive(Debug, Default)]
pub struct SourceManifest {
    /// `name`
    pub name: Option<Text>,
    /// `version`
    pub version: Option<Text>,
    /// `description`
    pub description: Option<Text>,
    /// `exclude`, for every include.
    pub exclude: Vec<Text>,
    /// zstd level, 1 to 19.
    pub compression: Option<i32>,
    /// `[closure]`
    pub closure: ClosureOptions,
    /// `host`: absolute paths in normal form.
    pub host: Vec<Text>,
    /// `[cargo]`
    pub cargo: CargoOptions,
    /// `[app.KIND]`
    pub app: Option<Preset>,
    /// `[[include]]`
    pub includes: Vec<Include>,
    /// No include had to be dropped for an error.
    pub includes_whole: bool,
    /// `[[seed]]`
    pub seeds: Vec<SeedSource>,
    /// `command` or `[services]`
    pub run: RunSource,
}

/// `[closure]`: what dynamic programs need comes along.
#[derive(Debug)]
pub struct ClosureOptions {
    /// `enabled`
    pub enabled: bool,
    /// `optional`: patterns of libraries that may be missing.
    pub optional: Vec<Text>,
    /// `sets`: names of [`crate::sets`].
    pub sets: Vec<Text>,
}

impl Default for ClosureOptions {
    fn default() -> Self {
        Self { enabled: true, optional: Vec::new(), sets: Vec::new() }
    }
}

/// `[cargo]`: how a Cargo project is built.
#[derive(Debug)]
pub struct CargoOptions {
    /// Place of the table, where there is one.
    pub span: Option<Range<usize>>,
    /// Package of the workspace; by default the one beside the manifest.
    pub package: Option<Text>,
    /// Bin targets; by default all of the package's.
    pub bins: Option<Vec<Text>>,
    /// Features to turn on.
    pub features: Vec<Text>,
    /// Keep the default features.
    pub default_features: bool,
    /// Link libc in (`+crt-static`).
    pub link_static: bool,
    /// Cargo profile.
    pub profile: String,
    /// Target triple; by default the host's.
    pub target: Option<String>,
}

impl Default for CargoOptions {
    fn default() -> Self {
        Self {
            span: None,
            package: None,
            bins: None,
            features: Vec::new(),
            default_features: true,
            link_static: true,
            profile: "release".to_owned(),
            target: None,
        }
    }
}

/// `[[include]]`
#[derive(Debug, Clone)]
pub struct Include {
    /// File or folder, relative to the manifest's folder or absolute.
    pub from: Text,
    /// Place in the tree, in normal form; empty for the tree itself.
    pub to: String,
    /// Patterns of what to leave out.
    pub exclude: Vec<Text>,
    /// A preset's: links that lead out of it bring what they lead to, and not every pattern matches.
    pub follow: bool,
}

/// `[[seed]]`
#[derive(Debug)]
pub struct SeedSource {
    /// Path in the tree.
    pub from: Text,
    /// Path in the state folder, in normal form.
    pub to: Text,
}

/// What the bundle starts.
#[derive(Debug, Default)]
pub enum RunSource {
    /// Nothing is written.
    #[default]
    None,
    /// What is written is wrong, and reported.
    Wrong,
    /// `command`
    Command(CommandSource),
    /// `[services.NAME]`, `[tasks.NAME]` and `[logs]`
    Services(Supervised),
}

/// A program with its arguments, environment and working directory; all templates are sound.
#[derive(Debug)]
pub struct CommandSource {
    /// The program and its arguments, at least one string.
    pub argv: Vec<Text>,
    /// Variables.
    pub env: Vec<(Text, Text)>,
    /// Working directory.
    pub cwd: Option<Text>,
}

impl CommandSource {
    /// True if it says what the variable `name` is.
    pub fn sets(&self, name: &str) -> bool {
        self.env.iter().any(|(set, _)| set.get_ref() == name)
    }
}

/// Reads the manifest of folder `dir`.
///
/// Fails where there is none, where it cannot be read, and on TOML syntax; every other error is left in
/// [`Project::errors`], so that what the file system shows can be reported with it.
pub fn load(dir: &Path) -> Result<Project, Failure> {
    if !dir.is_dir() {
        return Err(no_folder(dir));
    }
    let kitbag = read_source(&dir.join(FILE))?;
    let cargo = read_source(&dir.join("Cargo.toml"))?;
    let kitbag_table = kitbag.as_ref().map(parse_toml).transpose()?;
    let cargo_table = cargo.as_ref().map(parse_toml).transpose()?;

    let package = cargo_table.as_ref().and_then(|table| table.get_ref().get("package"));
    let metadata = package
        .and_then(|package| package.get_ref().as_table())
        .and_then(|package| package.get("metadata")?.get_ref().as_table()?.get("kitbag"));
    let written = kitbag_table.as_ref().is_some_and(|table| !table.get_ref().is_empty());
    if let (true, Some(metadata), Some(cargo)) = (written, metadata, &cargo) {
        return Err(two_manifests(cargo, metadata.span()));
    }
    let has_cargo_key = kitbag_table.as_ref().is_some_and(|table| table.get_ref().contains_key("cargo"));
    let is_cargo = cargo.is_some() && (package.is_some() || has_cargo_key);

    let empty = Spanned::new(0..0, DeTable::new());
    let (source, table) = match (&kitbag, &cargo, &kitbag_table, metadata) {
        (_, Some(cargo), _, Some(metadata)) => (cargo.clone(), metadata_table(cargo, metadata)?),
        (Some(kitbag), _, Some(table), None) => (kitbag.clone(), Spanned::new(table.span(), table.get_ref())),
        (_, Some(cargo), ..) if is_cargo => (cargo.clone(), Spanned::new(0..0, empty.get_ref())),
        _ => return Err(no_manifest(dir)),
    };
    let (manifest, mut errors) = read(&source.text, &table);
    if has_cargo_key && cargo.is_none() {
        let span = manifest.cargo.span.clone().unwrap_or_default();
        let error = Diagnostic::new("`[cargo]` without a Cargo project").at(span, "");
        errors.push(error.help("there is no Cargo.toml in this folder; write one, or leave `[cargo]` out"));
    }
    let keys = table.get_ref().keys().map(|key| key.get_ref().to_string()).collect();
    Ok(Project { dir: dir.to_owned(), source, manifest, errors, keys, is_cargo })
}

fn no_folder(dir: &Path) -> Failure {
    let failure = Failure::new(exit::USAGE, format!("there is no folder `{}`", dir.display()));
    match dir.parent() {
        Some(parent) if dir.is_file() => {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            failure.help(format!("it is a file; give the folder it lies in: `{}`", parent.display()))
        }
        _ => failure,
    }
}

fn no_manifest(dir: &Path) -> Failure {
    let title = format!("nothing in `{}` says what to pack", dir.display());
    Failure::new(exit::MANIFEST, title)
        .help("`kitbag init` writes a kitbag.toml for a Cargo, Python or Node project, a jar or a program")
        .help(EXAMPLE)
        .help("a Cargo package needs no manifest: its Cargo.toml is enough")
}

fn two_manifests(cargo: &Source, span: Range<usize>) -> Failure {
    let error = Diagnostic::new("two manifests: `kitbag.toml` and `[package.metadata.kitbag]`")
        .at(span, "this one, and the file `kitbag.toml` beside it")
        .help("keep one of them, and move what the other says there");
    Failure::manifest(cargo.clone(), vec![error])
}

/// The text of a file, or `None` where there is none.
fn read_source(path: &Path) -> Result<Option<Source>, Failure> {
    let shown = path.strip_prefix(".").unwrap_or(path).display().to_string();
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Failure::new(exit::MANIFEST, format!("cannot read `{shown}`: {error}"))),
    };
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Some(Source { path: shown, text })),
        Err(error) => {
            let at = error.utf8_error().valid_up_to();
            let title = format!("`{shown}` is not UTF-8 text (byte {at})");
            Err(Failure::new(exit::MANIFEST, title))
        }
    }
}

fn parse_toml(source: &Source) -> Result<Spanned<DeTable<'_>>, Failure> {
    let (table, errors) = DeTable::parse_recoverable(&source.text);
    if errors.is_empty() {
        return Ok(table);
    }
    let diagnostics = errors.iter().map(|error| {
        let mut lines = error.message().lines();
        let title = lines.next().unwrap_or("not TOML");
        let label = lines.collect::<Vec<_>>().join(", ");
        let span = error.span().unwrap_or(source.text.len()..source.text.len());
        Diagnostic::new(format!("not TOML: {title}")).at(span, label)
    });
    Err(Failure::manifest(source.clone(), diagnostics.collect()))
}

fn metadata_table<'a>(
    source: &Source,
    value: &'a Spanned<DeValue<'a>>,
) -> Result<Spanned<&'a DeTable<'a>>, Failure> {
    match value.get_ref().as_table() {
        Some(table) => Ok(Spanned::new(value.span(), table)),
        None => {
            let error = Diagnostic::new("`[package.metadata.kitbag]` must be a table")
                .at(value.span(), format!("expected a table, found {}", value.get_ref().type_str()));
            Err(Failure::manifest(source.clone(), vec![error]))
        }
    }
}

/// Reads a manifest out of `table`, which stands in the file `text`. Whatever is wrong is in the second
/// part, and left out of the first.
pub fn read(text: &str, table: &Spanned<&DeTable<'_>>) -> (SourceManifest, Vec<Diagnostic>) {
    let mut reader = Reader::new(text, TOP);
    let top = reader.section("the manifest", table.get_ref(), table.span(), TOP);
    let mut manifest = SourceManifest {
        name: reader.string(&top, "name"),
        version: reader.string(&top, "version"),
        description: reader.string(&top, "description"),
        exclude: reader.patterns(&top, "exclude"),
        compression: reader.integer(&top, "compression", 1..=19),
        ..SourceManifest::default()
    };
    if let Some(name) = &manifest.name {
        reader.check(name, name_fault(name.get_ref()), "bad name");
    }
    if let Some(version) = &manifest.version {
        reader.check(version, version_fault(version.get_ref()), "bad version");
    }
    manifest.host = reader.host(&top);
    let before = reader.errors.len();
    manifest.closure = reader.closure(&top);
    manifest.cargo = reader.cargo(&top);
    manifest.app = reader.app(&top);
    manifest.includes = reader.includes(&top);
    manifest.includes_whole = reader.errors.len() == before;
    manifest.seeds = reader.seeds(&top);
    manifest.run = reader.run(&top);
    (manifest, reader.errors)
}

impl Reader<'_> {
    fn check(&mut self, text: &Text, fault: Option<String>, title: &str) {
        if let Some(fault) = fault {
            self.errors.push(Diagnostic::new(format!("{title} `{}`", text.get_ref())).at(text.span(), fault));
        }
    }

    fn patterns(&mut self, section: &Section<'_>, key: &str) -> Vec<Text> {
        let patterns = self.strings(section, key).map(Spanned::into_inner).unwrap_or_default();
        for pattern in &patterns {
            let fault = crate::tree::glob(pattern.get_ref()).err().map(|error| error.kind().to_string());
            self.check(pattern, fault, "bad pattern");
        }
        patterns
    }

    fn closure(&mut self, top: &Section<'_>) -> ClosureOptions {
        let mut options = ClosureOptions::default();
        let Some(table) = self.table(top, "closure") else { return options };
        let section = self.section("`[closure]`", table.get_ref(), table.span(), CLOSURE);
        options.enabled = self.boolean(&section, "enabled").unwrap_or(true);
        options.optional = self.patterns(&section, "optional");
        options.sets = self.strings(&section, "sets").map(Spanned::into_inner).unwrap_or_default();
        self.unique("the set", options.sets.iter());
        options
    }

    fn host(&mut self, top: &Section<'_>) -> Vec<Text> {
        let paths = self.strings(top, "host").map(Spanned::into_inner).unwrap_or_default();
        for path in &paths {
            self.check(path, host_fault(path.get_ref()), "bad path in `host`");
        }
        self.unique("the path", paths.iter());
        paths
    }

    fn cargo(&mut self, top: &Section<'_>) -> CargoOptions {
        let mut options = CargoOptions::default();
        let Some(table) = self.table(top, "cargo") else { return options };
        let section = self.section("`[cargo]`", table.get_ref(), table.span(), CARGO);
        options.span = Some(table.span());
        options.package = self.string(&section, "package");
        options.bins = self.strings(&section, "bins").map(Spanned::into_inner);
        options.features = self.strings(&section, "features").map(Spanned::into_inner).unwrap_or_default();
        options.default_features = self.boolean(&section, "default-features").unwrap_or(true);
        options.link_static = self.boolean(&section, "static").unwrap_or(true);
        options.target = self.string(&section, "target").map(Spanned::into_inner);
        if let Some(profile) = self.string(&section, "profile") {
            options.profile = profile.into_inner();
        }
        options
    }

    fn includes(&mut self, top: &Section<'_>) -> Vec<Include> {
        let tables = self.tables(top, "include");
        tables.iter().filter_map(|table| self.include(table)).collect()
    }

    fn include(&mut self, table: &Spanned<&DeTable<'_>>) -> Option<Include> {
        let section = self.section("`[[include]]`", table.get_ref(), table.span(), INCLUDE);
        self.require(&section, "from");
        let from = self.string(&section, "from");
        let to = self.string(&section, "to");
        let exclude = self.patterns(&section, "exclude");
        let from = from?;
        if from.get_ref().is_empty() || from.get_ref().contains('\0') {
            let error = Diagnostic::new("`from` in `[[include]]` names nothing");
            self.errors.push(error.at(from.span(), "expected a file or folder; `.` is the manifest's own"));
            return None;
        }
        let to = match to {
            Some(to) if to.get_ref() == "." => String::new(),
            Some(to) => self.normal(&to, "to", "the tree")?,
            None if section.get("to").is_some() => return None,
            None => self.place_of(&from)?,
        };
        Some(Include { from, to, exclude, follow: false })
    }

    /// The place in the tree of what lies at `from`, where no other is given: the same.
    fn place_of(&mut self, from: &Text) -> Option<String> {
        let parts: Vec<&str> =
            from.get_ref().split('/').filter(|part| !part.is_empty() && *part != ".").collect();
        if !from.get_ref().starts_with('/') && !parts.contains(&"..") {
            return Some(parts.join("/"));
        }
        let name = parts.last().filter(|name| **name != "..").unwrap_or(&"share");
        let error = Diagnostic::new(format!("`{}` lies outside of the manifest's folder", from.get_ref()))
            .at(from.span(), "expected a `to` beside it: its place in the tree")
            .help(format!("for example `to = \"{name}\"`"));
        self.errors.push(error);
        None
    }

    /// A relative path in normal form, or `None` and an error. `within` names what it is relative to.
    fn normal(&mut self, path: &Text, key: &str, within: &str) -> Option<String> {
        let text: &str = path.get_ref();
        let parts = || text.split('/').filter(|part| !part.is_empty() && *part != ".");
        let fault = if text.is_empty() {
            Some("expected a path".to_owned())
        } else if text.contains('\0') {
            Some("a path cannot contain NUL".to_owned())
        } else if text.starts_with('/') {
            Some(format!("expected a path relative to {within}, without `/` before it"))
        } else if parts().any(|part| part == "..") {
            Some(format!("`..` may lead out of {within}"))
        } else if parts().collect::<Vec<_>>().join("/") != text {
            Some("expected a path without `.`, doubled `/` or `/` at its end".to_owned())
        } else {
            return Some(text.to_owned());
        };
        let plain: Vec<&str> = parts().filter(|part| *part != "..").collect();
        let mut error =
            Diagnostic::new(format!("`{key} = \"{}\"` is no place in {within}", text.escape_debug()))
                .at(path.span(), fault.unwrap_or_default());
        if !plain.is_empty() {
            error = error.help(format!("write `{key} = \"{}\"`", plain.join("/").escape_debug()));
        }
        self.errors.push(error);
        None
    }

    fn seeds(&mut self, top: &Section<'_>) -> Vec<SeedSource> {
        let tables = self.tables(top, "seed");
        let seeds: Vec<SeedSource> = tables.iter().filter_map(|table| self.seed(table)).collect();
        self.unique("the seed", seeds.iter().map(|seed| &seed.to));
        seeds
    }

    /// Where a file of the tree shall be in the state folder: at `to`, if there is one, or under its own name.
    fn place_in_state(&mut self, section: &Section<'_>, from: &Text, to: Option<Text>) -> Option<Text> {
        let path = self.normal(from, "from", "the tree")?;
        match to {
            Some(to) => Some(Spanned::new(to.span(), self.normal(&to, "to", "the state folder")?)),
            None if section.get("to").is_some() => None,
            None => Some(Spanned::new(from.span(), path.rsplit('/').next().unwrap_or_default().to_owned())),
        }
    }

    fn seed(&mut self, table: &Spanned<&DeTable<'_>>) -> Option<SeedSource> {
        let section = self.section("`[[seed]]`", table.get_ref(), table.span(), SEED);
        self.require(&section, "from");
        let from = self.string(&section, "from");
        let to = self.string(&section, "to");
        from.iter().chain(&to).for_each(|path| self.as_it_stands(path));
        let from = from?;
        let to = self.place_in_state(&section, &from, to)?;
        Some(SeedSource { from, to })
    }

    fn run(&mut self, top: &Section<'_>) -> RunSource {
        match (top.get("command"), top.get("services")) {
            (None, None) => {
                self.need_services(top);
                RunSource::None
            }
            (Some(command), None) => {
                self.need_services(top);
                let command = self.command_value(top, "command", command);
                self.no_late("only a service has ports and instances");
                command.map_or(RunSource::Wrong, RunSource::Command)
            }
            (None, Some(_)) => self.supervised(top).map_or(RunSource::Wrong, RunSource::Services),
            (Some(command), Some(services)) => {
                let error = Diagnostic::new("both `command` and `services`")
                    .at(command.span(), "a bundle is a tool that behaves as this command …")
                    .at(services.span(), "… or a service bundle that supervises these")
                    .help("keep one of them");
                self.errors.push(error);
                // What else is wrong with them is worth knowing too.
                self.command_value(top, "command", command);
                self.no_late("only a service has ports and instances");
                self.supervised(top);
                RunSource::Wrong
            }
        }
    }

    /// A command as its strings alone, or as a table.
    fn command_value(
        &mut self,
        section: &Section<'_>,
        key: &str,
        value: &Spanned<DeValue<'_>>,
    ) -> Option<CommandSource> {
        if let Some(table) = value.get_ref().as_table() {
            let title = format!("`[{key}]`");
            let section = self.section(&title, table, value.span(), COMMAND);
            return self.command(&section);
        }
        if !value.get_ref().is_array() {
            self.wrong_type(section, key, value, "a list of strings or a table");
            return None;
        }
        let argv = self.strings(section, key)?;
        let argv = self.argv(argv, &format!("`{key}`"))?;
        Some(CommandSource { argv, env: Vec::new(), cwd: None })
    }

    fn command(&mut self, section: &Section<'_>) -> Option<CommandSource> {
        let before = self.errors.len();
        self.require(section, "argv");
        let argv = self.strings(section, "argv").and_then(|argv| self.argv(argv, "`argv`"));
        let env = self.string_map(section, "env");
        for (name, value) in &env {
            let named = |fault: &str| Some(fault.to_owned());
            let fault = match name.get_ref().as_str() {
                "" => named("expected a name"),
                name if name.contains(['=', '\0']) => named("a name cannot contain `=` or NUL"),
                _ => None,
            };
            self.check(name, fault, "bad variable");
            self.late_template(value, false);
        }
        let cwd = self.string(section, "cwd");
        if let Some(cwd) = &cwd {
            self.template(cwd);
        }
        (self.errors.len() == before).then_some(CommandSource { argv: argv?, env, cwd })
    }

    /// The strings of a command, if there is a program and every template is sound.
    fn argv(&mut self, argv: Spanned<Vec<Text>>, key: &str) -> Option<Vec<Text>> {
        let span = argv.span();
        let argv = argv.into_inner();
        let span = match argv.first() {
            None => span,
            Some(program) if program.get_ref().is_empty() => program.span(),
            Some(_) => {
                let sound: Vec<bool> = argv.iter().map(|text| self.late_template(text, false)).collect();
                return (!sound.contains(&false)).then_some(argv);
            }
        };
        let error = Diagnostic::new(format!("{key} is empty"));
        self.errors.push(error.at(span, "expected a program of the tree: `[\"bin/tool\", \"--flag\"]`"));
        None
    }

    /// Whether every placeholder is known, and none is filled in only when a service starts.
    fn template(&mut self, text: &Text) -> bool {
        let before = self.late.len();
        let sound = self.late_template(text, false);
        let late = self.late.split_off(before);
        self.refuse_late(&late, "it is known only when a service starts");
        sound && late.is_empty()
    }

    /// Whether every placeholder is known; those that are filled in when a service starts are noted in `late`.
    fn late_template(&mut self, text: &Text, in_address: bool) -> bool {
        if text.get_ref().contains('\0') {
            let error = Diagnostic::new("a NUL in a command");
            self.errors.push(error.at(text.span(), "no program can be given one"));
            return false;
        }
        match Template::parse(text.get_ref()) {
            Ok(template) => {
                for piece in template.0.into_iter().filter(Piece::is_late) {
                    let span = self.within(text.span(), &written(&piece));
                    self.late.push(Late { piece, span, in_address });
                }
                true
            }
            Err(error) => {
                let (bytes, wrong) = broken(text.get_ref(), &error);
                let span = self.within(text.span(), &text.get_ref()[bytes]);
                self.errors.push(wrong.at(span));
                false
            }
        }
    }

    /// Reports placeholders of ports and instances in what is no template.
    fn as_it_stands(&mut self, text: &Text) {
        if Template::parse(text.get_ref()).is_ok_and(|template| template.0.iter().any(Piece::is_late)) {
            let before = self.late.len();
            self.late_template(text, false);
            let late = self.late.split_off(before);
            self.refuse_late(&late, "it is taken as it stands");
        }
    }

    /// Reports the noted placeholders as ones that cannot be filled in here.
    fn no_late(&mut self, why: &str) {
        let late = std::mem::take(&mut self.late);
        self.refuse_late(&late, why);
    }

    fn refuse_late(&mut self, late: &[Late], why: &str) {
        self.errors.extend(late.iter().map(|late| {
            Diagnostic::new(format!("`{}` cannot stand here", written(&late.piece)))
                .at(late.span.clone(), why)
                .help(placeholders::WHERE_LATE)
        }));
    }
}

/// What is wrong with the name of a bundle or a service, if anything.
pub fn name_fault(name: &str) -> Option<String> {
    let sound = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let fault = match name.as_bytes() {
        [] => "expected a name",
        [first, ..] if !sound(*first) => "expected a small letter or a digit at its beginning",
        bytes if !bytes.iter().all(|byte| sound(*byte) || b"._-".contains(byte)) => {
            "expected small letters, digits, `.`, `_` and `-` only"
        }
        bytes if bytes.len() > 64 => "expected 64 characters at most",
        _ => return None,
    };
    Some(fault.to_owned())
}

/// What is wrong with a path of the host, if anything.
fn host_fault(path: &str) -> Option<String> {
    let mut names = path.split('/').skip(1);
    let fault = if !path.starts_with('/') || path == "/" {
        "expected an absolute path of a file or folder, such as `/etc/resolv.conf`"
    } else if path.contains('\0') {
        "a path cannot contain NUL"
    } else if names.any(|name| matches!(name, "" | "." | "..")) {
        "expected a path without `.`, `..`, doubled `/` or `/` at its end"
    } else {
        return None;
    };
    Some(fault.to_owned())
}

/// What is wrong with a version, if anything.
pub fn version_fault(version: &str) -> Option<String> {
    let fault = if version.is_empty() {
        "expected a version, such as `1.2.3`"
    } else if version.contains(|letter: char| letter.is_whitespace() || letter.is_control()) {
        "expected no white space in it"
    } else if version.contains('/') {
        "expected no `/` in it: it becomes part of a folder's name"
    } else if version.len() > 64 {
        "expected 64 bytes at most"
    } else {
        return None;
    };
    Some(fault.to_owned())
}

#[cfg(test)]
mod tests;
