//! `[app.python]`: an interpreter with its standard library, the packages of a virtual environment or of a list
//! of requirements, and the project's own modules.
//!
//! The interpreter stands in `bin/`, its library beside it in `lib/pythonX.Y`, where CPython finds it from its own
//! path (Modules/getpath.py, "search_up"); so nothing sets PYTHONHOME, which would break the host's Python when the
//! app starts it. The project's folder is on the module path by a line in a `.pth` file (docs of the module `site`).

mod compile;
mod entry;
mod packages;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command as Process;

use kitbag_format::manifest::Command;
use serde::Deserialize;
use toml::Spanned;
use toml::de::DeTable;

use super::{Expansion, OWN, PROJECT, PROJECT_LEFT_OUT, folder_of, near_file, said};
use crate::cache;
use crate::diagnostic::{Diagnostic, near_miss};
use crate::read::{Key, Reader, Text};
use crate::tree;

pub use compile::Compiler;
pub use entry::Entry;

/// What an app seldom needs of the standard library, by the name that `keep` calls it.
const LEFT_OUT: &[(&str, &[&str])] = &[
    (
        "tests",
        &[
            "/test",
            "/*/test",
            "/*/tests",
            "/lib-dynload/_test*",
            "/lib-dynload/_ctypes_test*",
            "/lib-dynload/_xx*",
            "/lib-dynload/xx*",
        ],
    ),
    ("tkinter", &["/tkinter", "/turtle.py", "/turtledemo", "/lib-dynload/_tkinter*"]),
    ("idlelib", &["/idlelib"]),
    ("ensurepip", &["/ensurepip"]),
];
/// What no app needs of it: caches, other packages, and what C programs are built with.
const NEVER: &[&str] =
    &["__pycache__", "/site-packages", "/dist-packages", "/config-*", "*.a", "*.exe", "fetch_macholib*"];
/// What is left out beside packages: what installed them.
const PACKAGES_LEFT_OUT: &[&str] = &["__pycache__", "/bin", "/pip", "/pip-*.dist-info"];
/// Programs of a virtual environment that make no sense outside of it.
const PROGRAMS_LEFT_OUT: &[&str] =
    &["__pycache__", "python*", "pip*", "easy_install*", "wheel", "[Aa]ctivate*", "deactivate*"];

/// The variable that says where time zones are, which the module `zoneinfo` reads.
pub const ZONES: &str = "PYTHONTZPATH";

/// True for the module that asks for [`ZONES`], and for what it is compiled to.
pub fn asks_for_zones(path: &[u8]) -> bool {
    let has = |text: &[u8]| path.windows(text.len()).any(|window| window == text);
    path.ends_with(b"/zoneinfo/_tzpath.py")
        || (has(b"/zoneinfo/__pycache__/_tzpath.") && path.ends_with(b".pyc"))
}

/// The table's keys.
pub const KEYS: &[Key] = &[
    ("interpreter", "interpreter = \"/usr/bin/python3\""),
    ("venv", "venv = \".venv\""),
    ("requirements", "requirements = \"requirements.txt\""),
    ("system-packages", "system-packages = true"),
    ("project", "project = \"src\""),
    ("entry", "entry = \"shop.main:run\""),
    ("keep", "keep = [\"tkinter\"]"),
    ("compile", "compile = false"),
];

/// `[app.python]`, as it is written.
#[derive(Debug)]
pub struct Python {
    span: Range<usize>,
    interpreter: Option<Text>,
    venv: Option<Text>,
    requirements: Option<Text>,
    system_packages: bool,
    project: Option<Text>,
    /// What a tool starts.
    pub entry: Option<Text>,
    keep: Vec<Text>,
    compile: bool,
}

impl Reader<'_> {
    /// `[app.python]`
    pub fn python(&mut self, table: &Spanned<&DeTable<'_>>) -> Option<Python> {
        let before = self.errors.len();
        let section = self.section("`[app.python]`", table.get_ref(), table.span(), KEYS);
        let python = Python {
            span: table.span(),
            interpreter: self.string(&section, "interpreter"),
            venv: self.string(&section, "venv"),
            requirements: self.string(&section, "requirements"),
            system_packages: self.boolean(&section, "system-packages").unwrap_or(false),
            project: self.string(&section, "project"),
            entry: self.string(&section, "entry"),
            keep: self.strings(&section, "keep").map(Spanned::into_inner).unwrap_or_default(),
            compile: self.boolean(&section, "compile").unwrap_or(true),
        };
        if let (Some(venv), Some(requirements)) = (&python.venv, &python.requirements) {
            let error = Diagnostic::new("both `venv` and `requirements`")
                .at(venv.span(), "packages come from here …")
                .at(requirements.span(), "… or are installed from this list")
                .help("keep one of them");
            self.errors.push(error);
        }
        for kept in &python.keep {
            let names = || LEFT_OUT.iter().map(|(name, _)| *name);
            if !names().any(|name| name == kept.get_ref()) {
                let list = names().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
                let error = Diagnostic::new(format!("`{}` is nothing to keep", kept.get_ref()))
                    .at(kept.span(), format!("expected one of {list}"))
                    .near(near_miss(kept.get_ref(), names()));
                self.errors.push(error);
            }
        }
        if let Some(entry) = &python.entry
            && let Err(fault) = Entry::parse(entry.get_ref())
        {
            let error = Diagnostic::new(format!("bad entry `{}`", entry.get_ref())).at(entry.span(), fault);
            self.errors
                .push(error.help("`module:function`, `-m module`, or a script of the project: `run.py`"));
        }
        (self.errors.len() == before).then_some(python)
    }
}

