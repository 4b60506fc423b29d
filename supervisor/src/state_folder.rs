//! The folder where an app writes, and the files that travel inside the bundle and become its state.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kitbag_format::manifest::{Seed, is_name};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, Flock, FlockArg, OFlag};
use nix::unistd::{AccessFlags, access, geteuid, linkat};

use crate::store::owned::{self, Refusal};
use crate::store::place::{Candidate, Facts};
use crate::store::{self, StoreError, lock_file, read_pid};
use crate::sys::{rights, socket};

pub mod share;

pub use share::Users;

/// Name of the lock in a state folder.
const LOCK: &str = ".kitbag.lock";
/// The supervisor's own folder in a state folder: its socket, its logs.
const RUNTIME: &str = ".kitbag";
/// What the names of half copies begin with.
pub const PART: &str = ".kitbag.part.";
/// The variable that names the folder for temporary files (environ(7)), and folders that are taken without it.
pub const TMPDIR: &str = "TMPDIR";
const TEMPORARY: [&str; 2] = ["/tmp", "/var/tmp"];

/// What a bundle is called on this host: `KITBAG_NAME`, for a further copy of it, or its own name.
pub fn name(facts: &Facts, own: &str) -> Result<String, StoreError> {
    match (facts.var)("KITBAG_NAME") {
        None => Ok(own.to_owned()),
        Some(name) => match name.into_string() {
            Ok(name) if is_name(&name) => Ok(name),
            Ok(name) => Err(StoreError::Name(name)),
            Err(name) => Err(StoreError::Name(name.to_string_lossy().into_owned())),
        },
    }
}

/// Chooses, makes and checks the state folder of the app `name`: `KITBAG_STATE` as it is, else the
/// conventional place of root or user.
pub fn choose(facts: &Facts, name: &str) -> Result<PathBuf, StoreError> {
    let mut tried = Vec::new();
    // Services of root's bundles may have other users: see [`share`].
    let shared = if facts.uid == 0 { owned::STICKY } else { 0 };
    for (why, path) in candidates(facts, name) {
        let explicit = why == "KITBAG_STATE" && path.is_some();
        let verdict = match &path {
            Some(path) => owned::folder(path, facts.uid, 0o700 | shared),
            None => Err(Refusal::NotSet),
        };
        match verdict {
            Ok(real) => return Ok(real),
            Err(refusal) => tried.push(Candidate { path, why, verdict: Err(refusal) }),
        }
        if explicit {
            break;
        }
    }
    Err(StoreError::NoState(tried))
}

/// Where a look for a state folder has led.
pub enum Found {
    /// To one that somebody has used.
    State(PathBuf),
    /// To none; these are the places that were looked at.
    Nothing(Vec<PathBuf>),
}

/// The state folder of the app `name` that somebody has used already, for a look at who does; makes nothing.
///
/// # Errors
/// Where there is none, the first place that this user may not look into, and why.
pub fn find(facts: &Facts, name: &str) -> Result<Found, (PathBuf, io::Error)> {
    let explicit = facts.path("KITBAG_STATE").is_some();
    let set = candidates(facts, name).into_iter().filter_map(|(_, path)| path);
    let (mut looked, mut closed) = (Vec::new(), None);
    for path in set.take(if explicit { 1 } else { usize::MAX }) {
        match look(&path) {
            Ok(Some(real)) => return Ok(Found::State(real)),
            Ok(None) => looked.push(path),
            Err(error) => _ = closed.get_or_insert((path, error)),
        }
    }
    closed.map_or(Ok(Found::Nothing(looked)), Err)
}

/// The real path of a state folder that somebody has used.
fn look(path: &Path) -> io::Result<Option<PathBuf>> {
    let real =
        path.canonicalize().and_then(|real| Ok(fs::metadata(real.join(LOCK))?.is_file().then_some(real)));
    match real {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(None)
        }
        other => other,
    }
}

/// Makes the supervisor's own folder in a state folder, for its user alone.
pub fn runtime(state: &Path) -> Result<PathBuf, StoreError> {
    let folder = runtime_in(state);
    owned::below(state, RUNTIME, geteuid().as_raw(), 0o700)
        .map_err(|why| StoreError::io("use", &folder)(io::Error::other(why.to_string())))?;
    Ok(folder)
}

/// Makes both again where somebody has removed them while they are used: for their user alone, as at the start.
///
/// # Errors
/// Of mkdir(2).
pub fn make_again(state: &Path) -> io::Result<()> {
    let runtime = runtime_in(state);
    if runtime.is_dir() { Ok(()) } else { make_private(&runtime) }
}

