//! Bundle -> tree: unpacked once, by whoever comes first; whole from the moment it is there.

use std::fs::{self, File};
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use kitbag_format::extract::{self, Extraction};
use kitbag_format::index::{Entry, Kind};
use kitbag_format::layout::PartKind;
use kitbag_format::{Bundle, Digest, Index, Manifest};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::stat::{Mode, fchmod, fstat, umask};

use crate::store::closure::{self, Home};
use crate::store::collect;
use crate::store::heal::Healing;
use crate::store::place::{self, Candidate, Need};
use crate::store::record::{self, ANY_BOOT, BootId, Record, Stat, boot_id, stats};
use crate::store::share::Sharing;
use crate::store::{self, Store, StoreError, is_still};

/// A tree that vanishes or breaks between being made and being used is tried again this often.
const TRIES: usize = 5;
/// A block of most file systems, in bytes.
const BLOCK: u64 = 4096;
/// Progress is shown for what takes longer than this…
const QUIET: Duration = Duration::from_secs(1);
/// …and not more often than this.
const REFRESH: Duration = Duration::from_millis(100);

/// What a start compares with the record before it relies on the tree.
#[derive(Debug, Clone, Copy)]
pub enum Compare<'a> {
    /// Every entry: a service bundle.
    Everything,
    /// These paths: a tool's program. If one is wrong, everything is compared.
    Only(&'a [&'a str]),
}

/// What is to be opened, and how.
pub struct Opening<'a> {
    /// The bundle; its program is verified ([`crate::open`]).
    pub bundle: &'a Bundle,
    /// Its manifest.
    pub manifest: &'a Manifest,
    /// How much is compared.
    pub compare: Compare<'a>,
    /// Called with sentences for people: what was healed, whom we wait for.
    pub say: &'a (dyn Fn(&str) + Sync),
}

/// An unpacked tree that was found right. While it lives, the store's garbage collection leaves it alone.
pub struct Tree {
    /// Its folder in the store.
    pub dir: PathBuf,
    /// The unpacked files.
    pub root: PathBuf,
    /// In which boot the record is good; zeros: in any.
    pub boot_id: BootId,
    /// True if this call unpacked it.
    pub unpacked: bool,
    record: Record,
    home: Home,
    used: InUse,
}

