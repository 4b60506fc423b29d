//! A bundle's tree as it stands on a target: rewritten programs and libraries with their slots filled in.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs, str};

use kitbag_closure::rewrite::{Edits, Request, Slot, TREE, rewrite};

use crate::structure;

/// True if all these commands are installed; else says that the test did not run, and it has to return.
pub fn tools(names: &[&str]) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    let is_there = |name: &str| env::split_paths(&path).any(|folder| folder.join(name).is_file());
    let missing: Vec<&str> = names.iter().copied().filter(|name| !is_there(name)).collect();
    if missing.is_empty() {
        return true;
    }
    let line =
        format!("NOT RUN {}: needs {}", std::thread::current().name().unwrap_or("?"), missing.join(", "));
    println!("{line}");
    if let Some(list) = env::var_os("KITBAG_TESTS_NOT_RUN") {
        let before = fs::read_to_string(&list).unwrap_or_default();
        fs::write(list, format!("{before}{line}\n")).expect("the list of tests that did not run");
    }
    assert!(env::var_os("CI").is_none_or(|ci| ci != "true"), "{line}");
    false
}

/// A search path from its text.
pub fn folders(text: &str) -> Vec<Vec<u8>> {
    text.split(':').filter(|folder| !folder.is_empty()).map(|folder| folder.as_bytes().to_vec()).collect()
}

pub fn program(loader: &str, rpath: &str) -> Request {
    let interpreter = Some(loader.as_bytes().to_vec());
    Request { interpreter, rpath: folders(rpath), ..Request::default() }
}

pub fn library(rpath: &str) -> Request {
    Request { rpath: folders(rpath), ..Request::default() }
}

/// Fills a slot in as the runtime does.
fn fill(bytes: &mut [u8], slot: Slot, tree: &str) {
    let at = slot.at as usize;
    let range = &mut bytes[at..at + slot.length as usize];
    let text: Vec<u8> = range.iter().copied().take_while(|&byte| byte != 0).collect();
    let text = String::from_utf8(text).expect("UTF-8").replace(TREE, tree);
    assert!(text.len() <= range.len(), "{text} does not fit into {slot:?}");
    range.fill(0);
    range[..text.len()].copy_from_slice(text.as_bytes());
    assert_eq!(bytes[at + slot.length as usize], 0, "a NUL behind {slot:?}");
}

/// Runs a command, with everything of it in the message if it fails.
pub fn run(command: &mut Command) -> String {
    let output = output(command);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{out}{err}", output.status);
    out
}

/// Tries again while the program is busy: a process that another test starts holds what we write open, until it
/// executes (ETXTBSY, execve(2)).
fn output(command: &mut Command) -> Output {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let output = command.stdin(Stdio::null()).output();
        let busy = match &output {
            Ok(output) => String::from_utf8_lossy(&output.stderr).contains("Text file busy"),
            Err(error) => error.kind() == ErrorKind::ExecutableFileBusy,
        };
        if !busy || Instant::now() > deadline {
            return output.unwrap_or_else(|error| panic!("{command:?}: {error}"));
        }
        std::thread::yield_now();
    }
}

/// A root folder that holds a tree and nothing else.
pub struct Tree {
    root: tempfile::TempDir,
    /// The tree's path as the programs in it see it.
    pub place: String,
    is_root: bool,
}

impl Tree {
    /// A tree that programs run in as their whole world, if the tests may chroot; else it is used where it lies.
    pub fn new() -> Self {
        let is_root = run(Command::new("id").arg("-u")).trim() == "0";
        if is_root { Self::with(|_| "/opt/ein Bäumchen/tree".into(), true) } else { Self::in_place() }
    }

    /// A tree that is used where it lies.
    pub fn in_place() -> Self {
        Self::with(|root| format!("{}/tree", root.display()), false)
    }

    fn with(place: impl Fn(&Path) -> String, is_root: bool) -> Self {
        let root = tempfile::tempdir().expect("a folder");
        let place = place(root.path());
        Self { root, place, is_root }
    }

    /// Where a file of the tree is for the test.
    pub fn path(&self, name: &str) -> PathBuf {
        let tree = PathBuf::from(&self.place);
        let tree = if self.is_root { self.root.path().join(tree.strip_prefix("/").unwrap()) } else { tree };
        tree.join(name)
    }

