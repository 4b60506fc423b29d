//! Presets: `[app.python]` and its like say what an app is, and stand for the includes, the environment and the
//! command that such an app needs. The runtime knows no language; all of it is done when packing.

pub mod java;
pub mod node;
pub mod python;

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use kitbag_format::manifest::Command;
use toml::Spanned;

use crate::diagnostic::{Diagnostic, near_miss};
use crate::manifest::Include;
use crate::read::{Key, Reader, Section, Text};
use crate::tree::Tree;

/// Where the project's own files lie in the tree.
pub const PROJECT: &str = "app";

/// Where what a preset writes itself lies in the tree.
pub const OWN: &str = ".kitbag/python";

/// True for a path of the tree that presets write to, in the folder that is for what comes along by itself.
pub fn is_in_place(path: &[u8]) -> bool {
    path.strip_prefix(OWN.as_bytes()).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

/// What is left out of a project: version control, caches, what is built or installed, what is secret.
/// Patterns as those of `exclude`.
pub const PROJECT_LEFT_OUT: &[&str] = &[
    ".git",
    ".hg",
    ".svn",
    ".idea",
    ".vscode",
    ".DS_Store",
    ".env",
    ".cache",
    "__pycache__",
    "*.py[co]",
    "*.egg-info",
    ".tox",
    ".nox",
    ".mypy_cache",
    ".pytest_cache",
    ".ruff_cache",
    "/dist",
    "/build",
    "/kitbag.toml",
    "*.kitbag",
];

const APP: &[Key] = &[("python", "[app.python]"), ("node", "[app.node]"), ("java", "[app.java]")];

/// `[app.KIND]`, as it is written.
#[derive(Debug)]
pub enum Preset {
    /// `[app.python]`
    Python(python::Python),
    /// `[app.node]`
    Node(node::Node),
    /// `[app.java]`
    Java(java::Java),
}

/// What a preset stands for.
#[derive(Debug, Default)]
pub struct Expansion {
    /// What it brings into the tree.
    pub includes: Vec<Include>,
    /// Links in the tree: place and target.
    pub links: Vec<(String, String)>,
    /// Variables for every command; what the manifest sets goes before.
    pub env: BTreeMap<String, String>,
    /// Working directory of a service that has none of its own.
    pub cwd: Option<String>,
    /// What a tool starts, where the manifest has no `command`.
    pub command: Option<Command>,
    /// Compiles ahead what is in the tree.
    pub compiler: Option<python::Compiler>,
    /// One sentence each.
    pub warnings: Vec<String>,
    /// What was found, as the beginning of a sentence.
    pub what: String,
    /// The KIND of `[app.KIND]`.
    pub kind: &'static str,
    /// What `entry` and `argv` may say.
    pub examples: (&'static str, &'static str),
    /// Includes to count, by what they bring.
    counted: Vec<(String, usize)>,
}

impl Preset {
    /// Finds all that the preset stands for. `dir` is the manifest's folder, `name` the bundle's; `quiet` says
    /// nothing while something is installed.
    pub fn expand(&self, dir: &Path, name: &str, quiet: bool) -> Result<Expansion, Diagnostic> {
        match self {
            Self::Python(python) => python::expand(python, dir, name, quiet),
            Self::Node(node) => node::expand(node, dir),
            Self::Java(java) => java::expand(java, dir, quiet),
        }
    }

    /// `entry` and its like, which a service bundle has no use for.
    pub fn entry(&self) -> Option<&Text> {
        match self {
            Self::Python(python) => python.entry.as_ref(),
            Self::Node(node) => node.entry.as_ref(),
            Self::Java(_) => None,
        }
    }
}

impl Expansion {
    /// Says what was found and taken; `first` is the number of the preset's first include.
    pub fn note(&self, tree: &Tree, first: usize) -> String {
        let mut parts = vec![self.what.clone()];
        for (what, index) in &self.counted {
            let count = tree.brought(first + index);
            parts.push(format!("{what}: {count} file{}", if count == 1 { "" } else { "s" }));
        }
        parts.join("; ")
    }

    /// Adds what is made of the files that are in the tree.
    pub fn complete(&self, tree: &mut Tree) -> Result<(), Diagnostic> {
        if let Some(compiler) = &self.compiler {
            for (place, source, seen) in compiler.compile(tree)? {
                tree.put(place, source, seen);
            }
        }
        Ok(())
    }

    /// The include that was added last is worth a word.
    fn count(&mut self, what: impl Into<String>) {
        self.counted.push((what.into(), self.includes.len().saturating_sub(1)));
    }

    /// Adds an include that `span` of the manifest is the reason for.
    fn include(&mut self, span: &Range<usize>, from: &Path, to: &str, exclude: &[&str]) {
        let text = |text: &str| Spanned::new(span.clone(), text.to_owned());
        self.includes.push(Include {
            from: text(&from.to_string_lossy()),
            to: to.to_owned(),
            exclude: exclude.iter().map(|pattern| text(pattern)).collect(),
            follow: true,
        });
    }
}

impl Reader<'_> {
    /// `[app]`, which has one preset.
    pub fn app(&mut self, top: &Section<'_>) -> Option<Preset> {
        let table = self.table(top, "app")?;
        let section = self.section("`[app]`", table.get_ref(), table.span(), APP);
        if table.get_ref().len() != 1 {
            let error = Diagnostic::new("`[app]` has one preset").at(table.span(), "");
            self.errors.push(error.help("write one of `[app.python]`, `[app.node]` and `[app.java]`"));
            return None;
        }
        if let Some(table) = self.table(&section, "python") {
            return self.python(&table).map(Preset::Python);
        }
        if let Some(table) = self.table(&section, "node") {
            return self.node(&table).map(Preset::Node);
        }
        let table = self.table(&section, "java")?;
        self.java(&table).map(Preset::Java)
    }
}

/// The last lines of what a program said, without Java's traces of calls.
fn said(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    let is_trace = |line: &str| line.starts_with("at ") || line.starts_with("... ");
    let is_said = |line: &&str| !line.trim().is_empty() && !is_trace(line.trim());
    let lines: Vec<&str> = text.lines().filter(is_said).collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}

/// A file that is there and was meant by `path`, in the words of the manifest: like `written`.
fn near_file(path: &Path, written: &str) -> Option<String> {
    let (folder, name) = (path.parent()?, path.file_name()?.to_str()?);
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let entries = fs::read_dir(folder).ok()?.flatten();
    let names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    let near = near_miss(name, names.iter().map(String::as_str))?;
    Some(match written.trim_end_matches('/').rsplit_once('/') {
        Some((folder, _)) => format!("{folder}/{near}"),
        None => near.to_owned(),
    })
}

/// A program as it can be started: by its whole path, unless it was `written` for a search in PATH.
fn folder_of(path: &Path, written: &str) -> PathBuf {
    if written.contains('/') {
        std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
    } else {
        path.to_owned()
    }
}