/// While it lives, the store's garbage collection leaves its tree alone: a shared lock; `None` where the file system
/// has no locks.
pub struct InUse(#[expect(dead_code, reason = "held, not read")] Option<Flock<File>>);

impl Tree {
    /// Keeps the tree in use, and forgets what is known of it.
    pub fn into_use(self) -> InUse {
        self.used
    }

    /// What was recorded of an entry.
    pub fn stat_of(&self, path: &str) -> Option<Stat> {
        self.record.stats.get(self.record.index.find(path.as_bytes())?).copied()
    }

    /// The path by which the kernel, or the program's loader, opens one of its files that is executed.
    pub fn opened_at(&self, path: &str) -> PathBuf {
        self.home.opened_at(path)
    }

    /// Writes the record of a tool's later start.
    pub fn write_start(&self, record: &[u8]) -> io::Result<()> {
        record::replace(&self.dir, "start", record, None)
    }

    /// Notes that the tree is used now: the store keeps what was used last.
    pub fn touch(&self) {
        let file = File::open(self.dir.join("start")).or_else(|_| File::open(self.dir.join("record")));
        // Worth nothing but a place in a list.
        let _ = file.and_then(|file| file.set_modified(SystemTime::now()));
    }
}

/// Room for the whole tree.
pub fn need(index: &Index) -> Need {
    let files = index.entries.len() as u64 + 8;
    // A record has an index's bytes and some 28 more an entry.
    let beside = 128 * files + 16 * BLOCK;
    Need { bytes: index.entries.iter().map(on_disk).sum::<u64>() + beside, files }
}

/// Bytes that an entry takes on the disk.
pub fn on_disk(entry: &Entry) -> u64 {
    match entry.kind {
        Kind::Dir => BLOCK,
        _ => entry.size().next_multiple_of(BLOCK),
    }
}

/// Opens the bundle's tree in the store: compares and heals the one that is there, or unpacks it.
pub fn open_tree(store: &Store, opening: &Opening) -> Result<Tree, StoreError> {
    let _mask = Umask::set(0o022);
    let mut unpacked = false;
    for _ in 0..TRIES {
        if let Some(tree) = opening.existing(store, unpacked)? {
            return Ok(tree);
        }
        unpacked |= opening.unpack(store)?;
    }
    let gone = io::Error::other("it vanishes or breaks as soon as it is there");
    Err(StoreError::io("keep the tree", &store.tree_dir(&opening.bundle.digest()))(gone))
}

impl Opening<'_> {
    /// The tree that is there, found right or healed. `None`: there is none, or none that healing could save.
    fn existing(&self, store: &Store, unpacked: bool) -> Result<Option<Tree>, StoreError> {
        let digest = self.bundle.digest();
        let dir = store.tree_dir(&digest);
        if fs::symlink_metadata(&dir).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            return Ok(None);
        }
        store.close_tree(&digest);
        let path = dir.join("tree");
        let (Ok(folder), Ok(root)) = (extract::open_dir(&dir), extract::open_dir(&path)) else {
            return self.discard(store).map(|()| None);
        };
        let used = hold(File::from(folder), &dir)?;
        if matches!(used, Held::Gone) {
            return Ok(None);
        }
        let record = Record::read(&dir, &digest);
        let record = match record {
            Some(record)
                if self.suspects(&record, &path, root.as_fd()).is_empty() && !record.is_unsettled() =>
            {
                record
            }
            _ => match self.heal(store, &dir, root.as_fd())? {
                Some(record) => record,
                None => return Ok(None),
            },
        };
        closure::lead(store, &record, root.as_fd()).map_err(|error| self.explain(store, error))?;
        let used = if let Held::Locked(lock) = used { Some(lock) } else { None };
        let home = Home::new(store, &digest, record.closure);
        Ok(Some(Tree { root: path, dir, boot_id: record.boot_id, unpacked, record, home, used: InUse(used) }))
    }

    /// The entries that have to be looked at.
    fn suspects(&self, record: &Record, path: &Path, root: BorrowedFd) -> Vec<usize> {
        if record.is_unsettled() {
            return (0..record.stats.len()).collect();
        }
        let mut suspects = match self.compare {
            Compare::Everything => record.differing(root, None),
            Compare::Only(paths) => {
                let find = |path: &&str| record.index.find(path.as_bytes());
                let numbers: Vec<usize> = paths.iter().filter_map(find).collect();
                let right = record.differing(root, Some(&numbers)).is_empty();
                if right { Vec::new() } else { record.differing(root, None) }
            }
        };
        if record.tree != path {
            let slotted = |number: &usize| !record.index.slots(*number).is_empty();
            suspects.extend((0..record.index.entries.len()).filter(slotted));
        }
        suspects
    }

    /// Compares again with the lock held, as another start may have healed the tree meanwhile; heals what is
    /// wrong; writes the record. `None`: the tree is no longer there.
    fn heal(&self, store: &Store, dir: &Path, root: BorrowedFd) -> Result<Option<Record>, StoreError> {
        let _lock = self.lock(store)?;
        let path = dir.join("tree");
        let there = extract::open_dir(&path).is_ok_and(|now| same(now.as_fd(), root));
        if !there {
            return Ok(None);
        }
        let found = Record::read(dir, &self.bundle.digest());
        let whole = found.is_some();
        let mut record = match found {
            Some(record) => record,
            None => {
                let index = self.bundle.index()?;
                let closure = closure::usable(store, &index);
                self.record(index, &path, closure)?
            }
        };
        let settled = whole && !record.is_unsettled();
        let suspects =
            if whole { self.suspects(&record, &path, root) } else { (0..record.stats.len()).collect() };
        if settled && suspects.is_empty() {
            return Ok(Some(record));
        }
        if !whole {
            (self.say)("the record of the unpacked files was damaged; every file is compared");
        }
        let index = self.bundle.index()?;
        if !whole || record.tree != path {
            if let Some(refusal) = place::misfit(store, self.bundle, &index)? {
                let (path, verdict) = (Some(store.place.clone()), Err(refusal));
                let moved = Candidate { path, why: "where the store is now", verdict };
                return Err(StoreError::NoPlace(vec![moved]));
            }
            // It may have been written for another path, and lead to files that are about to change.
            let _ = fs::remove_file(dir.join("start"));
        }
        let home = Home::new(store, &self.bundle.digest(), record.closure);
        let paths = home.paths();
        let healing =
            Healing { store, bundle: self.bundle, index: &index, root, path: &path, paths, say: self.say };
        let healed = healing.run(&suspects).map_err(|error| self.explain(store, error))?;
        for (number, stat) in healed.stats {
            record.stats[number] = stat;
        }
        record.tree = path;
        if healed.wrote || !whole {
            record.boot_id = boot_id();
        } else if !settled {
            record.boot_id = ANY_BOOT;
        }
        // A record that cannot be written (a full disk) costs the next start the same comparison.
        let _ = record.write(dir);
        Ok(Some(record))
    }

    /// Unpacks the tree, unless somebody else did first. True if it was us.
    fn unpack(&self, store: &Store) -> Result<bool, StoreError> {
        let digest = self.bundle.digest();
        let lock = self.lock(store)?;
        if fs::symlink_metadata(store.tree_dir(&digest)).is_ok() {
            return Ok(false);
        }
        let index = self.bundle.index()?;
        let work = store.work(&digest.to_string());
        for left in [work.clone(), store.work(&format!("{digest}.heal"))] {
            store::remove(&left).map_err(StoreError::io("remove", &left))?;
        }
        if let Err(error) = self.fill(store, &work, index) {
            // The error is what matters; what stays is removed by the next start.
            let _ = store::remove(&work);
            return Err(self.explain(store, error));
        }
        drop(lock);
        collect::collect_by_default(store);
        Ok(true)
    }

    fn fill(&self, store: &Store, work: &Path, index: Index) -> Result<(), StoreError> {
        let digest = self.bundle.digest();
        let path = work.join("tree");
        fs::create_dir_all(&path).map_err(StoreError::io("make", &path))?;
        fs::set_permissions(work, fs::Permissions::from_mode(store::TREE_MODE))
            .map_err(StoreError::io("set the permissions of", work))?;
        let root = extract::open_dir(&path).map_err(StoreError::io("open", &path))?;
        let closure = closure::usable(store, &index);
        let home = Home::new(store, &digest, closure);
        let sharing = Sharing { store, bundle: self.bundle, index: &index, closure };
        let shared = sharing.link(root.as_fd());
        let present = &shared.present;
        let progress = Progress::new(&self.manifest.name, &index, present);
        let seen = Mutex::new(vec![None; present.len()]);
        let written = |number: usize, file: &File| {
            let stat = fstat(file).as_ref().map(Stat::from).ok();
            if let Ok(mut seen) = seen.lock() {
                seen[number] = stat;
            }
        };
        let extraction = Extraction {
            bundle: self.bundle,
            index: &index,
            present: &|number| present[number].is_some(),
            progress: &|bytes| progress.add(bytes),
            written: &written,
            read_only: true,
            paths: home.paths(),
        };
        let unpacked = extraction.run(root.as_fd());
        progress.clear();
        unpacked?;
        fchmod(&root, Mode::from_bits_truncate(0o555))
            .map_err(StoreError::sys("set the permissions of", &path))?;
        let mut record = self.record(index, &home.tree, closure)?;
        let seen = seen.into_inner().unwrap_or_default();
        let known: Vec<_> =
            present.iter().copied().zip(seen).map(|(present, seen)| present.or(seen)).collect();
        record.stats = stats(root.as_fd(), &record.index, known).map_err(StoreError::io("examine", &path))?;
        shared.follow(store, root.as_fd(), &record.index);
        record.write(work).map_err(StoreError::io("write the record in", work))?;
        let dir = store.tree_dir(&digest);
        fs::rename(work, &dir).map_err(StoreError::io("make", &dir))
    }

    /// A record of now, without stats, for the tree at this path with this closure.
    fn record(&self, index: Index, tree: &Path, closure: Option<Digest>) -> Result<Record, StoreError> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Ok(Record {
            name: self.manifest.name.clone(),
            version: self.manifest.version.clone(),
            tree: tree.to_owned(),
            closure,
            bundle: self.bundle.digest(),
            boot_id: boot_id(),
            created: now.map_or(0, |since| since.as_secs()),
            payload_length: self.bundle.head().part(PartKind::Payload)?.length,
            stats: vec![Stat::default(); index.entries.len() + 1],
            index,
        })
    }

    /// Removes what is in the tree's place and is no tree.
    fn discard(&self, store: &Store) -> Result<(), StoreError> {
        let digest = self.bundle.digest();
        let _lock = self.lock(store)?;
        let (dir, work) = (store.tree_dir(&digest), store.work(&digest.to_string()));
        if extract::open_dir(&dir).is_ok() && extract::open_dir(&dir.join("tree")).is_ok() {
            return Ok(());
        }
        (self.say)("the unpacked files are gone; they are unpacked again");
        store::remove(&work).map_err(StoreError::io("remove", &work))?;
        match fs::rename(&dir, &work) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StoreError::io("move", &dir)(error)),
            _ => store::remove(&work).map(|_| ()).map_err(StoreError::io("remove", &work)),
        }
    }

    fn lock(&self, store: &Store) -> Result<store::Lock, StoreError> {
        store.lock(&self.bundle.digest(), &|pid| {
            let who = pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"));
            (self.say)(&format!("waiting for {who}, which unpacks {}", self.manifest.name));
        })
    }

    fn explain(&self, store: &Store, error: StoreError) -> StoreError {
        if !error.is_full() {
            return error;
        }
        let needs = self.bundle.index().map_or(0, |index| need(&index).bytes);
        StoreError::Full { place: store.place.clone(), needs }
    }
}

