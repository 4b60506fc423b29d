//! Descriptors: standard ones made sure of, pipes, and output that never blocks.

use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{Errno, attempt, check};

/// What POLLOUT promises to take without blocking (pipe(7)).
const PIPE_BUF: usize = 4096;

/// Fills the standard descriptors that are closed, so that no later file gets their numbers: with `/dev/null`, 0 to read
/// and the others to write, as daemon(3) does it. To be called before anything else is opened, and again where `/dev` may
/// have come since.
///
/// Where there is no `/dev/null`, they stand for a mere place (open(2), `O_PATH`), where each read and write fails with
/// EBADF as before. With `for_us` a program that this process becomes finds them closed, as its caller left them.
pub fn fill_standard(for_us: bool) {
    let kept = if for_us { libc::O_CLOEXEC } else { 0 };
    for wanted in 0..=2 {
        // SAFETY: F_GETFL takes a number and touches no memory.
        let flags = unsafe { libc::fcntl(wanted, libc::F_GETFL) };
        if flags >= 0 && (for_us || flags & libc::O_PATH == 0) {
            continue;
        }
        let way = if wanted == 0 { libc::O_RDONLY } else { libc::O_WRONLY };
        // SAFETY: open(2) reads paths that end with a NUL. dup2(2) and close(2) take numbers: `wanted` is closed or a mere
        // place, `opened` is known here alone. Descriptors are given lowest first, so a closed one is `wanted` already.
        unsafe {
            let opened = libc::open(c"/dev/null".as_ptr(), way | libc::O_NOCTTY | kept);
            if opened >= 0 && opened != wanted {
                libc::dup3(opened, wanted, kept);
                libc::close(opened);
            }
            if opened < 0 && flags < 0 {
                libc::open(c"/".as_ptr(), libc::O_PATH | libc::O_CLOEXEC);
            }
        }
    }
}

/// Makes sure of the standard descriptors, and marks all inherited ones beyond them close-on-exec, so that no service
/// gets them.
pub fn sanitise() {
    /// Linux before 5.11 has to be told of each; how far is enough.
    const ENOUGH: RawFd = 1024;
    fill_standard(false);
    if close_on_exec_from(3).is_err() {
        for number in 3..ENOUGH {
            // SAFETY: F_SETFD takes numbers; on a closed descriptor it answers EBADF.
            unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
}

/// Marks every descriptor from `first` on close-on-exec; Linux before 5.11 cannot. Async-signal-safe.
pub(super) fn close_on_exec_from(first: RawFd) -> Result<(), Errno> {
    close_range(first, libc::CLOSE_RANGE_CLOEXEC)
}

/// Gives this process a table of descriptors of its own, if it shares one, with those below `first` alone.
/// Async-signal-safe.
pub(super) fn leave_table(first: RawFd) -> Result<(), Errno> {
    close_range(first, libc::CLOSE_RANGE_UNSHARE)
}

/// close_range(2) from `first` on.
fn close_range(first: RawFd, flags: libc::c_uint) -> Result<(), Errno> {
    // SAFETY: takes numbers; the callers' flags close nothing that this process knows of.
    let answer = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, flags) };
    Errno::result(answer).map(drop)
}

/// Closes every descriptor from `first` on.
pub(super) fn close_from(first: RawFd) {
    /// Linux before 5.9 has to be told of each; how far is enough.
    const ENOUGH: RawFd = 1024;
    // The caller has forked, and leaves without using or dropping their owners.
    if close_range(first, 0).is_err() {
        for number in first..ENOUGH {
            // SAFETY: close(2) takes a number; as above.
            unsafe { libc::close(number) };
        }
    }
}

/// Low numbers that are kept for descriptors on their way to a child.
///
/// A child that gets a copy of the supervisor's table copies, and closes again, four pipe ends for each service: most of the
/// time of a launch where there are hundreds. One that shares the table and leaves it above these numbers,
/// with what it needs below, copies a handful (close_range(2), Linux 5.9).
#[derive(Debug)]
pub struct Slots {
    /// What fills them meanwhile.
    nothing: Option<OwnedFd>,
    slots: Vec<OwnedFd>,
}

impl Slots {
    /// Three for the standard descriptors, and some for others. A child that needs more copies the table.
    const COUNT: usize = 8;

    /// Takes the lowest numbers that are free: to be called before other files are opened. Where the kernel does
    /// not have what it takes, there are none.
    pub fn reserve() -> Self {
        // Beyond the last number there is nothing to close: this only asks whether the call is there.
        if close_range(RawFd::MAX, 0).is_err() {
            return Self::none();
        }
        let Ok(nothing) = nothing() else { return Self::none() };
        let slots: Result<Vec<_>, _> = (0..Self::COUNT).map(|_| nothing.try_clone()).collect();
        match slots {
            Ok(slots) if above_standard(&slots) => Self { nothing: Some(nothing), slots },
            _ => Self::none(),
        }
    }

