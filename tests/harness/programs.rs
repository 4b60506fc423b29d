//! The programs under test: built once a test process, one process at a time.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::{env, fs, io};

use cargo_metadata::Message;
use nix::fcntl::{Flock, FlockArg};

use crate::{Bundle, Sandbox};

/// The workspace's folder.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace")
}

/// The folder of the fixtures.
pub fn fixtures() -> PathBuf {
    workspace().join("fixtures")
}

/// The `kitbag` command: the one that the variable `KITBAG` names, or else a release build of this workspace.
pub fn kitbag() -> &'static Path {
    static KITBAG: OnceLock<PathBuf> = OnceLock::new();
    KITBAG.get_or_init(|| match env::var_os("KITBAG") {
        Some(path) => path.into(),
        None => cargo_build(workspace(), &["-p", "kitbag", "--release"], "kitbag"),
    })
}

/// The tool of `fixtures/hello-c`: a static program that says what it was started with.
pub fn hello() -> &'static Path {
    static HELLO: OnceLock<PathBuf> = OnceLock::new();
    HELLO.get_or_init(|| {
        let _lock = lock();
        let folder = fixtures().join("hello-c");
        let made = Command::new("make").current_dir(&folder).output().expect("make");
        assert!(made.status.success(), "make in {}: {made:?}", folder.display());
        folder.join("bin/hello")
    })
}

/// One of the programs of `fixtures/helpers`, by name.
pub fn helper(name: &str) -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let built = cargo_build(&fixtures().join("helpers"), &["--release"], "sleeps");
        built.parent().expect("a folder").to_owned()
    });
    folder.join(name)
}

/// `fixtures/guestbook`, packed once a test process, with a sandbox of its own.
pub fn guestbook() -> Bundle {
    static GUESTBOOK: OnceLock<(PathBuf, String)> = OnceLock::new();
    let (file, printed) = GUESTBOOK.get_or_init(|| {
        let kitbag = kitbag();
        let _lock = lock();
        let file = built().join("guestbook");
        let mut pack = Command::new(kitbag);
        pack.arg("pack").arg(fixtures().join("guestbook")).arg("-o").arg(&file);
        let output = pack.output().expect("kitbag");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{pack:?}: {}\n{said}", output.status);
        (file, String::from_utf8_lossy(&output.stdout).into_owned())
    });
    Bundle { file: file.clone(), printed: printed.clone(), sandbox: Sandbox::new() }.fresh()
}

/// Where the suite keeps what it builds: beside the test programs.
pub fn built() -> PathBuf {
    let own = env::current_exe().expect("the test's own path");
    let target = own.ancestors().find(|path| path.ends_with("deps")).and_then(Path::parent);
    let folder = target.expect("a target folder").join("kitbag-tests");
    fs::create_dir_all(&folder).expect("a folder");
    folder
}

/// Builds, and returns the executable called `name`. Cargo says itself where it put it.
fn cargo_build(folder: &Path, args: &[&str], name: &str) -> PathBuf {
    let _lock = lock();
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.arg("build").args(args).arg("--message-format=json-render-diagnostics").current_dir(folder);
    let output = cargo.stdin(Stdio::null()).output().expect("cargo");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{cargo:?} in {}: {}\n{said}", folder.display(), output.status);
    Message::parse_stream(io::Cursor::new(output.stdout))
        .filter_map(|message| match message {
            Ok(Message::CompilerArtifact(artifact)) if artifact.target.name == name => artifact.executable,
            _ => None,
        })
        .next()
        .unwrap_or_else(|| panic!("{cargo:?} names no executable {name}"))
        .into()
}

/// Held while something is built: test processes may run beside each other.
pub(crate) fn lock() -> Flock<File> {
    let path = built().join("lock");
    let file = File::create(&path).expect("a lock file");
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno).expect("a lock")
}
