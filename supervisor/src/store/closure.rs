//! The closure's path: what programs name their loader and libraries by, equal for all trees whose closure is equal.
//!
//! The path of a tree is in it, so a program that names its loader there is another file in each version. Therefore
//! it names `<place>/v1/closures/<closure digest>/.kitbag/lib/…`, where `closures/<closure digest>` is a symbolic link
//! to a tree that has this closure. The digest covers all that can be reached so. A link leads to a tree that its last
//! full start has found right, by one rename; removing a tree hands its links over to another tree first. So a program
//! that runs finds its libraries whichever of the versions stay.
//!
//! All changes of links, and the removal of trees that links may lead to, are made under one lock
//! ([`Store::lock_closures`]), which nobody holds for longer than a few system calls.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use kitbag_format::index::{Entry, Kind, stays_inside};
use kitbag_format::slots::{Pad, Paths, is_in_closure};
use kitbag_format::sort;
use kitbag_format::{Digest, Index, extract};
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, fstat};

use crate::store::collect;
use crate::store::record::Record;
use crate::store::{self, Store, StoreError};

/// What the digest begins with: other kinds of digest are of other bytes.
const DOMAIN: &[u8] = b"kitbag closure 1\n";
/// The folder of the tree that the closure is in, with the slash.
const FOLDER: &[u8] = b".kitbag/";

/// A path that was on its way through a link when that changed has arrived in the old tree after this time, where
/// what is open stays.
const WALK: Duration = Duration::from_millis(10);

/// The digest of a bundle's closure: of the paths, kinds, contents and permissions of all that belongs to it
/// ([`is_in_closure`]). `None` if no ELF file can name one, or if it is not the same wherever these are: it has slots
/// itself, or a link that leads out of it.
pub fn digest(index: &Index) -> Option<Digest> {
    index.entries.iter().flat_map(Entry::slots).find(|slot| slot.pad == Pad::Nul)?;
    let mut members = members(index);
    sort::by(&mut members, &|one, other| index.entries[*one].path.cmp(&index.entries[*other].path));
    let mut hasher = blake3::Hasher::new();
    hasher.update(DOMAIN);
    members.first()?;
    for number in members {
        let entry = &index.entries[number];
        match &entry.kind {
            Kind::Dir => text(&mut hasher, b'd', &entry.path),
            Kind::Symlink(target) => {
                if !stays_inside(entry.path.strip_prefix(FOLDER)?, target) {
                    return None;
                }
                text(&mut hasher, b'l', &entry.path);
                text(&mut hasher, b'>', target);
            }
            Kind::File { .. } | Kind::Link(_) => {
                let (_, digest, executable) =
                    index.file(number).filter(|_| index.slots(number).is_empty())?;
                text(&mut hasher, if executable { b'x' } else { b'f' }, &entry.path);
                hasher.update(&digest.0);
            }
        }
    }
    Some(hasher.finalize().into())
}

fn text(hasher: &mut blake3::Hasher, kind: u8, text: &[u8]) {
    hasher.update(&[kind]).update(&(text.len() as u64).to_le_bytes()).update(text);
}

/// The numbers of the entries that belong to the closure, in order.
pub fn members(index: &Index) -> Vec<usize> {
    (0..index.entries.len()).filter(|number| is_in_closure(&index.entries[*number].path)).collect()
}

/// Where a tree is used, and by which path its closure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    /// The tree's absolute path.
    pub tree: PathBuf,
    /// The closure's, if its programs name that.
    pub closure: Option<PathBuf>,
}

impl Home {
    /// Of this bundle's tree in a store.
    pub fn new(store: &Store, bundle: &Digest, closure: Option<Digest>) -> Self {
        let closure = closure.map(|closure| store.closure(&closure));
        Self { tree: store.tree_dir(bundle).join("tree"), closure }
    }

    /// What its slots are filled with.
    pub fn paths(&self) -> Paths<'_> {
        Paths { tree: &self.tree, closure: self.closure.as_deref() }
    }

    /// The path by which the kernel and the loader open a file of the tree that was named by a slot.
    pub fn opened_at(&self, path: &str) -> PathBuf {
        let closure = self.closure.as_ref().filter(|_| is_in_closure(path.as_bytes()));
        closure.unwrap_or(&self.tree).join(path)
    }
}

/// The closure's digest if this store can have a path for it, which is tried out where no link is there yet: file
/// systems may know no links, or be mounted with `nosymfollow`.
pub fn usable(store: &Store, index: &Index) -> Option<Digest> {
    let digest = digest(index)?;
    if leads_to_folder(&store.closure(&digest)) {
        return Some(digest);
    }
    let tried = store.lock_closures().and_then(|_lock| try_link(store));
    match tried {
        Ok(leads) => leads.then_some(digest),
        // The tree will not fit either, and that is what has to be said.
        Err(error) => error.is_full().then_some(digest),
    }
}

fn try_link(store: &Store) -> Result<bool, StoreError> {
    let probe = store.closures().join("probe");
    let make = || {
        make_folder(store)?;
        store::remove(&probe)?;
        symlink("../trees", &probe)?;
        let leads = leads_to_folder(&probe);
        fs::remove_file(&probe).map(|()| leads)
    };
    make().map_err(StoreError::io("make", &probe))
}

