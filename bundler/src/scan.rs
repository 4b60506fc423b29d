//! Reads every file once, in parallel, for its digest and its cuts, and remembers what it found for the next time.
//!
//! What is remembered is taken for a file only while its size, inode, modification and change time are the same.
//! No system call sets a change time, so no change of content hides from it. A file that changed within a moment
//! of being read is not remembered: a second change could have fallen into the same tick of the clock.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use fastcdc::v2020::{FastCDC, StreamCDC};
use kitbag_closure::facts::{ElfError, Facts};
use kitbag_closure::rewrite::Edits;
use kitbag_format::Digest;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::mentions::{Mentions, Watch};
use crate::payload::{FRAME, LARGE};
use crate::plan::{PlanEntry, PlanKind};

/// Files up to this size are read whole.
const IN_MEMORY: u64 = 8 << 20;
/// What an ELF file begins with (elf(5)).
const ELF_MAGIC: &[u8; 4] = b"\x7fELF";
/// More of a script's first line no kernel reads (BINPRM_BUF_SIZE is 256).
const LONGEST_LINE: usize = 4096;
/// Why a file that is written to cannot be packed.
pub const CHANGED: &str = "it changed while it was packed";
/// Longer than a tick of any file system's clock, FAT's two seconds included.
const MOMENT: Duration = Duration::from_secs(3);
/// What was not used for so long is forgotten.
const FORGOTTEN: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// A file that could not be packed, and why.
#[derive(Debug)]
pub struct Unreadable {
    /// The file.
    pub path: PathBuf,
    /// Why, as a sentence's end.
    pub why: String,
}

/// What a file held when it was read first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scanned {
    /// Digest of the contents.
    #[serde(with = "digest")]
    pub digest: Digest,
    /// Lengths of the cuts, for a large file; they add up to its size.
    pub cuts: Vec<u64>,
    /// What must be the same when it is read again.
    pub seen: Seen,
    /// What it says it needs.
    pub look: Look,
    /// The variables that it names; none while it is unread.
    pub mentions: Mentions,
}

impl Scanned {
    /// Bytes; 0 while it is unread.
    pub fn size(&self) -> u64 {
        self.cuts.iter().sum()
    }

    /// True if only what it needs was read.
    const fn is_unread(&self) -> bool {
        self.cuts.is_empty()
    }
}

/// What a file says it needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Look {
    /// Nothing.
    Plain,
    /// An ELF file.
    Elf(Box<Facts>),
    /// It begins as an ELF file and goes on as none; and why.
    Broken(String),
    /// A script: its first line, without `#!`.
    Script(Vec<u8>),
}

impl Look {
    /// `begin` is the file's beginning, or all of it.
    fn at(begin: &[u8], elf: impl FnOnce() -> Result<Option<Facts>, ElfError>) -> Self {
        if begin.starts_with(ELF_MAGIC) {
            return match elf() {
                Ok(Some(facts)) => Self::Elf(Box::new(facts)),
                Ok(None) => Self::Plain,
                Err(error) => Self::Broken(error.to_string()),
            };
        }
        let line = begin.strip_prefix(b"#!").and_then(|rest| rest.split(|byte| *byte == b'\n').next());
        line.map_or(Self::Plain, |line| Self::Script(line[..line.len().min(LONGEST_LINE)].to_vec()))
    }
}

/// What identifies a file's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Seen {
    /// Bytes.
    pub size: u64,
    inode: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    changed: (i64, i64),
}

impl From<&Metadata> for Seen {
    fn from(found: &Metadata) -> Self {
        Self {
            size: found.size(),
            inode: found.ino(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        }
    }
}

/// How much is read of ELF files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Elf {
    /// What they need: most are packed otherwise than they stand there, and read then.
    Needs,
    /// All of them, as of any file.
    Whole,
}

/// Scans every file of the plan. `None` for what is no file.
pub fn scan(entries: &[PlanEntry], elf: Elf, memory: &Memory) -> Result<Vec<Option<Scanned>>, Unreadable> {
    let scan = |entry: &PlanEntry| match &entry.kind {
        PlanKind::File { source, seen, .. } => match memory.recall(source, seen) {
            Some(scanned) => Ok(Some(scanned.clone())),
            None => scan_file(source, *seen, elf).map(Some),
        },
        _ => Ok(None),
    };
    entries.par_iter().map(scan).collect()
}

