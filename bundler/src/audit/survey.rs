//! Everything that is read of a bundle for an audit.

use std::collections::{BTreeMap, BTreeSet};

use kitbag_closure::facts::{Facts, Kind};
use kitbag_closure::tree::{Listing, Node, Tree};
use kitbag_format::index::{self, Index};
use kitbag_format::manifest::Manifest;
use kitbag_format::report::Summary;
use kitbag_format::slots::TREE;
use kitbag_format::{Bundle, Error, extract};
use memchr::memmem;

use super::limits::Level;
use super::process::{Process, World};
use super::{contents, paths};
use crate::origin::Origins;
use crate::script::{self, Interpreter};

/// What is in the place of the runtime's path.
const RUNTIME: &[u8] = b"the runtime";

/// An ELF file of the bundle that is executed or loaded.
#[derive(Debug)]
pub struct Object {
    /// Its path in the tree.
    pub path: Vec<u8>,
    /// What it says of itself.
    pub facts: Facts,
    /// True if it may be executed.
    pub executable: bool,
    /// What a Go compiler was told with GOAMD64.
    go_level: Option<u32>,
    /// Paths of the host in it.
    pub mentions: BTreeSet<String>,
}

impl Object {
    /// True for what is started, not loaded.
    pub fn is_program(&self) -> bool {
        matches!(self.facts.kind, Kind::Program | Kind::Static)
    }

    /// True for one of several files of which the loader chooses the one that fits the processor.
    pub fn is_variant(&self) -> bool {
        memmem::find(&self.path, b"glibc-hwcaps/").is_some()
    }

    /// True for the C library and its loader.
    pub fn is_libc(&self) -> bool {
        let names: [&[u8]; 5] = [b"libc.so", b"libc.musl-", b"ld-linux", b"ld-musl-", b"ld64.so"];
        let name = self.facts.soname.as_deref().unwrap_or(&self.path);
        let name = name.rsplit(|byte| *byte == b'/').next().unwrap_or(name);
        names.iter().any(|begin| name.starts_with(begin))
    }

    /// The least level of x86-64 that it says it needs.
    pub fn level(&self) -> Option<Level> {
        self.facts.x86_level().max(self.go_level).map(Level)
    }
}

/// An executable script that asks for an interpreter of the host.
#[derive(Debug)]
pub struct HostScript {
    /// Its path in the tree.
    pub path: Vec<u8>,
    /// Whom it asks for: a path, or the name that `env` looks for.
    pub interpreter: String,
    /// True if it is what the bundle starts.
    pub is_started: bool,
}

/// What a bundle holds.
pub struct Survey {
    /// Name, version, what is started.
    pub manifest: Manifest,
    /// Digest, sizes.
    pub summary: Summary,
    /// Where files are from.
    pub origins: Origins,
    /// The file's own program.
    pub runtime: Object,
    /// Every ELF file.
    pub objects: Vec<Object>,
    /// What the programs load.
    pub processes: Vec<Process>,
    /// Scripts that need the host.
    pub scripts: Vec<HostScript>,
    /// Files that begin as ELF files and cannot be read, and why.
    pub broken: Vec<(Vec<u8>, String)>,
    /// The tree.
    pub listing: Listing,
}

/// What one file is.
enum Look {
    Elf(Box<Object>),
    Script(Vec<u8>, Vec<u8>),
    Broken(Vec<u8>, String),
}

impl Survey {
    /// Verifies every byte of `bundle`, and reads its programs.
    pub fn of(bundle: &Bundle) -> Result<Self, Error> {
        bundle.verify(extract::threads_for(bundle.head().file_length))?;
        let (index, manifest) = (bundle.index()?, bundle.manifest()?);
        let looks = contents::map(bundle, &index, |number, bytes| look(&index, number, bytes))?;
        let listing = listing(&index);
        let started: Vec<Vec<u8>> = manifest
            .commands()
            .iter()
            .filter_map(|(_, command)| listing.find(command.argv.first()?.as_bytes()))
            .collect();
        let (mut objects, mut scripts, mut broken) = (Vec::new(), Vec::new(), Vec::new());
        for look in looks {
            match look {
                Look::Elf(object) => objects.push(*object),
                Look::Broken(path, why) => broken.push((path, why)),
                Look::Script(path, line) => scripts.extend(host_script(path, &line, &started)),
            }
        }
        let processes = World::new(&objects, &listing, given(&manifest)).processes();
        let (summary, origins, runtime) = (Summary::of(bundle)?, Origins::of(bundle)?, runtime(bundle)?);
        Ok(Self { manifest, summary, origins, runtime, objects, processes, scripts, broken, listing })
    }

    /// Every file that is surely executed or loaded: the runtime, programs and libraries, not the variants of one.
    pub fn executed(&self) -> impl Iterator<Item = &Object> {
        std::iter::once(&self.runtime).chain(self.objects.iter().filter(|object| !object.is_variant()))
    }