/// Makes the closure's path lead to a tree that was found right. `root` is that tree, open; the caller holds it, so
/// that it is not removed. Where the store cannot be written to, another tree's will do if it has the same files.
pub fn lead(store: &Store, record: &Record, root: BorrowedFd) -> Result<(), StoreError> {
    let Some(closure) = record.closure else { return Ok(()) };
    let link = store.closure(&closure);
    if leads_to(&link, root) {
        return Ok(());
    }
    let set = store
        .lock_closures()
        .and_then(|_lock| set(store, &closure, &record.bundle).map_err(StoreError::io("make", &link)));
    match set {
        Err(error) if !has_same_files(&link, record) => Err(error),
        _ => Ok(()),
    }
}

/// Makes the link anew. The caller has the lock.
fn set(store: &Store, closure: &Digest, bundle: &Digest) -> io::Result<()> {
    make_folder(store)?;
    let link = store.closure(closure);
    let new = link.with_extension("new");
    store::remove(&new)?;
    symlink(format!("../trees/{bundle}/tree"), &new)?;
    if fs::symlink_metadata(&link).is_ok_and(|found| !found.is_symlink()) {
        store::remove(&link)?;
    }
    fs::rename(&new, &link)
}

fn make_folder(store: &Store) -> io::Result<()> {
    let folder = store.closures();
    match fs::create_dir(&folder) {
        Err(_) if fs::symlink_metadata(&folder).is_ok_and(|found| found.is_dir()) => Ok(()),
        made => made,
    }
}

fn leads_to_folder(link: &Path) -> bool {
    fs::metadata(link).is_ok_and(|found| found.is_dir())
}

/// True if a closure's path leads to this tree.
pub fn leads_to(link: &Path, root: BorrowedFd) -> bool {
    let root = fstat(root).map(|found| (found.st_dev, found.st_ino));
    fs::metadata(link).is_ok_and(|found| root == Ok((found.dev(), found.ino())))
}

/// Opens the tree that a closure's path leads to.
pub fn open_link(link: &Path) -> nix::Result<OwnedFd> {
    open(link, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
}

/// True if the link leads to files that stat(2) shows as this record has them: they are shared.
fn has_same_files(link: &Path, record: &Record) -> bool {
    let files = members(&record.index);
    let files: Vec<usize> = files.into_iter().filter(|number| record.index.file(*number).is_some()).collect();
    open_link(link).is_ok_and(|other| record.differing(other.as_fd(), Some(&files)).is_empty())
}

/// Hands over every link that leads to a tree which is about to be removed. The caller has the lock, and removes the
/// tree before it gives that back. A link that no other tree can take stays as it is, for [`sweep`].
pub fn hand_over(store: &Store, bundle: &Digest) -> Result<(), StoreError> {
    let mut handed = false;
    for (closure, leads_to) in links(store) {
        if leads_to == Some(*bundle) {
            handed |= give_to_another(store, &closure, bundle)?;
        }
    }
    if handed {
        std::thread::sleep(WALK);
    }
    Ok(())
}

/// Repairs links that lead to no tree, and removes those that nobody needs any more, and what is no link. Makes
/// nothing where there are none.
pub fn sweep(store: &Store) -> Result<(), StoreError> {
    let folder = store.closures();
    let Ok(entries) = fs::read_dir(&folder) else { return Ok(()) };
    let lock = store.lock_closures()?;
    for path in entries.flatten().map(|entry| entry.path()) {
        let is_link = fs::read_link(&path).is_ok() && named(path.file_name().unwrap_or_default()).is_some();
        if !is_link {
            store::remove(&path).map_err(StoreError::io("remove", &path))?;
        }
    }
    for (closure, leads_to) in links(store) {
        let bundle = leads_to.unwrap_or_default();
        let path = store.closure(&closure);
        if !leads_to_folder(&path) && !give_to_another(store, &closure, &bundle)? {
            fs::remove_file(&path).map_err(StoreError::io("remove", &path))?;
        }
    }
    // While a link is in it, it stays.
    if fs::remove_dir(&folder).is_ok() {
        lock.remove();
    }
    Ok(())
}

/// Makes a link lead to any tree but this one that has the closure. False if there is none.
fn give_to_another(store: &Store, closure: &Digest, bundle: &Digest) -> Result<bool, StoreError> {
    let has_it = |digest: &Digest| {
        let dir = store.tree_dir(digest);
        digest != bundle
            && extract::open_dir(&dir.join("tree")).is_ok()
            && Record::read(&dir, digest).is_some_and(|record| record.closure == Some(*closure))
    };
    // The one that was used last is the likeliest to run now.
    let heirs = store.digests().into_iter().filter(has_it);
    let Some(heir) = heirs.min_by_key(|heir| collect::idle(&store.tree_dir(heir))) else { return Ok(false) };
    set(store, closure, &heir).map_err(StoreError::io("make", &store.closure(closure)))?;
    Ok(true)
}

/// All links: of which closure, and to which bundle's tree.
fn links(store: &Store) -> Vec<(Digest, Option<Digest>)> {
    let entries = fs::read_dir(store.closures()).into_iter().flatten().flatten();
    let link = |entry: fs::DirEntry| {
        Some((named(&entry.file_name())?, bundle_of(&fs::read_link(entry.path()).ok()?)))
    };
    entries.filter_map(link).collect()
}

fn named(name: &OsStr) -> Option<Digest> {
    name.to_str().filter(|name| name.len() == 64).and_then(Digest::from_hex)
}

/// `../trees/<bundle digest>/tree`
fn bundle_of(target: &Path) -> Option<Digest> {
    let target = target.as_os_str().as_bytes().strip_prefix(b"../trees/")?.strip_suffix(b"/tree")?;
    named(OsStr::from_bytes(target))
}
