//! The tree that a bundle will unpack: what the includes bring, from the file system, without reading it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, DirEntry, File, Metadata};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::{io, mem};

use globset::{Glob, GlobBuilder, GlobSet, GlobSetBuilder};
use rayon::prelude::*;

use crate::diagnostic::{Diagnostic, near_miss};
use crate::manifest::Include;
use crate::read::Text;
use crate::scan::Seen;

/// Longest path in a tree, in bytes. Below it a store's own folder still fits into PATH_MAX (4096).
pub const LONGEST_PATH: usize = 3072;

/// As many links in a row are followed (Linux's own limit, path_resolution(7)).
const MOST_LINKS: usize = 40;

/// The tree, by path: relative, `/` between names, bytes as they are.
#[derive(Debug, Default)]
pub struct Tree {
    /// Everything in it, each parent folder too.
    pub nodes: BTreeMap<Vec<u8>, Node>,
    /// What is wrong with it.
    pub errors: Vec<Diagnostic>,
    /// The place of the output file, which was left out.
    pub left_out: Option<Vec<u8>>,
}

/// A place of the tree.
#[derive(Debug)]
pub struct Node {
    /// What is there.
    pub kind: Kind,
    /// Where it comes from.
    pub source: PathBuf,
    /// Device and inode of the source, where it is a file.
    id: Id,
    /// The include that brought it; `None` for a Cargo bin.
    include: Option<usize>,
}

/// What is at a place.
#[derive(Debug)]
pub enum Kind {
    /// A folder.
    Dir,
    /// A regular file.
    File {
        /// Any of its execute bits is set.
        executable: bool,
        /// Its state now.
        seen: Seen,
    },
    /// A symbolic link.
    Symlink {
        /// What it says.
        target: Vec<u8>,
    },
}

/// Device and inode.
pub type Id = (u64, u64);

/// Device and inode of an open or named file.
pub fn id(metadata: &Metadata) -> Id {
    (metadata.dev(), metadata.ino())
}

/// Which of the patterns matched something.
pub type Used = Vec<bool>;

/// A compiled `exclude` pattern. As in .gitignore, one without `/` matches a name at any depth, and one
/// with `/` is relative to the include; `*` stays within a name, `**` does not.
pub fn glob(pattern: &str) -> Result<Glob, globset::Error> {
    let plain = pattern.trim_end_matches('/');
    let anchored = match plain.strip_prefix('/') {
        Some(rest) => rest.to_owned(),
        None if plain.contains('/') => plain.to_owned(),
        None => format!("**/{plain}"),
    };
    GlobBuilder::new(&anchored).literal_separator(true).build()
}

/// Brings the includes of one manifest into a tree.
pub struct Planter<'a> {
    /// The manifest's folder.
    dir: &'a Path,
    includes: &'a [Include],
    /// Patterns for every include.
    exclude: &'a [Text],
    /// The file that pack writes.
    output: Option<Id>,
    tree: Tree,
    used: Used,
}

impl<'a> Planter<'a> {
    /// An empty tree to fill from `includes`, relative to `dir`; the file `output` is left out.
    pub fn new(dir: &'a Path, includes: &'a [Include], exclude: &'a [Text], output: Option<Id>) -> Self {
        let used = vec![false; exclude.len()];
        Self { dir, includes, exclude, output, tree: Tree::default(), used }
    }

    /// Puts a Cargo bin in its place.
    pub fn bin(&mut self, name: &str, source: PathBuf, seen: Seen) {
        let kind = Kind::File { executable: true, seen };
        let node = Node { kind, source, id: (0, 0), include: None };
        self.insert(format!("bin/{name}").into_bytes(), node);
    }

    /// Puts a link in its place, which the include number `index` is the reason for.
    pub fn link(&mut self, place: &str, target: &str, index: usize) {
        let kind = Kind::Symlink { target: target.as_bytes().to_vec() };
        let node = Node { kind, source: PathBuf::from(place), id: (0, 0), include: Some(index) };
        self.insert(place.as_bytes().to_vec(), node);
    }

