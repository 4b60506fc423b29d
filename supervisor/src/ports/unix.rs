//! Unix sockets at paths that the supervisor chooses.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};

use kitbag_format::port::Socket;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, bind, listen, socket};

use super::holder;
use super::lease::queue;
use super::refused::{PathFault, Refused};
use super::sockets::{self, Listener};
use crate::sys::{Errno, errno_of};

/// An address holds so many bytes, without the zero at its end (unix(7), `sun_path`).
pub const LONGEST: usize = 107;

/// The path of a port's socket in the folder for sockets: `web.2.rpc.sock`.
pub fn path(folder: &Path, unit: &str, port: &str) -> PathBuf {
    folder.join(format!("{unit}.{port}.sock"))
}

/// A path for a socket. What is left there goes when this is dropped.
#[derive(Debug)]
pub struct UnixLease {
    path: PathBuf,
    inherited: Option<Socket>,
    owner: Option<(u32, u32)>,
    /// Bound; it listens or will.
    socket: Option<OwnedFd>,
}

impl UnixLease {
    /// Takes a path whose folder is this bundle's alone, so that a socket that is there already was a predecessor's, and
    /// makes the socket where `inherited` says how, for `owner`, a user and group, or this process's.
    ///
    /// # Errors
    /// [`Refused::Path`]: too long, something else is there, or somebody listens there.
    pub fn take(
        path: PathBuf,
        inherited: Option<Socket>,
        owner: Option<(u32, u32)>,
    ) -> Result<Self, Refused> {
        if path.as_os_str().len() > LONGEST {
            return Err(Refused::Path(path, PathFault::TooLong(LONGEST)));
        }
        if inherited.is_none() {
            clear(&path)?;
        }
        let mut lease = Self { path, inherited, owner, socket: None };
        if inherited.is_some() {
            lease.socket = Some(lease.bound()?);
        }
        Ok(lease)
    }

    /// Where.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes way for the service's own socket: to be called before its exec.
    pub fn lend(&self) -> Result<(), Refused> {
        if self.inherited.is_some() { Ok(()) } else { clear(&self.path) }
    }

    /// To be called when the service's processes are gone: removes their socket.
    ///
    /// # Errors
    /// [`PathFault::Taken`] where a process has kept it.
    pub fn take_back(&self) -> Result<(), Refused> {
        self.lend()
    }

    /// The socket that services inherit; `None` where they make their own.
    pub fn listener(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(AsFd::as_fd)
    }

    /// Lets clients connect. Again: nothing changes, unless somebody has removed the socket's file; then there is a new one.
    pub fn listen(&mut self) -> Result<(), Refused> {
        let Some(options) = self.inherited else { return Ok(()) };
        let is_there = fs::symlink_metadata(&self.path).is_ok_and(|found| found.file_type().is_socket());
        if self.socket.is_none() || !is_there {
            self.socket = Some(self.bound()?);
        }
        match &self.socket {
            Some(socket) => listen(socket, queue(options.backlog)).map_err(|errno| self.refused(errno)),
            None => Ok(()),
        }
    }

    /// Refuses clients.
    pub fn unlisten(&mut self) -> Result<(), Refused> {
        if self.socket.take().is_some() { remove(&self.path) } else { Ok(()) }
    }

    /// Binds. Nobody can connect before it listens, when its permissions are right.
    fn bound(&self) -> Result<OwnedFd, Refused> {
        remove(&self.path)?;
        let mode = self.inherited.map_or(0o600, |options| options.mode);
        let make = || {
            let opened = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
            bind(opened.as_raw_fd(), &UnixAddr::new(&self.path)?)?;
            hand_over(&self.path, self.owner, mode & 0o777).map_err(|error| errno_of(&error))?;
            Ok(opened)
        };
        make().map_err(|errno| self.refused(errno))
    }

    fn refused(&self, errno: Errno) -> Refused {
        Refused::Path(self.path.clone(), PathFault::Io(errno))
    }
}

impl Drop for UnixLease {
    fn drop(&mut self) {
        let _ = if self.inherited.is_some() { remove(&self.path) } else { clear(&self.path) };
    }
}

/// Says whose a socket or its folder is, and what others may. Nobody else can swap it: what is handed over is in a folder of
/// this user's alone.
pub(super) fn hand_over(path: &Path, owner: Option<(u32, u32)>, mode: u32) -> io::Result<()> {
    if let Some((uid, gid)) = owner {
        lchown(path, Some(uid), Some(gid))?;
    }
    fs::set_permissions(path, Permissions::from_mode(mode))
}

/// Removes the socket that a dead process has left.
fn clear(path: &Path) -> Result<(), Refused> {
    if let Listener::Process(pid) = sockets::who_listens_at(path) {
        let holder = pid.map(|pid| Box::new(holder::of_process(pid)));
        return Err(Refused::Path(path.to_owned(), PathFault::Taken(holder)));
    }
    remove(path)
}

/// Removes a socket. Whoever has inherited it from the supervisor has it still, and nobody finds it any more.
fn remove(path: &Path) -> Result<(), Refused> {
    let refused = |fault| Err(Refused::Path(path.to_owned(), fault));
    let Ok(found) = fs::symlink_metadata(path) else { return Ok(()) };
    if !found.file_type().is_socket() {
        return refused(PathFault::NotASocket);
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => refused(PathFault::Io(errno_of(&error))),
        _ => Ok(()),
    }
}
