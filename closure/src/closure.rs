//! What a closure is made from, and what comes out: additions, changes, loads, and all that is wrong.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fmt, fs};

pub use crate::process::{Tried, Verdict};
pub use crate::rewrite::{Request, TREE};

use crate::facts::{Dlopen, ElfError, Facts, Target};
use crate::root::Root;
use crate::tree::Tree;

/// An ELF file that the user included.
#[derive(Debug, Clone)]
pub struct Member {
    /// Its path in the tree, without links.
    pub path: Vec<u8>,
    /// The file on this machine.
    pub source: PathBuf,
    /// What it says.
    pub facts: Facts,
}

/// What a closure is made from.
pub struct Input<'a> {
    /// The ELF files of the tree, in any order.
    pub members: &'a [Member],
    /// All paths of the tree: files, folders and links.
    pub tree: &'a dyn Tree,
    /// Where everything else is looked for.
    pub root: &'a Root,
    /// Reads a file that was found there; [`facts_of`] or a cache of it.
    pub read: &'a dyn Fn(&Path) -> Result<Option<Facts>, ElfError>,
}

/// Reads a file's facts from disk.
pub fn facts_of(path: &Path) -> Result<Option<Facts>, ElfError> {
    Facts::of_file(&fs::File::open(path)?)
}

/// What comes along, what changes, and what is wrong. Sorted: it depends on the files alone.
#[derive(Debug, Default)]
pub struct Closure {
    /// What comes along, by tree path.
    pub additions: BTreeMap<Vec<u8>, Addition>,
    /// Files that have to change, by tree path.
    pub requests: BTreeMap<Vec<u8>, Request>,
    /// For each program, by tree path: what is loaded at its start, in order. The loader first, without the program.
    pub loads: BTreeMap<Vec<u8>, Vec<Vec<u8>>>,
    /// Errors: what nothing provides.
    pub missing: Vec<Missing>,
    /// Errors: what cannot be, or not in a bundle.
    pub conflicts: Vec<Conflict>,
    /// Errors: versions that no library defines.
    pub unmet_versions: Vec<UnmetVersion>,
    /// What is worth saying and no error: recommended libraries that are missing, copies that are not used.
    pub remarks: Vec<Remark>,
    /// For each file that was found by a need: what needed it first.
    pub(crate) causes: BTreeMap<Vec<u8>, Cause>,
}

/// A file that comes along.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Addition {
    /// A file of the root.
    File {
        /// Where this machine has it.
        source: PathBuf,
        /// Its path on the root, without links.
        origin: Vec<u8>,
        /// What it says.
        facts: Box<Facts>,
    },
    /// A symbolic link: another name of an addition.
    Link(Vec<u8>),
    /// An empty file: musl's loader looks for it, so that it does not look on the host.
    Empty,
}

/// One need and what fulfils it: one link of a chain.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Link {
    /// Who needs it: a path in the tree, or an absolute one on the root for what comes along.
    pub from: Vec<u8>,
    /// The name that is asked for.
    pub name: Vec<u8>,
    /// Where it was found, likewise.
    pub to: Vec<u8>,
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = String::from_utf8_lossy;
        write!(f, "{} needs {}, found at {}", text(&self.from), text(&self.name), text(&self.to))
    }
}

/// Why a file was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Need {
    /// DT_NEEDED.
    Library,
    /// PT_INTERP.
    Interpreter,
    /// A note about dlopen.
    Dlopen(Dlopen),
}

/// A need that nothing fulfils.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// What is missing.
    pub name: Vec<u8>,
    /// Why it was asked for.
    pub need: Need,
    /// Who asks: a path in the tree, or an absolute one on the root.
    pub needed_by: Vec<u8>,
    /// How that came in, from an included file on. Empty if it is one.
    pub chain: Vec<Link>,
    /// Every place searched, and what was there.
    pub tried: Vec<Tried>,
    /// The class and machine it has to be for.
    pub target: Target,
}

/// What cannot be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Conflict {
    /// One process needs two different libraries of one name.
    TwoOfOneName {
        /// The soname.
        name: Vec<u8>,
        /// How the first one comes in.
        first: Vec<Link>,
        /// How the second one would.
        second: Vec<Link>,
    },
    /// In the bundle, something else would be found than on the build machine.
    Different {
        /// The program or plug-in.
        program: Vec<u8>,
        /// The name that is asked for.
        name: Vec<u8>,
        /// What the build machine finds: a path in the tree or on the root.
        wanted: Vec<u8>,
        /// What the bundle would.
        found: Option<Vec<u8>>,
    },
    /// A library is needed by a path, which search paths do not touch.
    NeededByPath {
        /// Who needs it.
        needed_by: Vec<u8>,
        /// The path.
        name: Vec<u8>,
    },
}

/// A version that the library in question does not define.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnmetVersion {
    /// Who needs it: a path in the tree, or an absolute one on the root.
    pub needed_by: Vec<u8>,
    /// How that came in, from an included file on.
    pub chain: Vec<Link>,
    /// The version.
    pub version: Vec<u8>,
    /// The library's name.
    pub library: Vec<u8>,
    /// The file that was found for it.
    pub file: Vec<u8>,
}

/// No error, but worth saying.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remark {
    /// A recommended library is nowhere.
    NotThere(Missing),
    /// A plug-in's own search path leads to a library, but its program has loaded another of that name before.
    OtherCopy {
        /// The name.
        name: Vec<u8>,
        /// How the one that is used comes in.
        used: Vec<Link>,
        /// How the other one would.
        unused: Vec<Link>,
    },
    /// A plug-in needs a library by name that its own search does not find, but that is in the tree: its program has to
    /// have loaded that before, by its path.
    LoadedBefore {
        /// The plug-in, or what it brings.
        needed_by: Vec<u8>,
        /// The name.
        name: Vec<u8>,
        /// The library in the tree.
        path: Vec<u8>,
    },
}

/// What needed a file first, by tree paths.
#[derive(Debug)]
pub(crate) struct Cause {
    pub from: Vec<u8>,
    pub link: Link,
}

impl Closure {
    /// Why a file is in the bundle: the chain of needs from an included file to it. Empty if nothing needs it.
    #[must_use]
    pub fn why(&self, path: &[u8]) -> Vec<Link> {
        let (mut chain, mut at) = (Vec::new(), path);
        while let Some(cause) = self.causes.get(at) {
            chain.push(cause.link.clone());
            at = &cause.from;
            if !self.additions.contains_key(at) || chain.len() > self.causes.len() {
                break;
            }
        }
        chain.reverse();
        chain
    }

    /// True if nothing is wrong.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.missing.is_empty() && self.conflicts.is_empty() && self.unmet_versions.is_empty()
    }
}