/// What an interpreter says of itself.
#[derive(Debug, Clone, Deserialize)]
struct Facts {
    /// The program, links followed, outside of any virtual environment.
    executable: PathBuf,
    /// `3.11`
    version: String,
    /// `3.11.2`
    release: String,
    /// Where it is installed.
    prefix: PathBuf,
    /// Its standard library.
    stdlib: PathBuf,
    /// Folders for packages, below the prefix.
    sites: Vec<PathBuf>,
    /// `cpython-311`
    tag: String,
    /// It is the one of a virtual environment.
    venv: bool,
}

const FACTS: &str = r#"
import json, os, platform, site, sys, sysconfig
print(json.dumps({
    "executable": os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable),
    "version": "%d.%d" % sys.version_info[:2],
    "release": platform.python_version(),
    "prefix": sys.base_prefix,
    "stdlib": os.path.dirname(os.__file__),
    "sites": site.getsitepackages([sys.base_prefix]),
    "tag": sys.implementation.cache_tag,
    "venv": sys.prefix != sys.base_prefix,
}))
"#;

impl Facts {
    /// Asks the interpreter `program`, which the manifest calls `shown` at `span`.
    fn ask(program: &Path, shown: &str, span: &Range<usize>) -> Result<Self, Diagnostic> {
        let output = Process::new(program).args(["-I", "-c", FACTS]).output().map_err(|error| {
            let title = format!("cannot start the interpreter `{shown}`: {error}");
            let missing = error.kind() == io::ErrorKind::NotFound;
            let help =
                "install Python (`apt-get install python3`), or say `interpreter = \"/path/to/python3\"`";
            let diagnostic = Diagnostic::new(title).at(span.clone(), "");
            let diagnostic = diagnostic.near(near_file(program, shown).as_deref().filter(|_| missing));
            diagnostic.help(help)
        })?;
        let facts: Option<Self> = serde_json::from_slice(&output.stdout).ok();
        let facts = facts.filter(|_| output.status.success()).ok_or_else(|| {
            Diagnostic::new(format!("`{shown}` does not answer like a Python 3"))
                .at(span.clone(), output.status.to_string())
                .help(said(&output.stderr))
        })?;
        if facts.venv {
            Self::ask(&facts.executable.clone(), &facts.executable.to_string_lossy(), span)
        } else {
            Ok(facts)
        }
    }

    /// Where a path of the installation belongs in the tree; `None` for one outside of the prefix.
    fn place(&self, path: &Path) -> Option<String> {
        Some(path.strip_prefix(&self.prefix).ok()?.to_string_lossy().into_owned())
    }

    /// The folder of the tree that packages go to: one that this interpreter looks into by itself.
    fn site(&self) -> String {
        let near = self.sites.iter().find(|site| site.starts_with(&self.stdlib)).or(self.sites.last());
        let place = near.and_then(|site| self.place(site));
        place.unwrap_or_else(|| format!("lib/python{}/site-packages", self.version))
    }
}

