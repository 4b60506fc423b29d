//! `[app.java]`: a jar, on a Java runtime that jlink makes of the modules it needs.

use std::fs;
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Output};
use std::time::{Duration, SystemTime};

use kitbag_format::Digest;
use kitbag_format::manifest::Command;
use toml::Spanned;
use toml::de::DeTable;

use super::{Expansion, PROJECT, folder_of, near_file, said};
use crate::cache;
use crate::diagnostic::Diagnostic;
use crate::read::{Key, Reader, Text};
use crate::tree;

/// Where the runtime lies in the tree.
const RUNTIME: &str = "lib/jvm";
/// Runtimes that nobody packed for so long go.
const UNUSED: Duration = Duration::from_secs(90 * 24 * 60 * 60);
/// What jlink leaves out: what only compilers and people read. Nothing is compressed, the payload is.
const JLINK: &[&str] = &["--no-header-files", "--no-man-pages"];

/// The table's keys.
pub const KEYS: &[Key] = &[
    ("jar", "jar = \"target/app.jar\""),
    ("runtime", "runtime = \"build/image\""),
    ("jdk", "jdk = \"/usr/lib/jvm/default-java\""),
    ("modules", "modules = [\"java.base\", \"java.sql\"]"),
    ("options", "options = [\"-Xmx512m\"]"),
];

/// `[app.java]`, as it is written.
#[derive(Debug)]
pub struct Java {
    span: Range<usize>,
    jar: Option<Text>,
    runtime: Option<Text>,
    jdk: Option<Text>,
    modules: Option<Spanned<Vec<Text>>>,
    options: Vec<Text>,
}

impl Reader<'_> {
    /// `[app.java]`
    pub fn java(&mut self, table: &Spanned<&DeTable<'_>>) -> Option<Java> {
        let before = self.errors.len();
        let section = self.section("`[app.java]`", table.get_ref(), table.span(), KEYS);
        self.require(&section, "jar");
        let java = Java {
            span: table.span(),
            jar: self.string(&section, "jar"),
            runtime: self.string(&section, "runtime"),
            jdk: self.string(&section, "jdk"),
            modules: self.strings(&section, "modules"),
            options: self.strings(&section, "options").map(Spanned::into_inner).unwrap_or_default(),
        };
        if let (Some(runtime), Some(modules)) = (&java.runtime, &java.modules) {
            let error = Diagnostic::new("both `runtime` and `modules`")
                .at(runtime.span(), "this folder is the runtime …")
                .at(modules.span(), "… or jlink makes one of these");
            self.errors.push(error.help("keep one of them"));
        }
        (self.errors.len() == before).then_some(java)
    }
}

/// Finds the jar and the runtime, which is made if need be.
///
/// Fails where the jar or a JDK is not there, and where jdeps or jlink fail.
pub fn expand(java: &Java, dir: &Path, quiet: bool) -> Result<Expansion, Diagnostic> {
    let Some(written) = &java.jar else { return Ok(Expansion::default()) };
    let jar = tree::join(dir, written.get_ref());
    if !jar.is_file() {
        let error =
            Diagnostic::new(format!("there is no jar `{}`", written.get_ref())).at(written.span(), "");
        return Err(error
            .near(near_file(&jar, written.get_ref()).as_deref())
            .help("if a build makes it, build first"));
    }
    let (runtime, what) = match &java.runtime {
        Some(folder) => (given(folder, dir)?, "Java runtime of ".to_owned() + folder.get_ref()),
        None => linked(java, written, &jar, dir, quiet)?,
    };
    let name = jar.file_name().unwrap_or_default().to_string_lossy();
    let place = format!("{PROJECT}/{name}");
    let program = format!("{RUNTIME}/bin/java");
    let options = java.options.iter().map(|option| option.get_ref().clone());
    let argv = [program].into_iter().chain(options).chain(["-jar".to_owned(), format!("${{tree}}/{place}")]);
    let mut expansion = Expansion {
        what,
        cwd: Some(format!("${{tree}}/{PROJECT}")),
        command: Some(Command { argv: argv.collect(), ..Command::default() }),
        links: vec![("bin/java".to_owned(), format!("../{RUNTIME}/bin/java"))],
        ..Expansion::default()
    };
    let span = java.runtime.as_ref().map_or_else(|| java.span.clone(), Spanned::span);
    expansion.include(&span, &runtime, RUNTIME, &[]);
    expansion.count("runtime");
    expansion.include(&written.span(), Path::new(written.get_ref()), &place, &[]);
    Ok(expansion)
}

fn given(written: &Text, dir: &Path) -> Result<PathBuf, Diagnostic> {
    let path = tree::join(dir, written.get_ref());
    if path.join("bin/java").is_file() {
        return Ok(std::path::absolute(&path).unwrap_or(path));
    }
    let error = Diagnostic::new(format!("`{}` is no Java runtime", written.get_ref()));
    Err(error.at(written.span(), "it has no bin/java").help("`jlink --add-modules … --output DIR` makes one"))
}