    /// None: each child copies the table.
    pub const fn none() -> Self {
        Self { nothing: None, slots: Vec::new() }
    }

    /// Puts a second descriptor of each of `sources` into a slot, until the loan is dropped. `None` if there are
    /// too few slots, or the system refuses.
    pub(super) fn lend(&mut self, sources: impl ExactSizeIterator<Item = RawFd>) -> Option<Loan<'_>> {
        let nothing = self.nothing.as_ref()?;
        let mut loan = Loan { nothing, slots: self.slots.get(..0)? };
        let count = sources.len();
        for (at, source) in sources.enumerate() {
            loan.slots = self.slots.get(..=at)?;
            replace(source, self.slots.get(at)?).ok()?;
        }
        (loan.slots.len() == count).then_some(loan)
    }
}

/// Slots in use. They are emptied afterwards, so that a pipe's other end sees when the child has closed it.
#[derive(Debug)]
pub(super) struct Loan<'a> {
    nothing: &'a OwnedFd,
    slots: &'a [OwnedFd],
}

impl Loan<'_> {
    /// Their numbers.
    pub(super) fn numbers(&self) -> impl Iterator<Item = RawFd> {
        self.slots.iter().map(AsRawFd::as_raw_fd)
    }
}

impl Drop for Loan<'_> {
    fn drop(&mut self) {
        for slot in self.slots {
            // Fails for no reason that dup3(2) names: both are open.
            let _ = replace(self.nothing.as_raw_fd(), slot);
        }
    }
}

/// Makes `slot` the same file as `source`, close-on-exec.
fn replace(source: RawFd, slot: &OwnedFd) -> Result<(), Errno> {
    // SAFETY: takes numbers. `slot` stays an open descriptor, ours; what it stood for before is nobody's.
    check(unsafe { libc::dup3(source, slot.as_raw_fd(), libc::O_CLOEXEC) }).map(drop)
}

/// A descriptor that reads as empty: `/dev/null`, and where there is none, a pipe that nobody writes to.
pub fn nothing() -> Result<OwnedFd, Errno> {
    let null = std::fs::File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC | libc::O_NOCTTY)
        .open("/dev/null");
    match null {
        Ok(file) => Ok(file.into()),
        Err(_) => pipe().map(|(read, _write)| read),
    }
}

