//! Presets: `[app.python]` and its like say what an app is, and stand for the includes, the environment and the
//! command that such an app needs. The runtime knows no language; all of it is done when packing.

pub mod python;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use kitbag_format::manifest::Command;
use toml::Spanned;

use crate::diagnostic::Diagnostic;
use crate::manifest::Include;
use crate::read::{Key, Reader, Section, Text};
use crate::tree::Tree;

/// Where the project's own files lie in the tree.
pub const PROJECT: &str = "app";

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

const APP: &[Key] = &[("python", "[app.python]")];

/// `[app.KIND]`, as it is written.
#[derive(Debug)]
pub enum Preset {
    /// `[app.python]`
    Python(python::Python),
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
        }
    }

    /// `entry` and its like, which a service bundle has no use for.
    pub fn entry(&self) -> Option<&Text> {
        match self {
            Self::Python(python) => python.entry.as_ref(),
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
            self.errors.push(error.help("write one of `[app.python]`"));
            return None;
        }
        if let Some(table) = self.table(&section, "python") {
            return self.python(&table).map(Preset::Python);
        }
        None
    }
}
