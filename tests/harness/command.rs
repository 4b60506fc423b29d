//! A command, run to its end within a deadline, and what came of it.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};
use std::{fmt, thread};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::Running;

/// How long a command may take unless told.
const PATIENCE: Duration = Duration::from_secs(120);

/// Asks again and again until `condition` holds. Fails when it still does not after `deadline`.
#[track_caller]
pub fn eventually(deadline: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < deadline, "after {deadline:?} still not so: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A command in the making.
#[derive(Debug, Clone)]
pub struct Cmd {
    program: OsString,
    name: Option<OsString>,
    args: Vec<OsString>,
    bare: bool,
    variables: Vec<(OsString, Option<OsString>)>,
    folder: Option<PathBuf>,
    stdin: Vec<u8>,
    deadline: Duration,
}

impl Cmd {
    /// Runs `program` with this process's environment.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            program: program.as_ref().to_owned(),
            name: None,
            args: Vec::new(),
            bare: false,
            variables: Vec::new(),
            folder: None,
            stdin: Vec::new(),
            deadline: PATIENCE,
        }
    }

    /// `kitbag` with these arguments.
    pub fn kitbag<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Self {
        Self::new(crate::kitbag()).args(args).env("NO_COLOR", "1")
    }

    /// The same command behind a launcher: `strace`, `chroot`, `taskset`.
    #[must_use]
    pub fn behind<S: AsRef<OsStr>>(mut self, launcher: &str, args: impl IntoIterator<Item = S>) -> Self {
        let program = std::mem::replace(&mut self.program, launcher.into());
        let before = args.into_iter().map(|arg| arg.as_ref().to_owned());
        self.args = before.chain([program]).chain(self.args).collect();
        self
    }

    /// One more argument.
    #[must_use]
    pub fn arg(self, arg: impl AsRef<OsStr>) -> Self {
        self.args([arg])
    }

    /// More arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Is called so: `argv[0]`.
    #[must_use]
    pub fn called(mut self, name: impl AsRef<OsStr>) -> Self {
        self.name = Some(name.as_ref().to_owned());
        self
    }

    /// Starts without a variable, but for those set from now on.
    #[must_use]
    pub fn bare(mut self) -> Self {
        self.bare = true;
        self.variables.clear();
        self
    }

    /// Sets a variable.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.variables.push((name.as_ref().to_owned(), Some(value.as_ref().to_owned())));
        self
    }

    /// Unsets a variable.
    #[must_use]
    pub fn env_remove(mut self, name: &str) -> Self {
        self.variables.push((name.into(), None));
        self
    }

    /// Works in this folder.
    #[must_use]
    pub fn cwd(mut self, folder: impl AsRef<Path>) -> Self {
        self.folder = Some(folder.as_ref().to_owned());
        self
    }

    /// Is fed these bytes.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// Is killed after this time.
    #[must_use]
    pub fn within(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.args);
        if let Some(name) = &self.name {
            command.arg0(name);
        }
        if self.bare {
            command.env_clear();
        }
        for (name, value) in &self.variables {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        if let Some(folder) = &self.folder {
            command.current_dir(folder);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        command
    }

    /// Starts it in a process group of its own, so that whatever it starts can be ended with it.
    #[track_caller]
    pub fn start(self) -> Running {
        let child = self.spawn().unwrap_or_else(|error| panic!("cannot start {}: {error}", self.shown()));
        Running::new(child, self.shown(), self.directory())
    }

    /// Runs it to its end, or for its time. What its deadline ended has been killed by SIGKILL.
    #[track_caller]
    pub fn run(self) -> Outcome {
        self.try_run().unwrap_or_else(|error| panic!("cannot start it: {error}"))
    }

    /// Like [`Self::run`], for what the kernel may refuse to execute.
    pub fn try_run(mut self) -> io::Result<Outcome> {
        let begin = Instant::now();
        let mut child = self.spawn()?;
        let group = Pid::from_raw(child.id() as i32);
        let (sender, receiver) = channel();
        let pipes: [Box<dyn Read + Send>; 2] =
            [Box::new(child.stdout.take().expect("piped")), Box::new(child.stderr.take().expect("piped"))];
        for (number, mut pipe) in pipes.into_iter().enumerate() {
            let sender = sender.clone();
            thread::spawn(move || {
                let mut bytes = Vec::new();
                let _ = pipe.read_to_end(&mut bytes);
                let _ = sender.send((number, bytes));
            });
        }
        let mut input = child.stdin.take().expect("piped");
        let bytes = std::mem::take(&mut self.stdin);
        if bytes.is_empty() {
            drop(input);
        } else {
            thread::spawn(move || input.write_all(&bytes));
        }
        let mut said = [Vec::new(), Vec::new()];
        let mut timed_out = false;
        for _ in 0..2 {
            let left = self.deadline.saturating_sub(begin.elapsed());
            let (number, bytes) = receiver.recv_timeout(left).unwrap_or_else(|_| {
                timed_out = true;
                let _ = killpg(group, Signal::SIGKILL);
                receiver.recv_timeout(Duration::from_secs(10)).unwrap_or_default()
            });
            said[number] = bytes;
        }
        while child.try_wait().expect("wait").is_none() {
            if begin.elapsed() > self.deadline {
                timed_out = true;
                let _ = killpg(group, Signal::SIGKILL);
            }
            thread::sleep(Duration::from_micros(200));
        }
        let [stdout, stderr] = said;
        let status = child.wait().expect("wait");
        let command = self.shown() + if timed_out { " (killed: it took too long)" } else { "" };
        Ok(Outcome { command, directory: self.directory(), status, stdout, stderr })
    }

    fn spawn(&self) -> io::Result<Child> {
        let begin = Instant::now();
        loop {
            match self.command().spawn() {
                // A child that another thread forked still has the file open that this one has just written.
                Err(error)
                    if error.kind() == io::ErrorKind::ExecutableFileBusy
                        && begin.elapsed() < Duration::from_secs(10) =>
                {
                    thread::yield_now();
                }
                result => return result,
            }
        }
    }

    fn shown(&self) -> String {
        let set = self.variables.iter().filter_map(|(name, value)| Some((name, value.as_ref()?)));
        let set = set.map(|(name, value)| format!("{}={}", name.display(), value.display()));
        let words = std::iter::once(&self.program).chain(&self.args).take(40);
        let words = words.map(|word| word.display().to_string());
        set.chain(words).collect::<Vec<_>>().join(" ")
    }

    fn directory(&self) -> PathBuf {
        self.folder.clone().unwrap_or_else(|| PathBuf::from("."))
    }
}

