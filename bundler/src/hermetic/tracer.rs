//! Follows the app and all that it starts, and notes the paths outside of its bundle that they ask for.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, IoSliceMut};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use goblin::elf::program_header::PT_INTERP;
use goblin::elf::{Elf, ProgramHeader};
use nix::errno::Errno;
use nix::sys::ptrace::getevent;
use nix::sys::signal::{Signal, kill};
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;

use super::allowed::{Allowed, plain};
use super::calls::{self, Argument, Purpose};
use super::ptrace::{self, Report, Resume};
use super::seen::{Seen, Want};
use crate::tree;

/// linux/limits.h; what a path may have at most, with its zero.
const PATH_MAX: usize = 4096;
/// Memory is read up to the end of a page: the next one may not be there.
const PAGE: u64 = 4096;
/// The kernel gives up on interpreters of interpreters after so many (BINPRM, fs/exec.c).
const INTERPRETERS: usize = 5;
/// `errno`s from here on are the kernel's own: the call is made again after a signal.
const RESTARTED: i64 = 512;

/// How the app ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// With this exit status.
    Exited(i32),
    /// By this signal.
    Killed(i32),
}

/// A thread of the app.
#[derive(Debug, Default)]
struct Thread {
    /// What runs in it; `None` until somebody asks.
    program: Option<Rc<Program>>,
    /// What the system call that it is in asks for.
    asked: Vec<Asked>,
}

/// What a thread runs.
#[derive(Debug)]
enum Program {
    /// The runtime in the bundle, or what leads to it.
    Runtime,
    /// One of the app's, by name.
    App(String),
}

/// A path that a system call asks for.
#[derive(Debug)]
struct Asked {
    /// Absolute, but as it was asked for.
    path: PathBuf,
    want: Want,
}

/// The tracer of one run.
pub struct Tracer<'a> {
    app: Pid,
    allowed: &'a Allowed,
    /// Files whose processes are not the app's, by device and inode.
    runtimes: Vec<(u64, u64)>,
    threads: HashMap<Pid, Thread>,
    seen: Seen,
}

impl<'a> Tracer<'a> {
    /// Follows process `app`, which this thread has seized. What the programs `runtimes` do is not noted.
    pub fn new(app: Pid, allowed: &'a Allowed, runtimes: &[&Path]) -> Self {
        let ids = runtimes.iter().filter_map(|path| fs::metadata(path).ok());
        let runtimes = ids.map(|metadata| tree::id(&metadata)).collect();
        Self { app, allowed, runtimes, threads: HashMap::new(), seen: Seen::default() }
    }

    /// Follows the app to its end, and ends what it leaves behind. Returns how it ended, and what was seen.
    pub fn follow(mut self) -> io::Result<(End, Seen)> {
        let end = loop {
            let (pid, report) = ptrace::wait()?;
            match report {
                Report::Exited(status) if pid == self.app => break End::Exited(status),
                Report::Killed(signal) if pid == self.app => break End::Killed(signal),
                Report::Exited(_) | Report::Killed(_) => drop(self.threads.remove(&pid)),
                _ => {
                    let answered = self.answer(pid, report).and_then(|how| ptrace::resume(pid, how));
                    match answered {
                        // Killed meanwhile: its end is reported next.
                        Ok(()) | Err(Errno::ESRCH) => {}
                        Err(errno) => return Err(errno.into()),
                    }
                }
            }
        };
        self.threads.remove(&self.app);
        self.end_the_rest();
        Ok((end, self.seen))
    }

    /// How a thread that has reported something goes on.
    fn answer(&mut self, pid: Pid, report: Report) -> Result<Resume, Errno> {
        match report {
            Report::Call => return self.call(pid),
            Report::Returned => self.returned(pid)?,
            Report::Executed => self.executed(pid),
            Report::Signal(signal) => return Ok(Resume::Run(signal)),
            Report::Stopped => return Ok(Resume::StayStopped),
            _ => drop(self.threads.entry(pid).or_default()),
        }
        Ok(Resume::Run(0))
    }