/// Finds the interpreter and the packages, which are installed if need be.
///
/// Fails where one of them is not there or does not fit, and where pip cannot install.
pub fn expand(python: &Python, dir: &Path, name: &str, quiet: bool) -> Result<Expansion, Diagnostic> {
    let venv = python.venv.as_ref().map(|venv| packages::Venv::open(venv, dir)).transpose()?;
    let facts = interpreter(python, dir, venv.as_ref())?;
    let mut expansion = Expansion {
        what: format!("CPython {} of {}", facts.release, facts.executable.display()),
        env: env(),
        kind: "python",
        examples: ("module:function", "[\"bin/python3\", \"-m\", \"module\"]"),
        ..Expansion::default()
    };
    bring_interpreter(python, &facts, &mut expansion)?;
    let project = bring_project(python, dir, &mut expansion)?;
    // Where modules are looked for, beside the project.
    let mut roots = Vec::new();
    let mut linked = Vec::new();
    if let Some(packages) = packages(python, dir, &facts, venv.as_ref(), quiet)? {
        linked = bring_packages(&facts, &packages, &project, &mut expansion);
        roots.push(packages.modules);
    }
    if python.system_packages || venv.is_some_and(|venv| venv.has_system_packages) {
        roots.extend(bring_system_packages(python, &facts, &mut expansion));
    }
    bring_paths(python, &facts, &linked, &mut expansion)?;
    if let Some(written) = &python.entry {
        roots.extend(linked.iter().map(|path| project.join(path)));
        roots.push(facts.stdlib.clone());
        expansion.command = Some(bring_entry(written, &project, &roots, name, &facts, &mut expansion)?);
    }
    expansion.compiler = python.compile.then(|| Compiler::new(&facts));
    Ok(expansion)
}

/// The app's packages on this machine.
struct Packages {
    modules: PathBuf,
    programs: PathBuf,
    /// Where the manifest says which.
    span: Range<usize>,
}

/// Finds or installs the packages; `None` where the app has none.
fn packages(
    python: &Python,
    dir: &Path,
    facts: &Facts,
    venv: Option<&packages::Venv>,
    quiet: bool,
) -> Result<Option<Packages>, Diagnostic> {
    if let (Some(venv), Some(written)) = (venv, &python.venv) {
        let modules = venv.packages(facts, python.interpreter.as_ref())?;
        return Ok(Some(Packages { modules, programs: venv.path.join("bin"), span: written.span() }));
    }
    let Some(written) = &python.requirements else { return Ok(None) };
    let modules = packages::install(written, dir, facts, quiet)?;
    Ok(Some(Packages { programs: modules.join("bin"), modules, span: written.span() }))
}

/// Modules and programs. Returns the project's folders that some are only linked to.
fn bring_packages(
    facts: &Facts,
    packages: &Packages,
    project: &Path,
    expansion: &mut Expansion,
) -> Vec<String> {
    let (linked, links) = packages::linked(&packages.modules, project, &mut expansion.warnings);
    let left_out: Vec<&str> =
        links.iter().map(String::as_str).chain(PACKAGES_LEFT_OUT.iter().copied()).collect();
    expansion.include(&packages.span, &packages.modules, &facts.site(), &left_out);
    expansion.count("packages");
    if packages.programs.is_dir() {
        expansion.include(&packages.span, &packages.programs, "bin", PROGRAMS_LEFT_OUT);
    }
    linked
}

/// The interpreter's own packages. Returns their folders.
fn bring_system_packages(python: &Python, facts: &Facts, expansion: &mut Expansion) -> Vec<PathBuf> {
    let mut brought = Vec::new();
    for (folder, place) in facts.sites.iter().filter_map(|site| Some((site, facts.place(site)?))) {
        if folder.is_dir() {
            expansion.include(&python.span, folder, &place, PACKAGES_LEFT_OUT);
            brought.push(folder.clone());
        }
    }
    brought
}

/// Nothing of the host's Python: its variables, its user's packages. Bytecode is there; the tree is read-only.
fn env() -> BTreeMap<String, String> {
    let pairs =
        [("PYTHONHOME", ""), ("PYTHONPATH", ""), ("PYTHONNOUSERSITE", "1"), ("PYTHONDONTWRITEBYTECODE", "1")];
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
}

fn interpreter(python: &Python, dir: &Path, venv: Option<&packages::Venv>) -> Result<Facts, Diagnostic> {
    match (&python.interpreter, venv) {
        (Some(written), _) if written.get_ref().contains('/') => {
            let path = tree::join(dir, written.get_ref());
            Facts::ask(&folder_of(&path, written.get_ref()), written.get_ref(), &written.span())
        }
        (Some(written), _) => Facts::ask(Path::new(written.get_ref()), written.get_ref(), &written.span()),
        (None, Some(venv)) => venv.interpreter(),
        (None, None) => Facts::ask(Path::new("python3"), "python3", &python.span),
    }
}

