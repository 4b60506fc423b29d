//! Where the unix sockets of a bundle lie, and which users get there.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;

use super::refused::{PathFault, Refused};
use crate::store::owned::{self, Refusal};

/// Everybody may pass through, and only its owner sees and changes what is in it. A socket's own permissions say who connects.
const PASSABLE: u32 = 0o711;

/// The folder of a bundle's unix sockets. It is made when the first one is.
#[derive(Debug)]
pub enum SocketFolder {
    /// For the supervisor's user alone.
    Private(PathBuf),
    /// For services of several users. It is the supervisor's; a service that makes its sockets by itself has a folder in it,
    /// so that no service can put something else in the place of another's, or of one that the supervisor makes.
    Shared(PathBuf),
}

/// A port's socket.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Its service.
    pub service: &'a str,
    /// The user and group of its service, if those are not the supervisor's.
    pub owner: Option<(u32, u32)>,
    /// The supervisor makes it.
    pub is_inherited: bool,
}

impl SocketFolder {
    /// The one in the supervisor's own folder.
    pub fn private(runtime: &Path) -> Self {
        Self::Private(runtime.join("run"))
    }

    /// The one in `folder`, which nobody else can write to and everybody can pass through: `guestbook-1f0c92a4`. A second
    /// running bundle of that name has another state folder.
    pub fn shared(folder: &Path, bundle: &str, state: &Path) -> Self {
        let digest = blake3::hash(state.as_os_str().as_encoded_bytes()).to_hex();
        Self::Shared(folder.join(format!("{bundle}-{}", &digest[..8])))
    }

    /// The folder for this socket, made if need be.
    ///
    /// # Errors
    /// [`Refused::Path`] with the folder that cannot be used.
    pub fn of(&self, wanted: Wanted<'_>) -> Result<PathBuf, Refused> {
        let folder = match self {
            Self::Private(folder) => {
                // If it cannot be made, no socket can be in it, which is told with its path.
                let _ = DirBuilder::new().mode(0o700).create(folder);
                return Ok(folder.clone());
            }
            Self::Shared(folder) => folder,
        };
        let refused = |path: &Path, why: Refusal| {
            Refused::Path(path.to_owned(), PathFault::Folder(why.to_string().into()))
        };
        passable(folder).map_err(|why| refused(folder, why))?;
        if wanted.is_inherited {
            return Ok(folder.clone());
        }
        let own = folder.join(wanted.service);
        handed_over(&own, wanted.owner).map_err(|error| refused(&own, error.into()))?;
        Ok(own)
    }
}

impl Drop for SocketFolder {
    /// Removes what was made for several users, but for folders where something is left.
    fn drop(&mut self) {
        let Self::Shared(folder) = self else { return };
        for entry in fs::read_dir(&*folder).into_iter().flatten().flatten() {
            let _ = fs::remove_dir(entry.path());
        }
        let _ = fs::remove_dir(folder);
    }
}

/// Makes a folder that is this user's, or checks it.
fn passable(folder: &Path) -> Result<(), Refusal> {
    let (Some(above), Some(name)) = (folder.parent(), folder.file_name()) else {
        return Err(Refusal::NotAbsolute);
    };
    owned::below(above, &name.to_string_lossy(), geteuid().as_raw(), PASSABLE)?;
    // Whatever the umask was.
    Ok(fs::set_permissions(folder, Permissions::from_mode(PASSABLE))?)
}

/// Makes a folder and gives it to `owner`; what is there is a predecessor's. Nobody but this user can swap it.
fn handed_over(folder: &Path, owner: Option<(u32, u32)>) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    if let Some((uid, gid)) = owner {
        lchown(folder, Some(uid), Some(gid))?;
    }
    fs::set_permissions(folder, Permissions::from_mode(PASSABLE))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).expect("it is there").mode() & 0o7777
    }

    fn wanted(service: &str, is_inherited: bool) -> Wanted<'_> {
        Wanted { service, owner: None, is_inherited }
    }

    #[test]
    fn folders_for_several_users_can_be_passed_and_go_when_they_are_empty() {
        let temp = tempfile::tempdir().expect("a folder");
        let of = |state: &str| SocketFolder::shared(temp.path(), "web", Path::new(state));
        let folder = of("/state");
        let top = folder.of(wanted("a", true)).expect("a folder");
        let own = folder.of(wanted("a", false)).expect("a folder");
        assert_eq!((mode(&top), mode(&own), own.parent()), (0o711, 0o711, Some(top.as_path())));
        // As a predecessor, or a service, may have left it.
        fs::set_permissions(&own, Permissions::from_mode(0o777)).expect("chmod");
        folder.of(wanted("a", false)).expect("the same");
        assert_eq!(mode(&own), 0o711);
        let other = of("/other");
        assert_ne!(other.of(wanted("a", true)).expect("another"), top);
        drop(other);
        fs::write(own.join("left"), "").expect("a file");
        drop(folder);
        assert!(own.join("left").exists());
        fs::remove_file(own.join("left")).expect("removed");
        drop(of("/state"));
        assert_eq!(fs::read_dir(temp.path()).expect("a folder").count(), 0);
    }

    #[test]
    fn a_folder_that_somebody_else_has_made_is_refused() {
        let temp = tempfile::tempdir().expect("a folder");
        let folder = SocketFolder::shared(temp.path(), "web", Path::new("/state"));
        let top = folder.of(wanted("a", true)).expect("a folder");
        fs::remove_dir(&top).expect("removed");
        symlink(temp.path(), &top).expect("a link");
        let refused = folder.of(wanted("a", false)).expect_err("a link");
        assert_eq!(refused.to_string(), format!("the socket {}: it is a symbolic link", top.display()));
    }
}
