//! An app's packages: those of a virtual environment, or a list that pip installs into kitbag's cache.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use kitbag_format::Digest;
use toml::de::{DeTable, DeValue};

use super::Facts;
use crate::cache;
use crate::diagnostic::Diagnostic;
use crate::preset::{near_file, said};
use crate::read::Text;
use crate::tree;

/// Installed packages that nobody packed for so long go.
const UNUSED: Duration = Duration::from_secs(90 * 24 * 60 * 60);

/// A virtual environment.
pub struct Venv {
    /// Its folder.
    pub path: PathBuf,
    /// It shows the packages of its interpreter, too.
    pub has_system_packages: bool,
    /// Where its interpreter is.
    home: PathBuf,
    written: Text,
}

impl Venv {
    /// Reads `pyvenv.cfg` (docs of the module `venv`; PEP 405).
    pub fn open(written: &Text, dir: &Path) -> Result<Self, Diagnostic> {
        let path = tree::join(dir, written.get_ref());
        let path = std::path::absolute(&path).unwrap_or(path);
        let config = fs::read_to_string(path.join("pyvenv.cfg")).map_err(|_| {
            let why = if path.is_dir() { "it has no `pyvenv.cfg`" } else { "there is no such folder" };
            Diagnostic::new(format!("`{}` is no virtual environment", written.get_ref()))
                .at(written.span(), why)
                .near(near_file(&path, written.get_ref()).filter(|_| !path.exists()).as_deref())
                .help(format!("make one: `python3 -m venv {}`, and install into it", written.get_ref()))
        })?;
        let value = |key: &str| {
            let mut pairs = config.lines().filter_map(|line| line.split_once('='));
            pairs.find(|(name, _)| name.trim() == key).map(|(_, value)| value.trim().to_owned())
        };
        let has_system_packages = value("include-system-site-packages").as_deref() == Some("true");
        let home = PathBuf::from(value("home").unwrap_or_default());
        Ok(Self { path, has_system_packages, home, written: written.clone() })
    }

    /// Asks the interpreter that it was made for.
    pub fn interpreter(&self) -> Result<Facts, Diagnostic> {
        let own = self.path.join("bin/python");
        Facts::ask(&own, &format!("{}/bin/python", self.written.get_ref()), &self.written.span()).map_err(
            |error| {
                if own.exists() {
                    return error;
                }
                let name = self.written.get_ref();
                Diagnostic::new(format!("the interpreter of `{name}` is gone"))
                    .at(self.written.span(), format!("it was in {}", self.home.display()))
                    .help(format!("make it anew: `python3 -m venv --clear {name}`, and install into it"))
            },
        )
    }

    /// Its folder of packages. Fails where it has none for this interpreter.
    pub fn packages(&self, facts: &Facts, interpreter: Option<&Text>) -> Result<PathBuf, Diagnostic> {
        let packages = |version: &str| self.path.join(format!("lib/{version}/site-packages"));
        let found = packages(&format!("python{}", facts.version));
        if found.is_dir() {
            return Ok(found);
        }
        let mut others: Vec<String> = fs::read_dir(self.path.join("lib"))
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| packages(name).is_dir())
            .collect();
        others.sort();
        let name = self.written.get_ref();
        let Some(other) = others.first() else {
            let error = Diagnostic::new(format!("`{name}` has no packages"));
            return Err(error.at(self.written.span(), format!("looked for {}", found.display())));
        };
        let mut error = Diagnostic::new(format!("`{name}` was made for another interpreter"))
            .at(self.written.span(), format!("its packages are for {other}"));
        if let Some(interpreter) = interpreter {
            error = error.with(interpreter.span(), format!("this is Python {}", facts.version));
        }
        Err(error.help(format!(
            "leave `interpreter` out, or make it anew: `{} -m venv --clear {name}`",
            facts.executable.display()
        )))
    }
}

/// Packages that are only linked to by absolute lines of `.pth` files, as `pip install -e` does: folders of the
/// project, relative to it, and patterns of what not to take along.
pub fn linked(root: &Path, project: &Path, warnings: &mut Vec<String>) -> (Vec<String>, Vec<String>) {
    let project = fs::canonicalize(project).unwrap_or_else(|_| project.to_owned());
    let (mut inside, mut left_out) = (BTreeSet::new(), Vec::new());
    let files = fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    for file in files.filter(|path| path.extension().is_some_and(|extension| extension == "pth")) {
        let text = fs::read_to_string(&file).unwrap_or_default();
        let mut paths = text.lines().map(str::trim).filter(|line| line.starts_with('/')).peekable();
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let is_finder = name.starts_with("__editable__") && text.contains("_finder");
        if paths.peek().is_none() && !is_finder {
            continue;
        }
        left_out.push(format!("/{}", globset::escape(&name)));
        if is_finder {
            warnings.push(format!("`{name}` links a package to its sources, which stay behind unless they are the project: install it without `-e`"));
        }
        for path in paths {
            let real = fs::canonicalize(path).unwrap_or_else(|_| PathBuf::from(path));
            match real.strip_prefix(&project) {
                Ok(below) if below.as_os_str().is_empty() => {}
                Ok(below) => {
                    inside.insert(below.to_string_lossy().into_owned());
                }
                Err(_) => warnings.push(format!(
                    "`{name}` links to {path}, which stays behind: install that package without `-e`"
                )),
            }
        }
    }
    (inside.into_iter().collect(), left_out)
}

/// A list of requirements, read.
struct Requirements {
    /// All of it, what it refers to included.
    text: String,
    /// It has a package that is a folder or file here, which may change.
    is_local: bool,
    /// The file for pip.
    file: PathBuf,
}

