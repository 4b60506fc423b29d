//! Damage: found by comparing with the bundle's digests, healed from the bundle, and said.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::{error, fmt};

use kitbag_format::extract::{self, Extraction};
use kitbag_format::index::{Entry, Kind};
use kitbag_format::slots::{self, Paths, Slot};
use kitbag_format::sort;
use kitbag_format::{Bundle, Digest, Error, Index};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat, renameat};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, SFlag, fchmod, fchmodat, fstat, mkdirat};
use nix::unistd::{linkat, symlinkat};

use crate::store::closure::{self, Home};
use crate::store::record::{self, Record, Stat, path_of};
use crate::store::{self, Store, StoreError};
use kitbag_format::parallel;

/// Bytes that are hashed at a time.
const PIECE: usize = 128 << 10;
/// How often a file is hashed anew when its ctime moves meanwhile: somebody links it, or writes to it.
const TRIES: usize = 3;

/// Entries that are right, with their stats.
type Right = Vec<(usize, Stat)>;
/// Entries that are wrong, with their paths.
type Wrong = Vec<(usize, What, Vec<u8>)>;

/// What is wrong with an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// There is nothing.
    Deleted,
    /// The file has no content left.
    Emptied,
    /// The content, or the link's target, is another.
    Changed,
    /// A slot does not hold the tree's path; all else is right.
    Elsewhere,
    /// Its content cannot be read.
    Unreadable,
    /// The permissions are not those it was unpacked with.
    Permissions,
    /// Something of another kind is there.
    Replaced,
    /// It is not part of the bundle.
    Stranger,
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Deleted => "it had been deleted",
            Self::Emptied => "it had been emptied",
            Self::Changed => "its content had changed",
            Self::Elsewhere => "it names another folder than its own",
            Self::Unreadable => "it could not be read",
            Self::Permissions => "its permissions had changed",
            Self::Replaced => "something else was in its place",
            Self::Stranger => "it is not part of the bundle",
        })
    }
}

/// Damage to one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Path in the tree, `.` the tree itself.
    pub path: Vec<u8>,
    /// What is wrong.
    pub what: What,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", String::from_utf8_lossy(&self.path), self.what)
    }
}

impl error::Error for Finding {}

/// Compares every entry of the unpacked tree with the bundle's digests, in parallel. `None`: it is not
/// unpacked here. Changes nothing.
pub fn verify_unpacked(store: &Store, bundle: &Bundle) -> Result<Option<Vec<Finding>>, StoreError> {
    let dir = store.tree_dir(&bundle.digest());
    let path = dir.join("tree");
    let root = match extract::open_dir(&path) {
        Ok(root) => root,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StoreError::io("open", &path)(error)),
    };
    let index = bundle.index()?;
    let all: Vec<usize> = (0..=index.entries.len()).collect();
    let record = Record::read(&dir, &bundle.digest());
    let closure = record.map_or_else(|| closure::digest(&index), |record| record.closure);
    let home = Home::new(store, &bundle.digest(), closure);
    let filling = Filling::of(bundle, &index, home.paths(), &all)?;
    let mut findings = examine_all(root.as_fd(), &index, &all, &filling).1;
    let names = sorted_paths(&index);
    for number in all.into_iter().filter(|number| is_dir(&index, *number)) {
        for stranger in strangers(&path, path_of(&index, number), &names) {
            findings.push((number, What::Stranger, stranger));
        }
    }
    findings.extend(home.closure.iter().flat_map(|path| wrong_in_closure(path, root.as_fd(), &index)));
    Ok(Some(findings.into_iter().map(|(_, what, path)| Finding { path, what }).collect()))
}

/// What is wrong with the closure where programs look for it: mostly that is the tree, which was compared.
fn wrong_in_closure(path: &Path, root: BorrowedFd, index: &Index) -> Wrong {
    let members = closure::members(index);
    match closure::open_link(path) {
        _ if closure::leads_to(path, root) => Vec::new(),
        Ok(there) => examine_all(there.as_fd(), index, &members, &Filling::none()).1,
        Err(_) => vec![(0, What::Deleted, b".kitbag".to_vec())],
    }
}

