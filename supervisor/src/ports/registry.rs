//! What ports the running bundles of this host have: a folder a user, a file a supervisor, and no daemon.
//!
//! A file, `NAME.PID.json`, appears whole by rename(2). Its supervisor holds an open-file-description lock for writing on
//! it (fcntl(2), `F_OFD_SETLK`), which the kernel takes away when the supervisor dies, however it dies: a file without one
//! is stale. Nobody can hold such a lock who may not write to the file, and to ask for it takes no lock.
//!
//! What is found here was written by others. Each file is one of the folder's owner, of bounded size, and either makes sense
//! from end to end or is skipped, with the reason.

use std::fmt;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use kitbag_format::manifest::is_name;
use kitbag_format::port::{Protocol, is_port_name};
use kitbag_format::sort;
use nix::fcntl::{FcntlArg, fcntl};
use serde_json::{Value, json};

use super::lease::Net;
use super::watch::Watch;
use crate::store::owned::{self, Refusal};
use crate::store::place::{Candidate, Facts};
use crate::sys::{Errno, Pid};

/// The variable that names the folder.
pub const VARIABLE: &str = "KITBAG_RUN";
/// Where root's supervisors publish.
const ROOTS: &str = "/run/kitbag";
/// Where others do, each in a folder of this name with the user's id behind it.
const SHARED: [&str; 2] = ["/dev/shm", "/tmp"];
const PREFIX: &str = "kitbag-run-";
/// A longer file is skipped.
const LONGEST: u64 = 1 << 20;
/// Most ports of a file.
const MOST_PORTS: usize = 10_000;
/// Most files that are looked at.
const MOST_FILES: usize = 10_000;
/// Most folders of other users.
const MOST_FOLDERS: usize = 4_096;
/// Most names that are read of the folders where theirs are.
const MOST_NAMES: usize = 100_000;
/// How much is read of files of other users while services wait, in bytes.
const MOST_IN_A_LOOK: u64 = 4 << 20;
/// Longest text in a file, paths.
const LONGEST_TEXT: usize = 4_096;

/// A supervisor and its ports.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Entry {
    /// The bundle's name, or what KITBAG_NAME says in its place.
    pub bundle: String,
    /// Its version.
    pub version: String,
    /// The supervisor's process.
    pub pid: Pid,
    /// Its user.
    pub uid: u32,
    /// Its state folder.
    pub state: String,
    /// Seconds since 1970 when it began.
    pub since: u64,
    /// All that it has leased.
    pub ports: Vec<Published>,
}

/// A port that others may ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// The unit: `web`, or `web.2` of several instances.
    pub unit: String,
    /// The service, `web`.
    pub service: String,
    /// The port's name.
    pub port: String,
    /// What is spoken there.
    pub protocol: Protocol,
    /// Where it is listened at; `None` for a unix socket.
    pub address: Option<IpAddr>,
    /// The number; 0 for a unix socket.
    pub number: u16,
    /// Where a unix socket is; empty for others.
    pub path: String,
    /// The supervisor makes the socket.
    pub socket: bool,
}

impl Published {
    /// The protocol, if it has numbers.
    pub const fn net(&self) -> Option<Net> {
        Net::of(self.protocol)
    }

    /// Reads what [`Entry::to_json`] wrote.
    pub fn from_json(value: &Value) -> Option<Self> {
        let name = |key: &str| Some(value[key].as_str()?.to_owned()).filter(|name| is_name(name));
        let protocol = match value["protocol"].as_str()? {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "unix" => Protocol::Unix,
            _ => return None,
        };
        let has_number = protocol != Protocol::Unix;
        Some(Self {
            unit: name("unit")?,
            service: name("service")?,
            port: Some(value["port"].as_str()?.to_owned()).filter(|name| is_port_name(name))?,
            protocol,
            address: if has_number { Some(value["address"].as_str()?.parse().ok()?) } else { None },
            number: match has_number {
                true => value["number"].as_u64()?.try_into().ok().filter(|number| *number > 0)?,
                false => 0,
            },
            path: if has_number { String::new() } else { path_text(&value["path"])? },
            socket: value["socket"].as_bool()?,
        })
    }

