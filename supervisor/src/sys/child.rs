//! From clone(2) to execve(2).
//!
//! The child runs in the supervisor's memory, on a stack of its own, while the supervisor waits: `CLONE_VM` and
//! `CLONE_VFORK`, as in posix_spawn(3). Nothing is copied, and when clone(2) returns, the launch has succeeded or failed.
//! So the child writes to its stack and to its [`Task`] alone, calls async-signal-safe functions alone, allocates nothing,
//! and every argument exists before it. (errno is the caller's thread's, which waits.)
//!
//! What the child waits for, the supervisor waits for: a working directory or a program on a network file system whose
//! server is gone. A fork(2) would not, and costs each launch a copy of the page tables. So the child has a
//! [`DEADLINE`] instead, a timer of the kernel's that kills it, and that execve(2) removes. The kernel lets a killed
//! process leave such waits (`TASK_KILLABLE`); it does not where a local disk or an answering FUSE server hangs.
//! The timer also ends a child that somebody stops (SIGSTOP) in these microseconds.

use std::cell::Cell;
use std::convert::Infallible;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::ptr;
use std::time::{Duration, Instant};

use super::fd::Slots;
use super::{Errno, Pid, check, fd, landlock, signal};
use crate::spawn::Setup;
use crate::spawn::identity::Ids;
use crate::state::{Fault, Stage};

/// How long a child may take to its program.
pub const DEADLINE: Duration = Duration::from_secs(5);
/// Bytes of a child's stack. It needs less than 1 kB in a release, 4 without optimization.
const STACK: usize = 32 << 10;
/// Bytes of the longest `i32`, in decimal.
const DECIMAL: usize = 11;

/// What a child becomes.
#[derive(Debug)]
pub struct Image<'a> {
    /// Path of the program.
    pub program: CString,
    /// Its arguments, the first one included.
    pub argv: Vec<CString>,
    /// Its whole environment, `NAME=value`.
    pub env: Vec<CString>,
    /// Its working directory.
    pub cwd: CString,
    /// Its user, limits and the like.
    pub setup: &'a Setup,
}

/// What a child gets from the supervisor. It inherits no other descriptor.
#[derive(Debug)]
pub struct Files<'a> {
    /// Standard input.
    pub stdin: BorrowedFd<'a>,
    /// Standard output.
    pub stdout: BorrowedFd<'a>,
    /// Standard error.
    pub stderr: BorrowedFd<'a>,
    /// Further ones: the number that the child finds it at (3 or more, no number twice), and the descriptor.
    pub inherited: &'a [(RawFd, BorrowedFd<'a>)],
    /// The limit on open files; `None`: the supervisor's.
    pub limit: Option<libc::rlimit>,
    /// Names of environment variables whose value is the child's process id, such as `LISTEN_PID`. Nobody knows it
    /// before the child runs, so the child writes it. They take the place of what the environment has under these names.
    pub own_pid: &'a [&'a str],
    /// What restricts it (landlock(7)); see [`crate::sandbox`]. Used on the way, not inherited.
    pub ruleset: Option<BorrowedFd<'a>>,
    /// The limit by which it is known, and all that descends from it; see [`crate::mark`].
    pub mark: Option<libc::rlimit>,
}

impl Files<'_> {
    /// Each descriptor with the number it gets in the child. The ruleset is the last, and gets none.
    fn all(&self) -> impl Iterator<Item = (RawFd, Option<RawFd>)> {
        let standard = [(self.stdin, 0), (self.stdout, 1), (self.stderr, 2)];
        let standard = standard.map(|(from, to)| (from.as_raw_fd(), Some(to)));
        let inherited = self.inherited.iter().map(|(to, from)| (from.as_raw_fd(), Some(*to)));
        let ruleset = self.ruleset.iter().map(|ruleset| (ruleset.as_raw_fd(), None));
        standard.into_iter().chain(inherited).chain(ruleset)
    }
}

/// A descriptor on its way to its number in the child; one without stays close-on-exec, wherever it is.
struct Move {
    from: Cell<RawFd>,
    to: Option<RawFd>,
}

/// An environment variable whose value is the child's process id: `NAME=` and room for the digits.
struct OwnPid {
    text: Box<[Cell<u8>]>,
    /// Where the digits begin.
    digits: usize,
}

