//! Garbage collection: removes trees that nobody uses.
//!
//! A tree in use is never removed. Three things tell that it is: the shared lock that a service bundle holds
//! on its folder; `/proc`, which shows every program, folder and file that a process has open (a tool's
//! process holds no lock: nothing of ours is left in it); and a start a moment ago, whose program may be
//! about to appear there. What is to go is first moved aside by one rename, then `/proc` is read once more,
//! and a tree that was caught in the act is put back.
//!
//! The files that a removed tree shared with others lose a name, and their ctimes move. Their records do not
//! follow: the next start of such a tree hashes the shared files once and writes its record anew.

use std::fmt;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use kitbag_format::sort;
use kitbag_format::{Digest, extract};
use nix::fcntl::{Flock, FlockArg};

use crate::store::closure;
use crate::store::owned::Size;
use crate::store::record::Record;
use crate::store::{self, Store, StoreError};

/// A start takes less than this from its last look at the tree until `/proc` shows its program.
const JUST_STARTED: Duration = Duration::from_secs(15);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// What may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Of each app, this many of the trees used last stay…
    pub keep: usize,
    /// …unless they were not used for so long.
    pub older_than: Duration,
    /// What was used within this time stays in any case.
    pub spare: Duration,
    /// Only say what would go.
    pub dry_run: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Self { keep: 3, older_than: 30 * DAY, spare: JUST_STARTED, dry_run: false }
    }
}

/// A tree that was considered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// The app's name; empty if the tree has no record.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The bundle's digest.
    pub digest: Digest,
    /// Time since it was used.
    pub idle: Duration,
    /// Bytes that its removal freed, or would free.
    pub freed: u64,
    /// Why it stays; `None`: it went, or would.
    pub kept: Option<&'static str>,
}

/// What a collection did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// Every tree.
    pub items: Vec<Item>,
    /// Bytes freed on the disk, half-made trees included.
    pub freed: u64,
    /// True if nothing was removed.
    pub dry_run: bool,
    /// What else is worth knowing.
    pub notes: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for item in &self.items {
            let name = if item.name.is_empty() { "(unknown)" } else { &item.name };
            write!(f, "{name} {} {}: ", item.version, item.digest.short())?;
            match item.kept {
                Some(why) => writeln!(f, "kept, {why}")?,
                None => writeln!(f, "{}, {}", self.word("removed"), Size(item.freed))?,
            }
        }
        self.notes.iter().try_for_each(|note| writeln!(f, "{note}"))?;
        write!(f, "{} {}", self.word("freed"), Size(self.freed))
    }
}

