//! Where the store is: the first candidate that can be used, and why the others cannot.
//!
//! `KITBAG_STORE` is a decision, not a wish: where it cannot be used, that is an error. Else root has
//! `/var/cache/kitbag` and users the XDG base directory's cache; then come folders that most machines have.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::{fmt, fs};

use kitbag_format::slots::FillError;
use kitbag_format::{Bundle, Error, Index, extract};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{AccessFlags, access};

use crate::store::closure;
use crate::store::owned::{self, Refusal, Size};
use crate::store::record::path_of;
use crate::store::share::Sharing;
use crate::store::{Store, StoreError};

/// What the choice depends on.
pub struct Facts<'a> {
    /// The effective user.
    pub uid: u32,
    /// The environment.
    pub var: &'a dyn Fn(&str) -> Option<OsString>,
    /// `/etc/passwd`; empty where it cannot be read.
    pub passwd: Vec<u8>,
    /// The bundle's own file.
    pub bundle: Option<&'a Path>,
}

impl<'a> Facts<'a> {
    /// This process's.
    pub fn of_process(bundle: Option<&'a Path>) -> Self {
        Self {
            uid: nix::unistd::geteuid().as_raw(),
            var: &|name| std::env::var_os(name).filter(|value| !value.is_empty()),
            passwd: fs::read("/etc/passwd").unwrap_or_default(),
            bundle,
        }
    }

    /// A variable as a path.
    pub fn path(&self, name: &str) -> Option<PathBuf> {
        (self.var)(name).map(PathBuf::from)
    }

    /// The user's home folder by passwd(5), read by hand: libc's getpwuid needs the host's libraries.
    pub fn passwd_home(&self) -> Option<PathBuf> {
        self.passwd.split(|byte| *byte == b'\n').find_map(|line| {
            let fields: Vec<&[u8]> = line.split(|byte| *byte == b':').collect();
            let uid: u32 = std::str::from_utf8(fields.get(2)?).ok()?.parse().ok()?;
            let home = *fields.get(5).filter(|home| uid == self.uid && home.starts_with(b"/"))?;
            Some(PathBuf::from(OsString::from_vec(home.to_vec())))
        })
    }
}

/// A place that was considered.
#[derive(Debug)]
pub struct Candidate {
    /// Where; `None` if what would name it is not set.
    pub path: Option<PathBuf>,
    /// What names it.
    pub why: &'static str,
    /// Whether it can be used.
    pub verdict: Result<(), Refusal>,
}

impl Candidate {
    /// The room that is needed, if that is what it has not.
    pub fn lacks(&self) -> Option<String> {
        match self.verdict {
            Err(Refusal::Space(needs, _)) => Some(Size(needs).to_string()),
            Err(Refusal::Inodes(needs, _)) => Some(format!("{needs} files")),
            _ => None,
        }
    }
}

impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(path) = &self.path {
            write!(f, "{} ", path.display())?;
        }
        write!(f, "({}): ", self.why)?;
        match &self.verdict {
            Ok(()) => f.write_str("usable"),
            Err(refusal) => refusal.fmt(f),
        }
    }
}

/// Room that a tree takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Need {
    /// Bytes on the disk.
    pub bytes: u64,
    /// Files, folders and links.
    pub files: u64,
}

/// Chooses the store for this bundle. Returns it with all candidates up to it, itself the last.
pub fn choose(facts: &Facts, bundle: &Bundle) -> Result<(Store, Vec<Candidate>), StoreError> {
    let mut tried = Vec::new();
    for (why, path) in candidates(facts) {
        let explicit = why == "KITBAG_STORE";
        let verdict = match &path {
            Some(path) => usable(path, facts.uid, bundle)?,
            None => Err(Refusal::NotSet),
        };
        let (store, verdict) = match verdict {
            Ok(store) => (Some(store), Ok(())),
            Err(refusal) => (None, Err(refusal)),
        };
        let set = path.is_some();
        tried.push(Candidate { path, why, verdict });
        match store {
            Some(store) => return Ok((store, tried)),
            None if explicit && set => break,
            None => {}
        }
    }
    Err(StoreError::NoPlace(tried))
}

/// True if somebody chose a place that no disk could make good: a relative path, a link, another user's folder. To
/// go on without it would hide the mistake.
pub fn is_mistake(tried: &[Candidate]) -> bool {
    let disk = |refusal: &Refusal| {
        matches!(
            refusal,
            Refusal::NoExec | Refusal::ReadOnly | Refusal::Space(..) | Refusal::Inodes(..) | Refusal::Io(_)
        )
    };
    let chosen = tried.iter().find(|candidate| candidate.why == "KITBAG_STORE" && candidate.path.is_some());
    chosen.is_some_and(|candidate| candidate.verdict.as_ref().is_err_and(|refusal| !disk(refusal)))
}

/// What [`choose`] would try, in order and up to what it would take, for people who ask. Makes nothing.
pub fn survey(facts: &Facts) -> Vec<Candidate> {
    let mut tried = Vec::new();
    for (why, path) in candidates(facts) {
        let verdict = match &path {
            Some(path) => look(path, facts.uid),
            None => Err(Refusal::NotSet),
        };
        let last = verdict.is_ok() || (why == "KITBAG_STORE" && path.is_some());
        tried.push(Candidate { path, why, verdict });
        if last {
            break;
        }
    }
    tried
}