impl OwnPid {
    fn new(name: &str) -> Self {
        let text = [name.as_bytes(), b"=", &[0; DECIMAL + 1]].concat();
        Self { digits: name.len() + 1, text: text.into_iter().map(Cell::new).collect() }
    }

    fn pointer(&self) -> *const c_char {
        self.text.as_ptr().cast()
    }

    /// Async-signal-safe. The text ends in a zero still: there is room for one more than the longest number.
    fn write(&self, pid: Pid) {
        let mut number = [0; DECIMAL];
        let digits = decimal(pid, &mut number);
        self.text.iter().skip(self.digits).zip(digits).for_each(|(place, digit)| place.set(*digit));
    }

    /// True for a variable of the same name.
    fn replaces(&self, variable: &CString) -> bool {
        let name = self.text.iter().take(self.digits).map(Cell::get);
        variable.as_bytes().len() >= self.digits
            && name.eq(variable.as_bytes()[..self.digits].iter().copied())
    }
}

/// All that a child reads, and the cells that it writes.
struct Task<'a> {
    image: &'a Image<'a>,
    argv: Vec<*const c_char>,
    env: Vec<*const c_char>,
    own_pid: &'a [OwnPid],
    moves: Vec<Move>,
    /// The first number beyond those that `moves` have to do with, on either side.
    beyond: RawFd,
    /// The descriptor table is the supervisor's own: the child has to leave it first.
    shared: bool,
    limit: Option<libc::rlimit>,
    mark: Option<libc::rlimit>,
    ignored: u64,
    parent: Pid,
    deadline: Duration,
    /// The step that the child is at.
    stage: Cell<Stage>,
    /// Why that failed, as in errno(3); 0: it did not.
    errno: Cell<i32>,
}

/// Starts a child that becomes `image` in a session and process group of its own, and returns its id when its program
/// runs. A fault leaves no process behind.
pub fn start(image: &Image<'_>, files: &Files<'_>, slots: &mut Slots) -> Result<Pid, Fault> {
    start_within(DEADLINE, image, files, slots)
}

fn start_within(
    deadline: Duration,
    image: &Image<'_>,
    files: &Files<'_>,
    slots: &mut Slots,
) -> Result<Pid, Fault> {
    let sources: Vec<(RawFd, Option<RawFd>)> = files.all().collect();
    let lent = slots.lend(sources.iter().map(|(from, _)| *from));
    let moves = match &lent {
        Some(lent) => lent.numbers().zip(&sources).map(|(slot, (_, to))| (slot, *to)).collect(),
        None => sources,
    };
    let beyond =
        moves.iter().map(|(from, to)| (*from).max(to.unwrap_or(0))).max().unwrap_or(2).saturating_add(1);
    let own_pid: Vec<OwnPid> = files.own_pid.iter().map(|name| OwnPid::new(name)).collect();
    let others = image.env.iter().filter(|variable| !own_pid.iter().any(|own| own.replaces(variable)));
    let task = Task {
        image,
        argv: pointers(image.argv.iter().map(|argument| argument.as_ptr())),
        env: pointers(others.map(|variable| variable.as_ptr()).chain(own_pid.iter().map(OwnPid::pointer))),
        own_pid: &own_pid,
        moves: moves.into_iter().map(|(from, to)| Move { from: Cell::new(from), to }).collect(),
        beyond,
        shared: lent.is_some(),
        limit: files.limit,
        mark: files.mark,
        ignored: signal::ignored(),
        parent: nix::unistd::getpid().as_raw(),
        deadline,
        stage: Cell::new(Stage::Fork),
        errno: Cell::new(0),
    };
    let began = Instant::now();
    let pid = clone(&task).map_err(|errno| Fault { stage: Stage::Fork, errno: errno as i32 })?;
    let errno = match task.errno.get() {
        0 if began.elapsed() < deadline => return Ok(pid),
        // The timer has killed it. If it has just come to its program after all, it goes by the same rule.
        0 => libc::ETIMEDOUT,
        errno => errno,
    };
    end(pid);
    Err(Fault { stage: task.stage.get(), errno })
}