    /// A system call begins. Its end matters only if it asks for something that may lie outside.
    fn call(&mut self, pid: Pid) -> Result<Resume, Errno> {
        let (number, arguments) = ptrace::call(pid)?;
        let Some(call) = calls::find(number) else { return Ok(Resume::Run(0)) };
        let is_runtime = matches!(*self.program(pid), Program::Runtime);
        let asked = call.paths.iter().filter_map(|argument| self.asked(pid, argument, &arguments));
        let asked: Vec<Asked> = asked.filter(|asked| !is_runtime || asked.want == Want::Execute).collect();
        if asked.is_empty() {
            return Ok(Resume::Run(0));
        }
        self.threads.entry(pid).or_default().asked = asked;
        Ok(Resume::UntilReturn)
    }

    /// The path in an argument, unless nobody wants to hear of it.
    fn asked(&self, pid: Pid, argument: &Argument, arguments: &[u64; 6]) -> Option<Asked> {
        let address = *arguments.get(argument.path)?;
        let want = want(pid, argument.purpose, arguments)?;
        let name = match want {
            Want::Connect => socket(pid, address, *arguments.get(argument.path + 1)?)?,
            _ => text(pid, address)?,
        };
        let path = Path::new(OsStr::from_bytes(&name));
        if name.first() == Some(&b'@') && want == Want::Connect {
            return Some(Asked { path: path.to_owned(), want });
        }
        let folder = argument.folder.and_then(|number| arguments.get(number)).map(|value| *value as i32);
        let path = if path.is_absolute() { path.to_owned() } else { base(pid, folder)?.join(path) };
        let quiet = want != Want::Execute && self.allowed.is_plainly_in_tree(&path);
        (!quiet && !self.is_own(&path)).then_some(Asked { path, want })
    }

    /// True for what /proc has of the app's own processes.
    fn is_own(&self, path: &Path) -> bool {
        let path = plain(path);
        let Ok(below) = path.strip_prefix("/proc") else { return false };
        let Some(first) = below.components().next().and_then(|first| first.as_os_str().to_str()) else {
            return false;
        };
        let number = first.parse().map(Pid::from_raw);
        matches!(first, "self" | "thread-self") || number.is_ok_and(|pid| self.threads.contains_key(&pid))
    }

    /// A system call has come to its end.
    fn returned(&mut self, pid: Pid) -> Result<(), Errno> {
        let result = ptrace::returned(pid)?;
        let asked = self.threads.get_mut(&pid).map(|thread| std::mem::take(&mut thread.asked));
        let program = self.program(pid);
        self.note(&program, asked.unwrap_or_default(), result);
        Ok(())
    }

    /// execve(2) has succeeded: the process has one thread now, which has the process's number.
    fn executed(&mut self, pid: Pid) {
        let former = getevent(pid).map_or(pid, |former| Pid::from_raw(former as i32));
        let thread = self.threads.remove(&former).unwrap_or_default();
        if let Some(program) = thread.program {
            self.note(&program, thread.asked, 0);
        }
        self.threads.insert(pid, Thread::default());
        if let Program::App(name) = &*self.program(pid) {
            self.seen.program(name, Path::new(&format!("/proc/{pid}/exe")));
        }
    }

    /// Notes what a system call asked for, and what came of it.
    fn note(&mut self, program: &Program, asked: Vec<Asked>, result: i64) {
        if result <= -RESTARTED {
            return;
        }
        for Asked { path, want } in asked {
            if want == Want::Execute {
                self.note_interpreter(&path, result);
            }
            if let Program::App(name) = program {
                self.seen.note(self.allowed, &path, want, result, name);
            }
        }
    }

