//! The folder where an app writes, and the files that travel inside the bundle and become its state.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use kitbag_format::manifest::{Seed, is_name};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, Flock, FlockArg, OFlag};
use nix::unistd::{AccessFlags, access, geteuid, linkat};

use crate::store::owned::{self, Refusal};
use crate::store::place::{Candidate, Facts};
use crate::store::{self, StoreError, lock_file, read_pid};
use crate::sys::rights;

pub mod share;

pub use share::Users;

/// Name of the lock in a state folder.
const LOCK: &str = ".kitbag.lock";
/// The supervisor's own folder in a state folder: its socket, its logs.
const RUNTIME: &str = ".kitbag";
/// What the names of half copies begin with.
const PART: &str = ".kitbag.part.";
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

/// The state folder of the app `name` that somebody has used already, for a look at who does; makes nothing.
pub fn find(facts: &Facts, name: &str) -> Option<PathBuf> {
    let all = candidates(facts, name);
    let explicit = facts.path("KITBAG_STATE").is_some();
    let set = all.into_iter().filter_map(|(_, path)| path).take(if explicit { 1 } else { usize::MAX });
    set.filter_map(|path| path.canonicalize().ok()).find(|path| path.join(LOCK).is_file())
}

/// Makes the supervisor's own folder in a state folder, for its user alone.
pub fn runtime(state: &Path) -> Result<PathBuf, StoreError> {
    let folder = runtime_in(state);
    owned::below(state, RUNTIME, geteuid().as_raw(), 0o700)
        .map_err(|why| StoreError::io("use", &folder)(io::Error::other(why.to_string())))?;
    Ok(folder)
}

/// Where [`runtime`] makes it.
pub fn runtime_in(state: &Path) -> PathBuf {
    state.join(RUNTIME)
}

/// True if somebody uses this state folder.
pub fn is_in_use(state: &Path) -> bool {
    let Ok(file) = File::open(state.join(LOCK)) else { return false };
    Flock::lock(file, FlockArg::LockSharedNonblock).is_err()
}

/// Waits until nobody uses this state folder any more.
pub fn wait_until_free(state: &Path) {
    if let Ok(mut file) = File::open(state.join(LOCK)) {
        while let Err((back, Errno::EINTR)) = Flock::lock(file, FlockArg::LockShared) {
            file = back;
        }
    }
}

/// The process that uses this state folder, or did last.
pub fn user_of(state: &Path) -> Option<u32> {
    read_pid(&state.join(LOCK))
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

/// Takes the state folder for this process alone.
pub fn lock(state: &Path) -> Result<StateLock, StoreError> {
    let path = state.join(LOCK);
    match lock_file(&path).map_err(StoreError::io("lock", &path))? {
        Some(file) => Ok(StateLock(file)),
        None => Err(StoreError::AlreadyRunning { pid: read_pid(&path), folder: state.into() }),
    }
}

/// Copies each seed from the tree to the state folder where nothing is there yet. What is there is left
/// alone, whatever it is. A copy is whole and on the disk before it has its name. Who plants at the same time
/// waits. Returns the seeds that were planted.
///
/// In a folder where several users write ([`Users::Several`]), the copies are root's, and all may read them.
pub fn plant(tree: &Path, state: &Path, seeds: &[Seed], users: &Users) -> Result<Vec<String>, StoreError> {
    let _rights = match users {
        Users::One(ids) => Some(rights::borrow(ids).map_err(StoreError::sys("plant seeds in", state))?),
        Users::Own | Users::Several(_) => None,
    };
    let several = matches!(users, Users::Several(_));
    // Nobody else may meddle with half a copy.
    let parts = if several { runtime_in(state) } else { state.to_owned() };
    let _alone = if seeds.is_empty() { None } else { Some(wait_to_plant(state)?) };
    let mut planted = Vec::new();
    for (number, seed) in seeds.iter().enumerate() {
        let part = parts.join(format!("{PART}{number}"));
        store::remove(&part).map_err(StoreError::io("remove", &part))?;
        let to = state.join(&seed.to);
        if fs::symlink_metadata(&to).is_ok() {
            continue;
        }
        if several {
            let folder = Path::new(&seed.to).parent().unwrap_or(Path::new(""));
            owned::within(state, folder, geteuid().as_raw(), 0o711)
                .map_err(|why| StoreError::io("plant a seed in", state)(io::Error::other(why.to_string())))?;
        } else {
            make_parents(state, &to)?;
        }
        let from = tree.join(&seed.from);
        copy(&from, &part, if several { 0o055 } else { 0 })?;
        if publish(&part, &to)? {
            planted.push(seed.to.clone());
        }
        store::remove(&part).map_err(StoreError::io("remove", &part))?;
    }
    remove_leftovers(&parts)?;
    Ok(planted)
}

/// The folder itself is the lock: nothing is left in it.
fn wait_to_plant(state: &Path) -> Result<Flock<File>, StoreError> {
    let folder = File::open(state).map_err(StoreError::io("open", state))?;
    Flock::lock(folder, FlockArg::LockExclusive).map_err(|(_, errno)| StoreError::sys("lock", state)(errno))
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

fn remove_leftovers(folder: &Path) -> Result<(), StoreError> {
    for entry in fs::read_dir(folder).map_err(StoreError::io("read", folder))?.flatten() {
        let path = entry.path();
        if entry.file_name().as_encoded_bytes().starts_with(PART.as_bytes()) {
            match store::remove(&path) {
                // Of a time when it had no other users.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
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
