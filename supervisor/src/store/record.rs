//! What stat(2) said of every entry of a tree when its content was known to be right.
//!
//! A later start compares size, inode and ctime. A change of content cannot hide from ctime: no system call
//! sets it. A new hard link, or the removal of one, moves it too; then the content is compared, and the
//! record follows silently.
//!
//! Nothing is synchronised to the disk when a tree is made, that would double the time of a first start.
//! Instead the record names the boot in which the tree was written. A start in another boot may find what
//! a power failure left; it compares every digest once, and then the record is *settled*: its boot id is
//! zero and it is good in any boot. Where there is no `/proc` the boot has no name, and a record is settled
//! from the start: whoever removes `/proc` gives up this one comparison.
//!
//! ```text
//!  0  8  magic "KITBREC" 3
//!  8  32 BLAKE3 of all that follows
//! 40  32 bundle digest
//! 72  36 boot id as /proc/sys/kernel/random/boot_id shows it, or zeros
//! 108 8  when it was unpacked, seconds since 1970
//! 116 8  length of the payload
//! 124 2  length of the name, name; the same with the version, and with the tree's path, which its slots were
//!        filled with
//!     32 digest of the closure whose path its slots were filled with (closure.rs); zeros: with the tree's alone
//!     4  number of stats; each 8 size, 8 inode, 8 ctime, 4 its nanoseconds: the index's entries, then the tree
//!     …  the index, as in the bundle
//! ```

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use kitbag_format::index::{Entry, Kind};
use kitbag_format::{Digest, Index};
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{FileStat, fstatat};

use kitbag_format::parallel;

const MAGIC: &[u8; 8] = b"KITBREC\x03";
const HEADER: usize = 40;
/// Most bytes of a record: a million files have some 100 MB.
const MOST: u64 = 256 << 20;
const STAT: usize = 28;
/// Entries that one thread looks at before it asks for more.
const BATCH: usize = 256;

/// A boot's name, 36 characters; zeros: none.
pub type BootId = [u8; 36];
/// Good in any boot.
pub const ANY_BOOT: BootId = [0; 36];

/// What tells a file from one that was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stat {
    /// Bytes.
    pub size: u64,
    /// Inode number.
    pub ino: u64,
    /// Time of the inode's last change, in seconds.
    pub ctime: i64,
    /// Its nanoseconds.
    pub ctime_ns: u32,
}

impl From<&FileStat> for Stat {
    fn from(stat: &FileStat) -> Self {
        Self {
            size: stat.st_size as u64,
            ino: stat.st_ino,
            ctime: stat.st_ctime,
            ctime_ns: stat.st_ctime_nsec as u32,
        }
    }
}

/// The record of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The app's name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The absolute path of the tree that its slots were filled with.
    pub tree: PathBuf,
    /// The closure by whose path its slots name it; `None`: by the tree's.
    pub closure: Option<Digest>,
    /// The bundle's digest.
    pub bundle: Digest,
    /// In which boot the record is good; zeros: in any.
    pub boot_id: BootId,
    /// When the tree was unpacked, seconds since 1970.
    pub created: u64,
    /// Length of the bundle's payload, which the index is checked against.
    pub payload_length: u64,
    /// The bundle's index.
    pub index: Index,
    /// One for each entry of the index, then the tree's own folder.
    pub stats: Vec<Stat>,
}

impl Record {
    /// The record's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER + 256 + self.stats.len() * (STAT + 64));
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&[0; 32]);
        out.extend_from_slice(&self.bundle.0);
        out.extend_from_slice(&self.boot_id);
        out.extend_from_slice(&self.created.to_le_bytes());
        out.extend_from_slice(&self.payload_length.to_le_bytes());
        for text in [self.name.as_bytes(), self.version.as_bytes(), self.tree.as_os_str().as_bytes()] {
            let text = &text[..text.len().min(usize::from(u16::MAX))];
            out.extend_from_slice(&(text.len() as u16).to_le_bytes());
            out.extend_from_slice(text);
        }
        out.extend_from_slice(&self.closure.unwrap_or_default().0);
        out.extend_from_slice(&(self.stats.len() as u32).to_le_bytes());
        for stat in &self.stats {
            out.extend_from_slice(&stat.size.to_le_bytes());
            out.extend_from_slice(&stat.ino.to_le_bytes());
            out.extend_from_slice(&stat.ctime.to_le_bytes());
            out.extend_from_slice(&stat.ctime_ns.to_le_bytes());
        }
        out.extend_from_slice(&self.index.to_bytes());
        let sum = Digest::of(&out[HEADER..]);
        out[8..HEADER].copy_from_slice(&sum.0);
        out
    }

    /// Reads a record; `None` if it is damaged, of another version, or makes no sense.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        if reader.take(8)? != MAGIC || reader.take(32)? != Digest::of(reader.0).0 {
            return None;
        }
        let bundle = Digest(reader.array()?);
        let boot_id = reader.array()?;
        let created = u64::from_le_bytes(reader.array()?);
        let payload_length = u64::from_le_bytes(reader.array()?);
        let (name, version) = (reader.text()?, reader.text()?);
        let tree = OsStr::from_bytes(reader.bytes()?).into();
        let closure = Some(Digest(reader.array()?)).filter(|closure| *closure != Digest::default());
        let count = u32::from_le_bytes(reader.array()?) as usize;
        let stats = reader.take(count.checked_mul(STAT)?)?.as_chunks::<STAT>().0.iter().map(parse_stat);
        let stats: Vec<Stat> = stats.collect::<Option<_>>()?;
        let index = Index::parse(reader.0, payload_length).ok()?;
        (stats.len() == index.entries.len() + 1).then_some(Self {
            name,
            version,
            tree,
            closure,
            bundle,
            boot_id,
            created,
            payload_length,
            index,
            stats,
        })
    }

    /// The whole record of this bundle in a tree's folder.
    pub fn read(dir: &Path, bundle: &Digest) -> Option<Self> {
        let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
        let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(dir.join("record")).ok()?;
        let length = file.metadata().ok().filter(|found| found.is_file() && found.len() <= MOST)?.len();
        let mut bytes = Vec::with_capacity(length as usize + 1);
        file.take(MOST).read_to_end(&mut bytes).ok()?;
        Self::parse(&bytes).filter(|record| record.bundle == *bundle)
    }

    /// Writes the record to a tree's folder, where it replaces the former in one step and keeps its mtime:
    /// that says when the tree was used.
    pub fn write(&self, dir: &Path) -> io::Result<()> {
        let used = fs::symlink_metadata(dir.join("record")).and_then(|found| found.modified());
        replace(dir, "record", &self.to_bytes(), used.ok())
    }

    /// True if nothing but a comparison of digests tells whether the tree is right: a power failure may lie
    /// between its making and now.
    pub fn is_unsettled(&self) -> bool {
        self.boot_id != ANY_BOOT && self.boot_id != boot_id()
    }

    /// The numbers of the entries that stat(2) no longer shows as recorded, in order. `only`: of these.
    pub fn differing(&self, root: BorrowedFd, only: Option<&[usize]>) -> Vec<usize> {
        let count = only.map_or(self.stats.len(), <[usize]>::len);
        let found = Mutex::new(vec![false; count]);
        parallel::for_each(count, BATCH, &|turn| {
            let number = only.map_or(turn, |only| only[turn]);
            let now = stat(root, path_of(&self.index, number)).as_ref().map(Stat::from);
            if now.as_ref() != self.stats.get(number)
                && let Ok(mut found) = found.lock()
            {
                found[turn] = true;
            }
        });
        let found = found.into_inner().unwrap_or_default();
        let numbers = found.iter().enumerate().filter(|(_, differs)| **differs);
        numbers.map(|(turn, _)| only.map_or(turn, |only| only[turn])).collect()
    }
}