/// What came of a command. Everything asserted of it shows all of it on failure.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// As one would type it.
    pub command: String,
    /// Where it worked.
    pub directory: PathBuf,
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed.
    pub stdout: Vec<u8>,
    /// What it said.
    pub stderr: Vec<u8>,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "command    {}", self.command)?;
        writeln!(f, "directory  {}", self.directory.display())?;
        writeln!(f, "status     {}", self.status)?;
        writeln!(f, "--- stdout\n{}", brief(&self.stdout))?;
        write!(f, "--- stderr\n{}", brief(&self.stderr))
    }
}

fn brief(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(8000)]);
    if bytes.len() > 8000 { format!("{text}\n… {} bytes in all", bytes.len()) } else { text.into_owned() }
}

impl Outcome {
    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    pub fn said(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Fails, showing everything, unless `condition` holds.
    #[track_caller]
    pub fn check(self, condition: bool, expected: &str) -> Self {
        assert!(condition, "expected {expected}\n{self}");
        self
    }

    /// It exited with this status.
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        let right = self.status.code() == Some(code);
        self.check(right, &format!("exit status {code}"))
    }

    /// It exited with status 0.
    #[track_caller]
    pub fn succeeds(self) -> Self {
        self.exits(0)
    }

    /// This signal ended it.
    #[track_caller]
    pub fn dies_by(self, signal: i32) -> Self {
        let right = self.status.signal() == Some(signal);
        self.check(right, &format!("an end by signal {signal}"))
    }

    /// Standard error has this text.
    #[track_caller]
    pub fn says(self, text: &str) -> Self {
        let right = self.said().contains(text);
        self.check(right, &format!("`{text}` on stderr"))
    }

    /// Standard error is empty.
    #[track_caller]
    pub fn is_quiet(self) -> Self {
        let right = self.stderr.is_empty();
        self.check(right, "nothing on stderr")
    }

    /// Standard output has this text.
    #[track_caller]
    pub fn prints(self, text: &str) -> Self {
        let right = self.text().contains(text);
        self.check(right, &format!("`{text}` on stdout"))
    }

    /// Standard output does not have this text.
    #[track_caller]
    pub fn prints_no(self, text: &str) -> Self {
        let right = !self.text().contains(text);
        self.check(right, &format!("no `{text}` on stdout"))
    }
}