/// Makes a folder and those above it that are missing, for this user alone.
///
/// # Errors
/// Of mkdir(2).
pub fn make_private(folder: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// Where [`runtime`] makes it.
pub fn runtime_in(state: &Path) -> PathBuf {
    state.join(RUNTIME)
}

/// True if somebody uses this state folder.
///
/// # Errors
/// Of open(2), where this user may not look.
pub fn is_in_use(state: &Path) -> io::Result<bool> {
    let file = match File::open(state.join(LOCK)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        other => other?,
    };
    Ok(Flock::lock(file, FlockArg::LockSharedNonblock).is_err())
}

/// Waits until process `pid` does not use this state folder any more: nobody does, or another one. False if that is not
/// so by `until`.
///
/// # Errors
/// As [`is_in_use`].
pub fn wait_until_free(state: &Path, pid: Option<u32>, until: Option<Instant>) -> io::Result<bool> {
    /// How often that is looked at. flock(2) knows no deadline, and would go on with the next user.
    const POLL: Duration = Duration::from_millis(10);
    while is_in_use(state)? {
        if pid.is_some() && user_of(state).is_some_and(|user| Some(user) != pid) {
            return Ok(true);
        }
        if until.is_some_and(|until| Instant::now() >= until) {
            return Ok(false);
        }
        std::thread::sleep(POLL);
    }
    Ok(true)
}

/// The process that uses this state folder, or did last.
pub fn user_of(state: &Path) -> Option<u32> {
    read_pid(&state.join(LOCK))
}

/// A path for half a copy in this folder that nobody can foresee.
pub fn part_in(folder: &Path) -> PathBuf {
    let mut random = [0; 8];
    // Without randomness it is a name all the same.
    let _ = socket::random(&mut random);
    folder.join(format!("{PART}{:016x}", u64::from_ne_bytes(random)))
}

fn candidates(facts: &Facts, name: &str) -> Vec<(&'static str, Option<PathBuf>)> {
    let mut all = vec![("KITBAG_STATE", facts.path("KITBAG_STATE"))];
    if facts.uid == 0 {
        all.push(("root's state", Some(Path::new(share::OF_ROOT).join(name))));
        return all;
    }
    let kitbag = |path: PathBuf| path.join("kitbag").join(name);
    let local = |path: PathBuf| path.join(".local/state/kitbag").join(name);
    all.push(("XDG_STATE_HOME", facts.path("XDG_STATE_HOME").map(kitbag)));
    all.push(("HOME", facts.path("HOME").map(local)));
    all.push(("home folder in /etc/passwd", facts.passwd_home().map(local)));
    all
}

/// The folder `tmp` of the state, made if need be, where there is no other one for temporary files: not TMPDIR's, not
/// /tmp, not /var/tmp. Without any, programs write into their working directory or fail. `say` is told when it is made.
///
/// `None` where another one can be used, or this one cannot.
pub fn temporary(facts: &Facts, state: &Path, say: &dyn Fn(&str)) -> Option<PathBuf> {
    if has_temporary() || facts.path(TMPDIR).is_some_and(|folder| is_writable(&folder)) {
        return None;
    }
    let is_new = fs::symlink_metadata(state.join("tmp")).is_err();
    let folder = temporary_in(state, facts.uid)?;
    if is_new {
        let folder = folder.display();
        say(&format!(
            "no folder for temporary files can be written to, not {TMPDIR}, /tmp or /var/tmp: {TMPDIR} is {folder}"
        ));
    }
    Some(folder)
}

/// Makes the folder `tmp` of the state, of this user; `None` if it cannot be used.
pub fn temporary_in(state: &Path, uid: u32) -> Option<PathBuf> {
    owned::below(state, "tmp", uid, 0o700).ok()?;
    Some(state.join("tmp")).filter(|folder| is_writable(folder))
}

/// True if /tmp or /var/tmp can be written to; else [`temporary`] depends on the caller's TMPDIR.
pub fn has_temporary() -> bool {
    TEMPORARY.iter().any(|folder| is_writable(Path::new(folder)))
}

fn is_writable(folder: &Path) -> bool {
    folder.is_dir() && access(folder, AccessFlags::W_OK | AccessFlags::X_OK).is_ok()
}

/// The right to use a state folder. Ends when dropped, or with the process.
pub struct StateLock(#[expect(dead_code, reason = "held, not read")] Flock<File>);

/// The right to plant seeds in a tool's state folder, until it is dropped.
pub struct Planting(#[expect(dead_code, reason = "held, not read")] Flock<File>);

/// Takes the state folder for this process alone.
pub fn lock(state: &Path) -> Result<StateLock, StoreError> {
    /// Who only looks holds the lock for a moment ([`is_in_use`]), so it is asked for several times.
    const TRIES: usize = 5;
    let path = state.join(LOCK);
    for again in (0..TRIES).rev() {
        match lock_file(&path).map_err(|error| unwritable(state, &path, error))? {
            Some(file) => {
                let is_file = file.metadata().is_ok_and(|found| found.is_file());
                return if is_file { Ok(StateLock(file)) } else { Err(no_file(&path)) };
            }
            None if again > 0 => std::thread::sleep(Duration::from_millis(5)),
            None => {}
        }
    }
    Err(StoreError::AlreadyRunning { pid: read_pid(&path), folder: state.into() })
}

/// Why nothing can be written to a state folder: what is to be mended there has an answer of its own.
fn unwritable(state: &Path, path: &Path, error: io::Error) -> StoreError {
    let verdict = match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem => Refusal::ReadOnly,
        io::ErrorKind::PermissionDenied | io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            Refusal::Io(error)
        }
        _ => return StoreError::io("lock", path)(error),
    };
    StoreError::NoState(vec![Candidate {
        path: Some(state.into()),
        why: "this app's state",
        verdict: Err(verdict),
    }])
}

fn no_file(path: &Path) -> StoreError {
    StoreError::io("write to", path)(io::Error::other("it is no regular file; remove it"))
}

/// Opens a file of a state folder to append to it; makes it if it is not there. A pipe would hold the opener up
/// until somebody reads it, a link leads elsewhere: both are refused.
pub fn append_to(path: &Path) -> Result<File, StoreError> {
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o600);
    options.custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits());
    let file = match options.open(path) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENXIO | libc::ELOOP)) => {
            return Err(no_file(path));
        }
        other => other.map_err(|error| StoreError::io("open", path)(error))?,
    };
    if file.metadata().is_ok_and(|found| found.is_file()) { Ok(file) } else { Err(no_file(path)) }
}

