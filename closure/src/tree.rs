//! Looking up paths in a tree, symbolic links followed.

use std::collections::BTreeMap;

/// The kernel follows as many links in one path (path_resolution(7)).
const MOST_LINKS: usize = 40;

/// What is at one place of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// A symbolic link, and what it says.
    Link(Vec<u8>),
    /// A folder.
    Folder,
    /// Anything else.
    File,
}

/// The files that go into a bundle. Paths are relative to the tree, the tree itself is the empty path.
pub trait Tree {
    /// The path without links of what is at a path, which may hold `.`, `..` and links. None if there is nothing, or it
    /// leads out of the tree.
    fn find(&self, path: &[u8]) -> Option<Vec<u8>>;
}

/// A [`Tree`] as a list. Folders of what is added are there without being added.
#[derive(Debug, Clone, Default)]
pub struct Listing(BTreeMap<Vec<u8>, Node>);

impl Listing {
    /// Adds what is at a path.
    pub fn add(&mut self, path: impl Into<Vec<u8>>, node: Node) {
        let path = path.into();
        let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
        for (end, _) in slashes {
            self.0.entry(path[..end].to_vec()).or_insert(Node::Folder);
        }
        self.0.insert(path, node);
    }
}

impl Tree for Listing {
    fn find(&self, path: &[u8]) -> Option<Vec<u8>> {
        walk(path, false, &|path| self.0.get(path).cloned())
    }
}

/// Follows a path from the root of a tree, as path_resolution(7) says. `look` tells what is at a path without links.
/// With `is_root`, an absolute link begins anew at that root and `..` stays there; without, both lead out.
pub(crate) fn walk(path: &[u8], is_root: bool, look: &dyn Fn(&[u8]) -> Option<Node>) -> Option<Vec<u8>> {
    let (mut at, mut links) = (Vec::new(), 0);
    let mut rest: Vec<Vec<u8>> = parts(path).collect();
    while let Some(part) = rest.pop() {
        match part.as_slice() {
            b"" | b"." => {}
            b".." if at.is_empty() && !is_root => return None,
            b".." => at.truncate(parent(&at).len()),
            name => {
                let next = join(&at, name);
                match look(&next)? {
                    Node::Link(_) if links == MOST_LINKS => return None,
                    Node::Link(target) => {
                        links += 1;
                        if target.starts_with(b"/") {
                            is_root.then(|| at.clear())?;
                        }
                        rest.extend(parts(&target));
                    }
                    Node::File if !rest.is_empty() => return None,
                    Node::File | Node::Folder => at = next,
                }
            }
        }
    }
    Some(at)
}

/// The parts of a path, the last first.
fn parts(path: &[u8]) -> impl Iterator<Item = Vec<u8>> + '_ {
    path.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec)
}

/// The folder that holds a path: empty for what is in the tree itself.
pub(crate) fn parent(path: &[u8]) -> &[u8] {
    path.iter().rposition(|byte| *byte == b'/').map_or(&[], |end| &path[..end])
}

/// The last part of a path.
pub(crate) fn name(path: &[u8]) -> &[u8] {
    path.iter().rposition(|byte| *byte == b'/').map_or(path, |end| &path[end + 1..])
}

/// A name in a folder.
pub(crate) fn join(folder: &[u8], name: &[u8]) -> Vec<u8> {
    if folder.is_empty() { name.to_vec() } else { [folder, b"/", name].concat() }
}

/// How a folder of a tree is reached from another one: `..` for each step up. Empty if they are the same.
pub(crate) fn relative(from: &[u8], to: &[u8]) -> Vec<u8> {
    let split = |path: &[u8]| parts(path).filter(|part| !part.is_empty()).collect::<Vec<_>>();
    let (mut from, mut to) = (split(from), split(to));
    while from.last().is_some_and(|part| to.last() == Some(part)) {
        from.pop();
        to.pop();
    }
    let up = from.iter().map(|_| b"..".to_vec());
    up.chain(to.into_iter().rev()).collect::<Vec<_>>().join(&b'/')
}
