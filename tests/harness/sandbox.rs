//! A bundle, and the private places where it is started.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{Cmd, Folder};

/// Names the sandbox in the environment of everything that is started in it.
pub(crate) const MARK: &str = "KITBAG_TESTS_SANDBOX";

/// Private folders: home, store, state. What still runs in it when it is dropped is killed.
#[derive(Debug)]
pub struct Sandbox {
    folder: Folder,
}

impl Sandbox {
    /// A new one, its home empty, store and state not there yet.
    #[expect(clippy::new_without_default, reason = "it makes something")]
    pub fn new() -> Self {
        let folder = Folder::new();
        folder.dir("home");
        Self { folder }
    }

    /// Its folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// `HOME`
    pub fn home(&self) -> PathBuf {
        self.folder.join("home")
    }

    /// `KITBAG_STORE`
    pub fn store(&self) -> PathBuf {
        self.folder.join("store")
    }

    /// `KITBAG_STATE`
    pub fn state(&self) -> PathBuf {
        self.folder.join("state")
    }

    /// `KITBAG_RUN`: bundles of other sandboxes are not seen.
    pub fn run(&self) -> PathBuf {
        self.folder.join("run")
    }

    /// `program` with an environment that has these places and `PATH` alone, working at home.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Cmd {
        Cmd::new(program)
            .bare()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env(MARK, self.path())
            .env("HOME", self.home())
            .env("KITBAG_STORE", self.store())
            .env("KITBAG_STATE", self.state())
            .env("KITBAG_RUN", self.run())
            .cwd(self.home())
    }

    /// The processes that run in it: those whose environment names it.
    pub fn processes(&self) -> Vec<i32> {
        processes(self.path())
    }

    /// The folders of the unpacked trees in the store.
    pub fn trees(&self) -> Vec<PathBuf> {
        let all = fs::read_dir(self.store().join("v1/trees")).into_iter().flatten().flatten();
        let mut all: Vec<PathBuf> = all.map(|entry| entry.path()).collect();
        all.sort();
        all
    }

    /// Where the one unpacked tree is.
    #[track_caller]
    pub fn tree(&self) -> PathBuf {
        let trees = self.trees();
        assert_eq!(trees.len(), 1, "{trees:?}");
        trees[0].join("tree")
    }

    /// The names in the store's folder of unfinished work.
    pub fn work(&self) -> Vec<String> {
        let all = fs::read_dir(self.store().join("v1/work")).into_iter().flatten().flatten();
        all.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        kill_all(self.path());
    }
}

/// The processes whose environment names this folder as their sandbox.
fn processes(sandbox: &Path) -> Vec<i32> {
    let mark = format!("{MARK}={}\0", sandbox.display());
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    ids.filter(|id| has_text(&format!("/proc/{id}/environ"), mark.as_bytes())).collect()
}

/// Kills them.
pub(crate) fn kill_all(sandbox: &Path) {
    for id in processes(sandbox) {
        let _ = kill(Pid::from_raw(id), Signal::SIGKILL);
    }
}

fn has_text(path: &str, text: &[u8]) -> bool {
    fs::read(path).is_ok_and(|bytes| bytes.windows(text.len()).any(|window| window == text))
}

/// A packed file, and the sandbox where it is started.
#[derive(Debug)]
pub struct Bundle {
    /// The file.
    pub file: PathBuf,
    /// What `kitbag pack` printed.
    pub printed: String,
    /// The places.
    pub sandbox: Sandbox,
}

impl Bundle {
    /// The file with these arguments, in the sandbox.
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Cmd {
        self.sandbox.command(&self.file).args(args)
    }

    /// Starts it with these arguments, to its end.
    #[track_caller]
    pub fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> crate::Outcome {
        self.command(args).run()
    }

    /// A copy of the file in a sandbox where it has never been started.
    pub fn fresh(&self) -> Self {
        let sandbox = Sandbox::new();
        let file = sandbox.path().join("bundle");
        copy(&self.file, &file);
        Self { file, printed: self.printed.clone(), sandbox }
    }

    /// Its bytes.
    pub fn bytes(&self) -> Vec<u8> {
        fs::read(&self.file).expect("the bundle")
    }

    /// Opened by the library.
    pub fn open(&self) -> kitbag_format::Bundle {
        kitbag_format::Bundle::open_path(&self.file).expect("a whole bundle")
    }

    /// The digest that `kitbag pack` printed.
    #[track_caller]
    pub fn digest(&self) -> String {
        let line = self.printed.lines().find_map(|line| line.strip_prefix("digest"));
        line.expect("a line with the digest").trim().to_owned()
    }
}

/// Copies by a process of its own: this one's other threads must not inherit a descriptor that writes to what is
/// going to be executed.
pub fn copy(from: &Path, to: &Path) {
    let copied = std::process::Command::new("cp").arg("--preserve=mode").args([from, to]).status();
    assert!(copied.is_ok_and(|status| status.success()), "cp {} {}", from.display(), to.display());
}
