//! `kitbag init`: looks at a folder, or at one file, and writes a `kitbag.toml` that packs as it stands. It says
//! what it found and what it guessed.

mod elf;
mod java;
mod node;
mod project;
mod python;

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use kitbag_format::exit;

use crate::cli::{InitArgs, Kind};
use crate::diagnostic::Failure;
use crate::manifest;

/// What `kitbag.toml` would say.
#[derive(Debug)]
struct Draft {
    kind: Kind,
    /// The file's text.
    text: String,
    /// What is there.
    found: Vec<String>,
    /// What nobody said.
    guessed: Vec<String>,
    /// What is to be done before it packs, or is worth doing.
    hints: Vec<String>,
}

impl Draft {
    fn new(kind: Kind) -> Self {
        Self { kind, text: String::new(), found: Vec::new(), guessed: Vec::new(), hints: Vec::new() }
    }

    fn line(&mut self, line: impl AsRef<str>) {
        self.text.push_str(line.as_ref());
        self.text.push('\n');
    }

    /// What no file says that it is needed.
    fn sets(&mut self) {
        self.line("");
        self.line("# Data that programs look for at run time, for hosts that have none:");
        self.line("# [closure]");
        self.line("# sets = [\"certificates\", \"timezones\"]");
    }

    /// The port of the service `web`: the one that `PORT` names, else `usual`, else one near it.
    fn port(&mut self, usual: u16) {
        self.line("");
        self.line("# As ${port.http} and in PORT. For everybody, not this host alone: address = \"public\".");
        self.line("[services.web.ports]");
        self.line(format!("http = {{ prefer = \"${{env.PORT:-{usual}}}\", range = \"8000-8999\" }}"));
    }

    /// `name` and `version`.
    fn head(&mut self, name: &str, version: &str) {
        self.line(format!("name = {}", quoted(&bundle_name(name))));
        self.line(format!("version = {}", quoted(&bundle_version(version))));
    }
}

impl Kind {
    /// In the order in which one is chosen, where several fit.
    const ALL: &[Self] = &[Self::Cargo, Self::Python, Self::Node, Self::Java, Self::Elf];

    const fn name(self) -> &'static str {
        match self {
            Self::Cargo => "cargo",
            Self::Python => "python",
            Self::Node => "node",
            Self::Java => "java",
            Self::Elf => "elf",
        }
    }

    const fn shown(self) -> &'static str {
        match self {
            Self::Cargo => "a Cargo project",
            Self::Python => "a Python project",
            Self::Node => "a Node project",
            Self::Java => "a Java program",
            Self::Elf => "a program",
        }
    }

    const fn looks_for(self) -> &'static str {
        match self {
            Self::Cargo => "Cargo.toml",
            Self::Python => {
                "pyproject.toml, requirements.txt, setup.py, manage.py, a virtual environment, or a script"
            }
            Self::Node => "package.json",
            Self::Java => "a jar, also in target/ or build/libs/",
            Self::Elf => "an executable file, also in bin/ or build/",
        }
    }

    fn look(self, dir: &Path) -> Option<Draft> {
        match self {
            Self::Cargo => project::cargo(dir),
            Self::Python => python::look(dir),
            Self::Node => node::look(dir),
            Self::Java => java::look(dir),
            Self::Elf => elf::look(dir),
        }
    }
}

/// Does what the command line says.
pub fn init(args: &InitArgs) -> Result<(), Failure> {
    if args.path.is_file() {
        let draft = of_file(&args.path)?;
        return write(Path::new("."), draft, &[], args.force);
    }
    if !args.path.is_dir() {
        let title = format!("there is no file or folder `{}`", args.path.display());
        return Err(Failure::new(exit::USAGE, title));
    }
    let kinds = args.kind.map_or_else(|| Kind::ALL.to_vec(), |kind| vec![kind]);
    let mut drafts = kinds.iter().filter_map(|kind| kind.look(&args.path));
    let Some(draft) = drafts.next() else { return Err(nothing(&args.path, &kinds)) };
    let others: Vec<Kind> = drafts.map(|draft| draft.kind).collect();
    write(&args.path, draft, &others, args.force)
}