    /// As `ports --json` has it.
    pub fn to_json(&self) -> Value {
        let mut value = json!({
            "unit": self.unit,
            "service": self.service,
            "port": self.port,
            "protocol": self.protocol.name(),
            "socket": self.socket,
        });
        match self.address {
            Some(address) => {
                value["address"] = address.to_string().into();
                value["number"] = self.number.into();
            }
            None => value["path"] = self.path.as_str().into(),
        }
        value
    }
}

impl Entry {
    /// As it stands in its file.
    pub fn to_json(&self) -> Value {
        json!({
            "bundle": self.bundle,
            "version": self.version,
            "pid": self.pid,
            "uid": self.uid,
            "state": self.state,
            "since": self.since,
            "ports": self.ports.iter().map(Published::to_json).collect::<Vec<_>>(),
        })
    }

    /// Reads a whole file; `None` if anything in it makes no sense.
    fn from_json(bytes: &[u8]) -> Option<Self> {
        let value: Value = serde_json::from_slice(bytes).ok()?;
        let ports = value["ports"].as_array().filter(|ports| ports.len() <= MOST_PORTS)?;
        Some(Self {
            bundle: Some(value["bundle"].as_str()?.to_owned()).filter(|name| is_name(name))?,
            version: Some(value["version"].as_str()?.to_owned()).filter(|text| is_text(text))?,
            pid: value["pid"].as_u64()?.try_into().ok()?,
            uid: value["uid"].as_u64()?.try_into().ok()?,
            state: path_text(&value["state"])?,
            since: value["since"].as_u64()?,
            ports: ports.iter().map(Published::from_json).collect::<Option<_>>()?,
        })
    }

    /// The port of this unit, under this name.
    pub fn port(&self, unit: &str, port: &str) -> Option<&Published> {
        // Of a service with several instances, its own name is the first's.
        let same = |it: &&Published| it.port == port && it.unit == unit;
        let first = |it: &&Published| it.port == port && it.service == unit;
        self.ports.iter().find(same).or_else(|| self.ports.iter().find(first))
    }

    fn file(&self) -> String {
        format!("{}.{}.json", self.bundle, self.pid)
    }
}

/// Absolute, and harmless on a terminal.
fn path_text(value: &Value) -> Option<String> {
    Some(value.as_str()?.to_owned()).filter(|text| text.starts_with('/') && is_text(text))
}

fn is_text(text: &str) -> bool {
    text.len() <= LONGEST_TEXT && !text.chars().any(char::is_control)
}

/// The folders that make up the registry.
#[derive(Debug, Clone)]
pub struct Folders {
    /// Where this user's supervisors publish: the first that can be used, and what names it.
    pub own: Vec<(&'static str, PathBuf)>,
    /// Root's; `None`: nobody's.
    pub root: Option<PathBuf>,
    /// Those of other users are in here.
    pub shared: Vec<PathBuf>,
}

impl Folders {
    /// This host's; with KITBAG_RUN, that folder alone.
    pub fn of(facts: &Facts) -> Self {
        if let Some(path) = facts.path(VARIABLE) {
            return Self { own: vec![(VARIABLE, path)], root: None, shared: vec![] };
        }
        let shared: Vec<PathBuf> = SHARED.iter().map(PathBuf::from).collect();
        let mut own: Vec<_> = SHARED
            .iter()
            .map(|parent| (*parent, Path::new(parent).join(format!("{PREFIX}{}", facts.uid))))
            .collect();
        if facts.uid == 0 {
            own.insert(0, ("root's", ROOTS.into()));
        }
        Self { own, root: Some(ROOTS.into()), shared }
    }
}

/// An entry, and whose folder it is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// What it says.
    pub entry: Entry,
    /// The file.
    pub file: PathBuf,
}