/// What became of the attempt to hold a tree's folder.
enum Held {
    Locked(Flock<File>),
    /// The file system has no locks (some network ones); nothing protects the tree but what `/proc` shows.
    Unlockable,
    /// It was removed or replaced meanwhile.
    Gone,
}

fn hold(folder: File, path: &Path) -> Result<Held, StoreError> {
    let mut folder = folder;
    loop {
        match Flock::lock(folder, FlockArg::LockShared) {
            Ok(lock) => {
                let still = is_still(&lock, path).map_err(StoreError::io("examine", path))?;
                return Ok(if still { Held::Locked(lock) } else { Held::Gone });
            }
            Err((again, Errno::EINTR)) => folder = again,
            Err(_) => return Ok(Held::Unlockable),
        }
    }
}

fn same(a: BorrowedFd, b: BorrowedFd) -> bool {
    let key = |fd| fstat(fd).map(|found| (found.st_dev, found.st_ino));
    key(a).is_ok_and(|a| key(b) == Ok(a))
}

/// Sets the process's umask until dropped: what is unpacked has the bundle's permissions, not the caller's.
struct Umask(Mode);

impl Umask {
    fn set(mask: u32) -> Self {
        Self(umask(Mode::from_bits_truncate(mask)))
    }
}

impl Drop for Umask {
    fn drop(&mut self) {
        umask(self.0);
    }
}

