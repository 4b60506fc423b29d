//! Sharing between trees: a file that another tree has becomes a hard link to it, so that the next version
//! of an app costs what is new in it.
//!
//! There is no pool of contents beside the trees, which would have to be filled and swept. The records of
//! the other trees say which contents are where. A file is shared with one of equal digest and equal
//! permissions only; its bytes are hashed *after* the link was made, between two looks at its ctime, so that
//! the ctime which goes into the records is that of bytes which were seen to be right.
//!
//! A file with slots is shared if they name nothing of the tree but its closure, and the other tree names an equal
//! closure by the same path (closure.rs).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Mutex;

use kitbag_format::index::{Entry, Kind};
use kitbag_format::sort;
use kitbag_format::{Bundle, Digest, Index, extract};
use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, linkat, unlinkat};

use crate::store::Store;
use crate::store::closure::Home;
use crate::store::heal::{self, Filling};
use crate::store::place::Need;
use crate::store::record::{self, Record, Stat};
use kitbag_format::parallel;

/// Content with permissions, and whether it has slots.
type Key = (Digest, bool, bool);

/// A tree that is to share what others have.
pub struct Sharing<'a> {
    /// The store.
    pub store: &'a Store,
    /// The tree's bundle.
    pub bundle: &'a Bundle,
    /// Its index.
    pub index: &'a Index,
    /// The closure that its slots name.
    pub closure: Option<Digest>,
}

/// Another tree.
struct Other {
    digest: Digest,
    dir: PathBuf,
    root: OwnedFd,
}

/// A file of another tree.
struct Donor {
    tree: usize,
    path: Vec<u8>,
}

/// The files of other trees that have a wanted content.
#[derive(Default)]
struct Donors {
    files: Vec<Donor>,
    /// Content and number in `files`, sorted.
    keys: Vec<(Key, usize)>,
}

impl Donors {
    fn of(&self, key: Key) -> impl Iterator<Item = &Donor> {
        let from = self.keys.partition_point(|(donor, _)| *donor < key);
        let same = self.keys[from..].iter().take_while(move |(donor, _)| *donor == key);
        same.map(|(_, number)| &self.files[*number])
    }
}

/// A shared inode with its present stat, and one of its entries. Sorted by content, one each.
struct Moved {
    key: Key,
    stat: Stat,
    entry: usize,
}

/// What a tree shares.
pub struct Shared {
    /// For each entry of the index the stat of the file that is there now; `None`: it is to be unpacked.
    pub present: Vec<Option<Stat>>,
    others: Vec<Other>,
    moved: Vec<Moved>,
}

impl Sharing<'_> {
    /// Links what other trees have into the tree at `root`. Makes the tree's folders. What cannot be shared, for
    /// whatever reason, is unpacked.
    pub fn link(&self, root: BorrowedFd) -> Shared {
        let index = self.index;
        let mut present = vec![None; index.entries.len()];
        let digest = self.bundle.digest();
        let others = others(self.store, &digest);
        let mut wanted = wanted(index);
        let donors = self.donors(&others, &wanted);
        let mut moved = Vec::new();
        if donors.keys.is_empty() || make_dirs(root, index).is_err() {
            return Shared { present, others, moved };
        }
        let home = Home::new(self.store, &digest, self.closure);
        let filling = self.keep_common(&home, &mut wanted, &donors);
        let groups: Vec<&[(Key, usize)]> = wanted.chunk_by(|a, b| a.0 == b.0).collect();
        let linked = Mutex::new(vec![None; groups.len()]);
        parallel::for_each(groups.len(), 8, &|number| {
            let group = groups[number];
            let mut candidates = donors.of(group[0].0);
            let link = |donor| link_group(&others, donor, root, (index, &filling), group);
            let result = candidates.find_map(link);
            if let Ok(mut linked) = linked.lock() {
                linked[number] = result;
            }
        });
        for (group, result) in groups.iter().zip(linked.into_inner().unwrap_or_default()) {
            let Some((done, stat)) = result else { continue };
            moved.push(Moved { key: group[0].0, stat, entry: group[0].1 });
            group[..done].iter().for_each(|(_, entry)| present[*entry] = Some(stat));
        }
        Shared { present, others, moved }
    }

    /// What the tree needs when everything that other trees have is shared.
    pub fn still_needed(&self, needs: Need) -> Need {
        let mut wanted = wanted(self.index);
        let others = others(self.store, &self.bundle.digest());
        let donors = self.donors(&others, &wanted);
        let home = Home::new(self.store, &self.bundle.digest(), self.closure);
        self.keep_common(&home, &mut wanted, &donors);
        wanted.retain(|(key, _)| donors.of(*key).next().is_some());
        let entries = wanted.iter().map(|(_, number)| &self.index.entries[*number]);
        let bytes: u64 = entries.map(crate::store::unpack::on_disk).sum();
        Need {
            bytes: needs.bytes.saturating_sub(bytes),
            files: needs.files.saturating_sub(wanted.len() as u64),
        }
    }

    /// Of the files with slots, keeps those that another tree has and that are the same in it. Returns what they hold.
    /// Only their frames are read.
    fn keep_common<'a>(
        &self,
        home: &'a Home,
        wanted: &mut Vec<(Key, usize)>,
        donors: &Donors,
    ) -> Filling<'a> {
        let slotted = wanted.iter().filter(|(key, _)| key.2 && donors.of(*key).next().is_some());
        let mut slotted: Vec<usize> = slotted.map(|(_, number)| *number).collect();
        sort::sort(&mut slotted);
        // What is wrong with the bundle is said when it is unpacked.
        let filling = Filling::of(self.bundle, self.index, home.paths(), &slotted);
        let filling = filling.unwrap_or_else(|_| Filling::none());
        wanted.retain(|(key, number)| {
            let is_known = || slotted.binary_search(number).is_ok();
            !key.2 || (is_known() && filling.is_common(self.index, *number))
        });
        filling
    }

    fn donors(&self, others: &[Other], wanted: &[(Key, usize)]) -> Donors {
        let mut donors = Donors::default();
        for (tree, other) in others.iter().enumerate() {
            let Some(record) = Record::read(&other.dir, &other.digest) else { continue };
            let same_closure = self.closure.is_some() && record.closure == self.closure;
            for entry in record.index.entries {
                if let Some(key) = key(&entry)
                    && (!key.2 || same_closure)
                    && wanted.binary_search_by(|(wanted, _)| wanted.cmp(&key)).is_ok()
                {
                    donors.keys.push((key, donors.files.len()));
                    donors.files.push(Donor { tree, path: entry.path });
                }
            }
        }
        sort::sort(&mut donors.keys);
        donors
    }
}

