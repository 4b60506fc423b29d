//! Something that was started and has not ended yet.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::{Outcome, eventually};

/// How long something may take to happen.
const PATIENCE: Duration = Duration::from_secs(30);

type Said = Arc<Mutex<Vec<u8>>>;

/// A running command in a process group of its own. Dropped, it is asked to end, then killed, and reaped.
pub struct Running {
    child: Child,
    command: String,
    directory: PathBuf,
    stdout: Said,
    stderr: Said,
    readers: Vec<JoinHandle<()>>,
    stdin: Option<ChildStdin>,
}

impl Running {
    pub(crate) fn new(mut child: Child, command: String, directory: PathBuf) -> Self {
        let (stdout, stderr) = (Said::default(), Said::default());
        let readers = vec![
            follow(child.stdout.take().expect("piped"), &stdout),
            follow(child.stderr.take().expect("piped"), &stderr),
        ];
        let stdin = child.stdin.take();
        Self { child, command, directory, stdout, stderr, readers, stdin }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let _ = kill(Pid::from_raw(self.child.id() as i32), signal);
    }

    /// Feeds it bytes.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.stdin.as_mut().expect("not closed").write_all(bytes).expect("somebody reads");
    }

    /// Closes its standard input.
    pub fn close(&mut self) {
        self.stdin = None;
    }

    /// What it has printed up to now.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout.lock().expect("a lock")).into_owned()
    }

    /// What it has said up to now.
    pub fn said(&self) -> String {
        String::from_utf8_lossy(&self.stderr.lock().expect("a lock")).into_owned()
    }

    /// True if it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("wait").is_some()
    }

    /// Waits until standard output has `text`; returns all of it.
    #[track_caller]
    pub fn wait_print(&mut self, text: &str) -> String {
        self.wait_until(&format!("`{text}` on stdout"), |running| running.text().contains(text));
        self.text()
    }

    /// Waits until standard error has `text`; returns all of it.
    #[track_caller]
    pub fn wait_say(&mut self, text: &str) -> String {
        self.wait_until(&format!("`{text}` on stderr"), |running| running.said().contains(text));
        self.said()
    }

    /// Waits until `condition` holds; fails, showing everything, if it does not in time or after the end.
    #[track_caller]
    pub fn wait_until(&mut self, expected: &str, condition: impl Fn(&Self) -> bool) {
        let begin = Instant::now();
        loop {
            let ended = self.has_ended();
            if ended {
                self.readers.drain(..).for_each(|reader| reader.join().expect("a reader"));
            }
            if condition(self) {
                return;
            }
            let state = if ended { "it has ended" } else { "it runs" };
            assert!(!ended && begin.elapsed() < PATIENCE, "expected {expected}; {state}\n{}", self.shown());
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits for its end.
    #[track_caller]
    pub fn ended(mut self) -> Outcome {
        let begin = Instant::now();
        while !self.has_ended() {
            assert!(begin.elapsed() < PATIENCE, "still running\n{}", self.shown());
            thread::sleep(Duration::from_millis(2));
        }
        let reading = std::mem::take(&mut self.readers);
        eventually(PATIENCE, "its pipes are closed", || reading.iter().all(JoinHandle::is_finished));
        Outcome {
            command: self.command.clone(),
            directory: self.directory.clone(),
            status: self.child.wait().expect("wait"),
            stdout: self.stdout.lock().expect("a lock").clone(),
            stderr: self.stderr.lock().expect("a lock").clone(),
        }
    }

    /// Asks it to end, and waits for that.
    #[track_caller]
    pub fn stop(self) -> Outcome {
        self.signal(Signal::SIGTERM);
        self.ended()
    }

    fn shown(&self) -> String {
        format!(
            "command    {}\ndirectory  {}\n--- stdout\n{}\n--- stderr\n{}",
            self.command,
            self.directory.display(),
            self.text(),
            self.said()
        )
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let group = Pid::from_raw(self.child.id() as i32);
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            let begin = Instant::now();
            while matches!(self.child.try_wait(), Ok(None)) && begin.elapsed() < Duration::from_secs(3) {
                let _ = killpg(group, signal);
                thread::sleep(Duration::from_millis(20));
            }
        }
        let _ = self.child.wait();
    }
}

fn follow(mut pipe: impl Read + Send + 'static, said: &Said) -> JoinHandle<()> {
    let said = Arc::clone(said);
    thread::spawn(move || {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(read @ 1..) = pipe.read(&mut buffer) {
            said.lock().expect("a lock").extend_from_slice(&buffer[..read]);
        }
    })
}