/// The manifest for one file, which is for the folder we are in.
fn of_file(path: &Path) -> Result<Draft, Failure> {
    let here = std::env::current_dir().unwrap_or_default();
    let whole = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let from = whole.strip_prefix(&here).unwrap_or(&whole);
    elf::of_file(path, from).or_else(|| java::of_file(path, from)).ok_or_else(|| {
        Failure::new(exit::MANIFEST, format!("`{}` is neither a program nor a jar", path.display())).help(
            "for a script, give the folder of its project; for other files write a kitbag.toml by hand: docs/manifest.md",
        )
    })
}

fn nothing(dir: &Path, kinds: &[Kind]) -> Failure {
    let mut text = String::from("it looks for");
    for kind in kinds {
        let _ = write!(
            text,
            "\n  {:<17} {}",
            kind.shown().split_once(' ').map_or("", |(_, name)| name),
            kind.looks_for()
        );
    }
    let failure = Failure::new(exit::MANIFEST, format!("nothing in `{}` says what to pack", dir.display()));
    failure.help(text).help("or name a program: `kitbag init /usr/bin/jq`")
}

fn write(dir: &Path, draft: Draft, others: &[Kind], force: bool) -> Result<(), Failure> {
    let path = if dir == Path::new(".") { PathBuf::from(manifest::FILE) } else { dir.join(manifest::FILE) };
    let shown = path.display();
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    if !force {
        options.create_new(true);
    }
    let written = options.open(&path).and_then(|mut file| file.write_all(draft.text.as_bytes()));
    written.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => Failure::new(exit::FAILURE, format!("there is a `{shown}` already"))
            .help("`kitbag init --force` writes it anew"),
        _ => Failure::new(exit::FAILURE, format!("cannot write `{shown}`: {error}")),
    })?;
    crate::print(report(dir, &path, &draft, others).as_bytes())
}

fn report(dir: &Path, path: &Path, draft: &Draft, others: &[Kind]) -> String {
    let mut text = format!("wrote {}\n", path.display());
    let found = std::iter::once(draft.kind.shown()).chain(draft.found.iter().map(String::as_str));
    let _ = writeln!(text, "  found    {}", found.collect::<Vec<_>>().join(", "));
    for guess in &draft.guessed {
        let _ = writeln!(text, "  guessed  {guess}");
    }
    for kind in others {
        let _ = writeln!(
            text,
            "  also     it looks like {}: `kitbag init --force --as {}` takes it so",
            kind.shown(),
            kind.name()
        );
    }
    for hint in &draft.hints {
        let _ = writeln!(text, "  first    {hint}");
    }
    let folder = if dir == Path::new(".") { String::new() } else { format!(" {}", dir.display()) };
    let _ = writeln!(
        text,
        "next: `kitbag run{folder}` packs and runs it, `kitbag pack{folder}` writes the bundle"
    );
    text
}

/// A string of TOML.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for letter in text.chars() {
        match letter {
            '"' | '\\' => quoted.extend(['\\', letter]),
            letter if letter.is_control() => {
                let _ = write!(quoted, "\\u{:04X}", letter as u32);
            }
            letter => quoted.push(letter),
        }
    }
    quoted + "\""
}

/// A list of strings of TOML.
fn list<S: AsRef<str>>(items: impl IntoIterator<Item = S>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| quoted(item.as_ref())).collect();
    format!("[{}]", items.join(", "))
}

/// A name that a bundle can have, as near to `text` as can be.
fn bundle_name(text: &str) -> String {
    let text = text.rsplit('/').next().unwrap_or_default().to_lowercase();
    let sound =
        |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || "._-".contains(letter);
    let name: String = text.chars().map(|letter| if sound(letter) { letter } else { '-' }).collect();
    let name: String = name.trim_matches(|letter| "._-".contains(letter)).chars().take(64).collect();
    if manifest::name_fault(&name).is_none() { name } else { "app".to_owned() }
}

fn bundle_version(text: &str) -> String {
    if manifest::version_fault(text).is_none() { text.to_owned() } else { "1.0.0".to_owned() }
}

/// The name of a folder.
fn folder_name(dir: &Path) -> String {
    let whole = fs::canonicalize(dir).unwrap_or_default();
    whole.file_name().map_or_else(|| "app".to_owned(), |name| name.to_string_lossy().into_owned())
}

/// Names in a folder, sorted.
fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests;