/// clone(2); returns when the child has executed its program or ended.
fn clone(task: &Task<'_>) -> Result<Pid, Errno> {
    let mut stack: Vec<u128> = Vec::with_capacity(STACK / size_of::<u128>());
    let files = if task.shared { libc::CLONE_FILES } else { 0 };
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | files | libc::SIGCHLD;
    // A signal's default action must not meet the child before it has its own mask; ^Z is not blocked elsewhere.
    let mask = signal::block_all();
    let dumpable = task.image.setup.ids.as_ref().map(|_| dumpable());
    // SAFETY: the stack's end is aligned and its memory lives until after the child has left it: CLONE_VFORK. The child
    // runs `run_task` alone, reads `task` through its pointer, and writes nothing but the stack and the task's cells,
    // those of its variables included.
    let answer = unsafe {
        let top = stack.as_mut_ptr().add(stack.capacity());
        libc::clone(run_task, top.cast(), flags, ptr::from_ref(task).cast_mut().cast())
    };
    let answer = check(answer);
    if let Some(dumpable) = dumpable {
        // A change of user has made the memory, and so the supervisor, undumpable: prctl(2), PR_SET_DUMPABLE.
        set_dumpable(dumpable);
    }
    signal::set_mask(mask);
    answer
}

/// The child.
extern "C" fn run_task(task: *mut c_void) -> c_int {
    // SAFETY: `clone` passes a task that outlives the child's stay in this memory.
    let task = unsafe { &*task.cast_const().cast::<Task<'_>>() };
    let Err(errno) = task.run();
    task.errno.set(errno as i32);
    // SAFETY: _exit(2) ends the child without running the supervisor's destructors.
    unsafe { libc::_exit(127) }
}

impl Task<'_> {
    /// The child's way: each step, or why one failed. Allocates nothing.
    fn run(&self) -> Result<Infallible, Errno> {
        let setup = self.image.setup;
        die_after(self.deadline);
        // SAFETY: takes nothing.
        let own = unsafe { libc::getpid() };
        self.own_pid.iter().for_each(|variable| variable.write(own));
        signal::reset(self.ignored);
        self.at(Stage::Session);
        // SAFETY: takes nothing.
        check(unsafe { libc::setsid() })?;
        self.at(Stage::StandardFiles);
        self.take_files()?;
        self.at(Stage::Limits);
        self.limit()?;
        self.at(Stage::Cgroup);
        setup.cgroup.as_deref().map_or(Ok(()), |procs| put(procs, b"0"))?;
        self.at(Stage::Nice);
        setup.nice.map_or(Ok(()), nice)?;
        self.at(Stage::OomScore);
        setup.oom_score.map_or(Ok(()), |score| put_number(c"/proc/self/oom_score_adj", score.into()))?;
        if let Some(umask) = setup.umask {
            // SAFETY: takes a number; cannot fail.
            unsafe { libc::umask(umask) };
        }
        self.at(Stage::Sandbox);
        self.ruleset().map_or(Ok(()), landlock::restrict)?;
        if let Some(ids) = &setup.ids {
            self.become_user(ids)?;
        }
        self.at(Stage::ParentDeath);
        die_with(self.parent)?;
        self.at(Stage::WorkingDirectory);
        // SAFETY: a NUL-terminated path.
        check(unsafe { libc::chdir(self.image.cwd.as_ptr()) })?;
        signal::set_mask(0);
        self.at(Stage::Exec);
        let Image { program, .. } = self.image;
        // SAFETY: `argv` and `env` are null-terminated arrays of NUL-terminated strings that `image` and `own_pid` keep
        // alive.
        check(unsafe { libc::execve(program.as_ptr(), self.argv.as_ptr(), self.env.as_ptr()) })?;
        Err(Errno::EINVAL)
    }

    fn at(&self, stage: Stage) {
        self.stage.set(stage);
    }

    /// Leaves the supervisor's table of descriptors, and puts each of ours at its number. Those that stand where another
    /// has to go step aside first.
    fn take_files(&self) -> Result<(), Errno> {
        if self.shared {
            fd::leave_table(self.beyond)?;
        }
        // All of them are that already; this is for what a library may have opened. Old kernels go without.
        let _ = fd::close_on_exec_from(3);
        for each in &self.moves {
            if self.moves.iter().any(|other| other.to == Some(each.from.get())) {
                // SAFETY: takes numbers.
                let aside = unsafe { libc::fcntl(each.from.get(), libc::F_DUPFD_CLOEXEC, self.beyond) };
                each.from.set(check(aside)?);
            }
        }
        for each in &self.moves {
            if let Some(to) = each.to {
                // SAFETY: takes numbers, two different ones.
                check(unsafe { libc::dup2(each.from.get(), to) })?;
            }
        }
        Ok(())
    }

    /// Where the ruleset is now.
    fn ruleset(&self) -> Option<RawFd> {
        self.moves.last().filter(|last| last.to.is_none()).map(|last| last.from.get())
    }

    /// The limits, while there are still the rights to raise them.
    fn limit(&self) -> Result<(), Errno> {
        let files = self.limit.iter().map(|limit| (libc::RLIMIT_NOFILE, *limit));
        let own = self.image.setup.limits.iter().map(|limit| (limit.resource, limit.rlimit()));
        for (resource, limit) in files.chain(own) {
            // SAFETY: reads the `rlimit` it is given.
            check(unsafe { libc::setrlimit(resource, &raw const limit) })?;
        }
        if let Some(mark) = &self.mark {
            // SAFETY: as above. Where a sandbox refuses it, the program runs all the same.
            unsafe { libc::setrlimit(libc::RLIMIT_LOCKS, mark) };
        }
        Ok(())
    }

    /// Groups first: after setuid there are no rights to change them. The calls are the kernel's own, for the one thread
    /// that is here: libc's would ask the supervisor's threads to follow.
    fn become_user(&self, ids: &Ids) -> Result<(), Errno> {
        if let Some(groups) = &ids.groups {
            self.at(Stage::Groups);
            // SAFETY: length and pointer are those of `groups`, 32-bit numbers as the kernel has them.
            check_long(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) })?;
        }
        self.at(Stage::Group);
        // SAFETY: takes three numbers.
        check_long(unsafe { libc::syscall(libc::SYS_setresgid, ids.gid, ids.gid, ids.gid) })?;
        self.at(Stage::User);
        // SAFETY: as above.
        check_long(unsafe { libc::syscall(libc::SYS_setresuid, ids.uid, ids.uid, ids.uid) })
    }
}