/// A file or folder that was skipped.
#[derive(Debug)]
pub struct Skipped {
    /// Which.
    pub path: PathBuf,
    /// Why.
    pub why: Fault,
}

impl fmt::Display for Skipped {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{}: {}", self.path.display().to_string().escape_debug(), self.why)
    }
}

/// Why it was skipped.
#[derive(Debug)]
pub enum Fault {
    /// Its supervisor is gone.
    Stale,
    /// It belongs to this user, and the folder to another.
    Owner(u32),
    /// Others than its owner can write to it.
    Writable,
    /// It is no regular file.
    NotAFile,
    /// It has so many bytes.
    TooLong(u64),
    /// What it says is cut short, no JSON, or makes no sense.
    Malformed,
    /// There are too many.
    TooMany,
    /// The folder cannot be trusted.
    Folder(Refusal),
    /// The system said no.
    Io(io::Error),
}

impl fmt::Display for Fault {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stale => to.write_str("its supervisor is gone"),
            Self::Owner(uid) => write!(to, "it belongs to user {uid}, and its folder to another"),
            Self::Writable => to.write_str("others than its owner can write to it"),
            Self::NotAFile => to.write_str("it is no regular file"),
            Self::TooLong(length) => {
                write!(to, "it has {}, and at most {} are read", owned::Size(*length), owned::Size(LONGEST))
            }
            Self::Malformed => to.write_str("what it says is cut short, or makes no sense"),
            Self::TooMany => {
                write!(to, "not looked at: there are more than {MOST_FILES} files, or {MOST_FOLDERS} folders")
            }
            Self::Folder(refusal) => refusal.fmt(to),
            Self::Io(error) => error.fmt(to),
        }
    }
}

/// What asking for a port of another bundle came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// It is this one.
    One(Box<Published>),
    /// No bundle of that name runs, as far as this user believes.
    NoBundle,
    /// It runs, and has these ports, `web.http`, alone.
    NoPort(Vec<String>),
    /// Several bundles of that name have it; their state folders.
    Ambiguous(Vec<String>),
}

/// This user's view of the registry, and his supervisor's place in it.
#[derive(Debug)]
pub struct Registry {
    uid: u32,
    folders: Folders,
    own: Option<PathBuf>,
    tried: Vec<Candidate>,
    published: Option<(PathBuf, File)>,
}

impl Registry {
    /// To publish in: makes the folder if need be. Where none can be used, nothing is published, [`Self::tried`] says
    /// why, and the rest works.
    pub fn open(uid: u32, folders: Folders) -> Self {
        Self::choose(uid, folders, |path| {
            let real = owned::folder(path, uid, 0o755)?;
            // Whatever the umask was, others are to see it.
            if fs::symlink_metadata(&real)?.mode() & 0o777 != 0o755 {
                fs::set_permissions(&real, Permissions::from_mode(0o755))?;
            }
            Ok(real)
        })
    }

    /// To look at: makes nothing.
    pub fn look(uid: u32, folders: Folders) -> Self {
        Self::choose(uid, folders, |path| owned::existing(path, uid))
    }

    fn choose(uid: u32, folders: Folders, usable: impl Fn(&Path) -> Result<PathBuf, Refusal>) -> Self {
        let mut tried = Vec::new();
        let mut own = None;
        for (why, path) in &folders.own {
            match usable(path) {
                Ok(real) => {
                    own = Some(real);
                    break;
                }
                Err(refusal) => {
                    tried.push(Candidate { path: Some(path.clone()), why, verdict: Err(refusal) })
                }
            }
        }
        Self { uid, folders, own, tried, published: None }
    }

    /// Where this user's supervisors publish; `None`: nowhere.
    pub fn folder(&self) -> Option<&Path> {
        self.own.as_deref()
    }

    /// The folders before it that cannot be used, with the reasons.
    pub fn tried(&self) -> &[Candidate] {
        &self.tried
    }

