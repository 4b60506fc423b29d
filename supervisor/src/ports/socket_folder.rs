//! Where the unix sockets of a bundle lie, and which users get there.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::refused::{PathFault, Refused};
use super::unix;
use crate::sys::{Errno, errno_of};

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
        made(folder, None)?;
        if wanted.is_inherited {
            return Ok(folder.clone());
        }
        let own = folder.join(wanted.service);
        made(&own, wanted.owner)?;
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

/// Makes a folder that all may pass, and gives it to `owner`; what is there is a predecessor's. Nobody but this user can swap
/// it, as the one that it is in is this user's.
fn made(folder: &Path, owner: Option<(u32, u32)>) -> Result<(), Refused> {
    // Where that fails, it is not there, or is no folder.
    let _ = DirBuilder::new().mode(0o700).create(folder);
    let found = fs::symlink_metadata(folder).and_then(|found| {
        if found.is_dir() { unix::hand_over(folder, owner, PASSABLE) } else { Err(Errno::ENOTDIR.into()) }
    });
    found.map_err(|error| Refused::Path(folder.to_owned(), PathFault::Io(errno_of(&error))))
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

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
    fn a_link_in_a_folders_place_is_refused() {
        let temp = tempfile::tempdir().expect("a folder");
        let folder = SocketFolder::shared(temp.path(), "web", Path::new("/state"));
        let top = folder.of(wanted("a", true)).expect("a folder");
        fs::remove_dir(&top).expect("removed");
        symlink(temp.path(), &top).expect("a link");
        let refused = folder.of(wanted("a", false)).expect_err("a link");
        assert_eq!(refused.to_string(), format!("the socket {}: Not a directory", top.display()));
    }
}
