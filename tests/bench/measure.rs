//! Starting programs and reading clocks, disks and memory.

use std::collections::HashSet;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

/// No start takes so long, on any machine: what does is killed.
const HUNG: Duration = Duration::from_secs(120);

/// Nanoseconds of CLOCK_MONOTONIC, which `hello.c` prints too.
pub fn now() -> i64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("CLOCK_MONOTONIC");
    now.tv_sec() * 1_000_000_000 + now.tv_nsec()
}

/// A command line with its environment, which is all that the program gets besides PATH.
#[derive(Debug, Clone)]
pub struct Start {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Environment.
    pub env: Vec<(String, String)>,
}

/// What the program said when it was started.
#[derive(Debug, Clone)]
pub struct Hello {
    /// The version it was compiled with.
    pub version: String,
    /// Milliseconds from the spawn to its `main`.
    pub main_ms: f64,
    /// Where it ran from.
    pub exe: PathBuf,
}

impl Hello {
    /// The tree around `bin/hello`.
    pub fn root(&self) -> PathBuf {
        self.exe.parent().and_then(Path::parent).unwrap_or(Path::new("/")).to_owned()
    }
}

/// A started program, in a process group of its own that ends with this value.
pub struct Running {
    child: Child,
    began: i64,
    said: Vec<u8>,
}

impl Start {
    /// The program `path`, without arguments and with nothing but PATH.
    pub fn of(path: &Path) -> Start {
        Start { argv: vec![path.display().to_string()], env: Vec::new() }
    }

    /// The same with one more variable.
    pub fn env(mut self, name: &str, value: impl AsRef<Path>) -> Start {
        self.env.push((name.to_owned(), value.as_ref().display().to_string()));
        self
    }

    /// As a command that does not run yet.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.argv[0]);
        command.args(&self.argv[1..]).env_clear().envs(self.env.iter().cloned());
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command
    }

    /// Starts it and does not wait.
    pub fn spawn(&self) -> Result<Running, String> {
        let mut command = self.command();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit()).process_group(0);
        let began = now();
        let child = command.spawn().map_err(|error| format!("{}: {error}", self.argv[0]))?;
        Ok(Running { child, began, said: Vec::new() })
    }

    /// Starts it and waits for its end.
    pub fn run(&self) -> Result<Hello, String> {
        let mut running = self.spawn()?;
        let hello = running.hello()?;
        running.ends()?;
        Ok(hello)
    }
}

impl Running {
    /// Waits until the program has said that it runs.
    pub fn hello(&mut self) -> Result<Hello, String> {
        let out = self.child.stdout.as_mut().ok_or("no standard output")?;
        let mut buffer = [0; 4096];
        loop {
            if let Some(hello) = parse(&String::from_utf8_lossy(&self.said), self.began) {
                return Ok(hello);
            }
            match out.read(&mut buffer).map_err(|error| error.to_string())? {
                0 => break,
                n => self.said.extend_from_slice(&buffer[..n]),
            }
        }
        let status = self.child.wait().map_err(|error| error.to_string())?;
        Err(format!("it ended ({status}) without starting the program"))
    }

    /// Waits for its end, which has to be a good one.
    pub fn ends(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + HUNG;
        loop {
            match self.child.try_wait().map_err(|error| error.to_string())? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(format!("it ended with {status}")),
                None if Instant::now() > deadline => return Err("it hangs".to_owned()),
                None => std::thread::sleep(Duration::from_micros(100)),
            }
        }
    }

    /// Kills the whole group, as a crash of the machine's memory killer would.
    pub fn kill(&mut self) {
        let _ = killpg(self.group(), Signal::SIGKILL);
        let _ = self.child.wait();
    }

    /// Asks it to end, as a terminal's owner would, and waits.
    pub fn terminate(&mut self) {
        let _ = nix::sys::signal::kill(self.group(), Signal::SIGTERM);
        let _ = self.ends();
    }

    fn group(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            self.kill();
        }
    }
}

/// Finds `HELLO VERSION NANOSECONDS PATH` in a line, which a supervisor may have put a service's name before.
fn parse(text: &str, began: i64) -> Option<Hello> {
    let (_, rest) = text.split_once("HELLO ")?;
    let (line, _) = rest.split_once('\n')?;
    let mut words = line.splitn(3, ' ');
    let (version, clock, exe) = (words.next()?, words.next()?.parse::<i64>().ok()?, words.next()?);
    Some(Hello { version: version.to_owned(), main_ms: (clock - began) as f64 / 1e6, exe: exe.into() })
}

/// Runs a tool to its end; its output is in the error when it fails.
pub fn tool<S: AsRef<std::ffi::OsStr>>(argv: &[S]) -> Result<String, String> {
    let name = argv[0].as_ref().to_string_lossy().into_owned();
    let out = Command::new(&argv[0])
        .args(&argv[1..])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{name}: {error}"))?;
    if out.status.success() {
        return Ok(String::from_utf8_lossy(&out.stdout).into_owned());
    }
    Err(format!("{name}: {}: {}", out.status, String::from_utf8_lossy(&out.stderr).trim()))
}