/// A new file in place of whatever has this name in a state folder.
///
/// # Errors
/// Of unlink(2) and open(2).
pub fn create(path: &Path) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    OpenOptions::new().write(true).create_new(true).open(path)
}

/// Opens a regular file to read it; anything else is an error, and holds nobody up.
///
/// # Errors
/// Of open(2).
pub fn open(path: &Path) -> io::Result<File> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is no regular file")) }
}

/// Reads a regular file of a state folder, so many bytes at most.
///
/// # Errors
/// Those of [`open`], and of read(2).
pub fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Copies each seed from the tree to the state folder where nothing is there yet. What is there is left
/// alone, whatever it is. A copy is whole and on the disk before it has its name. The caller sees to it that nobody else
/// plants there now: by [`lock`], or [`wait_to_plant`]. Returns the seeds that were planted.
///
/// In a folder where several users write ([`Users::Several`]), the copies are root's, and all these may read them.
pub fn plant(tree: &Path, state: &Path, seeds: &[Seed], users: &Users) -> Result<Vec<String>, StoreError> {
    let several = matches!(users, Users::Several(_));
    let others = if matches!(users, Users::Several(all) if !all.is_empty()) { 0o055 } else { 0 };
    // Nobody else may meddle with half a copy.
    let parts = if several { runtime(state)? } else { state.to_owned() };
    let _rights = match users {
        Users::One(ids) => Some(rights::borrow(ids).map_err(StoreError::sys("plant seeds in", state))?),
        Users::Own | Users::Several(_) => None,
    };
    remove_leftovers(&parts, users)?;
    let mut planted = Vec::new();
    for seed in seeds {
        let part = part_in(&parts);
        let to = state.join(&seed.to);
        if fs::symlink_metadata(&to).is_ok() {
            continue;
        }
        if several {
            share::folders_above(state, &to, 0o700 | (others & 0o011))
                .map_err(StoreError::io("plant the seed", &to))?;
        } else {
            make_parents(state, &to)?;
        }
        let from = tree.join(&seed.from);
        copy(&from, &part, others)?;
        if publish(&part, &to)? {
            planted.push(seed.to.clone());
        }
        store::remove(&part).map_err(StoreError::io("remove", &part))?;
    }
    Ok(planted)
}

