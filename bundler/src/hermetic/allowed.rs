//! What the app may use, and where a path really leads.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use kitbag_format::port::DEVICES;
use kitbag_format::slots::is_in_closure;

/// Names of what is inherited, which is never reported either.
const DESCRIPTORS: &[&str] = &["/dev/fd", "/dev/stdin", "/dev/stdout", "/dev/stderr"];

/// The files and folders that are the app's, or that its manifest names.
#[derive(Debug, Default)]
pub struct Allowed {
    /// Where the runtime unpacks, a real path.
    store: PathBuf,
    /// The unpacked tree, a real path.
    tree: PathBuf,
    /// Everything, real paths.
    roots: Vec<PathBuf>,
}

impl Allowed {
    /// The tree of the bundle with this digest in a store (docs/architecture.md, "The store"), and other files and
    /// folders. A link among these counts by itself, and so does what it leads to.
    pub fn new<'a>(store: &Path, digest: &str, others: impl IntoIterator<Item = &'a Path>) -> Self {
        let store = real(store, true);
        let home = store.join("v1/trees").join(digest);
        let mut roots = vec![home.clone()];
        for path in others {
            roots.extend([real(path, true), real(path, false)]);
        }
        Self { store, tree: home.join("tree"), roots }
    }

    /// True for a real path that may be used.
    pub fn has(&self, path: &Path) -> bool {
        self.roots.iter().any(|root| path.starts_with(root)) || is_device(path) || self.is_closure(path)
    }

    /// True for the closure of any tree in the store: equal ones stand for each other (docs/closure.md).
    fn is_closure(&self, path: &Path) -> bool {
        let Ok(path) = path.strip_prefix(self.store.join("v1/trees")) else { return false };
        let path: PathBuf = path.components().skip(1).collect();
        path.strip_prefix("tree").is_ok_and(|path| is_in_closure(path.as_os_str().as_bytes()))
    }

    /// True for a folder that leads to something that may be used.
    pub fn leads_to(&self, path: &Path) -> bool {
        self.roots.iter().any(|root| root.starts_with(path)) || Path::new("/dev/pts").starts_with(path)
    }

    /// True for a real path beside the tree: who looks for something there has gone up from its own folder.
    pub fn is_beside(&self, path: &Path) -> bool {
        path.starts_with(&self.store)
    }

    /// True for a path in the tree that no link can lead out of it: the tree has none that does.
    pub fn is_plainly_in_tree(&self, path: &Path) -> bool {
        path.starts_with(&self.tree) && !path.components().any(|part| part == Component::ParentDir)
    }

    /// How a program is called: by its place in the tree, if it is there.
    pub fn name(&self, program: &Path) -> String {
        program.strip_prefix(&self.tree).unwrap_or(program).display().to_string()
    }
}

/// True for the devices that every program may use, and for its descriptors.
pub fn is_device(path: &Path) -> bool {
    DEVICES.iter().chain(DESCRIPTORS).any(|device| path.starts_with(device))
}

/// An absolute path without `.`, `..` and doubled `/`, by its letters alone.
pub fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => plain.push(name),
            Component::ParentDir => drop(plain.pop()),
            _ => {}
        }
    }
    plain
}

/// Where an absolute path leads once links are resolved in the part of it that is there; in the last name only if
/// `follow`.
pub fn real(path: &Path, follow: bool) -> PathBuf {
    if let (true, Ok(real)) = (follow, fs::canonicalize(path)) {
        return real;
    }
    for above in path.ancestors().skip(1) {
        if let (Ok(real), Ok(rest)) = (fs::canonicalize(above), path.strip_prefix(above)) {
            return plain(&real.join(rest));
        }
    }
    plain(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::{Allowed, plain, real};

    #[test]
    fn a_path_is_plain_without_asking_the_disk() {
        for (path, expected) in [("/a/./b//c/", "/a/b/c"), ("/a/../../b", "/b"), ("/", "/"), ("/..", "/")] {
            assert_eq!(plain(Path::new(path)), Path::new(expected));
        }
    }

    #[test]
    fn what_a_link_leads_to_counts() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let root = folder.path().canonicalize().expect("a path");
        let path = |name: &str| root.join(name);
        for name in ["store/v1/trees/1/tree", "state", "out"] {
            std::fs::create_dir_all(path(name)).expect("a folder");
        }
        symlink(path("out"), path("state/out")).expect("a link");
        symlink(path("state"), path("other")).expect("a link");
        let allowed = Allowed::new(&path("store"), "1", [path("other").as_path()]);
        assert!(allowed.has(&real(&path("state/new"), true)) && allowed.has(&real(&path("other/x"), true)));
        assert!(!allowed.has(&real(&path("state/out/x"), true)), "it leads out");
        assert!(!allowed.has(&real(&path("state/../out"), true)));
        assert!(allowed.has(&real(&path("state/out"), false)), "the link itself");
        assert!(allowed.leads_to(&root) && !allowed.leads_to(&path("out")));
        assert!(allowed.has(&path("store/v1/trees/2/tree/.kitbag/lib/libc.so.6")));
        assert!(!allowed.has(&path("store/v1/trees/2/tree/x")));
        assert!(allowed.is_plainly_in_tree(&path("store/v1/trees/1/tree/x")));
        assert!(!allowed.is_plainly_in_tree(&path("store/v1/trees/1/tree/../../out")));
        assert_eq!(allowed.name(&path("store/v1/trees/1/tree/bin/x")), "bin/x");
        assert_eq!(allowed.name(Path::new("/bin/sh")), "/bin/sh");
    }
}
