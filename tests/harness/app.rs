//! A project to pack.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::{Bundle, Cmd, Folder, Outcome, Sandbox, copy};

/// A folder with a `kitbag.toml`; what lies in its folder `tree` is what goes in.
#[derive(Debug)]
pub struct App {
    /// Holds folders while the app lives.
    folders: Vec<Folder>,
    dir: PathBuf,
}

impl App {
    /// Name, version, and all of `tree`; `manifest` goes on from there: `command = …` first, then tables.
    pub fn new(manifest: &str) -> Self {
        let (top, tables) = manifest.split_at(
            manifest
                .find('[')
                .filter(|_| manifest.starts_with('['))
                .unwrap_or_else(|| manifest.find("\n[").map_or(manifest.len(), |at| at + 1)),
        );
        Self::with_manifest(&format!(
            "name = \"app\"\nversion = \"1.0.0\"\n{top}\n[[include]]\nfrom = \"tree\"\nto = \".\"\n{tables}\n"
        ))
    }

    /// With this `kitbag.toml`, and a folder `tree` that is empty.
    pub fn with_manifest(text: &str) -> Self {
        let folder = Folder::new();
        let dir = folder.dir("app");
        folder.dir("app/tree");
        fs::write(dir.join("kitbag.toml"), text).expect("kitbag.toml");
        Self { folders: vec![folder], dir }
    }

    /// A tool: the program of `fixtures/hello-c`.
    pub fn tool() -> Self {
        Self::new("command = [\"bin/hello\"]\n").program("bin/hello", crate::hello())
    }

    /// A service bundle of one of `fixtures/helpers`: service `web`, with these arguments and further lines.
    pub fn service(helper: &str, args: &[&str], more: &str) -> Self {
        let args: String = args.iter().map(|arg| format!(", \"{arg}\"")).collect();
        Self::new(&format!("[services.web]\nargv = [\"bin/{helper}\"{args}]\n{more}\n")).helper(helper)
    }

    /// A project that is there already.
    pub fn at(dir: &Path) -> Self {
        Self { folders: Vec::new(), dir: dir.to_owned() }
    }

    /// The same, and this folder lives as long as it: libraries that are found there while it is packed.
    #[must_use]
    pub fn keeping(mut self, folder: Folder) -> Self {
        self.folders.push(folder);
        self
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A path in the folder of what goes in.
    pub fn tree(&self, path: impl AsRef<Path>) -> PathBuf {
        self.dir.join("tree").join(path)
    }

    /// A file that goes in.
    #[must_use]
    pub fn file(self, path: impl AsRef<Path>, bytes: impl AsRef<[u8]>) -> Self {
        let path = self.tree(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(path, bytes).expect("a file");
        self
    }

    /// A file of `tree` may be executed.
    #[must_use]
    pub fn executable(self, path: &str) -> Self {
        fs::set_permissions(self.tree(path), Permissions::from_mode(0o755)).expect("chmod");
        self
    }

    /// A copy of a program goes in.
    #[must_use]
    pub fn program(self, path: &str, from: &Path) -> Self {
        let path = self.tree(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        copy(from, &path);
        fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("chmod");
        self
    }

    /// A helper goes in, below `bin/`.
    #[must_use]
    pub fn helper(self, name: &str) -> Self {
        self.program(&format!("bin/{name}"), &crate::helper(name))
    }

    /// `kitbag pack` of it to `output`, with more arguments.
    pub fn pack_to<S: AsRef<OsStr>>(&self, output: &Path, args: impl IntoIterator<Item = S>) -> Cmd {
        Cmd::kitbag(["pack"]).arg(&self.dir).arg("-o").arg(output).args(args)
    }

    /// Packs it; the bundle has a sandbox of its own.
    #[track_caller]
    pub fn pack(&self) -> Bundle {
        let sandbox = Sandbox::new();
        let file = sandbox.path().join("bundle");
        let outcome = self.pack_to(&file, [""; 0]).run().succeeds();
        Bundle { file, printed: outcome.text(), sandbox }
    }

    /// Packs it where that has to fail with this exit status, and asserts that nothing was written.
    #[track_caller]
    pub fn refused(&self, code: i32) -> Outcome {
        let folder = Folder::new();
        let outcome = self.pack_to(&folder.join("bundle"), [""; 0]).run().exits(code);
        let left = fs::read_dir(folder.path()).expect("the folder").count();
        outcome.check(left == 0, "nothing written")
    }
}