    /// Publishes `entry` in place of what was published before. A folder that has been removed is made again.
    ///
    /// # Errors
    /// The system's; and ENOTDIR where there is no folder, EFBIG where there are more ports than others would read.
    pub fn publish(&mut self, entry: &Entry) -> io::Result<()> {
        let mut text = entry.to_json().to_string().into_bytes();
        text.push(b'\n');
        if text.len() as u64 > LONGEST || entry.ports.len() > MOST_PORTS {
            return Err(Errno::EFBIG.into());
        }
        match self.write(&entry.file(), &text) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.own = Self::open(self.uid, self.folders.clone()).own.clone();
                self.write(&entry.file(), &text)
            }
            other => other,
        }
    }

    fn write(&mut self, name: &str, text: &[u8]) -> io::Result<()> {
        let folder = self.own.as_ref().ok_or(Errno::ENOTDIR)?;
        let path = folder.join(name);
        let part = folder.join(format!(".{name}"));
        let file = write_locked(&part, text).inspect_err(|_| {
            let _ = fs::remove_file(&part);
        })?;
        fs::rename(&part, &path)?;
        if let Some((before, _)) = self.published.replace((path.clone(), file))
            && before != path
        {
            let _ = fs::remove_file(before);
        }
        Ok(())
    }

    /// True if what was published is still there: session managers clear /dev/shm when a user logs out
    /// (logind.conf(5), `RemoveIPC`).
    pub fn is_published(&self) -> bool {
        let same = |(path, file): &(PathBuf, File)| is_at(file, path);
        self.published.as_ref().is_none_or(same)
    }

    /// Publishes again what is no longer there. True if it did.
    pub fn mend(&mut self, entry: &Entry) -> io::Result<bool> {
        if self.is_published() { Ok(false) } else { self.publish(entry).map(|()| true) }
    }

    /// Takes back what was published.
    pub fn withdraw(&mut self) {
        if let Some((path, file)) = self.published.take()
            && is_at(&file, &path)
        {
            let _ = fs::remove_file(path);
        }
    }

    /// All entries of this host, this user's first, then root's, then others'; and what was skipped. This user's stale
    /// files are removed on the way.
    pub fn all(&self) -> (Vec<Seen>, Vec<Skipped>) {
        let mut reader = self.read_trusted();
        let others = self.others();
        for (path, uid) in others.iter().take(MOST_FOLDERS) {
            reader.folder(path, *uid, |_| true);
        }
        if let Some((path, _)) = others.get(MOST_FOLDERS) {
            reader.skip(path, Fault::TooMany);
        }
        (reader.seen, reader.skipped)
    }

    /// The entries of this user, of root, and of these users; of the latter not more than can be read at once: for the loop.
    pub fn of_users(&self, users: &[u32]) -> Vec<Seen> {
        let mut reader = self.read_trusted();
        reader.left = MOST_IN_A_LOOK;
        for (path, uid) in users.iter().flat_map(|uid| self.folders_of(*uid)) {
            reader.folder(&path, uid, |_| true);
        }
        reader.seen
    }

    /// Reads the entries of this user and of root.
    fn read_trusted(&self) -> Reader {
        let mut reader = Reader::of(self.uid);
        let own = self.own.iter().map(|path| (path.as_path(), self.uid));
        for (path, uid) in own.chain(self.root().map(|path| (path, 0))) {
            reader.folder(path, uid, |_| true);
        }
        reader
    }

    /// The folders that a user other than this one and root may have.
    fn folders_of(&self, uid: u32) -> impl Iterator<Item = (PathBuf, u32)> {
        let shared = self.folders.shared.iter().filter(move |_| uid != self.uid && uid != 0);
        shared.map(move |parent| (parent.join(format!("{PREFIX}{uid}")), uid))
    }

    /// The port `port` of `unit` of the bundle of this name: one of this user's, else one of root's. Others are not
    /// believed.
    pub fn find(&self, bundle: &str, unit: &str, port: &str) -> Found {
        let mut has = None;
        let own = self.own.iter().map(|path| (path.as_path(), self.uid));
        for (path, uid) in own.chain(self.root().map(|path| (path, 0))) {
            let mut reader = Reader::of(self.uid);
            reader.folder(path, uid, |name| name == bundle);
            let found: Vec<_> =
                reader.seen.iter().filter_map(|seen| Some((seen, seen.entry.port(unit, port)?))).collect();
            match found[..] {
                [] if reader.seen.is_empty() => {}
                [] => has = has.or_else(|| Some(names(&reader.seen))),
                [(_, one)] => return Found::One(Box::new(one.clone())),
                _ => {
                    return Found::Ambiguous(
                        found.iter().map(|(seen, _)| seen.entry.state.clone()).collect(),
                    );
                }
            }
        }
        has.map_or(Found::NoBundle, Found::NoPort)
    }

    /// Watches the folders that [`Self::find`] looks at. Look once it is there: what changed before is not told.
    pub fn watch(&self) -> Result<Watch, Errno> {
        Watch::new(self.own.iter().map(PathBuf::as_path).chain(self.root()))
    }

    /// Root's folder, if it is another one than this user's.
    fn root(&self) -> Option<&Path> {
        self.folders.root.as_deref().filter(|root| self.own.as_deref() != Some(*root))
    }

    /// The folders of users, by their names, without those that [`Self::all`] looks at anyway.
    fn others(&self) -> Vec<(PathBuf, u32)> {
        let mut found = Vec::new();
        for parent in &self.folders.shared {
            let Ok(entries) = fs::read_dir(parent) else { continue };
            found.extend(entries.flatten().take(MOST_NAMES).filter_map(|entry| {
                let uid = entry.file_name().to_str()?.strip_prefix(PREFIX)?.parse().ok()?;
                Some((entry.path(), uid)).filter(|(path, _)| self.own.as_ref() != Some(path))
            }));
        }
        sort::sort(&mut found);
        found
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.withdraw();
    }
}