/// What the slots of a tree's files must hold.
pub struct Filling<'a> {
    paths: Paths<'a>,
    /// Packed bytes of the slots, each with its file's number, in order.
    packed: Vec<(usize, Vec<u8>)>,
}

impl<'a> Filling<'a> {
    /// For a tree that these paths lead to, and those of its entries that are to be examined.
    pub fn of(bundle: &Bundle, index: &Index, paths: Paths<'a>, numbers: &[usize]) -> Result<Self, Error> {
        let mut examined = vec![false; index.entries.len() + 1];
        numbers.iter().for_each(|number| examined[index.owner(*number)] = true);
        Ok(Self { paths, packed: extract::packed_slots(bundle, index, &|number| examined[number])? })
    }

    /// For files without slots.
    pub fn none() -> Self {
        Self { paths: Paths::of_tree(Path::new("")), packed: Vec::new() }
    }

    /// True if an entry's slots name the closure by its own path, and nothing else of the tree: it is filled with the
    /// same in every tree that has this closure. The entry is among those that this was made for.
    pub fn is_common(&self, index: &Index, number: usize) -> bool {
        let mut slots = self.slots(index, number);
        self.paths.closure.is_some() && slots.all(|(slot, packed)| !slots::names_tree(packed, slot.pad))
    }

    /// The slots of an entry's contents with their packed bytes.
    fn slots<'b>(&'b self, index: &'b Index, number: usize) -> impl Iterator<Item = (&'b Slot, &'b Vec<u8>)> {
        let first = self.packed.partition_point(|(file, _)| *file < index.owner(number));
        index.slots(number).iter().zip(self.packed[first..].iter().map(|(_, packed)| packed))
    }
}

/// What a healing has to know.
pub struct Healing<'a> {
    /// The store.
    pub store: &'a Store,
    /// Where lost content comes from.
    pub bundle: &'a Bundle,
    /// Its index.
    pub index: &'a Index,
    /// The tree's folder.
    pub root: BorrowedFd<'a>,
    /// Its path.
    pub path: &'a Path,
    /// What its slots are filled with.
    pub paths: Paths<'a>,
    /// Called with a sentence for everything that was healed.
    pub say: &'a (dyn Fn(&str) + Sync),
}

/// The outcome: new stats for the record, by entry, and whether anything had to be written.
pub struct Healed {
    /// Entry, its stat now that it is right.
    pub stats: Vec<(usize, Stat)>,
    /// False if everything was right and only the record was old.
    pub wrote: bool,
}

