//! `entry`: what a Python tool starts.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::diagnostic::{Diagnostic, near_miss};

/// What is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// `module:function`
    Function(String, String),
    /// `-m module`
    Module(String),
    /// A script, relative to the project.
    Script(String),
}

/// Why an entry cannot be started.
#[derive(Debug, PartialEq, Eq)]
pub struct Fault {
    title: String,
    near: Option<String>,
    help: Option<&'static str>,
}

impl Fault {
    fn new(title: String, near: Option<String>) -> Self {
        Self { title, near, help: None }
    }

    fn near(self, whole: impl Fn(String) -> String) -> Self {
        Self { near: self.near.map(whole), ..self }
    }

    /// The message, which points at the entry.
    pub fn at(&self, span: &Range<usize>) -> Diagnostic {
        let error = Diagnostic::new(self.title.as_str()).at(span.clone(), "").near(self.near.as_deref());
        match self.help {
            Some(help) => error.help(help),
            None => error,
        }
    }
}

impl Entry {
    /// Reads what is written; else says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some(module) = text.strip_prefix("-m ") {
            return dotted(module.trim()).map(Self::Module);
        }
        if text.ends_with(".py") || text.contains('/') {
            let is_plain = text.split('/').all(|name| !matches!(name, "" | "." | ".."));
            return if is_plain && !text.contains('$') {
                Ok(Self::Script(text.to_owned()))
            } else {
                Err("expected a path in the project's folder".to_owned())
            };
        }
        match text.split_once(':') {
            Some((module, function)) => Ok(Self::Function(dotted(module)?, dotted(function)?)),
            None => Err("expected `module:function`, `-m module` or `script.py`".to_owned()),
        }
    }

    /// Says what is not there. `roots` are the folders of the module path beside the project.
    pub fn check(&self, project: &Path, roots: &[PathBuf]) -> Result<(), Fault> {
        let folders: Vec<&Path> =
            std::iter::once(project).chain(roots.iter().map(PathBuf::as_path)).collect();
        match self {
            Self::Script(script) if project.join(script).is_file() => Ok(()),
            Self::Script(script) => {
                let near = near_path(project, script);
                Err(Fault::new(format!("there is no script `{script}` in the project"), near))
            }
            Self::Module(module) => {
                let found =
                    find(&folders, module).map_err(|fault| fault.near(|near| format!("-m {near}")))?;
                if found.is_dir() && !found.join("__main__.py").is_file() {
                    let title = format!("`{module}` is a package without `__main__.py`");
                    return Err(Fault {
                        help: Some("name the module in it that is started"),
                        ..Fault::new(title, None)
                    });
                }
                Ok(())
            }
            Self::Function(module, function) => {
                let found = find(&folders, module)
                    .map_err(|fault| fault.near(|near| format!("{near}:{function}")))?;
                let file = if found.is_dir() { found.join("__init__.py") } else { found };
                // What is no text cannot be looked into.
                let Ok(text) = fs::read_to_string(file) else { return Ok(()) };
                let name = function.split('.').next().unwrap_or_default();
                if may_define(&text, name) {
                    return Ok(());
                }
                let near = near_miss(name, definitions(&text)).map(|near| format!("{module}:{near}"));
                Err(Fault::new(format!("`{module}` has no `{name}`"), near))
            }
        }
    }

    /// The script that calls a function, as pip writes one.
    pub fn launcher(&self) -> String {
        let Self::Function(module, function) = self else { return String::new() };
        let name = function.split('.').next().unwrap_or_default();
        format!(
            "import sys\nfrom {module} import {name}\n\nif __name__ == \"__main__\":\n    sys.exit({function}())\n"
        )
    }
}

/// A dotted name of Python, if it is one.
fn dotted(text: &str) -> Result<String, String> {
    let is_name = |part: &str| {
        let mut letters = part.chars();
        letters.next().is_some_and(|first| first.is_alphabetic() || first == '_')
            && letters.all(|letter| letter.is_alphanumeric() || letter == '_')
    };
    if text.split('.').all(is_name) {
        Ok(text.to_owned())
    } else {
        Err(format!("`{text}` is no name of a module or function"))
    }
}

/// The file or folder of a module, in the first folder of the module path that has its beginning.
fn find(folders: &[&Path], module: &str) -> Result<PathBuf, Fault> {
    let mut at: Vec<PathBuf> = folders.iter().map(|folder| folder.to_path_buf()).collect();
    let mut known = String::new();
    let parts: Vec<&str> = module.split('.').collect();
    for (number, part) in parts.iter().enumerate() {
        let candidates: Vec<PathBuf> = at.iter().filter_map(|folder| module_in(folder, part)).collect();
        if candidates.is_empty() {
            let names: Vec<String> = at.iter().flat_map(|folder| modules_of(folder)).collect();
            let rest = parts[number + 1..].iter().map(|part| format!(".{part}")).collect::<String>();
            let near =
                near_miss(part, names.iter().map(String::as_str)).map(|near| format!("{known}{near}{rest}"));
            let title = format!("there is no module `{known}{part}` in the project, its packages or Python");
            return Err(Fault::new(title, near));
        }
        known = format!("{known}{part}.");
        at = candidates;
    }
    Ok(at.swap_remove(0))
}

fn module_in(folder: &Path, name: &str) -> Option<PathBuf> {
    let source = folder.join(format!("{name}.py"));
    let package = folder.join(name);
    if package.is_dir() && (package.join("__init__.py").is_file() || !source.is_file()) {
        return Some(package);
    }
    if source.is_file() {
        return Some(source);
    }
    // An extension module: `name.cpython-311-x86_64-linux-gnu.so`.
    let is_extension = |file: &str| file.starts_with(&format!("{name}.")) && file.ends_with(".so");
    names(folder).find(|file| is_extension(file)).map(|file| folder.join(file))
}

fn modules_of(folder: &Path) -> Vec<String> {
    let module = |name: String| match name.split_once('.') {
        Some((stem, "py")) => Some(stem.to_owned()),
        Some(_) => None,
        None => Some(name),
    };
    names(folder).filter_map(module).collect()
}

fn names(folder: &Path) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok())
}

/// The path that was meant by `path`: a file of nearly that name in its folder.
fn near_path(project: &Path, path: &str) -> Option<String> {
    let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
    let there: Vec<String> = names(&project.join(folder)).filter(|name| name.ends_with(".py")).collect();
    let near = near_miss(name, there.iter().map(String::as_str))?;
    Some(if folder.is_empty() { near.to_owned() } else { format!("{folder}/{near}") })
}

/// Whether a module's text can define `name`: the word is in it, or what nobody can see from outside.
fn may_define(text: &str, name: &str) -> bool {
    let is_word = |letter: char| letter.is_alphanumeric() || letter == '_';
    let has = |wanted: &str| text.split(|letter| !is_word(letter)).any(|word| word == wanted);
    has(name) || text.contains("import *") || has("__getattr__") || has("globals")
}

/// Functions, classes and variables of a module's top level.
fn definitions(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| {
        let after = ["def ", "async def ", "class "].iter().find_map(|word| line.strip_prefix(word));
        let name = match after {
            Some(after) => after.split(['(', ':']).next()?,
            None => line.split_once(" = ").map(|(name, _)| name)?,
        };
        (!name.is_empty() && !name.contains(' ')).then_some(name.trim())
    })
}
