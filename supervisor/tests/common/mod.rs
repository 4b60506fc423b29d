//! Small bundles made by hand, and folders that vanish with the test.
#![allow(dead_code, missing_docs)]

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use kitbag_format::index::{Entry, Kind};
use kitbag_format::manifest::{Command, Run};
use kitbag_format::slots::{Paths, Slot, fill};
use kitbag_format::writer::Writer;
use kitbag_format::{Bundle, Digest, Index, Manifest};
use kitbag_supervisor::store::closure;
use kitbag_supervisor::store::unpack::{Compare, Opening, Tree, open_tree};
use kitbag_supervisor::store::{Store, StoreError};

/// Bytes of tar in a frame.
const FRAME: usize = 64 << 10;

/// A folder that goes with its guard.
pub struct Temp(pub PathBuf);

impl Temp {
    pub fn new() -> Self {
        Self::below(&std::env::temp_dir())
    }

    pub fn below(parent: &Path) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("kitbag-test-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Self(path.canonicalize().unwrap())
    }

    pub fn join(&self, path: &str) -> PathBuf {
        self.0.join(path)
    }

    /// A store with all its folders.
    pub fn store(&self) -> Store {
        let place = self.join("store");
        for name in ["v1/trees", "v1/locks", "v1/work"] {
            fs::create_dir_all(place.join(name)).unwrap();
        }
        Store::at(place)
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = kitbag_supervisor::store::remove(&self.0);
    }
}

/// What goes into a bundle.
pub struct App {
    pub manifest: Manifest,
    entries: Vec<Entry>,
    contents: Vec<Vec<u8>>,
}

impl App {
    pub fn new(name: &str, version: &str) -> Self {
        let run = Run::Command(Command { argv: vec!["bin/app".into()], ..Command::default() });
        let manifest = Manifest {
            name: name.into(),
            version: version.into(),
            description: String::new(),
            requires: vec![],
            run,
            seeds: vec![],
            tasks: Default::default(),
            logs: Default::default(),
        };
        Self { manifest, entries: vec![], contents: vec![] }
    }

    fn add(mut self, path: &str, kind: Kind, content: &[u8]) -> Self {
        self.entries.push(Entry { path: path.into(), kind, header: 512 });
        self.contents.push(content.to_vec());
        self
    }

    pub fn dir(self, path: &str) -> Self {
        self.add(path, Kind::Dir, b"")
    }

    pub fn file(self, path: &str, content: &[u8]) -> Self {
        self.add(path, file(content, false, &[]), content)
    }

    pub fn program(self, path: &str, content: &[u8]) -> Self {
        self.add(path, file(content, true, &[]), content)
    }

    pub fn slotted(self, path: &str, content: &[u8], slots: &[Slot]) -> Self {
        self.add(path, file(content, true, slots), content)
    }

    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.add(path, Kind::Symlink(target.into()), b"")
    }

    pub fn link(self, path: &str, to: &str) -> Self {
        let number = self.entries.iter().position(|entry| entry.path == to.as_bytes()).unwrap();
        self.add(path, Kind::Link(number), b"")
    }

    /// The app that most tests use: every kind of entry, a file cut by frames, one of zeros.
    pub fn sample(version: &str) -> Self {
        Self::new("sample", version)
            .dir("bin")
            .program("bin/app", &noise(1, 150_000))
            .link("bin/same", "bin/app")
            .symlink("bin/also", "app")
            .dir("share")
            .dir("share/deep")
            .file("share/deep/a.txt", b"a text")
            .file("share/empty", b"")
            .file("share/zeros", &vec![0; 200_000])
            .file("share/version", version.as_bytes())
    }

    /// Writes the bundle and opens it.
    pub fn pack(&self, path: &Path) -> Bundle {
        let (runtime, head_at) = runtime();
        self.pack_with(&runtime, head_at, path)
    }

    /// The same with this runtime, whose head is there.
    pub fn pack_with(&self, runtime: &[u8], head_at: u64, path: &Path) -> Bundle {
        let mut tar = Vec::new();
        for content in &self.contents {
            tar.resize(tar.len() + 512, 7);
            tar.extend_from_slice(content);
            tar.resize(tar.len().next_multiple_of(512), 0);
        }
        tar.resize(tar.len() + 1024, 0);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path).unwrap();
        let mut writer = Writer::new(file, runtime, head_at).unwrap();
        for raw in tar.chunks(FRAME) {
            let mut packed = vec![0; zstd_safe::compress_bound(raw.len())];
            let length = zstd_safe::compress(packed.as_mut_slice(), raw, 1).unwrap();
            packed.truncate(length);
            writer.frame(&packed, raw.len() as u32, Digest::of(&packed), Digest::of(raw)).unwrap();
        }
        let index = Index { frames: vec![], entries: self.entries.clone() };
        drop(writer.finish(index, &self.manifest.to_text(), self.manifest.is_tool()).unwrap());
        Bundle::open_path(path).unwrap()
    }

    /// The path of the closure in the store that the tree at `root` is in; `None` if the app has none.
    pub fn closure_beside(&self, root: &Path) -> Option<PathBuf> {
        let digest = closure::digest(&Index { frames: vec![], entries: self.entries.clone() })?;
        Some(root.ancestors().nth(3)?.join("closures").join(digest.to_string()))
    }

    /// Asserts that the tree is what was packed, and nothing else.
    pub fn assert_right(&self, root: &Path) {
        let mut names: Vec<String> = walk(root);
        let mut expected: Vec<String> =
            self.entries.iter().map(|entry| String::from_utf8(entry.path.clone()).unwrap()).collect();
        names.sort();
        expected.sort();
        assert_eq!(names, expected);
        assert_eq!(mode(root), 0o555);
        let closure = self.closure_beside(root);
        let paths = Paths { tree: root, closure: closure.as_deref().filter(|path| path.exists()) };
        for (entry, content) in self.entries.iter().zip(&self.contents) {
            let name = std::str::from_utf8(&entry.path).unwrap();
            let path = root.join(name);
            match &entry.kind {
                Kind::Dir => assert_eq!(mode(&path), 0o555, "{name}"),
                Kind::File { executable, .. } => {
                    let expected = filled(content, entry.slots(), &paths);
                    assert!(fs::read(&path).unwrap() == expected, "content of {name}");
                    assert_eq!(mode(&path), if *executable { 0o555 } else { 0o444 }, "{name}");
                }
                Kind::Symlink(target) => {
                    assert_eq!(fs::read_link(&path).unwrap().to_str().unwrap().as_bytes(), target);
                }
                Kind::Link(to) => {
                    let expected = filled(&self.contents[*to], self.entries[*to].slots(), &paths);
                    assert!(fs::read(&path).unwrap() == expected, "content of {name}")
                }
            }
        }
    }
}

