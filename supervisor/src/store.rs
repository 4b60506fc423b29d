//! The store's folders, its locks, and what can go wrong in it.
//!
//! ```text
//! <place>/v1/trees/<bundle digest>/tree/…   the files, read-only
//! <place>/v1/trees/<bundle digest>/record   what stat said of each when it was unpacked (record.rs)
//! <place>/v1/trees/<bundle digest>/start    a tool's later start (crate kitbag-entry)
//! <place>/v1/closures/<closure digest>      link to a tree that has this closure (closure.rs)
//! <place>/v1/locks/<bundle digest>          held while the tree is made, healed or removed
//! <place>/v1/locks/closures                 held while links to trees are changed
//! <place>/v1/work/…                         what is not a tree yet, or no longer
//! ```
//!
//! A tree appears by one rename, whole, and disappears by one. A running service bundle holds a shared lock
//! on its tree's folder. The kernel drops locks with their holder, so nothing has to be cleaned up after a
//! crash but `work`, and whoever has a digest's lock may remove what is left there under its name.

pub mod closure;
pub mod collect;
pub mod heal;
pub mod owned;
pub mod place;
pub mod record;
pub mod share;
pub mod unpack;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{error, fmt};

use kitbag_format::{Digest, Error, exit};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};

use crate::store::owned::Size;
use crate::store::place::Candidate;

/// After this long, the wait for another process is worth a word.
const PATIENCE: Duration = Duration::from_secs(1);
/// Permissions of a tree's folder, in which the tree is: see [`Store::close_tree`].
pub const TREE_MODE: u32 = 0o711;
/// How often a lock is asked for in that time.
const POLL: Duration = Duration::from_millis(10);

/// Why there is no tree, or no state.
#[derive(Debug)]
pub enum StoreError {
    /// The bundle is not what it should be.
    Format(Error),
    /// No folder can be used for the store.
    NoPlace(Vec<Candidate>),
    /// No folder can be used for state.
    NoState(Vec<Candidate>),
    /// KITBAG_NAME says this, which is no name.
    Name(String),
    /// The disk became full.
    Full {
        /// On which disk.
        place: PathBuf,
        /// Bytes of the whole tree.
        needs: u64,
    },
    /// Another process uses this state.
    AlreadyRunning {
        /// Which, if it said so.
        pid: Option<u32>,
        /// The state folder.
        folder: PathBuf,
    },
    /// The system said no.
    Io {
        /// What was being done, as the words after "cannot".
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

impl StoreError {
    /// For `map_err`: names what was being done, and to what.
    pub fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { doing, path, source }
    }

    /// The same for a number of `errno`.
    pub fn sys(doing: &'static str, path: &Path) -> impl FnOnce(Errno) -> Self {
        let failed = Self::io(doing, path);
        move |errno| failed(errno.into())
    }

    /// The process's exit code.
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Format(Error::Io { .. }) | Self::Io { .. } => exit::FAILURE,
            Self::Format(_) => exit::DAMAGED,
            Self::Name(_) => exit::USAGE,
            Self::NoPlace(_) | Self::NoState(_) | Self::Full { .. } => exit::NO_PLACE,
            Self::AlreadyRunning { .. } => exit::RUNNING,
        }
    }

    /// True if there was no room left.
    pub fn is_full(&self) -> bool {
        let (Self::Format(Error::Io { source, .. }) | Self::Io { source, .. }) = self else { return false };
        matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }
}

