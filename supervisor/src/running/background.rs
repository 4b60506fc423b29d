//! `start`: the bundle in the background.
//!
//! The process that a person started forks, and waits for word from the one in the background: a byte when that has
//! begun to supervise, and another, its exit code, when it ends. What goes wrong before that is said by the new
//! process itself, which still has the person's standard error.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kitbag_format::exit;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{POLL, Running, SILENCE, default_log_folder, left_until, swap, tell};
use crate::called::called;
use crate::commands::{self, Failure, print};
use crate::control::client::PATIENCE;
use crate::logs::own;
use crate::open::Own;
use crate::service::{self, Setting};
use crate::state::Ms;
use crate::state_folder;
use crate::status::{Status, time};
use crate::store::StoreError;
use crate::sys::background::{self, Side};
use crate::sys::fd;

/// The byte that says: supervising. No exit code of a bundle is this.
const SUPERVISING: u8 = 255;
/// The file for what the supervisor itself says in the background.
const OWN_LOG: &str = "supervisor.log";

/// The way back to whoever started a bundle in the background.
#[derive(Debug)]
pub struct Report(OwnedFd);

impl Report {
    /// The services are about to run. Gives the terminal up: the working folder, and the standard files, which
    /// become `log`, as [`own_log`] names it, for which so many bytes are enough.
    pub fn supervising(&self, log: &Path, enough: u64) -> Result<(), StoreError> {
        let folder = log.parent().unwrap_or(Path::new("/"));
        state_folder::make_private(folder).map_err(StoreError::io("make", folder))?;
        std::env::set_current_dir("/").map_err(StoreError::io("change to", Path::new("/")))?;
        own::begin(log, enough)?;
        self.tell(SUPERVISING);
        Ok(())
    }

    fn tell(&self, byte: u8) {
        // Nobody may be left to hear it.
        let _ = nix::unistd::write(&self.0, &[byte]);
    }
}

/// Starts everything, and returns when it is ready.
pub fn start(own: &Own, timeout: Ms, oknodo: bool) -> Result<(), Failure> {
    let until = Instant::now() + Duration::from_millis(timeout);
    loop {
        if let Some((running, status)) = found(own, until)? {
            if !status.stopping {
                return already(&running, &status, oknodo);
            }
            tell(&format!(
                "{} is stopping, as process {}; it starts when that is gone",
                running.name, status.pid
            ));
            running.wait_until_gone(u32::try_from(status.pid).ok())?;
        }
        let said = said_before(own);
        let failed = |errno: crate::sys::Errno| {
            Failure::Running(format!("cannot go to the background: {}", errno.desc()))
        };
        match background::split().map_err(failed)? {
            Side::Background(report) => supervise(own, Report(report)),
            Side::Caller(report) => match attend(own, &report, said, until)? {
                Start::Done => return Ok(()),
                Start::Taken if left_until(until) > 0 => std::thread::sleep(POLL),
                Start::Taken => {
                    return Err(Failure::Late("its state is in use, and nobody answers there".to_owned()));
                }
            },
        }
    }
}

/// What has come of a start.
enum Start {
    Done,
    /// Another one has begun since we looked, or has not let go yet.
    Taken,
}

/// How much earlier supervisors have said.
fn said_before(own: &Own) -> u64 {
    let log = Running::of(own).map(|running| own_log(&running.folder()));
    log.ok().and_then(|path| fs::metadata(path).ok()).map_or(0, |found| found.len())
}

/// Where the supervisor itself says what it has to say.
pub fn own_log(runtime: &Path) -> PathBuf {
    default_log_folder(runtime).join(OWN_LOG)
}

/// The running one, if there is one, asked for no longer than `until`.
fn found(own: &Own, until: Instant) -> Result<Option<(Running, Status)>, Failure> {
    let running = match Running::of(own) {
        Ok(running) => running.within(Some(left_until(until))),
        // Where it may not look it may not start either, and that says why; or it has another place.
        Err(Failure::NotRunning { .. } | Failure::Running(_)) => return Ok(None),
        Err(other) => return Err(other),
    };
    match running.status() {
        Ok(status) => Ok(Some((running, status))),
        Err(Failure::NotRunning { .. }) => Ok(None),
        Err(other) => Err(other),
    }
}