impl Report {
    fn word(&self, done: &'static str) -> &'static str {
        match (self.dry_run, done) {
            (false, done) => done,
            (true, "freed") => "would free",
            (true, _) => "would be removed",
        }
    }
}

/// What runs by itself after a first start: the default policy, without a word, sparing what was used within
/// the hour. `KITBAG_GC=off` turns it off.
pub fn collect_by_default(store: &Store) {
    if std::env::var_os("KITBAG_GC").is_some_and(|value| value == "off") {
        return;
    }
    let policy = Policy { spare: Duration::from_secs(60 * 60), ..Policy::default() };
    // What does not work now is left for the next time.
    let _ = collect(store, &policy);
}

/// Removes the trees that the policy gives up and nobody uses, and what crashes left behind.
pub fn collect(store: &Store, policy: &Policy) -> Result<Report, StoreError> {
    let mut report = Report { items: items(store, policy), dry_run: policy.dry_run, ..Report::default() };
    if !policy.dry_run {
        report.items.iter().for_each(|item| store.close_tree(&item.digest));
    }
    if report.items.iter().any(|item| item.kept.is_none()) {
        let candidates: Vec<Digest> =
            report.items.iter().filter(|item| item.kept.is_none()).map(|item| item.digest).collect();
        let used = used(&candidates);
        if used.is_none() {
            report.notes.push("without /proc nobody can tell which programs run; nothing is removed".into());
        }
        for item in report.items.iter_mut().filter(|item| item.kept.is_none()) {
            match &used {
                None => item.kept = Some("without /proc it may be in use"),
                Some(used) if used.contains(&item.digest) => item.kept = Some("in use"),
                Some(_) => remove(store, item, policy)?,
            }
        }
    }
    report.freed = report.items.iter().map(|item| item.freed).sum();
    report.freed += sweep(store, policy.dry_run)?;
    if !policy.dry_run {
        closure::sweep(store)?;
    }
    Ok(report)
}

/// All trees, the last used first, with the policy's verdict.
fn items(store: &Store, policy: &Policy) -> Vec<Item> {
    let mut items: Vec<Item> = store.digests().into_iter().map(|digest| item(store, digest)).collect();
    sort::by(&mut items, &|one, other| one.idle.cmp(&other.idle));
    for number in 0..items.len() {
        let (newer, rest) = items.split_at_mut(number);
        let Some(item) = rest.first_mut() else { break };
        let rank = newer.iter().filter(|newer| newer.name == item.name).count();
        item.kept = if item.idle < policy.spare.max(JUST_STARTED) {
            Some("used a moment ago")
        } else if rank < policy.keep && item.idle < policy.older_than && !item.name.is_empty() {
            Some("among the last used")
        } else {
            None
        };
    }
    items
}

fn item(store: &Store, digest: Digest) -> Item {
    let dir = store.tree_dir(&digest);
    let (name, version) =
        Record::read(&dir, &digest).map(|record| (record.name, record.version)).unwrap_or_default();
    Item { name, version, digest, idle: idle(&dir), freed: 0, kept: None }
}

/// Time since the tree was last used: a tool's start writes or touches `start`, a service bundle's `record`.
pub fn idle(dir: &Path) -> Duration {
    let time = |path: PathBuf| fs::symlink_metadata(path).and_then(|found| found.modified());
    let used = time(dir.join("start")).or_else(|_| time(dir.join("record"))).or_else(|_| time(dir.into()));
    used.ok().and_then(|used| SystemTime::now().duration_since(used).ok()).unwrap_or_default()
}

fn remove(store: &Store, item: &mut Item, policy: &Policy) -> Result<(), StoreError> {
    const BUSY: &str = "in use";
    let dir = store.tree_dir(&item.digest);
    let Some(lock) = store.try_lock(&item.digest)? else {
        item.kept = Some(BUSY);
        return Ok(());
    };
    // Something else than a folder, where a tree should be, is used by nobody.
    let folder = match extract::open_dir(&dir) {
        Ok(folder) => match Flock::lock(File::from(folder), FlockArg::LockExclusiveNonblock) {
            Ok(folder) => Some(folder),
            Err(_) => {
                item.kept = Some(BUSY);
                return Ok(());
            }
        },
        Err(_) => None,
    };
    if idle(&dir) < JUST_STARTED {
        item.kept = Some("used a moment ago");
        return Ok(());
    }
    if policy.dry_run {
        item.freed = would_free(&dir);
        return Ok(());
    }
    let trash = store.work(&format!("{}.trash", item.digest));
    item.freed = store::remove(&trash).map_err(StoreError::io("remove", &trash))?;
    move_away(store, item, &dir, &trash)?;
    if used(&[item.digest]).is_none_or(|used| used.contains(&item.digest)) {
        item.kept = Some(BUSY);
        return fs::rename(&trash, &dir).map_err(StoreError::io("put back", &dir));
    }
    item.freed += store::remove(&trash).map_err(StoreError::io("remove", &trash))?;
    drop(folder);
    lock.remove();
    Ok(())
}

/// Programs of other trees find their closure in another one from now on.
fn move_away(store: &Store, item: &Item, dir: &Path, trash: &Path) -> Result<(), StoreError> {
    let _lock = if store.closures().exists() { Some(store.lock_closures()?) } else { None };
    closure::hand_over(store, &item.digest)?;
    fs::rename(dir, trash).map_err(StoreError::io("move", dir))
}

/// Removes from the working folder what no living process works on: its lock is free.
fn sweep(store: &Store, dry_run: bool) -> Result<u64, StoreError> {
    let mut freed = 0;
    for entry in fs::read_dir(store.work("")).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let digest = name.to_str().and_then(|name| name.get(..64)).and_then(Digest::from_hex);
        let path = entry.path();
        let lock = match digest {
            Some(digest) => match store.try_lock(&digest)? {
                Some(lock) => Some((lock, digest)),
                None => continue,
            },
            None => None,
        };
        if dry_run {
            freed += would_free(&path);
            continue;
        }
        freed += store::remove(&path).map_err(StoreError::io("remove", &path))?;
        if let Some((lock, digest)) = lock
            && fs::symlink_metadata(store.tree_dir(&digest)).is_err()
        {
            lock.remove();
        }
    }
    Ok(freed)
}

