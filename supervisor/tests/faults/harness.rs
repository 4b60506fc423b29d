//! Supervisors to look at from outside, this project's and others', and what is needed to look.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};

/// Long enough for a loaded machine; a test that needs it has failed.
pub const DEADLINE: Duration = Duration::from_secs(30);
/// Names the scene to the program that is run as the supervisor.
pub const SCENE: &str = "KITBAG_TEST_SCENE";
/// Its value tells a scene's processes from all others.
pub const MARK: &str = "KITBAG_TEST_MARK";

/// Who supervises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Supervisor {
    /// This project: the present program, told by its environment what to do.
    Kitbag,
    /// `tini -s`: the one process that it starts is a script, as a scene's only service is.
    Tini,
}

impl Supervisor {
    /// Those that are here. Where tini is not installed, a line says so.
    pub fn all() -> Vec<Self> {
        let tini = has("tini");
        if !tini {
            println!("without tini (Debian's package of that name) its half of this test is left out");
        }
        [Self::Kitbag].into_iter().chain(tini.then_some(Self::Tini)).collect()
    }

    /// The command line that supervises a scene which is a shell script alone.
    pub fn of_script(self, script: &str) -> Scene {
        match self {
            Self::Kitbag => Scene::new("script").argument(script),
            Self::Tini => {
                let mut command = Command::new("tini");
                let mark = mark();
                command.args(["-s", "--", "/bin/sh", "-c", script]).env(MARK, &mark);
                Scene { command, mark, is_read: true }
            }
        }
    }
}

/// True if a program of this name is in `PATH`.
pub fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).exists())
}

/// True for root.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Waits until no other run of these tests holds what this returns: numbers for processes do not suffice for two crowds.
pub fn turn() -> Option<Flock<File>> {
    let folder = File::open(std::env::temp_dir()).expect("it can be read");
    Flock::lock(folder, FlockArg::LockExclusive).ok()
}

/// A user of whom nothing runs, another one for each test that asks and each run of the tests.
pub fn nobody(number: u32) -> u32 {
    60_000 + std::process::id() % 1000 * 4 + number
}

fn mark() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("kitbag-faults-{}-{}-", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// What is about to be supervised.
pub struct Scene {
    command: Command,
    mark: String,
    is_read: bool,
}

impl Scene {
    /// The scene of this name, supervised by this project.
    pub fn new(name: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("a test knows its program"));
        let mark = mark();
        command.env(SCENE, name).env(MARK, &mark);
        Self { command, mark, is_read: true }
    }

    /// A text for the scene.
    pub fn argument(mut self, text: &str) -> Self {
        self.command.env("KITBAG_TEST_ARGUMENT", text);
        self
    }

    /// A file for the scene.
    pub fn file(mut self, path: &Path) -> Self {
        self.command.env("FILE", path);
        self
    }

    /// Nobody reads its standard output, and nobody closes it.
    pub fn unread(mut self) -> Self {
        self.is_read = false;
        self
    }

    /// The supervisor leads a session of its own.
    pub fn in_a_session(mut self) -> Self {
        let inner = std::mem::replace(&mut self.command, Command::new("setsid"));
        self.take_over(&inner, inner.get_program());
        self
    }

    /// The command that is to be executed is this one, run by the present one.
    fn take_over(&mut self, inner: &Command, program: &OsStr) {
        self.command.arg(program).args(inner.get_args());
        for (name, value) in inner.get_envs() {
            self.command.env(name, value.expect("set"));
        }
    }

    /// The supervisor gets these limits, as options of prlimit(1); as root, it becomes a user of whom nothing else runs,
    /// because limits on processes count a user's.
    pub fn limited(mut self, options: &[&str], user: Option<u32>, folder: &Path) -> Self {
        let inner = std::mem::replace(&mut self.command, Command::new("prlimit"));
        self.command.args(options).arg("--");
        let mut program = PathBuf::from(inner.get_program());
        if let Some(uid) = user.filter(|_| is_root()) {
            // From a place that everybody can read.
            let copy = folder.join("supervisor");
            fs::copy(&program, &copy).expect("a copy");
            program = copy;
            self.command.uid(uid).gid(uid).current_dir("/");
        }
        self.take_over(&inner, program.as_os_str());
        self
    }

    /// Starts the supervisor.
    pub fn start(mut self) -> Running {
        self.command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.command.spawn().expect("the supervisor starts");
        let stdout = child.stdout.take().expect("piped");
        let (stdout, unread) = if self.is_read { (lines(stdout), None) } else { (channel().1, Some(stdout)) };
        let stderr = lines(child.stderr.take().expect("piped"));
        Running { child, stdout, stderr, seen: Vec::new(), mark: self.mark, _unread: unread }
    }
}

fn lines(stream: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
            if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                return;
            }
        }
    });
    receiver
}

/// A supervisor that runs.
pub struct Running {
    child: Child,
    stdout: Receiver<String>,
    stderr: Receiver<String>,
    /// Everything that has been seen, for a failing test's message.
    seen: Vec<String>,
    /// What its processes have in their environment.
    pub mark: String,
    /// Its output, open as long as this is.
    _unread: Option<ChildStdout>,
}

impl Running {
    /// The supervisor's process.
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Signals the supervisor.
    pub fn signal(&self, name: &str) {
        kill(self.pid(), name);
    }