impl Healing<'_> {
    /// Examines the entries `suspects` (in order) and heals what is wrong. The caller has the tree's lock.
    pub fn run(&self, suspects: &[usize]) -> Result<Healed, StoreError> {
        let work = self.store.work(&format!("{}.heal", self.bundle.digest()));
        let mut open = Opened { healing: self, dirs: Vec::new() };
        let result = self.heal(suspects, &work, &mut open);
        let closed = open.close();
        let removed = store::remove(&work).map_err(StoreError::io("remove", &work));
        let (mut stats, mut again) = result?;
        closed?;
        removed?;
        let wrote = !again.is_empty();
        // Neighbours only: a stat that is taken twice is right twice.
        again.dedup();
        for number in again {
            let path = path_of(self.index, number);
            let found =
                record::stat(self.root, path).ok_or_else(|| self.failed("examine", path)(Errno::ENOENT))?;
            stats.push((number, Stat::from(&found)));
        }
        Ok(Healed { stats, wrote })
    }

    /// Returns the stats of what was right, and the numbers of what was changed and has to be looked at again.
    fn heal(
        &self,
        suspects: &[usize],
        work: &Path,
        open: &mut Opened,
    ) -> Result<(Right, Vec<usize>), StoreError> {
        let (mut fine, mut again) = (Vec::new(), Vec::new());
        let mut suspect = vec![false; self.index.entries.len() + 1];
        suspects.iter().for_each(|number| suspect[*number] = true);
        self.heal_dirs(&mut suspect, open, (&mut fine, &mut again))?;
        let others: Vec<usize> =
            (0..suspect.len()).filter(|number| suspect[*number] && !is_dir(self.index, *number)).collect();
        let filling = Filling::of(self.bundle, self.index, self.paths, &others)?;
        let (right, wrong) = examine_all(self.root, self.index, &others, &filling);
        fine.extend(right);
        // All of them, as a rule: the store was moved.
        let elsewhere = wrong.iter().filter(|(_, what, _)| *what == What::Elsewhere).count();
        if elsewhere > 0 {
            (self.say)(&format!("healed {elsewhere} of the files: they named another folder than their own"));
        }
        let mut lost = Vec::new();
        for (number, what, path) in wrong {
            if what != What::Elsewhere {
                self.tell(&path, what);
            }
            match what {
                What::Permissions => self.set_mode(number)?,
                _ => lost.push(number),
            }
            again.push(number);
        }
        if !lost.is_empty() {
            self.restore(&lost, work, open, &mut again)?;
        }
        again.extend(open.numbers());
        Ok((fine, again))
    }

    /// Folders first, parents before children: what lies below one that was not there is suspect too.
    fn heal_dirs(
        &self,
        suspect: &mut [bool],
        open: &mut Opened,
        (fine, again): (&mut Right, &mut Vec<usize>),
    ) -> Result<(), StoreError> {
        let names = sorted_paths(self.index);
        let tree = self.index.entries.len();
        if suspect[tree] {
            self.heal_dir(tree, &names, open, (fine, again))?;
        }
        for number in 0..tree {
            if suspect[number]
                && is_dir(self.index, number)
                && self.heal_dir(number, &names, open, (fine, again))?
            {
                let prefix = [path_of(self.index, number), b"/"].concat();
                let below = |entry: &Entry| entry.path.starts_with(&prefix);
                for (suspect, entry) in suspect.iter_mut().zip(&self.index.entries) {
                    *suspect |= below(entry);
                }
            }
        }
        Ok(())
    }

    /// Returns true if the folder had to be made.
    fn heal_dir(
        &self,
        number: usize,
        names: &[&[u8]],
        open: &mut Opened,
        (fine, again): (&mut Right, &mut Vec<usize>),
    ) -> Result<bool, StoreError> {
        let path = path_of(self.index, number);
        let made = match examine(self.root, self.index, number, &Filling::none()) {
            Ok(stat) => {
                fine.push((number, stat));
                false
            }
            Err(What::Permissions) => {
                self.tell(path, What::Permissions);
                self.set_mode(number)?;
                again.push(number);
                false
            }
            Err(what) => {
                self.tell(path, what);
                self.clear(path, open)?;
                mkdirat(self.root, path, Mode::from_bits_truncate(0o755))
                    .map_err(self.failed("make", path))?;
                open.dirs.push(path.to_vec());
                true
            }
        };
        for stranger in strangers(self.path, path, names) {
            self.tell(&stranger, What::Stranger);
            self.clear(&stranger, open)?;
        }
        Ok(made)
    }

    /// Removes what is at a path, if anything, and leaves its folder open for writing.
    fn clear(&self, path: &[u8], open: &mut Opened) -> Result<(), StoreError> {
        open.parent_of(path)?;
        let full = self.path.join(OsStr::from_bytes(path));
        store::remove(&full).map(|_| ()).map_err(StoreError::io("remove", &full))
    }

    /// Puts files and links back.
    fn restore(
        &self,
        lost: &[usize],
        work: &Path,
        open: &mut Opened,
        again: &mut Vec<usize>,
    ) -> Result<(), StoreError> {
        let kind = |number: usize| &self.index.entries[number].kind;
        let tree = self.extract(lost, work)?;
        for number in lost.iter().copied().filter(|number| matches!(kind(*number), Kind::File { .. })) {
            let path = path_of(self.index, number);
            self.clear_dir(path, open)?;
            let from = self.path_in(&tree, path);
            let file = File::open(&from).map_err(StoreError::io("open", &from))?;
            fchmod(&file, self.mode(number)).map_err(StoreError::sys("set the permissions of", &from))?;
            let staging = extract::open_dir(&tree).map_err(StoreError::io("open", &tree))?;
            renameat(&staging, path, self.root, path).map_err(self.failed("put back", path))?;
        }
        for number in lost.iter().copied() {
            let path = path_of(self.index, number);
            match kind(number) {
                Kind::Symlink(target) => {
                    self.clear(path, open)?;
                    symlinkat(target.as_slice(), self.root, path).map_err(self.failed("put back", path))?;
                }
                Kind::Link(to) => {
                    self.clear(path, open)?;
                    let from = path_of(self.index, *to);
                    linkat(self.root, from, self.root, path, AtFlags::empty())
                        .map_err(self.failed("put back", path))?;
                    again.push(*to);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// A file replaces a file in one step; something else has to go first.
    fn clear_dir(&self, path: &[u8], open: &mut Opened) -> Result<(), StoreError> {
        match record::stat(self.root, path) {
            Some(found) if kind_of(&found) == SFlag::S_IFDIR => self.clear(path, open),
            _ => open.parent_of(path),
        }
    }

    /// Unpacks the lost files alone, in an own folder. Only their frames are read.
    fn extract(&self, lost: &[usize], work: &Path) -> Result<PathBuf, StoreError> {
        let tree = work.join("tree");
        store::remove(work).map_err(StoreError::io("remove", work))?;
        fs::create_dir_all(&tree).map_err(StoreError::io("make", &tree))?;
        let root = extract::open_dir(&tree).map_err(StoreError::io("open", &tree))?;
        let needed = |number: usize| {
            let file = matches!(self.index.entries[number].kind, Kind::File { .. });
            file && lost.binary_search(&number).is_ok()
        };
        let index = self.reduced(&needed);
        let extraction = Extraction {
            bundle: self.bundle,
            index: &index,
            present: &|number| !needed(number),
            progress: &|_| {},
            written: &|_, _| {},
            read_only: false,
            paths: self.paths,
        };
        extraction.run(root.as_fd())?;
        Ok(tree)
    }

    /// The index with every link, and every folder that leads to no needed file, turned into the folder `.`,
    /// which is there: the places of the contents stay what they are.
    fn reduced(&self, needed: &dyn Fn(usize) -> bool) -> Index {
        let mut index = self.index.clone();
        let mut dirs: Vec<&[u8]> = Vec::new();
        for number in (0..self.index.entries.len()).filter(|number| needed(*number)) {
            dirs.extend(parents(path_of(self.index, number)));
        }
        sort::sort(&mut dirs);
        for entry in &mut index.entries {
            let keep = match entry.kind {
                Kind::Dir => dirs.binary_search(&entry.path.as_slice()).is_ok(),
                Kind::File { .. } => true,
                _ => false,
            };
            if !keep {
                (entry.kind, entry.path) = (Kind::Dir, b".".to_vec());
            }
        }
        index
    }

    fn set_mode(&self, number: usize) -> Result<(), StoreError> {
        let path = path_of(self.index, number);
        fchmodat(self.root, path, self.mode(number), FchmodatFlags::FollowSymlink)
            .map_err(self.failed("set the permissions of", path))
    }

    fn mode(&self, number: usize) -> Mode {
        Mode::from_bits_truncate(mode(self.index, number))
    }

    fn tell(&self, path: &[u8], what: What) {
        let verb = if what == What::Stranger { "removed" } else { "healed" };
        (self.say)(&format!("{verb} {}: {what}", String::from_utf8_lossy(path)));
    }

    fn path_in(&self, tree: &Path, path: &[u8]) -> PathBuf {
        tree.join(OsStr::from_bytes(path))
    }

    fn failed(&self, doing: &'static str, path: &[u8]) -> impl FnOnce(Errno) -> StoreError + use<> {
        let path = self.path_in(self.path, path);
        move |errno| StoreError::sys(doing, &path)(errno)
    }
}

/// Folders that were made writable for the time of healing.
struct Opened<'a> {
    healing: &'a Healing<'a>,
    dirs: Vec<Vec<u8>>,
}

impl Opened<'_> {
    fn parent_of(&mut self, path: &[u8]) -> Result<(), StoreError> {
        let parent = parents(path).next().unwrap_or(b".");
        // The last are the likeliest: siblings follow each other.
        if self.dirs.iter().rev().any(|dir| dir == parent) {
            return Ok(());
        }
        let (root, mode) = (self.healing.root, Mode::from_bits_truncate(0o755));
        fchmodat(root, parent, mode, FchmodatFlags::FollowSymlink)
            .map_err(self.healing.failed("set the permissions of", parent))?;
        self.dirs.push(parent.to_vec());
        Ok(())
    }

    fn close(&self) -> Result<(), StoreError> {
        let mode = Mode::from_bits_truncate(0o555);
        self.dirs.iter().try_for_each(|path| {
            fchmodat(self.healing.root, path.as_slice(), mode, FchmodatFlags::FollowSymlink)
                .map_err(self.healing.failed("set the permissions of", path))
        })
    }

    fn numbers(&self) -> impl Iterator<Item = usize> {
        let index = self.healing.index;
        self.dirs.iter().map(|path| index.find(path).unwrap_or(index.entries.len()))
    }
}

/// Examines entries in parallel: what is right with its stat, what is wrong with its path; both in order.
fn examine_all(root: BorrowedFd, index: &Index, numbers: &[usize], filling: &Filling) -> (Right, Wrong) {
    let results = Mutex::new(vec![None; numbers.len()]);
    parallel::for_each(numbers.len(), 16, &|turn| {
        let result = examine(root, index, numbers[turn], filling);
        if let Ok(mut results) = results.lock() {
            results[turn] = Some(result);
        }
    });
    let (mut right, mut wrong) = (Vec::new(), Vec::new());
    for (number, result) in numbers.iter().zip(results.into_inner().unwrap_or_default()) {
        match result {
            Some(Ok(stat)) => right.push((*number, stat)),
            Some(Err(what)) => wrong.push((*number, what, path_of(index, *number).to_vec())),
            None => {}
        }
    }
    (right, wrong)
}

/// Compares one entry with the index, a file's content with its digest and its slots with what fills them. Returns
/// its stat if it is right.
pub fn examine(root: BorrowedFd, index: &Index, number: usize, filling: &Filling) -> Result<Stat, What> {
    let path = path_of(index, number);
    let found = record::stat(root, path).ok_or(What::Deleted)?;
    let expected = match index.entries.get(number).map(|entry| &entry.kind) {
        None | Some(Kind::Dir) => SFlag::S_IFDIR,
        Some(Kind::Symlink(_)) => SFlag::S_IFLNK,
        Some(_) => SFlag::S_IFREG,
    };
    if kind_of(&found) != expected {
        return Err(What::Replaced);
    }
    if let Some((size, digest, _)) = index.file(number) {
        let compare = |file: &File| compare(file, digest, filling.slots(index, number), &filling.paths);
        return examine_file(root, path, size, &compare)
            .and_then(|now| check_mode(&now, mode(index, number)));
    }
    if let Some(Kind::Symlink(target)) = index.entries.get(number).map(|entry| &entry.kind) {
        let same = readlinkat(root, path).is_ok_and(|now| now.as_bytes() == target);
        return if same { Ok(Stat::from(&found)) } else { Err(What::Changed) };
    }
    check_mode(&found, mode(index, number))
}

/// Returns the stat with which a file of so many bytes was found right. The outer error of `compare` is the disk's.
fn examine_file(
    root: BorrowedFd,
    path: &[u8],
    size: u64,
    compare: &dyn Fn(&File) -> io::Result<Result<(), What>>,
) -> Result<FileStat, What> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let file = File::from(openat(root, path, flags, Mode::empty()).map_err(|_| What::Unreadable)?);
    let stat = || fstat(&file).map_err(|_| What::Unreadable);
    for _ in 0..TRIES {
        let before = stat()?;
        match before.st_size as u64 {
            found if found == size => {}
            0 => return Err(What::Emptied),
            _ => return Err(What::Changed),
        }
        compare(&file).map_err(|_| What::Unreadable)??;
        let after = stat()?;
        if Stat::from(&before) == Stat::from(&after) {
            return Ok(after);
        }
    }
    // It is right, but restless. An old ctime makes the next start look again.
    let mut now = stat()?;
    now.st_ctime = 0;
    Ok(now)
}