/// Takes the stat of every entry and of the tree itself. Those that are `known` are taken as they are, but for
/// files with more than one name in the tree: each name that was made after moved the ctime.
pub fn stats(root: BorrowedFd, index: &Index, mut known: Vec<Option<Stat>>) -> io::Result<Vec<Stat>> {
    for entry in &index.entries {
        if let Kind::Link(to) = entry.kind {
            known[to] = None;
        }
    }
    let all = Mutex::new(vec![Stat::default(); index.entries.len() + 1]);
    let missing = AtomicBool::new(false);
    let batches = (index.entries.len() + 1).div_ceil(BATCH);
    parallel::for_each(batches, 1, &|batch| {
        let start = batch * BATCH;
        let numbers = start..(start + BATCH).min(index.entries.len() + 1);
        let found: Vec<Stat> = numbers
            .map(|number| match known.get(number) {
                Some(Some(stat)) => *stat,
                _ => stat(root, path_of(index, number)).as_ref().map_or_else(Stat::default, Stat::from),
            })
            .collect();
        missing.fetch_or(found.iter().any(|stat| stat.ino == 0), Ordering::Relaxed);
        if let Ok(mut all) = all.lock() {
            all[start..start + found.len()].copy_from_slice(&found);
        }
    });
    if missing.into_inner() {
        return Err(io::ErrorKind::NotFound.into());
    }
    Ok(all.into_inner().unwrap_or_default())
}

/// An entry's path; after the last entry comes the tree itself.
pub fn path_of(index: &Index, number: usize) -> &[u8] {
    index.entries.get(number).map_or(b".", |entry: &Entry| &entry.path)
}

/// lstat(2) below a folder; `None` if it cannot be had.
pub fn stat(root: BorrowedFd, path: &[u8]) -> Option<FileStat> {
    fstatat(root, path, AtFlags::AT_SYMLINK_NOFOLLOW).ok()
}

/// This boot's name, or zeros where there is no `/proc`.
pub fn boot_id() -> BootId {
    let mut id = ANY_BOOT;
    match File::open("/proc/sys/kernel/random/boot_id").and_then(|mut file| file.read_exact(&mut id)) {
        Ok(()) => id,
        Err(_) => ANY_BOOT,
    }
}

fn parse_stat(bytes: &[u8; STAT]) -> Option<Stat> {
    let mut reader = Reader(bytes);
    Some(Stat {
        size: u64::from_le_bytes(reader.array()?),
        ino: u64::from_le_bytes(reader.array()?),
        ctime: i64::from_le_bytes(reader.array()?),
        ctime_ns: u32::from_le_bytes(reader.array()?),
    })
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = u16::from_le_bytes(self.array()?);
        self.take(usize::from(length))
    }

    fn text(&mut self) -> Option<String> {
        String::from_utf8(self.bytes()?.to_vec()).ok()
    }
}

/// Writes a file of this folder in one step, with this modification time or now's.
pub fn replace(dir: &Path, name: &str, bytes: &[u8], modified: Option<SystemTime>) -> io::Result<()> {
    let new = dir.join(format!("{name}.new"));
    let _ = fs::remove_file(&new);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&new)?;
    let written = io::Write::write_all(&mut file, bytes)
        .and_then(|()| modified.map_or(Ok(()), |modified| file.set_modified(modified)))
        .and_then(|()| fs::rename(&new, dir.join(name)));
    if written.is_err() {
        let _ = fs::remove_file(&new);
    }
    written
}
