//! kitbag and its peers: how each packs a tree, and how a user starts what it made.

use std::fs;
use std::path::{Path, PathBuf};

use crate::inputs::{Input, venv};
use crate::measure::{Start, on_path, shell, tool};

/// A reproducible tar of `$1` to standard output.
const TAR: &str = "tar --sort=name --owner=0 --group=0 --numeric-owner -C \"$1\" -cf - .";

/// The interpreter that packages of PyPI are installed for.
pub const PYTHON: &str = "/usr/bin/python3";

/// Something that makes one file of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packer {
    /// The project's own, by the path of its command; `service` packs a service bundle instead of a tool.
    Kitbag { command: PathBuf, service: bool },
    /// `tar | zstd -3 -T2`, unpacked once by a line of shell: the bar.
    Tools,
    /// makeself with zstd at level 3, which unpacks at every start.
    Makeself,
    /// scie-jump, by its path.
    ScieJump(PathBuf),
}

impl Packer {
    /// Its name in tables and file names.
    pub fn name(&self) -> &'static str {
        match self {
            Packer::Kitbag { service: false, .. } => "kitbag",
            Packer::Kitbag { service: true, .. } => "kitbag-service",
            Packer::Tools => "tar+zstd+sh",
            Packer::Makeself => "makeself",
            Packer::ScieJump(_) => "scie-jump",
        }
    }

    /// Makes `out` of the tree.
    pub fn pack(&self, input: &Input, out: &Path) -> Result<(), String> {
        match self {
            Packer::Kitbag { command, service } => {
                let project = project(input, *service, out)?;
                let (command, project, out) = (path(command), path(&project), path(out));
                tool(&[&command, "pack", "--quiet", "--force", &project, "-o", &out])
            }
            Packer::Tools => shell(&format!("{TAR} | zstd -q -3 -T2 -c > \"$2\""), &[&input.dir, out]),
            Packer::Makeself => shell(
                "makeself --quiet --zstd --complevel 3 --nox11 --noprogress --sha256 \"$1\" \"$2\" bench ./bin/hello",
                &[&input.dir, out],
            ),
            Packer::ScieJump(jump) => pack_scie(jump, input, out),
        }
        .map(drop)
    }

    /// How the file is started, with everything that it unpacks below `store`.
    pub fn start(&self, file: &Path, store: &Path) -> Start {
        let start = match self {
            Packer::Tools => {
                Start { argv: vec!["/bin/sh".into(), "-c".into(), unpack_once(file)], env: Vec::new() }
            }
            Packer::Makeself => Start { argv: vec![path(file), "--quiet".into()], env: Vec::new() },
            _ => Start::of(file),
        };
        let start = start.env("HOME", store).env("TMPDIR", store).env("SCIE_BASE", store);
        start
            .env("KITBAG_STORE", store)
            .env("KITBAG_STATE", store.with_extension("state"))
            .env("KITBAG_GC", "off")
    }
}

/// The line of shell that is the bar of all starts.
fn unpack_once(file: &Path) -> String {
    let file = path(file);
    format!(
        "d=\"$HOME/x\"; [ -d \"$d\" ] || {{ mkdir \"$d.t\" && zstd -dc -q '{file}' | tar x -C \"$d.t\" && mv \"$d.t\" \"$d\"; }}; \
         exec \"$d/bin/hello\""
    )
}

fn pack_scie(jump: &Path, input: &Input, out: &Path) -> Result<String, String> {
    let work = out.with_extension("lift");
    crate::measure::empty(&work)?;
    let lift = r#"{"scie":{"lift":{"name":"bundle","files":[{"name":"app.tar.zst","key":"app"}],
        "boot":{"commands":{"":{"exe":"{app}/bin/hello","args":[]}}}}}}"#;
    fs::write(work.join("lift.json"), lift).map_err(|error| error.to_string())?;
    shell(&format!("{TAR} | zstd -q -3 -T2 -c > \"$2/app.tar.zst\""), &[&input.dir, &work])?;
    shell("cd \"$1\" && \"$2\" lift.json >/dev/null && mv bundle \"$3\" && rm -r \"$1\"", &[&work, jump, out])
}

/// A folder with the kitbag.toml of this input.
fn project(input: &Input, service: bool, out: &Path) -> Result<PathBuf, String> {
    let dir = out.with_extension("project");
    let what = if service {
        "[services.web]\nargv = [\"bin/hello\"]\nenv = { BENCH_HOLD = \"${env.BENCH_HOLD:-}\" }\nrestart = \"never\"\n"
    } else {
        ""
    };
    let command = if service { "" } else { "command = [\"bin/hello\"]\n" };
    // One name for both versions of a pair.
    let name = input.name.split('-').next().unwrap_or("input");
    // The same files as everybody packs; what the closure costs is measured apart.
    let text = format!(
        "name = \"bench-{name}\"\nversion = \"1.0.0\"\n{command}\n[[include]]\nfrom = {:?}\nto = \".\"\n\n\
         [closure]\nenabled = false\n\n{what}",
        path(&input.dir)
    );
    fs::create_dir_all(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    fs::write(dir.join("kitbag.toml"), text).map_err(|error| error.to_string())?;
    Ok(dir)
}

/// All packers of this machine, kitbag's first and the bar second, and a note for each that is missing.
pub fn all(kitbag: &Path) -> (Vec<Packer>, Vec<String>) {
    let (mut found, mut notes) =
        (vec![Packer::Kitbag { command: kitbag.to_owned(), service: false }, Packer::Tools], Vec::new());
    if on_path("makeself").is_some() {
        found.push(Packer::Makeself);
    } else {
        notes.push("makeself: not installed (Debian: apt-get install makeself)".to_owned());
    }
    match std::env::var_os("BENCH_SCIE_JUMP").map(PathBuf::from).or_else(|| on_path("scie-jump")) {
        Some(jump) => found.push(Packer::ScieJump(jump)),
        None => notes.push(
            "scie-jump: neither on PATH nor in BENCH_SCIE_JUMP; Debian and crates.io do not have it"
                .to_owned(),
        ),
    }
    notes.push("AppImage: not measured; it mounts instead of unpacking".to_owned());
    (found, notes)
}

/// The program `name` of the package of that name on PyPI, in a virtual environment below `work`. One on PATH may be
/// another Python's, and PyInstaller packs the Python that it runs on.
pub fn of_pypi(work: &Path, name: &str) -> Result<PathBuf, String> {
    let made = venv(&work.join("peers").join(name), PYTHON, &[name])?;
    Ok(made.join("bin").join(name))
}

fn path(path: &Path) -> String {
    path.display().to_string()
}