    /// Brings everything in. Returns the tree, and the patterns that matched nothing.
    pub fn plant(mut self) -> (Tree, Vec<&'a Text>) {
        let mut unused = Vec::new();
        for (index, include) in self.includes.iter().enumerate() {
            let used = self.include(index, include);
            let used = if include.follow { vec![true; used.len()] } else { used };
            unused.extend(include.exclude.iter().zip(used).filter(|(_, used)| !used).map(|(text, _)| text));
        }
        unused.extend(self.exclude.iter().zip(&self.used).filter(|(_, used)| !**used).map(|(text, _)| text));
        self.check_links();
        (self.tree, unused)
    }

    /// Brings one include in; returns which of its own patterns matched.
    fn include(&mut self, index: usize, include: &Include) -> Used {
        let unused = vec![false; include.exclude.len()];
        let root = join(self.dir, include.from.get_ref());
        let metadata = match fs::metadata(&root) {
            Ok(metadata) => metadata,
            Err(error) => {
                let error = missing(&root, include, &error);
                self.tree.errors.push(error);
                return unused;
            }
        };
        let patterns = self.exclude.iter().chain(&include.exclude);
        let Ok(globs) = glob_set(patterns) else { return unused };
        let mut own = unused;
        if include.to.is_empty() && !metadata.is_dir() {
            let name = root.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let error = Diagnostic::new(format!("`{}` is a file, and needs a place", include.from.get_ref()))
                .at(include.from.span(), "`.` is the tree itself, a folder")
                .help(format!("for example `to = \"{name}\"`"));
            self.tree.errors.push(error);
        } else if metadata.is_dir() {
            self.folder(index, &root, include.to.as_bytes(), &globs, &mut own);
        } else if self.output == Some(id(&metadata)) {
            let from = include.from.get_ref();
            let error = Diagnostic::new(format!("`{from}` is both packed and written"))
                .at(include.from.span(), "the bundle would replace this file");
            self.tree.errors.push(error.help("choose another file to write with `-o`"));
        } else {
            let name = Path::new(root.file_name().unwrap_or_default());
            if !self.excluded(&globs, name, &mut own) {
                self.add(index, include.to.clone().into_bytes(), &root, &metadata);
            }
        }
        own
    }

    fn folder(&mut self, index: usize, root: &Path, to: &[u8], globs: &GlobSet, own: &mut Used) {
        let place = |below: &Path| place(to, below);
        let to = place(Path::new(""));
        if !to.is_empty() && !self.insert(to, self.dir_node(index, root)) {
            return;
        }
        let mut next = Vec::new();
        let mut folders = vec![PathBuf::new()];
        while !folders.is_empty() {
            let listings: Vec<_> = folders.par_iter().map(|folder| list(root, folder, globs)).collect();
            for found in listings.into_iter().flatten() {
                self.note(&found.patterns, own);
                let source = root.join(&found.below);
                let path = place(&found.below);
                match found.what {
                    Ok(What::Excluded) => {}
                    Ok(What::Dir) => {
                        if self.insert(path, self.dir_node(index, &source)) {
                            next.push(found.below);
                        }
                    }
                    Ok(What::Other(metadata)) => match self.lead(index, root, &source, &metadata) {
                        Lead::Nowhere => {}
                        Lead::Outside(target, metadata) if metadata.is_dir() => {
                            self.folder(index, &target, &path, globs, own);
                        }
                        Lead::Outside(target, metadata) => {
                            self.add(index, path, &target, &metadata);
                        }
                        Lead::Inside => {
                            self.add(index, path, &source, &metadata);
                        }
                    },
                    Err(error) => self.unreadable_folder(index, &source, &error),
                }
            }
            folders = mem::take(&mut next);
        }
    }

