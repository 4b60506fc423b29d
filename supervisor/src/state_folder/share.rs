//! A state folder of root's in which services with other users write.
//!
//! It stays root's and gets sticky, so that nobody can put something else in the place of what the supervisor has in it. Who
//! may make files there stands in an access control list (acl(5)). Sticky it stays when no service has another user any more:
//! what those users have left in it is theirs.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::unistd::geteuid;

use super::runtime_in;
use crate::spawn::environment;
use crate::spawn::identity::Ids;
use crate::store::owned::{self, Refusal, STICKY};
use crate::store::place::Facts;
use crate::sys::{Errno, rights};

/// The folder in which root's state folders are.
pub const OF_ROOT: &str = "/var/lib/kitbag";
/// What holds an access control list, and the version of its layout (`include/uapi/linux/posix_acl_xattr.h`).
const ACL: &std::ffi::CStr = c"system.posix_acl_access";
const ACL_VERSION: u32 = 2;

/// The users beside the supervisor's that services have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Users {
    /// None.
    #[default]
    Own,
    /// All that have another one have this one.
    One(Ids),
    /// Each of these has some. Without any, there were others, whose files may still be there.
    Several(Vec<Ids>),
}

impl Users {
    /// Of these identities, those that are another user's than root; whoever is not root has no other.
    pub fn of<'a>(all: impl Iterator<Item = &'a Ids>) -> Self {
        let mut users: Vec<Ids> = Vec::new();
        for ids in all.filter(|ids| geteuid().is_root() && ids.uid != 0) {
            if users.iter().all(|known| known.uid != ids.uid) {
                users.push(ids.clone());
            }
        }
        match users.len() {
            0 => Self::Own,
            1 => users.pop().map_or(Self::Own, Self::One),
            _ => Self::Several(users),
        }
    }

    /// [`Users::of`], in a folder that may have been shared before.
    pub fn beside<'a>(state: &Path, all: impl Iterator<Item = &'a Ids>) -> Self {
        let is_marked = || fs::symlink_metadata(state).is_ok_and(|found| found.mode() & STICKY != 0);
        match Self::of(all) {
            Self::Own if geteuid().is_root() && is_marked() => Self::Several(Vec::new()),
            users => users,
        }
    }

    fn ids(&self) -> &[Ids] {
        match self {
            Self::Own => &[],
            Self::One(ids) => std::slice::from_ref(ids),
            Self::Several(all) => all,
        }
    }
}

/// Folders above the one that `KITBAG_STATE` names that are not there yet, and will be made with it: for [`share`].
pub fn missing_above(facts: &Facts) -> Vec<PathBuf> {
    let named = facts.path("KITBAG_STATE").unwrap_or_default();
    named.ancestors().skip(1).take_while(|above| !above.exists()).map(Path::to_owned).collect()
}

/// Lets these users make files in a state folder, whose own files are there already, and nobody else any more. Folders above
/// it that have been made with it, and root's usual one, let all pass then; `say` is told of another one that lets nobody.
///
/// # Errors
/// Those of chmod(2) and fsetxattr(2). Without access control lists users that share one group have the folder by that one;
/// for others it stays closed, which is said.
pub fn share(state: &Path, users: &Users, new: &[PathBuf], say: &dyn Fn(&str)) -> io::Result<()> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
    let folder = OpenOptions::new().read(true).custom_flags(flags.bits()).open(state)?;
    let set_mode = |mode| folder.set_permissions(Permissions::from_mode(mode));
    let Some(first) = users.ids().first() else {
        // Without its mask the list gives nothing.
        return if folder.metadata()?.mode() & STICKY == 0 { Ok(()) } else { set_mode(STICKY | 0o700) };
    };
    let usual = state.parent().filter(|above| *above == Path::new(OF_ROOT));
    // As many as were made, by the path that was checked: in the one that was named, links may have changed.
    for above in state.ancestors().skip(1).take(new.len()).chain(usual) {
        owned::set_mode(above, 0o711)?;
    }
    let is_closed = |above: &&Path| fs::metadata(above).is_ok_and(|found| found.mode() & 0o011 == 0);
    if let Some(closed) = state.ancestors().skip(1).find(is_closed) {
        let (state, closed) = (state.display(), closed.display());
        say(&format!(
            "services with a `user` cannot get to {state}, as {closed} lets only root pass: `chmod o+x {closed}`"
        ));
    }
    set_mode(STICKY | 0o711)?;
    match rights::set_attribute(folder.as_fd(), ACL, &list(users.ids())) {
        Err(Errno::EOPNOTSUPP) if users.ids().iter().all(|ids| ids.gid == first.gid) => {
            fchown(&folder, None, Some(first.gid))?;
            set_mode(STICKY | 0o771)
        }
        Err(Errno::EOPNOTSUPP) => {
            say(&format!(
                "services with a `user` cannot make files in {} itself: its file system has no access control lists, and they \
                 have several groups; give them one `group`",
                state.display()
            ));
            Ok(())
        }
        other => Ok(other?),
    }
}

/// An access control list: all for the owner and these users, nothing for the group, passing through for others.
fn list(users: &[Ids]) -> Vec<u8> {
    const NOBODY: u32 = u32::MAX;
    let mut uids: Vec<u32> = users.iter().map(|ids| ids.uid).collect();
    kitbag_format::sort::sort(&mut uids);
    let named = uids.into_iter().map(|uid| (0x02, 7, uid));
    let entries = [(0x01, 7, NOBODY)].into_iter().chain(named);
    let entries = entries.chain([(0x04, 0, NOBODY), (0x10, 7, NOBODY), (0x20, 1, NOBODY)]);
    let mut bytes = ACL_VERSION.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend_from_slice(&u16::to_le_bytes(tag));
        bytes.extend_from_slice(&u16::to_le_bytes(permissions));
        bytes.extend_from_slice(&u32::to_le_bytes(id));
    }
    bytes
}