/// The contents that are worth sharing, sorted, with their entries. An empty file has nothing to share. Of files with
/// slots and equal contents the first counts: nothing says that the slots of the others are the same.
fn wanted(index: &Index) -> Vec<(Key, usize)> {
    let files = index.entries.iter().enumerate().filter(|(_, entry)| entry.size() > 0);
    let mut wanted: Vec<(Key, usize)> =
        files.filter_map(|(number, entry)| Some((key(entry)?, number))).collect();
    sort::sort(&mut wanted);
    wanted.dedup_by(|next, before| next.0.2 && next.0 == before.0);
    wanted
}

fn key(entry: &Entry) -> Option<Key> {
    match &entry.kind {
        Kind::File { digest, executable, slots, .. } => Some((*digest, *executable, !slots.is_empty())),
        _ => None,
    }
}

fn others(store: &Store, bundle: &Digest) -> Vec<Other> {
    let digests = store.digests().into_iter().filter(|digest| digest != bundle);
    digests
        .filter_map(|digest| {
            let dir = store.tree_dir(&digest);
            let root = extract::open_dir(&dir.join("tree")).ok()?;
            Some(Other { digest, dir, root })
        })
        .collect()
}

fn make_dirs(root: BorrowedFd, index: &Index) -> Result<(), Errno> {
    let dirs = index.entries.iter().filter(|entry| entry.kind == Kind::Dir);
    dirs.map(|entry| mkdirat(root, entry.path.as_slice(), Mode::from_bits_truncate(0o755)))
        .find(|made| !matches!(made, Ok(()) | Err(Errno::EEXIST)))
        .unwrap_or(Ok(()))
}

/// Links the donor to as many of the group's entries as its file can have names, then makes sure of its
/// content. Returns how many were linked, and the file's stat.
fn link_group(
    others: &[Other],
    donor: &Donor,
    root: BorrowedFd,
    (index, filling): (&Index, &Filling),
    group: &[(Key, usize)],
) -> Option<(usize, Stat)> {
    let path = |entry: &(Key, usize)| index.entries[entry.1].path.as_slice();
    let from = &others[donor.tree].root;
    let link = |to: &[u8]| linkat(from, donor.path.as_slice(), root, to, AtFlags::empty());
    let done = group.iter().take_while(|entry| link(path(entry)).is_ok()).count();
    let first = group[..done].first()?;
    match heal::examine(root, index, first.1, filling) {
        Ok(stat) => Some((done, stat)),
        Err(_) => {
            for entry in &group[..done] {
                let _ = unlinkat(root, path(entry), UnlinkatFlags::NoRemoveDir);
            }
            None
        }
    }
}

impl Shared {
    /// The other trees' records follow the new ctimes, once this tree has all its links. Where a tree's lock cannot be
    /// had at once, its next start hashes what was shared and writes the record itself.
    pub fn follow(mut self, store: &Store, root: BorrowedFd, index: &Index) {
        let linked = index.entries.iter().filter_map(|entry| match entry.kind {
            Kind::Link(to) => Some(to),
            _ => None,
        });
        let mut linked: Vec<usize> = linked.collect();
        sort::sort(&mut linked);
        for moved in self.moved.iter_mut().filter(|moved| linked.binary_search(&moved.entry).is_ok()) {
            // Its second names moved the ctime once more.
            let found = record::stat(root, record::path_of(index, moved.entry));
            moved.stat = found.as_ref().map_or(moved.stat, Stat::from);
        }
        for other in &self.others {
            let Ok(Some(_lock)) = store.try_lock(&other.digest) else { continue };
            let Some(mut record) = Record::read(&other.dir, &other.digest) else { continue };
            if update(&mut record, &self.moved) && other.is_there() {
                // What cannot be written costs the next start a comparison.
                let _ = record.write(&other.dir);
            }
        }
    }
}

fn update(record: &mut Record, moved: &[Moved]) -> bool {
    let mut changed = false;
    for number in 0..record.index.entries.len() {
        let Some(key) = record.index.entries.get(record.index.owner(number)).and_then(key) else { continue };
        let stat = &mut record.stats[number];
        if let Ok(found) = moved.binary_search_by_key(&key, |moved| moved.key)
            && moved[found].stat.ino == stat.ino
            && *stat != moved[found].stat
        {
            *stat = moved[found].stat;
            changed = true;
        }
    }
    changed
}

impl Other {
    fn is_there(&self) -> bool {
        extract::open_dir(&self.dir.join("tree"))
            .ok()
            .and_then(|now| Some((ino(now.as_fd())?, ino(self.root.as_fd())?)))
            .is_some_and(|(now, then)| now == then)
    }
}

fn ino(dir: BorrowedFd) -> Option<u64> {
    nix::sys::stat::fstat(dir).ok().map(|stat| stat.st_ino)
}