/// A null-terminated array of pointers to texts, which have to outlive it.
fn pointers(texts: impl Iterator<Item = *const c_char>) -> Vec<*const c_char> {
    texts.chain([ptr::null()]).collect()
}

fn check_long(answer: libc::c_long) -> Result<(), Errno> {
    Errno::result(answer).map(drop)
}

/// Has the kernel kill this process after `time`, unless it executes a program before: timer_create(2). Where there is
/// no timer left (`RLIMIT_SIGPENDING`) it does without.
fn die_after(time: Duration) {
    let mut timer: c_int = 0;
    // SAFETY: all-zero is a valid `sigevent`, and `itimerspec` holds numbers; the kernel reads both and writes the
    // timer's number. The calls are the kernel's own, as libc's keep a record of timers.
    unsafe {
        let mut event: libc::sigevent = MaybeUninit::zeroed().assume_init();
        event.sigev_notify = libc::SIGEV_SIGNAL;
        event.sigev_signo = libc::SIGKILL;
        let made =
            libc::syscall(libc::SYS_timer_create, libc::CLOCK_MONOTONIC, &raw const event, &raw mut timer);
        if made == 0 {
            let mut once: libc::itimerspec = MaybeUninit::zeroed().assume_init();
            once.it_value.tv_sec = time.as_secs().cast_signed();
            once.it_value.tv_nsec = time.subsec_nanos().into();
            libc::syscall(libc::SYS_timer_settime, timer, 0, &raw const once, ptr::null_mut::<c_void>());
        }
    }
}

/// A supervisor that is killed takes its services along. Comes after the change of user, which resets it; and the
/// parent may have gone before prctl(2) took effect.
fn die_with(parent: Pid) -> Result<(), Errno> {
    // SAFETY: PR_SET_PDEATHSIG takes a number.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) })?;
    // SAFETY: takes nothing.
    if unsafe { libc::getppid() } == parent { Ok(()) } else { Err(Errno::ESRCH) }
}

/// Sets the priority. Sessions have groups of their own where the kernel groups by session (sched(7), autogroup): there it is
/// the group's that counts among services. Linux lets an unprivileged user change one such group each 0.1 s,
/// so a failure there is none.
fn nice(value: i8) -> Result<(), Errno> {
    let _ = put_number(c"/proc/self/autogroup", value.into());
    // SAFETY: takes numbers; 0 is this process.
    check(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, value.into()) }).map(drop)
}