/// Reads what [`Elf::Needs`] left unread.
pub fn read_rest(entries: &[PlanEntry], scanned: &mut [Option<Scanned>]) -> Result<(), Unreadable> {
    entries.par_iter().zip(scanned).try_for_each(|(entry, scanned)| match (&entry.kind, scanned) {
        (PlanKind::File { source, seen, .. }, Some(scanned)) if scanned.is_unread() => {
            *scanned = scan_file(source, *seen, Elf::Whole)?;
            Ok(())
        }
        _ => Ok(()),
    })
}

fn scan_file(path: &Path, planned: Seen, elf: Elf) -> Result<Scanned, Unreadable> {
    let unreadable = |why: String| Unreadable { path: path.to_owned(), why };
    let failed = |error: io::Error| unreadable(error.to_string());
    let mut file = File::open(path).map_err(failed)?;
    let seen = Seen::from(&file.metadata().map_err(failed)?);
    if seen != planned {
        return Err(unreadable(CHANGED.to_owned()));
    }
    let mut magic = [0; 4];
    if elf == Elf::Needs && file.read_at(&mut magic, 0).map_err(failed)? == 4 && magic == *ELF_MAGIC {
        let look = Look::at(&magic, || Facts::of_file(&file));
        return Ok(Scanned {
            digest: Digest::default(),
            cuts: Vec::new(),
            seen,
            look,
            mentions: Mentions::default(),
        });
    }
    let found = if seen.size > IN_MEMORY { stream(&mut file) } else { in_memory(&file, seen.size) };
    let Contents { digest, cuts, look, mentions } = found.map_err(failed)?;
    if cuts.iter().sum::<u64>() != seen.size {
        return Err(unreadable(CHANGED.to_owned()));
    }
    Ok(Scanned { digest, cuts, seen, look, mentions })
}

/// How a file is packed otherwise than it stands in its source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// What was asked for.
    #[serde(with = "digest")]
    request: Digest,
    /// What the bytes become.
    pub edits: Edits,
    /// What is packed.
    pub scanned: Scanned,
}

/// Changes the file at `path` as `make` says, which is named by `request`: equal ones change equal files equally.
pub fn change(
    path: &Path,
    planned: Seen,
    request: Digest,
    memory: &Memory,
    make: impl FnOnce(&[u8]) -> Result<Edits, String>,
) -> Result<Changed, Unreadable> {
    if let Some(known) = memory.recall_change(path, &planned, &request) {
        return Ok(known.clone());
    }
    let unreadable = |why: String| Unreadable { path: path.to_owned(), why };
    let mut bytes = fs::read(path).map_err(|error| unreadable(error.to_string()))?;
    let found = fs::metadata(path).map_err(|error| unreadable(error.to_string()))?;
    if Seen::from(&found) != planned {
        return Err(unreadable(CHANGED.to_owned()));
    }
    let edits = make(&bytes).map_err(unreadable)?;
    if !edits.is_empty() {
        bytes.resize(edits.length as usize, 0);
        edits.apply_at(0, &mut bytes);
    }
    let mentions = Mentions::of(&bytes);
    let (digest, cuts) = (Digest::of(&bytes), cut(&bytes));
    let scanned = Scanned { digest, cuts, seen: planned, look: Look::Plain, mentions };
    Ok(Changed { request, edits, scanned })
}

/// What reading a file whole tells; see [`Scanned`].
struct Contents {
    digest: Digest,
    cuts: Vec<u64>,
    look: Look,
    mentions: Mentions,
}

