//! Folders that are ours alone: made, or found and checked, so that no other user of the machine can plant
//! or swap what is below them. Used for the store and for state.

use std::fs::{self, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::{error, fmt};

use kitbag_format::slots::FillError;
use nix::fcntl::OFlag;

/// The user that a user namespace shows for owners it has no number for (user_namespaces(7)).
const OVERFLOW_UID: u32 = 65534;

/// Why a folder cannot be used.
#[derive(Debug)]
pub enum Refusal {
    /// The environment variable, or the entry, that would name it is not there.
    NotSet,
    /// The path is relative, or has `..` in it.
    NotAbsolute,
    /// It is a symbolic link; one that somebody planted looks the same.
    Link,
    /// It is something else.
    NotAFolder,
    /// It belongs to this user id.
    Owner(u32),
    /// Group or others may write to it; its permissions.
    Writable(u32),
    /// A folder above it lets others swap it.
    Parent(PathBuf, &'static str),
    /// The file system is mounted read-only.
    ReadOnly,
    /// The file system is mounted `noexec`.
    NoExec,
    /// Bytes needed, bytes there.
    Space(u64, u64),
    /// Files needed, files there.
    Inodes(u64, u64),
    /// Its path cannot go into this file of the bundle, which must name it.
    Slot(String, FillError),
    /// The system said no.
    Io(io::Error),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotSet => f.write_str("not set"),
            Self::NotAbsolute => f.write_str("not an absolute path without `..`"),
            Self::Link => f.write_str("it is a symbolic link"),
            Self::NotAFolder => f.write_str("it is not a folder"),
            Self::Owner(uid) => write!(f, "it belongs to user {uid}"),
            Self::Writable(mode) => {
                write!(f, "others can write to it (mode {mode:04o}); `chmod go-w` changes that")
            }
            Self::Parent(path, why) => write!(f, "{} {why}", path.display()),
            Self::ReadOnly => f.write_str("the file system is read-only"),
            Self::NoExec => f.write_str("the file system is mounted noexec"),
            Self::Space(needs, has) => write!(f, "needs {}, has {}", Size(*needs), Size(*has)),
            Self::Inodes(needs, has) => write!(f, "needs {needs} files, has room for {has}"),
            Self::Slot(file, why) => write!(f, "its path cannot go into `{file}`: {why}"),
            Self::Io(error) => error.fmt(f),
        }
    }
}

impl error::Error for Refusal {}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// A number of bytes for people: `12.3 MB`, decimal units, without floating point.
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(1_000_000_000, "GB"), (1_000_000, "MB"), (1_000, "kB")];
        match units.iter().find(|(unit, _)| self.0 >= *unit) {
            Some((unit, name)) => write!(f, "{}.{} {name}", self.0 / unit, self.0 % unit / (unit / 10)),
            None => write!(f, "{} bytes", self.0),
        }
    }
}

/// What others may write to and only the owner of an entry can rename or remove it (inode(7)).
pub const STICKY: u32 = 0o1000;

/// Makes `path` with all that is missing above it, with permissions `mode` whatever the umask is, or checks the folder that is
/// there. From the root down, each is made and checked before the next: another user may have made one meanwhile. Returns its
/// real path: links in its parents are resolved, it is none itself. With [`STICKY`] in `mode`, one that is sticky may be
/// writable to its group, which stands for those whom an access control list names.
pub fn folder(path: &Path, uid: u32, mode: u32) -> Result<PathBuf, Refusal> {
    folder_beside(path, uid, mode, &|_| false)
}

/// The same where folders above may be writable to groups that are `harmless`: on some systems /var/log is to one.
pub fn folder_beside(
    path: &Path,
    uid: u32,
    mode: u32,
    harmless: &dyn Fn(u32) -> bool,
) -> Result<PathBuf, Refusal> {
    let real = resolve(path)?;
    let mut above: Vec<&Path> = real.ancestors().skip(1).collect();
    above.reverse();
    for above in above {
        make(above, mode & 0o777)?;
        parent(above, uid, harmless)?;
    }
    make(&real, mode & 0o777)?;
    let others = if mode & STICKY == 0 { 0o022 } else { 0o002 };
    own_but(&real, uid, others)?;
    Ok(real)
}

/// Checks the folders above a path as they are named, of which [`folder`] sees only where their links lead: nobody else has made
/// such a link, or can make another.
pub fn named_above(path: &Path, uid: u32, harmless: &dyn Fn(u32) -> bool) -> Result<(), Refusal> {
    for above in path.ancestors().skip(1) {
        let Ok(found) = fs::symlink_metadata(above) else { continue };
        if found.is_symlink() && ![0, uid].contains(&found.uid()) {
            return Err(Refusal::Parent(above.into(), "is a link of another user's"));
        }
        parent(&fs::canonicalize(above)?, uid, harmless)?;
    }
    Ok(())
}

/// Checks a folder that is there, makes nothing.
pub fn existing(path: &Path, uid: u32) -> Result<PathBuf, Refusal> {
    let real = resolve(path)?;
    for above in real.ancestors().skip(1) {
        parent(above, uid, &|_| false)?;
    }
    own(&real, uid)?;
    Ok(real)
}