/// A pipe, its read end non-blocking, its write end as a program expects it; both close-on-exec.
pub fn pipe() -> Result<(OwnedFd, OwnedFd), Errno> {
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    fcntl(&read, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok((read, write))
}

/// Reads what is there: its length, 0 at the end, `None` if there is nothing yet.
pub fn read(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<Option<usize>, Errno> {
    attempt(|| nix::unistd::read(fd, buffer))
}

/// How many bytes of a pipe nobody has read yet (pipe(7), `FIONREAD`); 0 where that cannot be told.
pub fn unread(pipe: BorrowedFd<'_>) -> usize {
    let mut length: libc::c_int = 0;
    // SAFETY: FIONREAD writes an int to `length`.
    let answer = unsafe { libc::ioctl(pipe.as_raw_fd(), libc::FIONREAD, &raw mut length) };
    if answer == 0 { usize::try_from(length).unwrap_or(0) } else { 0 }
}

/// Lets this process have as many open files as it may, and returns the limit that its services get.
/// `None` leaves it as it is.
pub fn raise_open_files() -> Option<libc::rlimit> {
    let before = super::limit(libc::RLIMIT_NOFILE)?;
    let raised = libc::rlimit { rlim_cur: before.rlim_max, ..before };
    // SAFETY: reads the `rlimit` it is given.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) }).ok()?;
    Some(before)
}

/// False for a pipe that nobody reads any more (poll(2), `POLLERR`).
pub fn has_reader(descriptor: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::new(descriptor, PollFlags::empty())];
    let _ = poll(&mut polled, PollTimeout::ZERO);
    !polled[0].revents().is_some_and(|found| found.contains(PollFlags::POLLERR))
}

/// Waits until there is something to read, or its end; false if `output` is a pipe that nobody reads any more.
pub fn wait_to_read(input: BorrowedFd<'_>, output: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::new(input, PollFlags::POLLIN), PollFd::new(output, PollFlags::empty())];
    while poll(&mut polled, PollTimeout::NONE) == Err(Errno::EINTR) {}
    !polled[1].revents().is_some_and(|found| found.contains(PollFlags::POLLERR))
}

/// True if both are the same file, pipe or terminal.
pub fn same(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> bool {
    match (nix::sys::stat::fstat(one), nix::sys::stat::fstat(other)) {
        (Ok(one), Ok(other)) => one.st_dev == other.st_dev && one.st_ino == other.st_ino,
        _ => false,
    }
}

/// True if all that is written there is gone: the device `/dev/null`, by its number (devices.txt: 1, 3).
pub fn is_nothing(fd: BorrowedFd<'_>) -> bool {
    nix::sys::stat::fstat(fd)
        .is_ok_and(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFCHR && stat.st_rdev == libc::makedev(1, 3))
}

/// How a descriptor that others share is written to without blocking us or changing it for them.
#[derive(Debug)]
enum Way {
    /// Opened a second time, for us alone and non-blocking: a pipe or a terminal, where there is a /proc.
    Own(OwnedFd),
    /// send(2) with MSG_DONTWAIT.
    Socket,
    /// At most [`PIPE_BUF`] bytes at a time, when poll(2) says that they fit.
    Polled,
    /// A regular file or the like: always ready.
    File,
}

/// A standard descriptor to write to.
#[derive(Debug)]
pub struct Target {
    number: RawFd,
    way: Way,
}

impl Target {
    /// Standard output (1) or error (2) as it was inherited; it has to stay open.
    pub fn inherited(number: RawFd) -> Self {
        let kind = nix::sys::stat::fstat(borrow(number)).map_or(0, |stat| stat.st_mode & libc::S_IFMT);
        let way = match kind {
            libc::S_IFSOCK => Way::Socket,
            libc::S_IFIFO | libc::S_IFCHR => reopen(number).map_or(Way::Polled, Way::Own),
            _ => Way::File,
        };
        Self { number, way }
    }

    /// What to poll for writing.
    pub fn pollable(&self) -> BorrowedFd<'_> {
        match &self.way {
            Way::Own(own) => own.as_fd(),
            Way::Socket | Way::Polled | Way::File => borrow(self.number),
        }
    }

    /// Writes some of `bytes`: how many, `None` if it takes none now.
    pub fn write(&self, bytes: &[u8]) -> Result<Option<usize>, Errno> {
        attempt(|| match &self.way {
            Way::Own(own) => nix::unistd::write(own, bytes),
            Way::File => nix::unistd::write(borrow(self.number), bytes),
            Way::Socket => self.send(bytes),
            Way::Polled if self.is_ready() => {
                nix::unistd::write(borrow(self.number), &bytes[..bytes.len().min(PIPE_BUF)])
            }
            Way::Polled => Err(Errno::EAGAIN),
        })
    }

    fn is_ready(&self) -> bool {
        let mut polled = [PollFd::new(borrow(self.number), PollFlags::POLLOUT)];
        matches!(poll(&mut polled, PollTimeout::ZERO), Ok(1..))
    }

    fn send(&self, bytes: &[u8]) -> Result<usize, Errno> {
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: pointer and length are those of `bytes`, which send(2) only reads.
        let sent = unsafe { libc::send(self.number, bytes.as_ptr().cast(), bytes.len(), flags) };
        Errno::result(sent).map(isize::cast_unsigned)
    }
}

/// One of the three standard descriptors, which [`fill_standard`] has made sure of and nobody closes.
fn borrow(number: RawFd) -> BorrowedFd<'static> {
    debug_assert!((0..=2).contains(&number));
    // SAFETY: numbers 0 to 2 are open from `fill_standard` to the end of the process; std never closes them either.
    unsafe { BorrowedFd::borrow_raw(number) }
}

/// Standard output.
pub fn stdout() -> BorrowedFd<'static> {
    borrow(1)
}

/// Standard error.
pub fn stderr() -> BorrowedFd<'static> {
    borrow(2)
}

/// The same pipe or terminal under an open file description of our own: non-blocking is a property of the
/// description, and the inherited one belongs to others too.
fn reopen(number: RawFd) -> Option<OwnedFd> {
    // On the stack: a path of 16 bytes.
    let mut path = [0_u8; 24];
    let mut rest = &mut path[..];
    write!(rest, "/proc/self/fd/{number}\0").ok()?;
    let flags = libc::O_WRONLY | libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: the path ends with a NUL.
    let opened = unsafe { libc::open(path.as_ptr().cast(), flags) };
    // SAFETY: it was opened here and nobody else knows it.
    (opened > 2).then(|| unsafe { OwnedFd::from_raw_fd(opened) })
}

/// True if none is a standard descriptor's number.
fn above_standard(fds: &[OwnedFd]) -> bool {
    fds.iter().all(|fd| fd.as_raw_fd() > 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_null_device_is_nothing_and_its_neighbours_are_something() {
        let is = |path: &str| is_nothing(std::fs::File::open(path).expect(path).as_fd());
        assert!(is("/dev/null") && !is("/dev/zero") && !is("/proc/self/stat"));
        let (read, write) = pipe().expect("a pipe");
        assert!(!is_nothing(read.as_fd()) && !is_nothing(write.as_fd()));
    }
}