thread_local! {
    /// What files are read into; kept, as fresh memory costs more than reading does.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

fn in_memory(file: &File, size: u64) -> io::Result<Contents> {
    BUFFER.with_borrow_mut(|buffer| {
        let length = size as usize;
        if buffer.len() < length {
            buffer.resize(length, 0);
        }
        let bytes = &mut buffer[..length];
        file.read_exact_at(bytes, 0)?;
        let look = Look::at(bytes, || Facts::read(bytes));
        Ok(Contents { digest: Digest::of(bytes), cuts: cut(bytes), look, mentions: Mentions::of(bytes) })
    })
}

fn cut(bytes: &[u8]) -> Vec<u64> {
    if (bytes.len() as u64) < LARGE {
        return vec![bytes.len() as u64];
    }
    let chunks = FastCDC::new(bytes, FRAME.least as usize, FRAME.average as usize, FRAME.most as usize);
    chunks.map(|chunk| chunk.length as u64).collect()
}

fn stream(file: &mut File) -> io::Result<Contents> {
    let (mut hasher, mut cuts, mut look) = (blake3::Hasher::new(), Vec::new(), Look::Plain);
    let mut watch = Watch::default();
    let again = file.try_clone()?;
    for chunk in StreamCDC::new(file, FRAME.least as usize, FRAME.average as usize, FRAME.most as usize) {
        let chunk = chunk.map_err(io::Error::other)?;
        if cuts.is_empty() {
            look = Look::at(&chunk.data, || Facts::of_file(&again));
        }
        hasher.update(&chunk.data);
        watch.see(&chunk.data);
        cuts.push(chunk.length as u64);
    }
    Ok(Contents { digest: hasher.finalize().into(), cuts, look, mentions: watch.found })
}

/// What was found earlier, in a file of the user's cache: one for each bundle that is packed.
#[derive(Default)]
pub struct Memory {
    path: PathBuf,
    files: HashMap<Vec<u8>, Scanned>,
    changes: HashMap<Vec<u8>, Changed>,
}

/// The memory's file: postcard, behind a digest of the rest.
#[derive(Serialize, Deserialize)]
struct Saved {
    /// What else it depends on; under others nothing holds.
    rules: Rules,
    files: Vec<(Vec<u8>, Scanned)>,
    changes: Vec<(Vec<u8>, Changed)>,
}

/// A memory that is being read.
pub type Loading = JoinHandle<Memory>;

impl Memory {
    /// Begins to read what is remembered for this output, while something else is done.
    pub fn load(output: PathBuf) -> Loading {
        thread::spawn(move || Self::of(&output))
    }

    /// What is remembered of the files in the bundle that is written to `output` by somebody in this folder: the
    /// plan's sources are relative to it. Nothing, where it cannot be read.
    fn of(output: &Path) -> Self {
        let mut place = std::env::current_dir().unwrap_or_default().into_os_string();
        place.push("\n");
        place.push(output);
        let name = Digest::of(place.as_bytes()).short();
        let path = crate::cache::folder("scan").join(name);
        Self::at(path)
    }

    fn at(path: PathBuf) -> Self {
        let (files, changes) = read(&path).map(|saved| (saved.files, saved.changes)).unwrap_or_default();
        Self { path, files: files.into_iter().collect(), changes: changes.into_iter().collect() }
    }

    fn recall(&self, source: &Path, seen: &Seen) -> Option<&Scanned> {
        self.files.get(source.as_os_str().as_bytes()).filter(|scanned| scanned.seen == *seen)
    }

    fn recall_change(&self, source: &Path, seen: &Seen, request: &Digest) -> Option<&Changed> {
        let changed = self.changes.get(source.as_os_str().as_bytes())?;
        (changed.scanned.seen == *seen && changed.request == *request).then_some(changed)
    }

    /// Remembers what was found now, instead: sources and what they hold, and how they were changed. It is a cache:
    /// that it cannot be written is no failure.
    pub fn keep<'a, I>(&self, found: impl Fn() -> I, changes: &[(PathBuf, Changed)])
    where
        I: Iterator<Item = (&'a Path, &'a Scanned)>,
    {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let settled = now.saturating_sub(MOMENT).as_secs() as i64;
        let found = || {
            let settled = found().filter(|(_, scanned)| scanned.seen.changed.0 < settled);
            settled.map(|(source, scanned)| (source.as_os_str().as_bytes(), scanned))
        };
        let changes = || {
            let settled = changes.iter().filter(|(_, changed)| changed.scanned.seen.changed.0 < settled);
            settled.map(|(source, changed)| (source.as_os_str().as_bytes(), changed))
        };
        let same = found().count() == self.files.len()
            && found().all(|(source, scanned)| self.files.get(source) == Some(scanned))
            && changes().all(|(source, changed)| self.changes.get(source) == Some(changed));
        if same {
            // Its age says when it was used.
            let _ = File::open(&self.path).and_then(|file| file.set_modified(SystemTime::now()));
        } else {
            let files = found().map(|(source, scanned)| (source.to_vec(), scanned.clone())).collect();
            let changes = changes().map(|(source, changed)| (source.to_vec(), changed.clone())).collect();
            let _ = write(&self.path, files, changes);
        }
    }
}

/// The bounds of cuts, and the state of the program that cuts and changes.
type Rules = ([u64; 3], Seen);

fn rules() -> Rules {
    let program = std::env::current_exe().and_then(fs::metadata);
    let program = program.map_or_else(|_| Seen::default(), |found| Seen::from(&found));
    ([FRAME.least, FRAME.average, FRAME.most], program)
}

fn read(path: &Path) -> Option<Saved> {
    let bytes = fs::read(path).ok()?;
    let (digest, body) = bytes.split_at_checked(32)?;
    if Digest::of(body).0 != digest {
        return None;
    }
    let saved: Saved = postcard::from_bytes(body).ok()?;
    (saved.rules == rules()).then_some(saved)
}

fn write(path: &Path, files: Vec<(Vec<u8>, Scanned)>, changes: Vec<(Vec<u8>, Changed)>) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    crate::cache::forget(folder, FORGOTTEN);
    let body = postcard::to_allocvec(&Saved { rules: rules(), files, changes }).map_err(io::Error::other)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    io::Write::write_all(&mut file, &Digest::of(&body).0)?;
    io::Write::write_all(&mut file, &body)?;
    file.persist(path)?;
    Ok(())
}

