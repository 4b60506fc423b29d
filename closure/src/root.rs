//! A file system to look in: that of the build machine or a folder that holds another one.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::tree::{Node, walk};

/// A configuration file is not longer.
const LONGEST: u64 = 1 << 20;

/// A file system under a folder. Absolute links lead to places under that folder, and `..` never out of it, as if it
/// were the root. What was looked up once is remembered: one `Root` sees one state of the files.
#[derive(Debug)]
pub struct Root {
    folder: PathBuf,
    seen: RefCell<HashMap<Vec<u8>, Option<Node>>>,
}

/// A file or folder of a [`Root`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Where this machine has it.
    pub host: PathBuf,
    /// Its path from the root, absolute and without links.
    pub path: Vec<u8>,
}

impl Root {
    /// The file system under a folder: `/`, or a tree of another system.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        let folder = folder.into();
        Self { folder: fs::canonicalize(&folder).unwrap_or(folder), seen: RefCell::default() }
    }

    /// What a path from the root leads to, links followed.
    #[must_use]
    pub fn find(&self, path: &[u8]) -> Option<Found> {
        let path = [b"/", walk(path, true, &|path| self.look(path))?.as_slice()].concat();
        Some(Found { host: self.host(&path), path })
    }

    /// The path from this root of a file of this machine. None if it lies outside.
    #[must_use]
    pub fn inside(&self, host: &Path) -> Option<Vec<u8>> {
        let path = host.strip_prefix(&self.folder).ok()?;
        Some([b"/", path.as_os_str().as_bytes()].concat())
    }

    /// The names in a folder, sorted. Empty if there is none.
    #[must_use]
    pub fn list(&self, folder: &[u8]) -> Vec<Vec<u8>> {
        let Some(found) = self.find(folder) else { return Vec::new() };
        let entries = fs::read_dir(found.host).into_iter().flatten().flatten();
        let mut names: Vec<Vec<u8>> = entries.map(|entry| entry.file_name().into_vec()).collect();
        names.sort_unstable();
        names
    }

    /// A short file's content.
    #[must_use]
    pub fn read(&self, path: &[u8]) -> Option<Vec<u8>> {
        let file = fs::File::open(self.find(path)?.host).ok()?;
        let mut content = Vec::new();
        file.take(LONGEST).read_to_end(&mut content).ok()?;
        Some(content)
    }

    fn host(&self, path: &[u8]) -> PathBuf {
        let inside = path.strip_prefix(b"/").unwrap_or(path);
        self.folder.join(OsStr::from_bytes(inside))
    }

    fn look(&self, path: &[u8]) -> Option<Node> {
        if let Some(known) = self.seen.borrow().get(path) {
            return known.clone();
        }
        let node = node(&self.host(path));
        self.seen.borrow_mut().insert(path.to_vec(), node.clone());
        node
    }
}

fn node(path: &Path) -> Option<Node> {
    let kind = fs::symlink_metadata(path).ok()?.file_type();
    Some(match kind {
        _ if kind.is_symlink() => Node::Link(fs::read_link(path).ok()?.into_os_string().into_vec()),
        _ if kind.is_dir() => Node::Folder,
        _ => Node::File,
    })
}