/// A runtime of the modules that the jar needs, in kitbag's cache; and what to say of it.
fn linked(
    java: &Java,
    written: &Text,
    jar: &Path,
    dir: &Path,
    quiet: bool,
) -> Result<(PathBuf, String), Diagnostic> {
    let jdk = Jdk::find(java, dir)?;
    let modules = match &java.modules {
        Some(modules) => {
            modules.get_ref().iter().map(|module| module.get_ref().as_str()).collect::<Vec<_>>().join(",")
        }
        None => jdk.modules_of(written, jar)?,
    };
    let what = format!("Java {} of {} with {modules}", jdk.version, jdk.home.display());
    let folder = cache::folder("java/runtimes");
    let key = format!("{}\n{}\n{modules}\n{JLINK:?}", jdk.home.display(), jdk.release);
    let target = folder.join(Digest::of(key.as_bytes()).short());
    if target.is_dir() {
        // Its age says when it was used.
        let _ = fs::File::open(&target).and_then(|file| file.set_modified(SystemTime::now()));
        return Ok((target, what));
    }
    if !quiet {
        let _ = writeln!(io::stderr(), "linking a Java runtime with jlink …");
    }
    let span = java.modules.as_ref().map_or_else(|| java.span.clone(), Spanned::span);
    let failed = |error: &io::Error| {
        Diagnostic::new(format!("cannot write to kitbag's cache: {error}")).at(span.clone(), "")
    };
    fs::create_dir_all(&folder).map_err(|error| failed(&error))?;
    cache::forget_folders(&folder, UNUSED);
    // jlink wants to make the folder itself.
    let work = tempfile::tempdir_in(&folder).map_err(|error| failed(&error))?;
    let made = work.path().join("runtime");
    let output = jdk.run(
        "jlink",
        JLINK.iter().map(|arg| (*arg).into()).chain([
            "--add-modules".into(),
            modules.as_str().into(),
            "--output".into(),
            made.as_os_str().to_owned(),
        ]),
    )?;
    if !output.status.success() {
        // jlink speaks on stdout.
        let text = [said(&output.stdout), said(&output.stderr)].join("\n");
        return Err(Diagnostic::new("jlink cannot make a runtime").at(span, "").help(text.trim()));
    }
    match fs::rename(&made, &target) {
        // Somebody else may have been quicker.
        Err(error) if !target.is_dir() => Err(failed(&error)),
        _ => Ok((target, what)),
    }
}

/// A JDK.
struct Jdk {
    home: PathBuf,
    /// What its file `release` says.
    release: String,
    /// `17.0.15`
    version: String,
}

impl Jdk {
    /// The one that is named, or JAVA_HOME's, or that of the `jlink` in PATH.
    fn find(java: &Java, dir: &Path) -> Result<Self, Diagnostic> {
        let span = java.jdk.as_ref().map_or_else(|| java.span.clone(), Spanned::span);
        let named = java.jdk.as_ref().map(|jdk| folder_of(&tree::join(dir, jdk.get_ref()), jdk.get_ref()));
        let in_path = || {
            let path = std::env::var_os("PATH")?;
            let found = std::env::split_paths(&path)
                .map(|folder| folder.join("jlink"))
                .find(|jlink| jlink.is_file())?;
            Some(fs::canonicalize(found).ok()?.parent()?.parent()?.to_owned())
        };
        let home =
            std::env::var_os("JAVA_HOME").map(PathBuf::from).filter(|home| home.join("bin/jlink").is_file());
        let home = named.or(home).or_else(in_path).unwrap_or_default();
        if !home.join("bin/jlink").is_file() {
            let (title, why) = match &java.jdk {
                Some(jdk) => (format!("`{}` is no JDK", jdk.get_ref()), "it has no bin/jlink"),
                None => ("there is no JDK to make a Java runtime".to_owned(), "looked in JAVA_HOME and PATH"),
            };
            return Err(Diagnostic::new(title)
                .at(span, why)
                .help("install one (`apt-get install openjdk-17-jdk-headless`), name it with `jdk`, or name a runtime with `runtime`"));
        }
        let release = fs::read_to_string(home.join("release")).unwrap_or_default();
        let version = release.lines().find_map(|line| line.strip_prefix("JAVA_VERSION=")).unwrap_or("?");
        let version = version.trim_matches('"').to_owned();
        Ok(Self { home, release, version })
    }

    fn run(&self, tool: &str, args: impl Iterator<Item = std::ffi::OsString>) -> Result<Output, Diagnostic> {
        let program = self.home.join("bin").join(tool);
        Process::new(&program)
            .args(args)
            .env_remove("JDK_JAVA_OPTIONS")
            .output()
            .map_err(|error| Diagnostic::new(format!("cannot start {}: {error}", program.display())))
    }

    /// The modules that a jar needs, as jdeps sees them; remembered for this jar.
    fn modules_of(&self, written: &Text, jar: &Path) -> Result<String, Diagnostic> {
        let failed = |why: String| {
            Diagnostic::new(format!("jdeps cannot tell the modules that `{}` needs", written.get_ref()))
                .at(written.span(), "")
                .help(why)
                .help("list them: `modules = [\"java.base\", \"java.sql\"]`")
        };
        let bytes = fs::read(jar).map_err(|error| failed(error.to_string()))?;
        let key = Digest::of(format!("{} {}", Digest::of(&bytes), self.release).as_bytes()).short();
        let remembered = cache::folder("java/modules").join(key);
        if let Ok(modules) = fs::read_to_string(&remembered) {
            return Ok(modules);
        }
        let major = self.version.split('.').next().unwrap_or("17");
        let args = ["--multi-release", major, "--ignore-missing-deps", "--print-module-deps"];
        let args = args.into_iter().map(Into::into).chain([jar.as_os_str().to_owned()]);
        let output = self.run("jdeps", args)?;
        let modules = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if !output.status.success() || modules.is_empty() || modules.contains(char::is_whitespace) {
            return Err(failed([said(&output.stdout), said(&output.stderr)].join("\n").trim().to_owned()));
        }
        // It is a cache: that it cannot be written is no failure.
        let _ =
            fs::create_dir_all(cache::folder("java/modules")).and_then(|()| fs::write(&remembered, &modules));
        Ok(modules)
    }
}