    /// Where a link of a preset's folder leads. All else stays as it is.
    fn lead(&self, index: usize, root: &Path, source: &Path, metadata: &Metadata) -> Lead {
        if !metadata.is_symlink() || !self.includes[index].follow {
            return Lead::Inside;
        }
        let place = source.strip_prefix(root).unwrap_or(source).as_os_str().as_bytes();
        let target = fs::read_link(source).unwrap_or_default();
        if link_goal(place, target.as_os_str().as_bytes()).is_ok() {
            return Lead::Inside;
        }
        let Ok(target) = fs::canonicalize(source) else { return Lead::Nowhere };
        let around = source.parent().and_then(|folder| fs::canonicalize(folder).ok());
        match fs::metadata(&target) {
            // A link to a folder that it lies in has no end.
            Ok(metadata) if around.is_some_and(|around| !around.starts_with(&target)) => {
                Lead::Outside(target, metadata)
            }
            _ => Lead::Nowhere,
        }
    }

    fn dir_node(&self, index: usize, source: &Path) -> Node {
        Node { kind: Kind::Dir, source: source.to_owned(), id: (0, 0), include: Some(index) }
    }

    /// Whether a pattern matches, which is noted.
    fn excluded(&mut self, globs: &GlobSet, path: &Path, own: &mut Used) -> bool {
        let matched = globs.matches(path);
        self.note(&matched, own);
        !matched.is_empty()
    }

    /// Notes that these patterns matched something: those for every include come before the include's own.
    fn note(&mut self, matched: &[usize], own: &mut Used) {
        for index in matched {
            match index.checked_sub(self.used.len()) {
                None => self.used[*index] = true,
                Some(index) => own[index] = true,
            }
        }
    }

    /// Puts a file or link in its place, if it can be packed.
    fn add(&mut self, index: usize, path: Vec<u8>, source: &Path, metadata: &Metadata) -> bool {
        if self.output == Some(id(metadata)) {
            self.tree.left_out = Some(path);
            return false;
        }
        let kind = if metadata.is_symlink() {
            fs::read_link(source)
                .map(|target| Kind::Symlink { target: target.into_os_string().into_vec() })
                .map_err(|error| Fault::unreadable(&error))
        } else {
            file_kind(source, metadata)
        };
        match kind {
            Ok(kind) => {
                let node = Node { kind, source: source.to_owned(), id: id(metadata), include: Some(index) };
                self.insert(path, node)
            }
            Err(fault) => {
                self.refuse(index, source, fault);
                false
            }
        }
    }

    /// Puts `node` at `path`, its parent folders first; `false` and an error if the place is taken.
    fn insert(&mut self, path: Vec<u8>, node: Node) -> bool {
        if path.len() > LONGEST_PATH {
            let why = format!("its path in the tree has {} bytes; {LONGEST_PATH} are the most", path.len());
            let help = "shorten it with a `to` of its own, or exclude it".to_owned();
            self.refuse(node.include.unwrap_or(0), &node.source, Fault { what: "too deep", why, help });
            return false;
        }
        if let Some(there) = self.tree.nodes.get(&path) {
            let same = match (&there.kind, &node.kind) {
                (Kind::Dir, Kind::Dir) => true,
                (Kind::Dir, _) | (_, Kind::Dir) => false,
                _ => there.id == node.id && node.include.is_some(),
            };
            if !same {
                let error = self.conflict(&path, there, &node);
                self.tree.errors.push(error);
            }
            return same;
        }
        if let Some(parent) = parent(&path)
            && !matches!(self.tree.nodes.get(parent), Some(Node { kind: Kind::Dir, .. }))
        {
            // In a message, the folder's source is the file that needs it.
            let folder =
                Node { source: node.source.clone(), kind: Kind::Dir, id: (0, 0), include: node.include };
            if !self.insert(parent.to_vec(), folder) {
                return false;
            }
        }
        self.tree.nodes.insert(path, node);
        true
    }

    fn conflict(&self, path: &[u8], first: &Node, second: &Node) -> Diagnostic {
        let shown = shown(path);
        let title = match (&first.kind, &second.kind) {
            (Kind::Dir, _) | (_, Kind::Dir) => {
                format!("a file where a folder is needed: `{shown}` of the tree")
            }
            _ => format!("two files for one place: `{shown}` of the tree"),
        };
        let mut error = Diagnostic::new(title);
        for node in [first, second] {
            if let Some(index) = node.include {
                let label = format!("{} from here", one_line(&node.source));
                let span = self.includes[index].from.span();
                error =
                    if std::ptr::eq(node, second) { error.at(span, label) } else { error.with(span, label) };
            } else {
                error = error.help(format!("`{shown}` is also the place of a Cargo bin; see `[cargo] bins`"));
            }
        }
        error.help("give one of them another `to`, or exclude it")
    }