/// Waits until no other start of a tool plants seeds there. The folder itself is the lock: nothing is left in it; where others
/// may open it, it is the supervisor's own one. A supervisor has [`lock`]'s, and does not wait for this.
///
/// # Errors
/// Those of open(2) and flock(2).
pub fn wait_to_plant(state: &Path, users: &Users) -> Result<Planting, StoreError> {
    let state = &if *users == Users::Own { state.to_owned() } else { runtime(state)? };
    let folder = File::open(state).map_err(StoreError::io("open", state))?;
    let locked = Flock::lock(folder, FlockArg::LockExclusive);
    locked.map(Planting).map_err(|(_, errno)| StoreError::sys("lock", state)(errno))
}

/// Folders between the state folder and a seed; none of them may be a link.
fn make_parents(state: &Path, to: &Path) -> Result<(), StoreError> {
    let mut between: Vec<&Path> = to.ancestors().skip(1).take_while(|above| *above != state).collect();
    between.reverse();
    for folder in between {
        match fs::DirBuilder::new().mode(0o700).create(folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(StoreError::io("make", folder)(error));
            }
            _ => {}
        }
        let found = fs::symlink_metadata(folder).map_err(StoreError::io("examine", folder))?;
        if !found.is_dir() {
            let error = io::Error::from(io::ErrorKind::NotADirectory);
            return Err(StoreError::io("plant a seed in", folder)(error));
        }
    }
    Ok(())
}

/// Copies; `others` is what others may do with it.
fn copy(from: &Path, to: &Path, others: u32) -> Result<(), StoreError> {
    let failed = |error| StoreError::io("copy the seed", from)(error);
    let found = fs::symlink_metadata(from).map_err(failed)?;
    if found.is_symlink() {
        let target = fs::read_link(from).map_err(failed)?;
        return std::os::unix::fs::symlink(target, to).map_err(failed);
    }
    if !found.is_dir() {
        return copy_file(from, to, found.mode(), others).map_err(failed);
    }
    fs::create_dir(to).map_err(failed)?;
    set_mode(to, 0o700 | others)?;
    for entry in fs::read_dir(from).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        copy(&from.join(&name), &to.join(&name), others)?;
    }
    sync(to)
}

fn copy_file(from: &Path, to: &Path, mode: u32, others: u32) -> io::Result<()> {
    let mut source = OpenOptions::new().read(true).custom_flags(OFlag::O_NOFOLLOW.bits()).open(from)?;
    let mode = if mode & 0o111 == 0 { 0o600 | (others & 0o044) } else { 0o700 | others };
    let mut target = OpenOptions::new().write(true).create_new(true).mode(mode).open(to)?;
    io::copy(&mut source, &mut target)?;
    if others != 0 {
        // Whatever the umask was.
        target.set_permissions(fs::Permissions::from_mode(mode))?;
    }
    target.sync_all()
}

/// Gives a whole copy its name, in one step that never replaces anything: a file and a link by a second
/// name, a folder by a rename, which fails on all but an empty folder. False if something was there.
fn publish(part: &Path, to: &Path) -> Result<bool, StoreError> {
    let failed = |error| StoreError::io("plant the seed", to)(error);
    let found = fs::symlink_metadata(part).map_err(failed)?;
    let result = if found.is_dir() {
        fs::rename(part, to)
    } else {
        match linkat(AT_FDCWD, part, AT_FDCWD, to, AtFlags::empty()) {
            // No hard links here (vfat, some network file systems). The state's lock keeps others out.
            Err(Errno::EPERM | Errno::EOPNOTSUPP | Errno::ENOSYS) => fs::rename(part, to),
            other => other.map_err(io::Error::from),
        }
    };
    match result {
        Ok(()) => to.parent().map_or(Ok(()), sync).map(|()| true),
        Err(error) => match error.kind() {
            io::ErrorKind::AlreadyExists
            | io::ErrorKind::DirectoryNotEmpty
            | io::ErrorKind::NotADirectory => Ok(false),
            _ => Err(failed(error)),
        },
    }
}

fn remove_leftovers(folder: &Path, users: &Users) -> Result<(), StoreError> {
    for entry in fs::read_dir(folder).map_err(StoreError::io("read", folder))?.flatten() {
        let path = entry.path();
        if entry.file_name().as_encoded_bytes().starts_with(PART.as_bytes()) {
            match store::remove(&path) {
                // Of a time when it had no other users, or what one of them has made.
                Err(_) if matches!(users, Users::One(_)) => {}
                other => _ = other.map_err(StoreError::io("remove", &path))?,
            }
        }
    }
    Ok(())
}

fn set_mode(path: &Path, mode: u32) -> Result<(), StoreError> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .map_err(StoreError::io("set the permissions of", path))
}

fn sync(folder: &Path) -> Result<(), StoreError> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(StoreError::io("synchronise", folder))
}