mod digest {
    use kitbag_format::Digest;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(digest: &Digest, serializer: S) -> Result<S::Ok, S::Error> {
        digest.0.serialize(serializer)
    }

    pub fn deserialize<'a, D: Deserializer<'a>>(deserializer: D) -> Result<Digest, D::Error> {
        <[u8; 32]>::deserialize(deserializer).map(Digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(source: &Path) -> PlanEntry {
        let found = fs::metadata(source).unwrap();
        let kind = PlanKind::File {
            source: source.to_owned(),
            executable: false,
            seen: Seen::from(&found),
            change: None,
        };
        PlanEntry { path: b"file".to_vec(), kind }
    }

    fn memory(folder: &Path) -> Memory {
        Memory::at(folder.join("memory"))
    }

    fn set_age(path: &Path, seconds: u64) {
        let then = SystemTime::now() - Duration::from_secs(seconds);
        File::open(path).unwrap().set_modified(then).unwrap();
    }

    #[test]
    fn what_changed_a_moment_ago_is_not_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("file");
        fs::write(&source, "one").unwrap();
        let entries = [entry(&source)];
        let scanned = scan(&entries, Elf::Whole, &memory(folder.path())).unwrap();
        memory(folder.path()).keep(|| std::iter::once((source.as_path(), scanned[0].as_ref().unwrap())), &[]);
        assert!(memory(folder.path()).files.is_empty());
    }

    #[test]
    fn what_is_remembered_holds_until_the_file_changes_even_with_its_old_time() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("file");
        fs::write(&source, "one").unwrap();
        set_age(&source, 3600);
        let entries = [entry(&source)];
        let found = scan(&entries, Elf::Whole, &Memory::default()).unwrap();
        // As if it had been read an hour later.
        write(
            &folder.path().join("memory"),
            vec![(source.as_os_str().as_bytes().to_vec(), found[0].clone().unwrap())],
            Vec::new(),
        )
        .unwrap();
        let PlanKind::File { seen, .. } = entries[0].kind else { panic!() };
        let remembered = memory(folder.path());
        assert_eq!(remembered.recall(&source, &seen), found[0].as_ref());

        let before = fs::metadata(&source).unwrap().modified().unwrap();
        fs::write(&source, "two").unwrap();
        File::open(&source).unwrap().set_modified(before).unwrap();
        let PlanKind::File { seen, .. } = entry(&source).kind else { panic!() };
        assert_eq!(remembered.recall(&source, &seen), None);
    }

    #[test]
    fn a_damaged_memory_is_no_memory() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("memory");
        write(&path, Vec::new(), Vec::new()).unwrap();
        let whole = fs::read(&path).unwrap();
        assert!(read(&path).is_some());
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            fs::write(&path, bytes).unwrap();
            assert!(read(&path).is_none(), "byte {at}");
        }
    }
}