/// The ports of these, for people.
fn names(seen: &[Seen]) -> Vec<String> {
    let ports = seen.iter().flat_map(|seen| &seen.entry.ports);
    let mut names: Vec<String> = ports.map(|port| format!("{}.{}", port.unit, port.port)).collect();
    sort::sort(&mut names);
    names.dedup();
    names
}

/// Reads folders.
struct Reader {
    uid: u32,
    seen: Vec<Seen>,
    skipped: Vec<Skipped>,
    files: usize,
    /// How many bytes may still be read.
    left: u64,
}

impl Reader {
    const fn of(uid: u32) -> Self {
        Self { uid, seen: Vec::new(), skipped: Vec::new(), files: 0, left: u64::MAX }
    }

    fn skip(&mut self, path: &Path, why: Fault) {
        self.skipped.push(Skipped { path: path.to_owned(), why });
    }

    /// Reads the files of the user's folder whose bundle's name is wanted.
    fn folder(&mut self, path: &Path, uid: u32, wanted: impl Fn(&str) -> bool) {
        if fs::symlink_metadata(path).is_err() {
            return;
        }
        let entries = match owned::existing(path, uid).and_then(|real| Ok(fs::read_dir(real)?)) {
            Ok(entries) => entries,
            Err(refusal) => return self.skip(path, Fault::Folder(refusal)),
        };
        for entry in entries.flatten().take(MOST_NAMES) {
            let name = entry.file_name();
            let Some((bundle, pid)) = name.to_str().and_then(name_of_file) else { continue };
            if !wanted(bundle.strip_prefix('.').unwrap_or(bundle)) {
                continue;
            }
            self.files += 1;
            let length = entry.metadata().map_or(0, |found| found.len().min(LONGEST));
            self.left = self.left.saturating_sub(length);
            if self.files > MOST_FILES || self.left == 0 {
                return self.skip(path, Fault::TooMany);
            }
            self.file(&entry.path(), uid, bundle, pid);
        }
    }