fn already(running: &Running, status: &Status, oknodo: bool) -> Result<(), Failure> {
    let text = format!("{} is running already, as process {}", running.name, status.pid);
    if !oknodo {
        tell(&format!("{text}, for {}", time::span(status.for_ms)));
    }
    if let Some(other) = running.differs(status) {
        tell(&format!("{other}, which runs after {}", swap()));
    }
    if !oknodo {
        return Err(Failure::Found(exit::RUNNING));
    }
    running.until_settled(&[String::new()])?;
    print(format!("{text}\n").as_bytes())
}

/// The life of the process in the background.
fn supervise(own: &Own, report: Report) -> ! {
    let code = service::run(own, &Setting::Background(&report)).unwrap_or_else(|failure| match failure {
        // Whoever started this asks the other one, and has more to say.
        Failure::Store(StoreError::AlreadyRunning { .. }) => exit::RUNNING,
        failure => commands::report_failure(&failure, false),
    });
    report.tell(code);
    std::process::exit(i32::from(code))
}

/// Waits with the person in front until all is ready.
fn attend(own: &Own, report: &OwnedFd, said: u64, until: Instant) -> Result<Start, Failure> {
    let begin = Instant::now();
    let called = called();
    background::say_last(format!(
        "\nkitbag: it goes on in the background: `{called} status`, `{called} stop`\n"
    ));
    if !has_word(report, SILENCE[0]) {
        tell("still waiting: the bundle is being unpacked, or its state made");
    }
    match next(report) {
        Some(SUPERVISING) => {}
        // Before it supervises, this alone is what it means.
        Some(exit::RUNNING) => return Ok(Start::Taken),
        // It has said why.
        Some(code) => return Err(Failure::Found(code)),
        None => {
            return Err(Failure::Running("the process in the background did not come to life".to_owned()));
        }
    }
    let running = Running::of(own)?.within(Some(left_until(until)));
    let ready = running.until_settled(&[String::new()]);
    let spent = time::span(Ms::try_from(begin.elapsed().as_millis()).unwrap_or(Ms::MAX));
    match ready {
        Err(Failure::NotRunning { .. } | Failure::Running(_)) if has_word(report, PATIENCE) => {
            ended(&running, report, said)
        }
        Err(other) => Err(other),
        Ok(()) => {
            let pid = running.status().map_or(0, |status| status.pid);
            print(format!("{} is ready after {spent}, as process {pid}\n", running.name).as_bytes())
        }
    }
    .map(|()| Start::Done)
}

/// Waits for the next byte of a report, or its end, for this time at most; true if it is there.
fn has_word(report: &OwnedFd, patience: Ms) -> bool {
    let patience = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
    poll(&mut [PollFd::new(report.as_fd(), PollFlags::POLLIN)], patience).is_ok_and(|ready| ready > 0)
}

/// It ended before it was ready: how, and what it said last, after as much as was `said` before.
fn ended(running: &Running, report: &OwnedFd, said: u64) -> Result<(), Failure> {
    let code = next(report).unwrap_or(exit::FAILURE);
    if code == exit::OK {
        return print(format!("{} has ended: all of its services ended well\n", running.name).as_bytes());
    }
    let lines = super::logs::last_of_file(&own_log(&running.folder()), said, super::LAST_LINES);
    let last = if lines.is_empty() { "it said nothing" } else { "it said last:" };
    tell(&format!("{} ended before it was ready; {last}", running.name));
    for line in lines {
        tell(&format!("  {line}"));
    }
    Err(Failure::Found(code))
}

/// The next byte of a report, waited for; `None` at its end.
fn next(report: &OwnedFd) -> Option<u8> {
    let mut byte = [0];
    match fd::read(report.as_fd(), &mut byte) {
        Ok(Some(1)) => Some(byte[0]),
        _ => None,
    }
}
