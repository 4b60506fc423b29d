//! Sharing between trees: a file that another tree has becomes a hard link to it, so that the next version
//! of an app costs what is new in it.
//!
//! There is no pool of contents beside the trees, which would have to be filled and swept. The records of
//! the other trees say which contents are where. A file is shared with one of equal digest and equal
//! permissions only; its bytes are hashed *after* the link was made, between two looks at its ctime, so that
//! the ctime which goes into the records is that of bytes which were seen to be right.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Mutex;

use kitbag_format::index::Kind;
use kitbag_format::{Digest, Index, extract};
use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, linkat, unlinkat};

use crate::heal::{self, Filling};
use crate::place::Need;
use crate::record::{Record, Stat};
use crate::store::Store;
use kitbag_format::parallel;

/// Content with permissions.
type Key = (Digest, bool);

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

/// A shared inode with its present stat. Sorted by content, one each.
struct Moved {
    key: Key,
    stat: Stat,
}

/// Links what other trees have into the tree at `root`. Makes the tree's folders. Returns for each entry of
/// the index the stat of the file that is there now, or `None` if it is to be unpacked. What cannot be
/// shared, for whatever reason, is unpacked.
pub fn link(store: &Store, bundle: &Digest, root: BorrowedFd, index: &Index) -> Vec<Option<Stat>> {
    let mut present = vec![None; index.entries.len()];
    let others = others(store, bundle);
    let wanted = wanted(index);
    let donors = donors(&others, &wanted);
    if donors.keys.is_empty() || make_dirs(root, index).is_err() {
        return present;
    }
    let groups: Vec<&[(Key, usize)]> = wanted.chunk_by(|a, b| a.0 == b.0).collect();
    let linked = Mutex::new(vec![None; groups.len()]);
    parallel::for_each(groups.len(), 8, &|number| {
        let group = groups[number];
        let mut candidates = donors.of(group[0].0);
        let result = candidates.find_map(|donor| link_group(&others, donor, root, index, group));
        if let Ok(mut linked) = linked.lock() {
            linked[number] = result;
        }
    });
    let mut moved = Vec::new();
    for (group, result) in groups.iter().zip(linked.into_inner().unwrap_or_default()) {
        let Some((done, stat)) = result else { continue };
        moved.push(Moved { key: group[0].0, stat });
        group[..done].iter().for_each(|(_, entry)| present[*entry] = Some(stat));
    }
    follow(store, &others, &moved);
    present
}

/// What a tree needs when everything that other trees have is shared.
pub fn still_needed(store: &Store, index: &Index, needs: Need) -> Need {
    let wanted = wanted(index);
    let others = others(store, &Digest::default());
    let donors = donors(&others, &wanted);
    let shared: Vec<&(Key, usize)> =
        wanted.iter().filter(|(key, _)| donors.of(*key).next().is_some()).collect();
    let bytes: u64 = shared.iter().map(|(_, number)| crate::unpack::on_disk(&index.entries[*number])).sum();
    Need { bytes: needs.bytes.saturating_sub(bytes), files: needs.files.saturating_sub(shared.len() as u64) }
}

/// Sorted by content. An empty file has nothing to share, and what one with slots holds is its own tree's path.
fn wanted(index: &Index) -> Vec<(Key, usize)> {
    let files = index.entries.iter().enumerate();
    let mut wanted: Vec<(Key, usize)> = files
        .filter(|(_, entry)| entry.slots().is_empty())
        .filter_map(|(number, entry)| match entry.kind {
            Kind::File { size, digest, executable, .. } if size > 0 => Some(((digest, executable), number)),
            _ => None,
        })
        .collect();
    wanted.sort_unstable();
    wanted
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

fn donors(others: &[Other], wanted: &[(Key, usize)]) -> Donors {
    let mut donors = Donors::default();
    for (tree, other) in others.iter().enumerate() {
        let Some(record) = Record::read(&other.dir, &other.digest) else { continue };
        for entry in record.index.entries {
            if let Kind::File { digest, executable, ref slots, .. } = entry.kind
                && slots.is_empty()
                && wanted.binary_search_by(|(key, _)| key.cmp(&(digest, executable))).is_ok()
            {
                donors.keys.push(((digest, executable), donors.files.len()));
                donors.files.push(Donor { tree, path: entry.path });
            }
        }
    }
    donors.keys.sort_unstable();
    donors
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
    index: &Index,
    group: &[(Key, usize)],
) -> Option<(usize, Stat)> {
    let path = |entry: &(Key, usize)| index.entries[entry.1].path.as_slice();
    let from = &others[donor.tree].root;
    let link = |to: &[u8]| linkat(from, donor.path.as_slice(), root, to, AtFlags::empty());
    let done = group.iter().take_while(|entry| link(path(entry)).is_ok()).count();
    let first = group[..done].first()?;
    match heal::examine(root, index, first.1, &Filling::none()) {
        Ok(stat) => Some((done, stat)),
        Err(_) => {
            for entry in &group[..done] {
                let _ = unlinkat(root, path(entry), UnlinkatFlags::NoRemoveDir);
            }
            None
        }
    }
}

/// The records follow the new ctimes. Where a tree's lock cannot be had at once, its next start hashes what
/// was shared and writes the record itself.
fn follow(store: &Store, others: &[Other], moved: &[Moved]) {
    for other in others {
        let Ok(Some(_lock)) = store.try_lock(&other.digest) else { continue };
        let Some(mut record) = Record::read(&other.dir, &other.digest) else { continue };
        if update(&mut record, moved) && other.is_there() {
            // What cannot be written costs the next start a comparison.
            let _ = record.write(&other.dir);
        }
    }
}

fn update(record: &mut Record, moved: &[Moved]) -> bool {
    let mut changed = false;
    for number in 0..record.index.entries.len() {
        let Some((_, digest, executable)) = record.index.file(number) else { continue };
        let stat = &mut record.stats[number];
        if let Ok(found) = moved.binary_search_by_key(&(digest, executable), |moved| moved.key)
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