/// Makes the folders above `path` in a state folder where other users write: root's, and none of them a link.
///
/// # Errors
/// Which folder is somebody else's.
pub fn roots_folders(state: &Path, path: &Path) -> io::Result<()> {
    folders_above(state, path, 0o700)
}

/// The same with permissions `mode`.
///
/// # Errors
/// As those of [`roots_folders`].
pub fn folders_above(state: &Path, path: &Path, mode: u32) -> io::Result<()> {
    let Ok(inner) = path.strip_prefix(state) else { return Ok(()) };
    let folders = inner.parent().unwrap_or(Path::new(""));
    owned::within(state, folders, geteuid().as_raw(), mode)
        .map_err(|why| io::Error::other(format!("a folder above it in {}: {why}", state.display())))
}

/// Makes the folders above `path` in such a folder with the rights of the user `uid`, which this thread has: each his or
/// root's, and none a link. In one of another user's that one could put another file in the place of his.
///
/// # Errors
/// Which folder is wrong; those of mkdir(2).
pub fn his_folders(state: &Path, path: &Path, uid: u32) -> io::Result<()> {
    let folders = path.strip_prefix(state).ok().and_then(Path::parent).unwrap_or(Path::new(""));
    let mut above = state.to_owned();
    for name in folders {
        above.push(name);
        match fs::create_dir(&above) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let found = fs::symlink_metadata(&above)?;
        if !found.is_dir() || ![uid, 0].contains(&found.uid()) {
            let whose = if found.is_dir() { Refusal::Owner(found.uid()) } else { Refusal::NotAFolder };
            return Err(io::Error::other(format!("{}: {whose}", above.display())));
        }
    }
    Ok(())
}

/// Makes the folder in which a supervisor of root's keeps the logs of services with these users, or checks it. Returns its real
/// path: there nobody else can put anything in the place of what root writes.
///
/// # Errors
/// What is wrong with it, and what to do.
pub fn log_folder(state: &Path, folder: &Path, users: &Users) -> io::Result<PathBuf> {
    if folder.starts_with(state) {
        return roots_folders(state, &folder.join("file")).map(|()| folder.to_owned());
    }
    let is_harmless = |gid: u32| {
        users
            .ids()
            .iter()
            .all(|ids| ids.gid != gid && ids.groups.as_ref().is_some_and(|groups| !groups.contains(&gid)))
    };
    let uid = geteuid().as_raw();
    let checked = owned::named_above(folder, uid, &is_harmless)
        .and_then(|()| owned::folder_beside(folder, uid, 0o750, &is_harmless));
    checked.map_err(|why| {
        io::Error::other(format!(
            "{why}; root writes logs only where no user of a service can swap them: `chown root` and `chmod go-w` that, once \
             nothing in it leads elsewhere, or name another folder in `logs`"
        ))
    })
}

/// Opens a file in a state folder where other users write, for a service of one of them, or of root. Where all folders above
/// it in there are root's own, root has put it there, and opens it. Elsewhere anybody can have, a file of root's too, by
/// rename(2): it is the user's, and opened with his rights; a service of root's takes none.
///
/// # Errors
/// Of open(2); whose it is; where one of root's has to be.
pub fn open(state: &Path, path: &Path, user: Option<&Ids>) -> io::Result<File> {
    let is_roots = is_in_roots_folder(state, path)?;
    let refused = |what: String| {
        let folder = runtime_in(state).join("env");
        Err(io::Error::other(format!("{what}; one of root's has to be in {}", folder.display())))
    };
    let (rights, open) = match user {
        _ if is_roots => (None, environment::open_file(path, OFlag::O_NOFOLLOW)),
        Some(ids) => (Some(rights::borrow(ids)?), environment::open_file(path, OFlag::O_NOFOLLOW)),
        None => {
            fs::symlink_metadata(path)?;
            return refused("services' users can make files there".to_owned());
        }
    };
    let file = match open {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && rights.is_some() => {
            return refused("its service's user may not read it".to_owned());
        }
        other => other?,
    };
    let found = file.metadata()?;
    let is_his = user.is_some_and(|ids| ids.uid == found.uid());
    let is_allowed = is_his || (is_roots && found.uid() == 0);
    if !is_allowed {
        return refused(format!("it belongs to user {}", found.uid()));
    }
    // A second name may be one that another user has given to it.
    if !is_roots && found.nlink() > 1 {
        return Err(io::Error::other("it has another name elsewhere"));
    }
    Ok(file)
}

/// True if a path leads through folders in this one that are root's alone: nobody else can move such a folder here (rename(2)).
///
/// # Errors
/// `NotFound` where one is missing in another of root's.
fn is_in_roots_folder(state: &Path, path: &Path) -> io::Result<bool> {
    let folders = path.strip_prefix(state).ok().and_then(Path::parent).unwrap_or(Path::new(""));
    let mut above = state.to_owned();
    for (depth, name) in folders.iter().enumerate() {
        above.push(name);
        match owned::own(&above, geteuid().as_raw()) {
            Err(Refusal::Io(error)) if depth > 0 && error.kind() == io::ErrorKind::NotFound => {
                return Err(error);
            }
            Err(_) => return Ok(false),
            Ok(()) => {}
        }
    }
    Ok(!folders.as_os_str().is_empty())
}