    fn refuse(&mut self, index: usize, source: &Path, fault: Fault) {
        let mut error = Diagnostic::new(format!("{}: `{}`", fault.what, one_line(source)));
        if let Some(include) = self.includes.get(index) {
            error = error.at(include.from.span(), fault.why);
        }
        if !fault.help.is_empty() {
            error = error.help(fault.help);
        }
        self.tree.errors.push(error);
    }

    fn unreadable_folder(&mut self, index: usize, path: &Path, error: &io::Error) {
        let mut fault = Fault::unreadable(error);
        if error.kind() == io::ErrorKind::InvalidFilename {
            fault.why = format!(
                "its path has {} bytes, more than the system takes (PATH_MAX, 4096)",
                path.as_os_str().len()
            );
            fault.help = "exclude it, or pack from a folder nearer to it".to_owned();
        }
        self.refuse(index, path, fault);
    }

    /// Links must lead to places in the tree.
    fn check_links(&mut self) {
        let mut faults = Vec::new();
        for (path, node) in &self.tree.nodes {
            if let Kind::Symlink { target } = &node.kind
                && let Err(fault) = link_goal(path, target)
            {
                faults.push((node.include.unwrap_or(0), node.source.clone(), fault));
            }
        }
        for (index, source, fault) in faults {
            self.refuse(index, &source, fault);
        }
    }
}

/// Where a link leads.
enum Lead {
    /// It stays.
    Inside,
    /// To what is outside of the folder, and taken instead.
    Outside(PathBuf, Metadata),
    /// To nothing that could be taken; it is left out.
    Nowhere,
}

/// Something in a folder.
struct Found {
    /// Its path below the include.
    below: PathBuf,
    /// The patterns that exclude it.
    patterns: Vec<usize>,
    what: io::Result<What>,
}

enum What {
    Excluded,
    Dir,
    Other(Metadata),
}

/// What is in folder `below` of `root`; the folder itself with the error, where it cannot be listed.
fn list(root: &Path, below: &Path, globs: &GlobSet) -> Vec<Found> {
    let failed = |error| Found { below: below.to_owned(), patterns: Vec::new(), what: Err(error) };
    let source = if below.as_os_str().is_empty() { root.to_owned() } else { root.join(below) };
    match fs::read_dir(&source) {
        Err(error) => vec![failed(error)],
        Ok(listed) => listed
            .map(|entry| match entry {
                Ok(entry) => examine(&entry, below, globs),
                Err(error) => failed(error),
            })
            .collect(),
    }
}

fn examine(entry: &DirEntry, folder: &Path, globs: &GlobSet) -> Found {
    let below = folder.join(entry.file_name());
    let patterns = globs.matches(&below);
    let what = if patterns.is_empty() { what(entry) } else { Ok(What::Excluded) };
    Found { below, patterns, what }
}

/// By the entry's own metadata, which costs no walk down its whole path.
fn what(entry: &DirEntry) -> io::Result<What> {
    if entry.file_type()?.is_dir() { Ok(What::Dir) } else { entry.metadata().map(What::Other) }
}

/// Why a file cannot be packed.
struct Fault {
    what: &'static str,
    why: String,
    help: String,
}

impl Fault {
    fn unreadable(error: &io::Error) -> Self {
        let help = match error.kind() {
            io::ErrorKind::PermissionDenied => "let the user who packs read it, or exclude it",
            _ => "",
        };
        Self { what: "cannot be read", why: error.to_string(), help: help.to_owned() }
    }
}