/// Makes the folder `name` in a folder that is ours, or checks it.
pub fn below(folder: &Path, name: impl AsRef<Path>, uid: u32, mode: u32) -> Result<(), Refusal> {
    let path = folder.join(name);
    make(&path, mode)?;
    own(&path, uid)
}

/// Makes a folder with these permissions, in one whose owner and rights were checked. What is there already, whatever it is,
/// is for the caller to examine.
fn make(path: &Path, mode: u32) -> Result<(), Refusal> {
    if fs::symlink_metadata(path).is_ok() {
        return Ok(());
    }
    match fs::DirBuilder::new().mode(mode).create(path) {
        Ok(()) => {
            // What the umask took away. Where a file system has no permissions, nothing of them can be set.
            let _ = set_mode(path, mode);
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(refused(error)),
    }
}

/// Gives a folder these permissions, if it is one and no link; its other bits stay.
///
/// # Errors
/// Those of open(2) and chmod(2).
pub fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
    let open = || OpenOptions::new().read(true).custom_flags(flags.bits()).open(path);
    let now = fs::symlink_metadata(path)?.mode() & 0o7777;
    let wanted = (now & !0o777) | mode;
    if now == wanted { Ok(()) } else { open()?.set_permissions(Permissions::from_mode(wanted)) }
}

/// Makes folders below one that is ours, each in the one before, or checks them: none is a link, or somebody else's.
pub fn within(folder: &Path, names: &Path, uid: u32, mode: u32) -> Result<(), Refusal> {
    let mut above = folder.to_owned();
    for name in names {
        below(&above, name, uid, mode)?;
        above.push(name);
    }
    Ok(())
}

/// A real folder, ours, that nobody else can write to.
pub fn own(path: &Path, uid: u32) -> Result<(), Refusal> {
    own_but(path, uid, 0o022)
}

/// The same, where `others` are the permissions that others may not have unless it is sticky.
fn own_but(path: &Path, uid: u32, others: u32) -> Result<(), Refusal> {
    let found = fs::symlink_metadata(path)?;
    if found.is_symlink() {
        return Err(Refusal::Link);
    }
    if !found.is_dir() {
        return Err(Refusal::NotAFolder);
    }
    if found.uid() != uid {
        return Err(Refusal::Owner(found.uid()));
    }
    let denied = if found.mode() & STICKY == 0 { 0o022 } else { others };
    if found.mode() & denied != 0 {
        return Err(Refusal::Writable(found.mode() & 0o7777));
    }
    Ok(())
}

/// Resolves links in the part of the parents that is there.
fn resolve(path: &Path) -> Result<PathBuf, Refusal> {
    let plain = |part: Component| matches!(part, Component::RootDir | Component::Normal(_));
    let (Some(parent), Some(_), true) = (path.parent(), path.file_name(), path.components().all(plain))
    else {
        return Err(Refusal::NotAbsolute);
    };
    if !path.is_absolute() {
        return Err(Refusal::NotAbsolute);
    }
    for above in parent.ancestors() {
        match fs::canonicalize(above) {
            Ok(real) => return Ok(real.join(path.strip_prefix(above).unwrap_or(path))),
            // A dangling link is there, and yet it cannot be followed.
            Err(error) if fs::symlink_metadata(above).is_ok() => return Err(error.into()),
            Err(_) => {}
        }
    }
    Err(Refusal::NotAbsolute)
}

/// A folder above ours: nobody but us and root can swap what is in it.
fn parent(path: &Path, uid: u32, harmless: &dyn Fn(u32) -> bool) -> Result<(), Refusal> {
    let found = fs::symlink_metadata(path)?;
    if !found.is_dir() {
        return Err(Refusal::Parent(path.into(), "is not a folder"));
    }
    if found.uid() != uid && found.uid() != 0 && !is_unmapped(found.uid()) {
        return Err(Refusal::Parent(path.into(), "belongs to another user"));
    }
    if found.mode() & STICKY == 0 && others_write(&found, uid, harmless) {
        return Err(Refusal::Parent(path.into(), "can be written to by others and is not sticky"));
    }
    Ok(())
}

/// A group with the user's own number is, by the convention of user private groups, nobody else's.
fn others_write(found: &Metadata, uid: u32, harmless: &dyn Fn(u32) -> bool) -> bool {
    let gid = found.gid();
    let group = gid != 0 && gid != uid && found.mode() & 0o020 != 0 && !harmless(gid);
    group || found.mode() & 0o002 != 0
}

/// True in a user namespace where this number stands for the host's users, root among them.
fn is_unmapped(uid: u32) -> bool {
    let Ok(map) = fs::read_to_string("/proc/self/uid_map") else { return false };
    let mapped = map.lines().any(|line| {
        let mut fields = line.split_ascii_whitespace().map(|field| field.parse::<u64>().unwrap_or(0));
        let (first, _, count) = (fields.next(), fields.next(), fields.next());
        first.zip(count).is_some_and(|(first, count)| (first..first + count).contains(&u64::from(uid)))
    });
    uid == OVERFLOW_UID && !mapped
}

fn refused(error: io::Error) -> Refusal {
    match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem => Refusal::ReadOnly,
        _ => Refusal::Io(error),
    }
}
