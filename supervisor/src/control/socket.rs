//! The socket's place: `control` in a folder whose path may be longer than the 107 bytes that an address holds
//! (unix(7), `sun_path`).

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::fchdir;

/// The socket's name in its folder.
pub const NAME: &str = "control";
/// An address holds so many bytes, without the zero at its end.
const LONGEST: usize = 107;

/// Listens in `folder`. A socket that is there already is one that nobody listens at any more.
pub fn bind(folder: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(folder.join(NAME)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    at(folder, |path| UnixListener::bind(path))
}

/// Connects to whoever listens in `folder`.
pub fn connect(folder: &Path) -> io::Result<UnixStream> {
    at(folder, |path| UnixStream::connect(path))
}

/// Calls `act` with a path of the socket that fits into an address: the path itself; one through a descriptor of the
/// folder in /proc; and where there is no /proc, one relative to the folder, which becomes the working folder for that
/// moment. The last way is for a process of one thread.
fn at<T>(folder: &Path, act: impl Fn(&Path) -> io::Result<T>) -> io::Result<T> {
    let path = folder.join(NAME);
    if path.as_os_str().len() <= LONGEST {
        return act(&path);
    }
    let opened = File::open(folder)?;
    let through = PathBuf::from(format!("/proc/self/fd/{}", opened.as_raw_fd()));
    if through.exists() {
        return act(&through.join(NAME));
    }
    let back = here()?;
    fchdir(&opened)?;
    let result = act(Path::new(NAME));
    fchdir(&back)?;
    result
}

/// The working folder, even one that may not be read.
fn here() -> io::Result<OwnedFd> {
    Ok(open(".", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?)
}