/// Installs requirements; returns the folder of the packages, in kitbag's cache.
pub fn install(written: &Text, dir: &Path, facts: &Facts, quiet: bool) -> Result<PathBuf, Diagnostic> {
    let requirements = read(written, dir)?;
    let folder = cache::folder("python/packages");
    let failed = |what: &str, error: &io::Error| {
        Diagnostic::new(format!("cannot install `{}`: {what}: {error}", written.get_ref()))
            .at(written.span(), "")
    };
    let key = format!("{} {}\n{}", facts.executable.display(), facts.release, requirements.text);
    let target = folder.join(Digest::of(key.as_bytes()).short());
    if target.is_dir() && !requirements.is_local {
        // Its age says when it was used.
        let _ = fs::File::open(&target).and_then(|file| file.set_modified(std::time::SystemTime::now()));
        return Ok(target);
    }
    if !quiet {
        let _ = writeln!(io::stderr(), "installing {} with pip …", written.get_ref());
    }
    fs::create_dir_all(&folder).map_err(|error| failed("kitbag's cache", &error))?;
    cache::forget_folders(&folder, UNUSED);
    let work = tempfile::tempdir_in(&folder).map_err(|error| failed("kitbag's cache", &error))?;
    let mut pip = Command::new(&facts.executable);
    pip.args(["-I", "-m", "pip", "install", "--no-compile", "--no-input", "--disable-pip-version-check"]);
    pip.args(["--quiet", "--no-warn-script-location", "--target"]).arg(work.path()).arg("-r");
    pip.arg(std::path::absolute(&requirements.file).unwrap_or(requirements.file));
    pip.env("PIP_ROOT_USER_ACTION", "ignore").current_dir(if dir.as_os_str().is_empty() {
        Path::new(".")
    } else {
        dir
    });
    let output = pip.output().map_err(|error| failed("pip", &error))?;
    if !output.status.success() {
        return Err(not_installed(written, facts, &output.stderr));
    }
    if requirements.is_local {
        let _ = fs::remove_dir_all(&target);
    }
    let work = work.keep();
    if let Err(error) = fs::rename(&work, &target) {
        let _ = fs::remove_dir_all(&work);
        // Somebody else may have been quicker.
        if !target.is_dir() {
            return Err(failed("kitbag's cache", &error));
        }
    }
    Ok(target)
}

fn not_installed(written: &Text, facts: &Facts, stderr: &[u8]) -> Diagnostic {
    let text = said(stderr);
    let title = format!("pip cannot install `{}`", written.get_ref());
    let error = Diagnostic::new(title).at(written.span(), "");
    if text.contains("No module named pip") {
        return error.help(format!(
            "{} has no pip: `apt-get install python3-pip`, or name a virtual environment with `venv`",
            facts.executable.display()
        ));
    }
    error.help(text)
}

fn read(written: &Text, dir: &Path) -> Result<Requirements, Diagnostic> {
    let file = tree::join(dir, written.get_ref());
    let text = fs::read_to_string(&file).map_err(|error| {
        Diagnostic::new(format!("cannot read `{}`", written.get_ref()))
            .at(written.span(), error.to_string())
            .near(near_file(&file, written.get_ref()).as_deref())
    })?;
    if file.extension().is_some_and(|extension| extension == "toml") {
        let text = dependencies(&text, &written.span(), written.get_ref())?;
        let file = cache::text(&text)
            .map_err(|error| Diagnostic::new(format!("cannot write to kitbag's cache: {error}")))?;
        let is_local = text.lines().any(is_local);
        return Ok(Requirements { text, is_local, file });
    }
    let (mut all, mut is_local, mut seen) = (String::new(), false, BTreeSet::new());
    gather(&file, &text, &mut all, &mut is_local, &mut seen);
    Ok(Requirements { text: all, is_local, file })
}

/// `project.dependencies` of a pyproject.toml (PEP 621), one a line.
fn dependencies(text: &str, span: &Range<usize>, shown: &str) -> Result<String, Diagnostic> {
    let wrong =
        |why: String| Diagnostic::new(format!("`{shown}` lists no dependencies")).at(span.clone(), why);
    let table = DeTable::parse(text).map_err(|error| wrong(error.message().to_owned()))?;
    let project = table.get_ref().get("project").and_then(|project| project.get_ref().as_table());
    let project = project.ok_or_else(|| wrong("it has no `[project]`".to_owned()))?;
    let list = project.get("dependencies").map(|list| list.get_ref().as_array());
    let list = list.unwrap_or_default().map_or(&[][..], |list| list);
    let lines = list.iter().filter_map(|item| match item.get_ref() {
        DeValue::String(text) => Some(format!("{text}\n")),
        _ => None,
    });
    Ok(lines.collect())
}

/// Adds the text of a list, and of those that it refers to.
fn gather(file: &Path, text: &str, all: &mut String, local: &mut bool, seen: &mut BTreeSet<PathBuf>) {
    if !seen.insert(file.to_owned()) {
        return;
    }
    all.push_str(text);
    for line in text.lines().map(str::trim) {
        *local |= is_local(line);
        let words = ["-r", "--requirement", "-c", "--constraint"];
        let Some(rest) = words.iter().find_map(|word| line.strip_prefix(word)) else { continue };
        let other = file.parent().unwrap_or(Path::new("")).join(rest.trim_start_matches(['=', ' ']).trim());
        if let Ok(text) = fs::read_to_string(&other) {
            gather(&other, &text, all, local, seen);
        }
    }
}

fn is_local(line: &str) -> bool {
    let line = line.trim();
    ["-e", "--editable", ".", "/", "file:"].iter().any(|word| line.starts_with(word))
        || line.contains("@ file:")
}