/// Writes a decimal number to a file of the kernel's.
fn put_number(path: &CStr, number: i32) -> Result<(), Errno> {
    let mut text = [0; DECIMAL];
    put(path, decimal(number, &mut text))
}

/// The number as text, at the end of `text`: without std's formatting, which nobody promises to be async-signal-safe.
fn decimal(number: i32, text: &mut [u8; DECIMAL]) -> &[u8] {
    let (mut rest, mut length) = (number.unsigned_abs(), 0);
    for digit in text.iter_mut().rev() {
        if rest == 0 && length > 0 {
            if number < 0 {
                *digit = b'-';
                length += 1;
            }
            break;
        }
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
        length += 1;
    }
    text.get(DECIMAL - length..).unwrap_or_default()
}

/// Writes to a file of the kernel's, which takes it whole.
fn put(path: &CStr, bytes: &[u8]) -> Result<(), Errno> {
    // SAFETY: a NUL-terminated path.
    let file = check(unsafe { libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC) })?;
    // SAFETY: pointer and length are those of `bytes`.
    let written = Errno::result(unsafe { libc::write(file, bytes.as_ptr().cast(), bytes.len()) });
    // SAFETY: opened here.
    unsafe { libc::close(file) };
    written.map(drop)
}

/// Whether this process may be dumped and traced: prctl(2).
fn dumpable() -> c_int {
    // SAFETY: takes nothing more.
    unsafe { libc::prctl(libc::PR_GET_DUMPABLE) }
}

fn set_dumpable(value: c_int) {
    // SAFETY: takes a number.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, value) };
}

/// Ends and reaps a child that has not become its program.
fn end(pid: Pid) {
    // SAFETY: an unreaped child of ours, so the id is its own; its status is not wanted.
    unsafe {
        libc::kill(pid, libc::SIGKILL);
        while libc::waitpid(pid, ptr::null_mut(), 0) < 0 && Errno::last() == Errno::EINTR {}
    }
}

/// The process id that was given last: that of a child which does nothing. `None` if none can be forked.
pub(super) fn newest_pid() -> Option<Pid> {
    // SAFETY: the child only leaves.
    let pid = match unsafe { libc::fork() } {
        // SAFETY: as in `run_task`.
        0 => unsafe { libc::_exit(0) },
        answer => check(answer).ok()?,
    };
    // SAFETY: waits for the child just made, which is on its way out; its status is not wanted.
    unsafe { libc::waitpid(pid, ptr::null_mut(), 0) };
    Some(pid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    fn launch(deadline: Duration, setup: &Setup) -> Result<Pid, Fault> {
        let null = fd::nothing().expect("/dev/null or a pipe");
        let text = |text: &str| CString::new(text).expect("no NUL");
        let image = Image {
            program: text("/bin/true"),
            argv: vec![text("true")],
            env: vec![],
            cwd: text("/"),
            setup,
        };
        let files = Files {
            stdin: null.as_fd(),
            stdout: null.as_fd(),
            stderr: null.as_fd(),
            inherited: &[],
            limit: None,
            own_pid: &[],
            ruleset: None,
            mark: None,
        };
        start_within(deadline, &image, &files, &mut Slots::none())
    }

    #[test]
    fn a_child_that_does_not_come_to_its_program_in_time_is_killed() {
        let fault = launch(Duration::from_nanos(1), &Setup::default()).expect_err("it was killed on the way");
        assert_eq!(fault.errno, libc::ETIMEDOUT, "{fault:?}");
    }

    #[test]
    fn the_supervisor_may_still_be_dumped_after_a_change_of_user() {
        let ids = Ids { uid: 65534, gid: 65534, groups: None };
        let setup = Setup { ids: Some(ids), ..Setup::default() };
        let before = dumpable();
        match launch(DEADLINE, &setup) {
            Ok(pid) => end(pid),
            Err(fault) => assert_eq!((fault.stage, fault.errno), (Stage::Group, libc::EPERM)),
        }
        assert_eq!(dumpable(), before);
    }

    #[test]
    fn numbers_are_written_as_the_kernel_reads_them() {
        for number in [0, 7, -5, 1000, -1000, i32::MAX, i32::MIN] {
            assert_eq!(decimal(number, &mut [0; DECIMAL]), number.to_string().as_bytes());
        }
    }
}