/// Bytes on the disk of what has no name elsewhere.
fn would_free(path: &Path) -> u64 {
    // Files with several names: inode, number of names, bytes.
    let mut several: Vec<(u64, u64, u64)> = Vec::new();
    let mut freed = 0;
    let mut todo = vec![path.to_owned()];
    while let Some(path) = todo.pop() {
        let Ok(found) = fs::symlink_metadata(&path) else { continue };
        let bytes = found.blocks() * 512;
        if found.is_dir() || found.nlink() == 1 {
            freed += bytes;
        } else {
            several.push((found.ino(), found.nlink(), bytes));
        }
        if found.is_dir() {
            todo.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
        }
    }
    sort::sort(&mut several);
    for names in several.chunk_by(|a, b| a.0 == b.0) {
        if names.len() as u64 >= names[0].1 {
            freed += names[0].2;
        }
    }
    freed
}

/// Those of these trees that a process has something of: its program, a mapped file, its working or root folder, an open
/// file. `None` without `/proc`. A path is recognised by the digest in it, whatever it looks like
/// from another mount namespace. Processes of other users do not show; they have no business in our store. Root sees them,
/// and whatever names their files have: they cost the time to read them, and nothing is kept of them.
fn used(candidates: &[Digest]) -> Option<Vec<Digest>> {
    fs::metadata("/proc/self/exe").ok()?;
    let mut used = Vec::new();
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        if entry.file_name().as_bytes().iter().all(u8::is_ascii_digit) {
            note_process(&entry.path(), &mut |text| note(text, candidates, &mut used));
        }
    }
    Some(used)
}

fn note_process(process: &Path, note: &mut dyn FnMut(&[u8])) {
    for link in ["exe", "cwd", "root"] {
        note_link(&process.join(link), note);
    }
    note_maps(&process.join("maps"), note);
    let ours = process.ends_with(std::process::id().to_string());
    // We have open what we are about to remove.
    let open = fs::read_dir(process.join("fd")).into_iter().flatten().flatten().filter(|_| !ours);
    open.for_each(|entry| note_link(&entry.path(), note));
}

fn note_link(path: &Path, note: &mut dyn FnMut(&[u8])) {
    if let Ok(target) = fs::read_link(path) {
        note(target.as_os_str().as_bytes());
    }
}

/// Line by line: a process can have 65,530 mappings (vm.max_map_count), each with a path.
fn note_maps(path: &Path, note: &mut dyn FnMut(&[u8])) {
    let Ok(file) = File::open(path) else { return };
    let (mut maps, mut line) = (BufReader::new(file), Vec::new());
    while maps.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
        note(&line);
        line.clear();
    }
}

/// Notes those of the candidates whose `/<64 hexadecimal digits>` is in a text.
fn note(text: &[u8], candidates: &[Digest], used: &mut Vec<Digest>) {
    for (at, _) in text.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
        let digits = text.get(at + 1..at + 65).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit));
        let digits = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        if let Some(digest) = digits.and_then(Digest::from_hex)
            && candidates.contains(&digest)
            && !used.contains(&digest)
        {
            used.push(digest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_candidates_are_noted_wherever_they_are() {
        let digest = |number: u8| Digest::of(&[number]);
        let candidates = [digest(1), digest(2), digest(3)];
        let noted = |text: &str| {
            let mut used = Vec::new();
            note(text.as_bytes(), &candidates, &mut used);
            used
        };
        let (one, two) = (digest(1), digest(2));
        assert_eq!(noted(&format!("/store/v1/trees/{one}/tree/bin/app")), [one]);
        // As another mount namespace, and a tree that was moved aside, show it.
        assert_eq!(noted(&format!("/{two}/tree\n/store/v1/work/{one}.trash/tree/x /{two}/tree")), [two, one]);
        assert_eq!(noted(&format!("/store/{one}")), [one]);
        assert!(noted(&format!("{one} x{two} /{}", &one.to_string()[1..])).is_empty());
        // Another user's processes can show any number of these.
        let others: String = (10..250).map(|number| format!("/{}", digest(number))).collect();
        assert!(noted(&others).is_empty());
    }

    #[test]
    fn what_a_process_has_is_found_in_its_maps() {
        let exe = fs::read_link("/proc/self/exe").expect("/proc");
        let mut found = false;
        let mut see = |text: &[u8]| found |= text.ends_with(&[exe.as_os_str().as_bytes(), b"\n"].concat());
        note_maps(Path::new("/proc/self/maps"), &mut see);
        assert!(found);
    }
}