    fn file(&mut self, path: &Path, uid: u32, bundle: &str, pid: Pid) {
        match read(path, uid) {
            Ok(entry) if entry.bundle != bundle || entry.pid != pid || entry.uid != uid => {
                // What begins with a dot has not got its name yet.
                if !bundle.starts_with('.') {
                    self.skip(path, Fault::Malformed);
                }
            }
            Ok(entry) => self.seen.push(Seen { entry, file: path.to_owned() }),
            Err(Fault::Stale) if uid == self.uid => remove_stale(path),
            // It has gone meanwhile.
            Err(Fault::Io(error)) if error.kind() == io::ErrorKind::NotFound => {}
            Err(_) if bundle.starts_with('.') => {}
            Err(why) => self.skip(path, why),
        }
    }
}

/// The bundle's name and the process in `NAME.PID.json`.
fn name_of_file(name: &str) -> Option<(&str, Pid)> {
    let (bundle, pid) = name.strip_suffix(".json")?.rsplit_once('.')?;
    let is_one = is_name(bundle.strip_prefix('.').unwrap_or(bundle));
    is_one.then_some(bundle).zip(pid.parse().ok())
}

/// Reads an entry of this user's folder.
fn read(path: &Path, uid: u32) -> Result<Entry, Fault> {
    /// Its supervisor may replace it while we look.
    const TRIES: usize = 4;
    for _ in 0..TRIES {
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(fault)?;
        let found = file.metadata().map_err(Fault::Io)?;
        match (found.is_file(), found.uid(), found.mode(), found.len()) {
            (false, ..) => return Err(Fault::NotAFile),
            (_, owner, ..) if owner != uid => return Err(Fault::Owner(owner)),
            (_, _, mode, _) if mode & 0o022 != 0 => return Err(Fault::Writable),
            (.., length) if length > LONGEST => return Err(Fault::TooLong(length)),
            _ => {}
        }
        if !is_locked(&file) {
            if is_at(&file, path) {
                return Err(Fault::Stale);
            }
            continue;
        }
        let mut bytes = Vec::new();
        file.take(LONGEST + 1).read_to_end(&mut bytes).map_err(Fault::Io)?;
        return Entry::from_json(&bytes).ok_or(Fault::Malformed);
    }
    Err(Fault::Io(Errno::EAGAIN.into()))
}

fn fault(error: io::Error) -> Fault {
    // O_NOFOLLOW and a link; a socket.
    match error.raw_os_error() {
        Some(libc::ELOOP | libc::ENXIO) => Fault::NotAFile,
        _ => Fault::Io(error),
    }
}

/// Makes a file, locked before anybody can know it.
fn write_locked(path: &Path, text: &[u8]) -> io::Result<File> {
    let _ = fs::remove_file(path);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(0o600).custom_flags(libc::O_CLOEXEC);
    let mut file = options.open(path)?;
    fcntl(&file, FcntlArg::F_OFD_SETLK(&whole(libc::F_WRLCK)))?;
    file.write_all(text)?;
    file.set_permissions(Permissions::from_mode(0o644))?;
    Ok(file)
}

/// A lock of the whole file.
fn whole(kind: libc::c_int) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

/// True if somebody who may write to it holds a lock.
fn is_locked(file: &File) -> bool {
    let mut asked = whole(libc::F_RDLCK);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut asked)).is_ok() && asked.l_type != libc::F_UNLCK as libc::c_short
}

/// True if the path leads to this very file.
fn is_at(file: &File, path: &Path) -> bool {
    let (Ok(one), Ok(other)) = (file.metadata(), fs::symlink_metadata(path)) else { return false };
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

/// Removes a file of this user's whose supervisor is gone, unless another one has begun to use the name.
fn remove_stale(path: &Path) {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC;
    let Ok(file) = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path) else { return };
    if fcntl(&file, FcntlArg::F_OFD_SETLK(&whole(libc::F_WRLCK))).is_ok() && is_at(&file, path) {
        let _ = fs::remove_file(path);
    }
}