fn file(content: &[u8], executable: bool, slots: &[Slot]) -> Kind {
    Kind::File { size: content.len() as u64, digest: Digest::of(content), executable, slots: slots.to_vec() }
}

pub fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

/// What a file holds in a tree that these paths lead to.
fn filled(content: &[u8], slots: &[Slot], paths: &Paths) -> Vec<u8> {
    let mut filled = content.to_vec();
    for slot in slots {
        let range = slot.at as usize..slot.end() as usize;
        filled[range.clone()].copy_from_slice(&fill(&content[range], slot.pad, paths).unwrap());
    }
    filled
}

/// Paths below a folder.
pub fn walk(root: &Path) -> Vec<String> {
    let mut names = Vec::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
            names.push(entry.path().strip_prefix(root).unwrap().to_str().unwrap().to_owned());
            if entry.file_type().unwrap().is_dir() {
                todo.push(entry.path());
            }
        }
    }
    names
}

/// Bytes that look random and are always the same for a seed (xorshift).
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut bytes: Vec<u8> = (0..length.div_ceil(8)).flat_map(|_| next()).collect();
    bytes.truncate(length);
    bytes
}

/// An ELF file that is all header: one note segment with an empty head, and a section table of names.
pub fn runtime() -> (Vec<u8>, u64) {
    let names = b"\0.shstrtab\0";
    let (note, head) = (64 + 56, 64 + 56 + 12 + 8);
    let strings = head + 1024;
    let table = strings + names.len().next_multiple_of(8);
    let mut elf = vec![0; table + 2 * 64];
    let mut put = |at: usize, bytes: &[u8]| elf[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01\x01");
    put(32, &64u64.to_le_bytes());
    put(40, &(table as u64).to_le_bytes());
    put(56, &1u16.to_le_bytes());
    put(60, &2u16.to_le_bytes());
    put(62, &1u16.to_le_bytes());
    put(64, &4u32.to_le_bytes());
    put(64 + 8, &(note as u64).to_le_bytes());
    put(64 + 32, &((head + 1024 - note) as u64).to_le_bytes());
    put(note, &7u32.to_le_bytes());
    put(note + 4, &1024u32.to_le_bytes());
    put(note + 8, &1u32.to_le_bytes());
    put(note + 12, b"kitbag\0");
    put(strings, names);
    put(table + 64, &1u32.to_le_bytes());
    put(table + 64 + 4, &3u32.to_le_bytes());
    put(table + 64 + 24, &(strings as u64).to_le_bytes());
    put(table + 64 + 32, &(names.len() as u64).to_le_bytes());
    (elf, head as u64)
}

/// What a start said.
pub type Said = Vec<String>;

/// A start that compares everything.
pub fn start(store: &Store, bundle: &Bundle) -> Result<(Tree, Said), StoreError> {
    start_with(store, bundle, Compare::Everything)
}

pub fn start_with(store: &Store, bundle: &Bundle, compare: Compare) -> Result<(Tree, Said), StoreError> {
    let said = std::sync::Mutex::new(Vec::new());
    let say = |sentence: &str| said.lock().unwrap().push(sentence.to_owned());
    let manifest = bundle.manifest()?;
    let tree = open_tree(store, &Opening { bundle, manifest: &manifest, compare, say: &say })?;
    Ok((tree, said.into_inner().unwrap()))
}

/// Bytes on the disk below a folder, each inode once.
pub fn disk_usage(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let mut seen = std::collections::BTreeSet::new();
    let all = walk(path).into_iter().map(|name| fs::symlink_metadata(path.join(name)).unwrap());
    all.filter(|found| seen.insert(found.ino())).map(|found| found.blocks() * 512).sum()
}

/// Runs one test of this program again as a child process, as itself with another role.
pub fn child(test: &str, variables: &[(&str, &Path)]) -> std::process::Command {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--ignored", "--nocapture"]);
    command.envs(variables.iter().map(|(name, value)| (name.to_string(), value.as_os_str().to_owned())));
    command
}

pub fn open(path: &Path) -> File {
    File::open(path).unwrap()
}