    /// The loader of a program, or the interpreter of a script, is opened by the kernel itself. The first one outside
    /// of what is allowed is noted as what the program asked for.
    fn note_interpreter(&mut self, program: &Path, result: i64) {
        let mut path = program.to_owned();
        for _ in 0..INTERPRETERS {
            if !self.allowed.has(&super::allowed::real(&path, true)) {
                return;
            }
            let Some(next) = interpreter(&path) else { return };
            let name = self.allowed.name(&path);
            self.seen.note(self.allowed, &next, Want::Execute, result, &name);
            path = next;
        }
    }

    /// What a thread runs.
    fn program(&mut self, pid: Pid) -> Rc<Program> {
        if let Some(program) = self.threads.get(&pid).and_then(|thread| thread.program.clone()) {
            return program;
        }
        let link = PathBuf::from(format!("/proc/{pid}/exe"));
        let is_runtime =
            fs::metadata(&link).is_ok_and(|metadata| self.runtimes.contains(&tree::id(&metadata)));
        let name = || self.allowed.name(&fs::read_link(&link).unwrap_or_else(|_| "?".into()));
        let program = Rc::new(if is_runtime { Program::Runtime } else { Program::App(name()) });
        self.threads.entry(pid).or_default().program = Some(Rc::clone(&program));
        program
    }

    /// Without a tracer they could open nothing any more (seccomp(2), `SECCOMP_RET_TRACE`).
    fn end_the_rest(&mut self) {
        for pid in self.threads.keys().copied().collect::<Vec<_>>() {
            self.kill(pid);
        }
        // Until there is no child left, ECHILD. What was just born is seen here first.
        while let Ok((pid, report)) = ptrace::wait() {
            if !matches!(report, Report::Exited(_) | Report::Killed(_)) {
                self.kill(pid);
            }
        }
        self.seen.left_behind.sort();
        self.seen.left_behind.dedup();
    }

    /// Kills a thread's process, and notes it.
    fn kill(&mut self, pid: Pid) {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let is_process = status.contains(&format!("\nTgid:\t{pid}\n"));
        // One that is about to end has no program any more.
        let is_alive = fs::metadata(format!("/proc/{pid}/exe")).is_ok();
        if let (true, true, Program::App(name)) = (is_process, is_alive, &*self.program(pid)) {
            self.seen.left_behind.push(format!("{name} ({pid})"));
        }
        // Gone already, if it fails.
        let _ = kill(pid, Signal::SIGKILL);
    }
}

/// What a system call wants with a path.
fn want(pid: Pid, purpose: Purpose, arguments: &[u64; 6]) -> Option<Want> {
    Some(match purpose {
        Purpose::Open(flags) => opening(*arguments.get(flags)?),
        Purpose::OpenHow(how) => {
            let mut flags = [0; 8];
            read(pid, *arguments.get(how)?, &mut flags)?;
            opening(u64::from_ne_bytes(flags))
        }
        Purpose::Look => Want::Look,
        Purpose::LookAtLink => Want::LookAtLink,
        Purpose::Execute => Want::Execute,
        Purpose::Change => Want::Write,
        Purpose::Address => Want::Connect,
    })
}

/// What the flags of open(2) want.
fn opening(flags: u64) -> Want {
    let has = |flag: i32| flags & flag as u64 != 0;
    if has(libc::O_PATH) {
        if has(libc::O_NOFOLLOW) { Want::LookAtLink } else { Want::Look }
    } else if has(libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC) {
        Want::Write
    } else {
        Want::Read
    }
}

/// The folder that a relative path begins at: a descriptor's, or the working directory.
fn base(pid: Pid, folder: Option<i32>) -> Option<PathBuf> {
    let link = match folder {
        Some(number) if number != libc::AT_FDCWD => format!("/proc/{pid}/fd/{number}"),
        _ => format!("/proc/{pid}/cwd"),
    };
    fs::read_link(link).ok().filter(|path| path.is_absolute())
}

/// Fills `buffer` from a process's memory.
fn read(pid: Pid, address: u64, buffer: &mut [u8]) -> Option<usize> {
    let remote = [RemoteIoVec { base: usize::try_from(address).ok()?, len: buffer.len() }];
    process_vm_readv(pid, &mut [IoSliceMut::new(buffer)], &remote).ok()
}