impl From<Error> for StoreError {
    fn from(error: Error) -> Self {
        Self::Format(error)
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Format(error) if error.advice().is_empty() => error.fmt(f),
            Self::Format(error) => write!(f, "{error}; {}", error.advice()),
            Self::NoPlace(candidates) => {
                f.write_str("no folder can be used to unpack in")?;
                list(f, candidates)?;
                f.write_str("\n  to fix  ")?;
                // The one that was chosen, or the one that comes first.
                let lacks = candidates.iter().find_map(|one| Some((one.path.as_ref()?, one.lacks()?)));
                if let Some((path, room)) = lacks {
                    write!(f, "make room on the disk of {} ({room} are needed), or ", path.display())?;
                    f.write_str(
                        "set KITBAG_STORE to a folder of your own, on a disk that has it and allows exec",
                    )
                } else {
                    f.write_str("set KITBAG_STORE to a folder of your own, on a disk that allows exec")
                }
            }
            Self::NoState(candidates) => {
                f.write_str("no folder can be used for state")?;
                list(f, candidates)?;
                f.write_str(
                    "\n  to fix  make that folder writable, or set KITBAG_STATE to one of your own that is",
                )
            }
            Self::Name(name) => write!(
                f,
                "KITBAG_NAME: `{name}` is no name for a bundle\n  to fix  small letters, digits, `.`, `_`, `-`, a letter or \
                 digit first, 64 at most"
            ),
            Self::Full { place, needs } => write!(
                f,
                "the disk of {} is full: {} are needed; free some (`{} gc` removes what is no longer \
                 used), or set KITBAG_STORE to a folder on another disk",
                place.display(),
                Size(*needs),
                crate::called::called()
            ),
            Self::AlreadyRunning { pid, folder } => {
                f.write_str("it is running already")?;
                if let Some(pid) = pid {
                    write!(f, " as process {pid}")?;
                }
                write!(
                    f,
                    ", with its state in {}; start a further copy with KITBAG_NAME=OTHER, or set KITBAG_STATE",
                    folder.display()
                )
            }
            Self::Io { doing, path, source } => write!(f, "cannot {doing} {}: {source}", path.display()),
        }
    }
}

fn list(f: &mut fmt::Formatter<'_>, candidates: &[Candidate]) -> fmt::Result {
    candidates.iter().try_for_each(|candidate| write!(f, "\n  {candidate}"))
}

impl error::Error for StoreError {}

/// A store whose folders were checked by [`crate::store::place`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Store {
    /// The folder that was chosen.
    pub place: PathBuf,
}

impl Store {
    /// The store in this folder.
    pub const fn at(place: PathBuf) -> Self {
        Self { place }
    }

    /// True if there is a store in this folder.
    pub fn is_at(place: &Path) -> bool {
        ["v1/trees", "v1/locks", "v1/work"].iter().all(|name| place.join(name).is_dir())
    }

    /// Where the trees are.
    pub fn trees(&self) -> PathBuf {
        self.place.join("v1/trees")
    }

    /// Where this bundle's tree is, or will be.
    pub fn tree_dir(&self, bundle: &Digest) -> PathBuf {
        self.trees().join(bundle.to_string())
    }

    /// Takes from others the right to read a tree's folder, which trees of earlier versions gave them: with an open folder
    /// anybody can hold a lock on it (flock(2)) that starts and the garbage collection would wait for. What is below it stays
    /// within reach of the programs of other users.
    pub fn close_tree(&self, bundle: &Digest) {
        let dir = self.tree_dir(bundle);
        let Ok(found) = fs::symlink_metadata(&dir) else { return };
        if found.is_dir() && found.mode() & !TREE_MODE & 0o777 != 0 {
            // A store that cannot be written to is used all the same.
            let _ = fs::set_permissions(&dir, fs::Permissions::from_mode(found.mode() & TREE_MODE));
        }
    }

    /// Where the links to trees by closure are.
    pub fn closures(&self) -> PathBuf {
        self.place.join("v1/closures")
    }

    /// The path by which programs name this closure.
    pub fn closure(&self, closure: &Digest) -> PathBuf {
        self.closures().join(closure.to_string())
    }

    /// A path in the working folder.
    pub fn work(&self, name: &str) -> PathBuf {
        self.place.join("v1/work").join(name)
    }

    /// The digests of all trees, whether whole or not, in no order.
    pub fn digests(&self) -> Vec<Digest> {
        let names = fs::read_dir(self.trees()).into_iter().flatten().flatten().map(|entry| entry.file_name());
        names.filter_map(|name| name.to_str().filter(|n| n.len() == 64).and_then(Digest::from_hex)).collect()
    }