fn file_kind(source: &Path, metadata: &Metadata) -> Result<Kind, Fault> {
    let (kind, mode) = (metadata.file_type(), metadata.mode());
    let special = if kind.is_fifo() {
        "a fifo"
    } else if kind.is_socket() {
        "a socket"
    } else if kind.is_block_device() || kind.is_char_device() {
        "a device"
    } else {
        ""
    };
    if !special.is_empty() {
        let why = format!("{special}: a bundle holds files, folders and links only");
        return Err(Fault { what: "cannot be packed", why, help: "exclude it".to_owned() });
    }
    if mode & 0o6000 != 0 {
        let (bit, letter) = if mode & 0o4000 != 0 { ("setuid", 'u') } else { ("setgid", 'g') };
        let why = format!("its {bit} bit cannot travel: whoever starts a bundle owns its files");
        let help = format!("`chmod {letter}-s` it, or exclude it");
        return Err(Fault { what: "cannot be packed", why, help });
    }
    // What everybody may read needs no second look.
    if mode & 0o444 != 0o444 {
        File::open(source).map_err(|error| Fault::unreadable(&error))?;
    }
    Ok(Kind::File { executable: mode & 0o111 != 0, seen: Seen::from(metadata) })
}

/// The place in the tree that a link at `path` leads to: `..` only at the beginning, never out of the tree.
fn link_goal(path: &[u8], target: &[u8]) -> Result<Vec<u8>, Fault> {
    let refused = |why: &str, help: &str| {
        let why = format!("it leads to `{}`: {why}", shown(target));
        Err(Fault { what: "link cannot be packed", why, help: help.to_owned() })
    };
    if target.first() == Some(&b'/') {
        let help = "make it relative (`ln -sr`) if that place is included too; else include what it leads to";
        return refused("an absolute link would leave the tree", help);
    }
    let mut at: Vec<&[u8]> = parent(path).map_or_else(Vec::new, |folder| folder.split(is_slash).collect());
    let mut down = false;
    for name in target.split(is_slash).filter(|name| !name.is_empty() && *name != b".") {
        if name != b".." {
            down = true;
            at.push(name);
        } else if down {
            let help = "write the link without the detour (`ln -sr` does)";
            return refused("`..` after a name cannot be checked", help);
        } else if at.pop().is_none() {
            let help = "include what it leads to in the link's place, or exclude it";
            return refused("that is outside of the tree", help);
        }
    }
    Ok(at.join(&b'/'))
}

impl Tree {
    /// What is at `path` after following links, with its real path; `None` where nothing is. The tree
    /// itself is a folder without a node.
    pub fn resolve(&self, path: &[u8]) -> Option<(Vec<u8>, Option<&Node>)> {
        let mut todo: Vec<Vec<u8>> = names(path).rev().map(<[u8]>::to_vec).collect();
        let mut at: Vec<u8> = Vec::new();
        let mut links = 0;
        while let Some(name) = todo.pop() {
            let next = if at.is_empty() { name } else { [&at[..], b"/", &name].concat() };
            match &self.nodes.get(&next)?.kind {
                Kind::Symlink { target } => {
                    links += 1;
                    if links > MOST_LINKS {
                        return None;
                    }
                    let goal = link_goal(&next, target).ok()?;
                    todo.extend(names(&goal).rev().map(<[u8]>::to_vec));
                    at.clear();
                }
                Kind::Dir | Kind::File { .. } => at = next,
            }
        }
        let node = if at.is_empty() { None } else { Some(self.nodes.get(&at)?) };
        Some((at, node))
    }

    /// Puts a file that was made from what is in the tree in its place, in a folder that is made for it.
    pub fn put(&mut self, path: Vec<u8>, source: PathBuf, seen: Seen) {
        if let Some(folder) = parent(&path) {
            let node = Node { kind: Kind::Dir, source: source.clone(), id: (0, 0), include: None };
            self.nodes.entry(folder.to_vec()).or_insert(node);
        }
        let kind = Kind::File { executable: false, seen };
        self.nodes.insert(path, Node { kind, source, id: (0, 0), include: None });
    }

    /// How many files an include brought.
    pub fn brought(&self, index: usize) -> usize {
        let is_file = |node: &&Node| node.include == Some(index) && matches!(node.kind, Kind::File { .. });
        self.nodes.values().filter(is_file).count()
    }