/// Whether a folder can be used, or could be made.
fn look(path: &Path, uid: u32) -> Result<(), Refusal> {
    if fs::symlink_metadata(path).is_ok() {
        owned::existing(path, uid)?;
    }
    let there = path.ancestors().find(|above| fs::symlink_metadata(above).is_ok()).unwrap_or(Path::new("/"));
    access(there, AccessFlags::W_OK | AccessFlags::X_OK).map_err(std::io::Error::from)?;
    check_exec(there)
}

/// The stores that are there, for `gc` and `verify --unpacked`. Makes nothing.
pub fn existing(facts: &Facts) -> Vec<Store> {
    let mut stores: Vec<Store> = Vec::new();
    for (why, path) in candidates(facts) {
        let Some(path) = path else { continue };
        if let Ok(real) = owned::existing(&path, facts.uid)
            && Store::is_at(&real)
            && stores.iter().all(|store| store.place != real)
        {
            stores.push(Store::at(real));
        }
        if why == "KITBAG_STORE" {
            break;
        }
    }
    stores
}

fn candidates(facts: &Facts) -> Vec<(&'static str, Option<PathBuf>)> {
    let uid = facts.uid;
    let kitbag = |path: PathBuf| path.join("kitbag");
    let cache = |path: PathBuf| path.join(".cache/kitbag");
    let mut all = vec![("KITBAG_STORE", facts.path("KITBAG_STORE"))];
    if uid == 0 {
        all.push(("root's cache", Some("/var/cache/kitbag".into())));
    } else {
        all.push(("XDG_CACHE_HOME", facts.path("XDG_CACHE_HOME").map(kitbag)));
        all.push(("HOME", facts.path("HOME").map(cache)));
        all.push(("home folder in /etc/passwd", facts.passwd_home().map(cache)));
    }
    for (why, folder) in [("/var/tmp", "/var/tmp"), ("/tmp", "/tmp"), ("memory", "/dev/shm")] {
        all.push((why, Some(format!("{folder}/kitbag-{uid}").into())));
    }
    let beside = facts.bundle.and_then(Path::parent).map(|folder| folder.join(format!(".kitbag-{uid}")));
    all.push(("beside the bundle", beside));
    all
}

/// The outer error is the bundle's: no place would help.
fn usable(path: &Path, uid: u32, bundle: &Bundle) -> Result<Result<Store, Refusal>, StoreError> {
    let store = match open(path, uid) {
        Ok(store) => store,
        Err(refusal) => return Ok(Err(refusal)),
    };
    if fs::symlink_metadata(store.tree_dir(&bundle.digest()).join("record")).is_ok() {
        return Ok(Ok(store));
    }
    let index = bundle.index()?;
    if let Some(refusal) = misfit(&store, bundle, &index)? {
        return Ok(Err(refusal));
    }
    let needs = crate::store::unpack::need(&index);
    Ok(match room(&store, uid, needs) {
        Err(Refusal::Space(..) | Refusal::Inodes(..)) => {
            let closure = closure::digest(&index);
            let sharing = Sharing { store: &store, bundle, index: &index, closure };
            room(&store, uid, sharing.still_needed(needs))
        }
        other => other,
    }
    .map(|()| store))
}

/// Why the path of the tree to be cannot go into one of its files, if so.
pub fn misfit(store: &Store, bundle: &Bundle, index: &Index) -> Result<Option<Refusal>, Error> {
    let tree = store.tree_dir(&bundle.digest()).join("tree");
    let below = tree.as_os_str().len() - store.place.as_os_str().len();
    let Some((number, error)) = extract::misfit(bundle, index, &tree)? else { return Ok(None) };
    let of_place = match error {
        FillError::TooLong { length, most } => {
            FillError::TooLong { length: length - below, most: most.saturating_sub(below) }
        }
        other => other,
    };
    Ok(Some(Refusal::Slot(String::from_utf8_lossy(path_of(index, number)).into_owned(), of_place)))
}

fn open(path: &Path, uid: u32) -> Result<Store, Refusal> {
    let mode = if uid == 0 { 0o755 } else { 0o700 };
    let store = Store::at(owned::folder(path, uid, mode)?);
    for name in ["v1", "v1/trees", "v1/locks", "v1/work"] {
        owned::below(&store.place, name, uid, mode)?;
    }
    check_exec(&store.place)?;
    Ok(store)
}

fn check_exec(folder: &Path) -> Result<(), Refusal> {
    let disk = statvfs(folder).map_err(std::io::Error::from)?;
    if disk.flags().contains(FsFlags::ST_NOEXEC) { Err(Refusal::NoExec) } else { Ok(()) }
}

/// Whether what is needed fits. Root may use the reserved blocks; a file system without a table of inodes
/// (btrfs) counts none.
fn room(store: &Store, uid: u32, needs: Need) -> Result<(), Refusal> {
    let disk = statvfs(store.place.as_path()).map_err(std::io::Error::from)?;
    if disk.flags().contains(FsFlags::ST_RDONLY) {
        return Err(Refusal::ReadOnly);
    }
    let root = uid == 0;
    let blocks = if root { disk.blocks_free() } else { disk.blocks_available() };
    let bytes = blocks.saturating_mul(disk.fragment_size());
    if bytes < needs.bytes {
        return Err(Refusal::Space(needs.bytes, bytes));
    }
    let files = if root { disk.files_free() } else { disk.files_available() };
    if disk.files() > 0 && files < needs.files {
        return Err(Refusal::Inodes(needs.files, files));
    }
    Ok(())
}