    /// Takes the lock of this bundle's tree. When that takes over a second, `waiting` is called once, with
    /// the holder's process id if it is known.
    pub fn lock(&self, bundle: &Digest, waiting: &dyn Fn(Option<u32>)) -> Result<Lock, StoreError> {
        wait_for(&self.lock_path(bundle), waiting)
    }

    /// Takes the lock that all links of closures are under. It is held for a few system calls at a time.
    pub fn lock_closures(&self) -> Result<Lock, StoreError> {
        wait_for(&self.place.join("v1/locks/closures"), &|_| ())
    }

    /// Takes the lock if nobody has it.
    pub fn try_lock(&self, bundle: &Digest) -> Result<Option<Lock>, StoreError> {
        try_lock_at(&self.lock_path(bundle))
    }

    fn lock_path(&self, bundle: &Digest) -> PathBuf {
        self.place.join("v1/locks").join(bundle.to_string())
    }
}

fn wait_for(path: &Path, waiting: &dyn Fn(Option<u32>)) -> Result<Lock, StoreError> {
    let begin = Instant::now();
    let mut said = false;
    loop {
        if let Some(lock) = try_lock_at(path)? {
            return Ok(lock);
        }
        if !said && begin.elapsed() > PATIENCE {
            said = true;
            waiting(read_pid(path));
        }
        std::thread::sleep(POLL);
    }
}

fn try_lock_at(path: &Path) -> Result<Option<Lock>, StoreError> {
    lock_file(path)
        .map(|lock| lock.map(|file| Lock { file, path: path.to_owned() }))
        .map_err(StoreError::io("lock", path))
}

/// The right to make, heal or remove one tree, or to change links. Ends when dropped, or with the process.
pub struct Lock {
    file: Flock<File>,
    path: PathBuf,
}

impl Lock {
    /// Removes the lock's file. Who waits for it finds out, and makes a new one.
    pub fn remove(self) {
        let _ = fs::remove_file(&self.path);
        drop(self.file);
    }
}

/// Opens and locks a file that says who holds it. `None` if somebody else does. The file may have been
/// removed between being opened and locked; then the lock is worth nothing and is taken again.
pub fn lock_file(path: &Path) -> io::Result<Option<Flock<File>>> {
    loop {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).mode(0o600);
        let file = options.custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits()).open(path)?;
        let mut file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => file,
            Err((_, Errno::EWOULDBLOCK)) => return Ok(None),
            Err((_, Errno::EINTR)) => continue,
            Err((_, errno)) => return Err(errno.into()),
        };
        if is_still(&file, path)? {
            // A courtesy to whoever waits: without it the lock is as good.
            let _ = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
            return Ok(Some(file));
        }
    }
}

/// The process id in a lock's file.
pub fn read_pid(path: &Path) -> Option<u32> {
    let mut text = String::new();
    File::open(path).ok()?.take(16).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// True if `path` still names the open file.
pub fn is_still(file: &File, path: &Path) -> io::Result<bool> {
    let open = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(named) => Ok((named.dev(), named.ino()) == (open.dev(), open.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes whatever is at `path`, folders with all that is in them, read-only ones too, never following a
/// link. Returns the bytes that became free: a file with another name elsewhere frees none. Nothing at
/// `path` is no error. `path` lies in a folder that only we can write to.
pub fn remove(path: &Path) -> io::Result<u64> {
    let mut freed = 0;
    let mut dirs = Vec::new();
    let mut todo = vec![path.to_owned()];
    while let Some(path) = todo.pop() {
        let found = match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other?,
        };
        if found.is_dir() {
            if found.mode() & 0o700 != 0o700 {
                fs::set_permissions(&path, fs::Permissions::from_mode(0o700))?;
            }
            for entry in fs::read_dir(&path)? {
                todo.push(entry?.path());
            }
            freed += found.blocks() * 512;
            dirs.push(path);
        } else {
            if found.nlink() == 1 {
                freed += found.blocks() * 512;
            }
            fs::remove_file(&path)?;
        }
    }
    dirs.iter().rev().try_for_each(fs::remove_dir)?;
    Ok(freed)
}