/// The text at an address, without its zero; `None` for an empty one.
fn text(pid: Pid, mut address: u64) -> Option<Vec<u8>> {
    let mut text = Vec::new();
    while text.len() < PATH_MAX {
        let mut page = vec![0; (PAGE - address % PAGE) as usize];
        let length = read(pid, address, &mut page)?;
        let page = page.get(..length)?;
        if let Some(end) = page.iter().position(|byte| *byte == 0) {
            text.extend_from_slice(page.get(..end)?);
            return (!text.is_empty()).then_some(text);
        }
        text.extend_from_slice(page);
        address = address.checked_add(length as u64)?;
    }
    None
}

/// The path of a unix(7) socket's address; an abstract name begins with `@` instead of zero.
fn socket(pid: Pid, address: u64, length: u64) -> Option<Vec<u8>> {
    let mut buffer = [0; size_of::<libc::sockaddr_un>()];
    let length = usize::try_from(length).ok()?.min(buffer.len());
    read(pid, address, buffer.get_mut(..length)?)?;
    let (family, name) = buffer.get(..length)?.split_at_checked(2)?;
    if family != (libc::AF_UNIX as u16).to_ne_bytes() {
        return None;
    }
    match name {
        [] => None,
        [0, name @ ..] => Some([b"@", name].concat()),
        _ => name.split(|byte| *byte == 0).next().map(<[u8]>::to_vec),
    }
}

/// What the kernel starts in place of the file at `path`: the loader that an ELF program names, or the interpreter in
/// the first line of a script.
fn interpreter(path: &Path) -> Option<PathBuf> {
    let file = File::open(path).ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut head = vec![0; PATH_MAX];
    let length = file.read_at(&mut head, 0).ok()?;
    head.truncate(length);
    let text = if let Some(line) = head.strip_prefix(b"#!") {
        let line = line.split(|byte| *byte == b'\n').next()?.trim_ascii_start();
        line.split(|byte| matches!(byte, b' ' | b'\t')).next()?.to_vec()
    } else {
        loader(&file, &head)?
    };
    let path = PathBuf::from(OsStr::from_bytes(text.split(|byte| *byte == 0).next()?));
    path.is_absolute().then_some(path)
}

/// PT_INTERP of an ELF file that begins with `head`.
fn loader(file: &File, head: &[u8]) -> Option<Vec<u8>> {
    let header = Elf::parse_header(head).ok()?;
    let context = goblin::container::Ctx::new(header.container().ok()?, header.endianness().ok()?);
    let size = usize::from(header.e_phentsize).checked_mul(usize::from(header.e_phnum))?;
    let mut table = vec![0; size.min(64 * 1024)];
    let length = file.read_at(&mut table, header.e_phoff).ok()?;
    let count = length.checked_div(usize::from(header.e_phentsize))?;
    let segments = ProgramHeader::parse(table.get(..length)?, 0, count, context).ok()?;
    let segment = segments.iter().find(|segment| segment.p_type == PT_INTERP)?;
    let mut text = vec![0; usize::try_from(segment.p_filesz).ok()?.min(PATH_MAX)];
    let length = file.read_at(&mut text, segment.p_offset).ok()?;
    text.truncate(length);
    Some(text)
}

/// True for a 32-bit program, whose system calls have other numbers; `None` if it cannot be read.
pub fn is_32_bit(program: &Path) -> Option<bool> {
    let mut head = [0; 5];
    File::open(program).ok()?.read_exact_at(&mut head, 0).ok()?;
    // EI_CLASS, ELFCLASS32 (elf(5)).
    Some(head.starts_with(b"\x7fELF") && head[4] == 1)
}

/// True if a program would run with somebody else's rights.
pub fn is_setuid(program: &Path) -> bool {
    fs::metadata(program).is_ok_and(|metadata| metadata.is_file() && metadata.mode() & 0o6000 != 0)
}