    /// The paths of the host that are mentioned, each with who mentions it.
    pub fn mentions(&self) -> BTreeMap<&str, Vec<&Object>> {
        let mut mentions: BTreeMap<&str, Vec<&Object>> = BTreeMap::new();
        for object in self.objects.iter().filter(|object| !object.is_variant()) {
            for path in &object.mentions {
                mentions.entry(path).or_default().push(object);
            }
        }
        mentions
    }
}

fn look(index: &Index, number: usize, bytes: &[u8]) -> Option<Look> {
    let entry = &index.entries[number];
    let executable = matches!(entry.kind, index::Kind::File { executable: true, .. });
    let path = || entry.path.clone();
    if let Some(rest) = bytes.strip_prefix(b"#!").filter(|_| executable) {
        let line = rest.split(|byte| *byte == b'\n').next().unwrap_or_default();
        return Some(Look::Script(path(), line.to_vec()));
    }
    let why = match Facts::read(bytes) {
        Ok(Some(facts)) if facts.kind != Kind::Other => {
            return Some(Look::Elf(Box::new(object(path(), facts, executable, bytes))));
        }
        Ok(_) => return None,
        Err(_) if entry.size() > contents::LARGEST => "it is too large for an audit".to_owned(),
        Err(why) => why.to_string(),
    };
    executable.then(|| Look::Broken(path(), why))
}

fn object(path: Vec<u8>, facts: Facts, executable: bool, bytes: &[u8]) -> Object {
    Object { path, facts, executable, go_level: go_level(bytes), mentions: paths::mentioned(bytes) }
}

/// What `go version -m` shows as `GOAMD64`: such a program ends at once on a lesser processor.
fn go_level(bytes: &[u8]) -> Option<u32> {
    const KEY: &[u8] = b"build\tGOAMD64=v";
    let digit = bytes.get(memmem::find(bytes, KEY)? + KEY.len())?;
    char::from(*digit).to_digit(10).filter(|level| (1..=4).contains(level))
}

fn runtime(bundle: &Bundle) -> Result<Object, Error> {
    let bytes = bundle.runtime()?;
    let facts = Facts::read(&bytes).ok().flatten().ok_or(Error::NotABundle("its program is no ELF file"))?;
    Ok(Object { path: RUNTIME.to_vec(), facts, executable: true, go_level: None, mentions: BTreeSet::new() })
}

/// The second names of a file lead to its first one, by which everything else knows it.
fn listing(index: &Index) -> Listing {
    let mut listing = Listing::default();
    for entry in &index.entries {
        let up = || b"../".repeat(entry.path.iter().filter(|byte| **byte == b'/').count());
        let node = match &entry.kind {
            index::Kind::Dir => Node::Folder,
            index::Kind::File { .. } => Node::File,
            index::Kind::Link(to) => Node::Link([up(), index.entries[*to].path.clone()].concat()),
            index::Kind::Symlink(target) => Node::Link(target.clone()),
        };
        listing.add(entry.path.as_slice(), node);
    }
    listing
}

/// The folders of the tree that the manifest has put into `LD_LIBRARY_PATH`.
fn given(manifest: &Manifest) -> Vec<Vec<u8>> {
    let commands = manifest.commands();
    let lists = commands.iter().filter_map(|(_, command)| command.env.get("LD_LIBRARY_PATH"));
    let folders = lists.flat_map(|list| list.split(':')).filter_map(|folder| folder.strip_prefix("${tree}"));
    folders.map(|folder| folder.as_bytes().to_vec()).collect()
}

/// `None` if its interpreter is in the bundle.
fn host_script(path: Vec<u8>, line: &[u8], started: &[Vec<u8>]) -> Option<HostScript> {
    let name = match script::parse(line).map(|shebang| shebang.interpreter) {
        Some(Interpreter::Path(asked)) if asked.starts_with(TREE.as_bytes()) => return None,
        Some(Interpreter::Path(name) | Interpreter::Name(name)) => name,
        None => line.trim_ascii(),
    };
    let is_started = started.contains(&path);
    Some(HostScript { path, interpreter: String::from_utf8_lossy(name).into_owned(), is_started })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_go_program_tells_its_level() {
        assert_eq!(go_level(b"path\tapp\nbuild\tGOAMD64=v3\nbuild\tvcs=git\n"), Some(3));
        assert_eq!(go_level(b"build\tGOAMD64=v9\n"), None);
        assert_eq!(go_level(b"build\tGOAMD64=v"), None);
        assert_eq!(go_level(b""), None);
    }

    #[test]
    fn a_script_of_the_bundle_needs_no_host() {
        let host = |line: &[u8]| host_script(b"bin/x".to_vec(), line, &[b"bin/x".to_vec()]);
        assert!(host(b"/kitbag-tree/bin/python3      ").is_none());
        let script = host(b" /usr/bin/env -S perl -w").unwrap();
        assert!(script.is_started && script.interpreter == "perl");
        assert_eq!(host(b"/bin/sh -e").unwrap().interpreter, "/bin/sh");
        assert_eq!(host(b"/usr/bin/env -i sh").unwrap().interpreter, "/usr/bin/env -i sh");
    }
}