/// One line on a terminal, rewritten; nothing anywhere else.
struct Progress<'a> {
    name: &'a str,
    total: u64,
    done: AtomicU64,
    begin: Instant,
    /// When the line was last written.
    shown: Option<Mutex<Option<Instant>>>,
}

impl<'a> Progress<'a> {
    fn new(name: &'a str, index: &Index, present: &[Option<Stat>]) -> Self {
        let entries = index.entries.iter().zip(present).filter(|(_, stat)| stat.is_none());
        Self {
            name,
            total: entries.map(|(entry, _)| entry.size() + u64::from(entry.header)).sum::<u64>().max(1),
            done: AtomicU64::new(0),
            begin: Instant::now(),
            shown: io::stderr().is_terminal().then(|| Mutex::new(None)),
        }
    }

    fn add(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let Some(Ok(mut shown)) = self.shown.as_ref().map(Mutex::try_lock) else { return };
        if self.begin.elapsed() < QUIET || shown.is_some_and(|at| at.elapsed() < REFRESH) {
            return;
        }
        *shown = Some(Instant::now());
        let percent = (done.saturating_mul(100) / self.total).min(100);
        let _ = write!(io::stderr(), "\rkitbag: unpacking {} {percent} %", self.name);
    }

    fn clear(&self) {
        if let Some(Ok(shown)) = self.shown.as_ref().map(Mutex::lock)
            && shown.is_some()
        {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}