    /// Links that lead to nothing, each with what it says.
    pub fn dangling(&self) -> impl Iterator<Item = (String, String)> {
        self.nodes.iter().filter_map(|(path, node)| match &node.kind {
            Kind::Symlink { target } if self.resolve(path).is_none() => Some((shown(path), shown(target))),
            _ => None,
        })
    }

    /// The path in the tree that somebody meant by `path`: the same name elsewhere, or nearly the same.
    pub fn near(&self, path: &str) -> Option<&str> {
        let name = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
        let wanted = name(path);
        let paths = || self.nodes.keys().filter_map(|path| str::from_utf8(path).ok());
        paths().find(|path| name(path) == wanted).or_else(|| near_miss(path, paths()))
    }
}

fn missing(root: &Path, include: &Include, error: &io::Error) -> Diagnostic {
    let from = include.from.get_ref();
    if error.kind() != io::ErrorKind::NotFound {
        return Diagnostic::new(format!("cannot be read: `{from}`"))
            .at(include.from.span(), error.to_string());
    }
    if let Ok(target) = fs::read_link(root) {
        let why = format!("a link to `{}`, where nothing is", one_line(&target));
        return Diagnostic::new(format!("there is no `{from}` to include")).at(include.from.span(), why);
    }
    let diagnostic = Diagnostic::new(format!("there is no `{from}` to include"));
    let diagnostic = diagnostic.at(include.from.span(), format!("looked for {}", one_line(root)));
    if from.contains(['*', '?']) {
        return diagnostic.help("`from` is a path, not a pattern: include the folder, and `exclude` from it");
    }
    let siblings: Vec<String> = root
        .parent()
        .map(|folder| if folder.as_os_str().is_empty() { Path::new(".") } else { folder })
        .and_then(|folder| fs::read_dir(folder).ok())
        .map(|entries| entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
        .unwrap_or_default();
    let name = root.file_name().unwrap_or_default().to_string_lossy();
    let near = near_miss(&name, siblings.iter().map(String::as_str));
    let near = near.map(|near| match from.trim_end_matches('/').rsplit_once('/') {
        Some((folder, _)) => format!("{folder}/{near}"),
        None => near.to_owned(),
    });
    diagnostic.near(near.as_deref())
}

/// Compiles patterns.
pub fn glob_set<'a>(patterns: impl Iterator<Item = &'a Text>) -> Result<GlobSet, globset::Error> {
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        set.add(glob(pattern.get_ref())?);
    }
    set.build()
}

/// `path` below `dir`, for people too: without `./`.
pub fn join(dir: &Path, path: &str) -> PathBuf {
    let path = Path::new(path);
    let dir = dir.strip_prefix(".").unwrap_or(dir);
    let joined = if dir.as_os_str().is_empty() { path.to_owned() } else { dir.join(path) };
    joined.components().collect()
}

fn place(to: &[u8], below: &Path) -> Vec<u8> {
    let below = below.as_os_str().as_bytes();
    match (to, below) {
        (to, []) => to.to_vec(),
        ([], below) => below.to_vec(),
        (to, below) => [to, b"/", below].concat(),
    }
}

fn parent(path: &[u8]) -> Option<&[u8]> {
    path.iter().rposition(|byte| *byte == b'/').map(|at| &path[..at])
}

fn names(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(is_slash).filter(|name| !name.is_empty())
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "what `split` asks for")]
fn is_slash(byte: &u8) -> bool {
    *byte == b'/'
}

/// A path of the tree for people: on one line, its long middle left out.
pub fn shown(path: &[u8]) -> String {
    one_line(Path::new(OsStr::from_bytes(path)))
}

fn one_line(path: &Path) -> String {
    let text: String = path.to_string_lossy().escape_debug().collect();
    let letters: Vec<char> = text.chars().collect();
    if letters.len() <= 200 {
        return text;
    }
    let part = |letters: &[char]| letters.iter().collect::<String>();
    format!("{}…{}", part(&letters[..100]), part(&letters[letters.len() - 60..]))
}