    fn line(&mut self, is_error: bool, text: &str) -> String {
        let until = Instant::now() + DEADLINE;
        loop {
            let source = if is_error { &self.stderr } else { &self.stdout };
            match source.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if line.contains(text) {
                        return line;
                    }
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    let rest: Vec<String> = self.stderr.try_iter().collect();
                    panic!(
                        "no line with {text:?} (of stderr: {is_error}); seen: {:#?}, then {rest:#?}",
                        self.seen
                    )
                }
            }
        }
    }

    /// Waits for a line of standard output that contains `text`.
    pub fn prints(&mut self, text: &str) -> String {
        self.line(false, text)
    }

    /// Waits for a line of standard error that contains `text`.
    pub fn says(&mut self, text: &str) -> String {
        self.line(true, text)
    }

    /// Waits for the supervisor's end.
    pub fn ended(&mut self) -> ExitStatus {
        let until = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.child.try_wait().expect("our child") {
                return status;
            }
            let (output, error): (Vec<_>, Vec<_>) =
                (self.stdout.try_iter().collect(), self.stderr.try_iter().collect());
            self.seen.extend(output.into_iter().chain(error));
            assert!(Instant::now() < until, "the supervisor does not end; seen: {:#?}", self.seen);
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Everything that has come by now, of both streams.
    pub fn heard(&mut self) -> String {
        let new: Vec<String> = self.stdout.try_iter().chain(self.stderr.try_iter()).collect();
        self.seen.extend_from_slice(&new);
        new.join("\n") + "\n"
    }

    /// True when it has ended.
    pub fn is_over(&mut self) -> bool {
        self.child.try_wait().expect("our child").is_some()
    }

    /// Everything that was seen and, once it has ended, that is still to be read of standard error.
    pub fn rest(&mut self) -> Vec<String> {
        self.seen.extend(self.stderr.iter());
        self.seen.clone()
    }

    /// It ends, with this exit code, and leaves nothing behind.
    pub fn ends_with(&mut self, code: u8) {
        let status = self.ended();
        let rest = self.rest();
        assert_eq!(status.code(), Some(i32::from(code)), "{status}; seen: {rest:#?}");
        self.has_left_nothing();
    }

    /// No process of the scene is left.
    pub fn has_left_nothing(&self) {
        let left = marked(&self.mark);
        assert!(left.is_empty(), "left running: {left:?}; seen: {:#?}", self.seen);
    }

    /// A stop, by SIGTERM, ends it: what is asked for as PID 1 and as supervisor alike.
    pub fn stops(&mut self, supervisor: Supervisor) {
        self.signal("TERM");
        let status = self.ended();
        match supervisor {
            Supervisor::Kitbag => assert_eq!(status.code(), Some(0), "{status}; seen: {:#?}", self.seen),
            // Its child's end, by this signal.
            Supervisor::Tini => assert_eq!(status.code(), Some(143), "{status}; seen: {:#?}", self.seen),
        }
        self.has_left_nothing();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // Of a test that has failed: by their mark, again until none is left.
        for _ in 0..1000 {
            let left = marked(&self.mark);
            if left.is_empty() {
                return;
            }
            left.into_iter().for_each(|pid| kill(pid, "KILL"));
        }
    }
}

/// Sends a signal to a process, or with a negative number to a group.
pub fn kill(pid: i32, name: &str) {
    let name = if name.starts_with("SIG") { name.to_owned() } else { format!("SIG{name}") };
    let signal: nix::sys::signal::Signal = name.parse().expect("a signal's name");
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal);
}

/// Waits until a condition holds.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < until, "not in time: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// The number after the last blank.
pub fn number(line: &str) -> i32 {
    line.rsplit(' ').next().and_then(|word| word.trim().parse().ok()).unwrap_or_else(|| panic!("{line:?}"))
}

/// True while there is a process, or a zombie, of this number.
pub fn alive(pid: i32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// State letter and parent of a process.
pub fn state(pid: i32) -> Option<(char, i32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// The children of a process with one thread, ended ones too.
pub fn children(pid: i32) -> Vec<i32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

/// Children that have ended and are not reaped.
pub fn zombies(pid: i32) -> usize {
    children(pid).into_iter().filter(|child| matches!(state(*child), Some(('Z', _)))).count()
}

/// Processes that have the mark in the environment that they were started with. (Zombies have none.)
pub fn marked(mark: &str) -> Vec<i32> {
    let own = std::process::id().cast_signed();
    let has_it = |pid: &i32| {
        let text = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        *pid != own && text.windows(mark.len()).any(|window| window == mark.as_bytes())
    };
    let entries = fs::read_dir("/proc").expect("a /proc").filter_map(Result::ok);
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(has_it).collect()
}

/// Kilobytes, of a field of /proc/PID/status.
pub fn memory(pid: i32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap_or("0 0 kB");
    line.split_whitespace().nth(1).and_then(|word| word.parse().ok()).unwrap_or(0)
}

/// Time on a processor that a process has taken, its children's not.
pub fn processor_time(pid: i32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit_once(") ").map_or(vec![], |(_, rest)| rest.split(' ').collect());
    let ticks: u64 = [11, 12].iter().filter_map(|at| fields.get(*at)?.parse::<u64>().ok()).sum();
    // USER_HZ is 100 on all that Linux runs on today.
    Duration::from_millis(ticks * 10)
}

/// Open descriptors of a process.
pub fn descriptors(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// True if it died of a signal that ends whoever does nothing about it.
pub fn died_of(status: ExitStatus, names: &[&str]) -> bool {
    let number = status.signal().and_then(|number| nix::sys::signal::Signal::try_from(number).ok());
    number.is_some_and(|signal| names.contains(&signal.as_str().trim_start_matches("SIG")))
}

/// Numbers that look random and are the same in each run (Knuth's MMIX generator).
pub struct Lcg(pub u64);

impl Lcg {
    /// The next one, below a limit.
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }
}

/// A folder that goes with its guard, which everybody can read.
pub struct Folder(pub PathBuf);

impl Folder {
    /// A new one.
    pub fn new() -> Self {
        let path = std::env::temp_dir().join(mark());
        fs::create_dir(&path).expect("a folder");
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("ours");
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