    /// Puts a file into the tree, changed as `request` says.
    pub fn put(&self, source: &Path, name: &str, request: &Request) -> Edits {
        let bytes = fs::read(source).expect("a file");
        let edits = rewrite(&bytes, request).unwrap_or_else(|error| panic!("{}: {error}", source.display()));
        let mut new = edits.apply(&bytes);
        structure::check(&bytes, &new, request, &edits);
        for slot in &edits.slots {
            fill(&mut new, *slot, &self.place);
        }
        self.write(name, &new);
        edits
    }

    /// git does not start without this file, of whatever kind.
    pub fn put_null(&self) {
        fs::create_dir_all(self.root.path().join("dev")).unwrap();
        fs::write(self.root.path().join("dev/null"), b"").unwrap();
    }

    pub fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Puts a glibc program into `bin/`, and what it needs into `.kitbag/lib/`.
    pub fn add(&self, source: &Path) -> Edits {
        self.add_needs(source);
        let name = source.file_name().and_then(OsStr::to_str).expect("a name");
        let loader = loader_of(source).expect("an interpreter");
        let loader = Path::new(&loader).file_name().and_then(OsStr::to_str).expect("a name").to_string();
        let rpath = format!("{TREE}/lib:{TREE}/.kitbag/lib");
        self.put(source, &format!("bin/{name}"), &program(&format!("{TREE}/.kitbag/lib/{loader}"), &rpath))
    }

    /// What a program or library needs, as the loader of this machine says.
    pub fn add_needs(&self, source: &Path) {
        for (name, path) in needs(source) {
            let target = format!(".kitbag/lib/{name}");
            if !self.path(&target).exists() {
                let is_loader = name.starts_with("ld-linux");
                let edits = self.put(&path, &target, &Request { is_loader, ..Request::default() });
                assert!(edits.unpatched.is_empty() && edits.slots.is_empty(), "{name}: {edits:?}");
            }
        }
    }

    /// What a program of the tree prints, seeing nothing but the tree.
    pub fn run(&self, name: &str, args: &[&str]) -> String {
        run(self.command(name).args(args))
    }

    pub fn command(&self, name: &str) -> Command {
        let program = format!("{}/{name}", self.place);
        let mut command = Command::new(if self.is_root { "chroot" } else { &program });
        if self.is_root {
            command.arg(self.root.path()).arg(program);
        }
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command
    }
}

/// The text of `PT_INTERP`, if that is at the file's beginning as in every program that a linker made.
pub fn loader_of(program: &Path) -> Option<String> {
    let mut head = Vec::new();
    fs::File::open(program).ok()?.take(4096).read_to_end(&mut head).ok()?;
    let start = head.windows(5).position(|bytes| bytes == b"/lib/" || bytes == b"/lib6")?;
    let text = head[start..].split(|&byte| byte == 0).next()?;
    (head.starts_with(b"\x7fELF") && text.starts_with(b"/lib")).then(|| String::from_utf8_lossy(text).into())
}

/// Names and paths of loader and libraries, from `ldd`.
fn needs(program: &Path) -> BTreeSet<(String, PathBuf)> {
    let output = output(Command::new("ldd").arg(program).env("LD_LIBRARY_PATH", program.parent().unwrap()));
    let text = str::from_utf8(&output.stdout).expect("UTF-8");
    let lines = text.lines().filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            [name, "=>", path, _] => Some(((*name).to_string(), PathBuf::from(path))),
            [path, _] if path.starts_with('/') => {
                Some((path.rsplit('/').next().unwrap().to_string(), PathBuf::from(path)))
            }
            _ => None,
        }
    });
    lines.collect()
}

/// The ELF files with an interpreter below /usr/bin, each once.
pub fn installed_programs() -> Vec<PathBuf> {
    let names = fs::read_dir("/usr/bin").expect("/usr/bin").map(|entry| entry.unwrap().path());
    let files: BTreeSet<PathBuf> = names.filter_map(|path| path.canonicalize().ok()).collect();
    let is_ours = |path: &PathBuf| loader_of(path).is_some_and(|loader| loader.contains("/ld-linux-"));
    files.into_iter().filter(is_ours).collect()
}
