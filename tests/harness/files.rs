//! Folders that go away, and what is in folders.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// A temporary folder; removed with all that is in it when dropped, read-only folders too.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// A new empty one, which every user may look into.
    #[expect(clippy::new_without_default, reason = "it makes something")]
    pub fn new() -> Self {
        Self::within(&std::env::temp_dir())
    }

    /// A new empty one in another folder.
    pub fn within(parent: &Path) -> Self {
        let folder = tempfile::Builder::new().prefix("kitbag-tests-").tempdir_in(parent);
        let path = folder.expect("a temporary folder").keep();
        fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("chmod");
        Self(path)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A path in it.
    pub fn join(&self, path: impl AsRef<Path>) -> PathBuf {
        self.0.join(path)
    }

    /// A new folder in it, with its parents.
    pub fn dir(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = self.join(path);
        fs::create_dir_all(&path).expect("a folder");
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        open_up(&self.0);
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Makes folders writable, so that what is in them can be removed.
fn open_up(path: &Path) {
    if crate::is_root() {
        return;
    }
    let _ = fs::set_permissions(path, Permissions::from_mode(0o755));
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            open_up(&entry.path());
        }
    }
}

/// A file system in memory on a folder; unmounted when dropped.
#[derive(Debug)]
pub struct Tmpfs(Folder);

impl Tmpfs {
    /// Mounts one; `options` as in tmpfs(5), `size=8m`. The test has asked [`crate::mounts`] before.
    pub fn new(options: &str, noexec: bool) -> Self {
        let folder = Folder::new();
        let flags = if noexec { MsFlags::MS_NOEXEC } else { MsFlags::empty() };
        mount(Some("tmpfs"), folder.path(), Some("tmpfs"), flags, Some(options)).expect("mount tmpfs");
        Self(folder)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = umount2(self.0.path(), MntFlags::MNT_DETACH);
    }
}

/// Bytes that a folder takes on the disk, what has several names counted once; as du(1) counts.
pub fn disk_usage<'a>(folders: impl IntoIterator<Item = &'a Path>) -> u64 {
    let mut seen = HashSet::new();
    folders.into_iter().map(|folder| usage(folder, &mut seen)).sum()
}

fn usage(path: &Path, seen: &mut HashSet<(u64, u64)>) -> u64 {
    let Ok(metadata) = fs::symlink_metadata(path) else { return 0 };
    if !seen.insert((metadata.dev(), metadata.ino())) {
        return 0;
    }
    let below = fs::read_dir(path).into_iter().flatten().flatten();
    let below: u64 = if metadata.is_dir() { below.map(|entry| usage(&entry.path(), seen)).sum() } else { 0 };
    metadata.blocks() * 512 + below
}

/// Everything below a folder by path: what it is, whether it may be executed, and its contents or target.
pub fn snapshot(root: &Path) -> BTreeMap<PathBuf, (char, bool, Vec<u8>)> {
    let mut all = BTreeMap::new();
    collect(root, root, &mut all);
    all
}

fn collect(root: &Path, folder: &Path, all: &mut BTreeMap<PathBuf, (char, bool, Vec<u8>)>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let metadata = fs::symlink_metadata(&path).expect("metadata");
        let executable = metadata.is_file() && metadata.mode() & 0o111 != 0;
        let what = if metadata.is_dir() {
            collect(root, &path, all);
            ('d', false, Vec::new())
        } else if metadata.is_symlink() {
            ('l', false, fs::read_link(&path).expect("a link").into_os_string().into_encoded_bytes())
        } else {
            ('f', executable, fs::read(&path).expect("a file"))
        };
        all.insert(path.strip_prefix(root).expect("below").to_owned(), what);
    }
}

/// Fails with the first difference unless both folders hold the same.
#[track_caller]
pub fn same_tree(expected: &Path, found: &Path) {
    let (expected, found) = (snapshot(expected), snapshot(found));
    let paths: Vec<_> = expected.keys().chain(found.keys()).collect();
    for path in paths {
        let (one, other) = (expected.get(path), found.get(path));
        let brief = |what: Option<&(char, bool, Vec<u8>)>| {
            what.map(|(kind, x, bytes)| format!("{kind}, executable {x}, {} bytes", bytes.len()))
        };
        assert!(one == other, "{}: expected {:?}, found {:?}", path.display(), brief(one), brief(other));
    }
}