/// A line of shell with arguments `$1`, `$2`…
pub fn shell(line: &str, args: &[&Path]) -> Result<String, String> {
    let mut argv = vec!["sh".into(), "-ec".into(), line.into(), "sh".into()];
    argv.extend(args.iter().map(|arg| arg.as_os_str().to_owned()));
    tool::<std::ffi::OsString>(&argv)
}

/// Seconds that `work` took.
pub fn timed(work: impl FnOnce() -> Result<(), String>) -> Result<f64, String> {
    let began = Instant::now();
    work()?;
    Ok(began.elapsed().as_secs_f64())
}

/// Least, most and count of some numbers: a median alone does not say how far to trust it.
pub fn spread(values: &[f64]) -> String {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    format!("{least:.0} to {most:.0}, n={}", values.len())
}

/// The middle of some numbers.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The program's path, if it is on PATH.
pub fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// Everything below `dir`, folders before what is in them; links are not followed.
pub fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            if path.is_dir() && !path.is_symlink() {
                open.push(path.clone());
            }
            found.push(path);
        }
    }
    found
}

/// What a folder holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Use {
    /// Allocated bytes, each inode once.
    pub bytes: u64,
    /// Names.
    pub names: usize,
}

/// What `dir` holds on disk.
pub fn disk_use(dir: &Path) -> Use {
    let mut seen = HashSet::new();
    let paths = walk(dir);
    let allocated =
        |path: &PathBuf| fs::symlink_metadata(path).map_or((0, 0), |m| (m.ino(), m.blocks() * 512));
    let bytes = paths.iter().map(allocated).filter(|(inode, _)| seen.insert(*inode)).map(|(_, n)| n).sum();
    Use { bytes, names: paths.len() }
}

/// The first difference of the tree `got` from the tree `want`.
pub fn difference(want: &Path, got: &Path) -> Option<String> {
    let names = |root: &Path| {
        walk(root).iter().filter_map(|p| p.strip_prefix(root).map(Path::to_owned).ok()).collect()
    };
    let (wanted, found): (HashSet<PathBuf>, HashSet<PathBuf>) = (names(want), names(got));
    if let Some(name) = wanted.symmetric_difference(&found).next() {
        let what = if wanted.contains(name) { "missing" } else { "left over" };
        return Some(format!("{what}: {}", name.display()));
    }
    wanted
        .iter()
        .find(|name| !same(&want.join(name), &got.join(name)).unwrap_or(false))
        .map(|name| format!("changed: {}", name.display()))
}

fn same(a: &Path, b: &Path) -> io::Result<bool> {
    let (x, y) = (fs::symlink_metadata(a)?, fs::symlink_metadata(b)?);
    if x.file_type() != y.file_type() {
        return Ok(false);
    }
    if x.is_symlink() {
        return Ok(fs::read_link(a)? == fs::read_link(b)?);
    }
    Ok(x.is_dir()
        || (x.len() == y.len() && (x.mode() ^ y.mode()) & 0o100 == 0 && fs::read(a)? == fs::read(b)?))
}

/// ext4 does not give an inode away again for so long after its file was deleted (fs/ext4/ialloc.c,
/// `recently_deleted`: RECENTCY_MIN + RECENTCY_DIRTY), and looks past each such inode at every create: after
/// 15,000 files were deleted, creating 15,000 took 11 s instead of 2. Whoever is measured after a removal pays.
const RECENT: Duration = Duration::from_secs(300);

/// When something was last removed from a disk.
static REMOVED: Mutex<Option<Instant>> = Mutex::new(None);

/// Waits until no removal of ours slows down what creates files.
pub fn forget_removals() {
    let removed = REMOVED.lock().map_or(None, |removed| *removed);
    // Nothing is known of what an earlier run removed.
    let wait = removed.map_or(RECENT, |removed| RECENT.saturating_sub(removed.elapsed()));
    eprintln!("waiting {} s for ext4 to forget removed files", wait.as_secs());
    std::thread::sleep(wait);
}

/// Removes a folder, also one that is read-only within.
pub fn remove(dir: &Path) {
    use std::os::unix::fs::PermissionsExt;
    if !dir.exists() {
        return;
    }
    if let Ok(mut removed) = REMOVED.lock().map_err(drop)
        && !dir.starts_with("/dev/shm")
    {
        *removed = Some(Instant::now());
    }
    if fs::remove_dir_all(dir).is_ok() || !dir.exists() {
        return;
    }
    for path in walk(dir).iter().filter(|path| path.is_dir() && !path.is_symlink()) {
        let _ = fs::set_permissions(path, fs::Permissions::from_mode(0o700));
    }
    let _ = fs::remove_dir_all(dir);
}

/// Removes a folder and makes it again, empty.
pub fn empty(dir: &Path) -> Result<(), String> {
    remove(dir);
    fs::create_dir_all(dir).map_err(|error| format!("{}: {error}", dir.display()))
}