/// `bin/python3.11`, the names it goes by, and its standard library.
fn bring_interpreter(python: &Python, facts: &Facts, expansion: &mut Expansion) -> Result<(), Diagnostic> {
    let span = python.interpreter.as_ref().map_or_else(|| python.span.clone(), Spanned::span);
    let program = format!("python{}", facts.version);
    expansion.include(&span, &facts.executable, &format!("bin/{program}"), &[]);
    for name in ["python3", "python"] {
        expansion.links.push((format!("bin/{name}"), program.clone()));
    }
    let Some(place) = facts.place(&facts.stdlib) else {
        let title = format!("the interpreter `{}` keeps its library elsewhere", facts.executable.display());
        let why = format!("{} is not below {}", facts.stdlib.display(), facts.prefix.display());
        return Err(Diagnostic::new(title).at(span, why).help("take one that was installed as a whole"));
    };
    let kept = |name: &str| python.keep.iter().any(|kept| kept.get_ref() == name);
    let left_out = LEFT_OUT.iter().filter(|(name, _)| !kept(name)).flat_map(|(_, patterns)| *patterns);
    let left_out: Vec<&str> = NEVER.iter().chain(left_out).copied().collect();
    expansion.include(&span, &facts.stdlib, &place, &left_out);
    expansion.count("standard library");
    Ok(())
}

/// The project's own files. Returns its folder.
fn bring_project(python: &Python, dir: &Path, expansion: &mut Expansion) -> Result<PathBuf, Diagnostic> {
    let span = python.project.as_ref().map_or_else(|| python.span.clone(), Spanned::span);
    let written = python.project.as_ref().map_or(".", |project| project.get_ref());
    let project = tree::join(dir, written);
    let project = if project.as_os_str().is_empty() { PathBuf::from(".") } else { project };
    if !project.is_dir() {
        let near = near_file(&project, written);
        let error = Diagnostic::new(format!("there is no folder `{written}` of the project"));
        return Err(error.at(span, "").near(near.as_deref()));
    }
    let mut left_out: Vec<String> = PROJECT_LEFT_OUT.iter().map(ToString::to_string).collect();
    left_out.push("node_modules".to_owned());
    for entry in fs::read_dir(&project).into_iter().flatten().flatten() {
        if entry.path().join("pyvenv.cfg").is_file() {
            left_out.push(format!("/{}", globset::escape(&entry.file_name().to_string_lossy())));
        }
    }
    let left_out: Vec<&str> = left_out.iter().map(String::as_str).collect();
    expansion.include(&span, Path::new(written), PROJECT, &left_out);
    expansion.count(format!("project `{written}`"));
    expansion.cwd = Some(format!("${{tree}}/{PROJECT}"));
    Ok(std::path::absolute(&project).unwrap_or(project))
}

/// Puts the project on the module path.
fn bring_paths(
    python: &Python,
    facts: &Facts,
    more: &[String],
    expansion: &mut Expansion,
) -> Result<(), Diagnostic> {
    let site = facts.site();
    let up = "../".repeat(site.split('/').count());
    let lines = std::iter::once(String::new()).chain(more.iter().map(|path| format!("/{path}")));
    let text: String = lines.map(|below| format!("{up}{PROJECT}{below}\n")).collect();
    let file = keep_text(&text, &python.span)?;
    expansion.include(&python.span, &file, &format!("{site}/kitbag.pth"), &[]);
    Ok(())
}

/// Checks the entry and makes a command of it.
fn bring_entry(
    written: &Text,
    project: &Path,
    roots: &[PathBuf],
    name: &str,
    facts: &Facts,
    expansion: &mut Expansion,
) -> Result<Command, Diagnostic> {
    let span = written.span();
    let entry =
        Entry::parse(written.get_ref()).map_err(|fault| Diagnostic::new(fault).at(span.clone(), ""))?;
    entry.check(project, roots).map_err(|fault| fault.at(&span))?;
    let mut argv = vec![format!("bin/python{}", facts.version)];
    let mut add = |args: &[&str]| argv.extend(args.iter().map(ToString::to_string));
    match &entry {
        // Isolated, so that neither the caller's folder nor the host's variables bring modules in.
        Entry::Module(module) => add(&["-I", "-B", "-m", module]),
        // A script's own folder is where it finds its modules.
        Entry::Script(script) => add(&["-E", "-s", "-B", &format!("${{tree}}/{PROJECT}/{script}")]),
        Entry::Function(..) => {
            let place = format!("{OWN}/{name}");
            let file = keep_text(&entry.launcher(), &span)?;
            expansion.include(&span, &file, &place, &[]);
            add(&["-I", "-B", &format!("${{tree}}/{place}")]);
        }
    }
    Ok(Command { argv, ..Command::default() })
}

/// A file with this text, in kitbag's cache.
fn keep_text(text: &str, span: &Range<usize>) -> Result<PathBuf, Diagnostic> {
    cache::text(text).map_err(|error| {
        Diagnostic::new(format!("cannot write to kitbag's cache: {error}"))
            .at(span.clone(), "")
            .help("name another folder with the variable XDG_CACHE_HOME")
    })
}

#[cfg(test)]
mod tests;