/// Compares a file's content with the digest of its packed bytes: those of its slots are hashed in place of what is
/// there, which is compared with what the paths make of them.
fn compare<'a>(
    file: &File,
    digest: Digest,
    slots: impl Iterator<Item = (&'a Slot, &'a Vec<u8>)>,
    paths: &Paths,
) -> io::Result<Result<(), What>> {
    let mut hasher = blake3::Hasher::new();
    let (mut at, mut filled) = (0, true);
    for (slot, packed) in slots {
        hash(&mut hasher, file, at..slot.at)?;
        let mut found = vec![0; packed.len()];
        file.read_exact_at(&mut found, slot.at)?;
        filled &= slots::fill(packed, slot.pad, paths).is_ok_and(|filled| filled == found);
        hasher.update(packed);
        at = slot.end();
    }
    hash(&mut hasher, file, at..u64::MAX)?;
    Ok(match Digest::from(hasher.finalize()) == digest {
        false => Err(What::Changed),
        true if filled => Ok(()),
        true => Err(What::Elsewhere),
    })
}

/// Hashes a range of a file, as far as there is one.
fn hash(hasher: &mut blake3::Hasher, file: &File, range: Range<u64>) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    let mut at = range.start;
    while at < range.end {
        let most = (range.end - at).min(PIECE as u64) as usize;
        match file.read_at(&mut piece[..most], at) {
            Ok(0) => break,
            Ok(length) => {
                hasher.update(&piece[..length]);
                at += length as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn check_mode(found: &FileStat, mode: u32) -> Result<Stat, What> {
    if found.st_mode & 0o7777 == mode { Ok(Stat::from(found)) } else { Err(What::Permissions) }
}

fn kind_of(found: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(found.st_mode & SFlag::S_IFMT.bits())
}

fn mode(index: &Index, number: usize) -> u32 {
    match index.file(number) {
        Some((_, _, false)) => 0o444,
        _ => 0o555,
    }
}

fn is_dir(index: &Index, number: usize) -> bool {
    index.entries.get(number).is_none_or(|entry| entry.kind == Kind::Dir)
}

/// The folders above a path, the nearest first, the tree itself not among them.
fn parents(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    fn above(path: &[u8]) -> Option<&[u8]> {
        path.iter().rposition(|byte| *byte == b'/').map(|slash| &path[..slash])
    }
    std::iter::successors(above(path), |path| above(path))
}

fn sorted_paths(index: &Index) -> Vec<&[u8]> {
    let mut paths: Vec<&[u8]> = index.entries.iter().map(|entry| entry.path.as_slice()).collect();
    sort::sort(&mut paths);
    paths
}

/// Paths of what is in a folder of the tree and not in the index.
fn strangers(tree: &Path, dir: &[u8], names: &[&[u8]]) -> Vec<Vec<u8>> {
    let inside = fs::read_dir(tree.join(OsStr::from_bytes(dir))).into_iter().flatten().flatten();
    let path = |entry: fs::DirEntry| match dir {
        b"." => entry.file_name().as_bytes().to_vec(),
        _ => [dir, b"/", entry.file_name().as_bytes()].concat(),
    };
    inside.map(path).filter(|path| names.binary_search(&path.as_slice()).is_err()).collect()
}
